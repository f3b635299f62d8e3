"""Images: a file or an address -> 8-bit RGB.

Stages: open -> choose a decoder (Pillow, or rasterio for what Pillow cannot read whole) -> decode
-> 8-bit RGB -> shrink.
"""

import base64
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from model.errors import UserError
from model.files import impostor
from model.images import pillow, rgb, tars
from model.images.errors import NEEDS_RASTERIO, TOO_LARGE, TRUNCATED, UNREADABLE, ImageError
from model.images.fetch import fetch
from model.images.raster import (
    RANDOM_ACCESS,
    driver_of,
    has_rasterio,
    open_raster,
    pixels_read,
    read_raster,
    reduced_size,
)

URL_SAFE = bytes.maketrans(b"-_", b"+/")
DATA = "data:"  # how the address of an image begins that stands in the address itself
# Raised by one where an image is read otherwise than before: what was kept of it is then made again
READER = 4

# How decoders say that a file may be whole, and is not for them
UNSUPPORTED = re.compile(
    r"unsupported|not supported|unimplemented|not implemented|unknown|cannot identify|"
    r"cannot find|missing codec|not available|decoder error",
    re.IGNORECASE,
)

# What they would warn of is an error here, in one line.
warnings.filterwarnings("ignore", module="PIL|rasterio")


def reader_of(bands: Sequence[int] | None = None) -> str:
    """The name under which what was made of an image is kept: another one, other pixels."""
    return f"{READER} {' '.join(map(str, bands or ()))}".strip()


def read_image(
    source: str | os.PathLike, bands: Sequence[int] | None = None, public_only: bool = False
) -> Image.Image:
    """An image -> PIL image, 8-bit RGB, upright.

    source: a file, a member of a tar (`a.tar/key.jpg`), an http(s) address or a data: URI; bands:
    the three bands, counted from 1, that are shown as red, green and blue. public_only is for what
    strangers type: it refuses files and whatever is not on the public network (see fetch.py). Of an
    animation it is the first frame; what is transparent or nodata becomes white.
    `info["original_size"]` of the image is (width, height) of the file: long sides are shrunk (see
    rgb.py).

    Raises ImageError (a UserError) that names the source and what is wrong with it.
    """
    with opened(source, public_only) as file:
        return read_opened(file, source, bands)


def read_opened(
    file: BinaryIO, source: str | os.PathLike, bands: Sequence[int] | None = None
) -> Image.Image:
    """`read_image` of what `opened` has given."""
    image, original_size = _decode(file, bands, partial(_note, _name(source)))
    image = _shrunk(image)
    image.info["original_size"] = original_size
    return image


def image_size(source: str | os.PathLike, public_only: bool = False) -> tuple[int, int]:
    """(width, height) of what `read_image` makes of an image, whose pixels are not decoded.

    Of one that EXIF data turn by a right angle the two are swapped. Raises ImageError.
    """
    with opened(source, public_only) as file:
        height, width = reduced_size(_shape(file))
        return width, height


def _shape(file: BinaryIO) -> tuple[int, int]:
    """(height, width) of an open file as its decoder gives it, before it is shrunk."""
    with header(file) as found:
        if isinstance(found, Image.Image):
            _shrink_while_decoding(found)
        return found.height, found.width


@contextmanager
def header(file: BinaryIO) -> Iterator[Any]:
    """A context with what opens a file: Pillow's image, not yet decoded, or rasterio's dataset."""
    try:
        image = pillow.open_image(file)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        driver = driver_of(file)
        if driver != "JPEG":
            with open_raster(file, driver, _reduced(error), TOO_LARGE) as scene:
                yield scene
            return
        image = pillow.open_huge_jpeg(file)
    except Exception:  # noqa: BLE001 -- decoders fail in ways of their own
        driver = driver_of(file)
        if driver is None:
            raise
        with open_raster(file, driver, "an image that Pillow cannot open; this") as scene:
            yield scene
        return
    yield image


def pixels_of(file: BinaryIO) -> tuple[int, int, int]:
    """(width, height, pixels that are decoded) of an open file, before any of them is."""
    with header(file) as found:
        if isinstance(found, Image.Image):
            return *found.size, found.width * found.height
        return found.width, found.height, pixels_read(found)


@contextmanager
def opened(source: str | os.PathLike, public_only: bool = False) -> Iterator[BinaryIO]:
    """A context with an image's file, in which whatever a decoder raises becomes an ImageError that
    names the source.
    """
    try:
        with open_source(source, public_only) as file:
            with _one_kind_of_error(file):
                yield file
    except UserError as error:
        kind = getattr(error, "kind", UNREADABLE)
        raise ImageError(f"image {_name(source)}: {error}", kind) from None


@contextmanager
def _one_kind_of_error(file: BinaryIO) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_one_line(error), TOO_LARGE) from None
    except MemoryError:
        raise ImageError("more memory than there is; cut it into tiles", TOO_LARGE) from None
    except Exception as error:  # noqa: BLE001 -- decoders fail in ways of their own
        raise unreadable(file, error) from None


@lru_cache
def _note(source: str, text: str) -> None:
    """Say once what of an image is ignored."""
    print(f"image {source}: {text}", file=sys.stderr)


def _name(source: str | os.PathLike) -> str:
    """A source as messages name it: of a data: URI its beginning."""
    text = str(source)
    return text[:30] + "..." if _is_data(text) and len(text) > 30 else text


def _is_data(text: str) -> bool:
    return text[: len(DATA)].lower() == DATA


