"""Reading images, and augmenting them for training. Never imports torch."""

from model.images.augment import augment
from model.images.reading import read_image
from PIL import Image

BLANK_COLOR = (123, 117, 104)


def blank_image(size=(256, 256)):
    return Image.new("RGB", size, BLANK_COLOR)


__all__ = ["augment", "read_image"]
