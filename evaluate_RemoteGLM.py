"""Measure a checkpoint: does it describe well, does it invent things, does it look at the picture?

    python evaluate_RemoteGLM.py --from_pretrained checkpoints/demo --data data/demo/demo-prompt-test.json --base
    python evaluate_RemoteGLM.py --predictions answers.jsonl --data data/UCM/UCM-prompt-val.json     # without a model

Every picture is described, once more with a blank picture and with another one in its place, and asked about by yes / no
questions. Answers are greedy and kept as they come: a second run goes on from there. Writes metrics.json, table.md and report.html.
"""

import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

from cli_demo import Parser, add_bands_option, add_loading_options, compares, loading

PROJECT = Path(__file__).resolve().parent
CONTROLS, BLANK = ("blank image", "swapped images"), "blank.png"
PACKAGES = ("torch", "numpy", "sacrebleu", "jieba")


@dataclass
class System:
    """The answers of one column of the table: one an image, and to yes / no questions."""

    name: str
    answers: list
    controls: dict = field(default_factory=dict)  # name of the control -> answers
    replies: dict = field(default_factory=dict)  # (image, question) -> answer


def parse(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_loading_options(parser)
    add(
        "--data",
        required=True,
        help="rows to answer: what data/generate_prompt.py writes; those that ask for a description count",
    )
    add(
        "--base",
        nargs="?",
        const=True,
        help="measure the untuned base as well; with a value that checkpoint as the base",
    )
    add(
        "--predictions",
        type=Path,
        nargs="+",
        help='measure existing answers without a model: .jsonl of {"img", "prompt", "answer"}, '
        "as cli_demo.py --output and this script write them",
    )
    add(
        "--references",
        type=Path,
        help="caption set as distributed (dataset.json): its sentences are further references; those of "
        "another language only say what is there",
    )
    add("--split", help="only images of this split; needs --references")
    add(
        "--train-data",
        help="training rows, for the reference rows and for copied captions; default: the -train file beside the rows",
    )
    add(
        "--image-root",
        default="",
        help="folder of relative images; default: beside the rows, then the project root",
    )
    add_bands_option(parser)
    add(
        "--output",
        type=Path,
        help="folder of the answers and the report; default: <run>/eval-<rows>-<step>; of "
        "another checkpoint <checkpoint>/eval-<rows>, of a base checkpoints/eval-<base>-<rows>; with --predictions: eval-<rows> beside the first of them",
    )
    add("--english", action="store_true", help="ask in English")
    add(
        "--existence",
        type=int,
        default=3,
        help="yes / no questions per image about objects that are there, and as many about ones that "
        "are not, of each kind; 0: none (%(default)s)",
    )
    add("--no-controls", action="store_true", help="leave the blank and the swapped images out")
    add("--batch-size", type=int, default=16, help="rows answered together (%(default)s)")
    add(
        "--max_new_tokens",
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
        "--gallery",
        type=int,
        default=100,
        help="pictures in the report, the worst first; 0: all (%(default)s)",
    )
    add(
        "--resamples", type=int, default=1000, help="of the 95 %% intervals and tests (%(default)s)"
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of swapped images, questions and resamples (%(default)s)",
    )
    args = parser.parse_args(argv)
    if bool(args.from_pretrained) == bool(args.predictions):
        parser.error("give either --from_pretrained or --predictions")
    if args.predictions and args.base:
        parser.error(
            "--base goes with --from_pretrained; name the base's answers as a further file of --predictions"
        )
    if args.split and not args.references:
        parser.error("--split needs --references, which says which image belongs to which split")
    for name, least in (
        ("batch-size", 1),
        ("max_new_tokens", 1),
        ("existence", 0),
        ("limit", 0),
        ("gallery", 0),
        ("resamples", 100),
        ("seed", 0),
    ):
        if getattr(args, name.replace("-", "_")) < least:
            parser.error(
                f"--{name} {getattr(args, name.replace('-', '_'))}: must be at least {least}"
            )
    return args


def described(path, image_root):
    """The rows of a file that ask for a description -> ([Sample], one a picture; {picture: its descriptions})."""
    from evaluation.hallucination import QUESTIONS
    from model import UserError
    from model.rows import load_rows

    samples = [
        sample for sample in load_rows(path, image_root) if sample.image and not sample.history
    ]
    questions = {sample.question for sample in samples}
    asked = [
        sample
        for sample in samples
        if len(questions) == 1 or sample.question in QUESTIONS["description"]
    ]
    if not asked:
        raise UserError(
            f"rows {path}: none asks for a description of a picture; make them with data/generate_prompt.py, with --tasks "
            "name description among them"
        )
    texts = defaultdict(list)
    for sample in asked:
        if sample.answer not in texts[sample.image]:
            texts[sample.image].append(sample.answer)
    return list({sample.image: sample for sample in reversed(asked)}.values())[::-1], texts


def add_references(args, samples, texts):
    """Add the sentences of --references to the texts of each picture; returns the samples of --split."""
    from data.generate_prompt import read_captions
    from model import UserError

    splits, sentences = (
        {name.replace("\\", "/"): value for name, value in known.items()}
        for known in read_captions(args.references, True)
    )
    kept, unknown, belong = [], [], set()
    for sample in samples:
        parts = parts_of(sample.image)
        name = next(
            (
                name
                for name in ("/".join(parts[i:]) for i in range(len(parts)))
                if name in sentences
            ),
            None,
        )
        belong.add(str(splits.get(name)))
        if name is None:
            unknown.append(str(sample.image))
        elif not args.split or splits[name] == args.split:
            kept.append(sample)
            texts[sample.image] += [
                text for text in sentences[name] if text.strip() and text not in texts[sample.image]
            ]
    if unknown:
        raise UserError(
            f"--references {args.references} lacks {len(unknown)} of {len(samples)} images, such as {unknown[0]}"
        )
    if not kept:
        raise UserError(
            f"--split {args.split}: none of the {len(samples)} pictures of {args.data} belongs to it; they belong to {', '.join(sorted(belong))}"
        )
    return kept


def ask(args, samples, asked, output):
    """Answer everything with the checkpoint, and with the base where that is asked for -> [System]."""
    from model import Sampling, UserError, load_assistant
    from model.batch import AnswerFile, answer_rows
    from model.rows import swap_images

    pictures = {}
    if not args.no_controls:
        pictures[CONTROLS[0]] = [replace(sample, image=output / BLANK) for sample in samples]
        if len(samples) > 1:
            pictures[CONTROLS[1]] = swap_images(samples, args.seed)
    asked = sorted(asked)  # (image, question), each once
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=args.max_new_tokens)
    systems = []

    def answer(assistant, name, checkpoint, untuned, file):
        def answers(chosen, what):
            entries = answer_rows(
                assistant,
                chosen,
                file,
                checkpoint=checkpoint,
                base=untuned,
                sampling=sampling,
                english=args.english,
                bands=args.bands,
                batch_size=args.batch_size,
                progress=partial(tqdm, desc=f"{name}, {what}", unit="batch"),
            )
            if failed := [entry["error"] for entry in entries if "error" in entry]:
                raise UserError(
                    f"{len(failed)} of {len(chosen)} rows have no answer; the first: {failed[0]}"
                )
            return [entry["answer"] for entry in entries]

        system = System(name, answers(samples, "pictures"))
        system.controls = {
            control: answers(chosen, control) for control, chosen in pictures.items()
        }
        rows = [
            replace(samples[index], question=question, answer=None) for index, question in asked
        ]
        system.replies = dict(zip(asked, answers(rows, "yes / no")))
        systems.append(system)

    from tqdm import tqdm

    with AnswerFile(output / "predictions.jsonl") as file:
        if args.base and args.base is not True:
            assistant = load_assistant(
                args.base, **loading(args) | {"base": None, "tokenizer": None}
            )
            answer(assistant, "base", args.base, True, file)
            del assistant
        assistant = load_assistant(args.from_pretrained, **loading(args))
        if args.base is True and compares(args, assistant):
            answer(assistant, "base", args.from_pretrained, True, file)
        answer(
            assistant, "base" if assistant.is_base else "tuned", args.from_pretrained, False, file
        )
    return systems


