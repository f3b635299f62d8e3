"""The generation engine: prefill, then one token a step over a preallocated KV cache; it streams token ids.

Shapes as in visualglm.py; L layers. Nothing inside a step waits for the device except reading the chosen ids.
"""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are VisualGLM's.

    temperature 0, top_p 0 or top_k 1 is greedy. The repetition penalty is SAT's rule: the logit of a token generated
    before is divided by it, whatever its sign (transformers multiplies negative ones instead).
    """
    max_length: int = 2048  # prompt and answer together, in tokens
    max_new_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.4
    top_k: int = 100  # 0: no limit
    repetition_penalty: float = 1.2
    seed: int | None = None

    @property
    def greedy(self):
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


class KVCache:
    """Keys and values of all layers, [L, B, H, S, d] each, allocated once and written in place.

    A pass reads only the first `size` positions, a multiple of `block` that covers what is filled.
    """
    block = 64

    def __init__(self, config, rows, size, device, dtype):
        heads = config.num_attention_heads
        shape = (config.num_layers, rows, heads, size, config.hidden_size // heads)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.capacity, self.size = size, 0
        self.rows = torch.arange(rows, device=device)[:, None]
        self.steps = None

    def grow(self, filled):
        """Make the first `filled` positions readable."""
        self.size = min(self.capacity, -(-filled // self.block) * self.block)

    def seek(self, steps):
        """The positions [B, T] that the next pass writes, in every layer."""
        self.steps = steps

    def extend(self, layer, key, value):
        """Store [B, H, T, d] and return the readable positions of the layer, [B, H, S, d]."""
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store.transpose(1, 2)[self.rows, self.steps] = new.transpose(1, 2)
        return self.keys[layer, :, :, :self.size], self.values[layer, :, :, :self.size]


def candidates(logits, used, sampling):
    """What may come next, from logits [B, V]: ids [B, K] and their weights [B, K], best first.

    used [B, V] bool marks the tokens generated so far.
    """
    logits = torch.where(used, logits / sampling.repetition_penalty, logits)
    if sampling.greedy:
        ids = logits.argmax(-1, keepdim=True)
        return ids, torch.ones_like(ids, dtype=logits.dtype)
    top, ids = (logits / sampling.temperature).topk(min(sampling.top_k or logits.size(-1), logits.size(-1)))
    weights = top.softmax(-1)
    return ids, weights.masked_fill(weights.cumsum(-1) - weights > sampling.top_p, 0)  # keeps the one that crosses top_p


def choose(logits, used, sampling, generators):
    """Next ids [B]; a generator a row, so that a row's sample does not depend on its batch."""
    ids, weights = candidates(logits, used, sampling)
    picked = torch.cat([row.multinomial(1, generator=generator) for row, generator in zip(weights, generators)])
    return ids.gather(1, picked[:, None])[:, 0]


@torch.inference_mode()
def generate(network, prompts, *, eop, sampling=Sampling(), image_embeds=None, image_rows=None, image_start=0,
             banned=None):
    """Continue each prompt; yields a list of B ids a step, None for rows that have ended, until all have.

    prompts: B lists of ids that end with `<sop>`; image_embeds [I, Q, D] of the rows image_rows [I];
    banned: a slice of ids that are never chosen. `<eop>` itself is not yielded.
    """
    device, config = network.device, network.config
    lengths = [len(p) for p in prompts]
    limit = min(sampling.max_length, config.max_sequence_length)
    room = [max(0, limit - n) if sampling.max_new_tokens is None else max(0, min(sampling.max_new_tokens, limit - n))
            for n in lengths]
    if not any(room):
        return
    width = max(lengths)
    ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts], device=device)
    length = torch.tensor(lengths, device=device)
    prefix = length - 1
    cache = KVCache(config, len(prompts), width + max(room), device, network.dtype)
    cache.grow(width)
    ends = torch.arange(len(prompts), device=device) * width + prefix
    logits, _ = network(ids, prefix, image_embeds=image_embeds, image_rows=image_rows, image_start=image_start,
                        logit_positions=ends, cache=cache, start=torch.zeros_like(length))
    used = torch.zeros(logits.shape, dtype=torch.bool, device=device)
    generators = [torch.Generator(device) for _ in prompts]
    for generator in generators:
        generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    alive = [r > 0 for r in room]
    for step in range(max(room)):
        logits = logits.float()
        if banned is not None:
            logits[:, banned] = -torch.inf
        token = choose(logits, used, sampling, generators)
        used.scatter_(1, token[:, None], True)
        row = token.tolist()
        alive = [a and t != eop and step < r for a, t, r in zip(alive, row, room)]
        if not any(alive):
            return
        yield [t if a else None for a, t in zip(alive, row)]
        if step + 1 < max(room):
            cache.grow(width + step + 1)
            logits, _ = network(token[:, None], prefix, cache=cache, start=length + step)
            logits = logits[:, 0]
