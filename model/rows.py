"""Training rows: a JSON of image-text pairs or dialogues -> samples -> padded batches.

A dialogue becomes one sample per round: earlier rounds stand in its prompt (where they are read, not trained), the loss
lies on its own answer. Images are read when a sample is asked for, never all at once.
"""
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .checkpoint import PROJECT, read_json
from .dialogue import render
from .errors import UserError
from .images import read_image, to_pixels

ROW_FORMS = '{"img", "prompt", "label"} or {"img", "conversations": [{"role", "content"}, ...]}'
SHOWN = 5  # problems named in one message


@dataclass(frozen=True)
class Sample:
    image: Path | None
    question: str
    answer: str
    history: tuple = ()


def _rounds(row):
    """One row -> its (question, answer) pairs; raises ValueError in a few words."""
    if not isinstance(row, dict):
        raise ValueError(f"is {type(row).__name__}, not an object")
    if "conversations" not in row:
        pair = row.get("prompt"), row.get("label")
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise ValueError(f"has keys {', '.join(row) or 'none'}; prompt and label must be non-empty texts")
        return [pair]
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise ValueError("conversations must be a list of user and assistant turns")
    for turn, role in zip(turns, ("user", "assistant") * len(turns)):
        if not isinstance(turn, dict) or turn.get("role") != role or not str(turn.get("content") or "").strip():
            raise ValueError(f'conversations must alternate user, assistant with content; expected {role}, got {turn}')
    return [(q["content"], a["content"]) for q, a in zip(turns[::2], turns[1::2])]


def find_image(name, row_file, image_root=None):
    """A row's `img` -> path. A relative one is looked for beside the rows, then under the project, or only under
    image_root when given. Raises ValueError that names the paths tried."""
    name = Path(name)
    roots = [Path(image_root)] if image_root else [Path(row_file).parent, PROJECT]
    tried = [name] if name.is_absolute() else [root / name for root in roots]
    for path in tried:
        if path.is_file():
            return path
    raise ValueError(f"image not found at {' or '.join(map(str, tried))}")


def load_rows(path, image_root=None):
    """Read and check a row file -> list of Sample. Raises UserError that lists what is wrong, by row."""
    path = Path(path)
    if path.suffix == ".jsonl":
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"rows {path}: not readable as JSON lines ({error})") from None
    else:
        rows = read_json(path, "rows")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"rows {path}: expected a list of {ROW_FORMS}, got "
                        f"{'an empty list' if rows == [] else type(rows).__name__}; make it with data/generate_prompt.py")
    samples, problems = [], []
    for index, row in enumerate(rows):
        try:
            rounds = _rounds(row)
            image = find_image(row["img"], path, image_root) if row.get("img") else None
            samples += [Sample(image, q, a, tuple(rounds[:i])) for i, (q, a) in enumerate(rounds)]
        except ValueError as error:
            problems.append(f"row {index}: {error}")
    _report(path, problems, len(rows), f"expected {ROW_FORMS}")
    return samples


def check_images(samples, source, workers=8):
    """Open and decode every picture once, before hours of work hang on it. Raises UserError; returns how many."""
    paths = sorted({sample.image for sample in samples if sample.image})

    def problem(path):
        try:
            read_image(path)
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
    """Samples -> {"row": Rendered, "pixels": [3, height, width] or None}."""

    def __init__(self, samples, tokenizer, config, *, max_source, max_target, english=False):
        self.samples, self.image_size = samples, config["eva_args"]["image_size"]
        self.rows = [render(tokenizer, s.question, s.answer, history=s.history, english=english, max_source=max_source,
                            image_slots=config["image_length"] if s.image else 0, max_target=max_target)
                     for s in samples]
        self.cut = sum(row.cut for row in self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image = self.samples[index].image
        pixels = to_pixels(read_image(image), self.image_size) if image else None
        return {"row": self.rows[index], "pixels": pixels}


def collate(items):
    """Samples -> the arguments of the network's forward pass, rows padded at their end to the longest of the batch."""
    rows = [item["row"] for item in items]
    width = max(len(row.ids) for row in rows)
    shown = [i for i, item in enumerate(items) if item["pixels"] is not None]
    batch = {
        "input_ids": torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows]),
        "prefix": torch.tensor([row.prefix for row in rows]),
        "target_positions": torch.tensor([i * width + t for i, row in enumerate(rows) for t in row.target_positions]),
        "targets": torch.tensor([row.ids[t + 1] for row in rows for t in row.target_positions]),
    }
    if shown:
        batch["pixels"] = torch.stack([items[i]["pixels"] for i in shown])
        batch["image_rows"] = torch.tensor(shown)
        batch["image_start"] = rows[shown[0]].image_start
    return batch
