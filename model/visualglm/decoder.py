"""The language model for inference: one plain loop over the layers of `VisualGLM`, and a preallocated KV cache.

It computes what `VisualGLM.forward` computes, without the hooks and per-process wrappers of SAT's own forward, which
cost more than a small network's products. The modules, and so the weights, are the same.
Shapes as in visualglm.py; L layers, C slots of the cache, of which a pass reads the first S.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.visualglm.network import places
from model.visualglm.sat import ColumnParallelLinear, LoraLinear, RowParallelLinear

SPAN = 256  # slots that a recorded step reads more than the one before it


def product(linear):
    """What a linear layer of any kind computes, as a function [M, K] -> [M, N]; LoRA is applied as it stands now."""
    if isinstance(linear, LoraLinear):
        base = product(linear.original)
        if not linear.scaling:
            return base
        down = torch.cat(
            list(linear.matrix_A)
        ).t()  # the parts of a fused layer side by side, [K, parts * r]
        up = torch.block_diag(*linear.matrix_B).t() * linear.scaling  # [parts * r, N]
        return lambda x: torch.addmm(base(x), x @ down, up)
    if isinstance(linear, (ColumnParallelLinear, RowParallelLinear)):
        return partial(F.linear, weight=linear.weight, bias=linear.bias)
    return linear


def norm(layer):
    """A LayerNorm as a function."""
    return partial(
        F.layer_norm,
        normalized_shape=layer.normalized_shape,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
    )


def cuda_graph(step):
    """Record a function of fixed shapes and addresses -> (what runs it again, its output, written anew each time)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # what is made on first use must be made before
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph.replay, out


class Layer(NamedTuple):
    """The functions that a layer is made of."""

    before: partial  # LayerNorm
    qkv: partial
    dense: partial
    between: partial  # LayerNorm
    up: partial
    activation: partial
    down: partial

    @classmethod
    def of(cls, layer):
        attention, mlp = layer.attention, layer.mlp
        return cls(
            norm(layer.input_layernorm),
            product(attention.query_key_value),
            product(attention.dense),
            norm(layer.post_attention_layernorm),
            product(mlp.dense_h_to_4h),
            mlp.activation_func,
            product(mlp.dense_4h_to_h),
        )


