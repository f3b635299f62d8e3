"""Scores as metrics.json, table.md and report.html (see page.py)."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError
from model.files import write_text

from .metrics import CHRF_METRIC
from .page import html_page
from .score import CONSTANT, HUMAN, LABEL, NEAREST, UNSEEN, Scores
from .tables import DISTINCT, full_table, summary_table

# Differences whose p-values the notes name; metrics.json has all
COMPARED = ("chrF", "CIDEr", "scene accuracy", "CHAIR_i", "CHAIR_s")
BASELINE_NOTES = {
    HUMAN: "human baseline (leave-one-out): one reference of each image against its others",
    LABEL: "the first description of each image against its other texts, as far as they are of use",
    CONSTANT: "one training caption for every image: the commonest, or where hardly any comes "
    "twice the most typical",
    NEAREST: "nearest-neighbour training caption: that of the training image with the most similar "
    "colors and edges",
}


def write_report(
    scores: Scores,
    output: Path,
    settings: dict | None = None,
    versions: dict | None = None,
    gallery: int = 0,
    left_out: Sequence[str] = (),
) -> dict:
    """Write metrics.json, table.md and report.html into `output`; returns what metrics.json holds.

    settings, versions: recorded there; gallery: images in report.html, 0 for all; left_out: lines
    about what was not measured. Raises UserError.
    """
    metrics = metrics_json(scores, settings or {}, versions or {}) | {"left out": list(left_out)}
    contents = {
        "metrics.json": json.dumps(metrics, indent=2, ensure_ascii=False),
        "table.md": f"{summary_table(scores)}\n\n{full_table(scores)}\n",
        "report.html": html_page(scores, [*left_out, *notes(scores)], gallery),
    }
    for name, text in contents.items():
        try:
            write_text(output / name, text)
        except OSError as error:
            raise UserError(
                f"{output / name} cannot be written: {error.strerror}; make room, the same command "
                "continues from the answers"
            ) from None
    return metrics


def metrics_json(scores: Scores, settings: dict, versions: dict) -> dict:
    """The content of metrics.json. "pictures" counts the images; undefined numbers are null."""
    columns: dict[str, dict] = {}
    for column_name, column in scores.columns.items():
        columns[column_name] = {}
        for name, metric in column.metrics.items():
            low, high = scores.intervals[column_name, name]
            columns[column_name][name] = {
                "value": _or_none(metric.value),
                "low": _or_none(low),
                "high": _or_none(high),
            }
        columns[column_name][DISTINCT] = {"value": column.distinct}

    p_values = {}
    for (one, other), of_pair in scores.p_values.items():
        p_values[f"{one} / {other}"] = {name: _or_none(p) for name, p in of_pair.items()}

    scenes: dict[str, dict] = {}
    for of_class in scores.classes:
        scenes[of_class.key] = {}
        for scene, share, images in of_class.shares:
            scenes[of_class.key][scene] = {"share": share, "pictures": images}

    return {
        "settings": settings,
        "versions": versions,
        "pictures": len(scores.dataset.images),
        "warnings": scores.warnings,
        "columns": columns,
        "p": p_values,
        "scenes": scenes,
    }


def _or_none(value: float) -> float | None:
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else value


def notes(scores: Scores) -> list[str]:
    """What was measured how, in a paragraph each, and p-values."""
    dataset = scores.dataset
    lines = [
        f"{len(dataset.images)} images, {sum(map(len, dataset.comparable))} references; BLEU, "
        "ROUGE-L, CIDEr and chrF on characters without punctuation (or jieba's words), BLEU and "
        "chrF 0 to 100, CIDEr as coco-caption gives it (papers often print it x 100).",
        f"Intervals: 95 %, {scores.resamples} bootstrap resamples of the images. "
        f"chrF: sacrebleu {CHRF_METRIC.get_signature()}",
    ]
    for name, meaning in BASELINE_NOTES.items():
        if name in scores.columns:
            lines.append(f"{name}: {meaning}.")
    if any(UNSEEN in name for name in scores.columns):
        lines.append(
            f"{UNSEEN}: the images none of whose references is a training caption, word for word."
        )
    lines.append(
        "CHAIR counts an object that none of an image's references mentions as hallucinated: "
        "the fewer references, the higher it is."
    )

    for (one, other), p_values in scores.p_values.items():
        texts = []
        for name, p in p_values.items():
            if name in COMPARED:
                texts.append(f"{name} {'-' if math.isnan(p) else f'{p:.3f}'}")
        lines.append(f"{one} against {other}, p: {', '.join(texts)}")
    return lines
