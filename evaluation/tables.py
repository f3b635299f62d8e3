"""Scores as rows of texts and as Markdown tables."""

import math
from collections.abc import Sequence

from .baselines import BASELINES
from .hallucination import SETTINGS
from .score import Scores

DISTINCT = "distinct outputs"
# What is printed; the files have everything
MAIN = (
    "chrF",
    "CIDEr",
    "scene accuracy",
    "CHAIR_i",
    "CHAIR_s",
    "object recall",
    "objects per caption",
    *(f"POPE F1, {setting}" for setting in SETTINGS),
    DISTINCT,
)
# (metric, {column: (value, interval)}), all of them texts
Row = tuple[str, dict[str, tuple[str, str]]]


def number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def column_order(scores: Scores) -> list[str]:
    """Systems, then baselines, then image ablations and unseen captions."""

    def rank(name):
        if name in scores.systems:
            return 0
        return 1 if name in BASELINES else 2

    return sorted(scores.columns, key=rank)


def metric_rows(scores: Scores) -> list[Row]:
    """A row for each metric: of each column that has it the value, and its interval or ""."""
    rows: dict[str, dict[str, tuple[str, str]]] = {}
    for column_name, column in scores.columns.items():
        for name, metric in column.metrics.items():
            low, high = scores.intervals[column_name, name]
            between = f"({number(low)} - {number(high)})"
            if math.isnan(metric.value):
                between = ""
            rows.setdefault(name, {})[column_name] = number(metric.value), between

    rows[DISTINCT] = {
        name: (number(column.distinct), "") for name, column in scores.columns.items()
    }
    return list(rows.items())


def main_rows(rows: list[Row]) -> list[Row]:
    """Those of the printed table, in its order."""
    by_name = dict(rows)
    return [(name, by_name[name]) for name in MAIN if name in by_name]


def summary_table(scores: Scores) -> str:
    """The printed table: a line for each column of scores, values ± half of their intervals."""
    names = [name for name, _ in main_rows(metric_rows(scores))]
    lines = []
    for column_name in column_order(scores):
        lines.append([column_name, *(_short_cell(scores, column_name, name) for name in names)])
    return markdown(["system", *names], lines)


def _short_cell(scores: Scores, column_name: str, name: str) -> str:
    column = scores.columns[column_name]
    if name == DISTINCT:
        return number(column.distinct)
    if name not in column.metrics:
        return "-"

    value = column.metrics[name].value
    if math.isnan(value):
        return number(value)
    low, high = scores.intervals[column_name, name]
    return f"{number(value)}±{number((high - low) / 2)}"


def full_table(scores: Scores) -> str:
    """Every metric with its interval."""
    columns = column_order(scores)
    lines = []
    for name, cells in metric_rows(scores):
        line = [name]
        for column in columns:
            line.append(" ".join(cells.get(column, ("-", ""))).strip())
        lines.append(line)
    return markdown(["metric", *columns], lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A list of texts and lists of as many texts -> a Markdown table with straight columns."""
    lines = [[text.replace("|", "\\|") for text in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    rendered = []
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line, widths)]
        rendered.append(f"| {' | '.join(cells)} |")
    return "\n".join(rendered)
