"""A text file of captions, a line each, and one of file names: AMFMN's RSICD, RSITMD, Sydney, UCM.

train_caps.txt and train_filename.txt: a name a caption, or one for five captions in a row.
"""

import re

from data.faults import Fault
from data.layouts.content import by_image, named_image, split_in, stated_split
from data.records import text_file
from model.errors import UserError

CAPTIONS_EACH = 5
CAPTION_FILES = "*caps.txt"
NAME_WORDS = ("filename", "filenames", "names", "ids")


def recognises(content):
    path = content.path
    return next(path.glob(CAPTION_FILES), None) is not None if path.is_dir() else _is_text(path)


def _is_text(path):
    return path.suffix == ".txt"


def read(content):
    files = [content.path]
    if content.path.is_dir():
        files = sorted(content.path.glob(CAPTION_FILES))
    if not files:
        raise UserError(f"{content.path} has no {CAPTION_FILES}: name the file of captions")
    pairs = [(file, _names_of(file)) for file in files]

    def rows():
        for captions, names in pairs:
            yield from _rows(captions, names)

    return by_image(rows)


def _names_of(file):
    """The file of names beside one of captions. Raises UserError."""
    tried = [re.sub(r"cap(?:s|tions?)$", word, file.stem) + ".txt" for word in NAME_WORDS]
    for name in tried:
        if name != file.name and file.with_name(name).is_file():
            return file.with_name(name)
    raise UserError(
        f"{file}: the file names of its captions are missing; expected {tried[0]} beside it "
        "(train_caps.txt goes with train_filename.txt), a name a line"
    )


def _rows(captions_file, names_file):
    captions, names = _lines(captions_file), _lines(names_file)
    each = 1 if len(names) == len(captions) else CAPTIONS_EACH
    if len(captions) != each * len(names):
        seen = f"{len(captions)} captions, {names_file.name} {len(names)} names"
        kind = f"expected a name for each caption or for {CAPTIONS_EACH} in a row"
        yield captions_file.name, Fault(kind, f", got {seen}")
        return
    for number, name in enumerate(names):
        where = f"{names_file.name} line {number + 1}"
        image = named_image(name.strip(), "the line")
        if isinstance(image, Fault):
            yield where, image
            continue
        own = captions[number * each : (number + 1) * each]
        image["sentences"] = [{"raw": caption} for caption in own]
        yield where, stated_split(image, {"split": split_in(captions_file.stem)})


def _lines(path):
    """The lines of a text file; one that is empty is an empty caption. Raises UserError."""
    with text_file(path) as file:
        lines = file.read().split("\n")
    return lines[:-1] if lines[-1] == "" else lines
