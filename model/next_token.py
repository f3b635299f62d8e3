"""The next token of each row, sampled from its logits.

Shapes: B rows, V words of the vocabulary, K tokens that may be sampled.
"""

import torch

from model.sampling import Sampling


# Top-k: https://arxiv.org/abs/1805.04833, top-p: https://arxiv.org/abs/1904.09751
def filter_logits(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may come next, from logits [B, V]: ids [B, K] and their weights, best first."""
    if sampling.greedy:
        ids = logits.argmax(-1, keepdim=True)  # [B, 1]
        return ids, torch.ones_like(ids, dtype=logits.dtype)

    vocabulary = logits.size(-1)
    count = min(sampling.top_k or vocabulary, vocabulary)
    top, ids = (logits / sampling.temperature).topk(count)  # [B, K]
    weights = top.softmax(-1)
    # The token that crosses top_p is kept.
    better = weights.cumsum(-1) - weights
    return ids, weights.masked_fill(better > sampling.top_p, 0)


def sample(
    ids: torch.Tensor, weights: torch.Tensor, generators: list[torch.Generator]
) -> torch.Tensor:
    """Next ids [B] of those with weights [B, K].

    One generator per row, so that a row's sample does not depend on its batch.
    """
    if ids.size(1) > 1:
        sampled = []
        for row_weights, generator in zip(weights, generators):
            sampled.append(row_weights.multinomial(1, generator=generator))
        ids = ids.gather(1, torch.cat(sampled)[:, None])  # [B, 1]
    return ids[:, 0]


def make_generators(count: int, device: torch.device, seed: int | None) -> list[torch.Generator]:
    """One for each row, all of the same seed; None: each of another."""
    generators = [torch.Generator(device) for _ in range(count)]
    for generator in generators:
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
    return generators


def token_limits(lengths: list[int], sampling: Sampling, context_length: int) -> list[int]:
    """How many tokens may follow each prompt of these lengths."""
    max_length = min(sampling.max_length, context_length)
    limits = []
    for length in lengths:
        limit = max_length - length
        if sampling.max_new_tokens is not None:
            limit = min(limit, sampling.max_new_tokens)
        limits.append(max(0, limit))
    return limits
