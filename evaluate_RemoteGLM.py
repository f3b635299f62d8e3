"""Evaluate a checkpoint: does it describe well, does it hallucinate, does it look at the image?

    python evaluate_RemoteGLM.py --from_pretrained checkpoints/demo --base \\
        --data data/demo/demo-prompt-test.json
    python evaluate_RemoteGLM.py --predictions answers.jsonl \\
        --data data/UCM/UCM-prompt-val.json                      # without a model
    python evaluate_RemoteGLM.py --api https://your.service/v1 --model qwen3-vl-plus \\
        --data data/UCM/UCM-prompt-val.json                      # any OpenAI-compatible server

Every image is described, once more as a blank image and with another image in its place (image
ablation), and asked about by yes / no questions. Answers are greedy and kept as they come: the
same command continues after an interruption. Writes metrics.json, table.md and report.html.
"""

import re
import sys
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

from command_line import compares, ctrl_c_ends_at_once, loading
from evaluation.arguments import parse
from model.errors import UserError, printable
from model.files import PROJECT

PACKAGES = ("torch", "numpy", "sacrebleu", "jieba")
BLANK_FILE = "blank.png"
BLANK_SIZE = (224, 224)  # pixels


def card_of(folder):
    """What a checkpoint folder says of itself; {} of a base."""
    from model.files import read_json
    from model.weight_files import CARD

    card = Path(folder) / CARD
    return read_json(card, "model card", dict) if card.is_file() else {}


def output_folder(args):
    """Where the results go. A base is somebody else's folder: then it is one under checkpoints/."""
    name = f"eval-{Path(args.data).stem}"
    if args.output:
        return args.output
    if args.predictions:
        return args.predictions[0].parent / name
    if not args.from_pretrained:
        model = re.sub(r"[^\w.-]+", "-", args.model)
        return PROJECT / "checkpoints" / f"eval-{model}-{Path(args.data).stem}"

    folder = Path(args.from_pretrained)
    if "prompt" not in card_of(folder):
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


def load_dataset(args, notes):
    """(samples to describe, EvaluationSet), all images opened once. Raises UserError.

    notes: gets a line about each thing that was left out.
    """
    from evaluation.hallucination import existence_questions, truth
    from evaluation.references import (
        add_sentences,
        check_one_language,
        described_images,
        evenly_spread,
    )
    from evaluation.score import EvaluationSet
    from model import read_image
    from model.rows import check_images

    samples, captions = described_images(
        args.data, args.image_root, args.description_questions, notes
    )
    if args.references:
        samples, captions = add_sentences(samples, captions, args.references, args.split)
    samples = evenly_spread(samples, args.limit)
    training = load_training(args, notes)

    references = [captions[sample.image] for sample in samples]
    check_one_language(samples, references, args.data)
    check_images(samples, args.data, args.bands)

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


def load_training(args, notes):
    """{image: descriptions} of the training rows, for the baselines.

    Rows that nobody named, found beside those under evaluation, are left out with a note if
    anything is wrong with them. Raises UserError of others.
    """
    from evaluation.references import described_images, training_file
    from model.rows import check_images

    path = args.train_data or training_file(args.data)
    if not path:
        return {}
    try:
        samples, captions = described_images(path, args.image_root, args.description_questions)
        check_images(samples, path, args.bands)
    except UserError as error:
        if args.train_data:
            raise
        notes.append(f"no baselines of the training rows beside --data: {error}")
        return {}
    return captions


def generate(args, samples, questions, output, server):
    """[System]: the base where that is asked for, the checkpoint, the server's model.

    server: a RemoteAssistant or None. Raises UserError.
    """
    from evaluation.generation import Task, generate_answers, image_ablations
    from model import Sampling
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
        if args.from_pretrained:
            systems += of_checkpoint(args, answers)
        if server:
            systems += of_server(args, answers, server)
    return systems


