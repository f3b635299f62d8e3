"""Reading images, and augmenting them for training. Never imports torch."""

from model.images.augment import augment
from model.images.reading import read_image

__all__ = ["augment", "read_image"]
