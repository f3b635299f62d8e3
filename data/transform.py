"""Stage 1: a caption set as distributed (Karpathy layout) -> one English caption per image.

in:  {"images": [{"filename": "1.tif", "split": "train", "sentences": [{"raw": "..."}, ...]}, ...]}, or .jsonl of such images
out: [{"imged_id": "1.tif", "caption": each raw + two spaces, "split": "train"}, ...]

`imged_id` is misspelt in the files published so far; it is kept so that those files and these are interchangeable.
"""
import argparse
import sys
from collections import Counter

from records import (CAPTION_SETS, SOURCE, SPLITS, StageError, add_path_options, checked_records, resolve_paths, run_stage,
                     split_problem, text_problem, write_records)


def image_problem(image):
    sentences = image.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return "expected 'sentences' [{\"raw\": text}, ...], got none"
    for sentence in sentences:
        if not isinstance(sentence, dict):
            return f"expected a sentence {{\"raw\": text}}, got {type(sentence).__name__}"
        if text_problem(sentence, "raw"):
            return text_problem(sentence, "raw")
    return split_problem(image)


def count_mismatches(known, splits, sentences):
    """`known`: an entry of CAPTION_SETS; `splits`: images per split; `sentences`: images per number of sentences."""
    seen = {"images": sum(splits.values()), **{split: splits[split] for split in SPLITS}}
    found = [f"{name} {count} (expected {known[name]})" for name, count in seen.items() if count != known[name]]
    odd = sum(count for number, count in sentences.items() if number != known["sentences"])
    return found + ([f"{odd} images without exactly {known['sentences']} sentences"] if odd else [])


def transform(args):
    resolve_paths(args)
    known = CAPTION_SETS.get(args.dataset, {})
    splits, sentences = Counter(), Counter()

    def english():
        for image in checked_records(args.input, "filename", image_problem):
            splits[image.get("split")] += 1
            sentences[len(image["sentences"])] += 1
            record = {"imged_id": image["filename"], "caption": "".join(s["raw"] + "  " for s in image["sentences"])}
            if "split" in image and not args.no_split:
                record["split"] = image["split"]
            yield record
        mismatches = count_mismatches(known, splits, sentences) if known else []
        if mismatches:  # an archive named UCM has held the 613 images of Sydney: count before anyone trains on it
            message = f"{args.input} is not the whole {args.dataset} set: {', '.join(mismatches)}; check --dataset, or " \
                      f"get the set again from {SOURCE}"
            if args.strict:  # raised while write_records still holds its temporary file, so nothing is written
                raise StageError(message)
            print(f"transform.py: warning: {message}", file=sys.stderr)

    count = write_records(args.output, english())
    parts = ", ".join(f"{split or 'no split'} {number}" for split, number in splits.items())
    print(f"{args.output}: {count} records ({parts}), {sum(n * c for n, c in sentences.items())} sentences")


def main(argv=None):
    parser = argparse.ArgumentParser(description="Join the English sentences of each image into one caption.")
    add_path_options(parser, "captions", "en")
    parser.add_argument("--no-split", action="store_true", help="write the keys imged_id and caption only")
    parser.add_argument("--strict", action="store_true",
                        help="images or sentences that do not fit the counts of --dataset are an error, not a warning")
    args = parser.parse_args(argv)
    if args.strict and args.input and not args.dataset:
        parser.error("--strict compares with a known set: name it by --dataset")
    return run_stage(__file__, transform, args)


if __name__ == "__main__":
    sys.exit(main())
