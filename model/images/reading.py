"""Images: a file or an address -> 8-bit RGB.

Stages: open -> choose a decoder (Pillow, or rasterio for what Pillow cannot read) -> decode
-> 8-bit RGB -> shrink.
"""

import io
import os
import struct
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from model.errors import UserError
from model.images import rgb
from model.images.fetch import fetch
from model.images.raster import driver_of, read_raster

# Decoded whole by Pillow: 0.5 GB at its 4 bytes a pixel, 1 to 1.5 GB while they are converted
MAX_PIXELS = 2**27
# GDAL's TIFF tag
NODATA = 42113

# Pillow warns from this number on and refuses twice as many.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# What they would warn of is an error here, in one line.
warnings.filterwarnings("ignore", module="PIL|rasterio")


def read_image(
    source: str | os.PathLike, bands: Sequence[int] | None = None, public_only: bool = False
) -> Image.Image:
    """An image -> PIL image, 8-bit RGB, upright.

    source: a file, or an http(s) address; bands: the three bands, counted from 1, that are shown
    as red, green and blue. public_only is for what strangers type: it refuses files and whatever
    is not on the public network (see fetch.py). Of an animation it is the first frame; what is
    transparent or nodata becomes white.

    Raises UserError that names the source and what is wrong with it.
    """
    try:
        with _open(source, public_only) as file:
            image = _decode(file, bands)
        return _shrunk(image)
    except UserError as error:
        raise UserError(f"image {source}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(
            f"image {source}: not an image Pillow can read (PNG, JPEG, TIFF, ... expected)"
        ) from None
    # of truncated and corrupt files
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"image {source}: cannot be read ({error}); copy or download it again"
        ) from None


def _open(source: str | os.PathLike, public_only: bool) -> BinaryIO:
    if public_only or "://" in str(source):
        return io.BytesIO(fetch(str(source), public_only))

    path = os.path.expanduser(source)
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise UserError("no such file") from None
    # ValueError: a name with a null in it
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UserError("a folder; name one image in it") from None
        raise UserError(f"cannot be opened ({getattr(error, 'strerror', error)})") from None


def _decode(file: BinaryIO, bands: Sequence[int] | None) -> Image.Image:
    """An open file -> 8-bit RGB, reduced while it is decoded where the decoder can."""
    image, raster_reason = _choose_decoder(file, bands)
    if image is None:
        return read_raster(file, bands, raster_reason)

    factor = rgb.shrink_factor(image.size)
    if factor > 1:
        # Only JPEG's decoder can shrink, by up to 8; the others ignore it.
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
    return _to_rgb(image)


def _choose_decoder(file: BinaryIO, bands: Sequence[int] | None) -> tuple[Image.Image | None, str]:
    """(the image that Pillow has opened, "") or (None, why rasterio has to read it instead)."""
    if bands:
        return None, "a choice of bands"
    try:
        image: Image.Image = Image.open(file)
    except UnidentifiedImageError:
        if driver_of(file) != "GTiff":
            raise
        return None, "a TIFF that Pillow cannot read; unless it was cut short, it"
    except Image.DecompressionBombError as error:
        if driver_of(file) != "JPEG":
            size_and_limit = str(error).partition(", could")[0]
            return None, f"{size_and_limit}; a reduced reading"
        image = _open_huge_jpeg(file)

    if image.format == "EPS":
        raise UserError("an EPS file, which only an outside program can draw; convert it to PNG")
    if _pillow_loses_bands(image):
        return None, "several bands, of which Pillow reads one or the upper 8 bits; this"
    return image, ""


def _open_huge_jpeg(file: BinaryIO) -> Image.Image:
    """A JPEG over Pillow's limit: its decoder shrinks while it reads, unless it is progressive."""
    image = JpegImagePlugin.JpegImageFile(file)
    # A progressive one keeps the coefficients of all pixels in memory.
    if "progressive" in image.info:
        raise UserError(
            f"a progressive JPEG of {image.width} x {image.height} pixels; cut it into tiles"
        )
    return image


def _pillow_loses_bands(image: Image.Image) -> bool:
    """Whether this is a TIFF of several bands of which Pillow reads one, or the upper 8 bits."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    if image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1:
        return False
    bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return bits > 8 or len(image.getbands()) == 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image -> 8-bit RGB, upright; a 16-bit or float band is stretched."""
    ImageOps.exif_transpose(image, in_place=True)

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        band = np.asarray(image, dtype=np.float32)
        valid = np.isfinite(band)
        tags = getattr(image, "tag_v2", {})
        if NODATA in tags:
            valid &= band != np.float32(tags[NODATA])
        return rgb.on_white(Image.fromarray(rgb.stretched(band, valid)), valid)

    if image.has_transparency_data:
        is_tiff = image.format == "TIFF"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        # Trap: the fourth band of a TIFF is often near infrared that GDAL labelled alpha:
        # there only 0 is transparent.
        return rgb.on_white(image, np.asarray(alpha) > 0 if is_tiff else alpha)

    return image.convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    factor = rgb.shrink_factor(image.size)
    return image.reduce(factor) if factor > 1 else image
