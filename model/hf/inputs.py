"""Prompts and images -> the arguments of a network, by the base's own processor.

Shapes: B rows, T tokens, N trained tokens of all rows.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.image_utils import make_flat_list_of_images

from model.errors import UserError
from model.hf import processor as processors
from model.hf.features import Features, placeholder
from model.hf.prompt import Prompts, Row

Item = dict[str, Any]  # a rendered row, with its image or with features and what goes with them
PIXELS = "pixel_"  # how the names of what the vision part reads begin


class Inputs:
    """processor: the base's; prompts: its chat template; bounds: what is changed in its files."""

    def __init__(self, processor: Any, end_ids: Sequence[int]):
        self.processor = processor
        self.prompts = Prompts(processor, end_ids)
        self.bounds: dict[str, Any] = {}
        self._blind = blind(processor)
        self._image_tokens: dict[tuple[int, int], int] = {}  # of an image of a size

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        """Bound an image's pixels, see Family.limit_pixels. Raises UserError."""
        highest = most or processors.MAX_PIXELS
        if least and least > highest:
            raise UserError(f"--min_pixels {least}: more than --max_pixels, {highest}")
        images = self.processor.image_processor
        self.bounds = processors.pixel_bounds(images, least, most)
        processors.set_bounds(images, self.bounds)
        self._blind = blind(self.processor)
        self._image_tokens = {}

    @property
    def pad(self) -> int:
        pad = self.processor.tokenizer.pad_token_id
        return self.prompts.end_ids[0] if pad is None else pad

    def image_tokens(self, size: tuple[int, int]) -> int:
        """By how many tokens an image of this size makes a prompt longer than its placeholder."""
        if size not in self._image_tokens:
            text = self.prompts.text((), "", True)
            inputs = self.of_texts([text], [Image.new("RGB", size)], blind=True)
            own = len(self.prompts.encode(text))
            self._image_tokens[size] = inputs["input_ids"].size(1) - own
        return self._image_tokens[size]

    def of_texts(
        self,
        texts: Sequence[str],
        images: Sequence[Image.Image | None],
        side: str = "right",
        blind: bool = False,
    ) -> Any:
        """What the processor makes of prompts and their images (None: without); padded at a side.

        blind: what depends on the images' sizes alone. Raises UserError.
        """
        shown = [[] if image is None else [image] for image in images]
        process = self._blind if blind else self.processor
        try:
            return process(
                text=list(texts),
                images=shown if any(shown) else None,
                padding=True,
                padding_side=side,
                return_tensors="pt",
                add_special_tokens=self.prompts.adds_special_tokens(texts[0]),
            )
        except ValueError as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images if image)
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the base's image processor refuses images of {sizes}: {reason}"
            ) from None

    def item(self, row: Row, image: Image.Image | None) -> Item:
        return {"row": row, "image": image}

    def item_of_features(self, row: Row, features: Features) -> Item:
        inputs = self.of_texts([row.text], [placeholder(features)], blind=True)
        kept = {name: value for name, value in inputs.items() if not name.startswith(PIXELS)}
        return {"row": row, "inputs": kept, "features": features}

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """Items -> the arguments of Network.forward, rows padded at their end to the longest."""
        rows = [item["row"] for item in items]
        features = [item["features"] for item in items if "features" in item]
        if features:
            batch = joined([self._alone(item) for item in items]) | {"features": features}
        else:
            images = [item["image"] for item in items]
            batch = dict(self.of_texts([row.text for row in rows], images))
        return batch | self._with_targets(batch, rows)

    def _alone(self, item):
        return item["inputs"] if "inputs" in item else self.of_texts([item["row"].text], [None])

    def _with_targets(self, batch, rows):
        """What changes of a batch of prompts when the rows' answers follow them."""
        ids = batch["input_ids"]
        lengths = batch["attention_mask"].sum(1).tolist()
        width = max(length + row.target_tokens for length, row in zip(lengths, rows))
        new = {name: padded(value, width) for name, value in batch.items() if per_token(value, ids)}
        positions: list[int] = []
        for index, (length, row) in enumerate(zip(lengths, rows)):
            end = length + row.target_tokens
            new["input_ids"][index, length:] = self.pad
            new["input_ids"][index, length:end] = torch.from_numpy(np.array(row.target))
            new["attention_mask"][index, length:end] = 1
            positions += range(index * width + length - 1, index * width + end - 1)
        targets = np.concatenate([row.target for row in rows]).astype(np.int64)
        new["targets"] = torch.from_numpy(targets)  # [N]
        new["target_positions"] = torch.tensor(positions)  # [N]
        return new


def per_token(value: Any, ids: torch.Tensor) -> bool:
    """Whether this is one number for each of the tokens."""
    return torch.is_tensor(value) and value.shape == ids.shape


def padded(value: torch.Tensor, width: int) -> torch.Tensor:
    """[B, T] -> [B, width] by 0, which means text, and what is not there."""
    return torch.nn.functional.pad(value, (0, width - value.size(1)))


def joined(alone: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What was made of rows one by one, as if it had been made of the batch."""
    width = max(inputs["input_ids"].size(1) for inputs in alone)
    parts: dict[str, list[torch.Tensor]] = {}
    for inputs in alone:
        for name, value in inputs.items():
            if per_token(value, inputs["input_ids"]):
                value = padded(value, width)
            parts.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in parts.items()}


def blind(processor: Any) -> Any:
    """A processor that sees of images, one at a time, their sizes alone.

    Its pixels are zeros that take no memory; each size is processed once. Bounds that are changed
    later do not reach it.
    """
    images = copy.copy(processor.image_processor)
    kind = type(images)
    made: dict[tuple[int, int], dict[str, Any]] = {}

    def call(self, shown, *args, **options):
        [image] = make_flat_list_of_images(shown)
        if image.size not in made:
            output = kind.__call__(self, shown, *args, **options)
            made[image.size] = {name: _unseen(name, value) for name, value in output.items()}
        return transformers.BatchFeature(dict(made[image.size]))

    images.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    new = copy.copy(processor)
    new.image_processor = images
    return new


def _unseen(name, value):
    if name.startswith(PIXELS) and torch.is_tensor(value):
        return torch.zeros((), dtype=value.dtype).expand(value.shape)
    return value
