"""Reading images through rasterio (GDAL), an optional package.

It reads what Pillow cannot: several bands of more than 8 bits, other bands than the first three,
scenes too large to be decoded whole.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from model.images import rgb
from model.images.errors import NEEDS_RASTERIO, TOO_LARGE, UNREADABLE, ImageError

# Pixels read without overviews: a minute or more
MAX_SCENE = 2**32
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
    if driver is None:
        raise ImageError(
            f"{reason} is not possible for files of this kind; "
            "convert it to TIFF or PNG, or cut it into tiles",
            kind,
        )
    try:
        import rasterio
    except ImportError:
        raise ImageError(f"{reason} needs rasterio: pip install rasterio", NEEDS_RASTERIO) from None

    # A downloaded file is in memory and has no name.
    path = getattr(file, "name", file)
    try:
        with (
            rasterio.Env(**SETTINGS),
            rasterio.open(path, driver=driver) as scene,
        ):
            return _read_reduced(scene, driver, bands), (scene.width, scene.height)
    except rasterio.errors.RasterioError as error:
        raise OSError(error.__cause__ or error) from None


def _read_reduced(scene: Any, driver: str, bands: Sequence[int] | None) -> Image.Image:
    from rasterio.enums import ColorInterp, Resampling

    has_palette = scene.colorinterp[0] == ColorInterp.palette and not bands
    chosen = _chosen_bands(scene, bands)
    if any(scene.dtypes[band - 1].startswith("complex") for band in chosen):
        raise ImageError("complex numbers; write their amplitude first")
    _refuse_too_large(scene)

    factor = rgb.shrink_factor(scene.shape)
    size = -(-scene.height // factor), -(-scene.width // factor)
    # The average of two palette indexes is a third colour.
    resampling = Resampling.average
    if has_palette or driver not in RANDOM_ACCESS:
        resampling = Resampling.nearest

    def read(bands, **options):
        shape = (len(bands), *size)
        return scene.read(bands, out_shape=shape, resampling=resampling, **options)

    pixels = read(chosen, masked=True)
    values, valid = pixels.data, ~np.ma.getmaskarray(pixels)
    if has_palette:
        return _from_palette(values[0], valid[0], scene.colormap(1))

    alpha = None
    if ColorInterp.alpha in scene.colorinterp and not bands:
        [alpha] = read([1 + scene.colorinterp.index(ColorInterp.alpha)])
        valid &= alpha > 0
    shown = rgb.from_bands(_eight_bits(scene, chosen, values), valid)
    if alpha is None or driver != "PNG":
        return shown
    # PNG's alpha is opacity; elsewhere only 0 counts (see pillow.py).
    steps = np.iinfo(alpha.dtype).max // 255
    return rgb.on_white(shown, Image.fromarray((alpha // steps).astype(np.uint8)))


def _chosen_bands(scene: Any, bands: Sequence[int] | None) -> list[int]:
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
    shown = [band for band in scene.indexes if band != named.get(ColorInterp.alpha)]
    return shown[:3] if len(shown) > 2 else shown[:1] * 3


def _eight_bits(scene: Any, bands: list[int], values: np.ndarray) -> np.ndarray:
    """Bands of 1 to 7 bits, which GDAL gives as bytes: their highest number becomes 255."""
    bits = scene.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "8")
    if values.dtype != np.uint8 or bits not in "1234567":
        return values
    highest = 2 ** int(bits) - 1
    return (values.astype(np.uint16) * 255 // highest).astype(np.uint8)


def _refuse_too_large(scene: Any) -> None:
    """Raises UserError for a scene that cannot be read reduced in bounded memory and time."""
    from rasterio.enums import Interleaving

    block = np.prod(scene.block_shapes[0]) * np.dtype(scene.dtypes[0]).itemsize
    if scene.interleaving != Interleaving.band:
        block *= scene.count
    takes_long = scene.width * scene.height > MAX_SCENE and not scene.overviews(1)
    if takes_long or block > MAX_BLOCK:
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
