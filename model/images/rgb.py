"""What both decoders share: pixels of any kind -> 8-bit RGB, and by how much images are shrunk."""

import numpy as np
from PIL import Image

# Pixels. Images at least twice as long are shrunk by a whole factor: networks read 224.
LONGEST = 2048


def shrink_factor(size: tuple[int, ...]) -> int:
    """By how much each side of an image of this size is divided: a whole number, 1 or more."""
    return max(1, max(size) // LONGEST)


def stretched(band: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[H, W] numbers -> uint8: the 2nd to the 98th percentile of the valid ones become 0 to 255.

    valid: bool [H, W]; what is not valid becomes 0. Of large bands a grid of pixels is measured.
    """
    step = shrink_factor(band.shape)
    sample = band[::step, ::step][valid[::step, ::step]]
    low, high = 0.0, 0.0
    if sample.size:
        low, high = map(float, np.percentile(sample, (2, 98)))
    spread = high - low
    if spread == 0:
        spread = 1

    band = np.where(valid, band, np.float32(low))
    band -= low
    band *= 255 / spread
    return np.clip(band, 0, 255, out=band).astype(np.uint8)


def on_white(image: Image.Image, mask: Image.Image | np.ndarray) -> Image.Image:
    """The image where the mask lets it through, white elsewhere.

    mask: an 8-bit image (255: opaque), or a bool array [H, W].
    """
    if isinstance(mask, np.ndarray):
        mask = Image.fromarray(mask * np.uint8(255))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=mask)
    return white
