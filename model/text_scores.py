"""How likely answers begin with given texts: the arithmetic, whatever network the logits are of.

The texts of a row mostly differ in their last word. What they share is read once, as a trunk; what
differs stands behind it as branches.

Trap: a text may end inside a token of the answer. Tokens that go beyond its end count as well, see
model/pieces.py.

Shapes: K tokens of a row's trunk and branches, V words of the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Endings = Callable[[list[int]], list[list[int]]]  # Pieces.endings, from ids alone


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