def of_checkpoint(args, answers):
    """[System] of --from_pretrained and its base. answers: generate_answers of an assistant."""
    with ctrl_c_ends_at_once():
        from model import load_assistant

    systems = []
    if args.base and args.base is not True:
        options = loading(args) | {"base": None, "tokenizer": None}
        assistant = load_assistant(args.base, **options)
        systems.append(answers(assistant, name="base", checkpoint=args.base, untuned=True))
        del assistant  # memory for one network at a time

    assistant = load_assistant(args.from_pretrained, **loading(args))
    answers = partial(answers, assistant, checkpoint=args.from_pretrained)
    if args.base is True and compares(args, assistant, args.from_pretrained):
        systems.append(answers(name="base", untuned=True))
    systems.append(answers(name="base" if assistant.is_base else "tuned"))
    return systems


def of_server(args, answers, server):
    """[System] of --model and, of a server of this project, its base."""
    answers = partial(answers, server, checkpoint=server.name)
    systems = []
    if args.base is True and not args.from_pretrained and compares(args, server, server.name):
        systems.append(answers(name=f"{server.name}, base", untuned=True))
    systems.append(answers(name=server.name))
    print(f"{server.name}: {server.spent}", file=sys.stderr)
    return systems


def open_server(args):
    """The RemoteAssistant of --api, or None. Raises UserError."""
    if not args.api:
        return None
    from data.endpoint import Settings
    from serving.client import RemoteAssistant

    settings = Settings(
        args.api,
        args.model,
        extra_body=args.extra_body,
        timeout=args.timeout,
        max_retries=args.max_retries,
        backoff=args.backoff,
        rpm=args.rpm,
        tpm=args.tpm,
        concurrency=args.batch_size,
    )
    return RemoteAssistant(
        settings,
        args.api_key,
        max_pixels=args.max_pixels,
        options="--api-key (or OPENAI_API_KEY), --api and --model",
    )


def recorded(args):
    """The options as metrics.json records them."""
    settings = {}
    for name, value in vars(args).items():
        if name == "api_key":
            continue
        if isinstance(value, list):
            value = [str(item) for item in value]
        elif isinstance(value, Path):
            value = str(value)
        settings[name] = value
    return settings


def evaluate(args):
    """Returns what metrics.json holds. Raises UserError."""
    server = open_server(args)
    if server is None:
        return measure(args, None)
    with closing(server):
        return measure(args, server)


def measure(args, server):
    """evaluate with an open server, or None."""
    from evaluation.predictions import number_equal_names, read_predictions
    from evaluation.report import write_report
    from evaluation.score import score
    from evaluation.tables import summary_table
    from model.rows import load_rows

    args.english = is_english(args, server)
    notes = []
    samples, dataset = load_dataset(args, notes)
    questions = dataset.distinct_questions()

    rows = partial(load_rows, args.data, args.image_root, questions=True)
    systems = []
    for path in args.predictions or ():
        systems += read_predictions(path, samples, questions, rows)

    # Nothing is written before the user's files are known to be right
    output = output_folder(args)
    is_asking = bool(args.from_pretrained or server)
    make_output(output, with_blank=is_asking)
    if is_asking:
        systems += generate(args, samples, questions, output, server)
    number_equal_names(systems)
    for system in systems:
        notes += system.notes

    scores = score(systems, dataset, args.seed, args.resamples)
    versions = {package: version(package) for package in PACKAGES}
    metrics = write_report(scores, output, recorded(args), versions, args.gallery, notes)
    # After the files are written: a terminal that went away costs nothing
    print(*map(printable, [summary_table(scores), *scores.warnings, *notes]), sep="\n")
    print(
        f"report: {output / 'report.html'}; all metrics: {output / 'table.md'}, "
        f"{output / 'metrics.json'}"
    )
    return metrics


def is_english(args, server):
    """Whether questions and answers are English: as asked for, or as the model was trained.

    args.from_pretrained becomes the folder that is found. Raises UserError.
    """
    from model.find import find_checkpoint

    if args.from_pretrained:
        args.from_pretrained = find_checkpoint(args.from_pretrained, args.download)
    if args.english is not None:
        return args.english
    if args.from_pretrained:
        return bool(card_of(args.from_pretrained).get("english"))
    return bool(server and server.english)


def main(argv=None):
    args = parse(__doc__, argv)
    try:
        return evaluate(args)
    except KeyboardInterrupt:  # the answers so far are kept
        sys.exit(130)
    except UserError as error:
        sys.exit(f"evaluate_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
