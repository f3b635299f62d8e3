"""Reading images through rasterio (GDAL), an optional package.

It reads what Pillow cannot: several bands of more than 8 bits, other bands than the first three,
scenes too large to be decoded whole.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from model.errors import UserError
from model.images import rgb

# Pixels read without overviews: a minute or more
MAX_SCENE = 2**32
# Bytes that GDAL decodes at a time
MAX_BLOCK = 2**29
GDAL_CACHE_MB = 64

# How a file begins -> GDAL's driver for it.
# Trap: left to choose, GDAL also opens descriptions (VRT) that name other files.
DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"BM": "BMP",
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


def read_raster(file: BinaryIO, bands: Sequence[int] | None, reason: str) -> Image.Image:
    """An open file -> 8-bit RGB, from its overviews or reduced while it is read; nodata is white.

    bands: three, counted from 1, or None for what the file calls red, green and blue;
    reason: what rasterio is needed for, the beginning of the message where it cannot help.
    Raises UserError, and OSError for what GDAL cannot read.
    """
    driver = driver_of(file)
    if driver is None:
        raise UserError(
            f"{reason} is not possible for files of this kind; "
            "convert it to TIFF or PNG, or cut it into tiles"
        )
    try:
        import rasterio
    except ImportError:
        raise UserError(f"{reason} needs rasterio: pip install rasterio") from None

    # A downloaded file is in memory and has no name.
    path = getattr(file, "name", file)
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_MB),
            rasterio.open(path, driver=driver) as scene,
        ):
            pixels, palette = _read_reduced(scene, driver, bands)
    except rasterio.errors.RasterioError as error:
        raise OSError(error.__cause__ or error) from None

    if np.iscomplexobj(pixels):
        raise UserError("complex numbers; write their amplitude first")
    return _to_rgb(pixels, palette)


def _read_reduced(scene: Any, driver: str, bands: Sequence[int] | None):
    """-> (masked array [3, H, W] of the file's own type, its palette or None)."""
    from rasterio.enums import ColorInterp, Resampling

    has_palette = scene.colorinterp[0] == ColorInterp.palette and not bands
    bands = _chosen_bands(scene, bands)
    _refuse_too_large(scene)

    factor = rgb.shrink_factor(scene.shape)
    height, width = -(-scene.height // factor), -(-scene.width // factor)
    # The average of two palette indexes is a third colour.
    resampling = Resampling.average
    if has_palette or driver not in RANDOM_ACCESS:
        resampling = Resampling.nearest

    pixels = scene.read(bands, masked=True, out_shape=(3, height, width), resampling=resampling)
    return pixels, scene.colormap(1) if has_palette else None


def _chosen_bands(scene: Any, bands: Sequence[int] | None) -> list[int]:
    """The three bands to show: as asked, as the file names them, or the first ones."""
    from rasterio.enums import ColorInterp

    if bands:
        if not all(1 <= band <= scene.count for band in bands):
            raise UserError(
                f"bands {' '.join(map(str, bands))} were asked for, it has 1 to {scene.count}"
            )
        return list(bands)

    named = dict(zip(scene.colorinterp, scene.indexes))
    colors = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(color in named for color in colors):
        return [named[color] for color in colors]
    return [1, 2, 3] if scene.count > 2 else [1, 1, 1]


def _refuse_too_large(scene: Any) -> None:
    """Raises UserError for a scene that cannot be read reduced in bounded memory and time."""
    block = np.prod(scene.block_shapes[0]) * scene.count * np.dtype(scene.dtypes[0]).itemsize
    takes_long = scene.width * scene.height > MAX_SCENE and not scene.overviews(1)
    if takes_long or block > MAX_BLOCK:
        raise UserError(
            f"{scene.width} x {scene.height} pixels without overviews, "
            f"in blocks of {block / 1e6:.0f} MB; rewrite it with `gdal_translate -of COG`"
        )


def _to_rgb(pixels: np.ma.MaskedArray, palette: dict | None) -> Image.Image:
    """Masked [3, H, W] -> 8-bit RGB; bands of more than 8 bits are stretched one by one.

    palette: {index: (R, G, B, A)}; then the pixels are indexes.
    """
    values, valid = pixels.data, ~np.ma.getmaskarray(pixels)
    if palette:
        shown = _palette_colors(palette)[values[0]]
    elif values.dtype == np.uint8:
        shown = values.transpose(1, 2, 0)
    else:
        values = values.astype(np.float32)
        valid &= np.isfinite(values)
        shown = np.stack([rgb.stretched(*band) for band in zip(values, valid)], axis=-1)
    return rgb.on_white(Image.fromarray(shown), np.asarray(valid.any(axis=0)))


def _palette_colors(palette: dict) -> np.ndarray:
    """{index: (R, G, B, A)} -> uint8 [indexes, 3]; an index without a colour is black."""
    colors = np.zeros((max(palette) + 1, 3), np.uint8)
    for index, color in palette.items():
        colors[index] = color[:3]
    return colors
