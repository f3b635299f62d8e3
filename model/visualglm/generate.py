"""Generation: the prompt in one pass, then a token a step, chosen and streamed as ids.

Shapes as in visualglm.py. Nothing inside a step waits for the device except reading the chosen ids.
"""

from dataclasses import dataclass

import torch

from model.sampling import Sampling
from model.visualglm.decoder import Decoder


def candidates(logits, said, sampling):
    """What may come next, from logits [B, V]: ids [B, K] and their weights [B, K], best first.

    said [B, n]: the tokens generated so far.
    """
    if sampling.repetition_penalty != 1:
        logits = logits.scatter(1, said, logits.gather(1, said) / sampling.repetition_penalty)
    if sampling.greedy:
        ids = logits.argmax(-1, keepdim=True)
        return ids, torch.ones_like(ids, dtype=logits.dtype)
    top, ids = (logits / sampling.temperature).topk(
        min(sampling.top_k or logits.size(-1), logits.size(-1))
    )
    weights = top.softmax(-1)
    return ids, weights.masked_fill(
        weights.cumsum(-1) - weights > sampling.top_p, 0
    )  # keeps the one that crosses top_p


def choose(logits, said, sampling, generators):
    """Next ids [B]; a generator a row, so that a row's sample does not depend on its batch."""
    ids, weights = candidates(logits, said, sampling)
    if ids.size(1) > 1:
        picked = torch.cat(
            [row.multinomial(1, generator=generator) for row, generator in zip(weights, generators)]
        )
        ids = ids.gather(1, picked[:, None])
    return ids[:, 0]


@torch.inference_mode()
def generate(network, prompts, *, eop, sampling=Sampling(), banned=None, **image):
    """Continue each prompt; yields a list of B ids a step, None for rows that have ended, until all have.

    prompts: B lists of ids that end with `<sop>`; banned: a slice of ids that are never chosen; image: image_embeds
    [I, Q, D] of the rows image_rows [I] (default: all), whose slots begin at image_start. `<eop>` itself is not yielded.
    """
    lengths = [len(p) for p in prompts]
    limit = min(sampling.max_length, network.config.max_sequence_length)
    room = [
        max(0, limit - n)
        if sampling.max_new_tokens is None
        else max(0, min(sampling.max_new_tokens, limit - n))
        for n in lengths
    ]
    if not any(room):
        return
    generators = [torch.Generator(network.device) for _ in prompts]
    for generator in generators:
        generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    decoder = Decoder(network, lengths, max(room) - 1)
    said = torch.zeros(len(prompts), max(room), dtype=torch.long, device=network.device)
    alive = [r > 0 for r in room]
    width = max(lengths)
    logits = decoder.prefill(
        torch.tensor([p + [0] * (width - len(p)) for p in prompts], device=network.device), **image
    )
    for step in range(max(room)):
        logits = logits.float()
        if banned is not None:
            logits[:, banned] = -torch.inf
        if step < sampling.min_new_tokens:
            logits[:, eop] = -torch.inf
        said[:, step] = token = choose(logits, said[:, :step], sampling, generators)
        row = token.tolist()
        alive = [a and t != eop and step < r for a, t, r in zip(alive, row, room)]
        if not any(alive):
            return
        yield [t if a else None for a, t in zip(alive, row)]
        if step + 1 < max(room):
            logits = decoder.step(token)
