"""Stage 1: a caption set as distributed -> one English caption per image.

in:  {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]},
     .jsonl of such images, or another layout of data/layouts/: COCO, pairs, tables, tars, folders
out: [{"imged_id": "1.tif", "caption": each raw + two spaces, "split": "train"}, ...]
     or, of what brings its own questions (dialogues, class folders), for generate_prompt.py:
     [{"imged_id": "1.tif", "conversations": [{"role", "content"}, ...], "split": "train"}, ...]

`imged_id` is misspelt in the files published so far; it is kept so that those files and these are
interchangeable.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser
from data.caption_sets import CAPTION_SETS, SPLITS, described, listed_sentences, looks_like
from data.conversation import turns_of
from data.instructions import QUESTIONS
from data.layouts import LAYOUTS, open_files
from data.records import (
    Fault,
    Tally,
    got,
    has_words,
    image_records,
    no_key,
    split_problem,
    write_records,
)
from data.selection import sampled, split_by_content
from data.stage import add_path_options, listed, positive, resolve_inputs, run_stage
from model.errors import UserError

# sentences per image in every known set
FILLED = 5


def image_problem(image):
    """What is wrong with an image of a caption set, or None; `empty` where it has no sentences."""
    expected = "expected 'sentences' [{\"raw\": text}, ...]"
    sentences = listed_sentences(image)
    # they may stand under another name
    if "sentences" not in image and sentences is None and set(image) - {"filename", "split"}:
        return no_key(image, "sentences")
    if sentences is None or sentences == []:
        return split_problem(image) or Fault(expected, ", got none", empty=True)
    if not isinstance(sentences, list):
        return Fault(expected, f", got {type(sentences).__name__}")

    for sentence in sentences:
        problem = sentence_problem(sentence)
        if problem:
            return problem
    return split_problem(image)


def sentence_problem(sentence):
    """What is wrong with a sentence, or None; one without words is none of it."""
    if sentence is None:
        return None
    if not isinstance(sentence, dict):
        return Fault('expected a sentence {"raw": text}', f", got {type(sentence).__name__}")
    if "raw" not in sentence:
        if "tokens" not in sentence:
            return no_key(sentence, "raw")
        if sentence["tokens"] is not None and not are_tokens(sentence["tokens"]):
            return got("a list of words in 'tokens'", sentence["tokens"])
    elif sentence["raw"] is not None and not isinstance(sentence["raw"], str):
        return got("text in 'raw'", sentence["raw"])
    return None


def are_tokens(value):
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def sentences_of(image):
    """The texts of those of its sentences that have words, as they stand."""
    texts = map(text_of, listed_sentences(image) or [])
    return [text for text in texts if has_words(text)]


def text_of(sentence):
    """Its `raw`, or its tokens separated by spaces; "" for null."""
    if sentence is None:
        return ""
    if "raw" in sentence:
        return sentence["raw"] or ""
    return " ".join(sentence["tokens"] or [])


def caption_set(path, problem_of=image_problem, notes=None):
    """The images of a caption set in any layout; `sentences_of` gives what they say.

    See image_records. Raises UserError.
    """
    files = open_files([path], notes=notes)
    if not files.has_captions:
        raise UserError(f"{path} has questions and answers, no captions: name a caption set")
    return images_of(files, problem_of, notes)


def images_of(files, problem_of=image_problem, notes=None):
    """The images of CaptionFiles, checked; see image_records. Raises UserError."""
    if not files.has_captions:
        problem_of = split_problem
    return image_records(
        files.name,
        "filename",
        problem_of,
        unique=files.has_captions,
        notes=notes,
        read=files.read,
    )


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


class Counts:
    """What a caption set holds and what was written of it."""

    def __init__(self, known):
        # the CaptionSet that --dataset names, or None
        self.known = known
        self.has_captions = True
        # images per split, of the set and of what is written
        self.splits, self.records = Counter(), Counter()
        # images per number of sentences: in the set; of what is written, with words and written
        self.listed, self.worded, self.written = Counter(), Counter(), Counter()
        self.odd_names = []
        # what was read although it is spelled otherwise
        self.notes = Tally()
        self.faults = Tally()
        self.wordless = 0
        # hashes of names in lower case
        self.names = set()

    def add(self, image):
        """Returns whether there is anything to write of it."""
        self.splits[image.get("split")] += 1
        if not self.has_captions:
            return True
        name, listed_ = image["filename"], len(listed_sentences(image) or [])
        worded = len(sentences_of(image))
        self.listed[listed_] += 1
        self.wordless += listed_ - worded
        if not worded:
            self.faults.add("left out, as no sentence of theirs has words", repr(name))
        elif worded < listed_:
            self.faults.add("left with fewer sentences", repr(name))
        self._add_name(name)
        return worded > 0

    def _add_name(self, name):
        folded = hash(name.casefold())
        if folded in self.names:
            kind = "named like an earlier one but for case, so one file on Windows and macOS"
            self.faults.add(kind, repr(name))
        self.names.add(folded)
        if self.known and not self.known.fits_name(name):
            self.odd_names.append(name)

    def add_record(self, image, number):
        """number: how many sentences or rounds its record has."""
        self.records[image.get("split")] += 1
        self.worded[len(sentences_of(image))] += 1
        self.written[number] += 1

    def complaint(self):
        """What is wrong with sentences and names; "" for nothing."""
        parts = self.faults.lines("images")
        if self.wordless:
            what = "without words (blank, null or only punctuation)"
            parts.insert(0, f"{self.wordless} sentences {what} dropped")
        return "; ".join(parts)

    def mismatches(self):
        """What does not fit the known set, in the user's terms."""
        found = self.known.mismatches(self.splits)
        if found and looks_like(self.splits):
            found.insert(0, f"this looks like {looks_like(self.splits)}: {described(self.splits)}")

        odd = sum(self.listed.values()) - self.listed[self.known.sentences]
        if odd:
            found.append(f"{odd} images without exactly {self.known.sentences} sentences")
        if self.odd_names:
            found.append(
                f"{len(self.odd_names)} file names unlike {self.known.example}: "
                f"{listed(self.odd_names)}"
            )
        return found

    def summary(self, args):
        """The counts as one text: "3 records (train 2, val 1), 15 sentences"."""
        parts = ", ".join(f"{split or 'no split'} {n}" for split, n in self.records.items())
        before = sum(number * images for number, images in self.worded.items())
        after = sum(number * images for number, images in self.written.items())
        fewer = sum(images for number, images in self.written.items() if number < FILLED)
        if not self.has_captions:
            return f"{sum(self.records.values())} records ({parts}), {after} rounds"

        text = f"{sum(self.records.values())} records ({parts}), {after} sentences"
        if args.dedupe:
            text += f" ({before - after} of {before} repeated an earlier one and were dropped)"
        if args.fill:
            text += f" ({after - before} of them repeated)"
        if fewer and not args.dedupe:
            text += f"; {fewer} images have fewer than {FILLED}: --fill repeats some"
        return text


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

    def records():
        for image in images_of(files, notes=counts.notes):
            if counts.add(image) and choice.keeps(image):
                image = choice.with_split(image)
                record, number = record_of(image, args)
                counts.add_record(image, number)
                yield record
        # raised while write_records still holds its temporary file, so nothing is written
        complain(counts, files.name, args)

    write_records(args.output, records())
    print(f"{args.output}: {counts.summary(args)}")


