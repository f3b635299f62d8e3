"""The options of generate_prompt.py that say which rows are written, and in which form."""

import math

from command_line import add_bands_option
from data import exports, instructions, toolkits
from data.row_files import SUFFIXES
from data.stage import positive
from model.errors import UserError

PROMPT = "这张遥感图像展现了什么场景？"
FORMAT = "remoteglm"


def add_row_options(add):
    add("--prompt", help=f"question of every row (default: {PROMPT})")
    add(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK=N",
        help=f"instead of the one question: rows per image of each of "
        f"{', '.join(instructions.TASKS)}; 0.5 asks every second image, =N left out is 1; "
        "existence counts pairs, an object that is there and one that is not. Made from the "
        "captions, without any LLM",
    )
    add(
        "--negatives",
        choices=instructions.NEGATIVES,
        default="balanced",
        help="negatives of existence, objects that are not there: drawn as often as they are there "
        "in the set (balanced), all alike (random), the most frequent (popular), those that "
        "usually go with what is there (adversarial) (default: %(default)s)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of --tasks: another seed draws other questions (default: %(default)s)",
    )
    add(
        "--format",
        choices=(*exports.FORMATS, *toolkits.SUFFIXES),
        nargs="+",
        action="extend",
        help="form of the rows; llamafactory also enters the files into dataset_info.json beside "
        "them; evalscope, vlmevalkit: what these evaluation toolkits load; hf: a folder for "
        f"datasets.load_dataset (default: {FORMAT})",
    )
    add(
        "--pack",
        action="store_true",
        help="put images and rows into WebDataset shards beside the output, which the rows name "
        "(default: the rows name the images where they are)",
    )
    add(
        "--shards",
        type=positive,
        metavar="N",
        help="of --pack: so many shards of each split (default: 1)",
    )


def add_image_options(group):
    add = group.add_argument
    add(
        "--image-root",
        nargs="+",
        default=["images"],
        help="folder written before each file name, one per input, . for none; a relative one is "
        "looked for beside the output, then in the project root (default: images)",
    )
    add(
        "--png",
        metavar="DIR",
        help="convert the images to PNG in this folder (a relative one: beside the output), as "
        "training reads them, and name those in the rows (default: the images as they are)",
    )
    add_bands_option(group)
    add(
        "--strict",
        action="store_true",
        help="stop where an image is missing, damaged, of a wrong size or a duplicate (default: "
        "drop its rows and report them)",
    )
    add(
        "--keep-duplicates",
        action="store_true",
        help="keep images whose bytes another one has (default: keep one, in test before val "
        "before train)",
    )
    add(
        "--no-image-check",
        action="store_true",
        help="do not open the images; missing or damaged ones then turn up in training",
    )


def contradictions(args):
    """What is wrong with the options, each in one text; fills in args.tasks as {task: share}."""
    problems = []
    if len(set(args.format or ())) > 1:
        problems.append(
            f"--format {' '.join(args.format)}: one a run; run it once for each, the rows are the "
            "same"
        )
    args.format = args.format[0] if args.format else FORMAT
    texts = [("--prompt", args.prompt), ("--png", args.png)]
    texts += [("--image-root", root) for root in args.image_root]
    for option, text in texts:
        if text is not None and not text.strip():
            problems.append(f"{option} is empty")
    problems += _input_problems(args) + _image_problems(args) + _form_problems(args)

    if args.prompt is not None and args.tasks:
        problems.append(
            "--prompt is the question of every row, --tasks asks many: leave one of them out"
        )
    try:
        args.tasks = task_shares(args.tasks)
    except UserError as error:
        problems.append(f"--tasks {error}")
    return problems


def _input_problems(args):
    problems, inputs = [], len(args.input or [None])
    if inputs > 1 and args.dataset:
        problems.append(
            f"--dataset {args.dataset} names one set, --input {inputs} files: leave one of them out"
        )
    if inputs > 1 and not args.output:
        problems.append(f"{inputs} inputs are merged into one file: name it by --output")
    for option, given in (("--image-root", args.image_root), ("--captions", args.captions)):
        if given and len(given) != inputs:
            problems.append(f"{option}: expected one per input, {inputs}, got {len(given)}")
    return problems


def _image_problems(args):
    problems = []
    if args.bands and not args.png:
        problems.append("--bands chooses what --png writes: give --png as well")
    opening = {
        "--png": args.png,
        "--strict": args.strict,
        "--pack": args.pack,
        f"--format {args.format}": args.format in toolkits.SUFFIXES,
    }
    option = next((option for option, given in opening.items() if given), None)
    if args.no_image_check and option:
        problems.append(f"{option} opens the images: leave --no-image-check out")
    return problems


def _form_problems(args):
    problems = []
    suffix = SUFFIXES.get(args.format, args.output.suffix if args.output else "")
    if args.output and args.output.suffix != suffix:
        name = args.output.with_suffix(suffix)
        problems.append(f"--format {args.format} is of another kind: name --output {name}")
    if args.pack and args.format != "remoteglm":
        problems.append(f"--pack writes rows of its own: leave --format {args.format} out")
    if args.shards and not args.pack:
        problems.append("--shards is of --pack: give it as well")
    return problems


def task_shares(texts):
    """["description=1", "existence=0.5"] -> {"description": 1.0, "existence": 0.5}.

    Raises UserError in a few words.
    """
    shares = {}
    for text in texts:
        task, _, number = text.partition("=")
        if task not in instructions.TASKS:
            raise UserError(f"{text}: expected one of {', '.join(instructions.TASKS)}")
        try:
            share = float(number or 1)
        except ValueError:
            raise UserError(f"{text}: expected a number after =") from None
        if math.isnan(share) or not 0 < share <= 100:
            raise UserError(f"{text}: expected more than 0 and at most 100 per image")
        shares[task] = share
    return shares
