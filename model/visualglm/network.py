"""VisualGLM: ChatGLM's language model, with an image's embeddings in the prompt.

Built, like its image encoder, from SwissArmyTransformer's (SAT's) classes. Every number comes from
`model_config.json`; parameter names are those of VisualGLM's SAT checkpoints.

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
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from model.visualglm.attention import PrefixAttention, positions_and_blocks, prefix_mask
from model.visualglm.sat import (
    BaseMixin,
    BaseModel,
    ChatGLMFinalMixin,
    ChatGLMLayerMixin,
    make_transformer,
)
from model.visualglm.vision import ImageEncoder

# What can be trained or frozen by name -> how its parameters' names begin.
PARTS = {
    "language": ("transformer.layers.", "transformer.final_layernorm."),
    "embeddings": ("transformer.word_embeddings.",),
    "head": ("mixins.chatglm-final.",),
    "vision": ("mixins.eva.model.vit.",),
    "qformer": ("mixins.eva.model.qformer.",),
    "projection": ("mixins.eva.model.glm_proj.",),
}


def _tanh_gelu(x):
    # SAT's own is jit-scripted, which makes a resumed run differ in the last bits.
    return F.gelu(x, approximate="tanh")


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
        super().__init__(args, transformer=make_transformer(args, _tanh_gelu, device, dtype, init))
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