def is_address(source: str) -> bool:
    """Whether a text is no path but an http(s) address or a data: URI."""
    return _is_data(source) or "://" in source


def open_source(source: str | os.PathLike, public_only: bool = False) -> BinaryIO:
    """An image's file, or what its address gives. Raises UserError."""
    if _is_data(str(source)):
        return io.BytesIO(_data(str(source)))
    if public_only or is_address(str(source)):
        return io.BytesIO(fetch(str(source), public_only))

    path = os.path.expanduser(source)
    try:
        return tars.open_file(path)
    except FileNotFoundError:
        raise UserError("no such file") from None
    # ValueError: a name with a null in it
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            raise UserError("a folder; name one image in it") from None
        raise UserError(f"cannot be opened ({getattr(error, 'strerror', error)})") from None


def _data(uri: str) -> bytes:
    """The content of a data: URI (RFC 2397)."""
    head, comma, content = uri.partition(",")
    if not comma:
        raise UserError("a data: URI without a comma; expected data:image/png;base64,...")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(content)
    # Also in lines, without padding, and in the alphabet of addresses, as programs write it
    text = b"".join(unquote_to_bytes(content).split()).translate(URL_SAFE)
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ImageError("not valid base64; it may have been cut short", TRUNCATED) from None


def _decode(
    file: BinaryIO, bands: Sequence[int] | None, note: Callable[[str], None]
) -> tuple[Image.Image, tuple[int, int]]:
    """An open file -> (8-bit RGB, reduced where the decoder can; the file's width and height)."""
    try:
        if bands:
            return read_raster(file, bands, "a choice of bands")
        return _by_pillow(file, note)
    except (UserError, Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 -- decoders fail in ways of their own
        # Inside: kept beyond it, the error would hold the decoder's memory through its traceback
        if not bands and _may_be_for_rasterio(file, error):
            return _second_opinion(file, error)
        raise


def _by_pillow(file: BinaryIO, note: Callable[[str], None]) -> tuple[Image.Image, tuple[int, int]]:
    """What Pillow would not read whole goes to rasterio."""
    try:
        image = pillow.open_image(file)
    except Image.DecompressionBombError as error:
        if driver_of(file) != "JPEG":
            return read_raster(file, None, _reduced(error), TOO_LARGE)
        image = pillow.open_huge_jpeg(file)

    lost = pillow.what_is_lost(image, file)
    if not lost and pillow.stands_in_the_way(image) and has_rasterio():
        lost = "a large JPEG 2000; this"
    if lost and driver_of(file):
        shown, size = read_raster(file, None, lost)
        # GDAL does not turn images
        pillow.upright(shown, image, note)
        return shown, size

    size = image.size
    _shrink_while_decoding(image)
    return pillow.to_rgb(image, note), size


def _reduced(error: Image.DecompressionBombError) -> str:
    """What rasterio is needed for where Pillow says this of the size."""
    return f"{str(error).partition(', could')[0]}; a reduced reading"


def _shrink_while_decoding(image: Image.Image) -> None:
    """Only JPEG's decoder can, by up to 8; the others ignore it."""
    factor = rgb.shrink_factor(image.size)
    if factor > 1:
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))


def _may_be_for_rasterio(file: BinaryIO, error: Exception) -> bool:
    """Whether rasterio is asked about a file that Pillow failed on.

    Not about damaged PNG: GDAL reads on behind what is missing.
    """
    driver = driver_of(file)
    return driver in RANDOM_ACCESS or bool(driver and UNSUPPORTED.search(_one_line(error)))


def _second_opinion(file: BinaryIO, pillow_error: Exception) -> tuple[Image.Image, tuple[int, int]]:
    """By rasterio. Where that fails as well, Pillow's error counts if it speaks of damage."""
    reason = "a TIFF that Pillow cannot read; unless it was cut short, it"
    if driver_of(file) != "GTiff":
        reason = "a file that Pillow cannot read; unless it is damaged, it"
    is_damaged = not UNSUPPORTED.search(_one_line(pillow_error))
    try:
        return read_raster(file, None, reason)
    except ImageError as error:
        if error.kind == NEEDS_RASTERIO and is_damaged:
            raise unreadable(file, pillow_error) from None
        raise
    except Exception as error:  # noqa: BLE001 -- as above
        raise unreadable(file, pillow_error if is_damaged else error) from None


def unreadable(file: BinaryIO, error: Exception) -> ImageError:
    """A decoder's error about an open file -> what its user reads."""
    if isinstance(error, UnidentifiedImageError) and driver_of(file) is None:
        return _unidentified(file)
    text = _one_line(error)
    if UNSUPPORTED.search(text):
        return ImageError(f"cannot be read ({text}); convert it to PNG or an uncompressed TIFF")
    return ImageError(f"cannot be read ({text}); copy or download it again", TRUNCATED)


def _unidentified(file: BinaryIO) -> ImageError:
    """Of a file of no known kind: what it is instead, where that can be seen."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(200)
    if start[4:12] in (b"ftypavif", b"ftypavis"):
        return ImageError("cannot be read (an AVIF that is not whole); copy it again", TRUNCATED)
    instead = impostor(start, size)
    if start and not start.strip(b"\0"):
        instead = ": it begins with zeros; copy or download it again"
    return ImageError(f"not an image Pillow can read (PNG, JPEG, TIFF, ... expected){instead}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shrunk(image: Image.Image) -> Image.Image:
    factor = rgb.shrink_factor(image.size)
    return image.reduce(factor) if factor > 1 else image
