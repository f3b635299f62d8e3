"""Baselines that need no trained model: they say how much a number is worth."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from .metrics import Cider, tokens

COMMON = 0.01  # share of the training captions that makes a caption common
# The descriptor's levels a color channel, bins of half a turn, and image side in pixels
COLORS = 4
DIRECTIONS = 12
SIDE = 96
EDGE_STRENGTHS = (4, 12, 36)  # gray levels per pixel: between flat, weak, middling and strong edges

# Names of their columns in every table
HUMAN, LABEL, CONSTANT, NEAREST = BASELINES = ("human", "label", "constant", "nearest")


def constant_caption(captions: list[str]) -> str:
    """The commonest training caption.

    Where none makes up COMMON of them it is the most typical one: by the n-grams shared with all.
    """
    counts = Counter(captions)
    highest = max(counts.values())
    if highest >= COMMON * len(captions):
        candidates = [caption for caption in counts if counts[caption] == highest]
    else:
        candidates = list(counts)

    tokenized = {caption: tokens(caption) for caption in counts}
    cider = Cider([[tokenized[caption]] for caption in captions])
    vectors = {caption: cider.vector(tokenized[caption]) for caption in counts}
    center: dict = defaultdict(float)
    for caption, (weights, norms, _) in vectors.items():
        for gram, weight in weights.items():
            center[gram] += counts[caption] * weight / (norms[len(gram) - 1] or 1)

    def typicality(caption):
        weights, norms, _ = vectors[caption]
        similarity = 0.0
        for gram, weight in weights.items():
            similarity += weight * center[gram] / (norms[len(gram) - 1] or 1)
        return similarity

    return max(candidates, key=lambda caption: (typicality(caption), caption))


def descriptor(image) -> np.ndarray:
    """PIL RGB image -> float64 [112]: histograms of its colors, and of its edges.

    Edges are counted by direction and strength. The dot product of two descriptors is the
    Bhattacharyya coefficient of both histograms, summed.
    """
    pixels = np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32)  # [SIDE, SIDE, 3]
    cells = (pixels.astype(int) * COLORS // 256) @ (COLORS**2, COLORS, 1)
    colors = np.bincount(cells.ravel(), minlength=COLORS**3)

    down, right = np.gradient(pixels.mean(-1))
    strength = np.digitize(np.hypot(down, right), EDGE_STRENGTHS)
    direction = (np.arctan2(down, right) % np.pi * DIRECTIONS / np.pi).astype(int) % DIRECTIONS
    bins = (strength * DIRECTIONS + direction).ravel()
    edges = np.bincount(bins, minlength=(len(EDGE_STRENGTHS) + 1) * DIRECTIONS)
    return np.sqrt(np.concatenate([colors, edges]) / SIDE**2)


def nearest(images: Iterable, candidates: Iterable) -> np.ndarray:
    """For each image the index of the most similar candidate, by colors and edges alone.

    Both are iterables of PIL RGB images.
    """
    queries = np.stack([descriptor(image) for image in images])
    keys = np.stack([descriptor(image) for image in candidates])
    return (queries @ keys.T).argmax(1)


def leave_one_out(references: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The human baseline: of each image's texts one, in turn another, and its remaining ones.

    Returns (one text an image, the other texts of each image).
    """
    chosen, others = [], []
    for index, texts in enumerate(references):
        turn = index % len(texts)
        chosen.append(texts[turn])
        others.append([*texts[:turn], *texts[turn + 1 :]])
    return chosen, others