def read_predictions(path, samples, asked):
    """The Systems whose answers a file holds: as many as it names settings. Raises UserError where one lacks an answer."""
    from model import UserError

    keys, groups = (
        {},
        {},
    )  # those of all lines; settings as JSON -> {(file name, question): [(parts of the path, answer)]}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"expected an object, got {type(entry).__name__}")
                keys.update(entry)
                said, parts = entry.get("answer"), parts_of(entry.get("img") or "")
                if said is not None and not isinstance(said, str):
                    raise ValueError(f"answer must be a text, got {said!r}")
                if not isinstance(entry.get("settings") or {}, dict):
                    raise ValueError(f"settings must be an object, got {entry['settings']!r}")
                (
                    said or ""
                ).encode()  # half a character (\ud800) would end the report when it is written
                if parts and said is not None:
                    group = groups.setdefault(
                        json.dumps(entry.get("settings"), sort_keys=True), defaultdict(list)
                    )
                    group[parts[-1], entry["prompt"]].append((parts, said))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"predictions {path}: cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'predictions {path}: line {number} is no {{"img", "prompt", "answer"}} ({type(error).__name__}: {error})'
        ) from None
    if not groups:
        raise UserError(
            f"predictions {path}: no answers about pictures; expected lines of img, prompt and answer, got "
            + (f"keys {', '.join(keys)}" if keys else "an empty file")
        )

    def answer(group, sample, question):
        """Of answers about files of one name that whose path agrees longest from its end."""
        parts = parts_of(sample.image)
        found = [
            (
                sum(
                    1
                    for _ in takewhile(
                        lambda pair: pair[0] == pair[1], zip(parts[::-1], other[::-1])
                    )
                ),
                said,
            )
            for other, said in group.get((parts[-1], question), ())
        ]
        best = {said for agreed, said in found if agreed == max(found)[0]}
        if len(best) > 1:
            raise UserError(
                f"predictions {path}: several answers about {sample.image} ({question}): name each picture with its folder, once"
            )
        return best.pop() if best else None

    systems = []
    for label, group in zip(labels(path.stem, map(json.loads, groups)), groups.values()):
        found = [answer(group, sample, sample.question) for sample in samples]
        if missing := [sample for sample, text in zip(samples, found) if text is None]:
            raise UserError(
                f"predictions {path}: of {label} {len(missing)} of {len(samples)} pictures have no answer to the question of their row, "
                f"such as {Path(missing[0].image).name}: {missing[0].question}"
            )
        replies = {
            (index, question): answer(group, samples[index], question) for index, question in asked
        }
        systems.append(
            System(label, found, replies=replies if None not in replies.values() else {})
        )
    return systems


