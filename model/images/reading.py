"""Images: a file or an address -> 8-bit RGB.

Pillow reads them; rasterio, where it is installed, reads what Pillow cannot: several bands of more than 8 bits, other
bands than the first three, scenes too large to be decoded whole.
"""

import io
import os
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from model.errors import UserError
from model.images.fetch import fetch

MAX_PIXELS = (
    2**27
)  # decoded whole by Pillow: 0.5 GB at its 4 bytes a pixel, 1 to 1.5 GB while they are converted
MAX_SCENE = 2**32  # pixels read through rasterio without overviews: a minute or more
MAX_BLOCK = 2**29  # bytes that rasterio decodes at a time
LONGEST = (
    2048  # pixels; pictures at least twice as long are shrunk by a whole factor: networks read 224
)
NODATA = 42113  # GDAL's TIFF tag
# How a file begins -> GDAL's driver for it. Left to choose, GDAL also opens descriptions that name other files.
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
RANDOM_ACCESS = (
    "GTiff",
    "JP2OpenJPEG",
)  # averaging goes back to earlier rows; in the others each time from the top

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice this number
warnings.filterwarnings("ignore", module="PIL|rasterio")  # an error says it in one line


def read_image(source, bands=None, public_only=False):
    """A picture -> PIL image, 8-bit RGB, upright. Raises UserError that names the source and what is wrong with it.

    source: a file, or an http(s) address; bands: the three bands, counted from 1, that are shown as red, green and blue.
    public_only is for what strangers type: it refuses files and whatever is not on the public network (see fetch.py).
    Of an animation it is the first frame; what is transparent or nodata becomes white.
    """
    try:
        with _open(source, public_only) as file:
            return _shrunk(_decode(file, bands))
    except UserError as error:
        raise UserError(f"image {source}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(
            f"image {source}: not a picture Pillow can read (PNG, JPEG, TIFF, ... expected)"
        ) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as error:  # of truncated and corrupt files
        raise UserError(
            f"image {source}: cannot be read ({error}); copy or download it again"
        ) from None


def _open(source, public_only):
    if public_only or "://" in str(source):
        return io.BytesIO(fetch(str(source), public_only))
    try:
        return open(os.path.expanduser(source), "rb")
    except FileNotFoundError:
        raise UserError("no such file") from None
    except (OSError, ValueError) as error:  # the latter for a name with a null in it
        if os.path.isdir(os.path.expanduser(source)):
            raise UserError("a folder; name one picture in it") from None
        raise UserError(f"cannot be opened ({getattr(error, 'strerror', error)})") from None


