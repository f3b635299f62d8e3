"""Record files, JSON arrays or .jsonl: reading, checking every record, writing atomically."""

import json
import reprlib
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from data.caption_sets import SPLITS, nwpu_images
from model.errors import UserError
from model.files import json_problem, replacing

# problems of a file that are listed: all that a person would fix by hand
MOST_LISTED = 1000
# as many problems share one line; more stand one a line
ON_ONE_LINE = 5


def text_problem(record, key):
    """What is wrong with the text under `key`, or None."""
    if key not in record:
        return f"no {key!r} among its keys ({', '.join(record)})"
    if not isinstance(record[key], str) or not record[key].strip():
        return f"expected text in {key!r}, got {reprlib.repr(record[key])}"
    return None


def split_problem(record):
    """What is wrong with the split of a record, or None; it may have none."""
    if record.get("split", SPLITS[0]) in SPLITS:
        return None
    return f"expected 'split' train, val or test, got {reprlib.repr(record['split'])}"


def read_records(path):
    """Yield (where, record) of a JSON array, of {"images": [...]}, or of a .jsonl line by line.

    UTF-8, a BOM and CRLF are allowed. The record of a line that is not JSON is the
    JSONDecodeError, so that one bad line does not hide the next. Raises UserError.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                yield from _lines(file)
                return
            data = json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {json_problem(path, error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None

    if isinstance(data, dict):
        data = data["images"] if "images" in data else nwpu_images(data)
    if not isinstance(data, list):
        raise UserError(f'{path}: expected an array of records or {{"images": [...]}} at the top')
    for index, record in enumerate(data):
        yield f"record {index}", record


def _lines(file):
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            # not a bad line but another kind of file
            if number == 1:
                error.lineno = number
                raise
            record = error
        yield f"line {number}", record


class _Problems:
    """The bad records of a file: their count, and the first of them in words."""

    def __init__(self, path):
        self.path = path
        self.count = 0
        self.without_key = 0
        self.last = None
        self.listed = []

    def add(self, where, name, problem, without_key):
        self.count += 1
        self.without_key += without_key
        self.last = problem
        if len(self.listed) < MOST_LISTED:
            named = "" if name is None else f" ({reprlib.repr(name)})"
            self.listed.append(f"{where}{named}: {problem}")

    def report(self, good):
        """Raises UserError if there are any, or no `good` records. One line, or one a record."""
        if self.count > ON_ONE_LINE:
            # a file of another kind: the same once for all
            if self.without_key == self.count and not good:
                raise UserError(f"{self.path}: all {self.count} records: {self.last}")

            lines = [f"{self.path}: {self.count} bad records:", *self.listed]
            if self.count > MOST_LISTED:
                lines.append(f"and {self.count - MOST_LISTED} more")
            raise UserError("\n  ".join(lines))

        if self.count:
            raise UserError(f"{self.path}: {self.count} bad records: {'; '.join(self.listed)}")
        if not good:
            raise UserError(f"{self.path} holds no records")


def checked_records(path, key, problem_of, limit=None, unique=True):
    """Yield the good records of a file; after the last, raise UserError naming every bad one.

    key: under which a record has its name; problem_of(record): what is wrong with it, or None;
    limit: of the first so many records; unique: a name may occur once. Raises UserError as well
    where there is no record at all. Of a .jsonl, memory holds one record at a time and a hash of
    each name, to find duplicates.
    """
    problems, good, names = _Problems(path), 0, set()

    def problem_with(record):
        if isinstance(record, json.JSONDecodeError):
            return f"not JSON from column {record.colno}: {record.msg}"
        if not isinstance(record, dict):
            return f"expected an object, got {type(record).__name__}"
        problem = text_problem(record, key)
        if problem is None and unique and hash(record[key]) in names:
            problem = "duplicate"
        return problem or problem_of(record)

    for where, record in islice(read_records(path), limit):
        problem = problem_with(record)
        if problem:
            is_object = isinstance(record, dict)
            name = record.get(key) if is_object else None
            problems.add(where, name, problem, is_object and key not in record)
            continue

        good += 1
        if unique:
            names.add(hash(record[key]))
        yield record
    problems.report(good)


def caption_records(path, limit=None, unique=True):
    """What transform and translation write; see checked_records.

    {"imged_id": file name, "caption": text, "split": optional}
    """

    def problem(record):
        return text_problem(record, "caption") or split_problem(record)

    return checked_records(path, "imged_id", problem, limit, unique)


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
