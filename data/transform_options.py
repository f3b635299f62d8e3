"""The options of transform.py."""

import argparse
from pathlib import Path

from command_line import Parser
from data.caption_sets import SPLITS
from data.layouts import LAYOUTS
from data.set_counts import FILLED
from data.stage import add_path_options, positive


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
        "*_filename.txt; table: CSV or TSV; webdataset: tars; arrow: Parquet, and data sets of "
        "Hugging Face as published or saved to disk; classes: a folder of class folders; "
        "conversations: LLaVA, LLaMA-Factory, ms-swift and our own rows",
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


def make_parser(description):
    parser = Parser(description)
    add_path_options(parser, "captions", "en", several=True)
    add_layout_options(parser.add_argument_group("layout").add_argument)
    add_choice_options(parser.add_argument_group("choice").add_argument)
    add_sentence_options(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of --fill, --sample, --split and the questions of class folders: another seed draws "
        "others (default: %(default)s)",
    )
    return parser


def add_sentence_options(parser):
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
