"""The network of a run: its base, an adapter to start from, and the method that trains it."""

import dataclasses
import sys
from pathlib import Path

import torch

from model.adapters import adapter_card, adapter_tensors, base_of_adapter, check_base
from model.devices import named_dtype
from model.errors import UserError
from model.files import portable_path
from model.find import find_checkpoint
from model.opening import family_of
from model.training.feature_cache import uses_feature_cache
from model.training.options import layers, like_adapter
from model.weight_files import adapter_file, read_card


def training_dtype(options, device):
    """torch.dtype of weights and activations."""
    if device.type != "cuda":
        if options.dtype == "float16":
            print("--dtype float16 needs a GPU: training in float32 on the CPU", file=sys.stderr)
            return torch.float32
        return named_dtype(options.dtype or "float32")
    if options.dtype:
        return named_dtype(options.dtype)
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def as_resolved(options, dtype):
    """The options with what an empty one or an adapter to start from decides. Raises UserError."""
    name = str(dtype).removeprefix("torch.")
    options = dataclasses.replace(options, dtype=name)
    folder = _folder_at_hand(options)
    card = read_card(folder) if folder else {}
    if folder and adapter_file(folder):
        card = adapter_card(folder)
        options = like_adapter(options, card["method"], folder)
    if options.english is not None:
        return options
    # in the frames that it has learnt
    return dataclasses.replace(options, english=bool(card.get("english")))


def _folder_at_hand(options):
    """What the run starts from; None where open_base makes or fetches it, or says it is not there.

    Raises UserError.
    """
    if options.model_config:
        return None
    try:
        return find_checkpoint(options.from_pretrained)
    except UserError:
        if Path(options.from_pretrained).expanduser().is_dir():
            raise
    return None


def open_base(options, device, dtype):
    """The network to train, with its method added -> (Family, what its card says of both)."""
    adapter = None
    if options.model_config:
        family = family_of(options.model_config).from_config(
            options.model_config, tokenizer=options.tokenizer, device=device, dtype=dtype
        )
        base = None
    else:
        folder = find_checkpoint(options.from_pretrained, options.download or None)
        named = options.from_pretrained
        if adapter_file(folder):
            adapter = folder
            base_path, download = options.base_path or None, options.download or None
            named = folder = base_of_adapter(adapter, base_path, download)
        kind = family_of(folder)
        family = kind.open(
            folder,
            tokenizer=options.tokenizer or adapter,
            # 4-bit weights are made on the CPU and moved: the GPU never holds the full ones
            device=torch.device("cpu") if options.method == "qlora" else device,
            dtype=dtype,
            vision_on_cpu=uses_feature_cache(options, kind),
        )
        refuse_finished(folder, family)
        if options.max_pixels or options.min_pixels:
            family.limit_pixels(options.min_pixels or None, options.max_pixels or None)
        path = portable_path(folder) if Path(named).is_dir() else named
        base = {"path": path, "fingerprint": family.base_fingerprint}

    check_choices(options, family)
    method = requested_method(options, adapter)
    method = family.add_method(method, device=device, nf4=options.method == "qlora")
    if adapter:
        check_base(adapter, family, folder)
        family.start_from(adapter_tensors(adapter), f"adapter {adapter}")
    family.configure_training(
        activation_checkpointing=options.checkpoint_activations,
        patch_dropout=options.patch_dropout,
        label_smoothing=options.label_smoothing,
        compile_layers=options.compile,
    )
    return family, {"base": base, "method": method}


def refuse_finished(folder, family):
    """UserError for a folder that is no base to train on."""
    if family.has_adapter:
        raise UserError(
            f"{folder} is no base to train on: it holds {family.card['method']['name']}; merge it "
            "first (export_RemoteGLM.py --format sat), or name the base itself"
        )
    if "quantization" in family.card:
        raise UserError(
            f"{folder} is no base to train on: its weights are quantized; name the checkpoint "
            "they were made from (--method qlora trains in 4 bits)"
        )


def check_choices(options, family):
    """UserError for methods, parts or LoRA targets that this family of networks does not have."""
    for name, chosen, known in (
        ("--method", [options.method], family.methods),
        ("--trainable", options.trainable, family.parts),
        ("--lora_targets", options.lora_targets, family.lora_targets),
    ):
        unknown = [value for value in chosen if value not in known]
        if unknown:
            raise UserError(f"{name} {unknown[0]}: expected {', '.join(known)}")


def requested_method(options, adapter=None):
    """The options as a method of family.add_method; adapter: folder of one to start from."""
    own = adapter_card(adapter)["method"] if adapter else {}
    if "peft" in own:  # it says itself where its modules are, see options.like_adapter
        return own | {"dropout": options.lora_dropout}
    if options.method == "full":
        return {"name": "full", "parts": options.trainable}
    if options.method == "ptuning":
        return {"name": "ptuning", "length": options.pre_seq_len, "parts": options.trainable}
    return {
        "name": "lora",
        "rank": options.lora_rank,
        "alpha": options.lora_alpha,
        "layers": layers(options.layer_range) if options.layer_range else None,
        "dropout": options.lora_dropout,
        "targets": options.lora_targets,
        "parts": options.trainable,
    }
