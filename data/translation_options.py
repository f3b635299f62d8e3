"""The options of translation_en2zh.py."""

import math
from pathlib import Path

from command_line import Parser
from data import batch, seen_questions
from data.connection import url_problem
from data.endpoint_options import add_cost_options, add_endpoint_options, at_least
from data.look import LOOK_STYLES
from data.stage import add_path_options, listed
from model.errors import UserError


def make_parser(description):
    parser = Parser(description)
    add_path_options(parser, "en", "zh")
    add_text_options(parser.add_argument)
    add_gate_options(parser.add_argument_group("quality gate").add_argument)
    add_endpoint_options(parser.add_argument_group("endpoint").add_argument)
    add_cost_options(parser.add_argument_group("cost").add_argument)
    add_batch_options(parser.add_argument_group("batches").add_argument)
    return parser


def add_text_options(add):
    add(
        "--memory",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help='translation memory, JSON or .jsonl of {"source": English caption, "target": '
        "Chinese}: needs no network; repeatable, the last wins",
    )
    add(
        "--memory-out",
        type=Path,
        metavar="FILE",
        help="write such a memory of everything this run used",
    )
    add(
        "--limit",
        type=at_least(int, 1),
        metavar="N",
        help="the first N records only (default: all)",
    )
    add(
        "--style",
        choices=LOOK_STYLES,
        default="detailed",
        help="concise: one sentence; detailed: one paragraph with what the sentences say; "
        "expanded (扩写): three to five sentences; rewritten (改写): other words and sentence "
        "forms; with --look also questions: about what is seen, with answers, and absent: about "
        "what is not there, which give rows for generate_prompt.py (default: %(default)s)",
    )
    add(
        "--look",
        type=Path,
        metavar="DIR",
        help="the model sees the images, which lie in this folder: first it says in English what "
        "it sees of each, then it describes it (or asks, see --style) by that and the caption",
    )


def add_batch_options(add):
    add(
        "--export-batch",
        type=Path,
        metavar="FILE.jsonl",
        help="ask nothing: write the requests to this file in OpenAI's Batch form, which `vllm "
        f"run-batch` and Ray read as well; at most {batch.MOST_REQUESTS:,} requests and "
        f"{batch.MOST_BYTES // 10**6} MB a file, then FILE-2.jsonl and so on",
    )
    add(
        "--import-batch",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="store the answers of these files of results, judge them, and write the requests of "
        "the next round for what was rejected or failed (to --export-batch, else to "
        "NAME-requests-N.jsonl beside the output)",
    )
    add(
        "--batch-api",
        action="store_true",
        help="the same in one go: upload the files, wait and download, round after round",
    )
    add(
        "--poll",
        type=at_least(float, 0.01),
        default=60.0,
        metavar="SECONDS",
        help="of --batch-api: pause between two looks at a batch (default: %(default)s)",
    )
    add(
        "--lost-batch",
        action="store_true",
        help="take the requests that are out in files for lost, but for those whose answers "
        "--import-batch or --batch-api finds: ask, and pay, for them again",
    )


def add_gate_options(add):
    add(
        "--reask",
        type=at_least(int, 0),
        default=2,
        metavar="N",
        help="how often a bad answer is asked again with the complaint before it is rejected; what "
        "an earlier run rejected is asked again only by a larger N (default: %(default)s)",
    )
    add("--no-gate", action="store_true", help="take every answer as it is")
    add(
        "--trim",
        type=at_least(int, 1),
        nargs="?",
        const=math.inf,
        metavar="N",
        help="of a description that stays bad keep the sentences that pass; rejected is only what "
        "then has none left. With N, keep of every description the first N of them",
    )
    add(
        "--check",
        type=Path,
        metavar="FILE",
        help="translate nothing: run the gate on this Chinese file against --input (English "
        "records or a caption set as distributed); writes NAME-checked or --output",
    )


def contradictions(args):
    """What is wrong with the options, each in one text."""
    problems = []
    problem = url_problem(args.base_url, ("http", "https"))
    if problem:
        problems.append(f"base URL {args.base_url!r} {problem}")
    if args.max_cost is not None and not (args.price_in or args.price_out):
        problems.append("--max-cost needs --price-in and --price-out")
    if args.check and (args.memory or args.memory_out or args.dry_run or args.no_gate):
        problems.append(
            "--check asks nothing: it does not go with --memory, --memory-out, --dry-run or "
            "--no-gate"
        )
    in_files = args.export_batch or args.import_batch
    if args.batch_api and in_files:
        problems.append("--batch-api does all: leave --export-batch and --import-batch out")
    if (args.batch_api or in_files) and (args.check or args.stream or args.max_cost is not None):
        problems.append("batches do not go with --check, --stream or --max-cost")
    if args.export_batch and args.export_batch.suffix != ".jsonl":
        problems.append(f"--export-batch {args.export_batch}: expected a name ending in .jsonl")
    problems += look_problems(args)
    if args.trim and args.no_gate:
        problems.append("--trim cuts what the gate finds: leave --no-gate out")
    return problems


def check_files(args, journal):
    """Raises UserError where a file that is written is another one as well, or has no folder."""
    written = [
        ("--output", args.output),
        ("--memory-out", args.memory_out),
        ("--export-batch", args.export_batch),
    ]
    others = [
        ("the input", args.input),
        ("the journal", journal),
        *(("a file of results", file) for file in args.import_batch),
    ]
    for option, path in written:
        if path is None:
            continue
        if option != "--output" and not path.absolute().parent.is_dir():
            raise UserError(
                f"folder of {option} {path} does not exist: make it, or name another file"
            )
        for what, other in (*written, *others):
            if what != option and other and _is_same(path, other, option == "--export-batch"):
                raise UserError(f"{option} {path} would replace {what} {other}: name another file")
    if args.export_batch:
        there = batch.shards(args.export_batch)
        if there:
            raise UserError(
                f"--export-batch {args.export_batch}: {listed([str(file) for file in there])} is "
                "there already, and requests go to new files only: name another, or remove it"
            )


def _is_same(path, other, is_batch):
    return path.resolve() == other.resolve() or (is_batch and batch.is_shard(other, path))


def look_problems(args):
    """The same of --look."""
    problems = []
    if args.style in seen_questions.INSTRUCTIONS:
        if not args.look:
            problems.append(f"--style {args.style} is about images: name their folder by --look")
        if args.trim or args.no_gate:
            problems.append(
                f"--style {args.style} keeps what the gate passes: leave --trim and --no-gate out"
            )
    if not args.look:
        return problems
    if args.check or args.memory or args.memory_out:
        problems.append("--look does not go with --check, --memory or --memory-out")
    if not args.look.is_dir():
        problems.append(f"--look {args.look}: no such folder")
    return problems
