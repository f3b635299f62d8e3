"""Stage 1: a caption set as distributed -> one English caption per image.

in:  {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]},
     .jsonl of such images, or another layout of data/layouts/: COCO, tables, tars, Parquet, folders
out: [{"imged_id": "1.tif", "caption": each raw + two spaces, "split": "train"}, ...]
     or, of what brings its own questions (dialogues, class folders), for generate_prompt.py:
     [{"imged_id": "1.tif", "conversations": [{"role", "content"}, ...], "split": "train"}, ...]

`imged_id` is misspelt in the files published so far; it is kept so that those files and these are
interchangeable.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.caption_sets import CAPTION_SETS
from data.conversation import turns_of
from data.instructions import QUESTIONS
from data.layouts import open_files
from data.records import write_records
from data.selection import Choice
from data.sentences import images_of, sentences_of
from data.set_counts import FILLED, Counts, complain
from data.stage import resolve_inputs, run_stage
from data.transform_options import make_parser
from model.errors import UserError


def distinct(raws):
    """The sentences without those that repeat an earlier one but for case and white space."""
    first = {}
    for raw in raws:
        first.setdefault(" ".join(raw.lower().split()), raw)
    return list(first.values())


def filled(raws, seed, name):
    """At least FILLED sentences: existing ones repeated, each once before any twice.

    seed and name (of the image) decide which.
    """
    rng, more = random.Random(f"{seed}/{name}"), []
    while len(raws) + len(more) < FILLED:
        missing = FILLED - len(raws) - len(more)
        more += rng.sample(raws, min(len(raws), missing))
    return raws + more


def transform(args):
    default_output = args.output is None
    inputs = resolve_inputs(args, args.input)
    known = CAPTION_SETS[args.dataset] if args.dataset else None
    counts = Counts(known)

    def opened(notes=None):
        return open_files(inputs, args.layout, args.image_column, args.caption_column, notes)

    files = opened(counts.notes)
    counts.has_captions = files.has_captions
    if default_output and not files.has_captions:
        stem = args.output.stem.removesuffix("-en")
        args.output = args.output.with_name(f"{stem}-rows{args.output.suffix}")
    if not files.has_captions and (args.fill or args.dedupe):
        raise UserError(
            f"{files.name} has no captions but questions and answers: leave --fill and --dedupe out"
        )
    choice = Choice(opened, args)
    folder = args.output.parent / "images"
    if files.holds_images:
        # all that is wrong is found before the first image is written
        for image in images_of(opened()):
            if "content" in image:
                image["content"].is_at(folder / image["filename"])

    def records():
        for image in images_of(files, notes=counts.notes):
            if counts.add(image) and choice.keeps(image):
                image = choice.with_split(image)
                if "content" in image:
                    image["content"].write(folder / image["filename"])
                record, number = record_of(image, args)
                counts.add_record(image, number)
                yield record
        # raised while write_records still holds its temporary file, so nothing is written
        complain(counts, files.name, args)

    write_records(args.output, records())
    print(f"{args.output}: {counts.summary(args)}")


def record_of(image, args):
    """(the record of an image, the number of its sentences or rounds)."""
    raws = sentences_of(image)
    if raws:
        return english_record(image, raws, args)
    record = {"imged_id": image["filename"], "conversations": image.get("conversations")}
    if "scene" in image:
        rng = random.Random(f"{args.seed}/{image['filename']}")
        scene_round = (rng.choice(QUESTIONS["scene"]), f"{image['scene']}。")
        record["conversations"] = turns_of([scene_round])
    return with_split(record, image, args), len(record["conversations"]) // 2


def english_record(image, raws, args):
    """(the record of an image with these sentences, their number in it)."""
    name = image["filename"]
    if args.dedupe:
        raws = distinct(raws)
    elif args.fill:
        raws = filled(raws, args.seed, name)

    record = {"imged_id": name, "caption": "".join(raw + "  " for raw in raws)}
    return with_split(record, image, args), len(raws)


def with_split(record, image, args):
    """The record with its image's split and address, unless --no-split leaves both out."""
    for key, name in (("split", "split"), ("address", "url")):
        if key in image and not args.no_split:
            record[name] = image[key]
    return record


def main(argv=None):
    parser = make_parser(__doc__)
    args = parser.parse_args(argv)
    if args.strict and args.input and not args.dataset:
        parser.error("--strict compares with a known set: name it by --dataset")
    inputs = len(args.input or [None])
    if inputs > 1 and not (args.output or args.dataset):
        parser.error(f"{inputs} inputs are merged into one file: name it by --output")
    if args.images and not args.split:
        parser.error("--images is where --split finds the images: give --split as well")
    return run_stage(__file__, transform, args)


if __name__ == "__main__":
    sys.exit(main())
