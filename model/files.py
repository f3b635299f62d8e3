"""Files that appear whole or not at all, and what is read back from them. Standard library only."""

import codecs
import errno
import hashlib
import io
import json
import os
import posixpath
import re
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PROJECT = Path(__file__).resolve().parents[1]
# A full disk, a quota, a limit of file sizes
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
JSON_LINES = (".jsonl", ".ndjson")
# What to do about a file of the user's own that is not whole
WRITE_AGAIN = "make it again, or copy it whole"
# How archives and images begin
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
IMAGES = (b"II*\0", b"MM\0*", b"\x89PNG", b"\xff\xd8\xff")
# How decoders say that a text ends within a character
CUT = ("unexpected end of data", "truncated data")


def temporary_beside(path):
    """The name under which a file is written before it takes the place of `path`."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def naming(path):
    """A context in which an error of a full disk that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path, mode="w", sync=True):
    """A context whose file takes the place of `path` at its end; an error leaves `path` as it was.

    mode: "w" (UTF-8, line breaks as written) or "wb"; sync: reach the disk before the rename, so
    that a power cut cannot leave an empty file under the name. A link stays a link. Raises OSError.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_beside(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with naming(path), open(temporary, mode, **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a small UTF-8 file, whole or not at all. Raises OSError."""
    with replacing(path) as file:
        file.write(text)


@contextmanager
def replacing_folder(folder):
    """A context whose folder takes the place of `folder` at its end, every file of it on disk.

    An error leaves `folder` as it was and removes what was written. Raises OSError.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new

        sync_files(new)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(new, folder)


def sync_files(folder):
    """Bring every file of a folder to the disk, readable by everyone; returns them, sorted."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)  # safetensors writes for the owner alone; a lab shares its checkpoints
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return files


def leads_out(name):
    """Whether a name leads out of the folder that it is of, on any system, by its text alone."""
    name = posixpath.normpath(name.replace("\\", "/"))
    return name == ".." or re.match("/|[.][.]/|[A-Za-z]:/", name) is not None


def is_inside(folder, name):
    """Whether folder / name lies in the folder, whatever links it goes through."""
    try:
        path = (Path(folder) / name).resolve()
        path.exists()
        return path.is_relative_to(Path(folder).resolve())
    # a name that no file system takes, a circle of links
    except (OSError, ValueError, RuntimeError):
        return False


