"""Captions -> rows: where their images are, what is wrong with these, and several sets in one."""

import os
import random
import shutil

import pytest
from PIL import Image
from stages import call, english, image, load, prompt, save, save_images

from data import generate_prompt, image_check, row_images
from data.image_check import CACHE

pytestmark = pytest.mark.usefixtures("no_key")


def test_prompt_image_root_and_splits_from_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(row_images, "PROJECT", tmp_path / "project")
    rows = [
        {"imged_id": "1.png", "caption": "湖。"},
        {"imged_id": "2.png", "caption": "海。", "split": "test"},
    ]
    source = save(tmp_path / "zh.json", rows)
    captions = save(
        tmp_path / "dataset.json",
        {"images": [image("1.png", "val"), image("2.png", "train"), image("9.png", "val")]},
    )
    save_images(tmp_path / "out" / "a b", "1.png")  # beside the output
    save_images(tmp_path / "project" / "a b", "2.png")  # in the project root
    output = tmp_path / "out" / "rows.json"
    stale = save(tmp_path / "out" / "rows-train.json", [])
    assert (
        call(
            generate_prompt,
            "--input",
            source,
            "--captions",
            captions,
            "--image-root",
            "a b/",
            "--prompt",
            "图里有什么？",
            "--output",
            output,
        )
        == 0
    )
    first = {"img": "a b//1.png", "prompt": "图里有什么？", "label": "湖。"}
    second = {"img": "a b//2.png", "prompt": "图里有什么？", "label": "海。"}
    assert load(output) == [first, second] and list(load(output)[0]) == ["img", "prompt", "label"]
    assert load(output.with_name("rows-val.json")) == [first] and load(
        output.with_name("rows-test.json")
    ) == [second]
    assert not stale.exists()  # no training rows any more

    root = tmp_path / "project" / "a b"
    save_images(root, "1.png")
    assert (
        call(
            generate_prompt,
            "--input",
            source,
            "--captions",
            captions,
            "--image-root",
            root,
            "--output",
            output.with_suffix(".jsonl"),
        )
        == 0
    )
    assert [row["img"] for row in load(output.with_suffix(".jsonl"))] == [
        f"{root}/1.png",
        f"{root}/2.png",
    ]


