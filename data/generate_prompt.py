"""Stage 3: Chinese descriptions + images -> the rows that fine-tuning reads.

in:  [{"imged_id": "1.tif", "caption": Chinese, "split": optional}, ...] and the image folder; several such files are merged
out: [{"img": "images/1.tif", "prompt": question, "label": Chinese}, ...] in one file and, where splits are known, the same
     rows in NAME-train, NAME-val and NAME-test beside it; other forms by --format, more questions by --tasks
"""

import argparse
import math
import os
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import exports, instructions
from data.caption_sets import CAPTION_SETS
from data.image_check import CACHE, Use, check_images, find
from data.records import (
    PROJECT,
    SPLITS,
    StageError,
    add_path_options,
    caption_records,
    checked_records,
    listed,
    record_writer,
    resolve_paths,
    run_stage,
    split_problem,
    text_problem,
)
from data.transform import image_problem

PROMPT = "这张遥感图像展现了什么场景？"
NAMED = 100  # pictures named of a kind of problem: enough to mend a damaged download in one go


@dataclass(frozen=True)
class Source:
    """One input: its file, what stands before its file names, the known set that it is or None, and what --captions adds."""

    path: Path
    root: str
    dataset: str | None
    splits: dict  # file name -> split
    sentences: dict  # file name -> its English sentences

    def records(self, checked=True):
        """(img, split or None, record) of each; `checked`: an earlier reading found no name twice."""
        for record in caption_records(self.path, unique=not checked):
            name = record["imged_id"]
            yield f"{self.root}/{name}", record.get("split") or self.splits.get(name), record

    def facts(self, record):
        return instructions.facts(record["caption"], self.sentences.get(record["imged_id"], ()))


def warn(text):
    print(f"generate_prompt.py: warning: {text}", file=sys.stderr)


def read_captions(path, sentences):
    """({file name: split}, {file name: English sentences}) of a caption set; the latter only where asked for."""

    def problem(image):
        return text_problem(image, "split") or (image_problem if sentences else split_problem)(
            image
        )

    splits, english = {}, {}
    for image in checked_records(path, "filename", problem):
        splits[image["filename"]] = image["split"]
        if sentences:
            english[image["filename"]] = [sentence["raw"] for sentence in image["sentences"]]
    return splits, english


def sources_of(args):
    """The inputs, each with what belongs to it; fills in args.output."""
    paths, default = list(args.input or [None]), args.output is None
    for number, args.input in enumerate(paths):  # defaults of the only one, checks of all
        resolve_paths(args)
        paths[number] = args.input
    if default and args.format == "ms-swift":
        args.output = args.output.with_suffix(".jsonl")
    for part in (part_of(args.output, split) for split in SPLITS):
        if any(part.exists() and part.samefile(path) for path in paths):
            raise StageError(
                f"input {part} would be overwritten by the split files of {args.output}: name another --output"
            )
    names = [args.dataset] if args.dataset else [path.stem.removesuffix("-zh") for path in paths]
    captions = [read_captions(path, bool(args.tasks)) for path in args.captions or []] or [
        ({}, {})
    ] * len(paths)
    return [
        Source(path, root, name if name in CAPTION_SETS else None, *known)
        for path, root, name, known in zip(paths, args.image_root, names, captions)
    ]


def survey(sources, args):
    """Read everything once: all that is wrong with the records is found here.

    Returns images per split, {split: Counter of hashes of descriptions} of what is held out, and instructions.Statistics.
    """
    counts, unsplit, held_out = Counter(), [], {split: Counter() for split in SPLITS[1:]}
    statistics = instructions.Statistics()
    for source in sources:
        for _, split, record in source.records(checked=False):
            counts[split] += 1
            if split is None and len(unsplit) < NAMED:
                unsplit.append(record["imged_id"])
            if split in held_out:
                held_out[split][hash(record["caption"])] += 1
            if args.tasks:
                statistics.add(source.facts(record).present)
    total = sum(counts.values())
    if counts[None] and (
        args.captions or counts[None] < total
    ):  # such rows would silently be in none of the split files
        hint = (
            f"{' and '.join(map(str, args.captions))} does not name them"
            if args.captions
            else "give --captions"
        )
        raise StageError(
            f"{counts[None]} of {total} records have no split: {listed(unsplit)}; {hint}"
        )
    return counts, held_out, statistics


