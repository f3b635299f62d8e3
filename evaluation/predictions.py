"""Systems under evaluation: the answers of each, and finding them in files."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.errors import UserError
from model.markup import MARKUP
from model.rows import Sample

from .answer_lines import Line, path_parts, read_lines
from .baselines import BASELINES

BLANK_IMAGES = "blank images"
SHUFFLED_IMAGES = "shuffled images"

Question = tuple[int, str]  # (index of the image, yes / no question)


@dataclass
class System:
    """A checkpoint, or a group of lines of a predictions file, with its answers."""

    name: str
    answers: list[str]  # descriptions, one an image
    # Image ablation: its name (BLANK_IMAGES, SHUFFLED_IMAGES) -> descriptions, one an image
    ablations: dict[str, list[str]] = field(default_factory=dict)
    replies: dict[Question, str] = field(default_factory=dict)  # all of them or none
    truncated: int = 0  # descriptions that the length limit ended
    notes: list[str] = field(default_factory=list)  # why something is not measured


@dataclass
class AnswerGroup:
    """The lines of a predictions file that were made with the same settings."""

    path: Path
    settings: dict
    names: set[str]  # file names of all images under evaluation
    # file name without its ending -> lines
    lines: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))


def read_predictions(
    path: Path,
    samples: Sequence[Sample],
    questions: Sequence[Question],
    rows: Callable[[], Sequence[Sample]] = list,
) -> list[System]:
    """The systems whose answers a file holds: as many as it names settings.

    path: see answer_lines.py. A system that lacks a reply to one of the yes / no questions has
    none. rows: gives the rows of the data file in order, asked for where the answers name no
    images. Raises UserError where a description lacks.
    """
    lines = read_lines(path)
    if not any(line.image for line in lines):
        lines = _by_order(path, lines, rows())
    groups = _grouped(path, lines, samples)
    names = labels(path.stem, [group.settings for group in groups])
    return [_system(name, group, samples, questions) for name, group in zip(names, groups)]


def _by_order(path, lines, rows) -> list[Line]:
    """Lines that name no image, as answers to the rows one by one. Raises UserError."""
    if len(lines) != len(rows):
        raise UserError(
            f"predictions {path}: its answers name no images, so that they must be one for each "
            f"row of --data in order; got {len(lines)} answers, {len(rows)} rows"
        )
    matched = []
    for line, row in zip(lines, rows):
        if not _is_label_of(row, line.label):
            raise UserError(
                f"predictions {path}: its answers name no images and are not those to the rows of "
                f"--data in order: {line.place} was to be {line.label[:40]!r}, the row's label is "
                f"{row.answer[:40]!r}"
            )
        matched.append(replace(line, image=path_parts(row.image or ""), prompt=row.question))
    return matched


def _is_label_of(row, label) -> bool:
    """Whether this can be the label of a row, as a tokenizer gives it back: maybe cut."""
    if not label or not row.answer:
        return True
    given, own = (
        "".join(MARKUP.sub("", unicodedata.normalize("NFKC", text)).split())
        for text in (label, row.answer)
    )
    return own.startswith(given)


def _grouped(path, lines, samples) -> list[AnswerGroup]:
    names = {path_parts(sample.image)[-1] for sample in samples}
    groups: dict[str, AnswerGroup] = {}
    for line in lines:
        if line.image:
            settings = json.dumps(line.settings, sort_keys=True)
            group = groups.setdefault(settings, AnswerGroup(path, line.settings, names))
            group.lines[Path(line.image[-1]).stem].append(line)
    # Groups without any answer are the errors of a run that was repeated with other settings
    answering = [group for group in groups.values() if _has_answer(group)]
    if not answering:
        raise UserError(f"predictions {path}: all {len(lines)} answers are null")
    return answering


def _has_answer(group):
    return any(line.text is not None for lines in group.lines.values() for line in lines)


def _system(name, group, samples, questions) -> System:
    """Raises UserError where a description lacks."""
    found = []
    missing = []
    for sample in samples:
        line = _answer(group, sample.image, sample.question)
        if line is None:
            missing.append(sample)
        else:
            found.append(line)
    if missing:
        first = missing[0]
        raise UserError(
            f"predictions {group.path}: of {name} {len(missing)} of {len(samples)} images have no "
            "answer to the question of their row, "
            f"such as {Path(first.image).name}: {first.question} ({_what_is_there(group, first)})"
        )

    system = System(name, [line.text or "" for line in found])
    system.truncated = sum(line.is_truncated for line in found)
    system.notes.append(
        f"{name}: no image ablation: answers of a file cannot be asked for again with blank or "
        "shuffled images, as --from_pretrained does"
    )
    lacking = []
    for index, question in questions:
        reply = _answer(group, samples[index].image, question, by_image=False)
        if reply is None:
            lacking.append(f"{Path(samples[index].image).name}: {question}")
        else:
            system.replies[index, question] = reply.text or ""
    if lacking:
        system.replies = {}
        system.notes.append(
            f"{name}: no POPE: {group.path} has no reply to {len(lacking)} of {len(questions)} "
            f"yes / no questions, such as {lacking[0]}"
        )
    return system


def _what_is_there(group, sample) -> str:
    """What a file holds about the image of a sample that lacks its answer."""
    lines = _about(group, path_parts(sample.image))
    if not lines:
        names = sorted({line.image[-1] for lines in group.lines.values() for line in lines})
        return f"the file is about {len(names)} images, such as {names[0]}"
    for line in lines:
        if line.text is None and line.prompt in (sample.question.strip(), None):
            return f"{line.place} has no answer to it"
    return f"the file asks about it: {lines[0].prompt}"


def _about(group: AnswerGroup, parts: tuple[str, ...]) -> list[Line]:
    """Lines about a file of this name, else about one with another ending that is no other's."""
    lines = group.lines.get(Path(parts[-1]).stem, [])
    exact = [line for line in lines if line.image[-1] == parts[-1]]
    return exact or [line for line in lines if line.image[-1] not in group.names]


