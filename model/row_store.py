"""Rows that stay on the disk: an index in memory, each row read where it is used.

For sets of millions. The rows are a .jsonl file, or the shards that generate_prompt.py --pack
writes: tars of key.EXT and key.json, {"image": "key.EXT", "rows": [row without img, ...]}.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import UserError
from model.files import parse_json, parse_line
from model.images import exists, members
from model.row_forms import read_form
from model.rows import RowCheck, Sample, samples_of

# A sample's place: which file, first byte and bytes of its JSON there, row and round in that
PLACE = 5


class StoredSamples(Sequence):
    """The samples of load_rows, one after another as there, in about 60 bytes a row.

    Every row is read and checked once, here; its image is looked for, not opened.
    keys: see sample_keys; characters: [N], of the texts of each sample; fingerprint: hex digest of
    the rows.
    """

    def __init__(self, path, image_root=None, notes=None):
        """path: a .jsonl, a .tar, or a pattern of tars. Raises UserError, as load_rows does."""
        self.path = Path(path)
        self.image_root = image_root
        self.files = stored_files(self.path)
        check = RowCheck(self.path, image_root)
        places, keys, characters = array("Q"), array("q"), array("I")
        digest = hashlib.sha256()
        for number, file in enumerate(self.files):
            for offset, content, rows in _entries(file):
                digest.update(content)
                for index, (where, row) in enumerate(rows):
                    image, rounds = check.read(where, row)
                    length = 0
                    for turn, (question, answer) in enumerate(rounds):
                        places.extend((number, offset, len(content), index, turn))
                        keys.extend(_keys(image, question, answer))
                        length += len(question) + len(answer)
                        characters.append(length)
        found = check.finish()
        if notes is not None:
            notes += found
        if not places:
            raise UserError(f"rows {path}: no row; make them with data/generate_prompt.py")
        self.places = np.frombuffer(places, np.uint64).reshape(-1, PLACE)
        self.keys = np.frombuffer(keys, np.int64).reshape(-1, 2)
        self.characters = np.frombuffer(characters, np.uint32)
        self.fingerprint = digest.hexdigest()

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        """The sample of an index. Raises UserError where its file was changed."""
        number, offset, size, row, turn = map(int, self.places[index])
        file = self.files[number]
        try:
            with open(file, "rb") as opened:
                opened.seek(offset)
                content = parse_json(opened.read(size))
            form = read_form(_rows(file, content)[row])
            return samples_of(form, self.path, self.image_root)[turn]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"rows {file}: changed since the run began ({error}); put them back and continue "
                "with --resume"
            ) from None


def is_shards(path: str | Path) -> bool:
    return Path(path).suffix == ".tar"


def stored_files(path: Path) -> list[Path]:
    """The files that a path or a pattern of tars names, sorted. Raises UserError."""
    if path.suffix not in (".tar", ".jsonl"):
        raise UserError(
            f"rows {path}: only .jsonl and shards (.tar) can stay on the disk; give "
            "data/generate_prompt.py an --output that ends in .jsonl"
        )
    if path.is_file():
        return [path.absolute()]
    files = sorted(path.parent.absolute().glob(path.name)) if is_shards(path) else []
    if not files:
        raise UserError(f"rows {path}: no such file")
    return files


def sample_keys(samples: Sequence[Sample]) -> np.ndarray:
    """[N, 2] int64: of each sample a hash of its image, 0 without one, and of all of it."""
    if isinstance(samples, StoredSamples):
        return samples.keys
    keys = []
    for sample in samples:
        image = os.fspath(sample.image) if sample.image else None
        keys.append(_keys(image, sample.question, sample.answer))
    return np.array(keys, np.int64).reshape(-1, 2)


def _keys(image: str | None, question: str | None, answer: str | None) -> tuple[int, int]:
    """Of the text of an image's path, as a Path spells it: a Path itself takes much longer."""
    return hash(image) if image else 0, hash((image, question, answer))


def _entries(file: Path) -> Iterator[tuple[int, bytes, list[tuple[str, Any]]]]:
    """Yield (first byte, bytes of a JSON, its rows and their names in messages)."""
    yield from _members(file) if is_shards(file) else _lines(file)


def _lines(file):
    offset = 0
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            rows = []
            if line.strip():
                rows = [(f"line {number}", parse_line(file, "rows", number, line))]
            yield offset, line, rows
            offset += len(line)


def _members(tar):
    # Builds the index of images, and says all that is wrong with the tar
    exists(tar / "any")
    with open(tar, "rb") as opened:
        for _, info, _ in members(tar):
            if not info.name.endswith(".json"):
                continue
            opened.seek(info.offset_data)
            content = opened.read(info.size)
            try:
                rows = _rows(tar, parse_json(content))
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f'rows {tar}: {info.name} is not {{"image", "rows"}} as generate_prompt.py '
                    f"--pack writes it ({type(error).__name__}: {error}); other shards become such "
                    "by data/transform.py, then data/generate_prompt.py --pack"
                ) from None
            named = [(f"{tar.name} {info.name} row {i}", row) for i, row in enumerate(rows)]
            yield info.offset_data, content, named


def _rows(file, content):
    """The rows of a parsed line or member. Raises LookupError, TypeError."""
    if not is_shards(file):
        return [content]
    image = str(file / content["image"])
    return [{"img": image, **row} for row in content["rows"]]
