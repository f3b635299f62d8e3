"""Systems under evaluation: the answers of each, and reading them from files."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import UserError
from model.files import parse_json

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


@dataclass
class AnswerGroup:
    """The lines of a predictions file that were made with the same settings."""

    settings: dict
    # (file name of the image, question) -> [(parts of its path, answer)]
    answers: dict[tuple[str, str], list[tuple[tuple[str, ...], str]]]


def read_predictions(path: Path, samples: Sequence, questions: Sequence[Question]) -> list[System]:
    """The systems whose answers a file holds: as many as it names settings.

    path: JSON lines of {"img", "prompt", "answer"} and perhaps "settings". A system that lacks a
    reply to one of the yes / no questions has none. Raises UserError where a description lacks.
    """
    groups = _read_groups(path)
    names = labels(path.stem, [group.settings for group in groups])
    systems = []
    for name, group in zip(names, groups):
        answers: list[str] = []
        missing = []
        for sample in samples:
            text = _answer(path, group, sample.image, sample.question)
            if text is None:
                missing.append(sample)
            else:
                answers.append(text)
        if missing:
            raise UserError(
                f"predictions {path}: of {name} {len(missing)} of {len(samples)} images have no "
                "answer to the question of their row, "
                f"such as {Path(missing[0].image).name}: {missing[0].question}"
            )

        replies = _replies(path, group, samples, questions)
        systems.append(System(name, answers, replies=replies))
    return systems


def _replies(path, group, samples, questions) -> dict[Question, str]:
    """The replies to all yes / no questions, empty if one lacks."""
    replies = {}
    for index, question in questions:
        reply = _answer(path, group, samples[index].image, question)
        if reply is None:
            return {}
        replies[index, question] = reply
    return replies


def _read_groups(path: Path) -> list[AnswerGroup]:
    """The answers of a file by their settings. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"predictions {path}: cannot be read ({error})") from None

    groups: dict[str, AnswerGroup] = {}
    keys: dict = {}  # an ordered set
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            _check_entry(entry)
            parts = path_parts(entry.get("img") or "")
            if parts and entry.get("answer") is not None:
                settings = json.dumps(entry.get("settings"), sort_keys=True)
                new = AnswerGroup(entry.get("settings") or {}, defaultdict(list))
                group = groups.setdefault(settings, new)
                group.answers[parts[-1], entry["prompt"]].append((parts, entry["answer"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'predictions {path}: line {number} is no {{"img", "prompt", "answer"}} '
                f"({type(error).__name__}: {error})"
            ) from None
        keys.update(entry)

    if not groups:
        what = f"keys {', '.join(keys)}" if keys else "an empty file"
        raise UserError(
            f"predictions {path}: no answers about images; expected lines of img, prompt and "
            f"answer, got {what}"
        )
    return list(groups.values())


def _check_entry(entry) -> None:
    """Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, got {type(entry).__name__}")
    answer = entry.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"answer must be a text, got {answer!r}")
    if not isinstance(entry.get("settings") or {}, dict):
        raise ValueError(f"settings must be an object, got {entry['settings']!r}")
    # Half a surrogate pair (\ud800) could not be written into the report: UnicodeEncodeError
    (answer or "").encode()


def _answer(path: Path, group: AnswerGroup, image, question: str) -> str | None:
    """Of the answers about files of one name that whose path agrees longest from its end.

    Raises UserError where that does not decide.
    """
    parts = path_parts(image)
    longest = 0
    best: set[str] = set()
    for other, text in group.answers.get((parts[-1], question), ()):
        agreeing = _common_suffix(parts, other)
        if agreeing > longest:
            longest = agreeing
            best = set()
        if agreeing == longest:
            best.add(text)

    if len(best) > 1:
        raise UserError(
            f"predictions {path}: several answers about {image} ({question}): "
            "name each image with its folder, once"
        )
    return best.pop() if best else None


def _common_suffix(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    length = 0
    for x, y in zip(reversed(a), reversed(b)):
        if x != y:
            break
        length += 1
    return length


def path_parts(path) -> tuple[str, ...]:
    """The parts of a path, also of one written on Windows."""
    return Path(str(path).replace("\\", "/")).parts


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