class Choice:
    """What --sample and --split make of a set: read once before, to know all its images."""

    def __init__(self, opened, args):
        self.names = self.splits = None
        if not args.sample and not args.split:
            return
        files = opened()
        names, with_split = {}, []
        for image in images_of(files):
            if files.has_captions and not sentences_of(image):
                continue
            names[image["filename"]] = None
            if "split" in image:
                with_split.append(image["filename"])
        if args.split and with_split:
            raise UserError(
                f"{files.name} has splits of its own ({len(with_split)} images, such as "
                f"{with_split[0]}): leave --split out"
            )
        if args.sample:
            self.names = sampled(names, args.sample, args.seed)
            names = [name for name in names if name in self.names]
        if args.split:
            folder = args.images or files.folder
            self.splits = split_by_content(names, folder, args.split, args.seed)

    def keeps(self, image):
        return self.names is None or image["filename"] in self.names

    def with_split(self, image):
        if self.splits is None:
            return image
        return {**image, "split": self.splits[image["filename"]]}


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


def complain(counts, name, args):
    """Say what was read otherwise, and warn of what is wrong; with --strict raise UserError.

    UserError as well where no sentence is left.
    """
    for line in counts.notes.lines("images with" if counts.has_captions else "rows with"):
        print(f"transform.py: {line}", file=sys.stderr)
    complaints = []
    if counts.complaint():
        complaints.append(f"{name}: {counts.complaint()}")
    if not counts.records:
        raise UserError(f"{complaints[0]}; no image is left: give a file with captions")

    if counts.known:
        complaints += not_the_whole_set(counts, name, args)
    if args.strict and complaints:
        raise UserError("; ".join(complaints))
    for complaint in complaints:
        print(f"transform.py: warning: {complaint}", file=sys.stderr)


