"""Evaluate a checkpoint: does it describe well, does it hallucinate, does it look at the image?

    python evaluate_RemoteGLM.py --from_pretrained checkpoints/demo --base \\
        --data data/demo/demo-prompt-test.json
    python evaluate_RemoteGLM.py --predictions answers.jsonl \\
        --data data/UCM/UCM-prompt-val.json                      # without a model

Every image is described, once more as a blank image and with another image in its place (image
ablation), and asked about by yes / no questions. Answers are greedy and kept as they come: the
same command continues after an interruption. Writes metrics.json, table.md and report.html.
"""

import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from command_line import Parser, add_bands_option, add_loading_options, compares, loading
from model.errors import UserError

PROJECT = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "sacrebleu", "jieba")
BLANK_FILE = "blank.png"
BLANK_SIZE = (224, 224)  # pixels
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


def build_parser():
    parser = Parser(__doc__)
    add_loading_options(parser)
    add_input_options(parser.add_argument_group("answers and references").add_argument)
    add_bands_option(parser)
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
        "as cli_demo.py --output and this script write them",
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


def add_task_options(add):
    add("--english", action="store_true", help="ask in English")
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
    add("--batch-size", type=int, default=16, help="rows answered together (%(default)s)")
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
        "checkpoint <checkpoint>/eval-<rows>, of a base checkpoints/eval-<base>-<rows>; with "
        "--predictions: eval-<rows> beside the first of them",
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


def parse(argv=None):
    """Options that contradict each other are refused here, all of them in one line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    problems = []
    if bool(args.from_pretrained) == bool(args.predictions):
        problems.append("give either --from_pretrained or --predictions")
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


def output_folder(args):
    """Where the results go. A base is somebody else's folder: then it is one under checkpoints/."""
    from model.files import read_json
    from model.weight_files import CARD

    name = f"eval-{Path(args.data).stem}"
    if args.output:
        return args.output
    if args.predictions:
        return args.predictions[0].parent / name

    folder = Path(args.from_pretrained)
    card = folder / CARD
    if not card.is_file() or "prompt" not in read_json(card, "model card", dict):
        return PROJECT / "checkpoints" / f"eval-{folder.name}-{Path(args.data).stem}"
    if (folder.parent / "latest").is_file():
        return folder.parent / f"{name}-{folder.name}"  # a run removes its old steps
    return folder / name


def make_output(output, with_blank):
    """Make the folder, and the blank image in it. Raises UserError."""
    from PIL import Image

    from model.images import BLANK_COLOR

    try:
        output.mkdir(parents=True, exist_ok=True)
        if with_blank:
            Image.new("RGB", BLANK_SIZE, BLANK_COLOR).save(output / BLANK_FILE)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None


def load_dataset(args):
    """(samples to describe, EvaluationSet), all images opened once. Raises UserError."""
    from dataclasses import replace

    from evaluation.hallucination import existence_questions, truth
    from evaluation.references import (
        add_sentences,
        check_one_language,
        described_images,
        evenly_spread,
        training_captions,
    )
    from evaluation.score import EvaluationSet
    from model import read_image
    from model.rows import check_images

    samples, captions = described_images(args.data, args.image_root)
    if args.references:
        samples, captions = add_sentences(samples, captions, args.references, args.split)
    samples = evenly_spread(samples, args.limit)
    training = training_captions(args.data, args.train_data, args.image_root)

    references = [captions[sample.image] for sample in samples]
    check_one_language(samples, references, args.data)
    training_samples = [replace(samples[0], image=image) for image in training]
    check_images(samples + training_samples, args.data, args.bands)

    truths = [truth(texts) for texts in references]
    language = "en" if args.english else "zh"
    dataset = EvaluationSet(
        images=[sample.image for sample in samples],
        references=references,
        truths=truths,
        questions=existence_questions(truths, args.existence, args.seed, language),
        training=training,
        read_image=partial(read_image, bands=args.bands),
    )
    return samples, dataset


def generate(args, samples, questions, output):
    """[System]: the base where that is asked for, and the checkpoint. Raises UserError."""
    from evaluation.generation import Task, generate_answers, image_ablations
    from model import Sampling, load_assistant
    from model.answer_file import AnswerFile

    ablations = {}
    if not args.no_controls:
        ablations = image_ablations(samples, output / BLANK_FILE, args.seed)
    task = Task(samples, ablations, questions)
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=args.max_new_tokens)

    systems = []
    with AnswerFile(output / "predictions.jsonl") as file:
        answers = partial(
            generate_answers,
            task=task,
            file=file,
            sampling=sampling,
            english=args.english,
            bands=args.bands,
            batch_size=args.batch_size,
        )
        if args.base and args.base is not True:
            options = loading(args) | {"base": None, "tokenizer": None}
            assistant = load_assistant(args.base, **options)
            systems.append(answers(assistant, name="base", checkpoint=args.base, untuned=True))
            del assistant  # memory for one network at a time

        assistant = load_assistant(args.from_pretrained, **loading(args))
        answers = partial(answers, assistant, checkpoint=args.from_pretrained)
        if args.base is True and compares(args, assistant):
            systems.append(answers(name="base", untuned=True))
        systems.append(answers(name="base" if assistant.is_base else "tuned"))
    return systems


def recorded(args):
    """The options as metrics.json records them."""
    settings = {}
    for name, value in vars(args).items():
        if isinstance(value, list):
            value = [str(item) for item in value]
        elif isinstance(value, Path):
            value = str(value)
        settings[name] = value
    return settings


def evaluate(args):
    """Returns what metrics.json holds. Raises UserError."""
    from evaluation.predictions import number_equal_names, read_predictions
    from evaluation.report import write_report
    from evaluation.score import score
    from evaluation.tables import summary_table
    from model.find import find_checkpoint

    samples, dataset = load_dataset(args)
    questions = dataset.distinct_questions()
    if args.from_pretrained:
        args.from_pretrained = find_checkpoint(args.from_pretrained, args.download)

    systems = []
    for path in args.predictions or ():
        systems += read_predictions(path, samples, questions)

    # Nothing is written before the user's files are known to be right
    output = output_folder(args)
    make_output(output, with_blank=bool(args.from_pretrained))
    if args.from_pretrained:
        systems = generate(args, samples, questions, output)
    number_equal_names(systems)

    scores = score(systems, dataset, args.seed, args.resamples)
    print(summary_table(scores), *scores.warnings, sep="\n")
    versions = {package: version(package) for package in PACKAGES}
    metrics = write_report(scores, output, recorded(args), versions, args.gallery)
    print(
        f"report: {output / 'report.html'}; all metrics: {output / 'table.md'}, "
        f"{output / 'metrics.json'}"
    )
    return metrics


def main(argv=None):
    args = parse(argv)
    try:
        return evaluate(args)
    except KeyboardInterrupt:  # the answers so far are kept
        sys.exit(130)
    except UserError as error:
        sys.exit(f"evaluate_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
