"""VisualGLM on SwissArmyTransformer's classes: ChatGLM language model, EVA ViT, Q-Former and the projection between.

Shapes: B rows, T tokens, P image patches + 1, Q image slots (queries), D width of the language model, H heads,
V vocabulary, N answer tokens of a batch.
Every number comes from `model_config.json`; parameter names are those of VisualGLM's SAT checkpoints.
References: GLM https://arxiv.org/abs/2103.10360, BLIP-2 https://arxiv.org/abs/2301.12597, EVA
https://arxiv.org/abs/2211.07636, VisualGLM-6B https://github.com/THUDM/VisualGLM-6B.
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

PARTS = {  # what can be trained or frozen by name -> how its parameters' names begin
    "language": ("transformer.layers.", "transformer.final_layernorm."),
    "embeddings": ("transformer.word_embeddings.",),
    "head": ("mixins.chatglm-final.",),
    "vision": ("mixins.eva.model.vit.",),
    "qformer": ("mixins.eva.model.qformer.",),
    "projection": ("mixins.eva.model.glm_proj.",),
}
IMAGE_NORM_EPS = 1e-5  # of the tower's last LayerNorm, whatever eps its layers have


def _transformer(config, activation, device, dtype, init):
    """SAT's transformer of one part; on the meta device nothing is allocated and nothing initialised."""
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
        layernorm=torch.nn.LayerNorm,  # SAT's takes a detour and another epsilon for half precision on a CPU
        # SAT's 0.02 suits a width of 2,500: in a narrow network the picture's signal would start out too faint to learn.
        init_method_std=config.hidden_size**-0.5,
        device=torch.device(device),
        **options,
    )
    return transformer.to(
        device=device, dtype=dtype
    )  # SAT leaves norms, positions and cross attention on CPU float32


def _tanh_gelu(x):
    return F.gelu(
        x, approximate="tanh"
    )  # SAT's own is jit-scripted, which makes a resumed run differ in the last bits


def attend(query, key, value, visible=None):
    """Attention over [B, H, T, d]; visible: bool [B, 1, T, T] or None, where everything sees everything."""
    if query.requires_grad and query.device.type == "cpu" and query.dtype != torch.float32:
        # torch's fused backward takes five times as long there as these products (benchmarks/train.py)
        scores = query * query.size(-1) ** -0.5 @ key.transpose(-1, -2)
        return (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(
            -1
        ) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)


class FullAttention(BaseMixin):
    """Attention of the vision tower and the Q-Former: no mask is built or compared."""

    def attention_fn(self, query, key, value, mask, dropout=None, **kwargs):
        return attend(query, key, value)


class ImageNorm(BaseMixin):
    def __init__(self, width):
        super().__init__()
        self.ln_vision = torch.nn.LayerNorm(width, eps=IMAGE_NORM_EPS)

    def final_forward(self, hidden, **kwargs):
        return self.ln_vision(hidden)


class PatchDropout(torch.nn.Module):
    """While training, another random share of a picture's patches is left out each time: less work and less to learn by heart.

    The class token stays. [B, P, width] -> [B, 1 + round((P - 1) * (1 - share)), width]. Source: https://arxiv.org/abs/2208.07220.
    """

    share = 0.0

    def forward(self, hidden):
        if not (self.training and self.share):
            return hidden
        patches = hidden.size(1) - 1
        kept = torch.rand(hidden.size(0), patches, device=hidden.device).argsort(1)[
            :, : max(1, round(patches * (1 - self.share)))
        ]
        places = F.pad(kept + 1, (1, 0))  # [B, 1 + kept]: the class token is at 0
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.size(2)))


class VisionTower(BaseModel):
    """EVA ViT. [B, 3, height, width] pixels -> [B, P, width]"""

    def __init__(self, config, device, dtype, init):
        grid = ViTProperty(config.image_size, config.patch_size, config.pre_len, config.post_len)
        config.max_sequence_length = grid.seq_len
        super().__init__(config, transformer=_transformer(config, F.gelu, device, dtype, init))
        self.transformer.property = grid
        self.transformer.embedding_dropout = (
            PatchDropout()
        )  # where SAT has an ordinary dropout, after the positions are added
        self.add_mixin(
            "patch_embedding",
            ImagePatchEmbeddingMixin(config.in_channels, config.hidden_size, grid),
        )
        self.add_mixin("pos_embedding", InterpolatedPositionEmbeddingMixin())
        self.add_mixin("cls", ImageNorm(config.hidden_size))
        self.add_mixin("attention", FullAttention())

    def forward(self, pixels):
        tokens = torch.zeros(
            pixels.size(0), 1, dtype=torch.long, device=pixels.device
        )  # the class token
        return super().forward(
            input_ids=tokens, position_ids=None, attention_mask=None, image=pixels
        )[0]


class QFormer(BaseModel):
    """Learned queries read the picture. [B, P, width] -> [B, Q, width]"""

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
        queries = torch.arange(self.queries, device=image.device).expand(image.size(0), -1)
        return super().forward(
            input_ids=queries,
            position_ids=None,
            attention_mask=None,
            encoder_outputs=image,
            cross_attention_mask=None,
        )[0]


