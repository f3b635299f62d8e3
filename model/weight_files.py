"""The files of a checkpoint folder: their names, and which of them hold the weights.

SAT: `model_config.json`, `latest`, `<step>/mp_rank_00_model_states.pt`. Hugging Face:
`config.json` with `model*.safetensors` or `pytorch_model*.bin`, one file or shards with an index.
This project: `model_config.json`, `remoteglm.json`, `model.safetensors` or `adapter.safetensors`.
"""

import re
from pathlib import Path

from model.errors import UserError
from model.files import read_json

CONFIG = "model_config.json"
HF_CONFIG = "config.json"
CARD = "remoteglm.json"
# all weights of a network; the trained tensors only
FULL = "model.safetensors"
ADAPTER = "adapter.safetensors"


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
    try:
        tag = (folder / "latest").read_text(errors="replace").strip()
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {folder}: no weights; expected {FULL}, or SAT's `latest` and "
            "<step>/mp_rank_00_model_states.pt"
        ) from None

    # SAT reads a step as a number: 0300 means the folder 300.
    step = folder / (str(int(tag)) if tag.isdigit() else tag)
    if (step / "mp_rank_01_model_states.pt").exists():
        raise UserError(
            f"checkpoint {step}: split for model parallelism; merge its parts with SAT first"
        )
    return step / "mp_rank_00_model_states.pt"


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
    names = sorted(set(content.get("weight_map", {}).values()))
    if not names:
        raise UserError(f"checkpoint {folder}: {index.name} lists no weight files; fetch it again")

    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"checkpoint {folder}: {len(missing)} of {len(names)} weight files are missing "
            f"({', '.join(missing[:5])}); fetch them again"
        )
    return [folder / name for name in names]
