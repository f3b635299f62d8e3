"""Embeddings of the images seen last, by their content: whoever sends an image again."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch
from PIL import Image

MAX_BYTES = 64 * 2**20


class ImageCache:
    """LRU eviction beyond max_bytes of embeddings, on whatever device they are."""

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes
        self._kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._bytes = 0

    def embeddings(
        self,
        images: list[Image.Image],
        untuned: bool,
        encode: Callable[[list[Image.Image]], torch.Tensor],
    ) -> torch.Tensor:
        """RGB images -> [I, Q, D]; encode makes those that are not kept, each once.

        untuned: whether the base alone encodes; its embeddings are others.
        """
        keys = [(untuned, image.size, _digest(image)) for image in images]
        missing = {key: image for key, image in zip(keys, images) if key not in self._kept}
        if missing:
            made = dict(zip(missing, encode(list(missing.values()))))
        else:
            made = {}
        embeddings = torch.stack([made[k] if k in made else self._kept[k] for k in keys])
        for key in keys:
            self._keep(key, made.get(key))
        return embeddings

    def _keep(self, key, new):
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if new is None:
            return
        # A copy: a part of the batch's tensor would keep all of it
        self._kept[key] = new.clone()
        self._bytes += new.nbytes
        while self._bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


def _digest(image):
    return hashlib.sha256(image.tobytes()).digest()
