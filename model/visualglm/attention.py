"""Attention of the image encoder, and of the language model with its positions and its mask.

Shapes as in network.py.
"""

import torch
import torch.nn.functional as F

from model.visualglm.sat import BaseMixin


def attend(query, key, value, visible=None) -> torch.Tensor:
    """Scaled dot-product attention over [B, H, T, d].

    visible: bool [B, 1, T, T], or None where every token sees every other.
    """
    half_on_cpu = query.device.type == "cpu" and query.dtype != torch.float32
    if query.requires_grad and half_on_cpu:
        # torch's fused backward takes five times as long there as these products
        # (benchmarks/train.py).
        scores = query * query.size(-1) ** -0.5 @ key.transpose(-1, -2)  # [B, H, T, T]
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return scores.softmax(-1) @ value  # [B, H, T, d]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


class FullAttention(BaseMixin):
    """Attention of the vision tower and the Q-Former: no mask is built or compared."""

    def attention_fn(self, query, key, value, mask, dropout=None, **kwargs):
        return attend(query, key, value)


# 2-D rotary positions: https://arxiv.org/abs/2104.09864 within https://arxiv.org/abs/2103.10360
def apply_rotary(x, cos, sin, out=None) -> torch.Tensor:
    """Rotary embedding of both halves of each head: by position, and by block position.

    x [B, T, ..., H, d]; cos, sin as of `PrefixAttention.rotary_tables`; out: as for torch's
    functions, x itself where no gradient is wanted.
    """
    partners = x.unflatten(-1, (2, 2, -1)).flip(-2).flatten(-3)  # the other half of each pair
    return torch.addcmul(x * cos, partners, sin, out=out)


def positions_and_blocks(steps, prefix) -> tuple[torch.Tensor, torch.Tensor]:
    """ChatGLM's position ids and block position ids, both [B, T].

    steps [B, T]: index of each token in its row; prefix [B]: index of the row's `<sop>`.
    From `<sop>` on all tokens have the position of `[gMASK]`, the token before it.
    """
    positions = torch.minimum(steps, prefix[:, None] - 1)
    blocks = (steps - prefix[:, None] + 1).clamp(min=0)
    return positions, blocks


def prefix_mask(steps, prefix) -> torch.Tensor:
    """What each token sees, bool [B, T (queries), T (keys)]: the whole prefix, later ones causally.

    steps [B or 1, T]: index of each token in its row; prefix [B]: index of the row's `<sop>`.
    """
    keys = steps[:, None]  # [B, 1, T]
    return (keys <= steps[..., None]) | (keys < prefix[:, None, None])


class PrefixAttention(BaseMixin):
    """ChatGLM's attention: 2-D rotary positions and a prefix mask.

    Unlike SAT's own it keeps no keys and values of a training pass, builds the rotary table once
    for all layers, and never compares masks or positions on the host.
    """

    rotary_base = 10000

    def attention_fn(self, query, key, value, mask, dropout=None, visible=None, **kwargs):
        # P-tuning's prefix, which SAT's mixin puts behind the keys: every token sees it.
        extra = key.size(-2) - visible.size(-1)
        if extra:
            visible = F.pad(visible, (0, extra), value=True)  # [B, 1, T, T + extra]
        return attend(query, key, value, visible)

    def attention_forward(self, hidden, mask, layer_id=None, rotary=None, **kwargs):
        """[B, T, D] -> [B, T, D]"""
        attention = self.transformer.layers[layer_id].attention
        heads = attention.num_attention_heads_per_partition

        qkv = attention.query_key_value(hidden).unflatten(-1, (3, heads, -1))  # [B, T, 3, H, d]
        qk, v = qkv.split((2, 1), 2)
        q, k = apply_rotary(qk, *rotary).permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
        v = v.squeeze(2).transpose(1, 2)

        out = attention.hooks["attention_fn"](q, k, v, mask, None, layer_id=layer_id, **kwargs)
        return attention.dense(out.transpose(1, 2).flatten(2))  # [B, H, T, d] -> [B, T, D]

    def rotary_tables(
        self, positions, blocks, head_width: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for `apply_rotary`, [B, T, 1 (q, k), 1 (H), d], sin with its sign.

        positions, blocks: ids [B, T].
        """
        half = head_width // 2
        exponents = -torch.arange(0, half, 2, device=positions.device).float() / half
        inv_freq = self.rotary_base**exponents  # [d/4]
        both = torch.stack((positions, blocks), -1)  # [B, T, 2]
        angles = both[:, :, None, None, :, None].float() * inv_freq  # [B, T, 1, 1, 2, d/4]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.stack((cos, cos), -2).flatten(-3), torch.stack((-sin, sin), -2).flatten(-3)
