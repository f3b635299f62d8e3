"""Stage 3: Chinese descriptions + images -> the rows that fine-tuning reads.

in:  [{"imged_id": "1.tif", "caption": Chinese, "split": optional}, ...] and the image folder
out: [{"img": "images/1.tif", "prompt": question, "label": Chinese}, ...] in one file and, where splits are known, the same
     rows in NAME-train, NAME-val and NAME-test beside it
"""
import argparse
import os
import struct
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from records import (PROJECT, SPLITS, StageError, add_path_options, caption_records, checked_records, listed, resolve_paths,
                     run_stage, split_problem, text_problem, write_records)

# what Pillow raises on a damaged file (a bomb: sizes that cannot be true, or a whole mosaic of 180 megapixels)
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
BATCH = 1024  # images handed to the threads at a time, so that a long .jsonl is never held as a whole


def image_problem(img, folders):
    """None if the image of a row loads, else ("missing" or "unreadable", text). An absolute `img` ignores `folders`."""
    path = next((folder / img for folder in folders if (folder / img).is_file()), None)
    if path is None:
        return "missing", img
    try:
        with Image.open(path) as image:
            image.load()
    except DAMAGED as error:
        return "unreadable", f"{path} ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    return None


def check_images(imgs, total, folders):
    """Open every image; StageError names all that are missing or unreadable."""
    problems = {"missing": [], "unreadable": []}
    imgs = iter(imgs)
    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=total, unit="image", disable=None) as bar:
        while batch := list(islice(imgs, BATCH)):
            for problem in pool.map(lambda img: image_problem(img, folders), batch):
                if problem:
                    problems[problem[0]].append(problem[1])
                bar.update()
    if any(problems.values()):
        # enough names to mend a damaged download in one go; a wrong folder misses all, and five names show that
        parts = [f"{len(names)} of {total} images {kind}: {listed(names, 5 if len(names) == total else 100)}"
                 for kind, names in problems.items() if names]
        tried = f"looked {', then '.join(f'in {folder}' for folder in folders)}" if problems["missing"] else ""
        raise StageError("; ".join(filter(None, [*parts, tried, "check --image-root, or replace the files"])))


def read_splits(path):
    """{file name: split} of a caption set; its other keys do not matter here."""
    images = checked_records(path, "filename", lambda image: text_problem(image, "split") or split_problem(image))
    return {image["filename"]: image["split"] for image in images}


def generate(args):
    resolve_paths(args)
    splits = read_splits(args.captions) if args.captions else {}

    def split_of(record):
        return record.get("split") or splits.get(record["imged_id"])

    def image_of(record):
        return f"{args.image_root}/{record['imged_id']}"

    def rows(split=None):
        for record in caption_records(args.input):
            if split is None or split_of(record) == split:
                yield {"img": image_of(record), "prompt": args.prompt, "label": record["caption"]}

    counts, unsplit = Counter(), []
    for record in caption_records(args.input):
        counts[split_of(record)] += 1
        if split_of(record) is None:
            unsplit.append(record["imged_id"])
    total = sum(counts.values())
    if unsplit and (args.captions or len(unsplit) < total):  # such rows would silently be in none of the split files
        raise StageError(f"{len(unsplit)} of {total} records have no split: {listed(unsplit)}; "
                         + (f"{args.captions} does not name them" if args.captions else "give --captions"))
    if not args.no_image_check:
        folders = list(dict.fromkeys((args.output.parent.absolute(), PROJECT)))
        if os.path.isabs(args.image_root):
            folders = [Path(args.image_root)]
        check_images(map(image_of, caption_records(args.input)), total, folders)

    print(f"{args.output}: {write_records(args.output, rows())} rows")
    for split in SPLITS:
        path = args.output.with_name(f"{args.output.stem}-{split}{args.output.suffix}")
        if counts[split]:
            print(f"{path}: {write_records(path, rows(split))} rows")
        else:
            path.unlink(missing_ok=True)  # of an earlier run: its rows are no longer in the whole


def main(argv=None):
    parser = argparse.ArgumentParser(description="Pair each image with a question and its Chinese description.")
    add_path_options(parser, "zh", "prompt")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="the caption set as distributed (dataset.json): gives "
                        "their split to records without one (default: records keep what they have)")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--prompt", default="这张遥感图像展现了什么场景？", help="question of every row (default: %(default)s)")
    rows.add_argument("--image-root", default="images", help="folder written before each file name; a relative one is looked "
                      "for beside the output, then in the project root (default: %(default)s)")
    rows.add_argument("--no-image-check", action="store_true", help="do not open the images; missing or damaged ones then "
                      "turn up in training")
    args = parser.parse_args(argv)
    for option, text in (("--prompt", args.prompt), ("--image-root", args.image_root)):
        if not text.strip():
            parser.error(f"{option} is empty")
    return run_stage(__file__, generate, args)


if __name__ == "__main__":
    sys.exit(main())
