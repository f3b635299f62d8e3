"""What the data stages share: default paths, reading, checking and atomic writing. Standard library only."""

import json
import os
import reprlib
import sys
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from data.caption_sets import CAPTION_SETS, SPLITS, nwpu_images

DATA = Path(__file__).resolve().parent
PROJECT = DATA.parent
DEFAULT_SET = "UCM"
MAKER = {
    "en": "transform.py",
    "zh": "translation_en2zh.py",
}  # who writes <dataset>-en.json and <dataset>-zh.json


class StageError(Exception):
    """An error for the user: one line naming the value seen, the value expected and what to do."""


def run_stage(script, stage, args):
    """Run `stage(args)` and return the exit status; what a user can mend is one line on stderr, never a traceback."""
    try:
        stage(args)
    except (
        StageError,
        OSError,
    ) as error:  # OSError: disk full, permissions, a folder that went away
        print(f"{Path(script).name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"{Path(script).name}: interrupted; the same command continues from what is saved",
            file=sys.stderr,
        )
        return 130
    return 0


def add_path_options(parser, reads, writes, several=False):
    """--dataset, --input and --output of a stage from `reads` ("captions", "en", "zh") to `writes` ("en", "zh", "prompt").

    With `several`, args.input is a list or None, to be given to resolve_paths one by one.
    """
    files = parser.add_argument_group("files")
    files.add_argument(
        "--dataset",
        choices=CAPTION_SETS,
        help="caption set whose folder data/<dataset>/ holds the default "
        f"paths (default: {DEFAULT_SET}; none is assumed where only --input is given)",
    )
    default = (
        "dataset.json or dataset_<dataset>.json"
        if reads == "captions"
        else f"<dataset>-{reads}.json"
    )
    files.add_argument(
        "--input",
        type=Path,
        nargs="+" if several else None,
        help="JSON, or .jsonl with one record a line"
        f"{', or several of them in the order to merge' * several} (default: data/<dataset>/{default})",
    )
    files.add_argument(
        "--output",
        type=Path,
        help="JSON, or .jsonl for one record a line (default: data/<dataset>/"
        f"<dataset>-{writes}.json; where --input is given without --dataset: NAME-{writes} beside it)",
    )
    parser.set_defaults(reads=reads, writes=writes)


def resolve_paths(args):
    """Fill in args.dataset, .input and .output; StageError where the input is missing or the output cannot be written."""
    hint = "check --input"
    if args.input is None:
        args.dataset = args.dataset or DEFAULT_SET
        folder, names = DATA / args.dataset, [f"{args.dataset}-{args.reads}.json"]
        maker = (
            f"{MAKER[args.reads]} --dataset {args.dataset}"
            if args.reads in MAKER
            else "synthetic/demo_scenes.py"
        )
        hint = f"run data/{maker} first, or give --input"
        if args.reads == "captions":
            names = [
                "dataset.json",
                f"dataset_{args.dataset.lower()}.json",
                f"dataset_{args.dataset}.json",
            ]
            source = CAPTION_SETS[args.dataset].source
            hint = (
                hint
                if args.dataset == "demo"
                else f"get the {args.dataset} captions from {source}, or give --input"
            )
        args.input = next(
            (folder / name for name in names if (folder / name).exists()), folder / names[0]
        )
    if args.output is None and args.dataset:
        args.output = DATA / args.dataset / f"{args.dataset}-{args.writes}.json"
    elif (
        args.output is None
    ):  # x-en.json -> x-zh.json -> x-prompt.json: one's own corpus chains beside its input
        stem = args.input.stem.removesuffix(f"-{args.reads}")
        args.output = args.input.with_name(f"{stem}-{args.writes}{args.input.suffix}")
    if not args.input.exists():
        raise StageError(f"input {args.input} does not exist: {hint}")
    if args.output.is_dir() or args.output.exists() and args.output.samefile(args.input):
        raise StageError(
            f"output {args.output} is a folder or the input itself: name another file by --output"
        )
    try:  # before the heavy work
        args.output.parent.mkdir(parents=True, exist_ok=True)
        temporary_beside(args.output).touch()
        temporary_beside(args.output).unlink()
    except OSError as error:
        raise StageError(
            f"cannot write output {args.output}: {error.strerror}; choose another --output"
        ) from None


def listed(problems, shown=5):
    return "; ".join(problems[:shown]) + (
        f"; and {len(problems) - shown} more" if len(problems) > shown else ""
    )


def text_problem(record, key):
    """What is wrong with the text under `key`, or None."""
    if key not in record:
        return f"no {key!r} among its keys ({', '.join(record)})"
    if not isinstance(record[key], str) or not record[key].strip():
        return f"expected text in {key!r}, got {reprlib.repr(record[key])}"
    return None


