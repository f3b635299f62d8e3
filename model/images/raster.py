"""Reading images through rasterio (GDAL), an optional package.

It reads what Pillow cannot: several bands of more than 8 bits, other bands than the first three,
scenes too large to be decoded whole.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from model.images import rgb
from model.images.errors import NEEDS_RASTERIO, TOO_LARGE, UNREADABLE, ImageError

# Pixels read without overviews: a minute or more
MAX_SCENE = 2**32
# The same of JPEG 2000 without resolution levels, which takes a hundred times as long
MAX_JPEG2000 = 2**26
# Bytes that GDAL decodes at a time
MAX_BLOCK = 2**29
# Files beside an image are looked for by name, not in a listing of its folder, which may be long.
SETTINGS = {"GDAL_CACHEMAX": 64, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}

# How a file begins -> GDAL's driver for it.
# Trap: left to choose, GDAL also opens descriptions (VRT) that name other files.
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"BM": "BMP",
    b"P6": "PNM",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
# Descriptions of the red, the green and the blue band
OUTRIGHT = ("red", "green", "blue")
NUMBERED = (("b4", "b3", "b2"), ("b04", "b03", "b02"))  # Sentinel-2, Landsat 8 and 9
# Averaging goes back to earlier rows; the other drivers then decode from the top each time.
RANDOM_ACCESS = ("GTiff", "JP2OpenJPEG")


def driver_of(file: BinaryIO) -> str | None:
    """GDAL's driver for an open file, by its first bytes; None if rasterio is not to read it."""
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    for magic, driver in DRIVERS.items():
        if start.startswith(magic):
            return driver
    return None


def read_raster(
    file: BinaryIO, bands: Sequence[int] | None, reason: str, kind: str = UNREADABLE
) -> tuple[Image.Image, tuple[int, int]]:
    """An open file -> (8-bit RGB, its width and height), from its overviews or reduced while read.

    bands: three, counted from 1, or None for what the file calls red, green and blue; what is
    nodata, masked or transparent becomes white. reason: what rasterio is needed for, the beginning
    of the message where it cannot help, which is then of this kind.
    Raises ImageError, OSError for what GDAL cannot read, and whatever rasterio raises.
    """
    driver = driver_of(file)
    with open_raster(file, driver, reason, kind) as scene:
        shown, _ = View(scene, driver, bands).read(reduced_size(scene.shape))
        return shown, (scene.width, scene.height)


@contextmanager
def open_raster(
    file: BinaryIO, driver: str | None, reason: str, kind: str = UNREADABLE
) -> Iterator[Any]:
    """A context with rasterio's dataset of an open file. Raises OSError for what GDAL cannot read.

    reason, kind: as for read_raster.
    """
    if driver is None:
        raise ImageError(
            f"{reason} is not possible for files of this kind; "
            "convert it to TIFF or PNG, or cut it into tiles",
            kind,
        )
    rasterio = import_rasterio(reason)
    # A downloaded file is in memory and has no name.
    path = getattr(file, "name", file)
    try:
        with rasterio.Env(**SETTINGS), rasterio.open(path, driver=driver) as scene:
            yield scene
    except rasterio.errors.RasterioError as error:
        raise OSError(error.__cause__ or error) from None


def has_rasterio() -> bool:
    return find_spec("rasterio") is not None


def import_rasterio(reason: str) -> Any:
    """The package. Raises ImageError that begins with what it is needed for."""
    try:
        import rasterio
    except ImportError:
        raise ImageError(f"{reason} needs rasterio: pip install rasterio", NEEDS_RASTERIO) from None
    return rasterio


