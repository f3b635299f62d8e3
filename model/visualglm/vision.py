"""The image encoder: EVA vision tower, Q-Former, and the projection to the language model.

Shapes as in network.py.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from model.visualglm.attention import FullAttention
from model.visualglm.sat import (
    BaseMixin,
    BaseModel,
    ImagePatchEmbeddingMixin,
    InterpolatedPositionEmbeddingMixin,
    ViTProperty,
    make_transformer,
)

# Of the vision tower's last LayerNorm, whatever eps its layers have.
IMAGE_NORM_EPS = 1e-5


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
        super().__init__(config, transformer=make_transformer(config, F.gelu, device, dtype, init))
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
        super().__init__(config, transformer=make_transformer(config, F.gelu, device, dtype, init))
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
