"""VisualGLM: ChatGLM language model, EVA vision tower, Q-Former and the projection between them.

Built from SwissArmyTransformer's (SAT's) classes. Every number comes from `model_config.json`;
parameter names are those of VisualGLM's SAT checkpoints.

Shapes
    B  batch: rows of tokens
    T  tokens of a row, padding included
    I  images of a batch
    P  patches of an image + 1 for the class token
    Q  image tokens: queries of the Q-Former, slots in the prompt
    D  width of the language model
    H  attention heads
    d  width of a head
    V  vocabulary
    N  target tokens of a batch

References: VisualGLM-6B https://github.com/THUDM/VisualGLM-6B
GLM https://arxiv.org/abs/2103.10360
BLIP-2 https://arxiv.org/abs/2301.12597
EVA https://arxiv.org/abs/2211.07636
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from model.visualglm.sat import (
    ARGS_DEFAULT,
    BaseMixin,
    BaseModel,
    BaseTransformer,
    ChatGLMFinalMixin,
    ChatGLMLayerMixin,
    ImagePatchEmbeddingMixin,
    InterpolatedPositionEmbeddingMixin,
    ViTProperty,
    ensure_model_parallel_group,
)

# What can be trained or frozen by name -> how its parameters' names begin.
PARTS = {
    "language": ("transformer.layers.", "transformer.final_layernorm."),
    "embeddings": ("transformer.word_embeddings.",),
    "head": ("mixins.chatglm-final.",),
    "vision": ("mixins.eva.model.vit.",),
    "qformer": ("mixins.eva.model.qformer.",),
    "projection": ("mixins.eva.model.glm_proj.",),
}

# Of the vision tower's last LayerNorm, whatever eps its layers have.
IMAGE_NORM_EPS = 1e-5


def _transformer(config, activation, device, dtype, init) -> BaseTransformer:
    """SAT's transformer of one part; on the meta device nothing is allocated or initialised."""
    ensure_model_parallel_group()
    options = {name: getattr(config, key, default) for name, (key, default) in ARGS_DEFAULT.items()}
    transformer = BaseTransformer(
        num_layers=config.num_layers,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        max_sequence_length=config.max_sequence_length,
        layernorm_order=config.layernorm_order,
        activation_func=activation,
        params_dtype=dtype,
        skip_init=not init,
        # SAT's own takes a detour, and another epsilon, for half precision on a CPU.
        layernorm=torch.nn.LayerNorm,
        # SAT's 0.02 suits a width of 2,500: in a narrow network the image's signal would start
        # out too faint to learn.
        init_method_std=config.hidden_size**-0.5,
        device=torch.device(device),
        **options,
    )
    # SAT leaves norms, positions and cross-attention on the CPU in float32.
    return transformer.to(device=device, dtype=dtype)


def _tanh_gelu(x):
    # SAT's own is jit-scripted, which makes a resumed run differ in the last bits.
    return F.gelu(x, approximate="tanh")


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


class ImageNorm(BaseMixin):
    """The vision tower's last LayerNorm."""

    def __init__(self, width: int):
        super().__init__()
        self.ln_vision = torch.nn.LayerNorm(width, eps=IMAGE_NORM_EPS)

    def final_forward(self, hidden, **kwargs):
        return self.ln_vision(hidden)


class PatchDropout(torch.nn.Module):
    """Drops a random share of an image's patches while training; the class token stays.

    Less to compute, and it regularizes. Source: https://arxiv.org/abs/2208.07220
    """

    def __init__(self):
        super().__init__()
        self.rate = 0.0  # share of the patches that is dropped

    def forward(self, hidden):
        """[B, P, width] -> [B, 1 + round((P - 1) * (1 - rate)), width]"""
        if not self.training or self.rate == 0:
            return hidden
        patches = hidden.size(1) - 1
        count = max(1, round(patches * (1 - self.rate)))
        order = torch.rand(hidden.size(0), patches, device=hidden.device).argsort(1)  # [B, P - 1]
        kept = F.pad(order[:, :count] + 1, (1, 0))  # [B, 1 + count]; the class token is at 0
        return hidden.gather(1, kept[..., None].expand(-1, -1, hidden.size(2)))


