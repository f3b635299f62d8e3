"""Record files, JSON arrays or .jsonl: reading, checking every record, writing atomically."""

import json
import reprlib
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from data.caption_sets import SPLITS, nwpu_images, split_of
from data.faults import (
    Fault,
    Problems,
    Tally,
    inner_fault,
    outside_fault,
    split_problem,
    text_problem,
)
from model.errors import UserError
from model.files import (
    WRITE_AGAIN,
    binary_kind,
    encoding_advice,
    json_problem,
    leads_out,
    naming,
    parse_json,
    replacing,
)

WITHIN = (
    "write the names relative to one folder of images, and name that to generate_prompt.py by "
    "--image-root"
)


def read_records(path):
    """Yield (where, record) of a JSON array, of {"images": [...]}, or of a .jsonl line by line.

    UTF-8, UTF-16, a BOM and CRLF are allowed; NaN is null. The record of a line that is not JSON is
    its Fault, so that one bad line does not hide the next. Raises UserError.
    """
    if path.suffix.lower() == ".jsonl":
        with text_file(path) as file:
            yield from _lines(file)
        return
    yield from records_in(path, read_content(path))


def read_content(path):
    """What a .json file holds, NaN as null. Raises UserError."""
    with text_file(path) as file:
        content = parsed(file.read())
    if isinstance(content, Fault):
        raise UserError(f"{path}: {content}; name one otherwise, or merge them")
    return content


def records_in(path, content):
    """Yield (where, record) of what a .json file holds. Raises UserError."""
    if isinstance(content, dict) and "images" in content:
        content = content["images"]
    in_classes = nwpu_images(content) if isinstance(content, dict) else None
    if in_classes is not None:
        yield from in_classes
        return
    if not isinstance(content, list):
        raise UserError(f'{path}: expected an array of records or {{"images": [...]}} at the top')
    for index, record in enumerate(content):
        yield f"record {index}", record