def parts_of(path):
    return Path(str(path).replace("\\", "/")).parts


def labels(stem, settings):
    """A name for each settings of a file: what differs between them, in a word where one is enough."""
    known = [value or {} for value in settings]
    if len(known) == 1:
        return [stem]
    differing = [
        key
        for key in dict.fromkeys(key for one in known for key in one)
        if len({str(one.get(key)) for one in known}) > 1
    ]
    chosen = (
        ["system"]
        if len({one.get("system") for one in known}) == len(known)
        else [key for key in differing if key != "fingerprint"] or differing
    )
    return [
        ", ".join(
            [
                stem,
                *(
                    str(one.get(key)) if key == "system" else f"{key} {one.get(key)}"
                    for key in chosen
                ),
            ]
        )
        for one in known
    ]


def folder_of(args):
    """Where the results go. A base is somebody else's folder: they go beside it under checkpoints/."""
    from model.find import find_checkpoint
    from model.visualglm.stored import CARD, read_json

    rows = f"eval-{Path(args.data).stem}"
    if args.predictions:
        return args.output or args.predictions[0].parent / rows
    args.from_pretrained = find_checkpoint(args.from_pretrained, args.download)
    folder, card = args.from_pretrained, args.from_pretrained / CARD
    if (
        args.output
        or not card.is_file()
        or "prompt" not in read_json(card, "checkpoint card", dict)
    ):
        return args.output or PROJECT / "checkpoints" / f"eval-{folder.name}-{Path(args.data).stem}"
    return (
        folder.parent / f"{rows}-{folder.name}"
        if (folder.parent / "latest").is_file()
        else folder / rows
    )  # a run removes old steps


