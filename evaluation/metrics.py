"""How near answers come to references: BLEU, ROUGE-L, CIDEr and chrF, with intervals and a test.

Every metric is a formula over statistics that are summed over the images (its `stats`), so that
bootstrap resamples of the images cost one matrix product.

Sources: BLEU, ROUGE-L and CIDEr-D as coco-caption computes them (pycocoevalcap); chrF by sacrebleu.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF

from data.lexicon import language

UNITS = ("characters", "words")
ORDERS = range(1, 5)  # of the n-grams of BLEU and CIDEr
RESAMPLES = 1000
CIDER_SIGMA = 6.0
ROUGE_BETA = 1.2
# coco-caption's guards against division by zero, in the numerator and in the denominator
TINY = 1e-15
SMALL = 1e-9
# sacrebleu's defaults: chrF2 of up to 6 characters, without spaces
CHRF_METRIC = CHRF()

Tokens = tuple[str, ...]


@lru_cache(2)
def bootstrap_counts(images: int, seed: int, resamples: int) -> np.ndarray:
    """How often each image is drawn, float64 [resamples, images]: the same for every metric."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), resamples).astype(float)


@lru_cache(2)
def exchanges(images: int, seed: int, resamples: int) -> np.ndarray:
    """Whether two systems exchange their answers about an image, 0. or 1. [resamples, images]."""
    return np.random.default_rng(seed).integers(0, 2, (resamples, images)).astype(float)


