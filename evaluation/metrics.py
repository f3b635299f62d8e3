"""How near answers come to references: BLEU, ROUGE-L, CIDEr and chrF, with bootstrap intervals and a paired test.

Every measure is a formula over numbers that are summed over the images, so that resampled images cost one matrix product.
Sources: BLEU, ROUGE-L and CIDEr-D as coco-caption computes them (pycocoevalcap); chrF by sacrebleu.
"""

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Callable

import numpy as np
from sacrebleu.metrics import CHRF

from data.lexicon import language

UNITS = ("characters", "words")
RESAMPLES = 1000
SIGMA, BETA = 6.0, 1.2  # of CIDEr-D and ROUGE-L
TINY, SMALL = 1e-15, 1e-9  # coco-caption's guards against division by zero
CHRF_METRIC = CHRF()  # its defaults, chrF2 of 6 characters; sacrebleu leaves spaces out


@lru_cache(2)
def drawn(images, seed, resamples):
    """How often each image is drawn, float64 [resamples, images]: the same resamples for every measure."""
    return (
        np.random.default_rng(seed)
        .multinomial(images, np.full(images, 1 / images), resamples)
        .astype(float)
    )


@lru_cache(2)
def exchanged(images, seed, resamples):
    """Whether an image's answers change sides, float64 [resamples, images] of 0 and 1."""
    return np.random.default_rng(seed).integers(0, 2, (resamples, images)).astype(float)


@dataclass(frozen=True)
class Measure:
    """stats: float64 [images, K]; formula: sums [..., K] -> values [...], nan where there is nothing to measure.

    better: +1 where more is better, -1 where less is, 0 where it only describes.
    """

    stats: np.ndarray
    formula: Callable
    better: int = 1

    @property
    def value(self):
        return float(self.formula(self.stats.sum(0)))

    def interval(self, seed=0, resamples=RESAMPLES):
        """Bootstrap 95 % interval over the images: (low, high)."""
        values = self.formula(drawn(len(self.stats), seed, resamples) @ self.stats)
        values = values[~np.isnan(values)]
        return (
            tuple(map(float, np.percentile(values, (2.5, 97.5))))
            if len(values)
            else (math.nan, math.nan)
        )

    def p_value(self, other, seed=0, resamples=RESAMPLES):
        """Two-sided approximate randomization: how often would exchanging the two systems' answers, image by image at
        random, set them as far apart as they are? other: the same measure of another system on the same images."""
        if math.isnan(self.value) or math.isnan(other.value):
            return math.nan
        moved = exchanged(len(self.stats), seed, resamples) @ (other.stats - self.stats)
        apart = np.abs(
            self.formula(self.stats.sum(0) + moved) - self.formula(other.stats.sum(0) - moved)
        )
        return float((1 + np.sum(apart >= abs(self.value - other.value) - 1e-12)) / (1 + resamples))


def mean_of(values, better=1):
    """The mean of numbers, one an image; None is left out."""
    known = np.array([value is not None for value in values], dtype=float)
    numbers = np.array([value or 0 for value in values], dtype=float)
    return ratio_of(numbers, known, better)


def ratio_of(part, whole, better=1):
    """sum(part) / sum(whole) of two sequences of numbers, one an image."""
    return Measure(np.stack([np.asarray(part, float), np.asarray(whole, float)], 1), divide, better)


def divide(sums):
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


@cache
def _segmenter():
    import logging

    import jieba

    jieba.setLogLevel(logging.WARNING)
    return jieba.lcut


@lru_cache(2**16)
def tokens(text, unit="characters", punctuation=False):
    """A text -> tuple of tokens, full- and half-width forms unified.

    unit: "characters" (all but white space) or "words" (jieba's lcut). Text without a Chinese character is split into
    lower-case words either way. punctuation: keep it.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    if language(text) == "en":
        found = re.findall(r"\w+|[^\w\s]", text)
    elif unit == "characters":
        found = list(text)
    else:
        found = _segmenter()(text)
    return tuple(
        token
        for token in found
        if token.strip()
        and (punctuation or not all(unicodedata.category(char)[0] == "P" for char in token))
    )


@lru_cache(4096)
def ngrams(words):
    """Counter of the n-grams of a tuple of tokens, n = 1 to 4, as tuples."""
    return Counter(words[i : i + n] for n in range(1, 5) for i in range(len(words) - n + 1))


def bleu(hypotheses, references):
    """{"BLEU-1": Measure, ..., "BLEU-4"}: corpus BLEU, closest reference length, no smoothing.

    hypotheses: tuples of tokens, one an image; references: lists of those."""
    rows = []
    for said, refs in zip(hypotheses, references):
        counts, most = ngrams(said), Counter()
        for ref in refs:
            most |= ngrams(ref)
        matched = Counter(
            len(gram) for gram, count in counts.items() for _ in range(min(count, most[gram]))
        )
        closest = min((abs(len(ref) - len(said)), len(ref)) for ref in refs)[1]
        rows.append(
            [
                *(matched[n] for n in range(1, 5)),
                *(max(0, len(said) - n + 1) for n in range(1, 5)),
                len(said),
                closest,
            ]
        )
    stats = np.array(rows, dtype=float)

    def formula(order):
        def value(sums):
            precisions = (sums[..., :order] + TINY) / (sums[..., 4 : 4 + order] + SMALL)
            length = (sums[..., 8] + TINY) / (sums[..., 9] + SMALL)
            return (
                100 * np.prod(precisions, -1) ** (1 / order) * np.exp(np.minimum(0, 1 - 1 / length))
            )

        return value

    return {f"BLEU-{order}": Measure(stats, formula(order)) for order in range(1, 5)}


def common_subsequence(a, b):
    """Length of the longest common subsequence of two sequences, by Hyyrö's bit-parallel recurrence."""
    places = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    everything = row = (1 << len(a)) - 1
    for token in b:
        met = row & places.get(token, 0)
        row = (row + met | row - met) & everything
    return len(a) - row.bit_count()


