"""What no trained model is needed for: the rows of the table that say how much a number is worth."""

from collections import Counter

import numpy as np

from .metrics import Cider, tokens

COMMON = 0.01
COLOURS, DIRECTIONS, SIDE = 4, 12, 96  # levels a channel, bins of half a turn, pixels of a side


def constant_caption(captions):
    """The commonest training caption, or where none makes up COMMON of them the most typical: by the n-grams shared with all others."""
    count = Counter(captions)
    most = max(count.values())
    most = most if most >= COMMON * len(captions) else 0
    words = {caption: tokens(caption) for caption in count}
    cider, centre = Cider([[words[caption]] for caption in captions]), Counter()
    vectors = {caption: cider.vector(words[caption]) for caption in count}
    for caption, (weights, norms, _) in vectors.items():
        for gram, weight in weights.items():
            centre[gram] += count[caption] * weight / (norms[len(gram) - 1] or 1)

    def typical(caption):
        weights, norms, _ = vectors[caption]
        return sum(
            weight * centre[gram] / (norms[len(gram) - 1] or 1) for gram, weight in weights.items()
        )

    return max(
        (caption for caption in count if not most or count[caption] == most),
        key=lambda caption: (typical(caption), caption),
    )


def descriptor(image):
    """PIL RGB image -> float array: how often which colour, and which direction of edges weak, middling and strong ones have."""
    pixels = np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32)
    cells = (pixels.astype(int) * COLOURS // 256) @ (COLOURS**2, COLOURS, 1)
    down, right = np.gradient(pixels.mean(-1))
    strength = np.digitize(np.hypot(down, right), (4, 12, 36))
    direction = (np.arctan2(down, right) % np.pi * DIRECTIONS / np.pi).astype(int) % DIRECTIONS
    edges = np.bincount((strength * DIRECTIONS + direction).ravel(), minlength=4 * DIRECTIONS)
    return np.sqrt(
        np.concatenate([np.bincount(cells.ravel(), minlength=COLOURS**3), edges]) / SIDE**2
    )


def nearest(images, known):
    """For each picture the index of the most similar one of `known`, by colours and edges alone; iterables of PIL images."""
    asked, told = (
        np.stack([descriptor(image) for image in images]),
        np.stack([descriptor(image) for image in known]),
    )
    return (asked @ told.T).argmax(1)


def leave_one_out(references):
    """People measured like a model: of each image's texts one, another in turn, and its others. Returns (held out, others)."""
    turns = [index % len(texts) for index, texts in enumerate(references)]
    return (
        [texts[turn] for texts, turn in zip(references, turns)],
        [[*texts[:turn], *texts[turn + 1 :]] for texts, turn in zip(references, turns)],
    )
