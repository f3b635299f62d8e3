"""Rows: a JSON of image-text pairs or dialogues -> samples, for training and for answering.

A dialogue becomes one sample per round: earlier rounds stand in its prompt (where they are read,
not trained), the loss is on its own answer. Images are read where a sample is used, never all at
once.
"""

import os
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from model.errors import UserError
from model.files import PROJECT, read_rows, refuse_other_kinds
from model.images import blank_image, exists, is_address, nearby, read_image
from model.row_forms import read_form, shown

ROW_FORMS = '{"img", "prompt", "label"} or {"img", "conversations": [{"role", "content"}, ...]}'
QUESTION_FORMS = (
    '{"img", "prompt"}, {"img"} or {"img", "conversations": [{"role", "content"}, ...]}'
)
ROW_FILES = (
    ".json (an array of rows) or .jsonl (a row a line); other data becomes rows by "
    "data/transform.py, then data/generate_prompt.py"
)
SHOWN = 5  # problems named in one message
# What a Path spells otherwise: // and /./ and Windows' slashes
ODD_PATH = re.compile(r"//|(?:^|/)\.(?:/|$)|/$" if os.sep == "/" else "/")
BLANK = Path("<blank image>")  # a sample's image that `load_image` makes instead of reading it


@dataclass(frozen=True)
class Sample:
    """One question, for training with its answer."""

    image: Path | str | None  # an address is a str
    question: str
    answer: str | None
    history: tuple = ()  # earlier (question, answer) pairs


def load_image(source, bands=None):
    """The image of a sample -> PIL RGB. bands: see read_image. Raises UserError."""
    return blank_image() if source == BLANK else read_image(source, bands)


def load_rows(path, image_root=None, questions=False, notes=None):
    """Read and check a row file (see row_forms.py) -> list of Sample, one a round.

    questions: the rows are only to be answered. Then it is one Sample a row, of a dialogue its last
    question; answers may be absent, and prompts, too (None); an img may be an http(s) address, and
    one that is not found spoils its own row only, where it is read.
    notes: a list that gets a line about each thing that was not read, or that may be missing.
    Raises UserError that lists what is wrong, by row.
    """
    check = RowCheck(path, image_root, questions)
    samples = []
    for place, row in _read(check.path, check.expected):
        samples += check.samples(place, row)
    found = check.finish()
    if notes is not None:
        notes += found
    return samples


class RowCheck:
    """Rows of a file, one after another, -> their samples; `finish` says what was wrong.

    Its memory does not grow with the rows. path, image_root, questions: see load_rows.
    """

    def __init__(self, path, image_root=None, questions=False):
        self.path = Path(path)
        self.image_root = image_root
        self.questions = questions
        self.expected = QUESTION_FORMS if questions else ROW_FORMS
        self.total = 0
        self.problems = Problems()
        self.without = 0  # an image
        self.lost = []  # the first image that a row without one seems to name
        self.lost_count = 0
        self.unused = Counter()

    def samples(self, place, row):
        """The samples of a row, none where it is wrong. place: its name in a message."""
        image, rounds = self.read(place, row)
        return _samples(image, rounds, self.questions)

    def read(self, place, row):
        """(where its image is, as a text or None, rounds) of a row; (None, []) where it is wrong.

        What its samples consist of, for who reads millions and keeps none.
        """
        self.total += 1
        try:
            form = read_form(row, answered=not self.questions)
            image = _place_of_image(form.image, self.path, self.image_root, self.questions)
        except ValueError as error:
            self.problems.add(f"{place}: {error}")
            return None, []
        self.without += form.image is None
        if form.unused:
            self.unused.update(form.unused)
        if form.lost_image:
            self.lost = self.lost or [form.lost_image]
            self.lost_count += 1
        return image, form.rounds

    def finish(self):
        """Lines about keys that were not read and about rows without an image.

        Raises UserError for wrong rows, and where no row has an image although one seems to be
        named.
        """
        self.problems.report(self.path, self.total, f"expected {self.expected}")
        path, total, lost = self.path, self.total, self.lost_count
        if lost and self.without == total:
            raise UserError(
                f"rows {path}: none of {total} rows has an image, though {lost} seem to name one "
                f"({self.lost[0]}): name it under img"
            )

        notes = []
        if self.unused:
            most = self.unused.most_common(SHOWN)
            keys = ", ".join(f"{key} ({count} rows)" for key, count in most)
            notes.append(f"rows {path}: not used: {keys}{_more(len(self.unused))}")
        if self.without:
            notes.append(
                f"rows {path}: {self.without} of {total} rows have no image and are plain text"
            )
        if lost:
            notes.append(
                f"rows {path}: {lost} rows without an image seem to name one ({self.lost[0]}): "
                "name it under img"
            )
        return notes