@dataclass(frozen=True)
class Metric:
    """One metric of one system.

    stats: float64 [images, K]; formula: sums [..., K] -> values [...], nan where undefined.
    better: +1 where more is better, -1 where less is, 0 where it only describes.
    """

    stats: np.ndarray
    formula: Callable[[np.ndarray], Any]
    better: int = 1

    @property
    def value(self) -> float:
        return float(self.formula(self.stats.sum(0)))

    def interval(self, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
        """Bootstrap 95 % interval over the images: (low, high)."""
        counts = bootstrap_counts(len(self.stats), seed, resamples)
        values = self.formula(counts @ self.stats)
        values = values[~np.isnan(values)]
        if not len(values):
            return math.nan, math.nan

        low, high = np.percentile(values, (2.5, 97.5))
        return float(low), float(high)

    def p_value(self, other: "Metric", seed: int = 0, resamples: int = RESAMPLES) -> float:
        """Two-sided approximate randomization test of the difference between two systems.

        How often would exchanging their answers, image by image at random, set them as far apart
        as they are? other: the same metric of another system on the same images.
        """
        if math.isnan(self.value) or math.isnan(other.value):
            return math.nan

        moved = exchanges(len(self.stats), seed, resamples) @ (other.stats - self.stats)
        one = self.formula(self.stats.sum(0) + moved)
        two = self.formula(other.stats.sum(0) - moved)
        as_far_apart = np.abs(one - two) >= abs(self.value - other.value) - 1e-12
        return float((1 + np.sum(as_far_apart)) / (1 + resamples))


def mean_of(values: Iterable, better: int = 1) -> Metric:
    """The mean of numbers, one an image; None is left out."""
    values = list(values)
    counted = np.array([value is not None for value in values], dtype=float)
    numbers = np.array([value or 0 for value in values], dtype=float)
    return ratio_of(numbers, counted, better)


def ratio_of(part, whole, better: int = 1) -> Metric:
    """sum(part) / sum(whole) of two sequences of numbers, one an image."""
    stats = np.stack([np.asarray(part, float), np.asarray(whole, float)], 1)
    return Metric(stats, divide, better)


def divide(sums: np.ndarray) -> np.ndarray:
    """[..., 2] -> [...]: the first by the second, nan where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


@cache
def _segmenter():
    # Imported where it is needed: it takes a second, and characters need no segmentation.
    import jieba

    segmenter = jieba.Tokenizer()
    # Not jieba's cache: it lies in the temporary folder that all users of a machine share, where
    # anybody's is read, and reading it is no faster than the dictionary.
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter.lcut


@lru_cache(2**16)
def tokens(text: str, unit: str = "characters", punctuation: bool = False) -> Tokens:
    """A text -> tuple of tokens, full- and half-width forms unified.

    unit: "characters" (all but white space) or "words" (jieba's lcut). Text without a Chinese
    character is split into lower-case words either way. punctuation: keep it.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    if language(text) == "en":
        pieces = re.findall(r"\w+|[^\w\s]", text)
    elif unit == "characters":
        pieces = list(text)
    else:
        pieces = _segmenter()(text)

    pieces = [piece for piece in pieces if piece.strip()]
    if not punctuation:
        pieces = [piece for piece in pieces if not _is_punctuation(piece)]
    return tuple(pieces)


def _is_punctuation(piece: str) -> bool:
    return all(unicodedata.category(character)[0] == "P" for character in piece)


@lru_cache(4096)
def ngrams(text: Tokens) -> Counter:
    """Counter of the n-grams of a tuple of tokens, n = 1 to 4, as tuples."""
    counts: Counter = Counter()
    for n in ORDERS:
        counts.update(text[i : i + n] for i in range(len(text) - n + 1))
    return counts


def bleu(hypotheses: list[Tokens], references: list[list[Tokens]]) -> dict[str, Metric]:
    """{"BLEU-1": Metric, ..., "BLEU-4"}: corpus BLEU, closest reference length, no smoothing.

    hypotheses: tuples of tokens, one an image; references: lists of those.
    """
    rows = [_bleu_statistics(*pair) for pair in zip(hypotheses, references)]
    stats = np.array(rows, dtype=float)
    return {f"BLEU-{order}": Metric(stats, _bleu_formula(order)) for order in ORDERS}


def _bleu_statistics(hypothesis: Tokens, references: list[Tokens]) -> list[int]:
    """Matched n-grams, n = 1 to 4; all n-grams; length; length of the closest reference."""
    largest: Counter = Counter()
    for reference in references:
        largest |= ngrams(reference)
    clipped = ngrams(hypothesis) & largest
    matched: Counter = Counter()
    for gram, count in clipped.items():
        matched[len(gram)] += count

    length = len(hypothesis)
    total = [max(0, length - n + 1) for n in ORDERS]
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    return [*(matched[n] for n in ORDERS), *total, length, closest]


def _bleu_formula(order: int) -> Callable[[np.ndarray], np.ndarray]:
    def formula(sums):
        precisions = (sums[..., :order] + TINY) / (sums[..., 4 : 4 + order] + SMALL)
        mean_precision = np.prod(precisions, -1) ** (1 / order)
        length_ratio = (sums[..., 8] + TINY) / (sums[..., 9] + SMALL)
        brevity_penalty = np.exp(np.minimum(0, 1 - 1 / length_ratio))
        return 100 * mean_precision * brevity_penalty

    return formula


def common_subsequence(a: Sequence, b: Sequence) -> int:
    """Length of the longest common subsequence, by Hyyrö's bit-parallel recurrence."""
    places: dict = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i

    full = row = (1 << len(a)) - 1
    for token in b:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()


def rouge_l(hypotheses: list[Tokens], references: list[list[Tokens]]) -> Metric:
    """ROUGE-L: the best precision and the best recall over an image's references."""
    return mean_of(_rouge_l(*pair) for pair in zip(hypotheses, references))


def _rouge_l(hypothesis: Tokens, references: list[Tokens]) -> float:
    precision = recall = 0.0
    for reference in references:
        common = common_subsequence(hypothesis, reference)
        if common:
            precision = max(precision, common / len(hypothesis))
            recall = max(recall, common / len(reference))

    if not precision:
        return 0
    return 100 * (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


class Cider:
    """CIDEr-D; the IDF weight of an n-gram comes from `documents`, the references of each image."""

    def __init__(self, documents: list[list[Tokens]]):
        self.log_images = math.log(len(documents))
        self.document_frequency: Counter = Counter()
        for references in documents:
            self.document_frequency.update(set().union(*map(ngrams, references)))
        self.vector = lru_cache(4096)(self._vector)

    def _vector(self, text: Tokens) -> tuple[dict[Tokens, float], list[float], int]:
        """({n-gram: TF-IDF weight}, norms of n = 1 to 4, number of bigrams)"""
        weights = {}
        squares = [0.0] * len(ORDERS)
        for gram, count in ngrams(text).items():
            weight = count * (self.log_images - math.log(max(1, self.document_frequency[gram])))
            weights[gram] = weight
            squares[len(gram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], max(0, len(text) - 1)

    def similarity(self, hypothesis, reference) -> float:
        """Of two vectors, 0 to 10; the hypothesis is clipped to the reference."""
        weights, norms, length = hypothesis
        other_weights, other_norms, other_length = reference
        products = [0.0] * len(ORDERS)
        for gram, weight in weights.items():
            if gram in other_weights:
                products[len(gram) - 1] += min(weight, other_weights[gram]) * other_weights[gram]

        cosines = 0.0
        for product, norm, other_norm in zip(products, norms, other_norms):
            if norm and other_norm:
                cosines += product / (norm * other_norm)
        length_penalty = math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))
        return 10 * cosines / len(ORDERS) * length_penalty

    def __call__(self, hypotheses: list[Tokens], references: list[list[Tokens]]) -> Metric:
        if not self.log_images:  # one document: every weight is log 1 = 0, whatever is answered
            return mean_of([None] * len(hypotheses))

        values = []
        for hypothesis, texts in zip(hypotheses, references):
            vector = self.vector(hypothesis)
            total = sum(self.similarity(vector, self.vector(text)) for text in texts)
            values.append(total / len(texts))
        return mean_of(values)


def chrf(hypotheses: list[str], references: list[list[str]]) -> Metric:
    """Corpus chrF over texts (punctuation and spaces left out, full-width forms unified)."""
    # sacrebleu wants streams: of every image the first reference, then the second ..., or None
    streams: list[list] = []
    for i in range(max(map(len, references))):
        streams.append([_plain(texts[i]) if i < len(texts) else None for texts in references])
    statistics = CHRF_METRIC._extract_corpus_statistics(list(map(_plain, hypotheses)), streams)
    stats = np.array(statistics, dtype=float)

    def formula(sums):
        if np.ndim(sums) == 1:
            return CHRF_METRIC._compute_score_from_stats(list(sums)).score
        return np.array([formula(row) for row in sums])

    return Metric(stats, formula)


def _plain(text: str) -> str:
    return " ".join(tokens(text))


def caption_metrics(
    hypotheses: list[str],
    references: list[list[str]],
    documents: list[list[str]] | None = None,
) -> dict[str, dict[str, Metric]]:
    """All of the above: {"characters": {name: Metric}, "words": {...}}.

    hypotheses: a text per image; references: a list of texts per image; documents: the references
    that CIDEr takes its IDF weights from, where they are others.
    """
    metrics = {}
    for unit in UNITS:
        answers = [tokens(text, unit) for text in hypotheses]
        expected = _tokenized(references, unit)
        cider = Cider(_tokenized(documents or references, unit))
        metrics[unit] = bleu(answers, expected)
        metrics[unit]["ROUGE-L"] = rouge_l(answers, expected)
        metrics[unit]["CIDEr"] = cider(answers, expected)
    metrics["characters"]["chrF"] = chrf(hypotheses, references)
    return metrics


def _tokenized(references: list[list[str]], unit: str) -> list[list[Tokens]]:
    return [[tokens(text, unit) for text in texts] for texts in references]
