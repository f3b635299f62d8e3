"""All metrics of all systems and baselines. What is written about them: see report.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.lexicon import language

from .baselines import (
    CONSTANT,
    HUMAN,
    LABEL,
    NEAREST,
    constant_caption,
    leave_one_out,
    nearest,
)
from .hallucination import (
    SETTINGS,
    ExistenceQuestion,
    Truth,
    existence_metrics,
    hallucinated,
    hallucination_metrics,
    scene_right,
    truth,
)
from .metrics import RESAMPLES, UNITS, Metric, Tokens, caption_metrics, mean_of, tokens
from .predictions import SHUFFLED_IMAGES, Question, System

SIGNIFICANT = 0.05
COPIES = "copies of a training caption"
UNSEEN = "unseen captions"
LANGUAGES = {"zh": "Chinese", "en": "English"}


@dataclass(frozen=True)
class EvaluationSet:
    """What answers are compared with. Lists hold one entry an image, all in one order."""

    images: list[Path]
    references: list[list[str]]  # the first text is the image's description
    truths: list[Truth]
    questions: dict[str, list[ExistenceQuestion]] = field(default_factory=dict)  # by setting
    training: dict[Any, list[str]] = field(default_factory=dict)  # image -> captions
    read_image: Callable | None = None  # path -> PIL RGB image

    @cached_property
    def comparable(self) -> list[list[str]]:
        """The references in the language of the descriptions; others only say what is there."""
        described_in = language(self.references[0][0])
        comparable = []
        for texts in self.references:
            comparable.append([text for text in texts if language(text) == described_in])
        return comparable

    def distinct_questions(self) -> list[Question]:
        """The yes / no questions of all settings, sorted, each once."""
        asked = {(q.image, q.question) for setting in self.questions.values() for q in setting}
        return sorted(asked)

    @cached_property
    def training_captions(self) -> list[str]:
        return [text for texts in self.training.values() for text in texts]

    @cached_property
    def training_tokens(self) -> set[Tokens]:
        return set(map(tokens, self.training_captions))


@dataclass
class Column:
    """One column of the table: the texts of a system or baseline, and their metrics."""

    answers: list[str]  # one an image
    metrics: dict[str, Metric]
    distinct: float  # distinct answers, % of all


@dataclass
class ClassShares:
    """A share of the answers of one system, by the scene that the references name."""

    key: str  # in metrics.json
    title: str
    higher_is_better: bool
    shares: list[tuple[str, float, int]]  # (scene, %, images)


@dataclass
class Scores:
    """The result of an evaluation."""

    dataset: EvaluationSet
    systems: list[str]  # names of their columns
    seed: int
    resamples: int
    columns: dict[str, Column] = field(default_factory=dict)
    # (column, metric) -> (low, high) of the 95 % interval
    intervals: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    # (column, other column) -> {metric: p-value of their difference}
    p_values: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    classes: list[ClassShares] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def score(
    systems: Sequence[System], dataset: EvaluationSet, seed: int = 0, resamples: int = RESAMPLES
) -> Scores:
    """Columns for each system, its image ablation and the baselines, and how they compare.

    seed, resamples: of the bootstrap intervals and the randomization tests.
    """
    scores = Scores(dataset, [system.name for system in systems], seed, resamples)
    for system in systems:
        scores.columns |= system_columns(system, dataset)
    scores.columns |= baseline_columns(dataset)

    for system in systems:
        for ablation in system.ablations:
            _compare(scores, system.name, f"{system.name}, {ablation}")
    for other, one in combinations(scores.systems, 2):
        _compare(scores, one, other)

    for name, column in scores.columns.items():
        for metric_name, metric in column.metrics.items():
            scores.intervals[name, metric_name] = metric.interval(seed, resamples)

    scores.classes = class_shares(scores)
    for system in systems:
        scores.warnings += _warnings(scores, system)
    return scores


def system_columns(system: System, dataset: EvaluationSet) -> dict[str, Column]:
    """The column of a system, those of its image ablation, and that of unseen captions."""
    columns = {system.name: score_texts(system.answers, dataset, dataset.comparable)}
    if system.replies:
        columns[system.name].metrics |= pope_metrics(system, dataset)
    for ablation, answers in system.ablations.items():
        name = f"{system.name}, {ablation}"
        columns[name] = score_texts(answers, dataset, dataset.comparable)

    unseen = unseen_images(dataset)
    if 0 < len(unseen) < len(dataset.images):
        name = f"{system.name}, {UNSEEN} ({len(unseen)})"
        columns[name] = score_texts(
            [system.answers[i] for i in unseen],
            dataset,
            [dataset.comparable[i] for i in unseen],
            [dataset.truths[i] for i in unseen],
        )
    return columns


def score_texts(
    answers: list[str],
    dataset: EvaluationSet,
    comparable: list[list[str]] | None = None,
    truths: list[Truth] | None = None,
) -> Column:
    """Metrics of one text an image.

    comparable: the texts they are compared with, None where there are none; truths: those of the
    images, by default of all. CIDEr always takes its IDF weights from the whole set.
    """
    metrics: dict[str, Metric] = {}
    if comparable is not None:
        by_unit = caption_metrics(answers, comparable, dataset.comparable)
        for unit in UNITS:
            suffix = "" if unit == UNITS[0] else f", {unit}"
            for name, metric in by_unit[unit].items():
                metrics[name + suffix] = metric

    metrics |= hallucination_metrics(answers, truths or dataset.truths)
    if dataset.training_tokens:
        copies = [100 * (tokens(text) in dataset.training_tokens) for text in answers]
        metrics[COPIES] = mean_of(copies, better=0)
    return Column(answers, metrics, 100 * len(set(answers)) / len(answers))


def pope_metrics(system: System, dataset: EvaluationSet) -> dict[str, Metric]:
    """{"POPE <metric>, <setting>": Metric} of the system's replies to yes / no questions."""
    metrics = {}
    for setting in SETTINGS:
        asked = dataset.questions[setting]
        replies = [system.replies[question.image, question.question] for question in asked]
        of_setting = existence_metrics(asked, replies, len(dataset.images))
        for name, metric in of_setting.items():
            metrics[f"POPE {name}, {setting}"] = metric
    return metrics


