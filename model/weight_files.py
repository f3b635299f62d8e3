"""The files of a checkpoint folder: their names, and which of them hold the weights.

SAT: `model_config.json`, `latest`, `<step>/mp_rank_00_model_states.pt`. Hugging Face:
`config.json` with `model*.safetensors` or `pytorch_model*.bin`, one file or shards with an index.
This project: `model_config.json`, `remoteglm.json`, `model.safetensors` or `adapter.safetensors`.
PEFT: `adapter_config.json`, `adapter_model.safetensors`; over a base of transformers it is this
project's form as well, with `remoteglm.json` beside.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import is_inside, read_json

CONFIG = "model_config.json"
HF_CONFIG = "config.json"
CARD = "remoteglm.json"
# all weights of a network; the trained tensors only
FULL = "model.safetensors"
ADAPTER = "adapter.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_ADAPTER = "adapter_model.safetensors"
# Of the card: objects that may be there, and the fields that each needs
CARD_FIELDS: dict[str, dict[str, type]] = {
    "base": {"path": str, "fingerprint": str},
    "method": {"name": str},
    "quantization": {"bits": int},
}
MAX_TAG = 255  # characters of a folder's name


def read_card(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, {} where it has no card. Raises UserError."""
    if not (folder / CARD).is_file():
        return {}
    card = read_json(folder / CARD, "checkpoint card", dict)
    for key, fields in CARD_FIELDS.items():
        value = card.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise UserError(
                f"checkpoint card {folder / CARD}: {key} is {type(value).__name__}, expected an "
                "object; copy it again"
            )
        for name, kind in fields.items():
            if not isinstance(value.get(name), kind):
                raise UserError(
                    f"checkpoint card {folder / CARD}: {key}.{name} is missing or of another "
                    "kind; copy it again"
                )
    return card


def adapter_file(folder: Path) -> Path | None:
    """The file of an adapter's tensors, which may be missing from PEFT's; None: no adapter."""
    if (folder / ADAPTER).is_file():
        return folder / ADAPTER
    if (folder / PEFT_CONFIG).is_file():
        return folder / PEFT_ADAPTER
    return None


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, all of them.

    Raises UserError that says what is missing. A file that SAT's `latest` names is not looked for.
    """
    if (folder / CONFIG).is_file():
        if (folder / FULL).is_file():
            return [folder / FULL]
        return [_sat_file(folder)]

    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        files = _hf_files(folder, pattern)
        if files:
            return files
    raise UserError(
        f"checkpoint {folder}: no weights; expected model*.safetensors or pytorch_model*.bin "
        f"beside {HF_CONFIG}"
    )


def _sat_file(folder: Path) -> Path:
    """The weight file of the step that SAT's `latest` names."""
    if not (folder / "latest").is_file():
        raise UserError(
            f"checkpoint {folder}: no weights; expected {FULL}, or SAT's `latest` and "
            "<step>/mp_rank_00_model_states.pt"
        )
    step = named_step(folder)
    if (step / "mp_rank_01_model_states.pt").exists():
        raise UserError(
            f"checkpoint {step}: split for model parallelism; merge its parts with SAT first"
        )
    return step / "mp_rank_00_model_states.pt"


def named_step(folder: Path) -> Path:
    """The folder of the step that `latest` names, which may not exist.

    Raises UserError where it cannot be read or leads out of the folder: whoever prepared it could
    have any file taken for the weights.
    """
    try:
        with open(folder / "latest", encoding="utf-8", errors="replace") as file:
            tag = file.read(MAX_TAG).strip()
    except OSError as error:
        raise UserError(f"checkpoint {folder}: latest cannot be read: {error.strerror}") from None

    # SAT reads a step as a number: 0300 means the folder 300.
    tag = str(int(tag)) if tag.isdecimal() else tag
    if not is_inside(folder, tag):
        raise UserError(
            f"checkpoint {folder}: its `latest` names {tag[:100]!r}, expected a folder inside; "
            "name the step's own folder"
        )
    return folder / tag


def _hf_files(folder: Path, pattern: str) -> list[Path]:
    """The weight files of one kind in Hugging Face's layout; [] if there are none of it."""
    index = folder / f"{pattern.replace('*', '')}.index.json"
    if index.is_file():
        return _indexed_files(folder, index)

    present = sorted(folder.glob(pattern))
    if present and re.search(r"-\d+-of-", present[0].name):
        raise UserError(
            f"checkpoint {folder}: {index.name}, the list of its {len(present)} weight files, "
            "is missing; fetch it again"
        )
    return present


def _indexed_files(folder: Path, index: Path) -> list[Path]:
    """The weight files that an index lists. UserError if it lists none or one is missing."""
    content = read_json(index, "list of weight files", dict)
    weight_map = content.get("weight_map") or {}
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"checkpoint {folder}: {index.name} lists no weight files; fetch it again")
    for name in weight_map.values():
        # Of the file's own name: a cache keeps the files themselves elsewhere, behind links
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(
                f"checkpoint {folder}: {index.name} names {str(name)[:100]!r}, expected files of "
                "this folder; fetch it again"
            )
    names = sorted(set(weight_map.values()))

    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {folder}: {len(missing)} of {len(names)} weight files are missing "
            f"({', '.join(missing[:5])}); fetch them again"
        )
    return [folder / name for name in names]


def fingerprint(tensors):
    """16 hex digits that distinguish weights: names, shapes and 64 sampled values of each tensor.

    tensors: name -> tensor of any dtype and device.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]