def rouge_l(hypotheses, references):
    """Measure of ROUGE-L, the best precision and the best recall over an image's references."""
    values = []
    for said, refs in zip(hypotheses, references):
        common = [(common_subsequence(said, ref), len(ref)) for ref in refs]
        precision = max(lcs for lcs, _ in common) / len(said) if said else 0
        recall = max(lcs / length if length else 0 for lcs, length in common)
        values.append(
            100 * (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
            if precision and recall
            else 0
        )
    return mean_of(values)


class Cider:
    """CIDEr-D; how telling an n-gram is comes from `documents`, the references of each image of the evaluated set."""

    def __init__(self, documents):
        self.images = math.log(len(documents))
        self.frequency = Counter(
            gram for refs in documents for gram in set().union(*map(ngrams, refs))
        )
        self.vector = lru_cache(4096)(self._vector)

    def _vector(self, words):
        """({n-gram: weight}, norms of n = 1 to 4, number of bigrams)"""
        counts = ngrams(words)
        weights = {
            gram: count * (self.images - math.log(max(1, self.frequency[gram])))
            for gram, count in counts.items()
        }
        squares = [0.0] * 4
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], max(0, len(words) - 1)

    def similarity(self, a, b):
        """Of two vectors, 0 to 10; a is clipped to b."""
        (weights, norms, length), (others, other_norms, other_length) = a, b
        products = [0.0] * 4
        for gram, weight in weights.items():
            if gram in others:
                products[len(gram) - 1] += min(weight, others[gram]) * others[gram]
        cosines = [
            product / (x * y) if x and y else 0.0
            for product, x, y in zip(products, norms, other_norms)
        ]
        return 10 * sum(cosines) / 4 * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))

    def __call__(self, hypotheses, references):
        if not self.images:  # one document: every weight is log 1 = 0, whatever is said
            return mean_of([None] * len(hypotheses))
        values = []
        for said, refs in zip(hypotheses, references):
            vector = self.vector(said)
            values.append(
                sum(self.similarity(vector, self.vector(ref)) for ref in refs) / len(refs)
            )
        return mean_of(values)


def chrf(hypotheses, references):
    """Measure of corpus chrF over texts (punctuation and spaces left out, full-width forms unified)."""
    plain = [" ".join(tokens(text)) for text in hypotheses]
    most = max(map(len, references))
    streams = [
        [" ".join(tokens(refs[i])) if i < len(refs) else None for refs in references]
        for i in range(most)
    ]
    stats = np.array(CHRF_METRIC._extract_corpus_statistics(plain, streams), dtype=float)

    def formula(sums):
        one = np.atleast_2d(sums)
        values = np.array([CHRF_METRIC._compute_score_from_stats(list(row)).score for row in one])
        return values if np.ndim(sums) > 1 else values[0]

    return Measure(stats, formula)


def caption_measures(hypotheses, references, documents=None):
    """All of the above: {"characters": {name: Measure}, "words": {...}}.

    hypotheses: a text per image; references: a list of texts per image; documents: the references that tell how common an
    n-gram is, where they are others.
    """
    measures = {}
    for unit in UNITS:
        said = [tokens(text, unit) for text in hypotheses]
        refs = [[tokens(text, unit) for text in texts] for texts in references]
        scored = Cider(
            [[tokens(text, unit) for text in texts] for texts in documents or references]
        )
        measures[unit] = bleu(said, refs) | {
            "ROUGE-L": rouge_l(said, refs),
            "CIDEr": scored(said, refs),
        }
    measures["characters"]["chrF"] = chrf(hypotheses, references)
    return measures
