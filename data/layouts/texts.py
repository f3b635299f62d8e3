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
# what the name of a file of captions ends in
CAPTIONS = re.compile(r"cap(?:s|tions?)$", re.I)
NAME_WORDS = ("filename", "filenames", "names", "ids")


def recognises(content):
    path = content.path
    return bool(_caption_files(path)) if path.is_dir() else path.suffix.lower() == ".txt"


def _caption_files(folder):
    return [path for path in sorted(folder.iterdir()) if path.name.lower().endswith("caps.txt")]


def without_names(contents):
    """Those of captions, where the user has given their files of names as well."""
    captions = [content.path for content in contents if CAPTIONS.search(content.path.stem)]
    names = {_names_of(path).resolve() for path in captions if path.is_file()}
    return [content for content in contents if content.path.resolve() not in names]


def read(content):
    files = [content.path]
    if content.path.is_dir():
        files = _caption_files(content.path)
    if not files:
        raise UserError(f"{content.path} has no {CAPTION_FILES}: name the file of captions")
    pairs = [(file, _names_of(file)) for file in files]
    missing = [(file, names) for file, names in pairs if not names.is_file()]
    if missing:
        words = "the file names of its captions are missing; expected"
        seen = [f"{file}: {words} {names.name} beside it" for file, names in missing]
        raise UserError(
            f"{'; '.join(seen)} (train_caps.txt goes with train_filename.txt), a name a line"
        )

    def rows():
        for captions, names in pairs:
            yield from _rows(captions, names)

    return by_image(rows)


def _names_of(file):
    """The file of names beside one of captions, there or not. Raises UserError."""
    if not CAPTIONS.search(file.stem):
        raise UserError(
            f"{file}: a file of captions is called like train_caps.txt, and beside it is "
            "train_filename.txt; name that or the folder"
        )
    stem = CAPTIONS.split(file.stem)[0]
    beside = {path.name.lower(): path for path in file.parent.iterdir()}
    tried = [f"{stem}{word}{file.suffix}" for word in NAME_WORDS]
    found = (beside[name.lower()] for name in tried if name.lower() in beside)
    return next(found, file.with_name(tried[0]))


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
