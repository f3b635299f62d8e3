"""The only door to SwissArmyTransformer (SAT).

`import sat` eagerly pulls packages that no model code needs: triton (1 GB, Linux only), datasets,
wandb, tensorboardX, deepspeed, requests and all of transformers (for one activation function).
Here each is replaced by an empty stand-in while SAT is imported, and taken away again. So inference
works on CPU, Windows and Mac with nothing but torch, and a later `import transformers` or
`import deepspeed` still gets the real package.
"""

import functools
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F


def _unavailable(name: str, *args, **kwargs):
    raise RuntimeError(
        f"{name} is not used by this project: SAT's own path to it is closed in "
        "model/visualglm/sat.py"
    )


def _stand_in(name: str, **attributes) -> types.ModuleType:
    """A module that holds these attributes and nothing else."""
    module = types.ModuleType(name)
    # accelerate reads __spec__ of what it finds.
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(attributes)
    return module


def _stand_ins() -> dict[str, types.ModuleType]:
    """Name -> module, for everything that SAT imports and this project does not use."""
    gelu_new = functools.partial(F.gelu, approximate="tanh")
    activations = _stand_in("transformers.activations", ACT2FN={"gelu_new": gelu_new})
    modules = {"transformers.activations": activations}

    attributes: dict[str, dict] = {
        "transformers": {"activations": activations, "__path__": []},
        "requests": {"get": functools.partial(_unavailable, "SAT's download")},
        "sat.model.position_embedding.triton_rotary": {
            "apply_rotary": functools.partial(_unavailable, "triton")
        },
        "sat.data_utils.hf_dataset": {
            "load_hf_dataset": functools.partial(_unavailable, "datasets")
        },
        "sat.training.deepspeed_training": {
            "training_main": functools.partial(_unavailable, "SAT's training loop")
        },
    }
    for name, content in attributes.items():
        modules[name] = _stand_in(name, **content)
    return modules


@contextmanager
def _without_optional_packages() -> Iterator[None]:
    """Inside, SAT's imports find stand-ins; at the end all but those of SAT itself are removed."""
    modules: dict[str, types.ModuleType | None] = dict(_stand_ins())
    if "transformers" in sys.modules:
        del modules["transformers.activations"]
    # "Not installed": its import takes seconds and prints, and SAT's use of it is broken.
    modules["bitsandbytes"] = None

    added = [name for name in modules if name not in sys.modules]
    for name in added:
        sys.modules[name] = modules[name]  # type: ignore[assignment]  # None is allowed here
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")  # SAT logs every layer it touches
    try:
        yield
    finally:
        for name in added:
            if not name.startswith("sat."):
                sys.modules.pop(name)


with _without_optional_packages():
    from sat import mpu
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.finetune.lora2 import LoraLinear, LoraMixin
    from sat.model.finetune.prompt_tuning import PTuningV2Mixin
    from sat.model.official.chatglm_model import ChatGLMFinalMixin, ChatGLMLayerMixin
    from sat.model.official.vit_model import (
        ImagePatchEmbeddingMixin,
        InterpolatedPositionEmbeddingMixin,
        ViTProperty,
    )
    from sat.model.transformer import BaseTransformer
    from sat.mpu import ColumnParallelLinear, RowParallelLinear
    from sat.transformer_defaults import ARGS_DEFAULT

__all__ = [
    "ARGS_DEFAULT",
    "BaseMixin",
    "BaseModel",
    "BaseTransformer",
    "ChatGLMFinalMixin",
    "ChatGLMLayerMixin",
    "ColumnParallelLinear",
    "ImagePatchEmbeddingMixin",
    "InterpolatedPositionEmbeddingMixin",
    "LoraLinear",
    "LoraMixin",
    "PTuningV2Mixin",
    "RowParallelLinear",
    "ViTProperty",
    "cpm_kernels",
    "ensure_model_parallel_group",
    "leave_model_parallel_group",
    "make_transformer",
]


def ensure_model_parallel_group() -> None:
    """Give SAT the model-parallel group that it asserts; a single process opens no port."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    if not mpu.model_parallel_is_initialized():
        os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
        mpu.initialize_model_parallel(1)


def make_transformer(config, activation, device, dtype, init) -> BaseTransformer:
    """SAT's transformer of one part; on the meta device nothing is allocated or initialised."""
    ensure_model_parallel_group()
    options = {name: getattr(config, key, default) for name, (key, default) in ARGS_DEFAULT.items()}
    transformer = BaseTransformer(
        num_layers=config.num_layers,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        max_sequence_length=config.max_sequence_length,
        layernorm_order=config.layernorm_order,
        activation_func=activation,
        params_dtype=dtype,
        skip_init=not init,
        # SAT's own takes a detour, and another epsilon, for half precision on a CPU.
        layernorm=torch.nn.LayerNorm,
        # SAT's 0.02 suits a width of 2,500: in a narrow network the image's signal would start
        # out too faint to learn.
        init_method_std=config.hidden_size**-0.5,
        device=torch.device(device),
        **options,
    )
    # SAT leaves norms, positions and cross-attention on the CPU in float32.
    return transformer.to(device=device, dtype=dtype)


def cpm_kernels():
    """SAT's CUDA kernels that unpack quantized weights, and the rounding that a launch needs.

    Raises ImportError.
    """
    from sat.quantization import kernels

    if kernels.kernels is None:
        raise ImportError("cpm_kernels")
    return kernels.kernels, kernels.round_up


def leave_model_parallel_group() -> None:
    """Undo ensure_model_parallel_group, before torch.distributed ends."""
    mpu.destroy_model_parallel()