def unseen_images(dataset: EvaluationSet) -> list[int]:
    """Indices of the images none of whose references is a training caption, word for word."""
    if not dataset.training_tokens:
        return []
    unseen = []
    for index, texts in enumerate(dataset.comparable):
        if not dataset.training_tokens & set(map(tokens, texts)):
            unseen.append(index)
    return unseen


def baseline_columns(dataset: EvaluationSet) -> dict[str, Column]:
    """Human baseline, commonest training caption, caption of the most similar training image."""
    columns = {}
    if min(map(len, dataset.references)) > 1:
        name, column = human_column(dataset)
        columns[name] = column
    if not dataset.training_captions:
        return columns

    constant = constant_caption(dataset.training_captions)
    columns[CONSTANT] = score_texts([constant] * len(dataset.images), dataset, dataset.comparable)
    columns[NEAREST] = score_texts(nearest_captions(dataset), dataset, dataset.comparable)
    return columns


def human_column(dataset: EvaluationSet) -> tuple[str, Column]:
    """One text of each image (leave-one-out) against the others of it.

    Where an image has no second text in the language of the descriptions, it is the first one, and
    the others only tell what is there.
    """
    several = min(map(len, dataset.comparable)) > 1
    candidates = dataset.comparable
    if not several:
        candidates = [texts[:1] for texts in dataset.comparable]
    chosen, others = leave_one_out(candidates)

    truths = []
    for left_out, comparable, texts in zip(chosen, dataset.comparable, dataset.references):
        # those of the descriptions' language come first: the first is taken as the description
        ordered = comparable + [text for text in texts if text not in comparable]
        truths.append(truth([text for text in ordered if text != left_out]))

    name = HUMAN if several else LABEL
    return name, score_texts(chosen, dataset, others if several else None, truths)


def nearest_captions(dataset: EvaluationSet) -> list[str]:
    """For each image the first caption of the training image most similar in colors and edges."""
    assert dataset.read_image is not None
    training_images = list(dataset.training)
    progress = tqdm(training_images, desc="training images", unit="image")
    found = nearest(map(dataset.read_image, dataset.images), map(dataset.read_image, progress))
    return [dataset.training[training_images[i]][0] for i in found]


