"""Training rows: a JSON of image-text pairs or dialogues -> samples -> padded batches.

A dialogue becomes one sample per round: earlier rounds stand in its prompt (where they are read, not trained), the loss
lies on its own answer. Images are read when a sample is asked for, never all at once.
"""
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch

from .checkpoint import PROJECT, read_json
from .dialogue import render
from .errors import UserError
from .images import augment, read_image, to_pixels

ROW_FORMS = '{"img", "prompt", "label"} or {"img", "conversations": [{"role", "content"}, ...]}'
QUESTION_FORMS = '{"img", "prompt"}, {"img"} or {"img", "conversations": [{"role", "content"}, ...]}'
# Words of rows whose pictures must not be turned, and of those that must keep their hues; an English word by its beginning
DIRECTION = re.compile(r"[左右南北横竖斜]|东(?!西)|(?<!东)西|对角|水平|[上下顶底][方部侧边端半角]|"
                       r"(?<![a-z])(?:left|right|north|south|east|west|top|bottom|upper|lower|diagonal|horizontal|vertical)", re.I)
COLOUR = re.compile(r"[红橙黄绿青蓝紫粉棕褐灰黑白金银]|色|(?<![a-z])(?:red|orange|yellow|green|blue|purple|violet|pink|brown|beige|tan(?![a-z])|gold|"
                    r"silver|gr[ae]y|black|whit|cyan|turquoise|colou?r)", re.I)
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
            raise ValueError(f"has keys {', '.join(row) or 'none'}; prompt and label must be non-empty texts")
        return [pair]
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns or answered and len(turns) % 2:
        raise ValueError("conversations must be a list of user and assistant turns")
    for turn, role in zip(turns, ("user", "assistant") * len(turns)):
        if not isinstance(turn, dict) or turn.get("role") != role or not str(turn.get("content") or "").strip():
            raise ValueError(f'conversations must alternate user, assistant with content; expected {role}, got {turn}')
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
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"rows {path}: not readable as JSON lines ({error})") from None
    else:
        rows = read_json(path, "rows")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"rows {path}: expected a list of {forms}, got "
                        f"{'an empty list' if rows == [] else type(rows).__name__}; make it with data/generate_prompt.py")
    samples, problems = [], []
    for index, row in enumerate(rows):
        try:
            rounds, name = _rounds(row, answered=not questions), row.get("img")
            if not name or questions and "://" in name:
                image = name or None
            else:
                image = find_image(name, path, image_root, missing_ok=questions)
            samples += [Sample(image, q, a, tuple(rounds[:i])) for i, (q, a) in enumerate(rounds)][-1 if questions else 0:]
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
        swapped[i] = replace(samples[i], image=next((o for o in others if o != samples[i].image), samples[i].image))
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
        raise UserError(f"{source}: {len(problems)} of {total} wrong: {'; '.join(problems[:SHOWN])}{more} ({advice})")


class RowDataset(torch.utils.data.Dataset):
    """Samples -> {"row": Rendered, "pixels": [3, height, width] or "features": [Q, width]}.

    cache: a filled VisionCache in place of the pictures. lengths and targets: tokens and trained tokens of each row.
    augment: (seed, share) of pictures varied at random, see images.augment; None: as they are. Index i + n * len(dataset) is row i in epoch n, each
    epoch varied otherwise and a resumed one as before. Rows that speak of a direction are not turned, those of colours keep their hues.
    """

    def __init__(self, samples, tokenizer, config, *, max_source=None, max_target=None, english=False, cache=None, augment=None):
        self.samples, self.image_size, self.cache, self.augment = samples, config["eva_args"]["image_size"], cache, augment
        self.rows, self.cut = [], 0
        for s in samples:
            row = render(tokenizer, s.question, s.answer, history=s.history, english=english, max_source=max_source,
                         image_slots=config["image_length"] if s.image else 0, max_target=max_target)
            self.cut += row.cut
            self.rows.append(replace(row, ids=np.array(row.ids, dtype=np.int32)))  # a list of ints takes eight times the memory
        self.lengths = np.array([len(row.ids) for row in self.rows])
        self.targets = np.array([len(row.target_positions) for row in self.rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        sample = self.samples[index % len(self)]
        item, image = {"row": self.rows[index % len(self)]}, sample.image
        if image and self.cache:
            item["features"] = self.cache.read(image)
        elif image:
            picture = read_image(image)
            if self.augment is not None:
                said = "\n".join(chain(*sample.history, (sample.question, sample.answer)))
                seed, share = self.augment
                picture = augment(picture, random.Random(f"{seed} {index}"), share, turn=not DIRECTION.search(said), tint=not COLOUR.search(said))
            item["pixels"] = to_pixels(picture, self.image_size)
        return item


def collate(items):
    """Samples -> the arguments of the network's forward pass, rows padded at their end to the longest of the batch."""
    rows = [item["row"] for item in items]
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for line, row in zip(ids, rows):
        line[:len(row.ids)] = row.ids
    batch = {
        "input_ids": torch.from_numpy(ids),
        "prefix": torch.tensor([row.prefix for row in rows]),
        "target_positions": torch.tensor([i * width + t for i, row in enumerate(rows) for t in row.target_positions]),
        "targets": torch.tensor([int(row.ids[t + 1]) for row in rows for t in row.target_positions]),
    }
    for kind in ("pixels", "features"):
        shown = [i for i, item in enumerate(items) if kind in item]
        if shown:
            batch[kind] = torch.stack([items[i][kind] for i in shown])
            batch["image_rows"] = torch.tensor(shown)
            batch["image_start"] = rows[shown[0]].image_start
    return batch


ALIKE = 8  # tokens


def plan_epoch(lengths, size, seed, epoch, pool=8):
    """Rows of every optimizer step of an epoch: lists of `size` indices.

    A function of its arguments alone, so that any number of processes and a resumed run take the same steps. Rows of alike
    length stand together (sorted within `pool` steps' worth of shuffled rows), steps in random order. Alike is what differs by
    less than ALIKE tokens: sorted exactly, a step of short answers would hold few different ones. Every row comes once; the last
    step is filled up from the epoch's first rows.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order += [order[i % len(order)] for i in range(-len(order) % size)]
    steps = []
    for start in range(0, len(order), size * pool):
        alike = sorted(order[start:start + size * pool], key=lambda i: lengths[i] // ALIKE)
        steps += [alike[i:i + size] for i in range(0, len(alike), size)]
    rng.shuffle(steps)
    return steps


class Batches:
    """Sampler of one process's batches: from each planned step its share, `parts` of them, from step `start` of an epoch on.

    plan: epoch -> steps (see plan_epoch) of `count` rows; indices count on through the epochs (see RowDataset).
    """

    def __init__(self, plan, count, batch_size, parts, rank, world):
        self.plan, self.count, self.batch_size, self.parts, self.rank, self.world = plan, count, batch_size, parts, rank, world
        self.epoch, self.start = 0, 0

    def __iter__(self):
        for rows in self.plan(self.epoch)[self.start:]:
            for part in range(self.parts):
                first = (part * self.world + self.rank) * self.batch_size
                yield [row + self.epoch * self.count for row in rows[first:first + self.batch_size]]


def check_batches(count, batch_size, rank, world):
    """Batches of held-out rows for one process: (rows, counted); as many for each process, the surplus ones not counted."""
    batches = [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
    own = batches[rank::world]
    return [(rows, True) for rows in own] + [(batches[0], False)] * (-(-len(batches) // world) - len(own))