@contextmanager
def text_file(path):
    """A context with the open file; what is wrong with its text or JSON is a UserError.

    UTF-8 or UTF-16, with a BOM or without.
    """
    try:
        with _open(path) as file:
            yield file
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {json_problem(path, error)}") from None
    except UnicodeError as error:
        raise UserError(f"{path} {_encoding_problem(path, error)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _open(path):
    with open(path, "rb") as file:
        start = file.read(8)
    kind = binary_kind(start)
    if kind:
        raise UserError(f"{path} is {kind}")
    return open(path, encoding=encoding_of(start))


def encoding_of(content):
    """The encoding of a text by its first bytes, for a BOM as well as without."""
    encoding = json.detect_encoding(content[:4])
    return "utf-8-sig" if encoding == "utf-8" else encoding


def parsed(text):
    """JSON (str or bytes) -> its content, an object that has a key twice as a Fault."""
    # NaN and Infinity are not JSON, but data frames write them
    return parse_json(text, lambda _: None, _object)


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        return Fault("a key that stands twice in an object", f", {key!r}")
    return found


def _lines(file):
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            record = parsed(text)
        except json.JSONDecodeError as error:
            # not a bad line but another kind of file
            if number == 1:
                error.lineno = number
                raise
            seen = f" from column {error.colno}: {error.msg}"
            if not text.endswith("\n"):
                seen += f"; the file ends in the middle: {WRITE_AGAIN}"
            record = Fault("not JSON", seen)
        yield f"line {number}", record


def _encoding_problem(path, error):
    encoding = getattr(error, "encoding", "UTF-16")
    where = ""
    if path.suffix.lower() != ".jsonl":
        where = f" (at byte {getattr(error, 'start', 0)})"
    elif encoding == "utf-8":
        where = f" (at line {_undecodable_line(path)})"
    return f"is not {encoding.upper()}{where}: {encoding_advice(path, error)}"


def _undecodable_line(path):
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number


def checked_records(path, key, problem_of, limit=None, unique=True, tidy=None, read=read_records):
    """Yield the good records of a file; after the last, raise UserError naming every kind of fault.

    key: under which a record has its name; problem_of(record): its Fault, or None; limit: of the
    first so many records; unique: a name may occur once; tidy(record): the record in the form that
    is checked and yielded; read(path): yields (where, record), or the Fault in a record's place.
    Records whose only fault is that they are empty are yielded as well, and
    an error where they are half of the file or more. Raises UserError as well where there is no
    record at all. Of a .jsonl, memory holds one record at a time and a hash of each name, to find
    duplicates.
    """
    problems, good, names = Problems(path), 0, set()

    def problem_with(record):
        fault = inner_fault(record)
        if fault:
            return fault
        if not isinstance(record, dict):
            return Fault("expected an object", f", got {type(record).__name__}")
        problem = text_problem(record, key)
        if problem is None and unique and hash(record[key]) in names:
            problem = Fault("duplicate")
        return problem or problem_of(record)

    for where, record in islice(read(path), limit):
        is_object = isinstance(record, dict)
        if tidy and is_object:
            record = tidy(record)
        fault = problem_with(record)
        if fault:
            name = record.get(key) if is_object else None
            problems.add(where, name, fault, is_object and key not in record)
            if not fault.empty:
                continue

        good += fault is None
        if unique:
            names.add(hash(record[key]))
        yield record
    problems.report(good)


def image_records(
    path, key, problem_of, limit=None, unique=True, notes=None, read=read_records, within=True
):
    """checked_records of images, whose name under `key` is a path within the image folder.

    Names get / for \\, splits their usual spelling; `notes`, a Tally, says which. within: else a
    name may be any path, as rows have it, whose author knows where the images are.
    """
    notes = notes or Tally()

    def problem(record):
        return _name_problem(record[key], within) or problem_of(record)

    def tidy(record):
        return _tidied(record, key, notes)

    return checked_records(path, key, problem, limit, unique, tidy, read)


def _name_problem(name, within):
    """What is wrong with the file name of an image, or None; within: it is one in a folder."""
    if any(char < " " for char in name):
        return outside_fault(name)
    if within and leads_out(name):
        return outside_fault(name, WITHIN)
    return None


def _tidied(record, key, notes):
    record, name, split = dict(record), record.get(key), record.get("split")
    if isinstance(name, str) and "\\" in name:
        record[key] = name.replace("\\", "/")
        notes.add("\\ in their file names read as /", reprlib.repr(name))

    if "split" not in record or split in SPLITS:
        return record
    if split is None or split == "":
        del record["split"]
        return record
    record["split"] = split_of(split)
    if record["split"] != split:
        notes.add(f"split {split!r} read as {record['split']}", reprlib.repr(name))
    return record


def caption_records(path, limit=None, unique=True):
    """What transform and translation write; see image_records.

    {"imged_id": file name, "caption": text, "split": optional}
    """

    def problem(record):
        return text_problem(record, "caption") or split_problem(record)

    return image_records(path, "imged_id", problem, limit, unique)


def row_records(path, problem_of, limit=None):
    """What transform writes of images that bring their questions, several for an image perhaps.

    {"imged_id": file name, "conversations": turns, "split": optional}; see image_records.
    """

    def problem(record):
        return problem_of(record) or split_problem(record)

    return image_records(path, "imged_id", problem, limit, unique=False, within=False)


@contextmanager
def record_writer(path):
    """A context whose value writes one record after another to `path`, all or nothing.

    A JSON array as json.dump(list, indent=4, ensure_ascii=False) writes it, or by its name .jsonl.
    Raises UserError for text that UTF-8 cannot store, OSError.
    """
    lines, count = Path(path).suffix == ".jsonl", 0

    def text_of(record):
        if lines:
            return json.dumps(record, ensure_ascii=False) + "\n"
        text = json.dumps(record, ensure_ascii=False, indent=4).replace("\n", "\n    ")
        return ("[\n    " if count == 1 else ",\n    ") + text

    with replacing(path) as file:

        def write(record):
            nonlocal count
            count += 1
            try:
                with naming(path):
                    file.write(text_of(record))
            except UnicodeEncodeError:
                raise UserError(
                    f"record {count} for {path} holds half a surrogate pair, "
                    "which UTF-8 cannot store"
                ) from None

        yield write

        if not lines:
            file.write("\n]\n" if count else "[]\n")


def write_records(path, records):
    """Write all of `records` or nothing; returns their count."""
    count = 0
    with record_writer(path) as write:
        for record in records:
            write(record)
            count += 1
    return count
