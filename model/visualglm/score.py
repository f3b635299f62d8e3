"""How likely answers begin with given texts: one pass over the prompts, one over all texts.

The texts of a row mostly differ in their last word. What they share is read once, as a trunk; what
differs stands behind it as branches, which see the prompt, the trunk and themselves.

Trap: a text may end inside a token of the answer (停车场 within the piece 停车场里). Tokens that go
beyond its end count as well.

Shapes as in decoder.py; K tokens of a row's trunk and branches, padded.
"""

from dataclasses import dataclass

import torch

from model.visualglm.decoder import Decoder
from model.visualglm.network import VisualGLM
from model.visualglm.tokenizer import Tokenizer


@dataclass
class Tree:
    """The texts of one row, their tokens in a line.

    places: of each token its index in the answer; parents: the token before it, -1: the prompt;
    paths: the tokens of each text.
    """

    ids: list[int]
    places: list[int]
    parents: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, texts: list[list[int]]) -> "Tree":
        tree = cls([], [], [], [])
        trunk = _shared(texts)
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


@torch.inference_mode()
def score(
    network: VisualGLM,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    **image_arguments,
) -> list[list[float]]:
    """The log probability of each text as the beginning of the answer to its prompt.

    prompts: ids that end with `<sop>`; texts: for each prompt at least one, as ids;
    image_arguments: those of Decoder.prefill.
    """
    device = network.device
    trees = [Tree.of(of_row) for of_row in texts]
    width = max(1, *(len(tree.ids) for tree in trees))  # K
    shape = (len(trees), width)
    ids = torch.zeros(shape, dtype=torch.long)
    places = torch.zeros(shape, dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # [B, K, K]
    for row, tree in enumerate(trees):
        count = len(tree.ids)
        ids[row, :count] = torch.tensor(tree.ids)
        places[row, :count] = torch.tensor(tree.places)
        visible[row, :count, :count] = tree.visible()

    lengths = [len(prompt) for prompt in prompts]
    padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    decoder = Decoder(network, lengths, width, places.to(device))
    first = decoder.prefill(torch.tensor(padded, device=device), **image_arguments)  # [B, V]
    hidden = decoder.read(ids.to(device), visible.to(device))  # [B, K, D]
    scores = []
    for row, tree in enumerate(trees):
        # A row at a time: its logits are K times the vocabulary
        logits = torch.cat((first[row, None], decoder.stack.head(hidden[row, : len(tree.ids)])))
        scores.append(_text_scores(tree, logits.float().log_softmax(-1), tokenizer))
    return scores


def _text_scores(tree, after, tokenizer) -> list[float]:
    """after: log probabilities [1 + K, V] of what follows the prompt and each token of the tree."""
    rows = torch.tensor(tree.parents, dtype=torch.long, device=after.device) + 1
    ids = torch.tensor(tree.ids, dtype=torch.long, device=after.device)
    steps = after[rows, ids].tolist()
    sums: list[float] = []  # of each token with all before it
    for step, parent in zip(steps, tree.parents):
        sums.append(step + (sums[parent] if parent >= 0 else 0.0))

    scores = []
    for path in tree.paths:
        endings = tokenizer.endings([tree.ids[token] for token in path])
        terms = [] if path else [0.0]
        for token, ending in zip(path, endings):
            parent = tree.parents[token]
            if ending:
                before = sums[parent] if parent >= 0 else 0.0
                terms.append(before + after[parent + 1, ending].logsumexp(0).item())
        scores.append(torch.tensor(terms, dtype=torch.float64).logsumexp(0).item())
    return scores
