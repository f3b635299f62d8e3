"""Reading images, and augmenting them for training. Never imports torch."""

from PIL import Image

from model.images.augment import augment
from model.images.errors import NEEDS_RASTERIO, PRIVATE, TOO_LARGE, ImageError
from model.images.nearby import nearby
from model.images.reading import image_size, is_address, read_image, reader_of
from model.images.tars import exists, members, open_file, stamp

__all__ = [
    "BLANK_COLOR",
    "NEEDS_RASTERIO",
    "PRIVATE",
    "TOO_LARGE",
    "ImageError",
    "augment",
    "blank_image",
    "exists",
    "image_size",
    "is_address",
    "members",
    "nearby",
    "open_file",
    "read_image",
    "reader_of",
    "stamp",
]

# uniform image of the image ablation: the mean colour of CLIP's training images
BLANK_COLOR = (123, 117, 104)


def blank_image(size: tuple[int, int] = (256, 256)) -> Image.Image:
    """A uniform PIL RGB image of BLANK_COLOR, size (width, height) in pixels."""
    return Image.new("RGB", size, BLANK_COLOR)