def _read(path, forms):
    refuse_other_kinds(path, "rows", ROW_FILES)
    rows = read_rows(path, "rows")
    if not rows or rows[0][0] is None:
        got = type(rows[0][1]).__name__ if rows else "an empty list"
        raise UserError(
            f"rows {path}: expected a list of {forms}, got {got}; "
            "make it with data/generate_prompt.py"
        )
    return rows


def samples_of(form, path, image_root=None):
    """The samples of one row to train on, read by row_forms. Raises ValueError."""
    return _samples(_place_of_image(form.image, path, image_root), form.rounds)


def _samples(image, rounds, questions=False):
    """image: see _place_of_image; questions: see load_rows."""
    if image and not is_address(image):
        image = Path(image)
    samples = []
    for index, (question, answer) in enumerate(rounds):
        samples.append(Sample(image, question, answer, tuple(rounds[:index])))
    return samples[-1:] if questions else samples


def _place_of_image(image, path, image_root=None, questions=False):
    """A row's image -> its address, the text of its path, or None. Raises ValueError."""
    if not image or (questions and is_address(image)):
        return image
    if is_address(image):
        raise ValueError(f"img is the address {shown(image)}; save the image to a file, name that")
    return find_image(image, path, image_root, missing_ok=questions)


def _more(count):
    return f" and {count - SHOWN} more" if count > SHOWN else ""


def find_image(name, row_file, image_root=None, missing_ok=False):
    """A row's `img` -> the text of its path.

    A relative one is looked for beside the rows, then under the project, or only under image_root
    where that is given. Raises ValueError that names the paths tried; with missing_ok, returns the
    first of them.
    """
    tried = _places_of(name, row_file, image_root)
    for path in tried:
        try:
            if exists(path):
                return path
        except UserError as error:  # a tar that cannot be read
            raise ValueError(str(error)) from None
        except OSError as error:  # a name that no file system takes
            raise ValueError(f"image {str(name)[:60]}...: {error.strerror}") from None
    if missing_ok:
        return tried[0]
    hint = ""
    other = next(filter(None, (nearby(Path(path)) for path in tried)), None)
    if other:
        hint = f" (there is {other})"
    raise ValueError(f"image not found at {' or '.join(tried)}{hint}")


def _places_of(name, row_file, image_root):
    """Where an `img` may be, as texts in the spelling of a Path, which takes longer than a stat."""
    roots = ("",) if os.path.isabs(name) else _roots(row_file, image_root)
    places = []
    for root in roots:
        place = os.path.join(root, name)
        places.append(str(Path(place)) if ODD_PATH.search(place) else place)
    return places


@lru_cache(16)
def _roots(row_file, image_root):
    return (str(image_root),) if image_root else (os.path.dirname(row_file), str(PROJECT))


def shuffle_images(samples, seed):
    """Image ablation: the same questions and answers, each with another sample's image."""
    shown = [index for index, sample in enumerate(samples) if sample.image]
    random.Random(seed).shuffle(shown)
    shuffled = list(samples)
    for place, index in enumerate(shown):
        own = samples[index].image
        for step in range(1, len(shown)):
            other = samples[shown[(place + step) % len(shown)]].image
            if other != own:
                shuffled[index] = replace(samples[index], image=other)
                break
    return shuffled


def blank_images(samples):
    """Image ablation: the same questions and answers, each with an image of one color."""
    return [replace(sample, image=BLANK) if sample.image else sample for sample in samples]


def check_images(samples, source, bands=None, workers=8, sharded=None):
    """Open and decode every image once, before hours of work depend on it.

    bands: see read_image; sharded: that of training's Processes, None: this process reads all.
    Raises UserError, in the name of `source`; returns how many.
    """
    paths = sorted({sample.image for sample in samples if sample.image})

    def problem(path):
        try:
            read_image(path, bands)
        except UserError as error:
            return str(error)
        return None

    def problems_of(share):
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(problem, share))

    found = sharded(problems_of, paths) if sharded else problems_of(paths)
    problems = Problems()
    for text in filter(None, found):
        problems.add(text)
    problems.report(source, len(paths), "repair or remove these images and make the rows again")
    return len(paths)


class Problems:
    """What is wrong with the items of a source: the first few in words, of all the number."""

    def __init__(self):
        self.count = 0
        self.first = []

    def add(self, text):
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(text)

    def report(self, source, total, advice):
        """Raises UserError if there are any. total: items that were looked at."""
        if not self.count:
            return
        more = f"; and {self.count - SHOWN} more" if self.count > SHOWN else ""
        shown = "; ".join(self.first)
        raise UserError(f"{source}: {self.count} of {total} wrong: {shown}{more} ({advice})")
