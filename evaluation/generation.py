"""Answers of a loaded checkpoint to everything that the evaluation asks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from model.answer_file import AnswerFile
from model.batch import answer_rows
from model.errors import UserError
from model.rows import Sample, shuffle_images

from .predictions import BLANK_IMAGES, SHUFFLED_IMAGES, Question, System


@dataclass
class Task:
    """What every system is asked."""

    samples: list[Sample]  # to be described
    ablations: dict[str, list[Sample]]  # the same with blank and with shuffled images
    questions: list[Question]  # yes / no questions, each once


def image_ablations(samples: list[Sample], blank: Path, seed: int) -> dict[str, list[Sample]]:
    """The samples with a blank image (a file), and with their images shuffled.

    They have no labels: those belong to the right images. A single sample has no other image to be
    given.
    """
    samples = [replace(sample, answer=None) for sample in samples]
    ablations = {BLANK_IMAGES: [replace(sample, image=blank) for sample in samples]}
    if len(samples) > 1:
        ablations[SHUFFLED_IMAGES] = shuffle_images(samples, seed)
    return ablations


def generate_answers(
    assistant, task: Task, file: AnswerFile, *, name: str, untuned: bool = False, **options
) -> System:
    """The answers of one system; what `file` holds already is not asked again.

    untuned: switch the adapter off; options: of answer_rows. What a filter of a server refuses is
    an empty answer, which the system's notes say. Raises UserError if one is missing.
    """
    ask: Callable = partial(_ask, assistant, file, name, base=untuned, **options)
    entries = ask(task.samples, "images")
    system = System(name, _texts(entries))
    system.truncated = sum("truncated" in entry for entry in entries)
    refused = [entry["error"] for entry in entries if "refused" in entry]
    if refused:
        system.notes.append(
            f"{name}: {len(refused)} of {len(entries)} descriptions count as empty, as the server "
            f"refused them; the first: {refused[0]}"
        )
    for ablation, samples in task.ablations.items():
        system.ablations[ablation] = _texts(ask(samples, ablation))

    rows = []
    for index, question in task.questions:
        rows.append(replace(task.samples[index], question=question, answer=None))
    system.replies = dict(zip(task.questions, _texts(ask(rows, "yes / no questions"))))
    return system


def _texts(entries) -> list[str]:
    return [entry.get("answer", "") for entry in entries]


def _ask(assistant, file, name, samples, what, **options) -> list[dict]:
    unit = "question" if assistant.is_remote else "batch"
    progress = partial(tqdm, desc=f"{name}, {what}", unit=unit)
    entries = answer_rows(assistant, samples, file, progress=progress, **options)
    errors = [entry["error"] for entry in entries if "error" in entry and "refused" not in entry]
    if errors:
        again = "; the same command asks for them again" if assistant.is_remote else ""
        raise UserError(
            f"{len(errors)} of {len(samples)} rows have no answer; the first: {errors[0]}{again}"
        )
    return entries