def check(sources, folders, args):
    """The imgs whose rows are dropped because of their picture; StageError with --strict, or where an input has none."""
    uses_of = [
        [Use(img, source.dataset, split) for img, split, _ in source.records()]
        for source in sources
    ]
    uses, cache = sum(uses_of, []), args.output.with_name(CACHE)
    problems, leaks = check_images(uses, folders, cache, args.keep_duplicates)
    for split, other, names in leaks:
        print(
            f"leakage: {len(names)} {split} images have the bytes of {other} images: {listed(names)}"
        )
    imgs, dropped = {use.img for use in uses}, {img for bad in problems.values() for img in bad}
    if not dropped:
        print(f"{len(imgs)} images opened and sound (kept for the next run in {cache})")
        return dropped
    parts = [
        f"{len(bad)} of {len(imgs)} images {kind}: {listed(list(bad.values()), 5 if len(bad) == len(imgs) else NAMED)}"
        for kind, bad in problems.items()
        if bad
    ]
    if problems["missing"]:
        parts.append(f"looked {', then '.join(f'in {folder}' for folder in folders)}")
    gone = [
        source.root
        for source, own in zip(sources, uses_of)
        if all(use.img in problems["missing"] for use in own)
    ]
    if gone and len(sources) > 1:
        parts.append(f"not one image of {' and '.join(gone)} was found")
    here = [root for root in gone if Path(root).is_dir() and not os.path.isabs(root)]
    if here:
        parts.append(f"{' and '.join(here)} is in the current folder: give --image-root in full")
    if args.strict or gone or dropped == imgs:
        raise StageError("; ".join([*parts, "check --image-root, or replace the files"]))
    rows = sum(use.img in dropped for use in uses)
    warn(
        "; ".join(
            [f"{rows} rows dropped", *parts, f"--strict stops instead (checks are kept in {cache})"]
        )
    )
    return dropped


def convert(sources, folders, dropped, args):
    """Write the pictures as PNG under --png; returns {img: img of its PNG}."""
    folder, names, pictures = args.output.parent / args.png, {}, {}
    for source in sources:
        prefix = f"{source.path.stem.removesuffix('-zh')}/" if len(sources) > 1 else ""
        for img, _, record in source.records():
            if img in dropped or img in names:
                continue
            name = prefix + str(Path(record["imged_id"]).with_suffix(".png"))
            file = find(img, folders)
            if pictures.setdefault(folder / name, file) != file:
                raise StageError(
                    f"{file} and {pictures[folder / name]} would both be {name}: rename one of them"
                )
            names[img] = f"{args.png}/{name}"
    print(
        f"{folder}: {exports.convert(pictures)} of {len(pictures)} images converted to PNG, the others were there"
    )
    return names


def generate(args):
    sources = sources_of(args)
    if args.format == "llamafactory":
        exports.read_dataset_info(args.output.parent)  # whether it can be read, before the work
    counts, held_out, statistics = survey(sources, args)
    folders = (
        [args.output.parent.absolute(), PROJECT]
        if not all(os.path.isabs(source.root) for source in sources)
        else []
    )
    folders = list(
        dict.fromkeys(
            [
                *map(Path, (source.root for source in sources if os.path.isabs(source.root))),
                *folders,
            ]
        )
    )
    dropped = check(sources, folders, args) if not args.no_image_check else set()
    names = convert(sources, folders, dropped, args) if args.png else {}

    written, repeated, example = Counter(), {split: set() for split in held_out}, {}
    with ExitStack() as files:
        writers = {}

        def write(part, row):
            if part not in writers:
                writers[part] = files.enter_context(record_writer(part_of(args.output, part)))
            writers[part](row)
            written[part] += 1

        for source in sources:
            for img, split, record in source.records():
                if img in dropped:
                    continue
                rounds = [[(args.prompt, record["caption"])]]
                if args.tasks:
                    rounds = instructions.dialogues(
                        source.facts(record),
                        statistics,
                        args.tasks,
                        args.seed,
                        record["imged_id"],
                        args.negatives,
                    )
                for other in held_out:
                    if (
                        split in SPLITS[: SPLITS.index(other)]
                        and hash(record["caption"]) in held_out[other]
                    ):
                        repeated[other].add(hash(record["caption"]))
                        example.setdefault(
                            other, f"{record['imged_id']}: {record['caption'][:20]}..."
                        )
                for one in rounds:
                    row = exports.row(args.format, names.get(img, img), one)
                    write(None, row)
                    if split:
                        write(split, row)
        if not written:
            raise StageError(
                "no rows: the captions say too little for these --tasks; add description=1"
            )
    for split, captions in repeated.items():
        if captions:
            count, total = (
                sum(held_out[split][caption] for caption in captions),
                sum(held_out[split].values()),
            )
            print(
                f"leakage: {count} of {total} {split} descriptions also stand in an earlier split, e.g. {example[split]}"
            )
    for part in written:
        print(f"{part_of(args.output, part)}: {written[part]} rows")
    if args.format == "llamafactory":
        print(
            f"{exports.register([part_of(args.output, part) for part in written])}: {len(written)} data sets entered"
        )
    for split in SPLITS:
        path = part_of(args.output, split)
        if split not in written and path.exists():
            path.unlink()
            print(
                f"{path}: removed; it was of an earlier run, {args.output} has no {split} rows any more"
            )


