"""The command line of evaluate_RemoteGLM.py."""

import os
from pathlib import Path

from command_line import Parser, add_bands_option, add_language_options, add_loading_options
from data.endpoint_options import add_request_options

# The least values of numeric options
LEAST = {
    "--batch-size": 1,
    "--max-new-tokens": 1,
    "--existence": 0,
    "--limit": 0,
    "--gallery": 0,
    "--resamples": 100,
    "--seed": 0,
}


def build_parser(description):
    parser = Parser(description)
    add_loading_options(parser)
    add_input_options(parser.add_argument_group("answers and references").add_argument)
    add_bands_option(parser)
    add_api_options(parser.add_argument_group("a server instead of a checkpoint").add_argument)
    add_task_options(parser.add_argument_group("what is asked").add_argument)
    add_report_options(parser.add_argument_group("report").add_argument)
    return parser


def add_input_options(add):
    add(
        "--data",
        required=True,
        help="rows to answer: what data/generate_prompt.py writes; those that ask for a "
        "description count",
    )
    add(
        "--base",
        nargs="?",
        const=True,
        help="let the untuned base answer as well; with a value: that checkpoint as the base",
    )
    add(
        "--predictions",
        type=Path,
        nargs="+",
        help='evaluate existing answers without a model: .jsonl of {"img", "prompt", "answer"}, '
        'as cli_demo.py --output and this script write them, or {"image", "response"}; '
        "infer_result.jsonl of ms-swift, generated_predictions.jsonl of LLaMA-Factory, .xlsx or "
        ".tsv of VLMEvalKit",
    )
    add(
        "--references",
        type=Path,
        help="caption set as distributed (dataset.json): its sentences are further references; "
        "those of another language only tell what is there",
    )
    add("--split", help="only images of this split; needs --references")
    add(
        "--train-data",
        help="training rows, for the baselines and for copies of training captions; default: the "
        "-train file beside the rows",
    )
    add(
        "--image-root",
        default="",
        help="folder of relative images; default: beside the rows, then the project root",
    )


def add_api_options(add):
    add(
        "--api",
        metavar="URL",
        help="measure what an OpenAI-compatible server answers, such as https://your.service/v1 or "
        "http://127.0.0.1:7860; beside --from_pretrained or --predictions in the same table",
    )
    add("--model", metavar="NAME", help="the model's name at the server")
    add(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY", "").strip(),
        help="default: the variable OPENAI_API_KEY",
    )
    add_request_options(add, {"model": "--model", "messages": "--data", "stream": "the script"})


def add_task_options(add):
    add_language_options(add)
    add(
        "--description-questions",
        nargs="+",
        default=[],
        metavar="QUESTION",
        help="questions that ask for a description, as they stand in the rows (default: those of "
        "data/generate_prompt.py; without any, the rows whose answer is a sentence)",
    )
    add(
        "--existence",
        type=int,
        default=3,
        help="yes / no questions per image about objects that are there, and as many about "
        "negatives of each kind (POPE: random, popular, adversarial); 0: none (%(default)s)",
    )
    add(
        "--no-image-ablation",
        "--no-controls",
        dest="no_controls",
        action="store_true",
        help="leave the blank and the shuffled images out",
    )
    add(
        "--batch-size",
        type=int,
        default=16,
        help="rows answered together; with --api requests at a time (%(default)s)",
    )
    add(
        "--max-new-tokens",
        type=int,
        default=128,
        help="length limit of an answer, in tokens (%(default)s)",
    )
    add(
        "--limit",
        type=int,
        default=0,
        help="only so many images, spread evenly over the rows; 0: all (%(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of shuffled images, questions and resamples (%(default)s)",
    )


def add_report_options(add):
    add(
        "--output",
        type=Path,
        help="folder of the answers and the report; default: <run>/eval-<rows>-<step>; of another "
        "checkpoint <checkpoint>/eval-<rows>, of a base checkpoints/eval-<base>-<rows>, of a "
        "server checkpoints/eval-<model>-<rows>; with --predictions: eval-<rows> beside the first "
        "of them",
    )
    add(
        "--gallery",
        type=int,
        default=100,
        help="images in the report, the worst first; 0: all (%(default)s)",
    )
    add(
        "--resamples",
        type=int,
        default=1000,
        help="bootstrap resamples of the 95 %% intervals, and permutations of the tests "
        "(%(default)s)",
    )


def parse(description, argv=None):
    """Options that contradict each other are refused here, all of them in one line.

    description: of the script, for --help.
    """
    parser = build_parser(description)
    args = parser.parse_args(argv)
    problems = []
    problems += api_problems(args)
    one_of_two = bool(args.from_pretrained) != bool(args.predictions)
    if not one_of_two and (args.from_pretrained or not args.api):
        problems.append("give either --from_pretrained or --predictions, or --api")
    if args.predictions and args.base:
        problems.append(
            "--base goes with --from_pretrained; name the base's answers as a further file of "
            "--predictions"
        )
    if args.split and not args.references:
        problems.append("--split needs --references, which says which image belongs to which split")
    for option, least in LEAST.items():
        value = getattr(args, option.strip("-").replace("-", "_"))
        if value < least:
            problems.append(f"{option} {value}: must be at least {least}")
    if problems:
        parser.error("; ".join(problems))
    return args


def api_problems(args):
    """What is wrong with the options of a server, each in one text."""
    from data.connection import is_header

    if bool(args.api) != bool(args.model):
        yield "--api and --model go together"
    if not is_header(args.api_key or "x"):
        yield "--api-key (or OPENAI_API_KEY): expected a key in ASCII without spaces"
    if args.api and not args.from_pretrained and args.base not in (None, True):
        yield "--base with a value loads a checkpoint: it goes with --from_pretrained"
