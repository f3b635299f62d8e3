"""Stage 1: a caption set as distributed (Karpathy layout) -> one English caption per image.

in:  {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]}, or .jsonl of such images
out: [{"imged_id": "1.tif", "caption": each raw + two spaces, "split": "train"}, ...]

`imged_id` is misspelt in the files published so far; it is kept so that those files and these are interchangeable.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.caption_sets import CAPTION_SETS, described, looks_like
from data.records import (
    StageError,
    add_path_options,
    checked_records,
    listed,
    resolve_paths,
    run_stage,
    split_problem,
    text_problem,
    write_records,
)

FILLED = 5  # sentences per image in every known set


def image_problem(image):
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
    """At least FILLED sentences: existing ones are repeated, each once before any twice; seed and name decide which."""
    rng, more = random.Random(f"{seed}/{name}"), []
    while len(raws) + len(more) < FILLED:
        more += rng.sample(raws, min(len(raws), FILLED - len(raws) - len(more)))
    return raws + more


def complaints(args, splits, sentences, names):
    """What does not fit the set that --dataset names, or no such set: [text, ...], in the user's terms."""
    known = CAPTION_SETS[args.dataset]
    found = known.mismatches(splits)
    if found and looks_like(splits):
        found = [f"this looks like {looks_like(splits)}: {described(splits)}", *found]
    odd = sum(count for number, count in sentences.items() if number != known.sentences)
    found += [f"{odd} images without exactly {known.sentences} sentences"] if odd else []
    return found + (
        [f"{len(names)} file names unlike {known.example}: {listed(names)}"] if names else []
    )


def transform(args):
    resolve_paths(args)
    known = CAPTION_SETS[args.dataset] if args.dataset else None
    splits, sentences, names, written = Counter(), Counter(), [], Counter()

    def english():
        for image in checked_records(args.input, "filename", image_problem):
            raws, name = [sentence["raw"] for sentence in image["sentences"]], image["filename"]
            splits[image.get("split")] += 1
            sentences[len(raws)] += 1
            if known and not known.fits_name(name):
                names.append(name)
            if args.dedupe:
                raws = distinct(raws)
            elif args.fill:
                raws = filled(raws, args.seed, name)
            written[len(raws)] += 1
            record = {"imged_id": name, "caption": "".join(raw + "  " for raw in raws)}
            if "split" in image and not args.no_split:
                record["split"] = image["split"]
            yield record
        found = complaints(args, splits, sentences, names) if known else []
        if found:  # an archive named UCM has held the 613 images of Sydney: count before anyone trains on it
            message = (
                f"{args.input} is not the whole {args.dataset} set: {'; '.join(found)}; check --dataset, or "
                f"get the set again from {known.source}"
            )
            if (
                args.strict
            ):  # raised while write_records still holds its temporary file, so nothing is written
                raise StageError(message)
            print(f"transform.py: warning: {message}", file=sys.stderr)

    count = write_records(args.output, english())
    parts = ", ".join(f"{split or 'no split'} {number}" for split, number in splits.items())
    before, after = (
        sum(number * times for number, times in counter.items()) for counter in (sentences, written)
    )
    fewer = sum(times for number, times in written.items() if number < FILLED)
    print(
        f"{args.output}: {count} records ({parts}), {after} sentences"
        + (
            f" ({before - after} of {before} repeated an earlier one and were dropped)"
            if args.dedupe
            else ""
        )
        + (f" ({after - before} of them repeated)" if args.fill else "")
        + (
            f"; {fewer} images have fewer than {FILLED}: --fill repeats some"
            if fewer and not args.dedupe
            else ""
        )
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Join the English sentences of each image into one caption."
    )
    add_path_options(parser, "captions", "en")
    parser.add_argument(
        "--no-split", action="store_true", help="write the keys imged_id and caption only"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="images, splits, sentences or file names that do not fit the "
        "set named by --dataset are an error, not a warning",
    )
    number = parser.add_mutually_exclusive_group()
    number.add_argument(
        "--dedupe",
        action="store_true",
        help="drop sentences that repeat an earlier one of the same image, "
        "before they cost tokens in translation (default: keep all)",
    )
    number.add_argument(
        "--fill",
        action="store_true",
        help=f"repeat sentences of images with fewer than {FILLED} until "
        f"they have {FILLED}, as RSICD's authors did (default: leave them)",
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