def part_of(output, part):
    return output.with_name(f"{output.stem}-{part}{output.suffix}") if part else output


def task_shares(texts):
    """["description=1", "existence=0.5"] -> {"description": 1.0, "existence": 0.5}; ValueError in a few words."""
    shares = {}
    for text in texts:
        task, _, number = text.partition("=")
        if task not in instructions.TASKS:
            raise ValueError(f"{text}: expected one of {', '.join(instructions.TASKS)}")
        try:
            shares[task] = float(number or 1)
        except ValueError:
            raise ValueError(f"{text}: expected a number after =") from None
        if not 0 < shares[task] <= 100 or math.isnan(shares[task]):
            raise ValueError(f"{text}: expected more than 0 and at most 100 per image")
    return shares


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Pair each image with questions and their Chinese answers."
    )
    add_path_options(parser, "zh", "prompt", several=True)
    parser.add_argument(
        "--captions",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the caption set as distributed "
        "(dataset.json), one per input: gives their split to records without one, and its English sentences "
        "to --tasks (default: records keep what they have)",
    )
    rows = parser.add_argument_group("rows")
    rows.add_argument("--prompt", help=f"question of every row (default: {PROMPT})")
    rows.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK=N",
        help="instead of the one question: rows per image "
        f"of each of {', '.join(instructions.TASKS)}; 0.5 asks every second image, =N left out is 1; "
        "existence counts pairs, an object that is there and one that is not. Made from the captions, without "
        "any LLM",
    )
    rows.add_argument(
        "--negatives",
        choices=instructions.NEGATIVES,
        default="balanced",
        help="objects asked for in vain: "
        "drawn as often as they are there in the set (balanced), all alike (random), the commonest (popular), "
        "those that usually go with what is there (adversarial) (default: %(default)s)",
    )
    rows.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of --tasks: another seed asks otherwise (default: %(default)s)",
    )
    rows.add_argument(
        "--format",
        choices=exports.FORMATS,
        default="remoteglm",
        help="form of the rows; llamafactory also "
        "enters the files into dataset_info.json beside them (default: %(default)s)",
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--image-root",
        nargs="+",
        default=["images"],
        help="folder written before each file name, one per "
        "input; a relative one is looked for beside the output, then in the project root (default: images)",
    )
    images.add_argument(
        "--png",
        metavar="DIR",
        help="convert the images to PNG in this folder (a relative one: beside the "
        "output) and name those in the rows (default: the images as they are)",
    )
    images.add_argument(
        "--strict",
        action="store_true",
        help="stop where an image is missing, damaged, of a wrong size or "
        "a duplicate (default: drop its rows and say so)",
    )
    images.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep images whose bytes another one has (default: "
        "keep one, in test before val before train)",
    )
    images.add_argument(
        "--no-image-check",
        action="store_true",
        help="do not open the images; missing or damaged ones then turn up in training",
    )
    args = parser.parse_args(argv)
    texts = [
        ("--prompt", args.prompt),
        ("--png", args.png),
        *(("--image-root", root) for root in args.image_root),
    ]
    problems = [
        f"{option} is empty" for option, text in texts if text is not None and not text.strip()
    ]
    inputs = len(args.input or [None])
    if inputs > 1 and args.dataset:
        problems.append(
            f"--dataset {args.dataset} names one set, --input {inputs} files: leave one of them out"
        )
    if inputs > 1 and not args.output:
        problems.append(f"{inputs} inputs are merged into one file: name it by --output")
    for option, given in (("--image-root", args.image_root), ("--captions", args.captions)):
        if given and len(given) != inputs:
            problems.append(f"{option}: expected one per input, {inputs}, got {len(given)}")
    if args.prompt is not None and args.tasks:
        problems.append(
            "--prompt is the question of every row, --tasks asks many: leave one of them out"
        )
    if args.no_image_check and (args.png or args.strict):
        problems.append(
            f"{'--png' if args.png else '--strict'} opens the images: leave --no-image-check out"
        )
    if args.format == "ms-swift" and args.output and args.output.suffix != ".jsonl":
        problems.append(
            f"--format ms-swift is one row a line: name --output {args.output.with_suffix('.jsonl')}"
        )
    try:
        args.tasks = task_shares(args.tasks)
    except ValueError as error:
        problems.append(f"--tasks {error}")
    if problems:
        parser.error("; ".join(problems))
    args.prompt = PROMPT if args.prompt is None else args.prompt
    args.writes = "prompt" if args.format == "remoteglm" else args.format
    return run_stage(__file__, generate, args)


if __name__ == "__main__":
    sys.exit(main())
