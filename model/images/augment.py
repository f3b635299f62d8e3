"""Random changes of training images."""

import random

import numpy as np
from PIL import Image

# Largest stretch of one side against the other, as a logarithm
STRETCH = 0.15
# Largest relative change of brightness, contrast and saturation; without color jitter
JITTER, SLIGHT_JITTER = 0.4, 0.25
# Largest change of the hue, radians
HUE = 0.3 * np.pi
# Share of the images whose colors are taken away
GRAY_SHARE = 0.2

# A change of the hue rotates colors about the gray axis (Rodrigues' rotation formula):
# the projection onto that axis, and the quarter turn about it.
GRAY = np.full((3, 3), 1 / 3)
QUARTER = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5


def augment(
    image: Image.Image,
    rng: random.Random,
    min_crop: float,
    rotate: bool = True,
    color_jitter: bool = True,
) -> Image.Image:
    """A training image as it might also have been taken: from elsewhere, in another season.

    It is cropped and stretched, rotated and flipped, and its light and colors change.

    image: PIL RGB; min_crop: least share of each side that a crop keeps: the smaller, the more of
    what a caption names is cut away; rotate=False keeps up, down, left and right where they are;
    color_jitter=False keeps the names of colors true. Seen from above no side is up: an image is
    rotated by any angle, and what a rotated crop sees beyond the border is mirrored there.
    """
    # The order of the draws is part of the result: a run is repeated by its seed.
    crop, center = _random_crop(image.size, rng, min_crop)
    angle, flip, margin = 0.0, 1, 0
    if rotate:
        angle = rng.uniform(-np.pi, np.pi)
        flip = rng.choice((-1, 1))
        margin = _margin(crop)
    image = _cut_out(image, crop, center, angle, flip, margin)

    return _jittered(image, rng, color_jitter)


def _random_crop(
    size: tuple[int, int], rng: random.Random, min_crop: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((width, height), (x, y) of the middle) of a crop inside an image of this size, pixels."""
    share = rng.uniform(min_crop, 1)
    stretch = np.exp(rng.uniform(-STRETCH, STRETCH))
    width = max(1, min(1, share * stretch) * size[0])
    height = max(1, min(1, share / stretch) * size[1])

    x = rng.uniform(width / 2, size[0] - width / 2)
    y = rng.uniform(height / 2, size[1] - height / 2)
    return (width, height), (x, y)


def _margin(crop: tuple[float, float]) -> int:
    """How far, in pixels, the corners of a rotated crop can reach beyond the border."""
    width, height = crop
    return int(np.ceil(np.hypot(width, height) - min(width, height)) / 2 + 1)


def _cut_out(
    image: Image.Image,
    crop: tuple[float, float],
    center: tuple[float, float],
    angle: float,
    flip: int,
    margin: int,
) -> Image.Image:
    """The crop, rotated by `angle` (radians) about its middle, and flipped if `flip` is -1."""
    border = ((margin, margin), (margin, margin), (0, 0))
    padded = Image.fromarray(np.pad(np.asarray(image), border, "symmetric"))

    # The pixel (u, v) of the result is (a u + b v + c, d u + e v + f) of the padded image.
    a, b = flip * np.cos(angle), -np.sin(angle)
    d, e = flip * np.sin(angle), np.cos(angle)
    width, height = crop
    middle = (width / 2, height / 2)
    c = center[0] + margin - np.dot((a, b), middle)
    f = center[1] + margin - np.dot((d, e), middle)
    return padded.transform(
        (round(width), round(height)),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
    )


def _jittered(image: Image.Image, rng: random.Random, color_jitter: bool) -> Image.Image:
    """Another brightness, contrast and saturation; with color_jitter another hue, or gray."""
    change = JITTER if color_jitter else SLIGHT_JITTER
    brightness, contrast, saturation = (rng.uniform(1 - change, 1 + change) for _ in range(3))
    hue = 0.0
    if color_jitter:
        hue = rng.uniform(-HUE, HUE)
        if rng.random() <= GRAY_SHARE:
            saturation = 0.0

    rotation = np.cos(hue) * (np.eye(3) - GRAY) + np.sin(hue) * QUARTER
    matrix = brightness * contrast * (GRAY + saturation * rotation)
    # Contrast spreads the values about the image's mean.
    offset = brightness * (1 - contrast) * np.asarray(image).mean()
    return image.convert("RGB", tuple(np.column_stack((matrix, np.full(3, offset))).ravel()))
