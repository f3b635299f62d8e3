"""Stage 1: a caption set as distributed (Karpathy layout) -> one English caption per image.

in:  {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]},
     or .jsonl of such images
out: [{"imged_id": "1.tif", "caption": each raw + two spaces, "split": "train"}, ...]

`imged_id` is misspelt in the files published so far; it is kept so that those files and these are
interchangeable.
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import Parser
from data.caption_sets import CAPTION_SETS, described, looks_like
from data.records import checked_records, split_problem, text_problem, write_records
from data.stage import add_path_options, listed, resolve_paths, run_stage
from model.errors import UserError

# sentences per image in every known set
FILLED = 5


def image_problem(image):
    """What is wrong with an image of a caption set, or None."""
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return "expected 'sentences' [{\"raw\": text}, ...], got none"
    for sentence in sentences:
        if not isinstance(sentence, dict):
            return f'expected a sentence {{"raw": text}}, got {type(sentence).__name__}'
        if text_problem(sentence, "raw"):
            return text_problem(sentence, "raw")
    return split_problem(image)


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
        # images per split, and per number of sentences read and written
        self.splits, self.sentences, self.written = Counter(), Counter(), Counter()
        self.odd_names = []

    def add(self, image, written):
        """written: number of sentences that its record has."""
        self.splits[image.get("split")] += 1
        self.sentences[len(image["sentences"])] += 1
        self.written[written] += 1
        if self.known and not self.known.fits_name(image["filename"]):
            self.odd_names.append(image["filename"])

    def mismatches(self):
        """What does not fit the known set, in the user's terms."""
        found = self.known.mismatches(self.splits)
        if found and looks_like(self.splits):
            found.insert(0, f"this looks like {looks_like(self.splits)}: {described(self.splits)}")

        odd = sum(self.sentences.values()) - self.sentences[self.known.sentences]
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
        parts = ", ".join(f"{split or 'no split'} {n}" for split, n in self.splits.items())
        before = sum(number * images for number, images in self.sentences.items())
        after = sum(number * images for number, images in self.written.items())
        fewer = sum(images for number, images in self.written.items() if number < FILLED)

        text = f"{sum(self.splits.values())} records ({parts}), {after} sentences"
        if args.dedupe:
            text += f" ({before - after} of {before} repeated an earlier one and were dropped)"
        if args.fill:
            text += f" ({after - before} of them repeated)"
        if fewer and not args.dedupe:
            text += f"; {fewer} images have fewer than {FILLED}: --fill repeats some"
        return text


def transform(args):
    resolve_paths(args)
    known = CAPTION_SETS[args.dataset] if args.dataset else None
    counts = Counts(known)

    def english():
        for image in checked_records(args.input, "filename", image_problem):
            record, number = english_record(image, args)
            counts.add(image, number)
            yield record
        # raised while write_records still holds its temporary file, so nothing is written
        if known:
            compare(counts, args)

    write_records(args.output, english())
    print(f"{args.output}: {counts.summary(args)}")


def english_record(image, args):
    """(the record of an image, its number of sentences)."""
    name, raws = image["filename"], [sentence["raw"] for sentence in image["sentences"]]
    if args.dedupe:
        raws = distinct(raws)
    elif args.fill:
        raws = filled(raws, args.seed, name)

    record = {"imged_id": name, "caption": "".join(raw + "  " for raw in raws)}
    if "split" in image and not args.no_split:
        record["split"] = image["split"]
    return record, len(raws)


def compare(counts, args):
    """Warn where the input is not the whole known set; with --strict raise UserError.

    An archive named UCM has held the 613 images of Sydney: count before anyone trains on it.
    """
    found = counts.mismatches()
    if not found:
        return
    message = (
        f"{args.input} is not the whole {args.dataset} set: {'; '.join(found)}; "
        f"check --dataset, or get the set again from {counts.known.source}"
    )
    if args.strict:
        raise UserError(message)
    print(f"transform.py: warning: {message}", file=sys.stderr)


def main(argv=None):
    parser = Parser(__doc__)
    add_path_options(parser, "captions", "en")
    parser.add_argument(
        "--no-split", action="store_true", help="write the keys imged_id and caption only"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="images, splits, sentences or file names that do not fit the set named by --dataset "
        "are an error, not a warning",
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
        help="of --fill: another seed repeats others (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if args.strict and args.input and not args.dataset:
        parser.error("--strict compares with a known set: name it by --dataset")
    return run_stage(__file__, transform, args)


if __name__ == "__main__":
    sys.exit(main())
