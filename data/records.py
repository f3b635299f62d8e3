"""What the data stages share: caption sets, default paths, reading, checking and atomic writing. Standard library only."""
import json
import os
import reprlib
import sys
from itertools import islice
from pathlib import Path

DATA = Path(__file__).resolve().parent
PROJECT = DATA.parent
SPLITS = ("train", "val", "test")

# Images in all and per split, sentences per image. Captions: Qu et al. 2016 (Sydney, UCM), Lu et al. 2017 (RSICD), research use.
# Images: Sydney from Google Earth, research use; UCM from USGS, public domain; RSICD from Google Earth, Baidu Map, MapABC and
# Tianditu, research use; demo drawn by demo_scenes.py, as many as it is asked for. data/README.md shows the same table.
CAPTION_SETS = {
    "Sydney": {"images": 613, "train": 497, "val": 58, "test": 58, "sentences": 5},
    "UCM": {"images": 2100, "train": 1680, "val": 210, "test": 210, "sentences": 5},
    "RSICD": {"images": 10921, "train": 8734, "val": 1094, "test": 1093, "sentences": 5},
    "demo": {},
}
DEFAULT_SET = "UCM"
SOURCE = "the RSICD_optimal project page on GitHub (201528014227051/RSICD_optimal)"
MAKER = {"en": "transform.py", "zh": "translation_en2zh.py"}  # who writes <dataset>-en.json and <dataset>-zh.json


class StageError(Exception):
    """An error for the user: one line naming the value seen, the value expected and what to do."""


def run_stage(script, stage, args):
    """Run `stage(args)` and return the exit status; what a user can mend is one line on stderr, never a traceback."""
    try:
        stage(args)
    except (StageError, OSError) as error:  # OSError: disk full, permissions, a folder that went away
        print(f"{Path(script).name}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{Path(script).name}: interrupted; the same command continues from what is saved", file=sys.stderr)
        return 130
    return 0


def add_path_options(parser, reads, writes):
    """--dataset, --input and --output of a stage from `reads` ("captions", "en", "zh") to `writes` ("en", "zh", "prompt")."""
    files = parser.add_argument_group("files")
    files.add_argument("--dataset", choices=CAPTION_SETS, help="caption set whose folder data/<dataset>/ holds the default "
                       f"paths (default: {DEFAULT_SET}; none is assumed where only --input is given)")
    default = "dataset.json or dataset_<dataset>.json" if reads == "captions" else f"<dataset>-{reads}.json"
    files.add_argument("--input", type=Path, help=f"JSON, or .jsonl with one record a line (default: data/<dataset>/{default})")
    files.add_argument("--output", type=Path, help="JSON, or .jsonl for one record a line (default: data/<dataset>/"
                       f"<dataset>-{writes}.json; where --input is given without --dataset: NAME-{writes} beside it)")
    parser.set_defaults(reads=reads, writes=writes)


def resolve_paths(args):
    """Fill in args.dataset, .input and .output; StageError where the input is missing or the output cannot be written."""
    hint = "check --input"
    if args.input is None:
        args.dataset = args.dataset or DEFAULT_SET
        folder, names = DATA / args.dataset, [f"{args.dataset}-{args.reads}.json"]
        maker = f"{MAKER[args.reads]} --dataset {args.dataset}" if args.reads in MAKER else "demo_scenes.py"
        hint = f"run data/{maker} first, or give --input"
        if args.reads == "captions":
            names = ["dataset.json", f"dataset_{args.dataset.lower()}.json"]
            hint = hint if args.dataset == "demo" else f"get the {args.dataset} captions from {SOURCE}, or give --input"
        args.input = next((folder / name for name in names if (folder / name).exists()), folder / names[0])
    if args.output is None and args.dataset:
        args.output = DATA / args.dataset / f"{args.dataset}-{args.writes}.json"
    elif args.output is None:  # x-en.json -> x-zh.json -> x-prompt.json: one's own corpus chains beside its input
        args.output = args.input.with_name(f"{args.input.stem.removesuffix('-' + args.reads)}-{args.writes}{args.input.suffix}")
    if not args.input.exists():
        raise StageError(f"input {args.input} does not exist: {hint}")
    if args.output.is_dir() or args.output.exists() and args.output.samefile(args.input):
        raise StageError(f"output {args.output} is a folder or the input itself: name another file by --output")
    try:  # before the heavy work
        args.output.parent.mkdir(parents=True, exist_ok=True)
        temporary_beside(args.output).touch()
        temporary_beside(args.output).unlink()
    except OSError as error:
        raise StageError(f"cannot write output {args.output}: {error.strerror}; choose another --output") from None


