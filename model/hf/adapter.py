"""LoRA by peft: which modules get it, and adapters as PEFT's plain folders, ours and others'."""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file

from model.errors import UserError
from model.hf.types import part_of
from model.quantization import QuantizedLinear
from model.weight_files import PEFT_ADAPTER, PEFT_CONFIG

LORA_TARGETS = ("attention", "mlp", "vision", "projector")
LAYER = re.compile(r"\.layers\.(\d+)\.")
ATTENTION = re.compile(r"attn|attention")
OWN = ".default."  # in the names of an adapter's tensors while they are in the network
SHOWN = 5  # names in one message


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """name -> linear layer, without the head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def depth(model: Any) -> int:
    """Layers of the language model."""
    return int(model.config.get_text_config().num_hidden_layers)


def lora_places(model: Any, targets: Iterable[str], layers: list[int] | None) -> list[str]:
    """Names of the linear layers that get LoRA. layers: of the language model, None: all.

    Raises UserError for a target without such layers, and for layers that there are not.
    """
    outside = [layer for layer in layers or () if not 0 <= layer < depth(model)]
    if outside:
        raise UserError(
            f"layer_range names layers {outside[:9]}; the network has layers 0-{depth(model) - 1}"
        )
    found: dict[str, list[str]] = {target: [] for target in targets}
    for name in linear_layers(model):
        target = part_of(name)
        layer = LAYER.search(name)
        if target == "language":
            if layer is None or (layers is not None and int(layer[1]) not in layers):
                continue
            target = "attention" if ATTENTION.search(name) else "mlp"
        if target in found:
            found[target].append(name)
    for target, names in found.items():
        if not names:
            raise UserError(f"--lora_targets {target}: this network has no linear layers there")
    return [name for names in found.values() for name in names]


def whole_modules(model: Any, parts: Iterable[str]) -> list[str]:
    """The fewest modules that together hold the parameters of the parts, by name.

    peft keeps a second copy of each, so that the base can still answer.
    """
    wanted = set(parts)
    found: list[str] = []

    def visit(module, name):
        of = {part_of(f"{name}.{own}".lstrip(".")) for own, _ in module.named_parameters()}
        if not of & wanted:
            return
        is_list = isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict))
        if name and of <= wanted and not is_list:
            found.append(name)
            return
        for child, below in module.named_children():
            visit(below, f"{name}.{child}".lstrip("."))

    visit(model, "")
    return found


def add_lora(model: Any, method: dict[str, Any], dtype: torch.dtype) -> peft.PeftModel:
    """The model with what a method trains. Raises UserError."""
    parts = method.get("parts", [])
    if "targets" not in method:
        raise UserError("method lora: its targets are not named; copy the adapter's folder again")
    places = lora_places(model, method["targets"], method.get("layers"))
    twice = sorted({part_of(name) for name in places} & set(parts))
    if twice:
        raise UserError(
            f"--trainable {twice[0]} and LoRA there exclude each other: leave {twice[0]} out of "
            "--trainable, or out of --lora_targets"
        )
    config = peft.LoraConfig(
        r=method["rank"],
        lora_alpha=method["alpha"],
        lora_dropout=method.get("dropout", 0.0),
        target_modules=places,
        modules_to_save=whole_modules(model, parts) or None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    return _added(model, config, dtype)


def add_foreign(
    model: Any, stored: dict[str, Any], dtype: torch.dtype, source: str
) -> peft.PeftModel:
    """The model with the modules of an adapter_config.json. Raises UserError."""
    if stored.get("use_dora") and _is_quantized(model):
        raise UserError(f"{source}: DoRA needs the base's full weights; leave --quant out")
    try:
        config = peft.LoraConfig.from_peft_type(**stored)
        return _added(model, config, dtype)
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: it does not fit this base ({reason}); name its own base with --base_path"
        ) from None


def _is_quantized(model):
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def _added(model, config, dtype):
    config._register_custom_module({QuantizedLinear: peft.tuners.lora.Linear})
    with warnings.catch_warnings():  # it asks transformers by names that those have since changed
        warnings.simplefilter("ignore")
        # Not in peft's own float32: the trainer's dtype is the one of all weights
        added = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in added.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return added


def tensors_of(model: peft.PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the names of PEFT's files."""
    return peft.get_peft_model_state_dict(model, save_embedding_layers=False)


def fill(model: peft.PeftModel, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Give the adapter its tensors by name. UserError that lists what does not fit.

    peft also reads names from before transformers 5, where it knows how they have changed.
    """
    try:
        result: Any = peft.set_peft_model_state_dict(model, dict(tensors))
    except RuntimeError as error:  # shapes, each in a line of its own
        wrong = [line.strip() for line in str(error).splitlines()[1:]]
    else:
        missing = [name for name in result.missing_keys if OWN in name]
        wrong = [f"missing {name.replace(OWN, '.')}" for name in sorted(missing)]
        wrong += [f"unexpected {name}" for name in sorted(result.unexpected_keys)]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{source}: {len(wrong)} tensors do not fit the network: "
            f"{'; '.join(wrong[:SHOWN])}{more}"
        )


def write(model: peft.PeftModel, folder: Path, base: str | None) -> None:
    """Write adapter_config.json and adapter_model.safetensors. base: its name or folder."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors_of(model).items()}
    save_file(tensors, folder / PEFT_ADAPTER, {"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    for key, value in config.items():
        if isinstance(value, set):
            config[key] = sorted(value)
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