def lock_file(file):
    """Lock an open file until it is closed -> False where the file system has no locks.

    Raises BlockingIOError where another process holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise BlockingIOError from None
    except OSError:
        return False
    return True


def sha256(path):
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text, parse_constant=None, object_pairs_hook=None):
    """JSON (str or bytes) -> its content. Raises JSONDecodeError or UnicodeDecodeError.

    parse_constant, object_pairs_hook: make something of NaN, Infinity and objects, see json.loads.
    json.loads has other exceptions for what is nested too deeply and for endless numbers.
    """
    try:
        return json.loads(text, parse_constant=parse_constant, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        problem = "nested too deeply"
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:
        problem = str(error).partition(";")[0]
    raise json.JSONDecodeError(problem, text if isinstance(text, str) else "", 0)


def read_json(path, what, kind=None, own=False):
    """The content of a JSON file. Raises UserError in one line.

    what: the file's role, for the message; kind: dict or list, if only that will do; own: the user
    made it, so that it cannot be fetched again.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{what} {path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        problem = own_problem(path, error) if own else f" ({error}){diagnosis(path)}"
        raise UserError(f"{what} {path}: not readable as JSON{problem}") from None
    if kind is not None and not isinstance(content, kind):
        expected = "object" if kind is dict else "list"
        advice = "" if own else "; copy it again"
        raise UserError(
            f"{what} {path}: expected a JSON {expected}, got {type(content).__name__}{advice}"
        )
    return content


def read_rows(path, what):
    """[(place, row)] of a file that the user made: a JSON array, or JSON lines as .jsonl.

    place: "row 3", counted from 0, or "line 4"; JSON that is no array is its own only row, at
    None. Raises UserError in one line.
    """
    if Path(path).suffix.lower() in JSON_LINES:
        return read_json_lines(path, what)
    content = read_json(path, what, own=True)
    if not isinstance(content, list):
        return [(None, content)]
    return [(f"row {index}", row) for index, row in enumerate(content)]


def read_json_lines(path, what):
    """[("line 4", its content)] of the user's JSON lines. Raises UserError."""
    rows = []
    for number, line in enumerate(io.StringIO(read_own_text(path, what)), 1):
        if line.strip():
            rows.append((f"line {number}", parse_line(path, what, number, line)))
    return rows


def parse_line(path, what, number, line):
    """A line (str or bytes) of the user's JSON lines -> its content. Raises UserError."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        content = parse_json(text.removesuffix("\n"))
    except json.JSONDecodeError as error:
        error.lineno = number
        if text.endswith("\n"):
            error.doc += "\n"
        problem = own_problem(path, error)
    except UnicodeDecodeError as error:
        problem = f": line {number}{own_problem(path, error)}"
    else:
        if not isinstance(content, list):
            return content
        raise UserError(
            f"{what} {path}: line {number} is no row: expected an object, got list; an array "
            "needs a name ending in .json"
        )
    raise UserError(f"{what} {path}: not readable as JSON lines{problem}")


def read_own_text(path, what, newline=None):
    """The text of a file that the user made. newline: as for open. Raises UserError."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{what} {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        problem = own_problem(path, error)
        raise UserError(f"{what} {path}: cannot be read{problem}") from None


def refuse_other_kinds(path, what, expected):
    """Raises UserError where neither the name of a file nor how it begins is that of JSON."""
    path = Path(path)
    if path.suffix.lower() in (".json", *JSON_LINES) or not path.is_file():
        return
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(200).removeprefix(codecs.BOM_UTF8).lstrip()
        if start and start[:1] not in b"{[":
            is_sheet = path.suffix.lower() == ".xlsx"  # a zip, but not to be unpacked
            found = "no JSON" if is_sheet else binary_kind(start) or "no JSON"
            raise UserError(f"{what} {path}: {found}; expected {expected}")


def binary_kind(start):
    """What a file that begins like this is, where it holds no text, and what to do; or ""."""
    if start.startswith(ARCHIVES):
        return "an archive: unpack it"
    if start.startswith(IMAGES):
        return "an image, not a file that names images"
    return ""


def own_problem(path, error):
    """What an error of reading a JSON file of the user's own means, as the end of a message."""
    if isinstance(error, OSError):
        return f" ({error.strerror})"
    with open(path, "rb") as file:
        kind = binary_kind(file.read(8))
    if kind:
        return f": {kind}"
    if isinstance(error, UnicodeDecodeError):
        return f": not UTF-8 (at byte {error.start}); {encoding_advice(path, error)}"
    return f": {json_problem(path, error)}"


def encoding_advice(path, error):
    """What to do about a file of the user's own that an encoding cannot read."""
    if getattr(error, "reason", "") in CUT:
        return _cut(path)
    return "save it as UTF-8"


def json_problem(path, error):
    """What a JSONDecodeError says about a file of the user's own, and what to do."""
    found = damage(path)
    if found:
        return found.removeprefix(": ")
    text = error.doc.strip()
    if not text.strip("\0"):
        return f"the file is empty{_size_of(path)}"

    problem = f"line {error.lineno} column {error.colno}: {error.msg}"
    is_cut = text[0] in "[{" and (text[-1] not in "]}" or not error.doc[error.pos :].strip())
    if Path(path).suffix.lower() in JSON_LINES:
        if error.lineno == 1 and text[0] == "[":
            return f"line 1: {error.msg}; an array needs a name ending in .json"
        is_cut = is_cut and not error.doc.endswith("\n")
    elif error.msg == "Extra data":
        return f"{problem}; one record a line needs a name ending in .jsonl"
    return f"{problem}: {_cut(path)}" if is_cut else problem


def _cut(path):
    return f"the file ends in the middle{_size_of(path)}"


def _size_of(path):
    return f"; it has {Path(path).stat().st_size} bytes: {WRITE_AGAIN}"


def diagnosis(path):
    """What a damaged file looks like, as the end of an error message; "" if it cannot be opened."""
    try:
        size = Path(path).stat().st_size
    except OSError:
        return ""
    return damage(path) or f"; it has {size} bytes: compare with the source and fetch it again"


def damage(path):
    """What stands in a file's place where a download went wrong, as the end of a message, or ""."""
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            return impostor(file.read(200), size)
    except OSError:
        return ""


def impostor(start, size):
    """The same for content of so many bytes that begins like this."""
    start = start.lstrip()
    if start.startswith(b"version https://git-lfs"):
        return (
            ": a Git LFS pointer, not the file itself; run `git lfs pull` there, "
            "or download the file"
        )
    if start[:1] == b"<" and b"<svg" not in start:
        return (
            f": an HTML page of {size} bytes, not the file; perhaps that of a login or an error, "
            "saved in its place"
        )
    return ""


def portable_path(folder: str | Path) -> str:
    """How a card names a base: relative to the project if it lies inside; else its whole path."""
    path = Path(folder).resolve()
    if path.is_relative_to(PROJECT):
        return str(path.relative_to(PROJECT))
    return str(path)
