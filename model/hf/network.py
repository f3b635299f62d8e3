"""A network of transformers with its loss, and with logits only where a token is trained.

Shapes: B rows, T tokens, N trained tokens of all rows, D width, V words of the vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from model.hf.features import Features, as_outputs


class Network(torch.nn.Module):
    """model: an image-text-to-text model of transformers, or peft's around it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model
        self.label_smoothing = 0.0

    @property
    def base(self) -> Any:
        """The model of transformers itself."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are never quantized."""
        return self.base.get_input_embeddings().weight.dtype

    def as_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pixels and the like in the network's dtype."""
        inputs = {}
        for name, value in batch.items():
            if torch.is_tensor(value) and value.is_floating_point():
                value = value.to(self.dtype)
            inputs[name] = value
        return inputs

    @contextmanager
    def logits_at(self, positions: torch.Tensor) -> Iterator[None]:
        """Context in which the logits are [1, N, V]: those of N tokens, by index of the B * T.

        With 150,000 words logits of all tokens are most of the memory. A hook, because what a class
        does behind its head (scaling, capping) must still be done.
        """

        def only_these(head, args):
            hidden = args[0].flatten(0, -2)[positions]  # [N, D]
            return (hidden[None], *args[1:])

        hook = self.base.get_output_embeddings().register_forward_pre_hook(only_these)
        try:
            yield
        finally:
            hook.remove()

    def forward(
        self,
        targets: torch.Tensor,
        target_positions: torch.Tensor,
        features: list[Features] | None = None,
        **inputs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] of the trained tokens and their mean loss.

        targets [N]; target_positions [N]: indices into the B * T tokens that predict them; inputs:
        what the processor makes of the rows, padded at their end, features: of their images, in
        the place of pixels.
        """
        if features:
            inputs["mm_encoder_outputs"] = as_outputs(features)

        with self.logits_at(target_positions):
            output = self.model(**self.as_inputs(inputs), use_cache=False)
        logits = output.logits[0]  # [N, V]
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        return logits, loss
