"""How much of the disk people's files may take: uploads, images fetched by address, maps."""

import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from serving.page.words import WordedError

GB = 10**9
USUAL = 10 * GB


class Space:
    """folder: that holds all of the files; most: their bytes together; each: those of one page.

    removers: functions that remove one thing which nobody needs at present, and return False where
    there is none; those that come first are called first.
    """

    def __init__(
        self, folder: Path, most: int = USUAL, removers: Iterable[Callable[[], bool]] = ()
    ):
        # Here alone: made later it could come back after the server's end has removed it
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.most = most
        self.each = most // 4
        self.removers = list(removers)
        self._coming = 0
        self._lock = threading.Lock()

    def take(self, size: int = 0) -> None:
        """Keep room for so many bytes that will come, until `give_back`. Raises WordedError."""
        with self._lock:
            while size > self._room():
                if not any(remove() for remove in self.removers):
                    raise WordedError("no room", gigabytes(self.most))
            self._coming += size

    def give_back(self, size: int) -> None:
        """They are there, or will not come."""
        with self._lock:
            self._coming -= size

    def check_each(self, files: Iterable[Path]) -> None:
        """Raises WordedError where the files of one page take more than it may."""
        kept = size_of(files)
        if kept > self.each:
            raise WordedError("page full", gigabytes(kept), gigabytes(self.each))

    def _room(self):
        left = self.most - size_of(self.folder.rglob("*"))
        return min(left, shutil.disk_usage(self.folder).free) - self._coming


def size_of(files: Iterable[Path]) -> int:
    """Bytes of those that are there."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def gigabytes(size: int) -> str:
    return f"{size / GB:.3g}"
