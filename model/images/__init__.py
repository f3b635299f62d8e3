"""Reading images, and augmenting them for training. Never imports torch."""

from model.images.augment import augment
from model.images.reading import read_image

# uniform image of the image ablation: the mean colour of CLIP's training images
BLANK_COLOR = (123, 117, 104)

__all__ = ["augment", "read_image"]
