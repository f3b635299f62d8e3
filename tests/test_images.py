"""Images of every kind, from files and addresses, against values computed without the decoders.

Tests that need rasterio are skipped where it is not installed: pip install rasterio
"""

import base64
import gc
import gzip
import io
import itertools
import random
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import weakref
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from model import UserError, read_image
from model import rows as model_rows
from model.images import (
    BLANK_COLOR,
    NEEDS_RASTERIO,
    TOO_LARGE,
    ImageError,
    augment,
    blank_image,
    fetch,
    image_size,
    nearby,
    pillow,
    raster,
    reading,
    rgb,
)
from model.images.errors import TRUNCATED
from model.images.facts import facts_of

PROJECT = Path(__file__).resolve().parent.parent
Y, X = np.mgrid[0:60, 0:80]
RGB = np.stack([X * 3, Y * 4, (X + Y)], axis=-1).astype(np.uint8)
# 11 bits and more; the left columns are nodata
SENSOR = np.stack([X * 25 + 300, Y * 31 + 300, X + Y + 300, X * Y + 300]).astype(np.uint16)
SENSOR[:, :, :9] = 0


def stretched(band, valid):
    """The rule, computed again: the 2nd to 98th percentile of the valid pixels to 0..255.

    Beyond that it is cut off; the rest is white.
    """
    low, high = np.percentile(band[valid].astype(float), (2, 98))
    return np.where(valid, np.clip((band - low) / (high - low) * 255, 0, 255), 255)


def is_close(image, expected, tolerance=1.01):
    assert image.mode == "RGB"
    return np.abs(np.asarray(image, dtype=float) - expected).max() <= tolerance


@pytest.fixture
def no_rasterio(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)


@pytest.fixture
def write_raster(tmp_path):
    """Writes [bands, height, width] as a GeoTIFF; skips the test without rasterio."""
    rasterio = pytest.importorskip("rasterio")

    def write(values, name="scene.tif", **options):
        place = rasterio.Affine(10, 0, 4e5, 0, -10, 3e6)
        with rasterio.open(
            tmp_path / name,
            "w",
            driver="GTiff",
            count=len(values),
            height=values.shape[1],
            width=values.shape[2],
            **{"dtype": values.dtype, **options},
            transform=place,
        ) as file:
            file.write(values)
        return tmp_path / name

    return write


class TestSize:
    """What is foretold of a size is what reading gives."""

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg", "a.bmp", "a.webp"])
    @pytest.mark.parametrize("size", [(80, 60), (4099, 70), (70, 6501)])
    def test_what_pillow_reads(self, tmp_path, name, size):
        Image.new("RGB", size).save(tmp_path / name)
        assert image_size(tmp_path / name) == read_image(tmp_path / name).size

    @pytest.mark.parametrize("bands", [1, 3, 4])
    def test_deep_bands(self, write_raster, bands):
        for values in (SENSOR[:bands], np.zeros((bands, 4100, 9), np.uint16)):
            path = write_raster(values)
            assert image_size(path) == read_image(path).size

    def test_a_member_of_a_tar_and_a_data_uri(self, tmp_path):
        content = io.BytesIO()
        Image.new("RGB", (80, 60)).save(content, "PNG")
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = len(content.getvalue())
            tar.addfile(info, io.BytesIO(content.getvalue()))
        data = base64.b64encode(content.getvalue()).decode()
        for source in (tmp_path / "s.tar" / "a.png", f"data:image/png;base64,{data}"):
            assert image_size(source) == (80, 60)

    @pytest.mark.parametrize("content", [b"", b"<html>", b"II*\0cut", None])
    def test_errors_are_those_of_reading(self, tmp_path, content):
        path = tmp_path / "a.tif"
        if content is not None:
            path.write_bytes(content)
        messages = []
        for function in (image_size, read_image):
            with pytest.raises(ImageError) as error:
                function(path)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


class TestNearby:
    @pytest.mark.parametrize(
        "there, meant",
        [
            ("a/1.TIF", "a/1.tif"),
            ("a/1.png", "a/1.tif"),
            ("a/IMG_1.tif", "a/img_1.tif"),
            ("a/airplane/1.tif", "a/1.tif"),
            ("A/1.tif", "a/1.tif"),
        ],
    )
    def test_what_is_probably_meant(self, tmp_path, there, meant):
        file = tmp_path / "set" / there
        file.parent.mkdir(parents=True)
        file.touch()
        assert nearby(tmp_path / "set" / meant) == file

    @pytest.mark.parametrize("name", ["a/2.tif", "b/1.tif", "a/1/1.tif", "x\0y/1.tif", "a/11.png"])
    def test_nothing_of_the_kind(self, tmp_path, name):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "1.tif").touch()
        assert nearby(tmp_path / name) is None

    def test_rows_name_it(self, tmp_path):
        (tmp_path / "1.png").touch()
        (tmp_path / "rows.json").write_text('[{"img": "1.tif", "prompt": "q", "label": "a"}]')
        with pytest.raises(
            UserError, match=f"image not found at .* \\(there is {tmp_path}/1.png\\)"
        ):
            model_rows.load_rows(tmp_path / "rows.json")


def test_blank_image():
    image = blank_image((30, 20))
    assert image.mode == "RGB" and image.size == (30, 20)
    assert image.getcolors() == [(600, BLANK_COLOR)]


@pytest.fixture(scope="module")
def ramps():
    """Red grows to the right, green downwards; blue is the same everywhere."""
    ramp = np.arange(50, 150, dtype=np.uint8)
    red, green = np.tile(ramp, (100, 1)), np.tile(ramp[:, None], (1, 100))
    return Image.fromarray(np.stack([red, green, np.full((100, 100), 90, np.uint8)], -1))


