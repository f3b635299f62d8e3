"""Folders of adapters: what they say of themselves, their base, and their tensors."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.errors import UserError
from model.family import Family
from model.files import PROJECT, read_json, sha256
from model.find import find_checkpoint
from model.weight_files import ADAPTER, CARD, PEFT_CONFIG, adapter_file, read_card

# Of VisualGLM-6B's official code, over which only peft puts an adapter in its form
OFFICIAL_LAYERS = ("transformer.layers.", "query_key_value")
MANIFEST = "complete.json"  # hashes of a saved training step, see training/run_folder.py


def adapter_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter; of one that another program wrote as PEFT, what its files say.

    Raises UserError.
    """
    card = read_card(folder)
    peft = None
    if (folder / PEFT_CONFIG).is_file():
        peft = read_json(folder / PEFT_CONFIG, "adapter configuration", dict)
    if peft is not None and not card:
        card = _card_of_peft(folder, peft)
    if not card.get("base") or not card.get("method"):
        raise UserError(
            f"adapter {folder}: {CARD} does not say what its base is; copy the folder again"
        )
    if peft is not None:
        card["method"] = card["method"] | {"peft": peft}
    return card


def _card_of_peft(folder, peft):
    """What adapter_config.json says, as a card."""
    if peft.get("peft_type") != "LORA":
        raise UserError(
            f"adapter {folder}: {PEFT_CONFIG} has peft_type {peft.get('peft_type')!r}, expected "
            "LORA"
        )
    targets = str(peft.get("target_modules")).replace("\\", "")
    if any(name in targets for name in OFFICIAL_LAYERS):
        raise UserError(
            f"adapter {folder}: for the peft library, over VisualGLM-6B in Hugging Face's layout "
            "(export_RemoteGLM.py --format hf) and its official code; here open the adapter that "
            "it was exported from"
        )
    method = {"name": "lora"}
    for key, name in (("rank", "r"), ("alpha", "lora_alpha")):
        if name in peft:
            method[key] = peft[name]
    base = {"path": peft.get("base_model_name_or_path"), "fingerprint": None}
    return {"base": base, "method": method}


def base_of_adapter(
    folder: Path, given: str | Path | None = None, download: str | None = None
) -> Path:
    """The folder of an adapter's base: as given, else where the card says, from here or there.

    Raises UserError.
    """
    base = given
    if base is None:
        base = adapter_card(folder)["base"]["path"]
        if not base:
            raise UserError(
                f"adapter {folder}: it does not say what its base is; name it with --base_path"
            )
        for place in (PROJECT / base, folder / base):
            if place.is_dir():
                base = place
                break
    try:
        found = find_checkpoint(base, download)
    except UserError as error:
        advice = "name it with --base_path. " if given is None else ""
        raise UserError(f"adapter {folder}: its base is not at {base}; {advice}{error}") from None
    if adapter_file(found):
        raise UserError(f"adapter {folder}: {found} is an adapter, too, not its base")
    return found


def check_manifest(folder):
    """An adapter that a training run saved must be what the run wrote."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    file = adapter_file(folder)
    if read_json(manifest, "list of hashes", dict).get(file.name) != sha256(file):
        raise UserError(
            f"adapter {folder}: {file.name} is not what training wrote (its hash differs from "
            f"{MANIFEST}); copy it again"
        )


def check_base(folder: Path, family: Family, base_folder: Path) -> None:
    """UserError unless the family, opened from base_folder, is what an adapter was trained on."""
    expected = adapter_card(folder)["base"]["fingerprint"]
    if expected is not None and family.base_fingerprint != expected:
        raise UserError(
            f"adapter {folder}: {base_folder} is not the base it was trained on (fingerprint "
            f"{family.base_fingerprint}, expected {expected}); name the right one with --base_path"
        )


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """name -> tensor of an adapter, in its dtype. Raises UserError."""
    path = adapter_file(folder) or folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"adapter {folder}: {path.name} cannot be read ({error}); copy it again"
        ) from None