def _decode(file, bands):
    if bands:
        return _read_scene(file, bands, "a choice of bands")
    try:
        image = Image.open(file)
    except Image.DecompressionBombError as error:
        if _driver(file) != "JPEG":
            return _read_scene(
                file, None, f"{str(error).partition(', could')[0]}; a reduced reading"
            )
        image = JpegImagePlugin.JpegImageFile(file)  # its decoder can shrink
        if "progressive" in image.info:  # which keeps all coefficients in memory
            raise UserError(
                f"a progressive JPEG of {image.width} x {image.height} pixels; cut it into tiles"
            ) from None
    except UnidentifiedImageError:
        if _driver(file) != "GTiff":
            raise
        return _read_scene(
            file, None, "a TIFF that Pillow cannot read; unless it was cut short, it"
        )
    if image.format == "EPS":
        raise UserError("an EPS file, which only an outside program can draw; convert it to PNG")
    if (
        image.format == "TIFF"
        and image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
        and (
            max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
            or len(image.getbands()) == 1
        )
    ):
        return _read_scene(
            file, None, "several bands, of which Pillow reads one or the upper 8 bits; this"
        )
    factor = max(image.size) // LONGEST
    if factor > 1:
        image.draft(
            None, (max(1, image.width // factor), max(1, image.height // factor))
        )  # only JPEG can
    return _to_rgb(image)


def _driver(file):
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    return next((driver for magic, driver in DRIVERS.items() if start.startswith(magic)), None)


def _to_rgb(image):
    """Any Pillow image -> 8-bit RGB, upright; a 16-bit or float band is stretched."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        band = np.asarray(image, dtype=np.float32)
        valid = np.isfinite(band)
        if NODATA in getattr(image, "tag_v2", ()):
            valid &= band != np.float32(image.tag_v2[NODATA])
        return _on_white(Image.fromarray(_stretch(band, valid)), valid)
    if image.has_transparency_data:
        form, image = image.format, image.convert("RGBA")
        alpha = image.getchannel("A")
        # The fourth band of a TIFF is often near infrared that GDAL labelled alpha: there only 0 is transparent.
        return _on_white(image, np.asarray(alpha) > 0 if form == "TIFF" else alpha)
    return image.convert("RGB")


def _stretch(band, valid):
    """[H, W] numbers -> 8 bits, the 2nd to the 98th percentile of the valid ones spread over 0 to 255."""
    step = max(1, max(band.shape) // LONGEST)
    seen = band[::step, ::step][valid[::step, ::step]]
    low, high = map(float, np.percentile(seen, (2, 98))) if seen.size else (0, 0)
    band = np.where(valid, band, np.float32(low))
    band -= low
    band *= 255 / (high - low or 1)
    return np.clip(band, 0, 255, out=band).astype(np.uint8)


def _on_white(image, mask):
    """mask: an 8-bit image, or a bool array."""
    white = Image.new("RGB", image.size, "white")
    white.paste(
        image, mask=Image.fromarray(mask * np.uint8(255)) if isinstance(mask, np.ndarray) else mask
    )
    return white


def _shrunk(image):
    factor = max(image.size) // LONGEST
    return image.reduce(factor) if factor > 1 else image


def _read_scene(file, bands, need):
    """Read through rasterio, from overviews or reduced while it is read; need: what for, when it is missing."""
    driver = _driver(file)
    if driver is None:
        raise UserError(
            f"{need} is not possible for files of this kind; convert it to TIFF or PNG, or cut it into tiles"
        )
    try:
        import rasterio
        from rasterio.enums import ColorInterp, Resampling
    except ImportError:
        raise UserError(f"{need} needs rasterio: pip install rasterio") from None
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=64),  # MB
            rasterio.open(getattr(file, "name", file), driver=driver) as scene,
        ):
            palette = scene.colorinterp[0] == ColorInterp.palette and not bands
            colours = dict(zip(scene.colorinterp, scene.indexes))
            if not bands:
                bands = [
                    colours.get(colour)
                    for colour in (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
                ]
                bands = bands if all(bands) else [1, 2, 3] if scene.count > 2 else [1, 1, 1]
            elif not all(1 <= band <= scene.count for band in bands):
                raise UserError(
                    f"bands {' '.join(map(str, bands))} were asked for, it has 1 to {scene.count}"
                )
            block = (
                np.prod(scene.block_shapes[0]) * scene.count * np.dtype(scene.dtypes[0]).itemsize
            )
            if (
                block > MAX_BLOCK
                or scene.width * scene.height > MAX_SCENE
                and not scene.overviews(1)
            ):
                raise UserError(
                    f"{scene.width} x {scene.height} pixels without overviews, in blocks of {block / 1e6:.0f} MB; "
                    "rewrite it with `gdal_translate -of COG`"
                )
            factor = max(1, max(scene.shape) // LONGEST)
            pick = palette or driver not in RANDOM_ACCESS
            read = scene.read(
                bands,
                masked=True,
                out_shape=(3, -(-scene.height // factor), -(-scene.width // factor)),
                resampling=Resampling.nearest if pick else Resampling.average,
            )
            table = scene.colormap(1) if palette else None
    except rasterio.errors.RasterioError as error:
        raise OSError(error.__cause__ or error) from None
    if np.iscomplexobj(read):
        raise UserError("complex numbers; write their amplitude first")
    values, valid = read.data, ~np.ma.getmaskarray(read)
    if palette:
        values = np.array(
            [table.get(i, (0, 0, 0, 255)) for i in range(max(table) + 1)], dtype=np.uint8
        )[values[0], :3]
    elif values.dtype == np.uint8:
        values = values.transpose(1, 2, 0)
    else:
        values = values.astype(np.float32)
        valid &= np.isfinite(values)
        values = np.stack([_stretch(*band) for band in zip(values, valid)], axis=-1)
    return _on_white(Image.fromarray(values), valid.any(axis=0))