def listed(problems, shown=5):
    return "; ".join(problems[:shown]) + (f"; and {len(problems) - shown} more" if len(problems) > shown else "")


def text_problem(record, key):
    """What is wrong with the text under `key`, or None."""
    if key not in record:
        return f"no {key!r} among its keys ({', '.join(record)})"
    if not isinstance(record[key], str) or not record[key].strip():
        return f"expected text in {key!r}, got {reprlib.repr(record[key])}"
    return None


def split_problem(record):
    known = record.get("split", SPLITS[0]) in SPLITS
    return None if known else f"expected 'split' train, val or test, got {reprlib.repr(record['split'])}"


def read_records(path):
    """Yield (where, record) of a JSON array, of {"images": [...]}, or of a .jsonl line by line; UTF-8, BOM and CRLF allowed."""
    line = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.suffix == ".jsonl":
                for line, text in enumerate(file, 1):
                    if text.strip():
                        yield f"line {line}", json.loads(text)
                return
            data = json.load(file)
    except json.JSONDecodeError as error:
        hint = "; one record a line needs a name ending in .jsonl" if error.msg == "Extra data" and not line else ""
        raise StageError(f"{path} is not JSON: line {line or error.lineno} column {error.colno}: {error.msg}{hint}") from None
    except UnicodeDecodeError as error:
        raise StageError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise StageError(f"cannot read {path}: {error.strerror}") from None
    data = data.get("images") if isinstance(data, dict) else data
    if not isinstance(data, list):
        raise StageError(f'{path}: expected an array of records or {{"images": [...]}} at the top')
    yield from ((f"record {index}", record) for index, record in enumerate(data))


def checked_records(path, key, problem_of, limit=None, unique=True):
    """Yield the good records, named by the text under `key`; after the last, StageError if any was bad or there is none.

    Of a .jsonl, memory holds one record at a time and the names, to find duplicates.
    """
    bad, names = [], set()
    for where, record in islice(read_records(path), limit):
        if not isinstance(record, dict):
            bad.append(f"{where}: expected an object, got {type(record).__name__}")
            continue
        name = record.get(key)
        problem = text_problem(record, key) or ("duplicate" if unique and name in names else problem_of(record))
        if problem:
            bad.append(f"{where} ({reprlib.repr(name)}): {problem}")
        else:
            names.add(name)
            yield record
    if bad or not names:
        raise StageError(f"{path}: {len(bad)} bad records: {listed(bad)}" if bad else f"{path} holds no records")


def caption_records(path, limit=None):
    """What transform and translation write: {"imged_id": file name, "caption": text, "split": optional}."""
    return checked_records(path, "imged_id", lambda record: text_problem(record, "caption") or split_problem(record), limit)


def temporary_beside(path):
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_records(path, records):
    """Write all or nothing (temporary file, fsync, rename), as a JSON array or by its name as .jsonl; returns the count."""
    path = Path(os.path.realpath(path))  # a link stays a link
    temporary, count = temporary_beside(path), 0
    first, later, end = ("", "", "") if path.suffix == ".jsonl" else ("[\n    ", ",\n    ", "\n]\n")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for count, record in enumerate(records, 1):
                if path.suffix == ".jsonl":
                    text = json.dumps(record, ensure_ascii=False) + "\n"
                else:  # what json.dump(list, indent=4) writes, a record at a time
                    text = json.dumps(record, ensure_ascii=False, indent=4).replace("\n", "\n    ")
                file.write((first if count == 1 else later) + text)
            file.write(end)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except UnicodeEncodeError:
        raise StageError(f"record {count} for {path} holds half a surrogate pair, which UTF-8 cannot store") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count