def split_problem(record):
    known = record.get("split", SPLITS[0]) in SPLITS
    return (
        None
        if known
        else f"expected 'split' train, val or test, got {reprlib.repr(record['split'])}"
    )


def read_records(path):
    """Yield (where, record) of a JSON array, of {"images": [...]}, or of a .jsonl line by line; UTF-8, BOM and CRLF allowed.

    The record of a line that is not JSON is the JSONDecodeError, so that one bad line does not hide the next.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        try:
                            record = json.loads(text)
                        except json.JSONDecodeError as error:
                            if line == 1:  # not a bad line but another kind of file
                                raise
                            record = error
                        yield f"line {line}", record
                return
            data = json.load(file)
    except json.JSONDecodeError as error:
        hint = (
            "; one record a line needs a name ending in .jsonl" if error.msg == "Extra data" else ""
        )
        where = f"line {error.lineno} column {error.colno}"
        if path.suffix == ".jsonl":
            where, hint = "line 1", "; an array needs a name ending in .json"
        raise StageError(f"{path} is not JSON: {where}: {error.msg}{hint}") from None
    except UnicodeDecodeError as error:
        raise StageError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise StageError(f"cannot read {path}: {error.strerror}") from None
    if isinstance(data, dict):
        data = data["images"] if "images" in data else nwpu_images(data)
    if not isinstance(data, list):
        raise StageError(f'{path}: expected an array of records or {{"images": [...]}} at the top')
    yield from ((f"record {index}", record) for index, record in enumerate(data))


ALL = 1000  # problems of a file that are named: all that a person would mend by hand


def checked_records(path, key, problem_of, limit=None, unique=True):
    """Yield the good records, named by the text under `key`; after the last, StageError if any was bad or there is none.

    It names all bad records, one a line where there are many; of a file of another kind, whose every record lacks the key, once
    for all. Of a .jsonl, memory holds one record at a time and a hash of each name, to find duplicates.
    """
    bad, count, lacking, good, names = [], 0, 0, 0, set()
    for where, record in islice(read_records(path), limit):
        name = record.get(key) if isinstance(record, dict) else None
        if isinstance(record, json.JSONDecodeError):
            problem = f"not JSON from column {record.colno}: {record.msg}"
        elif not isinstance(record, dict):
            problem = f"expected an object, got {type(record).__name__}"
        else:
            problem = text_problem(record, key) or (
                "duplicate" if unique and hash(name) in names else problem_of(record)
            )
        if problem:
            count += 1
            lacking += isinstance(record, dict) and key not in record
            if len(bad) < ALL:
                bad.append(
                    f"{where}{f' ({reprlib.repr(name)})' if name is not None else ''}: {problem}"
                )
            continue
        good += 1
        if unique:
            names.add(hash(name))
        yield record
    if count > 5 and lacking == count and not good:
        raise StageError(f"{path}: all {count} records: {problem}")
    if count > 5:
        more = [f"and {count - ALL} more"] if count > ALL else []
        raise StageError("\n  ".join([f"{path}: {count} bad records:", *bad, *more]))
    if bad or not good:
        raise StageError(
            f"{path}: {count} bad records: {'; '.join(bad)}" if bad else f"{path} holds no records"
        )


def caption_records(path, limit=None, unique=True):
    """What transform and translation write: {"imged_id": file name, "caption": text, "split": optional}."""

    def problem(record):
        return text_problem(record, "caption") or split_problem(record)

    return checked_records(path, "imged_id", problem, limit, unique)


def temporary_beside(path):
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def record_writer(path):
    """A context whose value writes one record after another to `path`, as a JSON array or by its name as .jsonl.

    All or nothing: temporary file, fsync, rename at the end of the context, and no file at all where that ends by an error.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary, lines, count = temporary_beside(path), path.suffix == ".jsonl", 0

    def write(record):
        nonlocal count
        count += 1
        if lines:
            text = json.dumps(record, ensure_ascii=False) + "\n"
        else:  # what json.dump(list, indent=4) writes, a record at a time
            text = json.dumps(record, ensure_ascii=False, indent=4).replace("\n", "\n    ")
            text = ("[\n    " if count == 1 else ",\n    ") + text
        try:
            file.write(text)
        except UnicodeEncodeError:
            raise StageError(
                f"record {count} for {path} holds half a surrogate pair, which UTF-8 cannot store"
            ) from None

    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield write
            if not lines:
                file.write("\n]\n" if count else "[]\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_records(path, records):
    """Write all of `records` or nothing; returns their count."""
    count = 0
    with record_writer(path) as write:
        for count, record in enumerate(records, 1):
            write(record)
    return count
