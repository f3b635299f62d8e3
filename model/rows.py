"""Rows: a JSON of image-text pairs or dialogues -> samples, for training and for answering.

A dialogue becomes one sample per round: earlier rounds stand in its prompt (where they are read,
not trained), the loss is on its own answer. Images are read where a sample is used, never all at
once.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from model.errors import UserError
from model.files import PROJECT, read_json
from model.images import blank_image, read_image

ROW_FORMS = '{"img", "prompt", "label"} or {"img", "conversations": [{"role", "content"}, ...]}'
QUESTION_FORMS = (
    '{"img", "prompt"}, {"img"} or {"img", "conversations": [{"role", "content"}, ...]}'
)
SHOWN = 5  # problems named in one message
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


def load_rows(path, image_root=None, questions=False):
    """Read and check a row file -> list of Sample, one a round.

    questions: the rows are only to be answered. Then it is one Sample a row, of a dialogue its last
    question; answers may be absent, and prompts, too (None); an img may be an http(s) address, and
    one that is not found spoils its own row only, where it is read.
    Raises UserError that lists what is wrong, by row.
    """
    path = Path(path)
    forms = QUESTION_FORMS if questions else ROW_FORMS
    rows = _read(path, forms)
    samples, problems = [], []
    for index, row in enumerate(rows):
        try:
            samples += _samples(row, path, image_root, questions)
        except ValueError as error:
            problems.append(f"row {index}: {error}")
    _report(path, problems, len(rows), f"expected {forms}")
    return samples


def _read(path, forms):
    if path.suffix == ".jsonl":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"rows {path}: not readable as JSON lines ({error})") from None
    else:
        rows = read_json(path, "rows")
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else type(rows).__name__
        raise UserError(
            f"rows {path}: expected a list of {forms}, got {got}; "
            "make it with data/generate_prompt.py"
        )
    return rows


def _samples(row, path, image_root, questions):
    """The samples of one row. Raises ValueError."""
    rounds = _rounds(row, answered=not questions)
    image = row.get("img") or None
    is_address = questions and image and "://" in image
    if image and not is_address:
        image = find_image(image, path, image_root, missing_ok=questions)

    samples = []
    for index, (question, answer) in enumerate(rounds):
        samples.append(Sample(image, question, answer, tuple(rounds[:index])))
    return samples[-1:] if questions else samples


def _rounds(row, answered=True):
    """One row -> its (question, answer) pairs; not `answered`: the last answer may be None.

    Raises ValueError.
    """
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object")
    if not isinstance(row.get("img") or "", str):
        raise ValueError(f"img must be a path, got {row['img']}")
    if "conversations" in row:
        return _rounds_of_dialogue(row["conversations"], answered)

    prompt, label = row.get("prompt"), row.get("label")
    if answered:
        needed = [prompt, label]
    elif prompt is None and row.get("img"):
        needed = []
    else:
        needed = [prompt]
    if not all(_is_text(text) for text in needed):
        keys = ", ".join(row) or "none"
        raise ValueError(f"has keys {keys}; prompt and label must be non-empty texts")
    return [(prompt, label)]


def _is_text(value):
    """Whether it is text with anything in it, which UTF-8 can store (half a surrogate cannot)."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rounds_of_dialogue(turns, answered):
    if not isinstance(turns, list) or not turns or (answered and len(turns) % 2):
        raise ValueError("conversations must be a list of user and assistant turns")
    for index, turn in enumerate(turns):
        role = ("user", "assistant")[index % 2]
        fits = isinstance(turn, dict) and turn.get("role") == role
        if not fits or not _is_text(turn.get("content")):
            raise ValueError(
                "conversations must alternate user, assistant with content; "
                f"expected {role}, got {turn}"
            )
    contents = [turn["content"] for turn in turns]
    return list(zip_longest(contents[::2], contents[1::2]))


def find_image(name, row_file, image_root=None, missing_ok=False):
    """A row's `img` -> path.

    A relative one is looked for beside the rows, then under the project, or only under image_root
    where that is given. Raises ValueError that names the paths tried; with missing_ok, returns the
    first of them.
    """
    name = Path(name)
    roots = [Path(image_root)] if image_root else [Path(row_file).parent, PROJECT]
    tried = [name] if name.is_absolute() else [root / name for root in roots]
    for path in tried:
        try:
            if path.is_file():
                return path
        except OSError as error:  # a name that no file system takes
            raise ValueError(f"image {str(name)[:60]}...: {error.strerror}") from None
    if missing_ok:
        return tried[0]
    raise ValueError(f"image not found at {' or '.join(map(str, tried))}")


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
    problems = [text for text in found if text]
    _report(source, problems, len(paths), "repair or remove these images and make the rows again")
    return len(paths)


def _report(source, problems, total, advice):
    if not problems:
        return
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    shown = "; ".join(problems[:SHOWN])
    raise UserError(f"{source}: {len(problems)} of {total} wrong: {shown}{more} ({advice})")
