"""Images inside tar shards: `shard-000.tar/key.jpg` names a member, read without unpacking.

Where each member of a tar begins stands in an index beside it, `shard-000.tar.index`, which is
built once: a sorted array that is searched on the disk, so that memory does not grow with the tar.
"""

import errno
import hashlib
import io
import itertools
import os
import posixpath
import tarfile
import threading
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, NamedTuple

import numpy as np

from model.errors import UserError
from model.files import damage, leads_out, replacing

# Raised by one where an index is written otherwise than before: it is then built again
FORMAT = 1
# An index is [3, 1 + members]: hash of the name, first byte, bytes; its first column: FORMAT, bytes
# of the tar, its modification time in ns
NUMBER = np.dtype("<u8")
TAR = ".tar/"
# Bytes of a member, which is held in memory while it is read
MAX_MEMBER = 2**30
# Indexes held open at a time: each takes a file descriptor
OPEN_INDEXES = 128
# Faults named in one message
SHOWN = 5

_building = threading.Lock()


class Member(NamedTuple):
    """A member's name in a tar. Texts, as a Path takes longer than all else here."""

    tar: str
    name: str
    size: int  # of the tar, in bytes
    mtime: int  # of the tar, in ns


def member_of(path: str | os.PathLike) -> Member | None:
    """The member that a path with a tar in its middle means, there or not, else None."""
    path = os.fspath(path).replace(os.sep, "/")
    end = path.find(TAR)
    while end >= 0:
        tar, name = path[: end + len(TAR) - 1], path[end + len(TAR) :]
        status = _status(tar)
        if status and S_ISREG(status.st_mode):
            return Member(tar, name, status.st_size, status.st_mtime_ns)
        end = path.find(TAR, end + 1)
    return None


def exists(path: str | os.PathLike) -> bool:
    """Whether there is such a file or such a member of a tar.

    Raises OSError for a name that no file system takes, UserError for a tar that cannot be read.
    """
    inside = member_of(path)
    if inside:
        return _place(inside) is not None
    status = _status(path)
    return status is not None and S_ISREG(status.st_mode)


def _status(path: str | os.PathLike) -> os.stat_result | None:
    """None where there is nothing. Raises OSError for a name that no file system takes."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    # a zero byte in the name
    except ValueError:
        return None
    except OSError as error:
        # a circle of links
        if error.errno == errno.ELOOP:
            return None
        raise


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """(bytes, modification time in ns) of a file or member, of the latter its tar's time.

    Raises OSError, UserError.
    """
    inside = member_of(path)
    if inside is None:
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    _, size = _found(inside)
    return size, inside.mtime


def open_file(path: str | os.PathLike) -> BinaryIO:
    """The bytes of a file or of a member of a tar. Raises OSError, UserError."""
    inside = member_of(path)
    if inside is None:
        return open(path, "rb")
    offset, size = _found(inside)
    with open(inside.tar, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def members(path: Path) -> Iterator[tuple[int, tarfile.TarInfo, str]]:
    """Yield (number from 1, member, what is wrong with it or "") of a plain tar, without folders.

    Of a tar that was cut short the last member is a nameless one. Memory holds one at a time.
    Raises UserError for what is no tar, OSError.
    """
    with _opened(path) as tar:
        for number in itertools.count(1):
            try:
                info = tar.next()
            # damaged headers raise ValueError and others as well
            except Exception as error:  # noqa: BLE001 -- a decoder
                yield number, tarfile.TarInfo(), f"the tar ends in the middle ({error})"
                return
            if info is None:
                break
            # it would keep them all
            tar.members.clear()  # type: ignore[attr-defined]
            info.name = posixpath.normpath(info.name)
            if not info.isdir():
                yield number, info, _fault(info)
        end = tar.offset  # type: ignore[attr-defined]
    # tarfile takes whatever is no header for the end
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield number, tarfile.TarInfo(), "the tar is damaged or cut short: it has no end mark"


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except OSError:
        raise
    except Exception:  # noqa: BLE001 -- a decoder: damaged headers raise whatever they like
        raise UserError(f"{path} is no plain tar{_what_instead(path)}") from None


def _what_instead(path: Path) -> str:
    try:
        with tarfile.open(path, "r:*"):
            return ": it is compressed, so no member can be found in it; unpack the compression"
    except Exception:  # noqa: BLE001 -- as above
        return damage(path) or "; copy or download it again"


def _fault(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link"
    if leads_out(info.name):
        return "lies outside the tar's folder"
    # what its header promises may be any size
    if info.issparse():
        return "is a sparse file"
    if not info.isreg():
        return "is no plain file"
    if info.size > MAX_MEMBER:
        return f"has {info.size} bytes, at most {MAX_MEMBER} are read"
    return ""


def _found(inside: Member) -> tuple[int, int]:
    place = _place(inside)
    if place is None:
        raise FileNotFoundError(2, "no such member", f"{inside.tar}/{inside.name}")
    return place


def _place(inside: Member) -> tuple[int, int] | None:
    """(first byte, bytes) of a member, None where there is none. Raises OSError, UserError."""
    names, offsets, sizes = _index(inside.tar, inside.size, inside.mtime)
    key = _key(inside.name)
    place = int(names.searchsorted(np.uint64(key)))
    if place == len(names) or int(names[place]) != key:
        return None
    return int(offsets[place]), int(sizes[place])


def _key(name: str) -> int:
    """Of a million names two share one with a probability of 3e-8, which then counts as a copy."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@lru_cache(OPEN_INDEXES)
def _index(tar: str, size: int, mtime: int) -> tuple[np.ndarray, ...]:
    """Hashes of the names, first bytes, bytes, sorted by the first: of a tar of this size and time.

    Built where there is none.
    """
    with _building:
        path = Path(f"{tar}.index")
        first = np.array([[FORMAT], [size], [mtime]], NUMBER)
        entries = _read(path)
        if entries is None or not np.array_equal(entries[:, :1], first):
            entries = np.hstack([first, _entries(Path(tar))])
            try:
                with replacing(path, "wb", sync=False) as file:
                    np.save(file, entries)
            # a folder that is read only: this process keeps it
            except OSError:
                pass
    # still on the disk, but without what every slice of a memmap costs
    return tuple(np.asarray(entries)[:, 1:])


def _read(path: Path) -> np.ndarray | None:
    try:
        entries = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    is_index = entries.dtype == NUMBER and entries.ndim == 2 and len(entries) == 3
    return entries if is_index and entries.size else None


def _entries(tar: Path) -> np.ndarray:
    """[3, members], sorted by the hash of the name. Raises UserError that lists all faults."""
    faults, values, seen = [], array("Q"), set()
    for number, info, fault in members(tar):
        key = _key(info.name)
        if key in seen and not fault:
            fault = "is there twice"
        if fault:
            faults.append(f"member {number} ({info.name}) {fault}")
            continue
        seen.add(key)
        values.extend((key, info.offset_data, info.size))
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"{tar}: {len(faults)} members cannot be used: {'; '.join(faults[:SHOWN])}{more}; "
            "make the tar again without them"
        )
    entries = np.array(values, NUMBER).reshape(-1, 3)
    return entries[np.argsort(entries[:, 0])].T