def training_captions(args):
    """{picture: its descriptions} of the training rows, empty where there are none."""
    beside = Path(args.data).with_name(
        Path(args.data).name.replace("-val", "-train").replace("-test", "-train")
    )
    if not args.train_data and (beside == Path(args.data) or not beside.is_file()):
        return {}
    return described(args.train_data or beside, args.image_root)[1]


def evaluate(args):
    from PIL import Image

    from data.lexicon import language
    from evaluation.hallucination import existence_questions, truth
    from evaluation.score import Scores
    from model import UserError, read_image
    from model.rows import check_images
    from model.visualglm.pixels import MEAN

    samples, texts = described(args.data, args.image_root)
    if args.references:
        samples = add_references(args, samples, texts)
    if 0 < args.limit < len(samples):  # rows are often ordered by class
        samples = [samples[i * len(samples) // args.limit] for i in range(args.limit)]
    train, output = training_captions(args), folder_of(args)
    references = [texts[sample.image] for sample in samples]
    spoken = Counter(language(known[0]) for known in references).most_common(1)[0][0]
    if odd := [
        (sample, known)
        for sample, known in zip(samples, references)
        if language(known[0]) != spoken
    ]:
        raise UserError(
            f"rows {args.data}: descriptions must be all Chinese or all English; {len(odd)} of {len(samples)} are not like the others, "
            f"such as {Path(odd[0][0].image).name}: {odd[0][1][0][:40]}"
        )
    check_images(
        [*samples, *(replace(samples[0], image=picture) for picture in train)],
        args.data,
        args.bands,
    )
    truths = list(map(truth, references))
    questions = existence_questions(
        truths, args.existence, args.seed, "en" if args.english else "zh"
    )
    asked = {(index, question) for kind in questions.values() for index, _, _, question in kind}
    systems = [
        system
        for path in args.predictions or ()
        for system in read_predictions(path, samples, asked)
    ]
    try:  # after what can be wrong with the user's files
        output.mkdir(parents=True, exist_ok=True)
        if not args.predictions:
            Image.new("RGB", (224, 224), tuple(round(255 * mean) for mean in MEAN)).save(
                output / BLANK
            )
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    systems = systems or ask(args, samples, asked, output)
    names = [system.name for system in systems]
    for number, system in enumerate(systems, 1):
        system.name += f" ({number})" * (names.count(system.name) > 1)
    scores = Scores(
        [sample.image for sample in samples],
        references,
        truths,
        questions,
        train,
        partial(read_image, bands=args.bands),
        seed=args.seed,
        resamples=args.resamples,
    )
    for system in systems:
        scores.add(system)
    scores.add_reference_rows()
    settings = {
        key: list(map(str, value))
        if isinstance(value, list)
        else str(value)
        if isinstance(value, Path)
        else value
        for key, value in vars(args).items()
    }
    return scores.write(
        output, systems, settings, {package: version(package) for package in PACKAGES}, args.gallery
    )


def main(argv=None):
    args = parse(argv)
    try:
        from evaluation.score import Scores  # noqa: F401  (data/ is importable from here on)
        from model import UserError

        return evaluate(args)
    except KeyboardInterrupt:  # what is answered is kept
        sys.exit(130)
    except UserError as error:
        sys.exit(f"evaluate_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
