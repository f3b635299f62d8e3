"""What a file says of an image, before any of its pixels is read."""

import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from model.images.errors import ImageError
from model.images.raster import RANDOM_ACCESS, chosen_bands, driver_of, open_raster
from model.images.reading import header, opened

# Pillow's mode -> the type of its numbers; 8 bits where it is not listed
DTYPES = {"1": "bool", "I": "int32", "F": "float32"}


@dataclass(frozen=True)
class Facts:
    """width, height: pixels; dtype: of the first band, as NumPy names it.

    crs: such as EPSG:32650; resolution: of a pixel on the ground, (x, y) in `unit`; nodata: the
    value of pixels without data. None where the file does not say.
    """

    width: int
    height: int
    bands: int
    dtype: str
    crs: str | None = None
    resolution: tuple[float, float] | None = None
    unit: str | None = None
    nodata: float | None = None
    # Of a format that rasterio reads in parts: bands, stretch and part can be chosen.
    # shown_bands: as red, green and blue, unless others are asked for; names: the file's own
    is_raster: bool = False
    shown_bands: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def can_be_stretched(self) -> bool:
        return self.is_raster and self.dtype != "uint8"


def facts_of(path: str | os.PathLike) -> Facts:
    """The facts of an image file. Raises ImageError.

    Without rasterio, those that Pillow knows.
    """
    with opened(path) as file:
        driver = driver_of(file)
        if driver not in RANDOM_ACCESS:
            return _of_pillow(file)
        try:
            return _of_raster(file, driver)
        except ImageError:
            return _of_pillow(file)


def _of_pillow(file: BinaryIO) -> Facts:
    with header(file) as found:
        if not isinstance(found, Image.Image):  # too large for Pillow
            return Facts(found.width, found.height, found.count, found.dtypes[0])
        dtype = "uint16" if found.mode.startswith("I;16") else DTYPES.get(found.mode, "uint8")
        return Facts(*found.size, len(found.getbands()), dtype)


def _of_raster(file: BinaryIO, driver: str) -> Facts:
    with open_raster(file, driver, "what a GeoTIFF says of itself") as scene:
        resolution = None
        if not scene.transform.is_identity:
            to_x, to_y = scene.transform.column_vectors[:2]
            resolution = (math.hypot(*to_x), math.hypot(*to_y))
        return Facts(
            scene.width,
            scene.height,
            scene.count,
            scene.dtypes[0],
            crs=_name(scene.crs),
            resolution=resolution,
            unit=_unit(scene.crs),
            nodata=scene.nodata,
            is_raster=True,
            shown_bands=tuple(chosen_bands(scene, None)),
            names=tuple(name or "" for name in scene.descriptions),
        )


def _name(crs: Any) -> str | None:
    """A coordinate system as people write it."""
    if not crs:
        return None
    authority = crs.to_authority()
    if authority:
        return ":".join(authority)
    # The name is the first quoted text: PROJCS["name", ...
    return (crs.to_wkt().split('"') + ["", ""])[1] or None


def _unit(crs: Any) -> str | None:
    if not crs:
        return None
    return "degree" if crs.is_geographic else crs.linear_units
