"""The language model for inference: a plain loop over its layers, and a preallocated KV cache.

It computes what `VisualGLM.forward` computes, without the hooks and per-process wrappers of SAT's
own forward, which cost more than a small network's products. The modules, and so the weights, are
the same.

Shapes as in network.py; and
    L  layers
    C  slots of the KV cache: P-tuning's prefix, the longest prompt, the new tokens
    S  slots that a pass reads, at most C
    M  rows of a matrix product, B * T
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from model.visualglm.attention import apply_rotary, positions_and_blocks, prefix_mask
from model.visualglm.lora import Lora
from model.visualglm.network import VisualGLM
from model.visualglm.sat import ColumnParallelLinear, RowParallelLinear

Function = Callable[[torch.Tensor], torch.Tensor]


def linear_function(linear: torch.nn.Module) -> Function:
    """What a linear layer of any kind computes, [M, K] -> [M, N]; LoRA with its present weights."""
    if isinstance(linear, Lora):
        return _lora_function(linear)
    # A layer with a forward of its own has been widened: see float_products.py
    is_plain = "forward" not in vars(linear)
    if isinstance(linear, (ColumnParallelLinear, RowParallelLinear)) and is_plain:
        return partial(F.linear, weight=linear.weight, bias=linear.bias)
    return linear


def _lora_function(lora: Lora) -> Function:
    base = linear_function(lora.original)
    if not lora.scaling:
        return base
    down, up = (matrix.t() for matrix in lora.factors())
    return lambda x: torch.addmm(base(x), x @ down, up)


def norm_function(layer: torch.nn.LayerNorm) -> Function:
    """A LayerNorm as a function."""
    return partial(
        F.layer_norm,
        normalized_shape=layer.normalized_shape,
        weight=layer.weight,
        bias=layer.bias,
        eps=layer.eps,
    )


class DecoderLayer(NamedTuple):
    """The functions that a layer is made of."""

    input_norm: Function
    qkv: Function
    dense: Function
    post_attention_norm: Function
    up: Function
    activation: Function
    down: Function

    @classmethod
    def of(cls, layer) -> "DecoderLayer":
        """The functions of SAT's layer."""
        attention, mlp = layer.attention, layer.mlp
        return cls(
            input_norm=norm_function(layer.input_layernorm),
            qkv=linear_function(attention.query_key_value),
            dense=linear_function(attention.dense),
            post_attention_norm=norm_function(layer.post_attention_layernorm),
            up=linear_function(mlp.dense_h_to_4h),
            activation=mlp.activation_func,
            down=linear_function(mlp.dense_4h_to_h),
        )