def pose(image):
    """How the ramps lie in an augmented image, from their slopes in its middle.

    (degrees by which it is rotated, whether it is flipped, how far it is stretched)
    """
    rows = slice(image.height // 3, -(image.height // 3))
    columns = slice(image.width // 3, -(image.width // 3))
    middle = np.asarray(image).astype(float)[rows, columns]
    right, down = (
        np.array([gradient.mean() for gradient in np.gradient(middle[..., channel])[::-1]])
        for channel in (0, 1)
    )
    angle = np.degrees(np.arctan2(right[1], right[0]))
    return angle, right[0] * down[1] - right[1] * down[0] < 0, image.width / image.height


def hue(image):
    """Of the first corner, degrees; None if it is gray."""
    r, g, b = np.asarray(image)[2, 2].astype(float)
    if max(r, g, b) - min(r, g, b) < 4:
        return None
    return np.degrees(np.arctan2(3**0.5 * (g - b), 2 * r - g - b))


class TestAugment:
    def test_rotated_flipped_and_stretched(self, ramps):
        seen = [augment(ramps, random.Random(i), 0.7, color_jitter=False) for i in range(300)]
        angles, flipped, ratios = zip(*map(pose, seen))
        assert min(np.histogram(angles, 8, (-180, 180))[0]) > 15 and 100 < sum(flipped) < 200
        assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4
        assert all(59 <= min(image.size) and max(image.size) <= 100 for image in seen)

        light = [np.asarray(image)[..., 2].mean() for image in seen]
        assert max(light) > 1.15 * min(light)
        again = augment(ramps, random.Random(7), 0.7, color_jitter=False)
        assert np.array_equal(seen[7], again)

    def test_up_stays_up_without_rotation(self, ramps):
        for i in range(50):
            image = augment(ramps, random.Random(i), 0.7, rotate=False, color_jitter=False)
            angle, flipped, _ = pose(image)
            # less saturation mixes the channels a little
            assert abs(angle) < 8 and not flipped

    @pytest.mark.parametrize("size", [(1, 1), (3, 500)])
    def test_something_is_left_of_small_images(self, size):
        for i in range(50):
            assert min(augment(Image.new("RGB", size), random.Random(i), 0.01).size) > 0

    def test_nothing_but_the_image_is_seen(self):
        """Of an even gray that no change clips, no corner is dark."""
        even = Image.new("RGB", (60, 80), (200, 200, 200))
        for i in range(100):
            assert np.ptp(np.asarray(augment(even, random.Random(i), 0.7))) < 3

    def test_hues(self):
        # nothing is clipped, so hues are rotated exactly
        dull = Image.new("RGB", (60, 80), (120, 100, 90))
        kept, jittered = (
            [hue(augment(dull, random.Random(i), 0.8, color_jitter=jitter)) for i in range(300)]
            for jitter in (False, True)
        )
        assert all(abs(angle - hue(dull)) < 6 for angle in kept)

        moved = [angle - hue(dull) for angle in jittered if angle is not None]
        assert -60 < min(moved) < -40 and 40 < max(moved) < 60
        assert 35 < jittered.count(None) < 90


class TestPillow:
    def save(self, tmp_path, image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.ppm", "a.tga"])
    def test_eight_bit_images_stay_as_they_are(self, tmp_path, name):
        assert is_close(read_image(self.save(tmp_path, Image.fromarray(RGB), name)), RGB, 0)

    def test_cmyk_jpeg(self, tmp_path):
        path = self.save(
            tmp_path, Image.fromarray(RGB).convert("CMYK"), "a.jpg", quality=100, subsampling=0
        )
        assert Image.open(path).mode == "CMYK" and is_close(read_image(path), RGB, 6)

    def test_first_frame_of_an_animation(self, tmp_path):
        frames = [Image.new("RGB", (80, 60), color) for color in ("red", "blue", "black")]
        for name in ("a.gif", "a.webp", "a.png"):
            path = self.save(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
            assert Image.open(path).n_frames == 3
            assert is_close(read_image(path), np.array([255, 0, 0]), 2)

    @pytest.mark.parametrize(
        "orientation, rotated",
        [
            (1, RGB),
            (2, RGB[:, ::-1]),
            (3, RGB[::-1, ::-1]),
            (4, RGB[::-1]),
            (5, RGB.transpose(1, 0, 2)),
            (6, RGB[::-1].transpose(1, 0, 2)),
            (7, RGB[::-1, ::-1].transpose(1, 0, 2)),
            (8, RGB.transpose(1, 0, 2)[::-1]),
        ],
    )
    def test_exif_orientation(self, tmp_path, orientation, rotated):
        exif = Image.Exif()
        exif[274] = orientation
        path = self.save(tmp_path, Image.fromarray(RGB), "a.png", exif=exif)
        assert is_close(read_image(path), rotated, 0)

    def test_transparency_becomes_white(self, tmp_path):
        alpha = (X * 3).astype(np.uint8)
        path = self.save(tmp_path, Image.fromarray(np.dstack([RGB, alpha])), "a.png")
        share = alpha[:, :, None] / 255
        assert is_close(read_image(path), RGB * share + 255 * (1 - share))

        palette = Image.fromarray((X % 3).astype(np.uint8))
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
        path = self.save(tmp_path, palette, "p.png", transparency=1)
        assert is_close(read_image(path), colors[X % 3], 0)

    def test_infrared_labelled_alpha_is_no_transparency(self, tmp_path):
        infrared = (X + 1).astype(np.uint8)
        infrared[:, :5] = 0
        path = self.save(tmp_path, Image.fromarray(np.dstack([RGB, infrared])), "a.tif")
        assert is_close(read_image(path), np.where(infrared[:, :, None] > 0, RGB, 255), 0)

    @pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
    def test_a_deep_band_is_stretched_and_nodata_left_out(self, tmp_path, kind):
        band = SENSOR[3].astype(kind)
        valid = band != 0
        path = self.save(tmp_path, Image.fromarray(band), "a.tif", tiffinfo={42113: "0"})
        assert is_close(read_image(path), stretched(band, valid)[:, :, None])
        if kind == np.float32:
            band[~valid] = np.nan
            path = self.save(tmp_path, Image.fromarray(band), "a.tif")
            assert is_close(read_image(path), stretched(band, valid)[:, :, None])

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        "band, value",
        [(np.full((9, 9), np.nan, np.float32), 255), (np.full((9, 9), 7, np.uint16), 0)],
    )
    def test_a_band_with_nothing_to_stretch(self, tmp_path, band, value):
        assert is_close(read_image(self.save(tmp_path, Image.fromarray(band), "a.tif")), value, 0)

    def test_long_images_are_shrunk_by_averaging(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rgb, "LONGEST", 20)
        path = self.save(tmp_path, Image.fromarray(RGB), "a.png")
        assert is_close(read_image(path), RGB.reshape(15, 4, 20, 4, 3).mean((1, 3)))

    def test_a_huge_jpeg_is_decoded_reduced(self, tmp_path, monkeypatch):
        monkeypatch.setattr(rgb, "LONGEST", 10)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        path = self.save(tmp_path, Image.fromarray(RGB), "a.jpg", quality=100, subsampling=0)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(path)
        assert is_close(read_image(path), blocks(RGB, 8), 4)
        self.save(tmp_path, Image.fromarray(RGB), "p.jpg", progressive=True)
        with pytest.raises(
            UserError, match="p.jpg: a progressive JPEG of 80 x 60 pixels; cut it into tiles$"
        ):
            read_image(tmp_path / "p.jpg")

    @pytest.mark.parametrize(
        "name, content, words",
        [
            ("missing.png", None, "no such file"),
            ("", None, "a folder; name one image in it"),
            ("a\0b.png", None, "cannot be opened"),
            ("a.tif", "text of no image\n" * 50, "not an image Pillow can read"),
            ("a.png", "", "not an image Pillow can read"),
            (
                "a.eps",
                "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
                "an EPS file",
            ),
            ("ftp://host/a.png", None, "expected an http:// or https:// address"),
            ("file:///etc/hosts", None, "expected an http://"),
        ],
    )
    def test_what_is_no_image_is_one_line(self, tmp_path, name, content, words):
        if content is not None:
            (tmp_path / name).write_text(content)
        source = name if "://" in name else f"{tmp_path}/{name}"
        with pytest.raises(UserError) as caught:
            read_image(source)
        shown = source.replace("\0", r"\x00")
        assert str(caught.value).startswith(f"image {shown}: {words}")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.gif"])
    def test_truncated_files_are_one_line(self, tmp_path, name):
        noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        path = self.save(tmp_path, Image.fromarray(noise), name)
        whole = path.read_bytes()
        for share in (0.2, 0.5, 0.9):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(
                UserError, match=f"{name}: cannot be read .*truncated.*; copy or download it again$"
            ):
                read_image(path)

    def test_an_image_of_400_million_pixels_is_one_line_without_rasterio(
        self, tmp_path, no_rasterio
    ):
        (tmp_path / "a.png").write_bytes(png(20000, 20000, []))
        with pytest.raises(
            UserError,
            match=r"a.png: Image size \(400000000 pixels\) exceeds limit .*: pip install rasterio$",
        ):
            read_image(tmp_path / "a.png")

    def test_a_huge_image_of_another_kind_is_one_line(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        words = "a.gif: Image size .*; a reduced reading is not possible for files of this kind; "
        with pytest.raises(UserError, match=words + "convert"):
            read_image(self.save(tmp_path, Image.fromarray(RGB), "a.gif"))

    def test_what_needs_rasterio_says_so(self, tmp_path, no_rasterio):
        path = self.save(tmp_path, Image.fromarray(RGB), "a.tif")
        with pytest.raises(
            UserError, match="a.tif: a choice of bands needs rasterio: pip install rasterio$"
        ):
            read_image(path, bands=[3, 2, 1])
        path.write_bytes(tiff16(SENSOR[:3]))
        with pytest.raises(
            UserError,
            match="a.tif: several bands, of which .* needs rasterio: pip install rasterio$",
        ):
            read_image(path)
        path.write_bytes(tiff16(SENSOR))
        with pytest.raises(
            UserError,
            match="a.tif: a TIFF that Pillow cannot read; .* needs rasterio: pip install rasterio$",
        ):
            read_image(path)


def blocks(values, size):
    """Averages of squares; what sticks out at the edges is averaged alone."""
    height, width = values.shape[:2]
    return np.array(
        [
            [values[y : y + size, x : x + size].mean((0, 1)) for x in range(0, width, size)]
            for y in range(0, height, size)
        ]
    )


def png(width, height, lines):
    """A PNG of 8-bit RGB, from an iterable of lines of 3 * width bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(b"\0" + line) for line in lines) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def tiff16(bands):
    """An uncompressed TIFF of 16-bit bands, written by hand; three are RGB, others have no name."""
    count, height, width = bands.shape
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, None),
        (259, 3, 1),
        (262, 3, 2 if count == 3 else 1),
        (273, 4, 512),
        (277, 3, count),
        (278, 4, height),
        (279, 4, bands.nbytes),
    ]
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, value in tags:
        if value is None:
            out += struct.pack("<HHII", tag, kind, count, 256)
        else:
            out += struct.pack("<HHII", tag, kind, 1, value)
    out = out.ljust(256, b"\0") + struct.pack(f"<{count}H", *[16] * count)
    return out.ljust(512, b"\0") + bands.transpose(1, 2, 0).astype("<u2").tobytes()


class TestRasterio:
    def scene(self, bands, valid):
        return np.dstack([stretched(SENSOR[band - 1], valid) for band in bands])

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"compress": "lzw", "predictor": 2, "tiled": True, "blockxsize": 16, "blockysize": 16},
            {"interleave": "band"},
        ],
        ids=["plain", "tiled", "planar"],
    )
    def test_four_bands_of_sixteen_bits(self, write_raster, options):
        path = write_raster(SENSOR, nodata=0, **options)
        assert is_close(read_image(path), self.scene((1, 2, 3), X >= 9))
        assert is_close(read_image(path, bands=[4, 3, 2]), self.scene((4, 3, 2), X >= 9))

    def test_a_tiff_written_by_hand(self, tmp_path):
        pytest.importorskip("rasterio")
        (tmp_path / "a.tif").write_bytes(tiff16(SENSOR))
        assert is_close(read_image(tmp_path / "a.tif"), self.scene((1, 2, 3), X >= 0))
        (tmp_path / "a.tif").write_bytes(tiff16(SENSOR[:3]))
        assert is_close(read_image(tmp_path / "a.tif"), self.scene((1, 2, 3), X >= 0))

    def test_floats_with_nan_and_bands_named_by_the_file(self, write_raster):
        rasterio = pytest.importorskip("rasterio")
        values = SENSOR.astype(np.float32) / 1e4
        values[:, X < 9] = np.nan
        path = write_raster(values)
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [
                getattr(rasterio.enums.ColorInterp, name)
                for name in ("blue", "green", "red", "undefined")
            ]
        assert is_close(read_image(path), self.scene((3, 2, 1), X >= 9))

    @pytest.mark.parametrize(
        "names, shown",
        [
            (("blue", "Green", "Red", "nir"), (3, 2, 1)),
            (("B2", "B3", "B4", "B8"), (3, 2, 1)),  # Sentinel-2, as Earth Engine exports it
            (("B11", "B04", "B03", "B02"), (2, 3, 4)),
            (("B1", "B2", "B3", "B4"), (1, 2, 3)),  # Landsat 5: B1 is blue
            (("nir", "red", None, "green"), (1, 2, 3)),
        ],
    )
    def test_bands_that_descriptions_name(self, write_raster, names, shown):
        rasterio = pytest.importorskip("rasterio")
        path = write_raster(SENSOR)
        with rasterio.open(path, "r+") as file:
            file.descriptions = names
        assert is_close(read_image(path), self.scene(shown, X >= 0))

    def test_eight_bits_are_not_stretched(self, write_raster):
        values = np.stack([RGB[:, :, i] for i in (0, 1, 2, 0, 1, 2)])
        path = write_raster(values)
        assert is_close(read_image(path), RGB, 0)
        assert is_close(read_image(path, bands=[3, 2, 1]), RGB[:, :, ::-1], 0)

    def test_wrong_bands_and_numbers(self, write_raster):
        path = write_raster(SENSOR)
        for bands, shown in (([5, 1, 1], "5 1 1"), ([0, 1, 2], "0 1 2")):
            with pytest.raises(
                UserError, match=f"scene.tif: bands {shown} were asked for, it has 1 to 4$"
            ):
                read_image(path, bands)
        with pytest.raises(UserError, match="complex numbers"):
            read_image(write_raster(SENSOR[:1].astype(np.complex64)))

    def test_a_scene_is_read_reduced(self, write_raster, monkeypatch):
        monkeypatch.setattr(rgb, "LONGEST", 20)
        path = write_raster(SENSOR[:, :, 8:72].copy(), tiled=True, blockxsize=16, blockysize=16)
        image = read_image(path)
        small = np.stack(
            [blocks(band[:, :, None], 3)[:, :, 0] for band in SENSOR[:3, :, 8:72].astype(float)]
        )
        assert image.size == (22, 20)
        # GDAL's samples are 64 / 22 wide, these are 3
        assert is_close(image, np.dstack([stretched(band, band >= 0) for band in small]), 40)

    def test_overviews_are_used(self, write_raster, monkeypatch):
        rasterio = pytest.importorskip("rasterio")
        monkeypatch.setattr(rgb, "LONGEST", 20)
        path = write_raster(SENSOR[:3], tiled=True, blockxsize=16, blockysize=16)
        monkeypatch.setattr(raster, "MAX_SCENE", 1000)
        with pytest.raises(
            UserError, match="80 x 60 pixels without overviews, .* `gdal_translate -of COG`"
        ):
            read_image(path)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([4], rasterio.enums.Resampling.average)
        assert read_image(path).size == (20, 15)
        monkeypatch.setattr(raster, "MAX_BLOCK", 100)
        with pytest.raises(UserError, match="in blocks of 0 MB"):
            read_image(path)

    def test_the_pixels_that_are_decoded_are_known_before(self, write_raster, monkeypatch):
        rasterio = pytest.importorskip("rasterio")

        def foretold(path):
            with reading.opened(path) as file:
                return reading.pixels_of(file)

        monkeypatch.setattr(rgb, "LONGEST", 20)
        path = write_raster(DEEP[:3], tiled=True, blockxsize=16, blockysize=16)
        height, width = DEEP.shape[1:]
        assert foretold(path) == (width, height, width * height)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 64], rasterio.enums.Resampling.average)
        # 64 is smaller than what is read
        assert foretold(path) == (width, height, width * height // 4)

    def test_a_large_jpeg_2000_stops_no_other_thread(self, tmp_path, monkeypatch):
        """Pillow keeps the interpreter's lock: 12 s of 11,500 x 11,500 pixels in 1 kB."""
        pytest.importorskip("rasterio")
        Image.fromarray(RGB).save(tmp_path / "a.jp2")
        monkeypatch.setattr(pillow, "MOST_JPEG2000", 80 * 60 - 1)
        monkeypatch.setattr(pillow, "to_rgb", None)
        assert is_close(read_image(tmp_path / "a.jp2"), RGB, 0)
        # GDAL decodes one without resolution levels again for every block
        monkeypatch.setattr(raster, "MAX_JPEG2000", 80 * 60 - 1)
        with pytest.raises(ImageError, match="80 x 60 pixels without overviews") as caught:
            read_image(tmp_path / "a.jp2")
        assert caught.value.kind == TOO_LARGE

    def test_a_large_jpeg_2000_without_rasterio(self, tmp_path, monkeypatch, no_rasterio):
        Image.fromarray(RGB).save(tmp_path / "a.jp2")
        monkeypatch.setattr(pillow, "MOST_JPEG2000", 80 * 60 - 1)
        assert is_close(read_image(tmp_path / "a.jp2"), RGB, 0)

    @pytest.mark.parametrize("form", ["png", "tif", "bmp"])
    def test_too_large_for_pillow(self, tmp_path, monkeypatch, form):
        pytest.importorskip("rasterio")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        Image.fromarray(RGB).save(tmp_path / f"a.{form}")
        facts = facts_of(tmp_path / f"a.{form}")
        assert (facts.height, facts.width, facts.bands) == RGB.shape and facts.dtype == "uint8"
        assert is_close(read_image(tmp_path / f"a.{form}"), RGB, 0)
        palette = Image.fromarray((X % 3).astype(np.uint8))
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        palette.save(tmp_path / f"p.{form}")
        colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
        assert is_close(read_image(tmp_path / f"p.{form}"), colors[X % 3], 0)

    def test_a_description_of_other_files_is_not_followed(self, write_raster, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        secret = write_raster(SENSOR[:1])
        trap = tmp_path / "trap.tif"
        trap.write_text(
            '<VRTDataset rasterXSize="80" rasterYSize="60">'
            '<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
            f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        # GDAL, left to itself, does follow it
        with rasterio.open(trap) as file:
            assert file.read().any()
        for bands in (None, [1, 1, 1]):
            with pytest.raises(UserError):
                read_image(trap, bands)

    def test_truncated(self, write_raster):
        path = write_raster(SENSOR, compress="lzw")
        whole = path.read_bytes()
        for share in (0.01, 0.5, 0.9):
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(
                UserError, match="scene.tif: cannot be read .*; copy or download it again$"
            ) as caught:
                read_image(path)
            assert "\n" not in str(caught.value)

    @pytest.mark.slow
    def test_an_image_of_400_million_pixels(self, tmp_path):
        """Four colored quarters; memory beyond what the imports take stays bounded."""
        pytest.importorskip("rasterio")
        half = 10000
        top = b"\xff\0\0" * half + b"\0\xff\0" * half
        low = b"\0\0\xff" * half + b"\xff\xff\0" * half
        lines = itertools.chain([top] * half, [low] * half)
        (tmp_path / "a.png").write_bytes(png(2 * half, 2 * half, lines))
        code = (
            "import resource, sys, rasterio\nfrom model import read_image\n"
            "rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = rss(); i = read_image(sys.argv[1]); w, h = i.size\n"
            "corners = (9, 9), (w - 9, 9), (9, h - 9), (w - 9, h - 9)\n"
            "print([i.getpixel(p) for p in corners], rss() - before < 200_000)"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.png"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
        )
        colors = "[(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]"
        assert result.stdout == f"{colors} True\n", result.stderr


# 12 bits in 16, as sensors write them: shown as they are, they would be almost black
DEEP = np.stack([X * 25 + 300, Y * 31 + 300, X + Y + 300]).astype(np.uint16)


@pytest.fixture
def write_as(tmp_path):
    """Writes [bands, height, width] by rasterio in a form that holds it without loss."""
    rasterio = pytest.importorskip("rasterio")
    drivers = {"png": "PNG", "jp2": "JP2OpenJPEG", "tif": "GTiff"}

    def write(values, form, **options):
        path = tmp_path / f"a.{form}"
        if form == "ppm":
            count, height, width = values.shape
            head = f"P6 {width} {height} 65535\n".encode()
            path.write_bytes(head + values.transpose(1, 2, 0).astype(">u2").tobytes())
            return path
        if form == "jp2":
            options |= {"QUALITY": 100, "REVERSIBLE": "YES", "YCBCR420": "NO"}
        count, height, width = values.shape
        shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
        with rasterio.open(path, "w", driver=drivers[form], **shape, **options) as file:
            file.write(values)
        return path

    return write


class TestOneSetOfRules:
    """Depth, nodata, masks, transparency and types mean the same in every format."""

    @pytest.mark.parametrize("form", ["png", "ppm", "jp2", "tif"])
    def test_depth(self, write_as, form):
        expected = np.dstack([stretched(band, X >= 0) for band in DEEP])
        assert is_close(read_image(write_as(DEEP, form)), expected)

    @pytest.mark.parametrize("form", ["png", "jp2", "tif"])
    def test_eight_bits_are_shown_as_they_are(self, write_as, form):
        assert is_close(read_image(write_as(RGB.transpose(2, 0, 1), form)), RGB, 0)

    def test_opacity_of_a_deep_png(self, write_as):
        opacity = (X * 800).astype(np.uint16)
        opacity[:, :5] = 0
        shown = read_image(write_as(np.stack([*DEEP, opacity]), "png"))
        share = opacity[:, :, None] / 65535
        scene = np.dstack([stretched(band, opacity > 0) for band in DEEP])
        # alpha is rounded to 8 bits
        assert is_close(shown, scene * share + 255 * (1 - share), 2.01)

    def test_infrared_of_a_jpeg_2000_is_no_transparency(self, write_as):
        infrared = (X + 1).astype(np.uint8)
        path = write_as(np.stack([*RGB.transpose(2, 0, 1), infrared]), "jp2")
        assert Image.open(path).mode == "RGBA"
        assert is_close(read_image(path), RGB, 0)

    def test_gray_with_alpha_and_alpha_in_the_middle(self, write_as):
        rasterio = pytest.importorskip("rasterio")
        names = rasterio.enums.ColorInterp
        path = write_as(np.stack([DEEP[0], DEEP[1] * 0 + (X > 8), DEEP[2]]), "tif")
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [names.gray, names.alpha, names.undefined]
        assert is_close(read_image(path), stretched(DEEP[0], X > 8)[:, :, None])

    @pytest.mark.parametrize("form", ["png", "tif", "rasterio"])
    def test_nodata_of_eight_bits(self, tmp_path, write_as, form):
        """Of one band and of three, where all three are nodata."""
        colour = RGB.copy()
        colour[:, :9] = 7
        for values in (colour, colour[:, :, 1]):
            valid = values.reshape(60, 80, -1) != 7
            if form == "png":
                # nodata of PNG is a transparent colour
                key = (7, 7, 7) if values.ndim == 3 else 7
                path = tmp_path / "a.png"
                Image.fromarray(values).save(path, transparency=key)
            elif form == "tif":
                path = tmp_path / "a.tif"
                Image.fromarray(values).save(path, tiffinfo={42113: "7"})
            else:
                path = write_as(np.atleast_3d(values).transpose(2, 0, 1), "tif", nodata=7)
            expected = np.where(valid.any(-1)[:, :, None], np.atleast_3d(values), 255)
            assert is_close(read_image(path), expected, 0)

    def test_nodata_of_palettes_and_of_one_bit(self, tmp_path):
        palette = Image.fromarray((X % 3).astype(np.uint8))
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        palette.save(tmp_path / "p.tif", tiffinfo={42113: "1"})
        colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
        assert is_close(read_image(tmp_path / "p.tif"), colors[X % 3], 0)
        Image.fromarray(X % 2 > 0).save(tmp_path / "b.tif", tiffinfo={42113: "0"})
        assert is_close(read_image(tmp_path / "b.tif"), 255, 0)

    def test_nodata_of_a_deep_png(self, write_as):
        band = DEEP[0].copy()
        band[:, :9] = 65535
        path = write_as(band[None], "png", nodata=65535)
        assert is_close(read_image(path), stretched(band, X >= 9)[:, :, None])

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("form", ["tif", "png"])
    def test_a_mask(self, write_as, form, inside):
        """In the TIFF, or in a file beside the image."""
        rasterio = pytest.importorskip("rasterio")
        values = RGB.transpose(2, 0, 1)
        path = write_as(values, form)
        if inside and form == "png":
            pytest.skip("a PNG holds no mask")
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
            rasterio.open(path, "r+") as file,
        ):
            file.write_mask(X >= 9)
        assert Path(f"{path}.msk").exists() != inside
        assert is_close(read_image(path), np.where((X >= 9)[:, :, None], RGB, 255), 0)

    def test_nodata_named_beside_an_image(self, tmp_path):
        pytest.importorskip("rasterio")
        gray = RGB[:, :, 0].copy()
        gray[:, :9] = 0
        Image.fromarray(gray).save(tmp_path / "a.png")
        (tmp_path / "a.png.aux.xml").write_text(
            '<PAMDataset><PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand>'
            "</PAMDataset>"
        )
        expected = np.where(gray == 0, 255, gray)[:, :, None]
        assert is_close(read_image(tmp_path / "a.png"), expected, 0)

    @pytest.mark.parametrize("kind", ["int8", "int16", "uint32", "int32", "float64", "int64"])
    def test_types_are_what_the_file_says(self, write_as, kind):
        """Half of the numbers have the highest bit, which another type takes for a sign."""
        band = (X * 3 - 120).astype(np.int64)
        if kind == "uint32":
            band = band + 2**31
        band = band.astype(kind)
        path = write_as(band[None], "tif")
        assert is_close(read_image(path), stretched(band, X >= 0)[:, :, None])

    def test_fits_is_signed_and_big_endian(self, tmp_path):
        for kind, bits in ((">i2", 16), (">i4", 32), (">u1", 8), (">f4", -32)):
            band = (X * 3 - (120 if bits != 8 else 0)).astype(kind)
            cards = ["SIMPLE  = T", f"BITPIX  = {bits}", "NAXIS   = 2", "NAXIS1  = 80"]
            cards += ["NAXIS2  = 60", "END"]
            head = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
            path = tmp_path / f"{bits}.fits"
            # its first row is the lowest
            path.write_bytes((head + band[::-1].tobytes()).ljust(2880 * 10, b"\0"))
            if bits < 0:
                with pytest.raises(UserError, match="FITS file of floating-point .* to TIFF$"):
                    read_image(path)
                continue
            shown = band if bits == 8 else stretched(band, X >= 0)
            assert is_close(read_image(path), shown[:, :, None])

    def test_fewer_than_eight_bits(self, write_as):
        for bits in (1, 4):
            highest = 2**bits - 1
            band = (X % (highest + 1)).astype(np.uint8)
            path = write_as(np.stack([band] * 3), "tif", nbits=bits)
            assert is_close(read_image(path, [1, 2, 3]), (band * (255 // highest))[:, :, None], 0)

    def test_transparent_colours_of_a_palette_read_by_gdal(self, tmp_path, monkeypatch):
        pytest.importorskip("rasterio")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        palette = Image.fromarray((X % 3).astype(np.uint8))
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        palette.save(tmp_path / "p.png", transparency=1)
        colors = np.array([[10, 20, 30], [255, 255, 255], [70, 80, 90]])
        assert is_close(read_image(tmp_path / "p.png"), colors[X % 3], 0)

    def test_orientation_of_what_gdal_reads(self, write_as):
        path = write_as(DEEP, "png")
        with Image.open(path) as image:
            assert image.mode == "RGB"
        exif = Image.Exif()
        exif[274] = 6
        chunk = exif.tobytes()[6:]
        whole = path.read_bytes()
        body = struct.pack(">I", len(chunk)) + b"eXIf" + chunk
        body += struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
        # after the signature and the header
        path.write_bytes(whole[:33] + body + whole[33:])
        expected = np.dstack([stretched(band, X >= 0) for band in DEEP])
        assert is_close(read_image(path), expected[::-1].transpose(1, 0, 2))

    @pytest.mark.parametrize("text", ["none", "1,2", "--", ""])
    def test_a_nodata_value_that_means_nothing_is_ignored(self, tmp_path, capsys, text):
        path = tmp_path / "a.tif"
        Image.fromarray(RGB).save(path, tiffinfo={42113: text})
        assert is_close(read_image(path), RGB, 0)
        said = f"image {path}: its nodata value is no number and is ignored, got {text!r}\n"
        assert capsys.readouterr().err == said
        read_image(path)
        # once is enough: training reads an image in every epoch
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("value", ["-9999", "1e40", "nan", "256"])
    def test_a_nodata_value_that_no_pixel_can_have(self, write_as, tmp_path, value):
        Image.fromarray(RGB).save(tmp_path / "8.tif", tiffinfo={42113: value})
        assert is_close(read_image(tmp_path / "8.tif"), RGB, 0)
        Image.fromarray(DEEP[0]).save(tmp_path / "16.tif", tiffinfo={42113: value})
        expected = stretched(DEEP[0], X >= 0)[:, :, None]
        assert is_close(read_image(tmp_path / "16.tif"), expected)

    def test_broken_exif_is_ignored(self, tmp_path, capsys, monkeypatch):
        def broken(*_, **__):
            raise SyntaxError("not a TIFF header")

        path = tmp_path / "a.png"
        Image.fromarray(RGB).save(path)
        monkeypatch.setattr("PIL.ImageOps.exif_transpose", broken)
        assert is_close(read_image(path), RGB, 0)
        assert capsys.readouterr().err.count("its EXIF data cannot be understood") == 1


class TestDecoders:
    """Whatever a decoder does becomes one line; what Pillow cannot decode, rasterio may."""

    def test_planar_sixteen_bits_that_only_rasterio_decodes(self, write_raster, monkeypatch):
        path = write_raster(DEEP[:1], interleave="band")
        with Image.open(path) as image, pytest.raises(ValueError, match="raw mode"):
            image.load()
        assert is_close(read_image(path), stretched(DEEP[0], X >= 0)[:, :, None])
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(ImageError, match="needs rasterio: pip install rasterio$") as caught:
            read_image(path)
        assert caught.value.kind == NEEDS_RASTERIO

    @pytest.mark.parametrize("form", ["png", "ppm", "jp2", "tif"])
    def test_what_pillow_would_lose_needs_rasterio(self, write_as, monkeypatch, form):
        path = write_as(DEEP, form)
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(ImageError, match="needs rasterio: pip install rasterio$") as caught:
            read_image(path)
        assert caught.value.kind == NEEDS_RASTERIO

    def test_damaged_files_are_not_filled_up_by_gdal(self, tmp_path):
        rasterio = pytest.importorskip("rasterio")
        noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        for name in ("a.jpg", "a.png", "a.tif"):
            Image.fromarray(noise).save(tmp_path / name)
            whole = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: len(whole) * 9 // 10])
            with pytest.raises(ImageError) as caught:
                read_image(tmp_path / name)
            assert caught.value.kind == TRUNCATED
        # which does read it
        with rasterio.open(tmp_path / "a.png") as file:
            assert file.read().any()

    def test_complex_numbers(self, write_raster):
        for kind in ("complex_int16", np.complex64, np.complex128):
            values = SENSOR[:1].astype(np.complex64 if kind == "complex_int16" else kind)
            path = write_raster(values, dtype=kind)
            with pytest.raises(UserError, match="scene.tif: complex numbers; write their ampl"):
                read_image(path)

    def test_an_unknown_dds(self, tmp_path):
        head = b"DDS " + struct.pack("<7I", 124, 0x1007, 60, 80, 0, 0, 0) + bytes(44)
        pixel_format = struct.pack("<8I", 32, 4, 0x21212121, *[0] * 5)
        (tmp_path / "a.dds").write_bytes(head + pixel_format + bytes(20))
        with pytest.raises(UserError, match="a.dds: cannot be read .*; convert it to PNG or"):
            read_image(tmp_path / "a.dds")

    def test_a_damaged_avif(self, tmp_path):
        if not features.check("avif"):
            pytest.skip("Pillow without AVIF")
        path = tmp_path / "a.avif"
        noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        # its box of pixels
        head, name, pixels = path.read_bytes().partition(b"mdat")
        path.write_bytes(head + name + bytes(len(pixels)))
        with pytest.raises(RuntimeError), Image.open(path) as image:
            image.load()
        with pytest.raises(UserError, match=f"^image {path}: cannot be read .*$") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "content, words",
        [
            (b"<!DOCTYPE html><p>gone", "an image Pillow can read .*: an HTML page of 22 bytes"),
            (b"version https://git-lfs.github.com/spec/v1\n", ": a Git LFS pointer"),
            (bytes(900), "it begins with zeros"),
        ],
    )
    def test_what_stands_in_the_place_of_an_image(self, tmp_path, content, words):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / "a.tif")

    def test_a_cut_avif(self, tmp_path):
        if not features.check("avif"):
            pytest.skip("Pillow without AVIF")
        Image.fromarray(RGB).save(tmp_path / "a.avif")
        whole = (tmp_path / "a.avif").read_bytes()
        (tmp_path / "a.avif").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError, match="not whole") as caught:
            read_image(tmp_path / "a.avif")
        assert caught.value.kind == TRUNCATED

    def test_nothing_is_said_beside_the_line(self, write_as):
        """Pillow logs that a TIFF has more bands than it decodes, without a name."""
        path = write_as(np.stack([DEEP[0]] * 13), "tif")
        code = "import sys; from model import read_image; read_image(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, path], cwd=PROJECT, capture_output=True)
        assert done.returncode == 0 and done.stderr == b""

    def test_a_compressed_fits_is_refused(self, tmp_path):
        """Pillow would unpack it number by number, in minutes."""

        def header(*cards):
            lines = [f"{name:<8}= {value:>20}".ljust(80) for name, value in cards]
            return "".join([*lines, "END".ljust(80)]).encode().ljust(2880)

        packed = gzip.compress(bytes(64 * 48 * 4))
        table = [("XTENSION", "'BINTABLE'"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 8)]
        table += [("NAXIS2", 1), ("ZIMAGE", "T"), ("ZCMPTYPE", "'GZIP_1  '"), ("ZBITPIX", 8)]
        table += [("ZNAXIS", 2), ("ZNAXIS1", 64), ("ZNAXIS2", 48)]
        first = header(("SIMPLE", "T"), ("BITPIX", 8), ("NAXIS", 0))
        (tmp_path / "a.fits").write_bytes(first + header(*table) + bytes(8) + packed)
        with pytest.raises(ImageError, match="a compressed FITS file; convert it to TIFF$"):
            read_image(tmp_path / "a.fits")

    def test_a_bomb_of_a_kind_that_is_read_whole_says_what_to_do(self, tmp_path):
        Image.new("P", (8, 8)).save(tmp_path / "a.gif")
        content = bytearray((tmp_path / "a.gif").read_bytes())
        content[6:10] = struct.pack("<HH", 60_000, 60_000)
        (tmp_path / "a.gif").write_bytes(content)
        says = "Image size .3600000000 pixels.* is not possible for files of this kind; convert it"
        for read in (read_image, image_size, facts_of):
            with pytest.raises(ImageError, match=says) as caught:
                read(tmp_path / "a.gif")
            assert caught.value.kind == TOO_LARGE

    def test_a_bomb_found_while_loading(self, tmp_path):
        """An icon that says nothing of its size holds a PNG of 400 million pixels."""
        inner = png(20000, 20000, [])
        entry = struct.pack("<4B2H2I", 0, 0, 0, 0, 1, 32, len(inner), 22)
        (tmp_path / "a.ico").write_bytes(struct.pack("<3H", 0, 1, 1) + entry + inner)
        with pytest.raises(ImageError, match=r"Image size \(400000000 pixels\) exceeds") as caught:
            read_image(tmp_path / "a.ico")
        assert caught.value.kind == TOO_LARGE

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("no\nframe"),
            NotImplementedError(),
            RecursionError("deep"),
            AssertionError(),
            ZeroDivisionError("division by zero"),
            KeyError("tag"),
            MemoryError(),
            Image.DecompressionBombError("too many pixels"),
            zlib.error("stream"),
            UnicodeDecodeError("ascii", b"x", 0, 1, "range"),
        ],
    )
    def test_any_error_of_a_decoder(self, tmp_path, monkeypatch, error):
        Image.fromarray(RGB).save(tmp_path / "a.png")

        def load(self):
            raise error

        monkeypatch.setattr(Image.Image, "load", load)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / "a.png")
        message = str(caught.value)
        assert message.startswith(f"image {tmp_path}/a.png: ") and "\n" not in message
        assert len(message) < 400

    def test_an_interrupt_is_no_error_of_an_image(self, tmp_path, monkeypatch):
        Image.fromarray(RGB).save(tmp_path / "a.png")

        def load(self):
            raise KeyboardInterrupt

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(KeyboardInterrupt):
            read_image(tmp_path / "a.png")

    def test_a_failed_image_leaves_nothing_in_memory(self, tmp_path, monkeypatch):
        Image.fromarray(RGB).save(tmp_path / "a.tif")
        seen = []

        def load(self):
            pixels = np.zeros(100)
            seen.append(weakref.ref(pixels))
            raise OSError("broken")

        monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", load)
        gc.collect()
        gc.disable()
        try:
            with suppress(UserError):
                read_image(tmp_path / "a.tif")
            assert seen and not any(reference() for reference in seen)
        finally:
            gc.enable()


def mutated(content, rng):
    """Bytes flipped, cut, repeated, overwritten by extremes, or a piece of it missing."""
    content = bytearray(content)
    # every way leaves more than 9 bytes
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content) - 9)
        way = rng.randrange(5)
        if way == 0:
            content[place] = rng.randrange(256)
        elif way == 1:
            content[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
        elif way == 2:
            del content[place : place + rng.randint(1, 9)]
        elif way == 3:
            content[place:place] = content[place : place + rng.randint(1, 9)]
        elif rng.random() < 0.2:
            del content[place + 40 :]
    return bytes(content)


@pytest.mark.slow
def test_20_000_mutated_images(tmp_path):
    """Each is an image or one line, within 5 s; all of them within 1.2 GB."""
    rasterio = pytest.importorskip("rasterio")
    small = Image.fromarray(RGB).resize((24, 18))
    forms = {"png": {}, "jpg": {}, "gif": {}, "bmp": {}, "webp": {}, "avif": {}, "jp2": {}}
    forms |= {"tga": {}, "ppm": {}, "ico": {}, "dds": {}, "sgi": {}, "pcx": {}, "icns": {}}
    seeds = {}
    for form, options in forms.items():
        content = io.BytesIO()
        small.save(content, {"jpg": "JPEG", "jp2": "JPEG2000"}.get(form, form.upper()), **options)
        seeds[f"rgb.{form}"] = content.getvalue()
    for mode in ("1", "P", "L", "I;16", "F", "RGBA", "CMYK"):
        content = io.BytesIO()
        image = small.convert("L").convert(mode) if mode in ("I;16", "F") else small.convert(mode)
        image.save(content, "TIFF", compression=None if mode in ("I;16", "F") else "tiff_lzw")
        seeds[f"{mode.replace(';', '')}.tif"] = content.getvalue()
    for kind in ("uint8", "uint16", "float64", "complex64"):
        with rasterio.MemoryFile() as memory:
            shape = {"count": 4, "height": 18, "width": 24, "dtype": kind}
            with memory.open(driver="GTiff", nodata=0, compress="deflate", **shape) as file:
                file.write(SENSOR[:, :18, :24].astype(kind))
            seeds[f"{kind}.tif"] = memory.read()

    rng, slowest = random.Random(0), 0
    for number in range(20_000):
        name = rng.choice(sorted(seeds))
        path = tmp_path / name
        path.write_bytes(mutated(seeds[name], rng))
        begun = time.monotonic()
        try:
            assert read_image(path).mode == "RGB"
        except UserError as error:
            assert str(error).count("\n") == 0, number
        slowest = max(slowest, time.monotonic() - begun)
        assert slowest < 5, (number, name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 1.2e6


# an address of the public network
PUBLIC = "93.184.216.34"


class Handler(BaseHTTPRequestHandler):
    image = io.BytesIO()
    Image.fromarray(RGB).save(image, "PNG")

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        self.server.proxied.append(self.headers)
        way, _, target = self.path[1:].partition("?")
        body = self.image.getvalue()
        if way == "to":
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
            return
        self.send_response(404 if way == "missing" else 200)
        length = {"huge": 2**40, "endless": None, "short": len(body) + 9}.get(way, len(body))
        if length:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if way == "slow":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            while way == "endless":
                self.wfile.write(bytes(2**16))
            self.wfile.write(b"<html>".ljust(len(body)) if way == "page" else body)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.hung_up, server.daemon_threads = [], threading.Event(), True
        server.proxied = []
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


@pytest.fixture
def names(monkeypatch):
    """Host names of the tests: name -> a list of addresses, or of such lists, one a look-up."""
    table, looked_up, real = {}, [], socket.getaddrinfo

    def look_up(host, port, *args, **options):
        looked_up.append(host)
        found = table.get(host)
        if found is None:
            return real(host, port, *args, **options)
        if isinstance(found[0], list):
            found = found.pop(0)
        families = [socket.AF_INET6 if ":" in ip else socket.AF_INET for ip in found]
        return [
            (family, socket.SOCK_STREAM, 6, "", (ip, port)) for family, ip in zip(families, found)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    table["looked up"] = looked_up
    return table


@pytest.fixture
def wires(monkeypatch, server):
    """Connections to PUBLIC end at the test's server; `wires` lists all that were opened."""
    opened = []

    class Wire(socket.socket):
        def connect(self, address):
            opened.append(address[0])
            if address[0] == PUBLIC:
                address = ("127.0.0.1", server.server_port)
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Wire)
    return opened


class TestAddresses:
    def test_an_image(self, server):
        assert is_close(read_image(f"{server.url}/a.png"), RGB, 0)
        assert is_close(read_image(f"{server.url}/图像 1.png?名=值&b=%20"), RGB, 0)
        assert server.asked[1][0] == "/%E5%9B%BE%E5%83%8F%201.png?%E5%90%8D=%E5%80%BC&b=%20"

    def test_redirects(self, server):
        assert is_close(read_image(f"{server.url}/to?/to?/a.png"), RGB, 0)
        for target, words in (
            ("file:///etc/hosts", "expected an http:// or https:// address, got file:///etc/hosts"),
            ("ftp://127.0.0.1/a", "expected an http://"),
            ("", "the server answered 302"),
        ):
            with pytest.raises(UserError, match=f"^image {server.url}/to.*: {words}"):
                read_image(f"{server.url}/to?{target}")
        server.asked.clear()
        with pytest.raises(UserError, match="more than 5 redirects$"):
            read_image(server.url + "/to?" * 9 + "/a.png")
        assert len(server.asked) == 6

    @pytest.mark.parametrize(
        "path, words",
        [
            ("missing", "the server answered 404 Not Found"),
            ("page", "not an image Pillow can read"),
            ("huge", "more than 0 MB; download it yourself"),
            ("endless", "more than 0 MB; download it yourself"),
            ("short", "the connection broke, 9 bytes are missing"),
            ("slow", "no answer for 15 s, or not complete after 1 s"),
        ],
    )
    def test_what_goes_wrong_is_one_line(self, server, monkeypatch, path, words):
        monkeypatch.setattr(fetch, "MAX_BYTES", 10**5)
        monkeypatch.setattr(fetch, "SECONDS", 1)
        begun = time.monotonic()
        with pytest.raises(UserError, match=f"^image {server.url}/{path}: {words}[^\n]*$"):
            read_image(f"{server.url}/{path}")
        assert time.monotonic() - begun < 5
        if path in ("slow", "endless"):
            # nothing continues behind our back
            assert server.hung_up.wait(5)

    @pytest.mark.parametrize(
        "url, words",
        [
            ("http://", "expected an http"),
            ("http://[::1", "cannot be downloaded"),
            ("http://host:99999/", "cannot be downloaded"),
            ("http://unknown.invalid/", "the host unknown.invalid is not known here"),
            ("http://" + "a" * 70 + ".com", "the host a+.com is not known"),
        ],
    )
    def test_wrong_addresses(self, url, words):
        with pytest.raises(UserError, match=words) as caught:
            read_image(url)
        assert "\n" not in str(caught.value)

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with pytest.raises(UserError, match="cannot be downloaded .*refused"):
            read_image(f"http://127.0.0.1:{port}/")

    def test_rows_of_a_file_may_be_addresses(self, server, tmp_path):
        (tmp_path / "rows.json").write_text(f'[{{"img": "{server.url}/a.png"}}]')
        (sample,) = model_rows.load_rows(tmp_path / "rows.json", questions=True)
        assert is_close(read_image(sample.image), RGB, 0)

    def test_the_proxy_of_the_environment(self, server, monkeypatch, names):
        """It is asked for the whole address, but not for this machine or what no_proxy names."""
        host, port = "127.0.0.1", server.server_port
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@{host}:{port}")
        assert is_close(read_image("http://image.example/a.png?x=1"), RGB, 0)
        path, headers = server.asked[-1][0], server.proxied[-1]
        assert path == "http://image.example/a.png?x=1"
        assert headers["Host"] == "image.example"
        assert base64.b64decode(headers["Proxy-Authorization"].split()[1]) == b"me:p@ss"
        assert is_close(read_image(f"{server.url}/a.png"), RGB, 0)
        assert server.asked[-1][0] == "/a.png"

        names["image.example"] = ["10.0.0.1"]
        with pytest.raises(UserError, match="not on the public network"):
            read_image("http://image.example/a.png", public_only=True)
        names["image.example"] = [host]
        monkeypatch.setenv("no_proxy", "image.example")
        assert is_close(read_image(f"http://image.example:{port}/a.png"), RGB, 0)
        assert server.asked[-1][0] == "/a.png"

    @pytest.mark.parametrize(
        "proxy, words",
        [
            ("socks5://127.0.0.1:9", "https_proxy is of kind socks5://; expected http://host:port"),
            ("http://127.0.0.1:9", "proxy 127.0.0.1:9 does not lead there"),
            ("127.0.0.1:9", "proxy 127.0.0.1:9 does not lead there"),
        ],
    )
    def test_a_proxy_that_does_not_work_is_named(self, monkeypatch, proxy, words):
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(UserError, match=words) as caught:
            read_image("https://image.example/a.png")
        assert "\n" not in str(caught.value)

    def test_a_proxy_that_refuses_a_tunnel(self, server, monkeypatch):
        monkeypatch.setenv("https_proxy", server.url)
        with pytest.raises(UserError, match="does not lead there .*501"):
            read_image("https://image.example/a.png")

    def test_https_verifies_the_name(self, server, names, tmp_path, monkeypatch):
        key, certificate = tmp_path / "key", tmp_path / "certificate"
        command = (
            "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=right.example "
            "-addext subjectAltName=DNS:right.example"
        ).split()
        command += ["-keyout", str(key), "-out", str(certificate)]
        made = subprocess.run(command, capture_output=True)
        if made.returncode:
            pytest.skip("no openssl to make a certificate with")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        real = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda: real(cafile=certificate))
        names |= {"right.example": ["127.0.0.1"], "wrong.example": ["127.0.0.1"]}
        assert is_close(read_image(f"https://right.example:{server.server_port}/a.png"), RGB, 0)
        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
            read_image(f"https://wrong.example:{server.server_port}/a.png")


class TestGuard:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "017700000001",
            "0177.0.0.1",
            "0x7f.1",
            "localhost",
            "0.0.0.0",
            "0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "169.254.169.254",
            "[fe80::1]",
            "[fd00::1]",
            "[fec0::1]",
            "[ff02::1]",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "someone:word@127.0.0.1",
            "93.184.216.34@127.0.0.1",
        ],
    )
    def test_addresses_that_are_not_public(self, host, wires):
        with pytest.raises(UserError, match="is not on the public network|is not known here"):
            read_image(f"http://{host}:80/a.png", public_only=True)
        assert wires == []

    @pytest.mark.parametrize(
        "ip, public",
        [
            (PUBLIC, True),
            ("8.8.8.8", True),
            ("2606:4700::1111", True),
            ("::ffff:8.8.8.8", True),
            ("fe80::1%eth0", False),
            ("::ffff:10.0.0.1", False),
            ("172.32.0.1", True),
        ],
    )
    def test_public_or_not(self, ip, public):
        assert fetch._is_public(ip) == public

    def test_a_public_name(self, server, names, wires):
        names["images.example"] = [PUBLIC]
        assert is_close(read_image("http://images.example/a.png", public_only=True), RGB, 0)
        assert wires == [PUBLIC] and server.asked == [("/a.png", "images.example")]

    @pytest.mark.parametrize(
        "addresses", [["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["::ffff:127.0.0.1"], ["192.168.0.9"]]
    )
    def test_a_name_of_a_private_network(self, server, names, wires, addresses):
        names["trap.example"] = addresses
        with pytest.raises(
            UserError,
            match="^image http://trap.example/: trap.example is not on the public network",
        ):
            read_image("http://trap.example/", public_only=True)
        assert wires == [] and server.asked == []

    def test_a_name_is_looked_up_once(self, server, names, wires):
        """DNS that answers with a public address first and with the loopback afterwards."""
        names["trap.example"] = [[PUBLIC], ["127.0.0.1"]]
        assert is_close(read_image("http://trap.example/a.png", public_only=True), RGB, 0)
        assert wires == [PUBLIC] and names["looked up"] == ["trap.example"]

    @pytest.mark.parametrize(
        "target",
        ["http://127.0.0.1:{}/a.png", "http://inside.example:{}/a.png", "//localhost:{}/a.png"],
    )
    def test_a_redirect_to_a_private_network(self, server, names, wires, target):
        names |= {"images.example": [PUBLIC], "inside.example": ["127.0.0.1"]}
        with pytest.raises(UserError, match="is not on the public network"):
            read_image(
                "http://images.example/to?" + target.format(server.server_port), public_only=True
            )
        assert wires == [PUBLIC] and len(server.asked) == 1

    def test_files_are_refused(self, tmp_path):
        Image.fromarray(RGB).save(tmp_path / "a.png")
        for source in (tmp_path / "a.png", f"file://{tmp_path}/a.png"):
            with pytest.raises(UserError, match="expected an http:// or https:// address"):
                read_image(source, public_only=True)