class View:
    """An open scene of rasterio's as 8-bit RGB, whole or a window of it.

    bands: as for read_raster. Raises ImageError where it cannot be shown.
    """

    def __init__(self, scene: Any, driver: str | None, bands: Sequence[int] | None):
        from rasterio.enums import ColorInterp

        self.scene = scene
        self.driver = driver
        self.has_palette = scene.colorinterp[0] == ColorInterp.palette and not bands
        self.bands = chosen_bands(scene, bands)
        self.alpha = None  # the band that says what is transparent
        if ColorInterp.alpha in scene.colorinterp and not bands and not self.has_palette:
            self.alpha = 1 + scene.colorinterp.index(ColorInterp.alpha)
        if any(scene.dtypes[band - 1].startswith("complex") for band in self.bands):
            raise ImageError("complex numbers; write their amplitude first")
        _refuse_too_large(scene, driver)

    def read(
        self,
        size: tuple[int, int],
        window: tuple[int, int, int, int] | None = None,
        limits: Sequence[rgb.Range] | None = None,
    ) -> tuple[Image.Image, np.ndarray]:
        """(8-bit RGB, bool [height, width]: what is valid) of a window, None: of the whole scene.

        size: height and width that it is reduced to; window: left, top, width, height in pixels;
        limits: see rgb.from_bands.
        """
        values, valid, alpha = self._values(size, window)
        if self.has_palette:
            shown = _from_palette(values[0], valid[0], self.scene.colormap(1))
            return shown, valid[0]
        shown = rgb.from_bands(values, valid, limits)
        if alpha is not None and self.driver == "PNG":
            # PNG's alpha is opacity; elsewhere only 0 counts (see pillow.py).
            steps = np.iinfo(alpha.dtype).max // 255
            shown = rgb.on_white(shown, Image.fromarray((alpha // steps).astype(np.uint8)))
        return shown, valid.any(axis=0)

    def limits(
        self, size: tuple[int, int], percentiles: tuple[float, float] = rgb.PERCENTILES
    ) -> list[rgb.Range] | None:
        """One stretch for all windows, from the scene reduced to `size`; None: none is needed."""
        if self.has_palette or self.scene.dtypes[self.bands[0] - 1] == "uint8":
            return None
        values, valid, _ = self._values(size, None)
        return rgb.limits_of(values, valid, percentiles)

    def _values(self, size, window):
        """(bands, valid: each [bands, height, width], the alpha band [height, width] or None)"""
        pixels = self._read(self.bands, size, window, masked=True)
        values, valid = pixels.data, ~np.ma.getmaskarray(pixels)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values)
        alpha = None
        if self.alpha:
            [alpha] = self._read([self.alpha], size, window)
            valid &= alpha > 0
        if self.has_palette:
            return values, valid, alpha
        return _eight_bits(self.scene, self.bands, values), valid, alpha

    def _read(self, bands, size, window, **options):
        from rasterio.enums import Resampling
        from rasterio.windows import Window

        # The average of two palette indexes is a third colour.
        resampling = Resampling.average
        if self.has_palette or self.driver not in RANDOM_ACCESS:
            resampling = Resampling.nearest
        shape = (len(bands), *size)
        part = None if window is None else Window(*window)
        return self.scene.read(
            bands, out_shape=shape, window=part, resampling=resampling, **options
        )


def reduced_size(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width that an image of this height and width is read at."""
    factor = rgb.shrink_factor(shape)
    return -(-shape[0] // factor), -(-shape[1] // factor)


def pixels_read(scene: Any) -> int:
    """Pixels that GDAL decodes where it reads the whole scene reduced: fewer with overviews."""
    factor = rgb.shrink_factor(scene.shape)
    overview = max((by for by in scene.overviews(1) if by <= factor), default=1)
    return scene.width * scene.height // overview**2


def chosen_bands(scene: Any, bands: Sequence[int] | None) -> list[int]:
    """The three bands to show: as asked, as the file names them, or the first ones."""
    from rasterio.enums import ColorInterp

    if bands:
        if not all(1 <= band <= scene.count for band in bands):
            raise ImageError(
                f"bands {' '.join(map(str, bands))} were asked for, it has 1 to {scene.count}"
            )
        return list(bands)

    named = dict(zip(scene.colorinterp, scene.indexes))
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(color in named for color in colors):
        return [named[color] for color in colors]
    by_name = _bands_by_name(scene)
    if by_name:
        return by_name
    shown = [band for band in scene.indexes if band != named.get(ColorInterp.alpha)]
    return shown[:3] if len(shown) > 2 else shown[:1] * 3


def _bands_by_name(scene: Any) -> list[int] | None:
    """The bands whose descriptions say red, green and blue, outright or as numbers of a sensor."""
    named = {(name or "").strip().lower(): i for name, i in zip(scene.descriptions, scene.indexes)}
    # Of Landsat 4 to 7 B1 is blue, and none of their bands is B11.
    is_older = "b1" in named and "b11" not in named
    known = (OUTRIGHT,) if is_older else (OUTRIGHT, *NUMBERED)
    for names in known:
        if all(name in named for name in names):
            return [named[name] for name in names]
    return None


def _eight_bits(scene: Any, bands: list[int], values: np.ndarray) -> np.ndarray:
    """Bands of 1 to 7 bits, which GDAL gives as bytes: their highest number becomes 255."""
    bits = scene.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "8")
    if values.dtype != np.uint8 or bits not in "1234567":
        return values
    highest = 2 ** int(bits) - 1
    return (values.astype(np.uint16) * 255 // highest).astype(np.uint8)


def _refuse_too_large(scene: Any, driver: str | None) -> None:
    """Raises UserError for a scene that cannot be read reduced in bounded memory and time."""
    from rasterio.enums import Interleaving

    block = np.prod(scene.block_shapes[0]) * np.dtype(scene.dtypes[0]).itemsize
    if scene.interleaving != Interleaving.band:
        block *= scene.count
    most = MAX_JPEG2000 if driver == "JP2OpenJPEG" else MAX_SCENE
    if pixels_read(scene) > most or block > MAX_BLOCK:
        raise ImageError(
            f"{scene.width} x {scene.height} pixels without overviews, "
            f"in blocks of {block / 1e6:.0f} MB; rewrite it with `gdal_translate -of COG`",
            TOO_LARGE,
        )


def _from_palette(indexes: np.ndarray, valid: np.ndarray, palette: dict) -> Image.Image:
    """[H, W] indexes of {index: (R, G, B, A)} -> 8-bit RGB; an index without a colour is black."""
    colors = np.zeros((max(int(indexes.max()), *palette) + 1, 4), np.uint8)
    colors[:, 3] = 255
    for index, color in palette.items():
        colors[index] = color
    shown = colors[indexes]
    opacity = np.where(valid, shown[..., 3], 0).astype(np.uint8)
    return rgb.on_white(Image.fromarray(shown[..., :3]), Image.fromarray(opacity))
