"""Opening a folder of transformers: its configuration, its weights in whole, its fingerprint."""

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open

from model.errors import UserError
from model.files import diagnosis
from model.weight_files import fingerprint, weight_files

# Parameters from which a CPU takes bfloat16
LARGE = 1e9

# Its bars and notes would stand between a demo's lines
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
# Workers of a data loader are forked after the tokenizer's threads have started
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def read_config(path: Path) -> transformers.PreTrainedConfig:
    """The configuration in a folder or file. Raises UserError."""
    try:
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"network configuration {path}: not one of this model_type ({reason}); correct it or "
            "copy it again"
        ) from None
    # transformers checks the fields of its own configurations by exceptions of another package
    except Exception as error:  # noqa: BLE001  (any field of a damaged file)
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"network configuration {path}: a field is not what it should be ({reason}); copy it "
            "again"
        ) from None


def choose_dtype(
    dtype: torch.dtype | str | None, device: torch.device, folder: Path
) -> torch.dtype | str:
    """None: bfloat16 on a GPU that has it, else float16; on a CPU float32, bfloat16 if large."""
    if dtype == "stored":
        return "auto"
    if dtype is not None:
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type != "cpu":
        return torch.float16
    size = sum(file.stat().st_size for file in weight_files(folder))
    return torch.bfloat16 if size > 2 * LARGE else torch.float32


def load_model(
    folder: Path,
    config: transformers.PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype | str | None,
) -> Any:
    """The model of a folder in evaluation mode, all its weights there. Raises UserError."""
    files = weight_files(folder)
    with _readable(folder, files):
        opened: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=choose_dtype(dtype, device, folder),
            device_map=None if device.type == "cpu" else {"": device},
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed below instead of raised in a table
        )
    model, found = opened
    wrong = [f"missing {name}" for name in sorted(found["missing_keys"])]
    for name, stored, expected in sorted(found["mismatched_keys"]):
        wrong.append(f"{name} has shape {list(stored)}, expected {list(expected)}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"checkpoint {folder}: {len(wrong)} tensors do not fit the network: "
            f"{'; '.join(wrong[:5])}{more}; fetch it again"
        )
    return model.eval()


@contextlib.contextmanager
def _readable(folder, files):
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        advice = next(filter(None, map(diagnosis, files)), "; fetch it again")
        raise UserError(
            f"checkpoint {folder}: the weights cannot be read ({reason}){advice}"
        ) from None


def fingerprint_of(folder: Path) -> str:
    """Distinguishes the weights of a folder, read from its files: dtype and device do not matter.

    Raises UserError.
    """
    tensors = {}
    files = weight_files(folder)
    with _readable(folder, files):
        for path in files:
            if path.suffix == ".safetensors":
                file = safe_open(path, framework="pt")
                tensors.update({name: _Lazy(file, name) for name in file.keys()})
            else:
                tensors.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return fingerprint(tensors)


class _Lazy:
    """A tensor of a safetensors file, as `fingerprint` looks at it: one is in memory at a time."""

    def __init__(self, file, name):
        self.file, self.name = file, name

    @property
    def shape(self):
        return torch.Size(self.file.get_slice(self.name).get_shape())

    def reshape(self, *shape):
        return self.file.get_tensor(self.name).reshape(*shape)