class ImageEncoder(torch.nn.Module):
    """Pixels -> what the Q-Former says of them -> the embeddings that stand in the image slots."""

    def __init__(self, config, device, dtype, init):
        super().__init__()
        self.vit = VisionTower(SimpleNamespace(**config.eva_args), device, dtype, init)
        self.qformer = QFormer(SimpleNamespace(**config.qformer_args), device, dtype, init)
        self.glm_proj = torch.nn.Linear(config.qformer_args["hidden_size"], config.hidden_size)

    def features(self, pixels):
        """[B, 3, height, width] -> [B, Q, width of the Q-Former]; while both parts are frozen, the same in every epoch."""
        return self.qformer(self.vit(pixels))


class ImageMixin(BaseMixin):
    """Puts image embeddings into their slots of the embedded prompt."""

    def __init__(self, config, device, dtype, init):
        super().__init__()
        self.model = ImageEncoder(config, device, dtype, init)

    def word_embedding_forward(
        self, input_ids, image_embeds=None, image_rows=None, image_start=0, **kwargs
    ):
        table = (
            self.transformer.word_embeddings.weight
        )  # may stay on the CPU while the layers are on a GPU
        embedded = F.embedding(input_ids.to(table.device), table).to(input_ids.device)  # [B, T, D]
        if image_embeds is None:
            return embedded
        if image_rows is None:
            image_rows = torch.arange(input_ids.size(0), device=input_ids.device)
        slots = torch.arange(
            image_start, image_start + image_embeds.size(1), device=input_ids.device
        )
        return embedded.index_put(
            (image_rows[:, None], slots[None]), image_embeds.to(embedded.dtype)
        )


def rotate(x, cos, sin):
    """Rotary embedding of both halves of each head. x [B, H, T, d], cos and sin [B, 1, T, 2, d/4]"""
    a, b = x.unflatten(-1, (2, 2, -1)).unbind(
        -2
    )  # each [B, H, T, 2, d/4]: (position | block position) x (first | second)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -2).flatten(-3)


def places(steps, prefix):
    """Positions and block positions [B, T] of the tokens at steps [B, T] of rows with their `<sop>` at prefix [B]."""
    return torch.minimum(steps, prefix[:, None] - 1), (steps - prefix[:, None] + 1).clamp(
        min=0
    )  # from `<sop>` on all stand at `[gMASK]`


