"""Facts about the known caption sets, in one place: images, splits, file names, picture size, where from, licence.

A number that could not be verified is None and is not checked. data/README.md shows the same table. A set of one's own needs
no entry: give --input.
"""

import re
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
RSICD_PAGE = "the RSICD_optimal project page on GitHub (201528014227051/RSICD_optimal)"


@dataclass(frozen=True)
class CaptionSet:
    images: int | None  # in all
    splits: tuple | None  # images in train, val, test
    sentences: int  # per image
    names: str  # regular expression of a file name; "": any
    example: str  # such a name
    size: tuple | None  # width, height of a picture in pixels
    tolerance: int  # how many pixels a side may differ (UCM: 242 to 257 instead of 256)
    captions: str  # who wrote the sentences
    licence: str  # where the pictures come from and what they may be used for
    source: str  # where to get it

    def mismatches(self, splits):
        """`splits`: images per split -> ["val 56 (expected 58)", ...], what does not fit; empty for the whole set."""
        expected = {"images": self.images, **dict(zip(SPLITS, self.splits or ()))}
        seen = {"images": sum(splits.values()), **splits}
        return [
            f"{key} {seen.get(key, 0)} (expected {count})"
            for key, count in expected.items()
            if count is not None and seen.get(key, 0) != count
        ]

    def fits_name(self, name):
        return re.fullmatch(self.names, name) is not None if self.names else True

    def fits_size(self, size):
        return self.size is None or all(
            abs(a - b) <= self.tolerance for a, b in zip(size, self.size)
        )


CAPTION_SETS = {
    "Sydney": CaptionSet(
        613,
        (497, 58, 58),
        5,
        r"\d+\.tif",
        "1.tif",
        (500, 500),
        0,
        "Qu et al. 2016",
        "Google Earth; research use",
        RSICD_PAGE,
    ),
    "UCM": CaptionSet(
        2100,
        (1680, 210, 210),
        5,
        r"\d+\.tif",
        "1.tif",
        (256, 256),
        16,
        "Qu et al. 2016",
        "USGS; public domain",
        RSICD_PAGE,
    ),
    "RSICD": CaptionSet(
        10921,
        (8734, 1094, 1093),
        5,
        r"(\w+_)?\d+\.jpg",
        "airport_1.jpg",
        (224, 224),
        0,
        "Lu et al. 2017",
        "Google Earth, Baidu Map, MapABC, Tianditu; research use",
        RSICD_PAGE,
    ),
    "NWPU": CaptionSet(
        31500,
        None,
        5,
        r"\w+/\w+_\d{3}\.jpg",
        "airplane/airplane_001.jpg",
        (256, 256),
        0,
        "Cheng et al. 2022",
        "Google Earth (NWPU-RESISC45); no licence stated",
        "the NWPU-Captions page on GitHub (HaiyanHuang98/NWPU-Captions)",
    ),
    "RSITMD": CaptionSet(
        4743,
        None,
        5,
        "",
        "",
        (256, 256),
        0,
        "Yuan et al. 2021",
        "see its page; no licence stated",
        "the RSITMD page on GitHub (xiaoyuan1996/AMFMN, folder RSITMD)",
    ),
    "demo": CaptionSet(
        None,
        None,
        5,
        r"\w+_(train|val|test)_\d{3,}\.tif",
        "river_test_000.tif",
        (128, 128),
        0,
        "data/synthetic/demo_scenes.py",
        "drawn by data/synthetic/demo_scenes.py; licence of this repository",
        "data/synthetic/demo_scenes.py",
    ),
}


def looks_like(splits):
    """The name of the known set that has exactly these images per split, or None."""
    return next(
        (
            name
            for name, known in CAPTION_SETS.items()
            if known.splits and not known.mismatches(splits)
        ),
        None,
    )


def described(splits):
    """{"train": 497, "val": 58, "test": 58} -> "613 images, split 497/58/58"."""
    parts = "/".join(str(splits.get(split, 0)) for split in SPLITS)
    return f"{sum(splits.values())} images" + (
        f", split {parts}" if any(splits.get(split) for split in SPLITS) else ""
    )


def nwpu_images(data):
    """NWPU-Captions' layout -> the others' images, or None if it is not that.

    {class: [{"filename", "split", "raw", "raw_1", ..., "raw_4"}]}; the pictures of a class lie in a folder of its name.
    """
    if not all(
        isinstance(images, list)
        and images
        and all(isinstance(image, dict) and "raw" in image for image in images)
        for images in data.values()
    ):
        return None
    return [
        {
            **image,
            "filename": f"{folder}/{image.get('filename')}",
            "sentences": [
                {"raw": text}
                for key, text in image.items()
                if key == "raw" or key.startswith("raw_")
            ],
        }
        for folder, images in data.items()
        for image in images
    ]
