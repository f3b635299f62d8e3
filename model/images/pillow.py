"""Reading images through Pillow: what it would lose of a file, and its pixels -> 8-bit RGB."""

import logging
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin

from model.images import rgb
from model.images.errors import TOO_LARGE, ImageError

# Decoded whole by Pillow: 0.5 GB at its 4 bytes a pixel, about 1 GB while they are converted
MAX_PIXELS = 2**27
# Of JPEG 2000 larger ones are decoded by rasterio where it is installed: also in less memory
MOST_JPEG2000 = 2**22
# TIFF tags; 4 among the bits of the first: the directory is a mask
NEW_SUBFILE_TYPE, ORIENTATION, NODATA = 254, 274, 42113
MASK = 4
UNSIGNED, SIGNED = 1, 2
# FITS is big-endian and signed; Pillow hands its bytes on as this machine's unsigned numbers
FITS_TYPES = {"I;16": ">i2", "I": ">i4"}
CMYK = 5

# It would name no file, and what it says comes back as an error
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# Pillow warns from this number on and refuses twice as many.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2


def open_image(file: BinaryIO) -> Image.Image:
    """An open file -> Pillow's image, not yet decoded. Raises ImageError and what Pillow raises."""
    image: Any = Image.open(file)
    if image.format == "EPS":
        raise ImageError("an EPS file, which only an outside program can draw; convert it to PNG")
    # Pillow takes numbers of 8 bytes for numbers of 4
    if image.format == "FITS" and image.mode == "F":
        raise ImageError("a FITS file of floating-point numbers; convert it to TIFF")
    # Pillow unpacks it number by number
    if image.format == "FITS" and image.tile[0].codec_name == "fits_gzip":
        raise ImageError("a compressed FITS file; convert it to TIFF")
    return image


def open_huge_jpeg(file: BinaryIO) -> Image.Image:
    """A JPEG over Pillow's limit: its decoder shrinks while it reads, unless it is progressive."""
    image = JpegImagePlugin.JpegImageFile(file)
    # A progressive one keeps the coefficients of all pixels in memory.
    if "progressive" in image.info:
        raise ImageError(
            f"a progressive JPEG of {image.width} x {image.height} pixels; cut it into tiles",
            TOO_LARGE,
        )
    return image


def what_is_lost(image: Image.Image, file: BinaryIO) -> str:
    """What of an opened file Pillow would not read: the beginning of a message, "" if nothing."""
    if image.format == "TIFF" and _tiff_loses_bands(image):
        return "several bands, of which Pillow reads one or the upper 8 bits; this"
    if image.format in ("PNG", "PPM") and _loses_depth(image):
        return "several bands of 16 bits, of which Pillow reads the upper 8; this"
    if image.format == "JPEG2000" and _jpeg2000_loses(image, file):
        return "JPEG 2000 of other bands than 8-bit RGB; this"
    if image.format == "TIFF" and _has_mask(image):
        return "a mask of what is valid"
    if _is_described(getattr(file, "name", None)):
        return "a file beside it that says what is valid; this"
    return ""


def stands_in_the_way(image: Image.Image) -> bool:
    """Whether Pillow lets no other thread of the process go on for seconds while it decodes."""
    return image.format == "JPEG2000" and image.width * image.height > MOST_JPEG2000


def to_rgb(image: Image.Image, note: Callable[[str], None]) -> Image.Image:
    """A Pillow image of any mode -> 8-bit RGB, upright; what is not valid becomes white.

    note: told what is ignored, such as a tag that means nothing.
    """
    image.load()
    invalid = _invalid_value(image, note)
    upright(image, image, note)

    band = _deep_band(image)
    if band is not None:
        valid = np.ones(band.shape, bool) if invalid is None else band != invalid
        return rgb.from_bands(band[None], valid[None])

    valid = _valid(image, invalid)
    if not image.has_transparency_data:
        image = image.convert("RGB")
        return image if valid is None else rgb.on_white(image, valid)

    image, alpha = _with_alpha(image)
    if valid is not None:
        alpha = Image.fromarray(valid * np.asarray(alpha))
    return rgb.on_white(image, alpha)


def upright(image: Image.Image, exif: Image.Image, note: Callable[[str], None]) -> None:
    """Turn and mirror an image as the EXIF data of `exif` say (the same image, or its source)."""
    try:
        image.getexif()[ORIENTATION] = exif.getexif().get(ORIENTATION, 1)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # noqa: BLE001 -- EXIF data may be broken in any way
        note(f"its EXIF data cannot be understood and are ignored ({error})")


