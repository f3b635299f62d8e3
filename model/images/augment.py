"""Random changes of training images."""

import numpy as np
from PIL import Image

GREY = np.full((3, 3), 1 / 3)  # what of a colour is grey; a hue turns the rest about it
TURN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # a quarter of a turn
HUE = 0.3 * np.pi  # largest change, radians
STRETCH = 0.15  # of one side against the other, as a logarithm


def augment(image, rng, least, turn=True, tint=True):
    """A training picture as it might also have been taken: turned and mirrored, cropped, stretched, in another light and season.

    image: PIL RGB; rng: random.Random; least: share of each side that a crop keeps at least: the smaller, the more of what a
    description names is cut away; turn=False keeps up, down, left and right where they are, tint=False keeps the names of
    colours true. From above no side is up: it is turned by any angle, and what a turned crop sees beyond the border is mirrored there.
    """
    share, stretch = rng.uniform(least, 1), np.exp(rng.uniform(-STRETCH, STRETCH))
    width, height = (
        max(1, min(1, share * stretch) * image.width),
        max(1, min(1, share / stretch) * image.height),
    )
    x, y = (
        rng.uniform(width / 2, image.width - width / 2),
        rng.uniform(height / 2, image.height - height / 2),
    )  # the middle of the crop
    angle, side, beyond = 0, 1, 0
    if turn:
        angle, side, beyond = (
            rng.uniform(-np.pi, np.pi),
            rng.choice((-1, 1)),
            int(np.ceil(np.hypot(width, height) - min(width, height)) / 2 + 1),
        )
    (a, b), (d, e) = rows = (
        (side * np.cos(angle), -np.sin(angle)),
        (side * np.sin(angle), np.cos(angle)),
    )
    c, f = (
        middle + beyond - np.dot(row, (width / 2, height / 2)) for middle, row in zip((x, y), rows)
    )
    image = Image.fromarray(
        np.pad(np.asarray(image), ((beyond, beyond), (beyond, beyond), (0, 0)), "symmetric")
    )
    image = image.transform(
        (round(width), round(height)),
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        Image.Resampling.BILINEAR,
    )
    change = 0.4 if tint else 0.25
    light, contrast, colour = (rng.uniform(1 - change, 1 + change) for _ in range(3))
    hue = rng.uniform(-HUE, HUE) if tint else 0
    colour *= not tint or rng.random() > 0.2  # one in five is grey
    matrix = (
        light * contrast * (GREY + colour * (np.cos(hue) * (np.eye(3) - GREY) + np.sin(hue) * TURN))
    )
    offset = light * (1 - contrast) * np.asarray(image).mean()
    return image.convert("RGB", tuple(np.column_stack((matrix, np.full(3, offset))).ravel()))