# EVA ViT: https://arxiv.org/abs/2211.07636
class VisionTower(BaseModel):
    """Pixels -> patch features."""

    def __init__(self, config, device, dtype, init):
        grid = ViTProperty(config.image_size, config.patch_size, config.pre_len, config.post_len)
        config.max_sequence_length = grid.seq_len
        super().__init__(config, transformer=_transformer(config, F.gelu, device, dtype, init))
        self.transformer.property = grid
        # SAT has an ordinary dropout here, after the positions are added.
        self.transformer.embedding_dropout = PatchDropout()
        patches = ImagePatchEmbeddingMixin(config.in_channels, config.hidden_size, grid)
        self.add_mixin("patch_embedding", patches)
        self.add_mixin("pos_embedding", InterpolatedPositionEmbeddingMixin())
        self.add_mixin("cls", ImageNorm(config.hidden_size))
        self.add_mixin("attention", FullAttention())

    def forward(self, pixels):
        """[I, 3, height, width] -> [I, P, width]"""
        class_token = torch.zeros(pixels.size(0), 1, dtype=torch.long, device=pixels.device)
        outputs = super().forward(
            input_ids=class_token, position_ids=None, attention_mask=None, image=pixels
        )
        return outputs[0]


# Q-Former of BLIP-2: https://arxiv.org/abs/2301.12597
class QFormer(BaseModel):
    """Learned queries read an image's patch features by cross-attention."""

    def __init__(self, config, device, dtype, init):
        super().__init__(config, transformer=_transformer(config, F.gelu, device, dtype, init))
        self.transformer.position_embeddings = None
        self.queries = config.vocab_size
        self.add_mixin("attention", FullAttention())

    def final_forward(self, hidden, **kwargs):
        return hidden

    def position_embedding_forward(self, position_ids, **kwargs):
        return None

    def forward(self, image):
        """[I, P, width of the tower] -> [I, Q, width of the Q-Former]"""
        queries = torch.arange(self.queries, device=image.device).expand(image.size(0), -1)
        outputs = super().forward(
            input_ids=queries,
            position_ids=None,
            attention_mask=None,
            encoder_outputs=image,
            cross_attention_mask=None,
        )
        return outputs[0]


class ImageEncoder(torch.nn.Module):
    """Vision tower, Q-Former, and the projection to the language model's width."""

    def __init__(self, config, device, dtype, init):
        super().__init__()
        self.vit = VisionTower(SimpleNamespace(**config.eva_args), device, dtype, init)
        self.qformer = QFormer(SimpleNamespace(**config.qformer_args), device, dtype, init)
        self.glm_proj = torch.nn.Linear(config.qformer_args["hidden_size"], config.hidden_size)

    def features(self, pixels) -> torch.Tensor:
        """[I, 3, height, width] -> [I, Q, width of the Q-Former]; can be cached while frozen."""
        return self.qformer(self.vit(pixels))


class ImageMixin(BaseMixin):
    """Puts image embeddings into their slots of the embedded prompt."""

    def __init__(self, config, device, dtype, init):
        super().__init__()
        self.model = ImageEncoder(config, device, dtype, init)

    def word_embedding_forward(
        self, input_ids, image_embeds=None, image_rows=None, image_start=0, **kwargs
    ) -> torch.Tensor:
        """Ids [B, T] (or [B]) -> [B, T, D] (or [B, D]).

        image_embeds [I, Q, D] take the place of Q tokens from image_start on, in the rows
        image_rows [I] (default: all rows).
        """
        # The table may stay on the CPU while the layers are on a GPU.
        table = self.transformer.word_embeddings.weight
        embedded = F.embedding(input_ids.to(table.device), table).to(input_ids.device)  # [B, T, D]
        if image_embeds is None:
            return embedded

        device, end = input_ids.device, image_start + image_embeds.size(1)
        if image_rows is None:
            image_rows = torch.arange(input_ids.size(0), device=device)
        slots = torch.arange(image_start, end, device=device)  # [Q]
        index = (image_rows[:, None], slots[None])
        return embedded.index_put(index, image_embeds.to(embedded.dtype))


