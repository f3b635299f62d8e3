"""All measures of all systems and reference rows, and what is written about them."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.lexicon import language
from model.errors import UserError

from . import report
from .baselines import constant_caption, leave_one_out, nearest
from .hallucination import (
    SETTINGS,
    existence_measures,
    hallucination_measures,
    objects_of,
    scene_right,
    truth,
)
from .metrics import CHRF_METRIC, UNITS, caption_measures, mean_of, tokens

SIGNIFICANT = 0.05
COPIES, DISTINCT = "copies of a training caption", "distinct outputs"
# What is printed; table.md, metrics.json and the report have everything
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
REFERENCE_ROWS = {
    "human": "one reference of each picture against its others",
    "label": "the first description of each picture against its other texts, as far as they are of use",
    "constant": "one training caption for every picture: the commonest, or where hardly any comes twice the most typical",
    "nearest": "the caption of the training picture with the most similar colours and edges",
}


class Scores:
    """The table: columns of measures, {column: {measure: Measure}}.

    references: texts of each picture, the first its description; truths and questions: see hallucination.py;
    train: {training picture: its captions}; read: opens a picture as PIL RGB; documents: the references from which CIDEr learns
    how common n-grams are, if other ones.
    """

    def __init__(
        self,
        pictures,
        references,
        truths,
        questions,
        train,
        read,
        *,
        seed=0,
        resamples=1000,
        documents=None,
    ):
        self.pictures, self.references, self.truths, self.questions, self.read = (
            pictures,
            references,
            truths,
            questions,
            read,
        )
        self.train, self.captions = train, [text for texts in train.values() for text in texts]
        self.known = set(map(tokens, self.captions))
        spoken = language(references[0][0])
        self.same = [[text for text in texts if language(text) == spoken] for texts in references]
        self.documents = documents or self.same
        self.resampling = {"seed": seed, "resamples": resamples}
        self.columns, self.answers, self.distinct, self.p_values, self.warnings = {}, {}, {}, {}, []

    def measures(self, answers, references=None, truths=None):
        """{measure: Measure} of one text per picture; without `references` where there is nothing to compare texts with."""
        found = {}
        if references is not None:
            by_unit = caption_measures(answers, references, self.documents)
            found = {
                f"{name}, {unit}" if unit != UNITS[0] else name: measure
                for unit in UNITS
                for name, measure in by_unit[unit].items()
            }
        found |= hallucination_measures(answers, truths or self.truths)
        if self.known:
            found[COPIES] = mean_of(
                [100 * (tokens(text) in self.known) for text in answers], better=0
            )
        return found

    def column(self, name, answers, **more):
        self.answers[name] = answers
        self.columns[name] = self.measures(answers, **more)
        self.distinct[name] = 100 * len(set(answers)) / len(answers)

    def add(self, system):
        """A column for the system's answers, one for each control, and what the controls tell about it."""
        self.column(system.name, system.answers, references=self.same)
        if empty := sum(not tokens(text) for text in system.answers):
            self.warnings.append(
                f"{system.name}: {empty} of {len(self.pictures)} answers are empty, which counts as nothing hallucinated"
            )
        elif len(set(system.answers)) == 1 < len(self.pictures):
            self.warnings.append(
                f"{system.name}: says the same of all {len(self.pictures)} pictures"
            )
        if system.replies:
            for setting in SETTINGS:
                asked = self.questions[setting]
                replies = [system.replies[index, question] for index, _, _, question in asked]
                self.columns[system.name] |= {
                    f"POPE {name}, {setting}": measure
                    for name, measure in existence_measures(
                        asked, replies, len(self.pictures)
                    ).items()
                }
        for control, answers in system.controls.items():
            self.column(f"{system.name}, {control}", answers, references=self.same)
            self.compare(system.name, f"{system.name}, {control}")
            if control == "swapped images":
                self.judge(system.name, f"{system.name}, {control}")
        unseen = [
            i for i, texts in enumerate(self.same) if not self.known & set(map(tokens, texts))
        ]
        if self.known and 0 < len(unseen) < len(self.pictures):
            part = Scores(
                *(
                    [known[i] for i in unseen]
                    for known in (self.pictures, self.references, self.truths)
                ),
                {},
                self.train,
                self.read,
                documents=self.same,
            )
            part.column("", [system.answers[i] for i in unseen], references=part.same)
            name = f"{system.name}, unseen captions ({len(unseen)})"
            self.columns[name], self.distinct[name] = part.columns[""], part.distinct[""]

    def compare(self, one, other):
        """p-values of what both columns have, by approximate randomization."""
        self.p_values[one, other] = {
            name: measure.p_value(self.columns[other][name], **self.resampling)
            for name, measure in self.columns[one].items()
            if name in self.columns[other] and measure.better
        }

    def judge(self, name, swapped):
        """Warn of a system that describes the right pictures no better than it describes other ones."""
        own, others, p = (
            *(self.columns[column]["CIDEr"].value for column in (name, swapped)),
            self.p_values[name, swapped]["CIDEr"],
        )
        if not p < SIGNIFICANT or own <= others:
            self.warnings.append(
                f"nothing shows that {name} looks at the picture: CIDEr {own:.2f} with the right pictures, {others:.2f} with other "
                f"ones (p = {p:.3f}, {len(self.pictures)} pictures)"
            )

    def add_reference_rows(self):
        """Columns of no system: people, the commonest training caption, and the caption of the most similar training picture."""
        if min(map(len, self.references)) > 1:
            ordered = [
                [*same, *(text for text in texts if text not in same)]
                for same, texts in zip(self.same, self.references)
            ]
            several = min(map(len, self.same)) > 1
            held_out, others = leave_one_out(
                self.same if several else [[same[0]] for same in self.same]
            )
            rest = [
                [text for text in texts if text != one] for texts, one in zip(ordered, held_out)
            ]
            self.column(
                "human" if several else "label",
                held_out,
                references=others if several else None,
                truths=list(map(truth, rest)),
            )
        if self.captions:
            self.column(
                "constant",
                [constant_caption(self.captions)] * len(self.pictures),
                references=self.same,
            )
            known = list(self.train)
            best = nearest(
                map(self.read, self.pictures),
                tqdm(
                    map(self.read, known),
                    total=len(known),
                    desc="training pictures",
                    unit="picture",
                ),
            )
            self.column("nearest", [self.train[known[i]][0] for i in best], references=self.same)

    def rows(self):
        """[(measure, {column: (value, interval)})] as texts, in the order of the table."""
        names = list(dict.fromkeys(name for measures in self.columns.values() for name in measures))
        rows = []
        for name in names:
            cells = {}
            for column, measures in self.columns.items():
                if name in measures:
                    value, between = (
                        measures[name].value,
                        "({} - {})".format(*map(report.number, self.intervals[column, name])),
                    )
                    cells[column] = report.number(value), "" if math.isnan(value) else between
            rows.append((name, cells))
        rows.append(
            (
                DISTINCT,
                {column: (report.number(value), "") for column, value in self.distinct.items()},
            )
        )
        return rows

    def short(self, column, name):
        """A cell of the printed table: the value and half the width of its interval."""
        if name not in self.columns[column]:
            return report.number(self.distinct[column]) if name == DISTINCT else "-"
        value, (low, high) = self.columns[column][name].value, self.intervals[column, name]
        return (
            report.number(value)
            if math.isnan(value)
            else f"{report.number(value)}±{report.number((high - low) / 2)}"
        )

    def classes(self, systems):
        """Per scene of the references: how many pictures, how often named rightly, how often something is hallucinated."""
        scenes = sorted({known.scene for known in self.truths if known.scene})
        for heading, better, share in (
            ("Scene named rightly", True, scene_right),
            (
                "Captions with a hallucinated object",
                False,
                lambda text, known: any(not right for *_, right in objects_of(text, known)),
            ),
        ):
            for system in systems:
                lines = []
                for scene in scenes:
                    values = [
                        bool(share(text, known))
                        for text, known in zip(self.answers[system], self.truths)
                        if known.scene == scene
                    ]
                    lines.append((scene, 100 * float(np.mean(values)), len(values)))
                yield f"{heading}: {system}", better, lines

    def worst_first(self, system):
        """Indices of the pictures: wrong scenes, then most hallucinated objects, then lowest CIDEr."""
        cider = self.columns[system]["CIDEr"].stats[:, 0]

        def badness(i):
            text, known = self.answers[system][i], self.truths[i]
            return (
                scene_right(text, known) is False,
                sum(not right for *_, right in objects_of(text, known)),
                -cider[i],
            )

        return sorted(range(len(self.pictures)), key=badness, reverse=True)

    def write(self, output, systems, settings, versions, gallery=0):
        """metrics.json, table.md and report.html in the folder `output`; returns what metrics.json holds."""
        self.intervals = {
            (column, name): measure.interval(**self.resampling)
            for column, measures in self.columns.items()
            for name, measure in measures.items()
        }
        names = [system.name for system in systems]
        for other, one in combinations(names, 2):
            self.compare(one, other)
        classes = list(self.classes(names))
        lines = [
            f"{len(self.pictures)} pictures, {sum(map(len, self.same))} references; BLEU, ROUGE-L, CIDEr and chrF on characters without punctuation "
            "(or jieba's words), BLEU and chrF 0 to 100, CIDEr as coco-caption gives it (papers often print it x 100).",
            f"Intervals: 95 %, {self.resampling['resamples']} bootstrap resamples of the pictures. chrF: sacrebleu {CHRF_METRIC.get_signature()}",
        ]
        lines += [
            f"{name}: {meaning}."
            for name, meaning in REFERENCE_ROWS.items()
            if name in self.columns
        ]
        if any("unseen captions" in column for column in self.columns):
            lines.append(
                "unseen captions: the pictures none of whose references is a training caption, word for word."
            )
        lines.append(
            "CHAIR counts an object that none of a picture's references mentions as hallucinated: the fewer references, the higher it is."
        )
        lines += [
            f"{one} against {other}, p: "
            + ", ".join(
                f"{name} {'-' if math.isnan(p) else f'{p:.3f}'}"
                for name, p in values.items()
                if name in ("chrF", "CIDEr", "scene accuracy", "CHAIR_i", "CHAIR_s")
            )
            for (one, other), values in self.p_values.items()
        ]
        metrics = {
            "settings": settings,
            "versions": versions,
            "pictures": len(self.pictures),
            "warnings": self.warnings,
            "columns": {
                column: {
                    name: {
                        "value": plain(measure.value),
                        "low": plain(self.intervals[column, name][0]),
                        "high": plain(self.intervals[column, name][1]),
                    }
                    for name, measure in measures.items()
                }
                | {DISTINCT: {"value": self.distinct[column]}}
                for column, measures in self.columns.items()
            },
            "p": {
                f"{one} / {other}": {name: plain(p) for name, p in values.items()}
                for (one, other), values in self.p_values.items()
            },
            "scenes": {
                heading: {
                    label: {"share": share, "pictures": count} for label, share, count in shares
                }
                for heading, _, shares in classes
            },
        }
        columns = sorted(
            self.columns, key=lambda column: (column not in names, column not in REFERENCE_ROWS)
        )  # controls last
        rows = self.rows()
        main = sorted((row for row in rows if row[0] in MAIN), key=lambda row: MAIN.index(row[0]))
        table = report.markdown(
            ["system", *(name for name, _ in main)],
            [[column, *(self.short(column, name) for name, _ in main)] for column in columns],
        )
        everything = report.markdown(
            ["measure", *columns],
            [
                [name, *(" ".join(filter(None, cells.get(column, "-"))) for column in columns)]
                for name, cells in rows
            ],
        )
        cards = [
            (
                self.read(self.pictures[i]),
                Path(self.pictures[i]).name,
                self.references[i],
                [(name, self.answers[name][i]) for name in names],
                self.truths[i],
            )
            for i in self.worst_first(names[-1])[: gallery or None]
        ]
        page = report.html_page(
            title=f"RemoteGLM: {', '.join(names)}",
            lines=lines,
            warnings=self.warnings,
            columns=columns,
            rows=main,
            others=[row for row in rows if row not in main],
            classes=classes,
            cards=cards,
        )
        print(table, *self.warnings, sep="\n")
        try:
            for file, text in (
                ("metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False)),
                ("table.md", f"{table}\n\n{everything}\n"),
                ("report.html", page),
            ):
                (output / file).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{output / file} cannot be written: {error.strerror}; make room, the same command goes on from the answers"
            ) from None
        print(
            f"report: {output / 'report.html'}; all measures: {output / 'table.md'}, {output / 'metrics.json'}"
        )
        return metrics


def plain(value):
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else value
