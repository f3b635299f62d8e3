"""Files of answers, as this project and other tools write them -> lines.

img / image / images, prompt, answer   cli_demo.py --output, evaluate_RemoteGLM.py; any plain file
(output, pred, text ... for answer)
response, labels, messages, images     ms-swift, infer_result.jsonl
prompt, predict, label                 LLaMA-Factory, generated_predictions.jsonl (no images)
question, answer, prediction           VLMEvalKit, .xlsx or .tsv; `answer` is the reference
image_id, caption                      results in COCO's form, a JSON array
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.files import read_json_lines, read_own_text, read_rows, refuse_other_kinds
from model.markup import without_places
from model.row_forms import shown

# The first of these that a line has is its answer: beside `prediction` others are references
ANSWER_KEYS = (
    *("prediction", "predict", "response", "answer", "caption"),
    *("generated_text", "output", "pred", "text"),
)
LABEL_KEYS = ("label", "labels", "answer", "reference", "ground_truth", "target")
IMAGE_KEYS = ("img", "image", "images", "image_path", "image_id", "file_name")
PROMPT_KEYS = ("prompt", "query", "question")
ANSWER_FILES = (
    '.jsonl ({"img", "prompt", "answer"} a line), .json (an array of them), .tsv, .csv or .xlsx'
)
WHOLE = "the file"  # the place of an object that is all of it
SHOWN = 12  # keys in a message
LONGEST_NAME = 1000  # characters; what is longer is an image itself, in base64
LARGEST_CELL = 2**31 - 1  # the most that csv accepts everywhere


@dataclass
class Line:
    """One answer."""

    place: str  # in the file
    image: tuple[str, ...]  # parts of its path; () where the file does not say
    prompt: str | None
    text: str | None  # None: there is a line, but no answer in it
    label: str | None = None  # what it should have been
    settings: dict = field(default_factory=dict)
    is_truncated: bool = False


def path_parts(path) -> tuple[str, ...]:
    """The parts of a path, also of one written on Windows."""
    return Path(str(path).replace("\\", "/")).parts


def read_lines(path: Path) -> list[Line]:
    """The answers of a file. Raises UserError."""
    lines = []
    keys: dict = {}  # an ordered set
    has_answers = False
    for place, entry in _entries(path):
        try:
            if not isinstance(entry, dict):
                raise ValueError(f"expected an object, got {type(entry).__name__}")
            keys.update(entry)
            if "error" in entry and not any(key in entry for key in ANSWER_KEYS):
                entry = entry | {"answer": None}
            answer_key = next((key for key in ANSWER_KEYS if key in entry), None)
            has_answers = has_answers or answer_key is not None
            lines.append(_line(place, entry, answer_key))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'predictions {path}: {place} is no {{"img", "prompt", "answer"}} '
                f"({type(error).__name__}: {error})"
            ) from None

    if has_answers:
        return lines
    if path.suffix.lower() == ".json" and keys:
        held = "one object" if [line.place for line in lines] == [WHOLE] else "a list"
        raise UserError(
            f'predictions {path}: line 1 is no {{"img", "prompt", "answer"}}: the file holds '
            f"{held} of {_named(keys)}, without answers; name the file of the answers, an array "
            "of such objects"
        )
    what = f"keys {_named(keys)}" if keys else "an empty file"
    raise UserError(
        f"predictions {path}: no answers about images; expected lines of img, prompt and "
        f"answer, got {what}"
    )


def _named(keys) -> str:
    """Keys in a message: as many as fit."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(shown(key) for key in list(keys)[:SHOWN]) + more


def _line(place, entry, answer_key) -> Line:
    """Raises ValueError."""
    text = entry.get(answer_key)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{answer_key} must be a text, got {text!r}")
    if not isinstance(entry.get("settings") or {}, dict):
        raise ValueError(f"settings must be an object, got {entry['settings']!r}")
    # Half a surrogate pair (\ud800) could not be written into the report: UnicodeEncodeError
    (text or "").encode()

    label = next((entry.get(key) for key in LABEL_KEYS if key != answer_key and key in entry), None)
    return Line(
        place,
        _image(entry),
        _prompt(entry),
        text,
        label if isinstance(label, str) else None,
        entry.get("settings") or {},
        bool(entry.get("truncated")),
    )


def _image(entry) -> tuple[str, ...]:
    for key in IMAGE_KEYS:
        value = entry.get(key)
        if isinstance(value, list):
            value = value[0] if value else None
        if isinstance(value, dict):
            value = value.get("path") or value.get("url")
        if isinstance(value, int):
            value = str(value)
        if isinstance(value, str) and 0 < len(value) < LONGEST_NAME:
            return path_parts(value)
    return ()


def _prompt(entry) -> str | None:
    """The question without the place of its image: the last of a dialogue."""
    prompt = next((entry[key] for key in PROMPT_KEYS if entry.get(key)), None)
    for turn in entry.get("messages") or []:
        if prompt is None or turn.get("role") == "user":
            prompt = turn.get("content")
    return without_places(prompt).strip() if isinstance(prompt, str) else None


# The files


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, entry) of each; what is no table and no array is JSON lines. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix in (".tsv", ".csv"):
        yield from _table(path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".xlsx":
        yield from _sheet(path)
    elif suffix == ".json":
        for place, entry in read_rows(path, "predictions"):
            yield place or WHOLE, entry
    else:
        refuse_other_kinds(path, "predictions", ANSWER_FILES)
        yield from read_json_lines(path, "predictions")


def _table(path, delimiter):
    csv.field_size_limit(LARGEST_CELL)
    # newline="": line breaks inside of cells stay as they are
    text = read_own_text(path, "predictions", newline="")
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        for entry in reader:
            yield f"line {reader.line_num}", {key: entry[key] for key in entry if key}
    except csv.Error as error:
        raise UserError(f"predictions {path}: no table ({error})") from None


def _sheet(path):
    """The first sheet of a workbook, by openpyxl."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"predictions {path}: reading .xlsx needs openpyxl (pip install openpyxl); or save "
            "the sheet as .tsv or .csv"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
    except Exception as error:  # noqa: BLE001 -- whatever a damaged file makes the library raise
        raise UserError(f"predictions {path}: cannot be read as .xlsx ({error})") from None

    head = [str(cell) for cell in rows[0]] if rows else []
    for number, cells in enumerate(rows[1:], 2):
        entry = {}
        for key, cell in zip(head, cells):
            entry[key] = cell if cell is None else str(cell)
        if any(entry.values()):
            yield f"row {number}", entry
