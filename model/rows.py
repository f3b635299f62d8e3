"""Training rows: a JSON of image-text pairs or dialogues -> samples -> padded batches.

A dialogue becomes one sample per round: earlier rounds stand in its prompt (where they are read, not trained), the loss
lies on its own answer. Images are read when a sample is asked for, never all at once.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from model.errors import UserError
from model.files import read_json
from model.images.reading import read_image
from model.visualglm.loading import PROJECT

ROW_FORMS = '{"img", "prompt", "label"} or {"img", "conversations": [{"role", "content"}, ...]}'
QUESTION_FORMS = (
    '{"img", "prompt"}, {"img"} or {"img", "conversations": [{"role", "content"}, ...]}'
)
SHOWN = 5  # problems named in one message


@dataclass(frozen=True)
class Sample:
    image: Path | str | None  # an address is a str
    question: str
    answer: str | None
    history: tuple = ()


def _rounds(row, answered=True):
    """One row -> its (question, answer) pairs; without `answered` the last answer may be None. Raises ValueError."""
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object")
    if not isinstance(row.get("img") or "", str):
        raise ValueError(f"img must be a path, got {row['img']}")
    if "conversations" not in row:
        pair = row.get("prompt"), row.get("label")
        needed = pair if answered else () if pair[0] is None and row.get("img") else pair[:1]
        if not all(isinstance(text, str) and text.strip() for text in needed):
            raise ValueError(
                f"has keys {', '.join(row) or 'none'}; prompt and label must be non-empty texts"
            )
        return [pair]
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns or answered and len(turns) % 2:
        raise ValueError("conversations must be a list of user and assistant turns")
    for turn, role in zip(turns, ("user", "assistant") * len(turns)):
        if (
            not isinstance(turn, dict)
            or turn.get("role") != role
            or not str(turn.get("content") or "").strip()
        ):
            raise ValueError(
                f"conversations must alternate user, assistant with content; expected {role}, got {turn}"
            )
    return [(q["content"], a and a["content"]) for q, a in zip_longest(turns[::2], turns[1::2])]


def find_image(name, row_file, image_root=None, missing_ok=False):
    """A row's `img` -> path. A relative one is looked for beside the rows, then under the project, or only under
    image_root when given. Raises ValueError that names the paths tried; with missing_ok, returns the first of them."""
    name = Path(name)
    roots = [Path(image_root)] if image_root else [Path(row_file).parent, PROJECT]
    tried = [name] if name.is_absolute() else [root / name for root in roots]
    for path in tried:
        if path.is_file():
            return path
    if missing_ok:
        return tried[0]
    raise ValueError(f"image not found at {' or '.join(map(str, tried))}")


def load_rows(path, image_root=None, questions=False):
    """Read and check a row file -> list of Sample, one a round. Raises UserError that lists what is wrong, by row.

    questions: the rows are only to be answered. Then it is one Sample a row, of a dialogue its last question; answers may
    be absent, and prompts, too (None); an img may be an http(s) address, and one that is not found spoils its own row
    only, where it is read.
    """
    path, forms = Path(path), QUESTION_FORMS if questions else ROW_FORMS
    if path.suffix == ".jsonl":
        try:
            rows = [
                json.loads(line)
                for line in path.read_text(encoding="utf-8-sig").split("\n")
                if line.strip()
            ]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"rows {path}: not readable as JSON lines ({error})") from None
    else:
        rows = read_json(path, "rows")
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"rows {path}: expected a list of {forms}, got "
            f"{'an empty list' if rows == [] else type(rows).__name__}; make it with data/generate_prompt.py"
        )
    samples, problems = [], []
    for index, row in enumerate(rows):
        try:
            rounds, name = _rounds(row, answered=not questions), row.get("img")
            if not name or questions and "://" in name:
                image = name or None
            else:
                image = find_image(name, path, image_root, missing_ok=questions)
            samples += [Sample(image, q, a, tuple(rounds[:i])) for i, (q, a) in enumerate(rounds)][
                -1 if questions else 0 :
            ]
        except ValueError as error:
            problems.append(f"row {index}: {error}")
    _report(path, problems, len(rows), f"expected {forms}")
    return samples


def swap_images(samples, seed):
    """The same questions and answers, each with another sample's picture."""
    shown = [i for i, s in enumerate(samples) if s.image]
    random.Random(seed).shuffle(shown)
    swapped = list(samples)
    for k, i in enumerate(shown):
        others = (samples[shown[(k + step) % len(shown)]].image for step in range(1, len(shown)))
        swapped[i] = replace(
            samples[i], image=next((o for o in others if o != samples[i].image), samples[i].image)
        )
    return swapped


def check_images(samples, source, bands=None, workers=8):
    """Open and decode every picture once, before hours of work hang on it. Raises UserError; returns how many.

    bands: see read_image.
    """
    paths = sorted({sample.image for sample in samples if sample.image})

    def problem(path):
        try:
            read_image(path, bands)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        problems = [found for found in pool.map(problem, paths) if found]
    _report(source, problems, len(paths), "mend or remove these pictures and make the rows again")
    return len(paths)


def _report(source, problems, total, advice):
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{source}: {len(problems)} of {total} wrong: {'; '.join(problems[:SHOWN])}{more} ({advice})"
        )