class LayerStack:
    """What every pass through a network's language model needs, whatever it keeps.

    It computes with the adapter as it is when this is made.
    """

    def __init__(self, network: VisualGLM):
        config = network.config
        self.network = network
        self.heads = config.num_attention_heads
        self.head_width = config.hidden_size // config.num_attention_heads
        self.layers = [DecoderLayer.of(layer) for layer in network.transformer.layers]
        self.final_norm = norm_function(network.transformer.final_layernorm)
        self.head = linear_function(network.mixins["chatglm-final"].lm_head)
        # ChatGLM adds the normalised input, scaled by this, to what a sublayer computes.
        self.residual_scale = (2 * network.mixins["chatglm-layer"].num_layers) ** 0.5
        self.ptuning_length = 0
        if "ptuning" in network.mixins:
            self.ptuning_length = network.mixins["ptuning"].prefix_len

    @property
    def cache_dtype(self) -> torch.dtype:
        """float32 on a CPU, whose attention in bfloat16 takes several times as long."""
        return torch.float32 if self.network.device.type == "cpu" else self.network.dtype

    def new_cache(self, rows: int, slots: int) -> list[torch.Tensor]:
        """An empty cache [B, 2 (keys, values), H, slots, d] for each layer."""
        shape = (rows, 2, self.heads, slots, self.head_width)
        device, dtype = self.network.device, self.cache_dtype
        return [torch.zeros(shape, device=device, dtype=dtype) for _ in self.layers]

    def rotary_tables(self, steps: torch.Tensor, prefix: torch.Tensor) -> tuple:
        """cos and sin for `attention.apply_rotary`.

        steps [B, T]: index of each token in its row; prefix [B]: index of the row's `<sop>`.
        """
        positions, blocks = positions_and_blocks(steps, prefix)
        return self.network.mixins["chatglm-attn"].rotary_tables(
            positions, blocks, self.head_width, self.network.dtype
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B, V]"""
        return self.head(self.final_norm(hidden))

    # The layer of GLM-130B: https://arxiv.org/abs/2210.02414, section 2.1
    def run(
        self,
        hidden: torch.Tensor,
        count: int,
        rotary: tuple,
        remember: Callable[[int, torch.Tensor], torch.Tensor],
        visible: torch.Tensor | None,
    ) -> torch.Tensor:
        """The next `count` tokens of each row through all layers, [M, D] -> [M, D].

        remember(layer, keys and values [B, 2, H, T, d]): keeps them and gives those of all tokens
        so far, [B, 2, H, S, d]; visible: bool [B, 1, T or 1, S], or None where every slot is seen.
        """
        for index, layer in enumerate(self.layers):
            x = layer.input_norm(hidden)
            qkv = self._rotated_qkv(layer.qkv(x), count, *rotary)  # [B, H, 3, T, d]
            keys, values = remember(index, qkv[:, :, 1:].transpose(1, 2)).unbind(1)
            query = qkv[:, :, 0].to(keys.dtype)
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible)
            out = out.transpose(1, 2).reshape(x.shape).to(x.dtype)  # [B, H, T, d] -> [M, D]
            hidden = torch.add(layer.dense(out), x, alpha=self.residual_scale)

            x = layer.post_attention_norm(hidden)
            out = layer.down(layer.activation(layer.up(x)))
            hidden = torch.add(out, x, alpha=self.residual_scale)
        return hidden

    def _rotated_qkv(self, qkv, count, cos, sin):
        """[M, 3 * D] -> [B, H, 3, T, d]; q and k rotated, in place."""
        qkv = qkv.view(-1, count, 3, self.heads, self.head_width)  # [B, T, 3, H, d]
        qk = qkv[:, :, :2]
        apply_rotary(qk, cos, sin, out=qk)
        return qkv.transpose(1, 3)


class Decoder:
    """The state of one batch: the positions of its tokens, and their keys and values so far.

    lengths: of the prompts, each up to its `<sop>`; max_new_tokens: tokens that may follow; places:
    [B, max_new_tokens], of each of those its index in the answer, where they are read as by `read`;
    prefix: indices of `<sop>` where the "prompts" go on beyond it; stack: of the network, where
    there is one already.

    Slot i of the cache holds token i of each prompt; from the longest prompt's end on it holds the
    new tokens, at the same slot in all rows. The gap behind a shorter prompt is never seen. A
    P-tuning prefix stands before them all, where every token sees it.
    """

    def __init__(
        self,
        network: VisualGLM,
        lengths: list[int],
        max_new_tokens: int,
        places: torch.Tensor | None = None,
        *,
        prefix: list[int] | None = None,
        stack: LayerStack | None = None,
    ):
        device = network.device
        self.network = network
        self.stack = stack or LayerStack(network)
        self.batch_size = len(lengths)
        self.prompt_length = max(lengths)

        length = torch.tensor(lengths, device=device)[:, None]  # [B, 1]
        slots = torch.arange(self.prompt_length + max_new_tokens, device=device)
        if places is None:
            places = slots[None, self.prompt_length :] - self.prompt_length  # [1, new]
        # [B, slots]: index of a token in its row
        prompt = slots[: self.prompt_length].expand(len(lengths), -1)
        steps = torch.cat((prompt, length + places), 1)
        self.last = length[:, 0] - 1  # [B]: index of the prompt's last token
        self.prefix = self.last if prefix is None else torch.tensor(prefix, device=device)
        self.cos, self.sin = self.stack.rotary_tables(steps, self.prefix)

        self.filled = 0  # slots that hold tokens, P-tuning's prefix not counted
        self.ptuning_length = self.stack.ptuning_length
        self.cache = self._new_cache(len(slots))  # L x [B, 2 (keys, values), H, C, d]

        self.not_gap = None  # bool [B, 1, 1, C], or None where all prompts are of one length
        if min(lengths) < self.prompt_length:
            gap = (slots >= length) & (slots < self.prompt_length)
            self.not_gap = F.pad(~gap, (self.ptuning_length, 0), value=True)[:, None, None]

    def _new_cache(self, slots):
        """An empty cache with P-tuning's keys and values at its start."""
        cache = self.stack.new_cache(self.batch_size, self.ptuning_length + slots)
        if self.ptuning_length:
            # P-tuning v2: https://arxiv.org/abs/2110.07602
            for layer, prefix in zip(cache, self.network.mixins["ptuning"].prefix):
                layer[:, :, :, : self.ptuning_length] = prefix
        return cache

    def prefill(
        self,
        ids: torch.Tensor,
        image_embeds: torch.Tensor | None = None,
        image_rows: torch.Tensor | None = None,
        image_start: int = 0,
    ) -> torch.Tensor:
        """Read the prompts, ids [B, T] padded at their end -> logits [B, V] of what follows each.

        The image's arguments are those of ImageMixin.word_embedding_forward.
        """
        embedded = self.network.mixins["eva"].word_embedding_forward(
            ids, image_embeds, image_rows, image_start
        )  # [B, T, D]
        steps = torch.arange(self.prompt_length, device=ids.device)[None]  # [1, T]
        visible = prefix_mask(steps, self.prefix)  # [B, T, T]
        visible = F.pad(visible, (self.ptuning_length, 0), value=True)[:, None]  # [B, 1, T, S]
        hidden = self._run_layers(embedded.flatten(0, 1), self.prompt_length, visible)

        row_starts = torch.arange(self.batch_size, device=ids.device) * self.prompt_length
        return self.stack.logits(hidden[row_starts + self.last])

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Read one more token of each row, [B] -> logits [B, V] of what follows."""
        hidden = self.network.mixins["eva"].word_embedding_forward(token)  # [B, D]
        visible = None
        if self.not_gap is not None:
            visible = self.not_gap[..., : self.ptuning_length + self.filled + 1]  # [B, 1, 1, S]
        return self.stack.logits(self._run_layers(hidden, 1, visible))

    def read(self, ids: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Read all new tokens at once, [B, K] -> normalised hidden states [B, K, D], for `head`.

        visible: bool [B, K, K], which of the new tokens each of them sees; all see the prompt.
        """
        batch, count = ids.shape
        hidden = self.network.mixins["eva"].word_embedding_forward(ids)  # [B, K, D]
        before = self.ptuning_length + self.prompt_length
        visible = F.pad(visible[:, None], (before, 0), value=True)  # [B, 1, K, S]
        if self.not_gap is not None:
            visible = visible & self.not_gap
        hidden = self._run_layers(hidden.flatten(0, 1), count, visible)
        return self.stack.final_norm(hidden).unflatten(0, (batch, count))

    def _run_layers(self, hidden, count, visible):
        start, self.filled = self.filled, self.filled + count
        rotary = self.cos[:, start : self.filled], self.sin[:, start : self.filled]
        end = self.ptuning_length + self.filled  # S

        def remember(layer, keys_values):
            cache = self.cache[layer]
            cache[:, :, :, end - count : end] = keys_values
            return cache[:, :, :, :end]

        return self.stack.run(hidden, count, rotary, remember, visible)
