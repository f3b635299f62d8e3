"""Facts about the known caption sets: images, splits, file names, image size, source, licence.

A number that could not be verified is None and is not checked. data/README.md shows the same
table. A set of one's own needs no entry: give --input.
"""

import re
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
# other words for them; restval, the part of COCO's val that Karpathy's split left over, is used as
# training data by all
SPELLINGS = {
    "training": "train",
    "restval": "train",
    "validation": "val",
    "valid": "val",
    "testing": "test",
}
# of an image that a layout has read: the key that its captions have there, for messages
CAPTIONS_UNDER = "captions under"
RSICD_PAGE = "the RSICD_optimal project page on GitHub (201528014227051/RSICD_optimal)"


@dataclass(frozen=True)
class CaptionSet:
    """One published caption set."""

    # images in all
    images: int | None
    # images in train, val, test
    splits: tuple | None
    # per image
    sentences: int
    # regular expression of a file name; "": any
    names: str
    # such a file name
    example: str
    # width, height of an image in pixels
    size: tuple | None
    # how many pixels a side may differ
    tolerance: int
    # who wrote the sentences
    captions: str
    # where the images come from and what they may be used for
    licence: str
    # where to get it
    source: str

    def mismatches(self, splits):
        """What does not fit the whole set: ["val 56 (expected 58)", ...].

        splits: {split: images}.
        """
        expected = {"images": self.images}
        expected.update(zip(SPLITS, self.splits or ()))
        seen = {"images": sum(splits.values()), **splits}

        found = []
        for key, count in expected.items():
            if count is not None and seen.get(key, 0) != count:
                found.append(f"{key} {seen.get(key, 0)} (expected {count})")
        return found

    def fits_name(self, name):
        return not self.names or re.fullmatch(self.names, name) is not None

    def fits_size(self, size):
        """size: width, height in pixels."""
        if self.size is None:
            return True
        return all(abs(a - b) <= self.tolerance for a, b in zip(size, self.size))


CAPTION_SETS = {
    "Sydney": CaptionSet(
        images=613,
        splits=(497, 58, 58),
        sentences=5,
        names=r"\d+\.tif",
        example="1.tif",
        size=(500, 500),
        tolerance=0,
        captions="Qu et al. 2016",
        licence="Google Earth; research use",
        source=RSICD_PAGE,
    ),
    "UCM": CaptionSet(
        images=2100,
        splits=(1680, 210, 210),
        sentences=5,
        names=r"\d+\.tif",
        example="1.tif",
        # the files have sides of 242 to 257 pixels
        size=(256, 256),
        tolerance=16,
        captions="Qu et al. 2016",
        licence="USGS; public domain",
        source=RSICD_PAGE,
    ),
    "RSICD": CaptionSet(
        images=10921,
        splits=(8734, 1094, 1093),
        sentences=5,
        names=r"(\w+_)?\d+\.jpg",
        example="airport_1.jpg",
        size=(224, 224),
        tolerance=0,
        captions="Lu et al. 2017",
        licence="Google Earth, Baidu Map, MapABC, Tianditu; research use",
        source=RSICD_PAGE,
    ),
    "NWPU": CaptionSet(
        images=31500,
        splits=None,
        sentences=5,
        names=r"\w+/\w+_\d{3}\.jpg",
        example="airplane/airplane_001.jpg",
        size=(256, 256),
        tolerance=0,
        captions="Cheng et al. 2022",
        licence="Google Earth (NWPU-RESISC45); no licence stated",
        source="the NWPU-Captions page on GitHub (HaiyanHuang98/NWPU-Captions)",
    ),
    "RSITMD": CaptionSet(
        images=4743,
        splits=None,
        sentences=5,
        names="",
        example="",
        size=(256, 256),
        tolerance=0,
        captions="Yuan et al. 2021",
        licence="see its page; no licence stated",
        source="the RSITMD page on GitHub (xiaoyuan1996/AMFMN, folder RSITMD)",
    ),
    "demo": CaptionSet(
        images=None,
        splits=None,
        sentences=5,
        names=r"\w+_(train|val|test)_\d{3,}\.tif",
        example="river_test_000.tif",
        size=(128, 128),
        tolerance=0,
        captions="data/synthetic/demo_scenes.py",
        licence="drawn by data/synthetic/demo_scenes.py; licence of this repository",
        source="data/synthetic/demo_scenes.py",
    ),
}


def looks_like(splits):
    """The name of the known set that has exactly these images per split, or None."""
    for name, known in CAPTION_SETS.items():
        if known.splits and not known.mismatches(splits):
            return name
    return None


def described(splits):
    """{"train": 497, "val": 58, "test": 58} -> "613 images, split 497/58/58"."""
    text = f"{sum(splits.values())} images"
    counts = [splits.get(split, 0) for split in SPLITS]
    if any(counts):
        text += f", split {'/'.join(map(str, counts))}"
    return text


def split_of(text):
    """The split that a text means, in whatever case; the text itself if it is none."""
    word = str(text).strip().lower()
    word = SPELLINGS.get(word, word)
    return word if word in SPLITS else text


def nwpu_images(data):
    """NWPU-Captions' layout -> [(where, image in the Karpathy layout), ...], or None if it is not.

    data: {class: [{"filename", "split", "raw", "raw_1", ..., "raw_4"}]}; the images of a class lie
    in a folder of its name.
    """
    if not all(isinstance(images, list) for images in data.values()):
        return None
    found = []
    for folder, images in data.items():
        for index, image in enumerate(images):
            found.append((f"{folder} record {index}", _in_folder(folder, image)))
    known = any(isinstance(image, dict) and "raw" in image for _, image in found)
    return found if known else None


def _in_folder(folder, image):
    if not isinstance(image, dict):
        return image
    image = {**image, CAPTIONS_UNDER: "raw"}
    if isinstance(image.get("filename"), str):
        image["filename"] = f"{folder}/{image['filename']}"
    return image


def listed_sentences(image):
    """What an image has under `sentences` or, as in NWPU-Captions, under raw, raw_1, ...; or None.

    [{"raw": text}, ...] where it is as it should be.
    """
    if "sentences" in image or "raw" not in image:
        return image.get("sentences")
    keys = [key for key in image if key == "raw" or key.startswith("raw_")]
    return [{"raw": image[key]} for key in keys]
