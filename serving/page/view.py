"""One image as a person looks at it: its file, the part that is asked about, how it is shown."""

import re
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path

from PIL import Image

from model.errors import UserError
from model.images.encoding import data_uri
from model.images.facts import Facts, facts_of
from model.images.part import Box, full_size, read_part
from model.images.rgb import PERCENTILES
from serving.turns import Turns

PREVIEW = 1024  # longest side of what the browser gets, in pixels; the model reads the image itself
SMALL = 512  # up to this side without loss
STRETCHES = {
    "2-98 %": PERCENTILES,
    "0.5-99.5 %": (0.5, 99.5),
    "0-100 %": (0.0, 100.0),
}


class View:
    """An image file. bands, percentiles, box: see read_part; turns: for decoding.

    Raises ImageError, TooManyPixels.

    Every change makes another one, so that the image is one object as long as nothing changes: the
    assistant encodes it once for all rounds.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        bands: Sequence[int] | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
        turns: Turns | None = None,
    ):
        self.path = path
        self.name = name
        self.bands = None if bands is None else tuple(bands)
        self.percentiles = percentiles
        self.box: Box | None = None
        self.turns = turns or Turns()
        with self.turns.of_file(path):
            self.whole = read_part(path, self.bands, None, percentiles)
        self.size = full_size(self.whole)  # (width, height) in the file's pixels
        self.image = self.whole

    @cached_property
    def facts(self) -> Facts:
        return facts_of(self.path)

    def changed(self, bands: Sequence[int] | None, percentiles: tuple[float, float]) -> "View":
        """The same part of the file in other bands or another stretch."""
        view = View(self.path, self.name, bands, percentiles, self.turns)
        return view.cropped(self.box)

    def cropped(self, box: Box | None) -> "View":
        """Another part of the same image, None: all of it."""
        view = copy(self)
        view.box, view.image = box, self.whole
        if box is not None:
            with self.turns.of_file(self.path):
                view.image = read_part(self.path, self.bands, box, self.percentiles)
        return view


def parse_box(text: str, size: tuple[int, int]) -> Box | None:
    """Left, top, width and height; "" is the whole image. Raises UserError with no words."""
    if not text.strip():
        return None
    try:
        left, top, width, height = map(int, re.sub("[,，、]", " ", text).split())
    except ValueError:
        raise UserError("") from None
    is_inside = left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
    if not is_inside or width < 1 or height < 1:
        raise UserError("")
    return None if (width, height) == tuple(size) else Box(left, top, width, height)


def box_of(fractions: Sequence[float], size: tuple[int, int]) -> Box | None:
    """Two corners as fractions of width and height -> a box; None: too small to be meant."""
    x1, y1, x2, y2 = (min(1.0, max(0.0, float(number))) for number in fractions)
    left, right = sorted((round(x1 * size[0]), round(x2 * size[0])))
    top, bottom = sorted((round(y1 * size[1]), round(y2 * size[1])))
    if right - left < 2 or bottom - top < 2:
        return None
    return Box(left, top, right - left, bottom - top)


def preview(image: Image.Image) -> str:
    """An image for the browser, reduced to PREVIEW; no file is left on the server."""
    shown = image
    if max(image.size) > PREVIEW:
        shown = image.copy()
        shown.thumbnail((PREVIEW, PREVIEW))
    if max(shown.size) <= SMALL:
        return data_uri(shown)
    return data_uri(shown, "JPEG", quality=88)