def test_no_image_check_opens_nothing(tmp_path):
    source, output = save(tmp_path / "zh.json", english(2)), tmp_path / "out.json"
    assert call(generate_prompt, "--input", source, "--output", output, "--no-image-check") == 0
    assert [row["img"] for row in load(output)] == ["images/0.png", "images/1.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"zh.json", "out.json"}


def damaged(folder):
    """One image of each kind: {file name: kind, None for good ones}."""
    rng = random.Random(0)
    noise = Image.frombytes("RGB", (64, 64), rng.randbytes(64 * 64 * 3))
    folder.mkdir(parents=True)
    kinds = {
        "good.png": None,
        "good.jpg": None,
        "lzw.tif": None,
        "empty.png": "unreadable",
        "page.tif": "unreadable",
    }
    for name in ("good.png", "good.jpg"):
        noise.save(folder / name)
    noise.rotate(90).save(folder / "lzw.tif", compression="tiff_lzw")
    (folder / "empty.png").touch()
    (folder / "page.tif").write_bytes(b"<html>not found</html>")
    for name, options in {
        "cut.png": {},
        "cut.jpg": {},
        "raw.tif": {},
        "jpeg.tif": {"compression": "jpeg"},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
    }.items():
        noise.save(
            folder / "whole",
            format={"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[name.split(".")[1]],
            **options,
        )
        data = (folder / "whole").read_bytes()
        # a TIFF of libtiff has its directory at the end: keep it, and blank half of the pixels
        (folder / name).write_bytes(
            data[: len(data) // 2]
            if not name.endswith("tif") or name == "raw.tif"
            else data[:8] + bytes(len(data) // 2) + data[8 + len(data) // 2 :]
        )
        kinds[name] = "truncated"
    # its directory is gone
    (folder / "head.tif").write_bytes((folder / "lzw.tif").read_bytes()[:900])
    (folder / "whole").unlink()
    Image.new("RGB", (7, 90)).save(folder / "small.png")
    Image.new("RGB", (90, 8)).save(folder / "stripe.png")
    shutil.copy(folder / "good.png", folder / "twin.png")
    return kinds | {
        "head.tif": "truncated",
        "small.png": "wrong size",
        "stripe.png": "wrong size",
        "twin.png": "duplicate",
        "gone.png": "missing",
    }


def test_each_kind_of_bad_image_drops_its_row_and_strict_stops(tmp_path, capsys):
    kinds = damaged(tmp_path / "images")
    status, rows = prompt(tmp_path, records_=dict.fromkeys(kinds))
    message = capsys.readouterr().err
    assert status == 0 and set(rows) == {name for name, kind in kinds.items() if kind is None}
    assert message.count("\n") == 1 and f"warning: {len(kinds) - 3} rows dropped; " in message
    for kind in set(kinds.values()) - {None}:
        named = [name for name, found in kinds.items() if found == kind]
        part = next(text for text in message.split("; ") if f"images {kind}:" in text)
        assert f"{len(named)} of {len(kinds)} images {kind}: " in part
        assert all(name in message for name in named)
    (tmp_path / "rows.json").unlink()
    status, rows = prompt(tmp_path, "--strict")
    assert status == 1 and not rows and "generate_prompt.py: error: 1 of" in capsys.readouterr().err
    status, rows = prompt(tmp_path, "--keep-duplicates")
    assert status == 0 and "twin.png" in rows and "cut.jpg" not in rows


def test_a_huge_image_is_dropped_without_a_traceback(tmp_path, capsys, monkeypatch):
    """Of a kind that no decoder reads reduced; what one reads is no bomb."""
    save_images(tmp_path / "images", "1.png")
    save_images(tmp_path / "images", "2.gif", size=(50, 50))
    save_images(tmp_path / "images", "3.tif", size=(40, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    status, rows = prompt(tmp_path, records_={"1.png": None, "2.gif": None, "3.tif": None})
    message = capsys.readouterr().err
    assert (
        status == 0
        and set(rows) == {"1.png", "3.tif"}
        and "1 of 3 images wrong size" in message
        and message.count("\n") == 1
    )


def test_images_of_another_set_are_named_as_such(tmp_path, capsys):
    """A known mishap: a folder named UCM with Sydney's images; UCM's own sizes vary a little."""
    save_images(tmp_path / "images", "1.tif", size=(500, 500))
    save_images(tmp_path / "images", "2.tif", size=(247, 257))
    save(tmp_path / "UCM-zh.json", [{"imged_id": f"{i}.tif", "caption": "湖。"} for i in (1, 2)])
    assert call(generate_prompt, "--input", tmp_path / "UCM-zh.json") == 0
    assert "1.tif (500x500 pixels, as Sydney has; UCM has 256x256)" in capsys.readouterr().err
    assert [row["img"] for row in load(tmp_path / "UCM-prompt.json")] == ["images/2.tif"]


def test_all_missing_stops_even_where_rows_may_be_dropped(tmp_path, capsys, monkeypatch):
    save_images(tmp_path / "images", "1.png")
    for name in ("UCM-zh", "Sydney-zh"):
        save(tmp_path / f"{name}.json", [{"imged_id": "1.png", "caption": "湖。"}])
    inputs = [
        "--input",
        str(tmp_path / "UCM-zh.json"),
        str(tmp_path / "Sydney-zh.json"),
        "--output",
        str(tmp_path / "rows.json"),
    ]
    assert call(generate_prompt, *inputs, "--image-root", "images", "elsewhere") == 1
    assert (
        "not one image of elsewhere was found" in capsys.readouterr().err
        and not (tmp_path / "rows.json").exists()
    )
    save_images(tmp_path / "pics", "1.png")
    monkeypatch.chdir(tmp_path)
    assert (
        call(
            generate_prompt,
            "--input",
            "UCM-zh.json",
            "--image-root",
            "pics",
            "--output",
            "out/rows.json",
        )
        == 1
    )
    assert "pics is in the current folder: give --image-root in full" in capsys.readouterr().err


def test_checks_are_kept_and_only_what_changed_is_opened_again(tmp_path, capsys, monkeypatch):
    names = [f"{i}.png" for i in range(6)]
    save_images(tmp_path / "images", *names)
    opened, examine = [], image_check.examine
    monkeypatch.setattr(
        image_check, "examine", lambda path, *bands: opened.append(path.name) or examine(path)
    )

    def run():
        opened.clear()
        status, rows = prompt(tmp_path, records_=dict.fromkeys(names))
        return sorted(opened), sorted(rows)

    assert (
        run() == (names, names)
        and f"(kept for the next run in {tmp_path / CACHE})" in capsys.readouterr().out
    )
    assert run() == ([], names)
    (tmp_path / "images" / "3.png").write_bytes(b"broken")
    assert run() == (["3.png"], [name for name in names if name != "3.png"])
    assert run() == ([], [name for name in names if name != "3.png"])
    os.utime(tmp_path / "images" / "4.png", ns=(1, 1))
    assert run()[0] == ["4.png"]
    kept = (tmp_path / CACHE).read_text().splitlines()
    assert len(kept) == 6
    (tmp_path / CACHE).write_text(
        "\n".join(["{torn", "[]", '{"path": 1}', *kept[1:]]) + "\x00\n" + kept[0][:20]
    )
    assert run()[0] == ["0.png", "5.png"]  # the lines that are torn
    (tmp_path / CACHE).unlink()
    assert run()[0] == names


def test_an_interrupted_check_keeps_what_it_has_seen(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(9)]
    save_images(tmp_path / "images", *names)
    examine = image_check.examine

    def interrupted(path, bands):
        if path.name == "5.png":
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(image_check, "examine", interrupted)
    status, _ = prompt(tmp_path, records_=dict.fromkeys(names))
    assert status == 130 and 1 <= len(load(tmp_path / CACHE)) < 9


def merged(folder):
    """Two sets with the same file names.

    The bytes of UCM/1.png (train) are those of Sydney/2.png (test).
    """
    for number, name in enumerate(("UCM", "Sydney")):
        for size, file in zip((20, 30, 40), ("1.png", "2.png", "3.png")):
            save_images(folder / name, file, size=(size + number, size))
    shutil.copy(folder / "UCM" / "1.png", folder / "Sydney" / "2.png")
    for name, captions in {
        "mine": ("湖。", "海。", "河。"),
        "other": ("山。", "路。", "湖。"),
    }.items():
        save(
            folder / f"{name}-zh.json",
            [
                {"imged_id": f"{i}.png", "caption": caption, "split": split}
                for i, caption, split in zip((1, 2, 3), captions, ("train", "test", "val"))
            ],
        )
    return [
        "--input",
        str(folder / "mine-zh.json"),
        str(folder / "other-zh.json"),
        "--image-root",
        "./UCM",
        "./Sydney",
        "--output",
        str(folder / "both.json"),
    ]


def test_sets_are_merged_in_the_order_given_and_leaks_are_reported(tmp_path, capsys):
    command = merged(tmp_path)
    assert call(generate_prompt, *command, "--keep-duplicates") == 0
    rows = [
        ("./UCM/1.png", "湖。"),
        ("./UCM/2.png", "海。"),
        ("./UCM/3.png", "河。"),
        ("./Sydney/1.png", "山。"),
        ("./Sydney/2.png", "路。"),
        ("./Sydney/3.png", "湖。"),
    ]
    assert [(row["img"], row["label"]) for row in load(tmp_path / "both.json")] == rows
    for split, numbers in {"train": (0, 3), "test": (1, 4), "val": (2, 5)}.items():
        assert [row["img"] for row in load(tmp_path / f"both-{split}.json")] == [
            rows[i][0] for i in numbers
        ]
    out = capsys.readouterr().out
    assert "leakage: 1 train images have the bytes of test images: ./UCM/1.png" in out
    assert (
        "leakage: 1 of 2 val descriptions also stand in an earlier split, e.g. 1.png: 湖。" in out
    )
    assert "test descriptions" not in out
    # without --keep-duplicates the copy in the test set stays
    assert generate_prompt.main(command) == 0
    assert [row["img"] for row in load(tmp_path / "both-train.json")] == ["./Sydney/1.png"]
    assert [row["img"] for row in load(tmp_path / "both-test.json")] == [
        "./UCM/2.png",
        "./Sydney/2.png",
    ]
    assert "1 of 6 images duplicate" in capsys.readouterr().err


def test_two_descriptions_of_one_image_are_no_duplicate(tmp_path, capsys):
    save_images(tmp_path / "images", "1.png")
    for name in ("a", "b"):
        save(tmp_path / f"{name}-zh.json", [{"imged_id": "1.png", "caption": f"湖{name}。"}])
    assert (
        call(
            generate_prompt,
            "--input",
            tmp_path / "a-zh.json",
            tmp_path / "b-zh.json",
            "--image-root",
            "images",
            "images",
            "--output",
            tmp_path / "rows.json",
        )
        == 0
    )
    assert [row["label"] for row in load(tmp_path / "rows.json")] == [
        "湖a。",
        "湖b。",
    ] and not capsys.readouterr().err


def test_split_files_of_an_earlier_run_are_removed_and_named(tmp_path, capsys):
    assert prompt(tmp_path, "--no-image-check", records_={"1.png": "train", "2.png": "val"})[0] == 0
    capsys.readouterr()
    assert (
        prompt(tmp_path, "--no-image-check", records_={"1.png": "train", "2.png": "test"})[0] == 0
    )
    out = capsys.readouterr().out
    assert (
        f"{tmp_path / 'rows-val.json'}: removed; it was of an earlier run" in out
        and not (tmp_path / "rows-val.json").exists()
    )
    assert out.count("removed") == 1


def test_an_input_is_never_overwritten_by_a_split_file(tmp_path, capsys):
    source = save(tmp_path / "rows-val.json", [{"imged_id": "1.png", "caption": "湖。"}])
    before = source.read_bytes()
    assert (
        call(
            generate_prompt,
            "--input",
            source,
            "--output",
            tmp_path / "rows.json",
            "--no-image-check",
        )
        == 1
    )
    assert (
        "rows-val.json would be overwritten" in capsys.readouterr().err
        and source.read_bytes() == before
    )


def test_png_of_merged_sets_do_not_overwrite_each_other(tmp_path):
    assert call(generate_prompt, *merged(tmp_path), "--png", "png", "--format", "llava") == 0
    rows = load(tmp_path / "both.json")
    names = ("mine/2", "mine/3", "other/1", "other/2", "other/3")
    assert [row["image"] for row in rows] == [f"png/{name}.png" for name in names]
    sizes = [Image.open(tmp_path / row["image"]).size for row in rows]
    assert sizes == [(30, 30), (40, 40), (21, 20), (20, 20), (41, 40)]