class Decoder:
    """The state of one batch: where its tokens stand, and the keys and values of those it has seen.

    lengths: of the prompts, each up to its `<sop>`; room: tokens that may follow. Slot i of the cache holds token i of
    each prompt, then from the longest prompt's end on the answers' tokens, at the same slot for all rows; the gap after
    a shorter prompt is never seen. A P-tuning prefix stands before them all, where everyone sees it.
    """

    def __init__(self, network, lengths, room):
        config, device = network.config, network.device
        self.network, self.rows, self.width = network, len(lengths), max(lengths)
        self.filled, self.graphs = 0, {}
        self.layers = [Layer.of(layer) for layer in network.transformer.layers]
        self.final = norm(network.transformer.final_layernorm)
        self.head = product(network.mixins["chatglm-final"].lm_head)
        self.residual = (2 * network.mixins["chatglm-layer"].num_layers) ** 0.5

        length = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
        self.prefix = length[:, 0] - 1
        slots = torch.arange(self.width + room, device=device)
        steps = torch.where(slots < self.width, slots, slots - self.width + length)  # [B, C]
        self.heads, self.head_width = (
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        )
        cos, sin = network.mixins["chatglm-attn"].tables(
            *places(steps, self.prefix), self.head_width, network.dtype
        )
        # [B, C, q or k, H, position or block position, halves, d/4]; `sin` carries the sign of a rotation
        self.cos = cos[:, 0, :, None, None, :, None]
        self.sin = torch.stack((-sin, sin), -2)[:, 0, :, None, None]

        tuned = network.mixins["ptuning"] if "ptuning" in network.mixins else None
        self.ahead = tuned.prefix_len if tuned is not None else 0
        gap = (slots >= length) & (slots < self.width)
        self.seen = (
            None
            if min(lengths) == self.width
            else F.pad(~gap, (self.ahead, 0), value=True)[:, None, None]
        )  # [B, 1, 1, C]
        # float32 on a CPU, whose attention in bfloat16 takes several times as long
        dtype = torch.float32 if device.type == "cpu" else network.dtype
        self.cache = torch.zeros(
            len(self.layers),
            self.rows,
            2,
            self.heads,
            self.ahead + len(slots),
            self.head_width,
            device=device,
            dtype=dtype,
        )
        for layer, prefix in zip(self.cache, tuned.prefix if tuned is not None else ()):
            layer[:, :, :, : self.ahead] = prefix

    def prefill(self, ids, **image):
        """Read the prompts, ids [B, T] padded at their end -> logits [B, V] of what follows each.

        image: as for ImageMixin.word_embedding_forward.
        """
        hidden = (
            self.network.mixins["eva"].word_embedding_forward(ids, **image).flatten(0, 1)
        )  # [B * T, D]
        slots = torch.arange(self.width, device=ids.device)
        visible = F.pad(
            (slots <= slots[:, None]) | (slots < self.prefix[:, None, None]),
            (self.ahead, 0),
            value=True,
        )
        hidden = self._layers(hidden, self.width, visible[:, None])
        ends = torch.arange(self.rows, device=ids.device) * self.width + self.prefix
        return self.head(self.final(hidden[ends]))

    def step(self, token):
        """Read one more token of each row, [B] -> logits [B, V] of what follows; with `network.record` valid until the next."""
        hidden = self.network.mixins["eva"].word_embedding_forward(token)  # [B, D]
        if self.network.record:
            return self._recorded(hidden)
        visible = None if self.seen is None else self.seen[..., : self.ahead + self.filled + 1]
        return self.head(self.final(self._layers(hidden, 1, visible)))

    def _recorded(self, hidden):
        """`step` by replaying what network.record made of it: once for each SPAN slots, which are all read, filled or not."""
        span = min(-(-(self.filled + 1) // SPAN) * SPAN, self.cache.size(-2) - self.ahead)
        if not self.graphs:
            self.place, self.hidden = (
                torch.zeros(1, dtype=torch.long, device=hidden.device),
                hidden.clone(),
            )
        self.place.fill_(self.filled)
        self.hidden.copy_(hidden)
        if span not in self.graphs:
            self.graphs[span] = self.network.record(partial(self._fixed, span))
        self.filled += 1
        replay, logits = self.graphs[span]
        replay()
        return logits

    def _fixed(self, span):
        """`step` of the embedded token in self.hidden at slot self.place: no shape and no address changes between tokens."""
        visible = (
            torch.arange(self.ahead + span, device=self.place.device) <= self.place + self.ahead
        )
        if self.seen is not None:
            visible = visible & self.seen[..., : self.ahead + span]
        writes = [
            partial(layer.index_copy_, -2, self.place + self.ahead) for layer in self.cache.unbind()
        ]
        tables = self.cos.index_select(1, self.place), self.sin.index_select(1, self.place)
        return self.head(
            self.final(
                self._through(
                    self.hidden,
                    1,
                    *tables,
                    self.cache[..., : self.ahead + span, :],
                    writes,
                    visible.expand(self.rows, 1, 1, -1),
                )
            )
        )

    def _layers(self, hidden, count, visible):
        """hidden [B * T, D] of the next `count` tokens, visible [B or 1, 1, T or 1, S] or None -> the same, after all layers"""
        new = slice(self.filled, self.filled + count)
        self.filled += count
        readable = self.cache[..., : self.ahead + self.filled, :]  # [L, B, 2, H, S, d]
        writes = [kv.copy_ for kv in readable[..., -count:, :].unbind()]
        return self._through(
            hidden, count, self.cos[:, new], self.sin[:, new], readable, writes, visible
        )

    def _through(self, hidden, count, cos, sin, readable, writes, visible):
        """All layers. writes: for each a function that puts keys and values [B, 2, H, T, d] where `readable` shows them."""
        keys, values = readable[:, :, 0].unbind(), readable[:, :, 1].unbind()
        apart = (self.rows, count, 3, self.heads, 2, 2, self.head_width // 4)
        for layer, k, v, write in zip(self.layers, keys, values, writes):
            x = layer.before(hidden)
            mixed = layer.qkv(x).view(apart)
            qk = mixed[:, :, :2]
            torch.addcmul(qk * cos, qk.flip(-2), sin, out=qk)  # `rotate` of visualglm.py, in place
            mixed = mixed.flatten(-3).transpose(1, 3)  # [B, H, 3, T, d]
            write(mixed[:, :, 1:].transpose(1, 2))
            out = F.scaled_dot_product_attention(
                mixed[:, :, 0].to(k.dtype), k, v, attn_mask=visible
            )  # [B, H, T, d]
            out = layer.dense(out.transpose(1, 2).reshape(x.shape).to(x.dtype))
            x = layer.between(torch.add(out, x, alpha=self.residual))
            hidden = torch.add(layer.down(layer.activation(layer.up(x))), x, alpha=self.residual)
        return hidden
