"""Images inside tars: read without unpacking, and what is refused."""

import io
import json
import os
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image
from stages import call, load, save

from data import generate_prompt
from model.errors import UserError
from model.images import exists, open_file, read_image, stamp, tars
from model.row_store import StoredSamples
from model.rows import check_images, load_rows


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(file, "PNG")
    return file.getvalue()


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def write_tar(path, entries, mode="w"):
    with tarfile.open(path, mode) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
def test_members_are_what_tarfile_extracts(tmp_path, form):
    names = ["a.png", "./b.png", "河/c.png", "deep/" * 40 + "d.png"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
        tar.addfile(member("deep", type=tarfile.DIRTYPE)[0])
        for name in names:
            content = name.encode() * 99
            tar.addfile(member(name, content)[0], io.BytesIO(content))
    for name in names:
        path = tmp_path / "s.tar" / name
        assert exists(path) and open_file(path).read() == name.encode() * 99
        assert stamp(path) == (99 * len(name.encode()), os.stat(tmp_path / "s.tar").st_mtime_ns)
    assert not exists(tmp_path / "s.tar" / "e.png") and not exists(tmp_path / "s.tar" / "deep")
    with pytest.raises(UserError, match="e.png: no such file"):
        read_image(tmp_path / "s.tar" / "e.png")


def test_the_index_is_built_once_and_again_where_the_tar_has_changed(tmp_path, monkeypatch):
    built = []
    entries = tars._entries
    monkeypatch.setattr(tars, "_entries", lambda tar: built.append(tar.name) or entries(tar))
    path = write_tar(tmp_path / "s.tar", [member("a.png", b"one")])
    threads = [threading.Thread(target=exists, args=(path / "a.png",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tars._index.cache_clear()
    assert open_file(path / "a.png").read() == b"one" and built == ["s.tar"]

    write_tar(path, [member("b.png", b"longer" * 999), member("a.png", b"two")])
    assert open_file(path / "a.png").read() == b"two" and built == ["s.tar"] * 2
    # damaged beside it: built again; a folder that is read only: kept in memory
    for content in (b"", b"junk", b"\x93NUMPY\x01\x00"):
        (tmp_path / "s.tar.index").write_bytes(content)
        tars._index.cache_clear()
        assert open_file(path / "a.png").read() == b"two"
    monkeypatch.setattr(tars, "replacing", lambda *a, **k: open(tmp_path / "no" / "such", "wb"))
    (tmp_path / "s.tar.index").unlink()
    tars._index.cache_clear()
    assert open_file(path / "a.png").read() == b"two"
    assert not (tmp_path / "s.tar.index").exists()


SPARSE = tarfile.GNUTYPE_SPARSE
FAULTS = {
    "outside": (member("../a.png", b"x"), "member 2 (../a.png) lies outside the tar's folder"),
    "absolute": (member("/etc/a.png", b"x"), "member 2 (/etc/a.png) lies outside"),
    "hidden": (member("a/../../b.png", b"x"), "member 2 (../b.png) lies outside"),
    "symlink": (member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
    "hard link": (member("a.png", type=tarfile.LNKTYPE, linkname="ok.png"), "is a link"),
    "device": (member("a.png", type=tarfile.CHRTYPE), "is no plain file"),
    "twice": (member("./ok.png", b"y"), "member 2 (ok.png) is there twice"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_members_that_are_not_plain_files_of_the_tar_are_refused(tmp_path, case):
    bad, words = FAULTS[case]
    path = write_tar(tmp_path / "s.tar", [member("ok.png", b"x"), bad])
    with pytest.raises(UserError) as error:
        exists(path / "ok.png")
    assert words in str(error.value) and "1 members cannot be used" in str(error.value)
    assert not (tmp_path / "s.tar.index").exists()


def test_a_member_larger_than_memory_allows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBER", 100)
    path = write_tar(tmp_path / "s.tar", [member("ok.png", b"x"), member("a.png", b"x" * 101)])
    with pytest.raises(UserError, match="has 101 bytes, at most 100 are read"):
        exists(path / "ok.png")


def test_a_sparse_member_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = member("a.png")[0]
        info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**50)}
        tar.addfile(info)
    with pytest.raises(UserError, match="is a sparse file"):
        exists(tmp_path / "s.tar" / "a.png")


@pytest.mark.parametrize("where", ("data", "header", "boundary", "damaged header"))
def test_a_tar_that_was_cut_short_is_refused(tmp_path, where):
    path = write_tar(tmp_path / "s.tar", [member("a.png", b"x" * 600), member("b.png", b"y" * 600)])
    content = bytearray(path.read_bytes())
    if where == "damaged header":
        content[1536:1546] = b"\xff" * 10
    cut = {"data": 2300, "header": 1800, "boundary": 1536}.get(where)
    path.write_bytes(content[:cut])
    with pytest.raises(UserError, match="cut short|in the middle"):
        exists(path / "a.png")


def test_what_is_no_plain_tar_is_said(tmp_path):
    for name, content, words in (
        ("z.tar", b"", "copy or download it again"),
        ("h.tar", b"<html>", "an HTML page"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            exists(tmp_path / name / "a.png")
    path = write_tar(tmp_path / "c.tar", [member("a.png", b"x")], "w:gz")
    with pytest.raises(UserError, match="is compressed"):
        exists(path / "a.png")


@pytest.fixture
def packed(tmp_path):
    """Rows over two images in a tar, one of them twice under another name."""
    entries = [
        member("1.png", png("red")),
        member("2.png", png("blue")),
        member("3.png", png("red")),
    ]
    (tmp_path / "images").mkdir()
    write_tar(tmp_path / "images" / "s.tar", entries)
    rows = [{"imged_id": f"s.tar/{i}.png", "caption": f"湖泊{i}。"} for i in (1, 2, 3)]
    return save(tmp_path / "zh.json", rows)


def test_rows_over_a_tar_go_through_check_trainer_and_answers(packed, capsys):
    folder = packed.parent
    assert call(generate_prompt, "--input", packed, "--output", folder / "rows.json") == 0
    rows = load(folder / "rows.json")
    # the copy is found by its bytes
    assert [row["img"] for row in rows] == ["images/s.tar/1.png", "images/s.tar/2.png"]
    samples = load_rows(folder / "rows.json")
    assert check_images(samples, "rows.json") == 2
    assert read_image(samples[1].image).getpixel((3, 3)) == (0, 0, 255)
    asked = load_rows(folder / "rows.json", questions=True)
    assert [sample.image for sample in asked] == [sample.image for sample in samples]

    save(folder / "gone.json", [{**rows[0], "img": "images/s.tar/9.png"}])
    with pytest.raises(UserError, match="image not found at .*s.tar/9.png"):
        load_rows(folder / "gone.json")
    (folder / "images" / "s.tar").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="row 0: .*s.tar is no plain tar"):
        load_rows(folder / "rows.json")


def test_converting_and_checking_again_read_the_tar_once(packed, monkeypatch):
    folder = packed.parent
    options = ("--input", packed, "--output", folder / "rows.json", "--png", "png")
    assert call(generate_prompt, *options) == 0
    assert read_image(folder / "png/s.tar/2.png").getpixel((0, 0)) == (0, 0, 255)
    monkeypatch.setattr("data.image_check.examine", None)
    assert call(generate_prompt, *options) == 0


def test_features_of_images_in_a_tar_are_cached_by_their_bytes(packed):
    from model.training.feature_cache import _bytes_of

    path = packed.parent / "images" / "s.tar"
    assert _bytes_of(path / "2.png") == png("blue")
    assert _bytes_of(packed) == packed.read_bytes()
    names = np.load(path.with_name("s.tar.index"))[0, 1:]
    assert len(names) == 3 and (names[:-1] < names[1:]).all()


def test_a_folder_that_is_called_like_a_tar_is_a_folder(tmp_path):
    folder = tmp_path / "s.tar"
    folder.mkdir()
    write_tar(folder / "t.tar", [member("a.png", b"x")])
    (folder / "b.png").write_bytes(b"y")
    assert open_file(folder / "t.tar" / "a.png").read() == b"x"
    assert open_file(folder / "b.png").read() == b"y" and exists(folder / "b.png")
    assert (
        not exists(folder / "c.png") and not exists(folder) and not exists(folder / "t.tar" / "b")
    )
    (tmp_path / "circle.png").symlink_to("circle.png")
    assert not exists(tmp_path / "circle.png") and not exists(f"{tmp_path}/zero\0byte.png")
    with pytest.raises(OSError, match="too long"):
        exists(tmp_path / ("long" * 99))


def test_one_image_in_several_spellings_is_one_image(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(png("red"))
    write_tar(tmp_path / "s.tar", [member("a.png", png("red"))])
    rows = []
    for image in ("d/a.png", "./d/a.png", "d//a.png", "d/./a.png", "s.tar/a.png", "s.tar/./a.png"):
        rows.append({"img": image, "prompt": "x", "label": "y"})
    save(tmp_path / "rows.json", rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = load_rows(tmp_path / "rows.json")
    paths = [tmp_path / "d" / "a.png"] * 4 + [tmp_path / "s.tar" / "a.png"] * 2
    assert [sample.image for sample in samples] == paths
    stored = StoredSamples(tmp_path / "rows.jsonl")
    assert list(stored) == samples and len(set(map(tuple, stored.keys.tolist()))) == 2
