"""A part of an image, or the whole with another stretch -> 8-bit RGB."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from model.images import rgb
from model.images.raster import RANDOM_ACCESS, View, driver_of, open_raster, reduced_size
from model.images.reading import opened, read_image


class Box(NamedTuple):
    """A part of an image, in pixels of the file from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def read_part(
    path: str | os.PathLike,
    bands: Sequence[int] | None = None,
    box: Box | None = None,
    percentiles: tuple[float, float] = rgb.PERCENTILES,
) -> Image.Image:
    """A part of an image file -> PIL image, 8-bit RGB. Raises ImageError.

    bands: as for read_image; box: None is the whole; percentiles: what is shown as 0 and as 255 of
    what has more than 8 bits, measured on the whole. A part has the file's own pixels where the
    whole would be shrunk.
    """
    is_usual = percentiles == rgb.PERCENTILES
    if is_usual:
        whole = read_image(path, bands)
        if box is None:
            return whole
        if whole.size == full_size(whole):
            return _cut(whole, box)
    with opened(path) as file:
        driver = driver_of(file)
        if driver in RANDOM_ACCESS:
            return _by_rasterio(file, driver, bands, box, percentiles)
    return _cut(read_image(path, bands), box)


def full_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the file of an image that was read whole, upright as the image is."""
    width, height = image.info["original_size"]
    is_turned = (width > height) != (image.width > image.height) and width != height
    return (height, width) if is_turned else (width, height)


def _by_rasterio(file, driver, bands, box, percentiles):
    reason = "a part of a large image, or another stretch,"
    with open_raster(file, driver, reason) as scene:
        view = View(scene, driver, bands)
        whole = reduced_size(scene.shape)
        limits = view.limits(whole, percentiles)
        size = whole if box is None else reduced_size((box.height, box.width))
        image, _ = view.read(size, box, limits)
    image.info["original_size"] = (scene.width, scene.height) if box is None else box[2:]
    return image


def _cut(image: Image.Image, box: Box | None) -> Image.Image:
    """The part of an image that was read whole, maybe shrunk."""
    if box is None:
        return image
    width, height = full_size(image)
    across, down = image.width / width, image.height / height
    left, top = int(box.left * across), int(box.top * down)
    right = max(left + 1, round((box.left + box.width) * across))
    bottom = max(top + 1, round((box.top + box.height) * down))
    part = image.crop((left, top, right, bottom))
    part.info["original_size"] = (box.width, box.height)
    return part
