"""Images of rows: what training reads passes the check, and PNG are what training reads."""

import json
import os
import random
import struct
import sys

import numpy as np
import pytest
from PIL import Image
from stages import limited, load, prompt, save, save_images

from data.image_check import CACHE
from model.images import read_image

pytestmark = pytest.mark.usefixtures("no_key")


def test_png_on_demand(tmp_path, capsys):
    rng = random.Random(1)
    (tmp_path / "images").mkdir()
    colour = Image.frombytes("RGB", (16, 12), rng.randbytes(16 * 12 * 3))
    colour.save(tmp_path / "images" / "colour.tif")
    deep = [rng.randrange(1000, 5000) for _ in range(400)]
    deep_image = Image.frombytes(
        "I;16", (20, 20), b"".join(value.to_bytes(2, "little") for value in deep)
    )
    deep_image.save(tmp_path / "images" / "deep.tif")
    Image.new("RGBA", (16, 16), (10, 20, 30, 0)).save(tmp_path / "images" / "clear.png")
    names = dict.fromkeys(("colour.tif", "deep.tif", "clear.png"))
    status, rows = prompt(tmp_path, "--png", "png", records_=names)
    assert (
        status == 0
        and set(rows) == {"colour.png", "deep.png", "clear.png"}
        and rows["deep.png"]["img"] == "png/deep.png"
    )
    assert "3 of 3 images converted" in capsys.readouterr().out
    made = {name: Image.open(tmp_path / "png" / name) for name in rows}
    assert all(image_.format == "PNG" and image_.mode == "RGB" for image_ in made.values())
    assert made["colour.png"].tobytes() == colour.tobytes() and set(
        made["clear.png"].tobytes()
    ) == {255}
    low, high = np.percentile(deep, (2, 98))
    expected = np.clip((np.array(deep) - low) / (high - low), 0, 1) * 255
    assert abs(np.asarray(made["deep.png"])[..., 0].ravel() - expected).max() <= 1

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "png").iterdir()}
    os.utime(tmp_path / "images" / "deep.tif")
    assert (
        prompt(tmp_path, "--png", "png")[0] == 0
        and "1 of 3 images converted" in capsys.readouterr().out
    )
    changed = [path.name for path, time_ in before.items() if path.stat().st_mtime_ns != time_]
    assert changed == ["deep.png"]
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "deep.jpg")
    assert prompt(tmp_path, "--png", "png", records_={**names, "deep.jpg": None})[0] == 1
    assert "would both be deep.png" in capsys.readouterr().err


def exports_of(folder, *names):
    """{file name: pixels of its exported PNG}, [H, W, 3] of 8 bits."""
    status, rows = prompt(folder, "--png", "png", records_=dict.fromkeys(names))
    assert status == 0 and len(rows) == len(names)
    return {name: np.asarray(Image.open(folder / "png" / f"{name[:-4]}.png")) for name in names}


