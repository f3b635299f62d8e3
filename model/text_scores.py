"""How likely answers begin with given texts: the arithmetic, whatever network the logits are of.

The texts of a row mostly differ in their last word. What they share is read once, as a trunk; what
differs stands behind it as branches.

Trap: a text may end inside a token of the answer (停车场 within the piece 停车场里). Tokens that go
beyond its end count as well.

Shapes: K tokens of a row's trunk and branches, V words of the vocabulary.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch

Endings = Callable[[list[int]], list[list[int]]]  # Pieces.endings, from ids alone


class Pieces:
    """The pieces of a vocabulary, of which a text's are always the same characters in a row.

    names: by id.
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)
        self._sorted = sorted((name, index) for index, name in enumerate(self.names))

    def endings(self, ids: list[int]) -> list[list[int]]:
        """For each token, those that in its place bring the text to its end, or beyond it.

        Of 停车 + 场 these are at the first place 停车场 and 停车场里, if there are such pieces, and
        at the second 场 and all that begin with it.
        """
        found = []
        rest = ""
        for token in reversed(ids):
            rest = self.names[token] + rest
            start = bisect_left(self._sorted, (rest,))
            matching = []
            for name, index in islice(self._sorted, start, None):
                if not name.startswith(rest):
                    break
                matching.append(index)
            found.append(matching)
        return found[::-1]


@dataclass
class Tree:
    """The texts of one row, their tokens in a line, those of the trunk first.

    places: of each token its index in the answer; parents: the token before it, -1: the prompt;
    paths: the tokens of each text; trunk: how many tokens all of them share.
    """

    ids: list[int]
    places: list[int]
    parents: list[int]
    paths: list[list[int]]
    trunk: int

    @classmethod
    def of(cls, texts: list[list[int]]) -> "Tree":
        trunk = _shared(texts)
        tree = cls([], [], [], [], len(trunk))
        shared = tree._append(trunk, [])
        for text in texts:
            tree.paths.append(tree._append(text[len(trunk) :], shared))
        return tree

    def _append(self, ids: list[int], path: list[int]) -> list[int]:
        """Add tokens behind those of `path`; returns the longer path."""
        path = list(path)
        for token in ids:
            self.ids.append(token)
            self.places.append(len(path))
            self.parents.append(path[-1] if path else -1)
            path.append(len(self.ids) - 1)
        return path

    def visible(self) -> torch.Tensor:
        """bool [K, K]: each token sees itself and those before it in its text."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for token, parent in enumerate(self.parents):
            if parent >= 0:
                seen[token] |= seen[parent]
        return seen


def _shared(texts: list[list[int]]) -> list[int]:
    """The longest beginning that all texts have in common."""
    shortest = min(texts, key=len)
    for index, token in enumerate(shortest):
        if any(text[index] != token for text in texts):
            return shortest[:index]
    return shortest


def text_scores(tree: Tree, after: torch.Tensor, endings: Endings) -> list[float]:
    """The natural log probability of each text as the beginning of the answer.

    after: log probabilities [1 + K, V] of what follows the prompt and each token of the tree; that
    of a text's last token is not read.
    """
    rows = torch.tensor(tree.parents, dtype=torch.long, device=after.device) + 1
    ids = torch.tensor(tree.ids, dtype=torch.long, device=after.device)
    steps = after[rows, ids].tolist()
    sums: list[float] = []  # of each token with all before it
    for step, parent in zip(steps, tree.parents):
        sums.append(step + (sums[parent] if parent >= 0 else 0.0))

    scores = []
    for path in tree.paths:
        terms = [] if path else [0.0]
        for token, ending in zip(path, endings([tree.ids[token] for token in path])):
            parent = tree.parents[token]
            if ending:
                before = sums[parent] if parent >= 0 else 0.0
                terms.append(before + after[parent + 1, ending].logsumexp(0).item())
        scores.append(torch.tensor(terms, dtype=torch.float64).logsumexp(0).item())
    return scores
