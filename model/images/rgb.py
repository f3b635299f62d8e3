"""What both decoders share: bands of any kind -> 8-bit RGB, and by how much images are shrunk."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Pixels. Images at least twice as long are shrunk by a whole factor: networks read 224.
LONGEST = 2048
# Rows that are stretched at a time
STRIP = 256
# Of the valid numbers of a band: what is shown as 0 and as 255
PERCENTILES = (2.0, 98.0)
# Of a band: the numbers that are shown as 0 and as 255
Range = tuple[float, float]


def shrink_factor(size: tuple[int, ...]) -> int:
    """By how much each side of an image of this size is divided: a whole number, 1 or more."""
    return max(1, max(size) // LONGEST)


def from_bands(
    bands: np.ndarray, valid: np.ndarray, limits: Sequence[Range] | None = None
) -> Image.Image:
    """[1 or 3, H, W] of any real type, valid: bool of the same shape -> 8-bit RGB.

    8 bits are shown as they are, all else is stretched, band by band, to `limits` or else to each
    band's own. White is a pixel of which no band is valid.
    """
    if bands.dtype != np.uint8:
        valid = valid & np.isfinite(bands)
        if limits is None:
            limits = limits_of(bands, valid)
        bands = np.stack([stretched(*band) for band in zip(bands, valid, limits)])
    if len(bands) == 1:
        bands = np.repeat(bands, 3, axis=0)
    shown = Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0)))
    return on_white(shown, np.asarray(valid.any(axis=0)))


def limits_of(
    bands: np.ndarray, valid: np.ndarray, percentiles: tuple[float, float] = PERCENTILES
) -> list[Range]:
    """Two percentiles of what is valid and finite in each band, [B, H, W].

    Of large bands a grid of pixels is measured.
    """
    step = shrink_factor(bands.shape[1:])
    limits = []
    for band, is_valid in zip(bands[:, ::step, ::step], valid[:, ::step, ::step]):
        sample = band[is_valid & np.isfinite(band)]
        low, high = 0.0, 0.0
        if sample.size:
            low, high = map(float, np.percentile(sample.astype(np.float64), percentiles))
        limits.append((low, high))
    return limits


def stretched(band: np.ndarray, valid: np.ndarray, limits: Range) -> np.ndarray:
    """[H, W] numbers -> uint8: `limits` become 0 and 255, what is not valid becomes 0.

    valid: bool [H, W].
    """
    low, high = limits
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
