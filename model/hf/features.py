"""What the frozen vision part makes of images, kept and given to the network in their place.

transformers hands a class what its `get_image_features` returned as `mm_encoder_outputs`. Kept of
an image: what replaces its tokens, the same for every layer that gets more (Qwen3-VL's deepstack),
and the size of the image, from which the processor knows how many tokens it takes.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

Features = dict[str, torch.Tensor]  # of one image
POOLED, DEEPSTACK, SIZE = "pooled", "deepstack.", "size"
LIST = "is_list"  # whether the class makes a list of images of it, or one tensor


def takes_features(model: Any) -> bool:
    """Whether the class of a model takes features in the place of pixels."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def encode(
    model: Any, process: Callable[[list[Image.Image]], dict[str, Any]], images: Sequence[Any]
) -> list[Features]:
    """Features of each image. process: images -> what the processor makes of them."""
    found = []
    for image in images:
        inputs = process([image])
        known = inspect.signature(model.get_image_features).parameters
        arguments = {name: value for name, value in inputs.items() if name in known}
        output = model.get_image_features(**arguments, return_dict=True)
        is_list = not torch.is_tensor(output.pooler_output)
        own = {
            POOLED: _one(output.pooler_output),
            LIST: torch.tensor(is_list),
            SIZE: torch.tensor(image.size),
        }
        for layer, added in enumerate(getattr(output, "deepstack_features", None) or ()):
            own[f"{DEEPSTACK}{layer}"] = _one(added)
        found.append(own)
    return found


def _one(value):
    """A tensor, or the tensors of one image in one."""
    return value if torch.is_tensor(value) else torch.cat(list(value))


def placeholder(features: Features) -> Image.Image:
    """An image of the size of the one that the features are of."""
    width, height = features[SIZE].tolist()
    return Image.new("RGB", (width, height))


def as_outputs(features: list[Features]) -> dict[str, Any]:
    """Features of a batch's images -> mm_encoder_outputs."""
    first = features[0]

    def joined(name):
        tensors = [own[name] for own in features]
        return tensors if first[LIST] else torch.cat(tensors)

    output: Any = BaseModelOutputWithPooling(pooler_output=joined(POOLED))
    layers = [name for name in first if name.startswith(DEEPSTACK)]
    if layers:
        output.deepstack_features = [joined(f"{DEEPSTACK}{n}") for n in range(len(layers))]
    return {"image": output}


def drop(modules: Sequence[torch.nn.Module]) -> None:
    """Free what only makes features; the modules' own attributes stay readable."""
    for module in modules:
        module._modules.clear()
        module._parameters.clear()