def class_shares(scores: Scores) -> list[ClassShares]:
    """By scene of the references: scene accuracy, and captions with a hallucinated object."""

    def hallucinates(text, image_truth):
        return bool(hallucinated(text, image_truth))

    classes = []
    for system in scores.systems:
        shares = _by_scene(scores, system, scene_right)
        key, title = f"Scene named rightly: {system}", f"Scene accuracy by class: {system}"
        classes.append(ClassShares(key, title, True, shares))
    for system in scores.systems:
        shares = _by_scene(scores, system, hallucinates)
        title = f"Captions with a hallucinated object: {system}"
        classes.append(ClassShares(title, title, False, shares))
    return classes


def _by_scene(scores: Scores, system: str, holds: Callable) -> list[tuple[str, float, int]]:
    """[(scene, % of its answers that `holds`, number of its images)]"""
    values: dict[str, list[bool]] = {}
    for text, image_truth in zip(scores.columns[system].answers, scores.dataset.truths):
        if image_truth.scene:
            values.setdefault(image_truth.scene, []).append(holds(text, image_truth))

    shares = []
    for scene, of_scene in sorted(values.items()):
        shares.append((scene, 100 * (sum(of_scene) / len(of_scene)), len(of_scene)))
    return shares


def worst_first(scores: Scores, system: str) -> list[int]:
    """Indices of images: wrong scenes, then most hallucinated objects, then lowest CIDEr."""
    column = scores.columns[system]
    cider = column.metrics["CIDEr"].stats[:, 0]

    def badness(i):
        text, image_truth = column.answers[i], scores.dataset.truths[i]
        wrong_scene = scene_right(text, image_truth) is False
        return wrong_scene, len(hallucinated(text, image_truth)), -cider[i]

    return sorted(range(len(column.answers)), key=badness, reverse=True)


def _compare(scores: Scores, one: str, other: str) -> None:
    """Note the p-values of the metrics that both columns have, by approximate randomization."""
    others = scores.columns[other].metrics
    p_values = {}
    for name, metric in scores.columns[one].metrics.items():
        if name in others and metric.better:
            p_values[name] = metric.p_value(others[name], scores.seed, scores.resamples)
    scores.p_values[one, other] = p_values


def _warnings(scores: Scores, system: System) -> list[str]:
    """What is wrong with a system's answers, whatever its metrics say."""
    warnings = []
    images = len(system.answers)
    empty = sum(not tokens(text) for text in system.answers)
    if empty:
        warnings.append(
            f"{system.name}: {empty} of {images} answers are empty, "
            "which counts as nothing hallucinated"
        )
    elif len(set(system.answers)) == 1 and images > 1:
        warnings.append(f"{system.name}: says the same of all {images} images")

    if system.truncated:
        warnings.append(
            f"{system.name}: {system.truncated} of {images} answers were stopped by the length "
            "limit and end in mid-sentence; raise it (--max-new-tokens; --max_length of "
            "cli_demo.py)"
        )
    described_in = language(scores.dataset.references[0][0])
    other = [text for text in system.answers if tokens(text) and language(text) != described_in]
    if 2 * len(other) > images:
        warnings.append(
            f"{system.name}: {len(other)} of {images} answers are {LANGUAGES[language(other[0])]}, "
            f"the references {LANGUAGES[described_in]}: BLEU, ROUGE-L, CIDEr and chrF cannot "
            "compare them; ask in the language of the references (--english, --chinese)"
        )

    if SHUFFLED_IMAGES in system.ablations:
        shuffled = f"{system.name}, {SHUFFLED_IMAGES}"
        right = scores.columns[system.name].metrics["CIDEr"].value
        wrong = scores.columns[shuffled].metrics["CIDEr"].value
        p = scores.p_values[system.name, shuffled]["CIDEr"]
        # p is nan where CIDEr is undefined: nothing is shown then, either
        if not p < SIGNIFICANT or right <= wrong:
            warnings.append(
                f"nothing shows that {system.name} looks at the image: CIDEr {right:.2f} with the "
                f"right images, {wrong:.2f} with shuffled ones (p = {p:.3f}, {images} images)"
            )
    return warnings
