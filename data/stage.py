"""What the scripts of data/ share: default paths, their options, and errors shown as one line."""

import argparse
import multiprocessing
import signal
import sys
from pathlib import Path

from data.caption_sets import CAPTION_SETS
from model.errors import UserError
from model.files import NO_ROOM, temporary_beside

DATA = Path(__file__).resolve().parent
PROJECT = DATA.parent
DEFAULT_SET = "UCM"
RECORD_FILES = (".json", ".jsonl")
# which script writes <dataset>-en.json and <dataset>-zh.json
WRITTEN_BY = {"en": "transform.py", "zh": "translation_en2zh.py"}


def run_stage(script, stage, args):
    """Run `stage(args)` and return the exit status; what a user can fix is one line on stderr."""
    name = Path(script).name
    try:
        stage(args)
    # OSError: disk full, permissions, a folder that went away
    except (UserError, OSError) as error:
        print(f"{name}: error: {_said(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; the same command continues from what is saved", file=sys.stderr
        )
        return 130
    return 0


def _said(error):
    if not isinstance(error, OSError) or error.errno not in NO_ROOM or not error.filename:
        return error
    return (
        f"{error.filename} cannot be written: {error.strerror}; make room, the same command "
        "continues from what is saved"
    )


def worker_pool():
    """A multiprocessing.Pool whose processes leave Ctrl-C to this one, which ends them at it."""
    return multiprocessing.Pool(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def add_path_options(parser, reads, writes, several=False):
    """--dataset, --input and --output of a stage.

    reads: "captions", "en" or "zh"; writes: "en", "zh" or "prompt"; several: args.input is a list
    or None, for `resolve_inputs`.
    """
    if reads == "captions":
        default = "dataset.json or dataset_<dataset>.json"
    else:
        default = f"<dataset>-{reads}.json"
    merged = ", or several of them in the order to merge" if several else ""

    add = parser.add_argument_group("files").add_argument
    add(
        "--dataset",
        choices=CAPTION_SETS,
        help="caption set whose folder data/<dataset>/ holds the default paths "
        f"(default: {DEFAULT_SET}; none is assumed where only --input is given)",
    )
    add(
        "--input",
        type=Path,
        nargs="+" if several else None,
        help=f"JSON, or .jsonl with one record a line{merged} (default: data/<dataset>/{default})",
    )
    add(
        "--output",
        type=Path,
        help="JSON, or .jsonl for one record a line "
        f"(default: data/<dataset>/<dataset>-{writes}.json; "
        f"where --input is given without --dataset: NAME-{writes} beside it)",
    )
    parser.set_defaults(reads=reads, writes=writes)


def resolve_paths(args):
    """Fill in args.dataset, args.input and args.output of a stage with one input.

    Raises UserError where the input is missing or the output cannot be written.
    """
    given = None if args.input is None else [args.input]
    [args.input] = resolve_inputs(args, given)


def resolve_inputs(args, given, to_folder=False):
    """The inputs as a list; fills in args.dataset and args.output. Raises UserError.

    given: a list of paths, or None for the default of args.dataset; to_folder: the output is one.
    """
    inputs, hint = given, "check --input"
    if inputs is None:
        args.dataset = args.dataset or DEFAULT_SET
        inputs = [_default_input(args.dataset, args.reads)]
        hint = _where_from(args.dataset, args.reads)
    if args.output is None:
        args.output = _default_output(inputs[0], args)

    output = args.output
    for path in inputs:
        if not path.exists():
            raise UserError(f"input {path} does not exist: {hint}")
        is_folder = output.is_dir() and not to_folder
        if is_folder or (output.exists() and output.samefile(path)):
            raise UserError(
                f"output {output} is a folder or the input itself: name another file by --output"
            )
    if not getattr(args, "dry_run", False):
        _check_writable(output)
    return inputs


def _default_input(dataset, reads):
    folder, names = DATA / dataset, [f"{dataset}-{reads}.json"]
    if reads == "captions":
        names = ["dataset.json", f"dataset_{dataset.lower()}.json", f"dataset_{dataset}.json"]
    for name in names:
        if (folder / name).exists():
            return folder / name
    return folder / names[0]


def _where_from(dataset, reads):
    """What to do about a missing default input."""
    if reads in WRITTEN_BY:
        return f"run data/{WRITTEN_BY[reads]} --dataset {dataset} first, or give --input"
    if dataset == "demo":
        return "run data/synthetic/demo_scenes.py first, or give --input"
    source = CAPTION_SETS[dataset].source
    return f"get the {dataset} captions from {source}, or give --input"


def _default_output(path, args):
    if args.dataset:
        return DATA / args.dataset / f"{args.dataset}-{args.writes}.json"
    # x-en.json -> x-zh.json -> x-prompt.json: one's own corpus chains beside its input
    if path.is_dir():
        path = path.resolve()
        return path.with_name(f"{path.name}-{args.writes}.json")
    stem = path.stem.removesuffix(f"-{args.reads}")
    suffix = path.suffix if path.suffix in RECORD_FILES else ".json"
    return path.with_name(f"{stem}-{args.writes}{suffix}")


def _check_writable(path):
    """Raises UserError where `path` could not be written: before the heavy work."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write output {path}: {error.strerror}; choose another --output"
        ) from None


def positive(text):
    """A type of argparse: a whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number from 1 on")
    return int(text)


def listed(problems, shown=5):
    """The first of them as one text, and how many more there are."""
    text = "; ".join(problems[:shown])
    if len(problems) > shown:
        text += f"; and {len(problems) - shown} more"
    return text
