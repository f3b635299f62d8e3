"""Which family a checkpoint folder belongs to, and the family with what the folder holds."""

from importlib import import_module
from pathlib import Path

import torch

from model.adapters import (
    adapter_card,
    adapter_tensors,
    base_of_adapter,
    check_base,
    check_manifest,
)
from model.devices import choose_device, named_dtype
from model.errors import UserError
from model.family import Family
from model.files import read_json
from model.find import find_checkpoint
from model.weight_files import CONFIG, adapter_file

# model_type in a folder's configuration -> "module:class", imported when a folder asks for it
FAMILIES = {
    "visualglm": "model.visualglm.family:VisualGLMFamily",
    "chatglm": "model.visualglm.family:VisualGLMFamily",  # as Hugging Face's folder calls it
}
DEFAULT_FAMILY = "visualglm"  # SwissArmyTransformer's folders name no model_type
HF_FAMILY = "model.hf.family:HFFamily"
EFFECT_RATIO = 4  # between an adapter's effect now and after training: dtype and bits change it


def family_of(folder: Path) -> type[Family]:
    """The family that a checkpoint folder, or a configuration file, belongs to."""
    path = Path(folder)
    if path.is_dir():
        path = path / (CONFIG if (path / CONFIG).is_file() else "config.json")
    config = read_json(path, "network configuration", dict)
    name = config.get("model_type", DEFAULT_FAMILY)
    if not isinstance(name, str):
        raise UserError(
            f"{path}: model_type {name!r}, expected a name; correct it or copy it again"
        )
    module, _, kind = FAMILIES.get(name, HF_FAMILY).partition(":")
    family = getattr(import_module(module), kind)
    family.check_config(config, path)
    return family


def open_checkpoint(
    name: str | Path,
    *,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bits: int | None = None,
    download: str | None = None,
    pixels: tuple[int | None, int | None] = (None, None),
) -> Family:
    """A base, a full checkpoint or an adapter: a folder, or a name to look up. Raises UserError.

    base: where an adapter's base lies, if it has moved; tokenizer: a vocabulary file; device:
    "cuda", "mps", "cpu"; dtype: a name of DTYPES, or "stored"; bits: 8 or 4; download:
    "huggingface" or "modelscope"; pixels: least and most of an image, see limit_pixels. None
    chooses, or does without.
    """
    folder = find_checkpoint(name, download)
    device = choose_device(device)
    dtype = named_dtype(dtype)
    if adapter_file(folder) is None:
        family = family_of(folder).open(
            folder, tokenizer=tokenizer, device=device, dtype=dtype, bits=bits
        )
    else:
        family = _open_adapter(folder, base, tokenizer, device, dtype, bits, download)
    if any(pixels):
        family.limit_pixels(*pixels)
    return family


def _open_adapter(folder, base, tokenizer, device, dtype, bits, download):
    card = adapter_card(folder)
    base_folder = base_of_adapter(folder, base, download)
    check_manifest(folder)
    family = family_of(base_folder).open(
        base_folder, tokenizer=tokenizer or folder, device=device, dtype=dtype, bits=bits
    )
    check_base(folder, family, base_folder)
    family.load_adapter(card["method"], adapter_tensors(folder), f"adapter {folder}")
    family.card = card
    _check_effect(family, f"adapter {folder}")
    return family


def _check_effect(family, source):
    """UserError for an adapter that loads and yet does not do what it did after its training."""
    effect = family.effect()
    if effect is None:
        return
    if effect == 0:
        raise UserError(
            f"{source}: it changes no answer of its base: none of its weights is active; copy it "
            "again, or name its own base with --base_path"
        )
    expected = family.card.get("effect")
    if expected and not expected / EFFECT_RATIO < effect < expected * EFFECT_RATIO:
        raise UserError(
            f"{source}: it changes the logits of its base by {effect:.3g}, expected {expected:.3g} "
            "as after training; its configuration or the base's is not the same: copy them again"
        )


def export_checkpoint(name: str | Path, form: str, output: Path, **options) -> list[str]:
    """`Family.export` of a checkpoint found by its name. Raises UserError."""
    folder = find_checkpoint(name, options.get("download"))
    configured = folder
    if adapter_file(folder) and not (folder / CONFIG).is_file():
        configured = base_of_adapter(folder, options.get("base"), options.get("download"))
    family = family_of(configured)
    if form not in family.formats:
        known = ", ".join(family.formats)
        raise UserError(f"--format {form}: this checkpoint can be written as {known}")
    return family.export(folder, form, output, **options)