class PrefixAttention(BaseMixin):
    """ChatGLM's attention: 2-D rotary positions and prefix mask.

    Unlike SAT's own it keeps no K/V of a training pass, builds the rotary table once for all layers, and never
    compares masks or positions on the host.
    """

    base = 10000

    def attention_fn(self, query, key, value, mask, dropout=None, visible=None, **kwargs):
        extra = key.size(-2) - visible.size(
            -1
        )  # P-tuning's prefix, which SAT's mixin puts last: everyone sees it
        if extra:
            visible = F.pad(visible, (0, extra), value=True)
        return attend(query, key, value, visible)

    def attention_forward(self, hidden, mask, layer_id=None, rotary=None, **kwargs):
        attention = self.transformer.layers[layer_id].attention
        heads = attention.num_attention_heads_per_partition
        q, k, v = (
            attention.query_key_value(hidden).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        )  # [B, H, T, d]
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        out = attention.hooks["attention_fn"](q, k, v, mask, None, layer_id=layer_id, **kwargs)
        return attention.dense(out.transpose(1, 2).flatten(2))  # [B, T, D]

    def tables(self, positions, blocks, head_width, dtype):
        """cos and sin [B, 1, T, 2, d/4] for positions and block positions [B, T]"""
        inv_freq = self.base ** (
            -torch.arange(0, head_width // 2, 2, device=positions.device).float()
            / (head_width // 2)
        )
        angles = torch.stack((positions, blocks), -1)[:, None, ..., None].float() * inv_freq
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Layer(ChatGLMLayerMixin):
    """SAT's layer, with activation checkpointing that works on every device."""

    checkpoint_activations = False

    def layer_forward(self, hidden, mask, *args, **kwargs):
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(
                super().layer_forward, hidden, mask, *args, use_reentrant=False, **kwargs
            )
        return super().layer_forward(hidden, mask, *args, **kwargs)


class Head(ChatGLMFinalMixin):
    """Logits of the asked positions only: 130k-wide logits of prompt tokens are never made."""

    def final_forward(self, hidden, logit_positions=None, **kwargs):
        if logit_positions is not None:
            hidden = hidden.flatten(0, 1)[logit_positions]  # [N, D]
        return self.lm_head(hidden)


class VisualGLM(BaseModel):
    """The whole network.

    config: the parsed `model_config.json` of a SAT checkpoint. On device "meta" nothing is allocated: fill it with
    `load_state_dict(..., assign=True)`.
    """

    on_cpu = ()  # prefixes of parameters that do not move to the network's device
    label_smoothing = 0.0  # while training: share of the target that goes to all tokens alike
    record = None  # how a step of decoding is recorded, see decoder.cuda_graph

    def __init__(self, config, device="cpu", dtype=torch.float32, init=True):
        config = SimpleNamespace(**config)
        super().__init__(config, transformer=_transformer(config, _tanh_gelu, device, dtype, init))
        del self.transformer.position_embeddings  # positions are rotary
        self.config = config
        self.add_mixin("chatglm-final", Head(config.vocab_size, config.hidden_size))
        self.add_mixin("chatglm-attn", PrefixAttention())
        # Hugging Face's code scales residuals as for 28 layers, whatever the depth: `residual_layers` says so.
        self.add_mixin(
            "chatglm-layer", Layer(getattr(config, "residual_layers", config.num_layers))
        )
        self.add_mixin("eva", ImageMixin(config, device, dtype, init))
        self.mixins.to(device=device, dtype=dtype)

    @property
    def device(self):
        return self.transformer.final_layernorm.weight.device

    @property
    def dtype(self):
        return self.transformer.final_layernorm.weight.dtype

    def position_embedding_forward(self, position_ids, **kwargs):
        return None

    def keep_on_cpu(self, embeddings=True):
        """For a small GPU: image encoder and input embeddings stay in the CPU's memory, but for a layer at work.

        Call it before the network is filled.
        """
        encoder = self.mixins["eva"].model
        self.on_cpu = tuple(
            f"mixins.eva.model.{part}.transformer.layers." for part in ("vit", "qformer")
        )
        self.on_cpu += ("transformer.word_embeddings.",) if embeddings else ()
        for layer in (*encoder.vit.transformer.layers, *encoder.qformer.transformer.layers):
            layer.register_forward_pre_hook(self._borrow)
            layer.register_forward_hook(self._give_back)

    def _borrow(self, layer, inputs):
        layer.kept = [parameter.data for parameter in layer.parameters()]
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(self.device)

    def _give_back(self, layer, inputs, output):
        for parameter, data in zip(layer.parameters(), layer.__dict__.pop("kept")):
            parameter.data = data

    def configure_training(
        self,
        *,
        activation_checkpointing=False,
        patch_dropout=0.0,
        label_smoothing=0.0,
        compile_layers=False,
    ):
        self.mixins["chatglm-layer"].checkpoint_activations = activation_checkpointing
        self.mixins["eva"].model.vit.transformer.embedding_dropout.share = patch_dropout
        self.label_smoothing = label_smoothing
        if compile_layers:
            for layer in self.transformer.layers:
                layer.compile()

    def estimated_activation_bytes(self, tokens, target_tokens):
        config = self.config
        kept = (
            tokens
            * config.num_layers
            * (10 * config.hidden_size + 2 * config.inner_hidden_size)
            * self.dtype.itemsize
        )
        return kept + target_tokens * config.vocab_size * 12

    def image_features(self, pixels):
        """[B, 3, height, width] float32, normalised -> [B, Q, width of the Q-Former] in the network's dtype"""
        return self.mixins["eva"].model.features(pixels.to(self.device, self.dtype))

    def encode_images(self, pixels):
        """[B, 3, height, width] float32, normalised -> [B, Q, D] in the network's dtype"""
        return self.mixins["eva"].model.glm_proj(self.image_features(pixels))

    def drop_encoder(self):
        """Free vision tower and Q-Former; from now on pictures come as their features only."""
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
    ):
        """Logits, and the loss where targets are given.

        input_ids [B, T] int64: rows padded at their end, prompt first; prefix [B] int64: index of `<sop>`, before
        which tokens see each other while later ones are causal.
        pixels [I, 3, height, width], features [I, Q, width] or image_embeds [I, Q, D]: the pictures of the rows image_rows [I] (default: all
        rows), whose slots begin at image_start.
        target_positions [N] int64: indices into the flattened rows whose next token is targets [N]; the loss is the
        mean cross entropy over them, in float32. logit_positions [N]: compute only these logits.
        Returns (logits [B, T, V] or [N, V], loss or None).
        """
        if pixels is not None:
            image_embeds = self.encode_images(pixels)
        if features is not None:
            image_embeds = self.mixins["eva"].model.glm_proj(features)
        steps = torch.arange(input_ids.size(1), device=input_ids.device).expand_as(
            input_ids
        )  # [B, T]
        visible = (steps[:, None] <= steps[..., None]) | (
            steps[:, None] < prefix[:, None, None]
        )  # [B, T, T]
        head_width = self.config.hidden_size // self.config.num_attention_heads
        rotary = self.mixins["chatglm-attn"].tables(*places(steps, prefix), head_width, self.dtype)
        logits = super().forward(
            input_ids=input_ids,
            position_ids=None,
            attention_mask=None,
            visible=visible[:, None],
            rotary=rotary,
            image_embeds=image_embeds,
            image_rows=image_rows,
            image_start=image_start,
            logit_positions=target_positions if targets is not None else logit_positions,
        )[0]
        loss = (
            None
            if targets is None
            else F.cross_entropy(
                logits.float(),
                targets,
                label_smoothing=self.label_smoothing if self.training else 0.0,
            )
        )
        return logits, loss