# 2-D rotary positions: https://arxiv.org/abs/2104.09864 within https://arxiv.org/abs/2103.10360
def apply_rotary(x, cos, sin) -> torch.Tensor:
    """Rotary embedding of both halves of each head: by position, and by block position.

    x [B, H, T, d]; cos, sin [B, 1, T, 2, d/4] -> [B, H, T, d]
    """
    # [B, H, T, position or block position, first or second half, d/4]
    halves = x.unflatten(-1, (2, 2, -1))
    a, b = halves.unbind(-2)  # each [B, H, T, 2, d/4]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)  # [B, H, T, d]


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
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)

        out = attention.hooks["attention_fn"](q, k, v, mask, None, layer_id=layer_id, **kwargs)
        return attention.dense(out.transpose(1, 2).flatten(2))  # [B, H, T, d] -> [B, T, D]

    def rotary_tables(
        self, positions, blocks, head_width: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, [B, 1, T, 2, d/4], for position ids and block position ids [B, T]."""
        half = head_width // 2
        exponents = -torch.arange(0, half, 2, device=positions.device).float() / half
        inv_freq = self.rotary_base**exponents  # [d/4]
        both = torch.stack((positions, blocks), -1)  # [B, T, 2]
        angles = both[:, None, ..., None].float() * inv_freq  # [B, 1, T, 2, d/4]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class TransformerLayer(ChatGLMLayerMixin):
    """SAT's layer, with activation checkpointing that works on every device."""

    def __init__(self, num_layers: int):
        super().__init__(num_layers)
        self.activation_checkpointing = False

    def layer_forward(self, hidden, mask, *args, **kwargs):
        layer = super().layer_forward
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, hidden, mask, *args, use_reentrant=False, **kwargs)
        return layer(hidden, mask, *args, **kwargs)


class LMHead(ChatGLMFinalMixin):
    """Logits of the requested positions only: most of a prompt's, V wide, are never needed."""

    def final_forward(self, hidden, logit_positions=None, **kwargs):
        if logit_positions is not None:
            hidden = hidden.flatten(0, 1)[logit_positions]  # [B, T, D] -> [N, D]
        return self.lm_head(hidden)  # [..., V]