def not_the_whole_set(counts, name, args):
    """[what does not fit the known set], or [].

    An archive named UCM has held the 613 images of Sydney: count before anyone trains on it.
    """
    found = counts.mismatches()
    if not found:
        return []
    message = (
        f"{name} is not the whole {args.dataset} set: {'; '.join(found)}; "
        f"check --dataset, or get the set again from {counts.known.source}"
    )
    return [message]


def shares_of(text):
    """A type of argparse: "80/10/10" -> [80, 10, 10], percent of train, val and test."""
    parts = text.split("/")
    shares = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if len(shares) != len(parts) or len(shares) != len(SPLITS) or sum(shares) != 100:
        raise argparse.ArgumentTypeError(f"{text}: expected percents such as 80/10/10, 100 in all")
    return shares


def add_layout_options(add):
    add(
        "--layout",
        choices=LAYOUTS,
        help="layout of the input (default: by what it holds); coco: images and annotations; "
        "pairs: an image and its caption or captions a record; texts: *_caps.txt and "
        "*_filename.txt; table: CSV, TSV or Parquet; webdataset: tars; classes: a folder of class "
        "folders; conversations: LLaVA, LLaMA-Factory, ms-swift and our own rows",
    )
    add(
        "--image-column",
        metavar="NAME",
        help="column or key of the image's path or address (default: the first that is named like "
        "one: filename, path, image, url and the like)",
    )
    add(
        "--caption-column",
        metavar="NAME",
        help="column or key of the caption (default: caption, captions, caption_1 ..., sentence, "
        "text or description)",
    )


def add_choice_options(add):
    add(
        "--sample",
        type=positive,
        metavar="N",
        help="of N images only, drawn by --seed (default: all)",
    )
    add(
        "--split",
        type=shares_of,
        metavar="TRAIN/VAL/TEST",
        help="split a set that has no splits by image, such as 80/10/10 (percent), drawn by "
        "--seed; images with the same bytes are in one split",
    )
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="where --split finds the images (default: the folder images beside the input; of "
        "tars and class folders where they are)",
    )


def main(argv=None):
    parser = Parser(__doc__)
    add_path_options(parser, "captions", "en", several=True)
    add_layout_options(parser.add_argument_group("layout").add_argument)
    add_choice_options(parser.add_argument_group("choice").add_argument)
    parser.add_argument(
        "--no-split", action="store_true", help="write the keys imged_id and caption only"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="images, splits, sentences or file names that do not fit the set named by --dataset, "
        "and sentences without words, are an error, not a warning",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--dedupe",
        action="store_true",
        help="drop sentences that repeat an earlier one of the same image, before they cost tokens "
        "in translation (default: keep all)",
    )
    number.add_argument(
        "--fill",
        action="store_true",
        help=f"repeat sentences of images with fewer than {FILLED} until they have {FILLED}, as "
        "RSICD's authors did (default: leave them)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of --fill, --sample, --split and the questions of class folders: another seed draws "
        "others (default: %(default)s)",
    )
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