def _tiff_loses_bands(image: Any) -> bool:
    """Whether Pillow reads one of this TIFF's bands, or the upper 8 bits."""
    if image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) == 1:
        return False
    # The inks of print have a stated range: their upper bits are the picture.
    if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == CMYK:
        return False
    bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return bits > 8 or len(image.getbands()) == 1


def _loses_depth(image: Any) -> bool:
    """Whether a PNG or PPM of several bands has more than 8 bits."""
    if len(image.getbands()) == 1 or not image.tile:
        return False
    arguments = image.tile[0].args
    if isinstance(arguments, str):
        return ";16" in arguments
    # PPM: the highest value, in binary files (GDAL reads no others)
    return arguments[-1] > 255 and image.tile[0].codec_name == "ppm"


def _jpeg2000_loses(image: Image.Image, file: BinaryIO) -> bool:
    """Whether this has more than 8 bits, signs, or bands of which Pillow makes transparency."""
    bands = len(image.getbands())
    if image.mode == "CMYK":
        return False
    file.seek(0)
    # The first marker of the code stream, its size and its geometry; then one byte a component
    header = re.search(rb"\xff\x4f\xff\x51.{38}(.)", file.read(2**16), re.DOTALL)
    file.seek(0)
    if header is None or bands in (2, 4):
        return True
    [size] = header[1]
    is_signed, bits = size & 0x80, (size & 0x7F) + 1
    return bool(is_signed) or (bits > 8 and bands > 1)


def _has_mask(image: Any) -> bool:
    """Whether a later directory of this TIFF is a mask. A directory Pillow fails on may be one."""
    try:
        for frame in range(1, image.n_frames):
            image.seek(frame)
            if image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & MASK:
                return True
    except Exception:  # noqa: BLE001 -- later directories may be broken in any way
        return True
    finally:
        image.seek(0)
    return False


def _is_described(name: str | None) -> bool:
    """Whether GDAL's files beside an image mask it or name its nodata value."""
    if not isinstance(name, str):
        return False
    if os.path.exists(name + ".msk"):
        return True
    try:
        with open(name + ".aux.xml", "rb") as file:
            return b"<NoDataValue>" in file.read(2**20)
    except OSError:
        return False


def _invalid_value(image: Any, note: Callable[[str], None]) -> float | None:
    """The number that a TIFF, or a PNG of one deep band, calls nodata."""
    if image.format == "TIFF" and NODATA in image.tag_v2:
        text = image.tag_v2[NODATA]
        try:
            return float(text)
        except (TypeError, ValueError):
            note(f"its nodata value is no number and is ignored, got {text!r:.40}")
    key = image.info.get("transparency")
    is_number = isinstance(key, int) and image.mode.startswith("I")
    return key if is_number else None


def _deep_band(image: Any) -> np.ndarray | None:
    """[H, W] in the file's own type where that is not 8 bits unsigned, else None."""
    if image.format == "FITS" and image.mode in FITS_TYPES:
        return np.asarray(image).view(FITS_TYPES[image.mode])
    tags = getattr(image, "tag_v2", {})
    number = tags.get(TiffImagePlugin.SAMPLEFORMAT, (UNSIGNED,))[0]
    if image.mode == "L" and number == SIGNED:
        return np.asarray(image).view(np.int8)
    if image.mode == "I" and image.format == "TIFF" and number == UNSIGNED:
        return np.asarray(image).view(np.uint32)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return None


def _valid(image: Image.Image, invalid: float | None) -> np.ndarray | None:
    """Bool [H, W] of 8-bit pixels: False where all bands are nodata; None if there is no nodata."""
    if invalid is None:
        return None
    values = np.asarray(image if image.mode in ("1", "L", "P") else image.convert("RGB"))
    return (values.reshape(*values.shape[:2], -1) != invalid).any(axis=-1)


def _with_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """(RGBA image, its opacity)."""
    image_format = image.format
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    alpha = image.getchannel("A")
    # Trap: the fourth band of a TIFF is often near infrared that GDAL labelled alpha:
    # there only 0 is transparent.
    if image_format == "TIFF":
        alpha = alpha.point(lambda value: 255 if value else 0)
    return image, alpha
