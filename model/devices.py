"""Devices and dtypes by their names."""

import torch

from model.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """torch.device of a name; None takes the first of cuda, mps, cpu that works."""
    if name is None:
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); try cpu") from None
    return device


def named_dtype(name: str | torch.dtype | None) -> torch.dtype | str | None:
    """torch.dtype of a name; None, "stored" and a torch.dtype as they are."""
    if name is None or name == "stored" or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def to_device(batch, device):
    """A batch with its tensors, also those in lists, on the device."""
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch
