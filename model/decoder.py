"""The language model for inference: one plain loop over the layers of `VisualGLM`, and a preallocated KV cache.

It computes what `VisualGLM.forward` computes, without the hooks and per-process wrappers of SAT's own forward, which
cost more than a small network's products. The modules, and so the weights, are the same.
Shapes as in visualglm.py; L layers, C slots of the cache, of which a pass reads the first S.
"""
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .sat_import import ColumnParallelLinear, LoraLinear, RowParallelLinear
from .visualglm import places


def product(linear):
    """What a linear layer of any kind computes, as a function [M, K] -> [M, N]; LoRA is applied as it stands now."""
    if isinstance(linear, LoraLinear):
        base = product(linear.original)
        if not linear.scaling:
            return base
        down = torch.cat(list(linear.matrix_A)).t()  # the parts of a fused layer side by side, [K, parts * r]
        up = torch.block_diag(*linear.matrix_B).t() * linear.scaling  # [parts * r, N]
        return lambda x: torch.addmm(base(x), x @ down, up)
    if isinstance(linear, (ColumnParallelLinear, RowParallelLinear)):
        return partial(F.linear, weight=linear.weight, bias=linear.bias)
    return linear


def norm(layer):
    """A LayerNorm as a function."""
    return partial(F.layer_norm, normalized_shape=layer.normalized_shape, weight=layer.weight, bias=layer.bias, eps=layer.eps)


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
        return cls(norm(layer.input_layernorm), product(attention.query_key_value), product(attention.dense),
                   norm(layer.post_attention_layernorm), product(mlp.dense_h_to_4h), mlp.activation_func,
                   product(mlp.dense_4h_to_h))


class Decoder:
    """The state of one batch: where its tokens stand, and the keys and values of those it has seen.

    lengths: of the prompts, each up to its `<sop>`; room: tokens that may follow. Slot i of the cache holds token i of
    each prompt, then from the longest prompt's end on the answers' tokens, at the same slot for all rows; the gap after
    a shorter prompt is never seen. A P-tuning prefix stands before them all, where everyone sees it.
    """

    def __init__(self, network, lengths, room):
        config, device = network.config, network.device
        self.network, self.rows, self.width = network, len(lengths), max(lengths)
        self.filled = 0
        self.layers = [Layer.of(layer) for layer in network.transformer.layers]
        self.final = norm(network.transformer.final_layernorm)
        self.head = product(network.mixins["chatglm-final"].lm_head)
        self.residual = (2 * network.mixins["chatglm-layer"].num_layers) ** 0.5

        length = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
        self.prefix = length[:, 0] - 1
        slots = torch.arange(self.width + room, device=device)
        steps = torch.where(slots < self.width, slots, slots - self.width + length)  # [B, C]
        self.heads, self.head_width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        cos, sin = network.mixins["chatglm-attn"].tables(*places(steps, self.prefix), self.head_width, network.dtype)
        # [B, C, q or k, H, position or block position, halves, d/4]; `sin` carries the sign of a rotation
        self.cos = cos[:, 0, :, None, None, :, None]
        self.sin = torch.stack((-sin, sin), -2)[:, 0, :, None, None]

        tuned = network.mixins["ptuning"] if "ptuning" in network.mixins else None
        self.ahead = tuned.prefix_len if tuned is not None else 0
        gap = (slots >= length) & (slots < self.width)
        self.seen = None if min(lengths) == self.width else F.pad(~gap, (self.ahead, 0), value=True)[:, None, None]  # [B, 1, 1, C]
        # float32 on a CPU, whose attention in bfloat16 takes several times as long
        dtype = torch.float32 if device.type == "cpu" else network.dtype
        self.cache = torch.zeros(len(self.layers), self.rows, 2, self.heads, self.ahead + len(slots), self.head_width,
                                 device=device, dtype=dtype)
        for layer, prefix in zip(self.cache, tuned.prefix if tuned is not None else ()):
            layer[:, :, :, :self.ahead] = prefix

    def prefill(self, ids, **image):
        """Read the prompts, ids [B, T] padded at their end -> logits [B, V] of what follows each.

        image: as for ImageMixin.word_embedding_forward.
        """
        hidden = self.network.mixins["eva"].word_embedding_forward(ids, **image).flatten(0, 1)  # [B * T, D]
        slots = torch.arange(self.width, device=ids.device)
        visible = F.pad((slots <= slots[:, None]) | (slots < self.prefix[:, None, None]), (self.ahead, 0), value=True)
        hidden = self._layers(hidden, self.width, visible[:, None])
        ends = torch.arange(self.rows, device=ids.device) * self.width + self.prefix
        return self.head(self.final(hidden[ends]))

    def step(self, token):
        """Read one more token of each row, [B] -> logits [B, V] of what follows."""
        hidden = self.network.mixins["eva"].word_embedding_forward(token)  # [B, D]
        visible = None if self.seen is None else self.seen[..., :self.ahead + self.filled + 1]
        return self.head(self.final(self._layers(hidden, 1, visible)))

    def _layers(self, hidden, count, visible):
        """hidden [B * T, D] of the next `count` tokens, visible [B or 1, 1, T or 1, S] or None -> the same, after all layers"""
        new = slice(self.filled, self.filled + count)
        self.filled += count
        cos, sin = self.cos[:, new], self.sin[:, new]
        readable = self.cache[..., :self.ahead + self.filled, :]  # [L, B, 2, H, S, d]
        keys, values, written = readable[:, :, 0].unbind(), readable[:, :, 1].unbind(), readable[..., -count:, :].unbind()
        apart = (self.rows, count, 3, self.heads, 2, 2, self.head_width // 4)
        for layer, k, v, kv in zip(self.layers, keys, values, written):
            x = layer.before(hidden)
            mixed = layer.qkv(x).view(apart)
            qk = mixed[:, :, :2]
            torch.addcmul(qk * cos, qk.flip(-2), sin, out=qk)  # `rotate` of visualglm.py, in place
            mixed = mixed.flatten(-3).transpose(1, 3)  # [B, H, 3, T, d]
            kv.copy_(mixed[:, :, 1:].transpose(1, 2))
            out = F.scaled_dot_product_attention(mixed[:, :, 0].to(k.dtype), k, v, attn_mask=visible)  # [B, H, T, d]
            out = layer.dense(out.transpose(1, 2).reshape(x.shape).to(x.dtype))
            x = layer.between(torch.add(out, x, alpha=self.residual))
            hidden = torch.add(layer.down(layer.activation(layer.up(x))), x, alpha=self.residual)
        return hidden