def test_exported_images_are_what_training_reads(tmp_path):
    """Against read_image, and against what each file means, computed here."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    rgb = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)

    # near infrared, which TIFF calls alpha: there only 0 is transparent
    infrared = rng.integers(1, 256, (16, 24, 1), dtype=np.uint8)
    infrared[:, :3] = 0
    Image.fromarray(np.concatenate([rgb, infrared], axis=2)).save(folder / "infrared.tif")
    infrared_seen = np.where(infrared > 0, rgb, 255)

    # 16 bits, a fifth of it nodata: white, and no part of the percentiles
    band = rng.integers(1000, 5000, (20, 20)).astype(np.uint16)
    band[:4] = 0
    Image.fromarray(band).save(folder / "nodata.tif", tiffinfo={42113: "0"})
    low, high = np.percentile(band[band > 0], (2, 98))
    stretched = np.clip((band.astype(float) - low) / (high - low), 0, 1) * 255
    nodata_seen = np.where(band > 0, stretched, 255)[..., None]

    # an ordinary alpha channel: on white
    alpha = rng.integers(0, 256, (16, 24, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(folder / "alpha.png")
    share = alpha / 255
    alpha_seen = share * rgb + (1 - share) * 255

    expected = {
        "infrared.tif": infrared_seen,
        "nodata.tif": nodata_seen,
        "alpha.png": alpha_seen,
    }
    exported = exports_of(tmp_path, *expected)
    for name, seen in expected.items():
        assert np.array_equal(exported[name], np.asarray(read_image(folder / name))), name
        assert abs(exported[name] - seen).max() <= 1, name


def save_deep_rgb(path, width=16, height=16):
    """A TIFF of three bands of 16 bits, of which Pillow reads the upper 8."""
    pixels = bytes(width * height * 3 * 2)
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 279: len(pixels)}
    # after the header, the directory of 9 entries and 3 numbers of bits
    bits = 8 + 2 + 9 * 12 + 4
    entries = [(258, 3, 3, bits), (273, 4, 1, bits + 6)]
    entries += [(tag, 4, 1, value) for tag, value in tags.items()]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)
    path.write_bytes(head + struct.pack("<3H", 16, 16, 16) + pixels)


def test_an_image_that_training_cannot_read_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    save_images(tmp_path / "images", "1.png")
    save_deep_rgb(tmp_path / "images" / "2.tif")
    status, rows = prompt(tmp_path, "--png", "png", records_={"1.png": None, "2.tif": None})
    message = capsys.readouterr().err
    assert status == 1 and not rows and message.count("\n") == 1 and "Traceback" not in message
    image_ = tmp_path / "images" / "2.tif"
    assert message.startswith(f"generate_prompt.py: error: image {image_}: several bands")
    assert not (tmp_path / "png").exists()


def write_raster(path, values, **options):
    """A GeoTIFF of [bands, height, width]."""
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as file:
        file.write(values)


def test_images_that_training_reads_pass_the_check(tmp_path, capsys, monkeypatch):
    """Whatever the number of bands, their type and the compression; also what is too large for
    Pillow alone. Without rasterio it is a missing package, not a damaged file."""
    ramp = np.arange(24 * 20).reshape(20, 24)
    kinds = {
        "four": (4, "uint16", {}),
        "thirteen": (13, "uint16", {"interleave": "band"}),
        "double": (1, "float64", {}),
        "signed": (3, "int16", {}),
        "lerc": (3, "float32", {"compress": "lerc"}),
        "big": (4, "uint16", {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
    }
    for name, (count, kind, options) in kinds.items():
        values = np.stack([ramp * (band + 1) for band in range(count)]).astype(kind)
        write_raster(tmp_path / "images" / f"{name}.tif", values, **options)
    Image.effect_noise((90, 90), 50).save(tmp_path / "images" / "large.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    names = [f"{name}.tif" for name in (*kinds, "large")]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "rasterio", None)
        status, rows = prompt(tmp_path, records_=dict.fromkeys(names))
        message = capsys.readouterr().err
        assert status == 1 and not rows and message.count("\n") == 1
        assert "needs rasterio: pip install rasterio" in message and "truncated" not in message
    # nothing of that is kept
    status, rows = prompt(tmp_path, "--strict", records_=dict.fromkeys(names))
    assert status == 0 and set(rows) == set(names)
    assert "7 images opened without an error" in capsys.readouterr().out


def test_a_verdict_of_another_reader_is_not_kept(tmp_path, monkeypatch, capsys):
    save_images(tmp_path / "images", "1.png")
    prompt(tmp_path, records_={"1.png": None})
    (entry,) = load(tmp_path / CACHE)
    wrong = {key: entry[key] for key in ("path", "bytes", "mtime", "digest")}
    wrong |= {"kind": "truncated", "text": "as an earlier release said"}
    for reader in ({}, {"reader": "1"}):
        (tmp_path / CACHE).write_text(json.dumps(wrong | reader) + "\n")
        assert prompt(tmp_path)[0] == 0
        assert "truncated" not in capsys.readouterr().err
    (tmp_path / CACHE).write_text(json.dumps(wrong | {"reader": entry["reader"]}) + "\n")
    assert prompt(tmp_path)[0] == 1


def test_one_image_that_breaks_its_decoder_is_one_line(tmp_path, capsys):
    save_images(tmp_path / "images", "1.png")
    values = np.ones((1, 16, 16), np.complex64)
    write_raster(tmp_path / "images" / "2.tif", values)
    head = b"DDS " + struct.pack("<7I", 124, 0x1007, 60, 80, 0, 0, 0) + bytes(44)
    dds = head + struct.pack("<8I", 32, 4, 0x21212121, *[0] * 5) + bytes(20)
    (tmp_path / "images" / "3.dds").write_bytes(dds)
    names = ("1.png", "2.tif", "3.dds")
    status, rows = prompt(tmp_path, records_=dict.fromkeys(names))
    message = capsys.readouterr().err
    assert status == 0 and set(rows) == {"1.png"} and message.count("\n") == 1
    assert "complex numbers" in message and "Unimplemented" in message


def test_png_of_chosen_bands_and_of_what_a_tiff_means(tmp_path, capsys):
    rng = np.random.default_rng(0)
    colour = rng.integers(1, 256, (4, 20, 24), dtype=np.uint8)
    colour[:3, :, :5] = 0
    write_raster(tmp_path / "images" / "nir.tif", colour, nodata=0, photometric="rgb")
    deep = rng.integers(200, 4000, (3, 20, 24)).astype(np.uint16)
    write_raster(tmp_path / "images" / "deep.tif", deep)
    seen = exports_of(tmp_path, "nir.tif", "deep.tif")
    shown = colour[:3].transpose(1, 2, 0)
    assert np.array_equal(seen["nir.tif"], np.where(shown.any(-1, keepdims=True), shown, 255))
    low, high = np.percentile(deep, (2, 98), axis=(1, 2))
    expected = np.clip((deep.transpose(1, 2, 0) - low) / (high - low), 0, 1) * 255
    assert abs(seen["deep.tif"] - expected).max() <= 1

    # other bands are other pixels: the PNG are made again, and once
    for converted in ("2 of 2", "0 of 2"):
        capsys.readouterr()
        assert prompt(tmp_path, "--png", "png", "--bands", "3", "2", "1")[0] == 0
        assert f"{converted} images converted" in capsys.readouterr().out
    again = np.asarray(Image.open(tmp_path / "png" / "deep.png"))
    assert np.array_equal(again, seen["deep.tif"][..., ::-1])
    assert prompt(tmp_path, "--png", "png", "--bands", "4", "2", "1")[0] == 0
    assert "deep.tif" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prompt(tmp_path, "--bands", "3", "2", "1")
    assert "--bands chooses what --png writes" in capsys.readouterr().err


def test_png_never_replace_an_image_of_the_users(tmp_path, capsys):
    folder = tmp_path / "images"
    save_images(folder, "1.png", "2.tif", "2.png", "3.tif")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for names, words in (
        (("1.png",), "1.png is itself the image of a row"),
        (("2.tif",), "2.png is there and no earlier --png has made it"),
        # 3.tif alone would be no conflict: nothing is written before the others are looked at
        (("3.tif", "2.tif"), "2.png is there and no earlier --png has made it"),
    ):
        assert prompt(tmp_path, "--png", "images", records_=dict.fromkeys(names))[0] == 1
        message = capsys.readouterr().err
        assert f"{words}: name another folder by --png" in message
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # nor a conversion that is itself the image of a row
    assert prompt(tmp_path, "--png", "png", records_={"1.png": None})[0] == 0
    options = ("--image-root", "png", "--png", "png")
    assert prompt(tmp_path, *options, records_={"1.png": None})[0] == 1


def test_a_missing_image_names_the_file_that_is_probably_meant(tmp_path, capsys, monkeypatch):
    save_images(tmp_path / "images", "1.TIF", "2.png")
    save_images(tmp_path / "images" / "airplane", "3.tif")
    for name, there in (("1.tif", "1.TIF"), ("2.tif", "2.png"), ("3.tif", "airplane/3.tif")):
        # also in the folder of the images' folder, which was looked in
        monkeypatch.chdir(tmp_path)
        assert prompt(tmp_path, records_={name: None})[0] == 1
        message = capsys.readouterr().err
        assert f"there is {tmp_path}/images/{there} for {name}" in message
        assert "in the current folder" not in message
    assert prompt(tmp_path, records_={"9.tif": None})[0] == 1
    assert "there is" not in capsys.readouterr().err


def test_a_png_that_finds_no_room_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "1.tif")
    source = save(tmp_path / "zh.json", [{"imged_id": "1.tif", "caption": "湖。"}])
    options = ("--input", source, "--output", tmp_path / "rows.json", "--png", "shown")
    status, message = limited(2000, "generate_prompt.py", *options)
    file = tmp_path / "shown" / "1.png"
    assert status == 1 and f"error: {file} cannot be written: File too large; make room" in message
    assert message.count("\n") == 1 and not file.exists()
