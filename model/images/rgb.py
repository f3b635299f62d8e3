"""What both decoders share: bands of any kind -> 8-bit RGB, and by how much images are shrunk."""

import numpy as np
from PIL import Image

# Pixels. Images at least twice as long are shrunk by a whole factor: networks read 224.
LONGEST = 2048
# Rows that are stretched at a time
STRIP = 256


def shrink_factor(size: tuple[int, ...]) -> int:
    """By how much each side of an image of this size is divided: a whole number, 1 or more."""
    return max(1, max(size) // LONGEST)


def from_bands(bands: np.ndarray, valid: np.ndarray) -> Image.Image:
    """[1 or 3, H, W] of any real type, valid: bool of the same shape -> 8-bit RGB.

    8 bits are shown as they are, all else is stretched, band by band. White is a pixel of which no
    band is valid.
    """
    if bands.dtype != np.uint8:
        valid = valid & np.isfinite(bands)
        bands = np.stack([stretched(*band) for band in zip(bands, valid)])
    if len(bands) == 1:
        bands = np.repeat(bands, 3, axis=0)
    shown = Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0)))
    return on_white(shown, np.asarray(valid.any(axis=0)))


def stretched(band: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[H, W] numbers -> uint8: the 2nd to the 98th percentile of the valid ones become 0 to 255.

    valid: bool [H, W]; what is not valid becomes 0. Of large bands a grid of pixels is measured.
    """
    step = shrink_factor(band.shape)
    sample = band[::step, ::step][valid[::step, ::step]]
    low, high = 0.0, 0.0
    if sample.size:
        low, high = map(float, np.percentile(sample.astype(np.float64), (2, 98)))
    spread = high - low
    if spread == 0:
        spread = 1

    # In double precision (the differences may be small and the numbers large), a strip at a time
    shown = np.zeros(band.shape, np.uint8)
    for top in range(0, len(band), STRIP):
        rows = slice(top, top + STRIP)
        kept = valid[rows]
        values = (band[rows][kept].astype(np.float64) - low) * (255 / spread)
        shown[rows][kept] = np.clip(values, 0, 255).astype(np.uint8)
    return shown


def on_white(image: Image.Image, mask: Image.Image | np.ndarray) -> Image.Image:
    """The image where the mask lets it through, white elsewhere.

    mask: an 8-bit image (255: opaque), or a bool array [H, W].
    """
    if isinstance(mask, np.ndarray):
        mask = Image.fromarray(mask * np.uint8(255))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=mask)
    return white
