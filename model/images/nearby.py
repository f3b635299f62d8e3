"""An image that is not where a row says: the file that is probably meant."""

import os
from contextlib import suppress
from pathlib import Path


def nearby(path: Path) -> Path | None:
    """A file beside an absent one that differs in case or extension, or of its name in a subfolder.

    For a hint in a message; None where there is none, or its folder cannot be listed.
    """
    with suppress(OSError, ValueError):
        folder = _existing(path.parent)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            if Path(entry.name).stem.casefold() == path.stem.casefold() and entry.is_file():
                return Path(entry.path)
        for entry in entries:
            inside = Path(entry.path, path.name)
            if entry.is_dir() and inside.is_file():
                return inside
    return None


def _existing(folder: Path) -> Path:
    """The folder, or one beside it whose name differs in case. Raises OSError."""
    if folder.is_dir():
        return folder
    for other in sorted(folder.parent.iterdir()):
        if other.name.casefold() == folder.name.casefold():
            return other
    raise FileNotFoundError(folder)
