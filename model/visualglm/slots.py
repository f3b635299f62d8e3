"""A KV cache of slots for rows that join and leave between tokens (continuous batching).

Source of the idea: Orca, https://www.usenix.org/conference/osdi22/presentation/yu. Shapes as in
decoder.py; R rows at present, C slots of each.
"""

import torch
import torch.nn.functional as F

from model.visualglm.decoder import Decoder, LayerStack
from model.visualglm.network import VisualGLM

BLOCK = 64  # slots by which the cache grows


class Slots:
    """Rows 0 to R - 1; token i of a row stands in its slot i, behind P-tuning's prefix.

    A method that runs out of memory leaves the rows as they were, and may be called again.
    """

    def __init__(self, network: VisualGLM):
        self.network = network
        self.stack = LayerStack(network)
        self.lengths: list[int] = []  # tokens of each row that are in the cache
        self.prefixes: list[int] = []  # index of each row's `<sop>`
        self.caches = self.stack.new_cache(0, 0)  # L x [R or more, 2 (keys, values), H, C, d]

    def bytes_for(self, rows: int, length: int) -> int:
        """What the cache takes with so many rows of which the longest has so many tokens."""
        blocks = -(-(self.stack.ptuning_length + length) // BLOCK)
        row = 2 * self.stack.heads * self.stack.head_width * self.stack.cache_dtype.itemsize
        return rows * blocks * BLOCK * row * len(self.stack.layers)

    @torch.inference_mode()
    def join(self, rows: list[list[int]], prefixes: list[int], **images) -> torch.Tensor:
        """J further rows, read in one pass -> logits [J, V] of what follows each.

        rows: ids up to `<sop>` at the row's prefix, or beyond it what has been generated; images:
        as for Decoder.prefill.
        """
        lengths = [len(ids) for ids in rows]
        padded = [ids + [0] * (max(lengths) - len(ids)) for ids in rows]
        decoder = Decoder(self.network, lengths, 0, prefix=prefixes, stack=self.stack)
        logits = decoder.prefill(torch.tensor(padded, device=self.network.device), **images)
        start = len(self.lengths)
        end = start + len(rows)
        self._reserve(end, max(lengths))
        for cache, new in zip(self.caches, decoder.cache):
            cache[start:end, :, :, : new.size(3)] = new
        self.lengths += lengths
        self.prefixes += prefixes
        return logits

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self.lengths) - 1
        end = self.stack.ptuning_length + self.lengths[last]
        if row != last:
            for cache in self.caches:
                cache[row, :, :, :end] = cache[last, :, :, :end]
            self.lengths[row], self.prefixes[row] = self.lengths[last], self.prefixes[last]
        self.lengths.pop()
        self.prefixes.pop()
        if not self.lengths:
            self.caches = self.stack.new_cache(0, 0)

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> torch.Tensor:
        """Read one more token of each row -> logits [R, V] of what follows."""
        rows, longest = len(self.lengths), max(self.lengths) + 1
        self._reserve(rows, longest)
        device, before = self.network.device, self.stack.ptuning_length
        row = torch.arange(rows, device=device)
        step = torch.tensor(self.lengths, device=device)  # [R]
        slot = before + step
        end = before + longest  # S
        visible = None
        if min(self.lengths) + 1 < longest:
            visible = torch.arange(end, device=device) <= slot[:, None]  # [R, S]
            visible = visible[:, None, None]

        def remember(layer, keys_values):  # [R, 2, H, 1, d]
            cache = self.caches[layer]
            cache[row, :, :, slot] = keys_values[:, :, :, 0].to(cache.dtype)
            return cache[:rows, :, :, :end]

        token = torch.tensor(tokens, device=device)
        hidden = self.network.mixins["eva"].word_embedding_forward(token)  # [R, D]
        rotary = self.stack.rotary_tables(step[:, None], torch.tensor(self.prefixes, device=device))
        logits = self.stack.logits(self.stack.run(hidden, 1, rotary, remember, visible))
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def _reserve(self, rows, length):
        """Make room, layer by layer, so that only one layer's cache is there twice at a time."""
        before = self.stack.ptuning_length
        present = before + max(self.lengths) if self.lengths else 0
        slots = -(-max(present, before + length) // BLOCK) * BLOCK
        for index, cache in enumerate(self.caches):
            if cache.size(0) >= rows and cache.size(3) >= before + length:
                continue
            kept = cache[: len(self.lengths), :, :, :present]
            padding = (0, 0, 0, slots - present, 0, 0, 0, 0, 0, rows - len(self.lengths))
            self.caches[index] = F.pad(kept, padding)
