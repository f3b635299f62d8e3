"""What answers are compared with: the descriptions of each image, from rows and caption sets."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.instructions import QUESTIONS
from data.lexicon import language
from data.row_sources import read_captions
from model.errors import UserError
from model.rows import Sample, load_rows

from .answer_lines import path_parts
from .metrics import tokens

Captions = dict[Any, list[str]]  # image -> its descriptions
# Characters or words of the least sentence
SENTENCE = 5
CLOSED_QUESTION = re.compile(
    r"吗|是否|是不是|有没有|能否|几[个架条辆只艘座块栋棵片]|多少|"
    r"^(?:is|are|does|do|can|how many)\b",
    re.I,
)


def described_images(
    path: str | Path,
    image_root: str = "",
    questions: Sequence[str] = (),
    notes: list[str] | None = None,
) -> tuple[list[Sample], Captions]:
    """The rows of a file that ask for a description: (one sample an image, its descriptions).

    Of several rows about an image the first gives its question. questions: those that ask for a
    description, see asking_for_description; notes: gets a line about each thing that was left out.
    Raises UserError.
    """
    notes = [] if notes is None else notes
    every = load_rows(path, image_root, notes=notes)
    shown = [row for row in every if row.image and not row.history]
    rows = asking_for_description(shown, questions)
    if not rows:
        raise UserError(
            f"rows {path}: none asks for a description of an image; make them with "
            "data/generate_prompt.py, with --tasks name description among them, or name your own "
            "questions by --description-questions"
        )
    if len(rows) < len(shown):
        notes.append(
            f"rows {path}: {len(rows)} of {len(shown)} rows are taken as descriptions, such as "
            f"{rows[0].question}; --description-questions names others"
        )

    captions: Captions = {}
    for row in rows:
        texts = captions.setdefault(row.image, [])
        answer = row.answer or ""
        if answer not in texts:
            texts.append(answer)

    first = {row.image: row for row in reversed(rows)}
    return list(reversed(first.values())), captions


def asking_for_description(rows: list[Sample], questions: Sequence[str] = ()) -> list[Sample]:
    """The rows whose question is one of `questions`. Without these: all, if all ask the same;
    else those that ask as data/generate_prompt.py does; else those whose question is no yes / no
    or counting question and whose answer is a sentence.
    """
    if questions:
        return [row for row in rows if row.question in questions]
    if len({row.question for row in rows}) < 2:
        return rows
    known = [row for row in rows if row.question in QUESTIONS["description"]]
    if known:
        return known
    described = []
    for row in rows:
        is_sentence = len(tokens(row.answer or "")) >= SENTENCE
        if is_sentence and not CLOSED_QUESTION.search(row.question):
            described.append(row)
    return described


def add_sentences(
    samples: list[Sample], captions: Captions, path: Path, split: str | None = None
) -> tuple[list[Sample], Captions]:
    """Add the sentences of a caption set: (the samples of `split`, their descriptions).

    path: the set as distributed (dataset.json). Raises UserError.
    """
    splits, sentences = read_captions(path, True)
    kept, unknown, seen_splits = [], [], set()
    extended: Captions = {}
    for sample in samples:
        name = _known_name(sample.image, sentences)
        if name is None:
            unknown.append(sample.image)
            continue
        seen_splits.add(str(splits[name]))
        if split and splits[name] != split:
            continue

        kept.append(sample)
        texts = list(captions[sample.image])
        for text in sentences[name]:
            if text.strip() and text not in texts:
                texts.append(text)
        extended[sample.image] = texts

    if unknown:
        raise UserError(
            f"--references {path} lacks {len(unknown)} of {len(samples)} images, "
            f"such as {unknown[0]}"
        )
    if not kept:
        raise UserError(
            f"--split {split}: none of the {len(samples)} images of the rows belongs to it; "
            f"they belong to {', '.join(sorted(seen_splits))}"
        )
    return kept, extended


def _known_name(image, names) -> str | None:
    """The longest end of an image's path that is one of the names."""
    parts = path_parts(image)
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in names:
            return name
    return None


def training_file(data: str | Path) -> Path | None:
    """The -train file beside the rows `data`, if there is one."""
    data = Path(data)
    beside = data.with_name(data.name.replace("-val", "-train").replace("-test", "-train"))
    return None if beside == data or not beside.is_file() else beside


def evenly_spread(samples: list[Sample], limit: int) -> list[Sample]:
    """Only `limit` samples, 0 for all; rows are often ordered by class."""
    if limit == 0 or limit >= len(samples):
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def check_one_language(
    samples: Sequence[Sample], references: Sequence[list[str]], path: str | Path
) -> None:
    """Every image's description must be in the same language. Raises UserError."""
    languages = [language(texts[0]) for texts in references]
    commonest = Counter(languages).most_common(1)[0][0]
    odd = [index for index, found in enumerate(languages) if found != commonest]
    if odd:
        name = path_parts(samples[odd[0]].image)[-1]
        text = references[odd[0]][0]
        raise UserError(
            f"rows {path}: descriptions must be all Chinese or all English; {len(odd)} of "
            f"{len(samples)} are not like the others, such as {name}: {text[:40]}"
        )