class VisualGLM(BaseModel):
    """The whole network.

    config: the parsed `model_config.json` of a SAT checkpoint. On device "meta" nothing is
    allocated: fill it with `load_state_dict(..., assign=True)`.
    """

    def __init__(self, config: dict, device="cpu", dtype=torch.float32, init=True):
        args = SimpleNamespace(**config)
        super().__init__(args, transformer=_transformer(args, _tanh_gelu, device, dtype, init))
        self.config = args
        # Prefixes of the names of parameters that stay on the CPU, see keep_on_cpu.
        self.on_cpu: tuple[str, ...] = ()
        # Of quantized weights: 8 or 4.
        self.bits: int | None = None
        # Set by configure_training.
        self.label_smoothing = 0.0

        del self.transformer.position_embeddings  # positions are rotary
        self.add_mixin("chatglm-final", LMHead(args.vocab_size, args.hidden_size))
        self.add_mixin("chatglm-attn", PrefixAttention())
        # Hugging Face's code scales residuals as for 28 layers, whatever the depth:
        # `residual_layers` says so.
        residual_layers = getattr(args, "residual_layers", args.num_layers)
        self.add_mixin("chatglm-layer", TransformerLayer(residual_layers))
        self.add_mixin("eva", ImageMixin(args, device, dtype, init))
        self.mixins.to(device=device, dtype=dtype)

    @property
    def device(self) -> torch.device:
        return self.transformer.final_layernorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.final_layernorm.weight.dtype

    def position_embedding_forward(self, position_ids, **kwargs):
        return None

    def configure_training(
        self,
        *,
        activation_checkpointing: bool = False,
        patch_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        compile_layers: bool = False,
    ) -> None:
        """Set what only training uses. Call it before `drop_encoder`.

        activation_checkpointing: recompute the language model's layers in the backward pass
        instead of keeping their activations.
        patch_dropout: share of an image's patches that is dropped in training mode.
        label_smoothing: share of the target that goes to all tokens alike, in training mode.
        compile_layers: torch.compile the language model's layers (slow start, faster steps).
        """
        self.mixins["chatglm-layer"].activation_checkpointing = activation_checkpointing
        self.mixins["eva"].model.vit.transformer.embedding_dropout.rate = patch_dropout
        self.label_smoothing = label_smoothing
        if compile_layers:
            for layer in self.transformer.layers:
                layer.compile()

    def estimated_activation_bytes(self, tokens: float, target_tokens: float) -> float:
        """Bytes that one training pass keeps for its backward pass, roughly.

        tokens: all tokens of the batch; target_tokens: those with a loss. Counted are the
        activations of the language model's layers without checkpointing, and logits with their
        gradients.
        """
        config = self.config
        values_per_token = 10 * config.hidden_size + 2 * config.inner_hidden_size
        activations = tokens * config.num_layers * values_per_token * self.dtype.itemsize
        # Three float32 tensors: logits, log-probabilities, gradient.
        logits = target_tokens * config.vocab_size * 12
        return activations + logits

    def keep_on_cpu(self, embeddings: bool = True) -> None:
        """For a small GPU: the image encoder's layers and the word embeddings stay in CPU memory.

        A layer of the encoder moves to the GPU only while it computes. Call it before the network
        is filled.
        """
        encoder = self.mixins["eva"].model
        self.on_cpu = (
            "mixins.eva.model.vit.transformer.layers.",
            "mixins.eva.model.qformer.transformer.layers.",
        )
        if embeddings:
            self.on_cpu += ("transformer.word_embeddings.",)
        for layer in (*encoder.vit.transformer.layers, *encoder.qformer.transformer.layers):
            layer.register_forward_pre_hook(self._move_to_device)
            layer.register_forward_hook(self._move_back)

    def _move_to_device(self, layer, inputs):
        layer.on_cpu_data = [parameter.data for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(self.device)

    def _move_back(self, layer, inputs, output):
        for parameter, data in zip(layer.parameters(), layer.__dict__.pop("on_cpu_data")):
            parameter.data = data

    def image_features(self, pixels) -> torch.Tensor:
        """[I, 3, height, width] float32, normalised -> [I, Q, width of the Q-Former]

        The result has the network's dtype.
        """
        return self.mixins["eva"].model.features(pixels.to(self.device, self.dtype))

    def encode_images(self, pixels) -> torch.Tensor:
        """[I, 3, height, width] float32, normalised -> [I, Q, D] in the network's dtype"""
        return self.mixins["eva"].model.glm_proj(self.image_features(pixels))

    def drop_encoder(self) -> None:
        """Free vision tower and Q-Former; from now on images come as their features only."""
        del self.mixins["eva"].model.vit, self.mixins["eva"].model.qformer

    def forward(
        self,
        input_ids,
        prefix,
        *,
        pixels=None,
        features=None,
        image_embeds=None,
        image_rows=None,
        image_start=0,
        targets=None,
        target_positions=None,
        logit_positions=None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits, and the loss where targets are given.

        input_ids [B, T] int64: rows padded at their end, prompt first.
        prefix [B] int64: index of `<sop>`; tokens before it see each other, later ones are causal.
        pixels [I, 3, height, width], features [I, Q, width] or image_embeds [I, Q, D]: the images
        of the rows image_rows [I] (default: all rows), whose slots begin at image_start.
        targets [N] int64: the next tokens at target_positions [N] int64, which are indices into
        the flattened rows; the loss is their mean cross-entropy, in float32.
        logit_positions [N]: compute only these logits.

        Returns (logits [B, T, V] or [N, V], loss or None).
        """
        if pixels is not None:
            image_embeds = self.encode_images(pixels)
        if features is not None:
            image_embeds = self.mixins["eva"].model.glm_proj(features)
        if targets is not None:
            logit_positions = target_positions

        steps = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(input_ids)
        visible = prefix_mask(steps, prefix)  # [B, T, T]
        positions, blocks = positions_and_blocks(steps, prefix)  # each [B, T]
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = self.mixins["chatglm-attn"].rotary_tables(
            positions, blocks, head_width, self.dtype
        )

        outputs = super().forward(
            input_ids=input_ids,
            position_ids=None,
            attention_mask=None,
            visible=visible[:, None],  # [B, 1, T, T]
            rotary=rotary,
            image_embeds=image_embeds,
            image_rows=image_rows,
            image_start=image_start,
            logit_positions=logit_positions,
        )
        logits = outputs[0]  # [B, T, V] or [N, V]
        if targets is None:
            return logits, None

        label_smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
        return logits, loss
