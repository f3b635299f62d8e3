"""The only door to SwissArmyTransformer (SAT).

`import sat` eagerly pulls packages that no model code needs: triton (1 GB, Linux only), datasets, wandb,
tensorboardX, deepspeed, requests and all of transformers (for one activation function). Here each is replaced by an
empty stand-in while SAT is imported and taken away again, so inference works on CPU, Windows and Mac with nothing but
torch, and a later `import transformers` or `import deepspeed` still gets the real package.
"""

import functools
import importlib.machinery
import os
import sys
import types

import torch
import torch.nn.functional as F


def _unavailable(name, *args, **kwargs):
    raise RuntimeError(
        f"{name} is not used by this project: SAT's own path to it is closed in model/sat_import.py"
    )


def _stand_in(name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(
        name, None
    )  # accelerate reads __spec__ of what it finds
    module.__dict__.update(attributes)
    return module


def _import_sat():
    gelu_new = functools.partial(F.gelu, approximate="tanh")
    activations = _stand_in("transformers.activations", ACT2FN={"gelu_new": gelu_new})
    stand_ins = {
        "sat.model.position_embedding.triton_rotary": {
            "apply_rotary": functools.partial(_unavailable, "triton")
        },
        "sat.data_utils.hf_dataset": {
            "load_hf_dataset": functools.partial(_unavailable, "datasets")
        },
        "sat.training.deepspeed_training": {
            "training_main": functools.partial(_unavailable, "SAT's training loop")
        },
        "requests": {"get": functools.partial(_unavailable, "SAT's download")},
        "transformers": {"activations": activations, "__path__": []},
    }
    added = []
    if "bitsandbytes" not in sys.modules:
        sys.modules["bitsandbytes"] = (
            None  # "not installed": its import takes seconds and prints, SAT's use of it is broken
        )
        added.append("bitsandbytes")
    for name, attributes in stand_ins.items():
        if name not in sys.modules:
            sys.modules[name] = _stand_in(name, **attributes)
            added.append(name)
    if "transformers" in added:
        sys.modules["transformers.activations"] = activations
        added.append("transformers.activations")
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")  # SAT logs every layer it touches
    try:
        import sat.model.finetune.lora2  # noqa: F401  (the part that tries bitsandbytes)
    finally:
        for name in added:
            if not name.startswith("sat."):
                sys.modules.pop(name)


_import_sat()

from sat import mpu  # noqa: E402
from sat.model.base_model import BaseMixin, BaseModel  # noqa: E402,F401
from sat.model.finetune.lora2 import LoraLinear, LoraMixin  # noqa: E402,F401
from sat.model.finetune.prompt_tuning import PTuningV2Mixin  # noqa: E402,F401
from sat.model.official.chatglm_model import ChatGLMFinalMixin, ChatGLMLayerMixin  # noqa: E402,F401
from sat.model.official.vit_model import (  # noqa: E402,F401
    ImagePatchEmbeddingMixin,
    InterpolatedPositionEmbeddingMixin,
    ViTProperty,
)
from sat.model.transformer import BaseTransformer  # noqa: E402,F401
from sat.mpu import ColumnParallelLinear, RowParallelLinear  # noqa: E402,F401
from sat.transformer_defaults import ARGS_DEFAULT  # noqa: E402,F401


def ensure_model_parallel_group():
    """Give SAT the model-parallel group of one that it asserts; open no port when this is the only process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    if not mpu.model_parallel_is_initialized():
        os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
        mpu.initialize_model_parallel(1)


def cpm_kernels():
    """SAT's CUDA kernels that unpack quantized weights, and the rounding their launch needs. Raises ImportError."""
    from sat.quantization import kernels

    if kernels.kernels is None:
        raise ImportError("cpm_kernels")
    return kernels.kernels, kernels.round_up


def leave_model_parallel_group():
    """End torch.distributed; without it some runs of several processes abort at exit."""
    mpu.destroy_model_parallel()