def _answer(group: AnswerGroup, image, question: str, by_image=True) -> Line | None:
    """Of the answers about files of one name that whose path agrees longest from its end.

    by_image: a line without a question will do. Raises UserError where that does not decide.
    """
    parts = path_parts(image)
    about = [line for line in _about(group, parts) if line.text is not None]
    lines = [line for line in about if line.prompt == question.strip()]
    if by_image and not lines:
        lines = [line for line in about if line.prompt is None]

    longest = -1
    best: dict[str, Line] = {}
    for line in lines:
        agreeing = _common_suffix(parts[:-1], line.image[:-1])
        if agreeing > longest:
            longest = agreeing
            best = {}
        if agreeing == longest:
            best[line.text or ""] = line

    if len(best) > 1:
        raise UserError(
            f"predictions {group.path}: several answers about {image} ({question}): "
            "name each image with its folder, once"
        )
    return next(iter(best.values()), None)


def _common_suffix(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    length = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        length += 1
    return length


def labels(stem: str, settings: Sequence[dict | None]) -> list[str]:
    """A name for each settings of a file: what differs, in one word where that is enough."""
    groups = [value or {} for value in settings]
    if len(groups) == 1:
        return [stem]

    systems = {group.get("system") for group in groups}
    if len(systems) == len(groups):
        chosen = ["system"]
    else:
        differing = _differing_keys(groups)
        chosen = [key for key in differing if key != "fingerprint"] or differing

    names = []
    for group in groups:
        words = [stem]
        for key in chosen:
            words.append(str(group.get(key)) if key == "system" else f"{key} {group.get(key)}")
        names.append(", ".join(words))
    return names


def _differing_keys(groups: list[dict]) -> list[str]:
    """The keys whose values are not the same in all groups, in the order of their appearance."""
    keys = dict.fromkeys(key for group in groups for key in group)
    return [key for key in keys if len({str(group.get(key)) for group in groups}) > 1]


def number_equal_names(systems: list[System]) -> None:
    """Names that more than one system has, or a baseline, get its number: base (1), base (2)."""
    names = [system.name for system in systems]
    for number, system in enumerate(systems, 1):
        if names.count(system.name) > 1 or system.name in BASELINES:
            system.name += f" ({number})"
