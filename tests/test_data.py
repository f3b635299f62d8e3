"""The data stages, against expectations written out here; translation: test_translation.py."""

import json
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import (
    existing,
    exports,
    generate_prompt,
    image_check,
    records,
    row_images,
    row_sources,
    sentences,
    stage,
    transform,
    translation_en2zh,
)
from data.caption_sets import CAPTION_SETS
from data.image_check import CACHE
from data.synthetic import demo_scenes, tiny_pictures
from model.errors import UserError
from model.images import read_image

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT / "data"

QUESTION = "这张遥感图像展现了什么场景？"


def call(script, *options):
    """The exit status of a script with these options, here in this process."""
    return script.main([str(option) for option in options])


def image(name, split=None, raws=("A lake .", "There is a lake .")):
    entry = {
        "filename": name,
        "sentences": [{"raw": raw, "tokens": raw.split()} for raw in raws],
        "imgid": 0,
    }
    return entry if split is None else {**entry, "split": split}


def english(count, split=None):
    rows = [{"imged_id": f"{i}.png", "caption": f"Lake {i} ."} for i in range(count)]
    return [{**row, "split": split} for row in rows] if split else rows


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value)
        if path.suffix == ".jsonl"
        else ""
    )
    path.write_text(lines or json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def load(path):
    text = Path(path).read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()]
        if Path(path).suffix == ".jsonl"
        else json.loads(text)
    )


def save_images(folder, *names, size=(16, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])).save(
            folder / name
        )


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# ---- the chain


def test_chain_by_defaults_from_another_folder_and_again(tmp_path):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    light = ("__init__", "errors", "files", "markup", "row_forms")
    for name in ("command_line.py", *(f"model/{module}.py" for module in light)):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, project / name)
    shutil.copytree(PROJECT / "model" / "images", project / "model" / "images")
    for file in (*DATA.glob("*.py"), *DATA.glob("*.json")):
        shutil.copy(file, project / "data")
    shutil.copytree(DATA / "layouts", project / "data" / "layouts")
    folder = project / "data" / "Sydney"
    names = {"1.tif": "train", "2.tif": "train", "3.tif": "val", "4.tif": "test"}
    save(
        folder / "dataset_sydney.json",
        {"images": [image(n, s, (f"Lake {n[0]} .", "Blue .")) for n, s in names.items()]},
    )
    save(
        folder / "memory.jsonl",
        [{"source": f"Lake {n[0]} .  Blue .", "target": f"蓝色的湖{n[0]}。"} for n in names],
    )
    save_images(folder / "images", *names, size=(500, 500))

    def run_all():
        for script, *options in (
            ("transform",),
            ("translation_en2zh", "--memory", folder / "memory.jsonl"),
            ("generate_prompt",),
        ):
            command = [
                sys.executable,
                project / "data" / f"{script}.py",
                "--dataset",
                "Sydney",
                *options,
            ]
            done = subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
            )
            assert done.returncode == 0, done.stderr
            assert re.search(
                rf"{re.escape(str(folder))}/Sydney-\w+.json: 4 r(ecords|ows)", done.stdout
            )
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    files = run_all()
    assert load(folder / "Sydney-en.json")[0] == {
        "imged_id": "1.tif",
        "caption": "Lake 1 .  Blue .  ",
        "split": "train",
    }
    assert load(folder / "Sydney-zh.json")[2] == {
        "imged_id": "3.tif",
        "caption": "蓝色的湖3。",
        "split": "val",
    }
    row = {"img": "images/4.tif", "prompt": QUESTION, "label": "蓝色的湖4。"}
    assert load(folder / "Sydney-prompt-test.json") == [row]
    assert [
        len(load(folder / f"Sydney-prompt{part}.json")) for part in ("", "-train", "-val", "-test")
    ] == [4, 2, 1, 1]
    assert files == run_all()
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_default_dataset_is_ucm_and_own_corpora_chain_beside_their_input(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "DATA", tmp_path / "data")
    save(tmp_path / "data" / "UCM" / "dataset.json", {"images": [image("1.tif", "val")]})
    assert call(transform) == 0
    assert load(tmp_path / "data" / "UCM" / "UCM-en.json")[0]["imged_id"] == "1.tif"

    mine = save(tmp_path / "mine" / "port.jsonl", [image("1.png"), image("2.png")])
    memory = save(
        tmp_path / "memory.json", [{"source": "A lake .  There is a lake .", "target": "湖。"}]
    )
    save_images(mine.parent / "images", "1.png", "2.png")
    assert call(transform, "--input", mine) == 0
    assert (
        call(translation_en2zh, "--input", mine.with_name("port-en.jsonl"), "--memory", memory) == 0
    )
    assert call(generate_prompt, "--input", mine.with_name("port-zh.jsonl")) == 0
    expected = [{"img": f"images/{n}.png", "prompt": QUESTION, "label": "湖。"} for n in (1, 2)]
    assert load(mine.with_name("port-prompt.jsonl")) == expected
    assert {path.name for path in mine.parent.iterdir()} == {
        "port.jsonl",
        "port-en.jsonl",
        "port-zh.jsonl",
        "port-prompt.jsonl",
        "images",
        CACHE,
    }


# ---- transform


@pytest.mark.parametrize("suffix", (".json", ".jsonl"))
def test_transform_reads_bom_and_crlf_and_writes_what_json_dump_writes(tmp_path, suffix):
    images = [
        image("1.tif", "train", ["A lake .", '水\u2028 "x" .']),
        image("2.tif", "val", ["Sea ."]),
    ]
    source = tmp_path / f"in{suffix}"
    text = (
        json.dumps({"images": images}, indent=1)
        if suffix == ".json"
        else "\n".join(map(json.dumps, images)) + "\n\n"
    )
    source.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    expected = [
        {"imged_id": "1.tif", "caption": 'A lake .  水\u2028 "x" .  ', "split": "train"},
        {"imged_id": "2.tif", "caption": "Sea .  ", "split": "val"},
    ]
    plain, lines = tmp_path / "new" / "folder" / "out.json", tmp_path / "out.jsonl"
    for output in (plain, lines):
        assert call(transform, "--input", source, "--output", output) == 0
    assert (
        plain.read_text(encoding="utf-8")
        == json.dumps(expected, indent=4, ensure_ascii=False) + "\n"
    )
    assert [
        json.loads(line) for line in lines.read_text(encoding="utf-8").rstrip("\n").split("\n")
    ] == expected


def test_transform_no_split_leaves_exactly_the_two_published_keys(tmp_path):
    source, output = (
        save(tmp_path / "in.json", {"images": [image("1.tif", "train")]}),
        tmp_path / "out.json",
    )
    assert call(transform, "--input", source, "--output", output, "--no-split") == 0
    assert [list(row.items()) for row in load(output)] == [
        [("imged_id", "1.tif"), ("caption", "A lake .  There is a lake .  ")]
    ]


def run_transform(folder, capsys, images, *options):
    """Exit status, records written or None, what was printed and what was complained of."""
    output = folder / "out.json"
    output.unlink(missing_ok=True)
    status = call(
        transform,
        "--input",
        save(folder / "in.json", {"images": images}),
        "--output",
        output,
        *options,
    )
    printed = capsys.readouterr()
    return status, load(output) if output.exists() else None, printed.out, printed.err


def sydney():
    splits = ["train"] * 497 + ["val"] * 58 + ["test"] * 58
    return [image(f"{i}.tif", split, ["A ."] * 5) for i, split in enumerate(splits, 1)]


def test_transform_counts_and_names_warn_and_with_strict_stop_before_writing(tmp_path, capsys):
    whole = sydney()
    status, rows, _, message = run_transform(
        tmp_path, capsys, whole, "--dataset", "Sydney", "--strict"
    )
    assert (status, len(rows), message) == (0, 613, "")
    status, rows, _, message = run_transform(
        tmp_path, capsys, whole[:-2], "--dataset", "Sydney", "--strict"
    )
    assert status == 1 and rows is None and message.startswith("transform.py: error:")
    assert all(
        text in message
        for text in ("images 611 (expected 613)", "test 56 (expected 58)", "RSICD_optimal")
    )
    odd = whole[:-1] + [image("x.jpg", "test", ["A ."])]
    status, rows, _, message = run_transform(tmp_path, capsys, odd, "--dataset", "Sydney")
    assert status == 0 and len(rows) == 613 and message.startswith("transform.py: warning:")
    assert (
        "1 images without exactly 5 sentences; 1 file names unlike 1.tif: x.jpg" in message
        and message.count("\n") == 1
    )
    _, _, _, message = run_transform(tmp_path, capsys, whole, "--dataset", "UCM")
    assert (
        "this looks like Sydney: 613 images, split 497/58/58" in message
        and "images 613 (expected 2100)" in message
    )


def test_transform_dedupe_drops_repeated_sentences_and_fill_repeats_existing_ones(tmp_path, capsys):
    images = [
        image("1.tif", None, ["A lake .", "a LAKE .", "Blue .", "A lake ."]),
        image("2.tif", None, ["Sea ."]),
    ]
    _, rows, out, _ = run_transform(tmp_path, capsys, images, "--dedupe")
    assert [row["caption"] for row in rows] == [
        "A lake .  Blue .  ",
        "Sea .  ",
    ] and "(2 of 5 repeated" in out
    _, rows, out, _ = run_transform(tmp_path, capsys, images)
    assert "2 images have fewer than 5: --fill" in out and rows[1]["caption"] == "Sea .  "
    for seed in range(3):
        _, rows, out, _ = run_transform(tmp_path, capsys, images, "--fill", "--seed", str(seed))
        first, second = (row["caption"].split("  ")[:-1] for row in rows)
        assert (
            len(first) == 5
            and second == ["Sea ."] * 5
            and "10 sentences (5 of them repeated)" in out
        )
        # another order of the images draws the same
        assert (
            run_transform(tmp_path, capsys, images[::-1], "--fill", "--seed", str(seed))[1]
            == rows[::-1]
        )
    images = [image("1.tif", None, ["A .", "B .", "C ."])]
    drawn = {
        run_transform(tmp_path, capsys, images, "--fill", "--seed", str(seed))[1][0]["caption"]
        for seed in range(8)
    }
    assert len(drawn) > 1
    for caption in drawn:
        parts = caption.split("  ")[:-1]
        assert parts[:3] == ["A .", "B .", "C ."] and len(parts) == 5 and parts[3] != parts[4]


def test_transform_reads_nwpu_captions_as_distributed(tmp_path, capsys):
    entry = {"split": "val", "raw": "A lake .", "raw_1": "Blue .", "imgid": 3, "sentid": 1}
    source = save(
        tmp_path / "in.json",
        {
            "lake": [{"filename": "lake_001.jpg", **entry}],
            "sea": [{"filename": "sea_002.jpg", **entry}],
        },
    )
    assert call(transform, "--input", source, "--output", tmp_path / "out.json") == 0
    assert load(tmp_path / "out.json") == [
        {"imged_id": name, "caption": "A lake .  Blue .  ", "split": "val"}
        for name in ("lake/lake_001.jpg", "sea/sea_002.jpg")
    ]
    assert CAPTION_SETS["NWPU"].fits_name("lake/lake_001.jpg")


def test_an_array_named_jsonl_is_reported_once(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps([image("1.tif")], indent=1))
    assert call(transform, "--input", source, "--output", tmp_path / "out.json") == 1
    message = capsys.readouterr().err
    assert (
        "is not JSON: line 1:" in message
        and "an array needs a name ending in .json" in message
        and message.count("\n") == 1
    )


def test_of_very_many_problems_the_first_thousand_are_listed(tmp_path, capsys):
    source = save(tmp_path / "in.json", [{"filename": f"{i}.tif"} for i in range(1203)])
    assert call(transform, "--input", source, "--output", tmp_path / "out.json") == 1
    lines = capsys.readouterr().err.splitlines()
    assert (
        "1203 bad records" in lines[0]
        and len(lines) == 1002
        and lines[-1].strip() == "and 203 more"
    )


def test_a_file_of_another_kind_is_one_line(tmp_path, capsys):
    source = save(
        tmp_path / "in.json",
        [{"img": f"{i}.tif", ("prompt", "label")[i % 2]: "?"} for i in range(20)],
    )
    assert call(transform, "--input", source, "--output", tmp_path / "out.json") == 1
    problem = "all 20 records: no 'filename' among its keys (img, label)"
    assert capsys.readouterr().err == f"transform.py: error: {source}: {problem}\n"


@pytest.mark.parametrize("suffix", (".json", ".jsonl"))
def test_all_problems_of_a_file_are_listed_at_once(tmp_path, capsys, suffix):
    images = [image(f"{i}.tif", raws=() if i % 2 else ("A .",)) for i in range(40)]
    source = save(tmp_path / f"in{suffix}", images)
    expected = [f"'{i}.tif'" for i in range(1, 40, 2)]
    if suffix == ".jsonl":
        with open(source, "a") as file:
            file.write("{broken\n[]\n")
        expected += ["line 41: not JSON", "line 42: expected an object, got list"]
    assert call(transform, "--input", source, "--output", tmp_path / "out.json") == 1
    lines = capsys.readouterr().err.splitlines()
    assert f"{len(expected)} bad records" in lines[0]
    assert len(lines) == 1 + len(expected) and all(
        text in line for text, line in zip(expected, lines[1:])
    )
    assert f"{'line 2' if suffix == '.jsonl' else 'record 1'} ('1.tif')" in lines[1]


def test_jsonl_is_streamed(tmp_path):
    """The first records reach the writer before the last line is read.

    A bad last line stops a run, but only at the end.
    """
    source = save(tmp_path / "in.jsonl", [image("1.tif"), image("2.tif")])
    with open(source, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    stream = records.checked_records(source, "filename", sentences.image_problem)
    assert [next(stream)["filename"], next(stream)["filename"]] == ["1.tif", "2.tif"]
    with pytest.raises(UserError, match="line 3: not JSON from column 2"):
        next(stream)


# what a sentence holds that says nothing
WORDLESS = ("", " ", "\u00a0", "\u200b\ufeff", "\u2060 .", " . ,", "。", "&nbsp;", "nan", None)


def with_raws(name, *raws):
    return {"filename": name, "sentences": [{"raw": raw} for raw in raws]}


@pytest.mark.parametrize("raw", WORDLESS)
def test_wordless_sentences_are_dropped_and_images_without_others_left_out(tmp_path, capsys, raw):
    images = [
        with_raws("1.tif", raw, "A lake\u00a0.", raw),
        with_raws("2.tif", raw),
        {"filename": "3.tif", "sentences": [None, {"raw": "Sea ."}]},
    ]
    status, rows, out, message = run_transform(tmp_path, capsys, images)
    assert status == 0 and "2 records" in out and "2 sentences" in out
    assert rows == [
        {"imged_id": "1.tif", "caption": "A lake\u00a0.  "},
        {"imged_id": "3.tif", "caption": "Sea .  "},
    ]
    assert message.startswith("transform.py: warning: ") and message.count("\n") == 1
    assert "4 sentences without words" in message
    assert "2 images left with fewer sentences: '1.tif'; '3.tif'" in message
    assert "1 images left out, as no sentence of theirs has words: '2.tif'" in message


def test_blank_sentences_of_a_whole_set_stop_only_with_strict(tmp_path, capsys):
    whole = sydney()
    whole[7]["sentences"][2]["raw"] = " "
    whole[9] = {**with_raws("10.tif", *WORDLESS[:5]), "split": "train"}
    options = ("--dataset", "Sydney")
    status, rows, _, message = run_transform(tmp_path, capsys, whole, *options)
    assert (status, len(rows), message.count("\n")) == (0, 612, 1)
    # what was distributed is whole all the same
    assert "6 sentences without words" in message and "not the whole" not in message
    assert rows[7]["caption"] == "A .  " * 4
    status, rows, _, message = run_transform(tmp_path, capsys, whole, *options, "--strict")
    assert status == 1 and rows is None and message.count("\n") == 1
    assert "error: " in message and "6 sentences without words" in message and "'10.tif'" in message


def test_a_set_without_any_words_is_refused(tmp_path, capsys):
    images = [with_raws("1.tif", " ", None), with_raws("2.tif", ".")]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    assert status == 1 and rows is None and message.count("\n") == 1
    assert "3 sentences without words" in message and "no image is left" in message


@pytest.mark.parametrize("nothing", ({"sentences": []}, {"sentences": None}, {}))
def test_images_without_sentences_are_left_out_where_they_are_few(tmp_path, capsys, nothing):
    bare = {"filename": "x.tif", "split": "val", **nothing}
    images = [image("1.tif", "train"), bare, image("2.tif", "val")]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    assert status == 0 and [row["imged_id"] for row in rows] == ["1.tif", "2.tif"]
    assert "1 images left out" in message and "'x.tif'" in message and message.count("\n") == 1
    assert run_transform(tmp_path, capsys, [image("1.tif"), bare])[0] == 1
    odd = {**bare, "filename": "y.tif", "split": "dev"}
    message = run_transform(tmp_path, capsys, [*images, odd])[3]
    assert "got 'dev'" in message


# kinds of fault: what record number i has of them, and the words of the one line
MANY = 10000
KINDS_OF_FAULT = {
    "split": (lambda i: image(f"{i}.tif", "dev"), "'split' train, val or test", "got 'dev'"),
    "splits": (lambda i: image(f"{i}.tif", f"s{i}"), "'split' train, val or test", "got 's7'"),
    "split is a list": (lambda i: image(f"{i}.tif", ["val"]), "'split'", "got ['val']"),
    "number as name": (lambda i: {**image("x"), "filename": i}, "text in 'filename'", "got 2"),
    "drive": (lambda i: image(f"D:\\x\\{i}.tif"), "within the image folder", "'D:/x/0.tif'"),
    "control character": (lambda i: image(f"{i}\x00.tif"), "within the image folder", "\\x00"),
    "other key": (lambda i: {"filename": f"{i}.tif", "captions": ["A ."]}, "'sentences'", "capti"),
    "one text": (lambda i: {**image(f"{i}.tif"), "sentences": "A ."}, "'sentences'", "got str"),
    "texts": (lambda i: {**image(f"{i}.tif"), "sentences": ["A ."]}, '{"raw": text}', "got str"),
    "raw is a number": (lambda i: with_raws(f"{i}.tif", i), "text in 'raw'", "got 2"),
    "no raw": (lambda i: {**image(f"{i}.tif"), "sentences": [{"id": i}]}, "no 'raw'", "(id)"),
    "duplicate": (lambda i: image("good.tif"), "duplicate", "record 3 ('good.tif')"),
    "no object": (lambda i: [i], "expected an object", "got list"),
}


@pytest.mark.parametrize("kind", KINDS_OF_FAULT)
def test_a_fault_of_many_records_is_one_line(tmp_path, capsys, kind):
    record, *words = KINDS_OF_FAULT[kind]
    images = [image("good.tif", "val"), *map(record, range(MANY))]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    assert status == 1 and rows is None and message.count("\n") == 1 and len(message) < 1200
    assert re.search(rf"{MANY} records, .*record 1\b.*; and ({MANY - 8}|{MANY - 3}) more", message)
    for word in words:
        assert word in message


def test_kinds_of_fault_stand_on_a_line_each_and_a_rare_value_is_among_the_examples(
    tmp_path, capsys
):
    images = [image(f"{i}.tif", "dev") for i in range(50)]
    images += [image("50.tif", "holdout"), image("51.tif", "val"), with_raws("52.tif", 5)]
    status, _, _, message = run_transform(tmp_path, capsys, images)
    first, splits, raw = message.splitlines()
    assert status == 1 and "52 bad records" in first
    assert "51 records, " in splits and "record 50 ('50.tif'), got 'holdout'" in splits
    assert raw.strip() == "record 52 ('52.tif'): expected text in 'raw', got 5"


def test_captions_of_later_stages_are_reported_by_kind_as_well(tmp_path, capsys):
    rows = [{**row, "caption": "\u200b"} for row in english(MANY)]
    source = save(tmp_path / "zh.json", [*rows, {"imged_id": "x", "caption": "湖。"}])
    for script in (generate_prompt, translation_en2zh):
        assert call(script, "--input", source, "--output", tmp_path / "out.json") == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and f"{MANY} records, expected text in 'capt" in message


def test_sentences_are_read_from_tokens_and_from_keys_of_their_own(tmp_path, capsys):
    words = {"tokens": ["a", "lake"]}
    images = [
        {"filename": "1.tif", "sentences": [words, {"raw": "Sea .", "tokens": [1]}]},
        {"filename": "2.tif", "sentences": [{"tokens": None}, words, {"tokens": []}]},
        {"filename": "3.tif", "raw": None, "raw_1": "A port .", "raw_2": ""},
    ]
    expected = ["a lake  Sea .  ", "a lake  ", "A port .  "]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    assert status == 0 and [row["caption"] for row in rows] == expected
    assert "4 sentences without words" in message
    bad = [{"filename": "1.tif", "sentences": [{"tokens": "a lake"}]}]
    message = run_transform(tmp_path, capsys, bad)[3]
    assert "'tokens', got 'a lake'" in message and message.count("\n") == 1


def test_nwpu_captions_with_null_and_empty_classes(tmp_path, capsys):
    entry = {"split": "val", "raw": "A lake .", "raw_1": None}
    data = {"lake": [{"filename": "1.jpg", **entry}, {"filename": "2.jpg", "raw": None}], "sea": []}
    source, output = save(tmp_path / "in.json", data), tmp_path / "out.json"
    assert call(transform, "--input", source, "--output", output) == 0
    record = {"imged_id": "lake/1.jpg", "caption": "A lake .  ", "split": "val"}
    assert load(output) == [record] and "'lake/2.jpg'" in capsys.readouterr().err
    save(source, {"lake": [{"filename": None, **entry}]})
    assert call(transform, "--input", source, "--output", output) == 1
    assert "expected text in 'filename', got None" in capsys.readouterr().err


def test_splits_of_other_spelling_are_read_and_reported(tmp_path, capsys):
    spelled = {
        "Train": "train",
        "TRAINING": "train",
        "restval": "train",
        "validation": "val",
        "Valid": "val",
        " Test ": "test",
        "testing": "test",
    }
    images = []
    for number in range(3):
        images += [image(f"{split}{number}.tif", split) for split in spelled]
    images += [image("none.tif", ""), {**image("null.tif"), "split": None}]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    assert (
        status == 0 and [row.get("split") for row in rows] == [*spelled.values()] * 3 + [None] * 2
    )
    assert len(message.splitlines()) == len(spelled)
    assert all(f"3 images with split {split!r} read as " in message for split in spelled)


def test_names_with_backslashes_and_names_that_differ_in_case(tmp_path, capsys):
    images = [image("val\\1.tif"), image("val/2.TIF"), image("VAL\\2.tif")]
    status, rows, _, message = run_transform(tmp_path, capsys, images)
    names = ["val/1.tif", "val/2.TIF", "VAL/2.tif"]
    assert status == 0 and [row["imged_id"] for row in rows] == names
    note, warning = message.splitlines()
    assert "2 images with \\ in their file names read as /" in note
    assert "1 images named like an earlier one but for case" in warning and "'VAL/2.tif'" in warning
    # one file, spelled in two ways
    message = run_transform(tmp_path, capsys, [image("a\\1.tif"), image("a/1.tif")])[3]
    assert "record 1 ('a/1.tif'): duplicate" in message


def test_later_stages_read_captions_and_records_as_transform_does(tmp_path, capsys):
    blank = {"filename": "b\\2.png", "split": "Validation", "sentences": [{"raw": None}]}
    tokens = [{"tokens": ["two", "lakes"]}]
    images = [{"filename": "a\\1.png", "split": "Train", "sentences": tokens}, blank]
    captions = save(tmp_path / "dataset.json", {"images": images})
    splits, sentences = row_sources.read_captions(captions, True)
    assert splits == {"a/1.png": "train", "b/2.png": "val"}
    assert sentences == {"a/1.png": ["two lakes"], "b/2.png": []}
    assert existing.english_of(captions) == {"a/1.png": "two lakes", "b/2.png": ""}

    row = {"imged_id": "a\\1.png", "caption": "湖。", "split": "Validation"}
    source, output = save(tmp_path / "zh.json", [row]), tmp_path / "rows.json"
    assert call(generate_prompt, "--input", source, "--output", output, "--no-image-check") == 0
    assert [row["img"] for row in load(tmp_path / "rows-val.json")] == ["images/a/1.png"]


@pytest.mark.parametrize("encoding", ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"))
@pytest.mark.parametrize("suffix", (".json", ".jsonl"))
def test_other_encodings_of_unicode_are_read(tmp_path, encoding, suffix):
    images = [image("1.tif", "train", ["Lake 湖 ."]), image("2.tif", "val", ["Sea ."])]
    source, output = save(tmp_path / f"in{suffix}", images), tmp_path / f"out{suffix}"
    source.write_bytes(source.read_text(encoding="utf-8").encode(encoding))
    assert call(transform, "--input", source, "--output", output) == 0
    assert [row["caption"] for row in load(output)] == ["Lake 湖 .  ", "Sea .  "]


WHOLE = json.dumps([with_raws(f"{i}.tif", "A lake .") for i in range(9)]).encode()
LINES = WHOLE[1:-1].replace(b"]}, {", b"]}\n{")
UNREADABLE = {
    "cut in a text": (WHOLE[:-12], ".json", "the file ends in the middle; it has"),
    "cut after a record": (WHOLE[:-1], ".json", "the file ends in the middle; it has"),
    "last line cut": (LINES[:-9], ".jsonl", "line 9: not JSON"),
    "UTF-16 cut": (WHOLE.decode().encode("utf-16")[:-1], ".json", "is not UTF-16"),
    "cut in a character": (
        WHOLE[:-8] + "湖".encode()[:2],
        ".json",
        "the file ends in the middle; it has",
    ),
    "line cut in a character": (
        LINES[:-8] + "湖".encode()[:2],
        ".jsonl",
        "is not UTF-8 (at line 9): the file ends in the middle; it has",
    ),
    "TIFF": (b"II*\0\x80", ".json", "in.json is an image, not a file that names images"),
    "Latin-1 line": (LINES[:-5] + b"\xe9" + LINES[-5:], ".jsonl", "not UTF-8 (at line 9)"),
    "gzip": (b"\x1f\x8b\x08" + WHOLE, ".json", "is an archive: unpack it"),
    "zip": (b"PK\x03\x04\x14" + WHOLE, ".json", "is an archive: unpack it"),
    "HTML": (b"\n<!DOCTYPE html>", ".json", "an HTML page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", ".jsonl", "a Git LFS pointer"),
    "blanks on disk": (bytes(100), ".json", "it has 100 bytes"),
    "brackets": (b"[" * 100_000, ".json", "nested too deeply"),
    "line of brackets": (
        LINES + b"\n" + b"[" * 100_000,
        ".jsonl",
        "line 10: not JSON from column 1: nested too deeply",
    ),
    "digits": (b"[" + b"1" * 5000 + b"]", ".json", "4300 digits"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_is_no_json_is_one_line_that_says_what_it_is(tmp_path, capsys, case):
    content, suffix, words = UNREADABLE[case]
    source, output = tmp_path / f"in{suffix}", tmp_path / "out.json"
    source.write_bytes(content)
    assert call(transform, "--input", source, "--output", output) == 1
    message = capsys.readouterr().err
    assert message.startswith("transform.py: error: ") and message.count("\n") == 1
    assert words in message and not output.exists()
    if "cut" in case and suffix == ".jsonl":
        assert "the file ends in the middle" in message


def limited(size, script, *options):
    """A script in a process whose files may have so many bytes -> (exit status, stderr)."""
    done = subprocess.run(
        [sys.executable, DATA / script, *map(str, options)],
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("end", (".json", ".jsonl"))
def test_a_file_size_limit_names_the_file_and_the_way_on(tmp_path, end):
    en, zh, rows = (tmp_path / f"{name}{end}" for name in ("en", "zh", "rows"))
    source = save(tmp_path / "in.json", [image(f"{i}.png", "train") for i in range(300)])
    save(zh, [{"imged_id": f"{i}.png", "caption": "湖。", "split": "train"} for i in range(300)])
    for output, script, *options in (
        (en, "transform.py", "--input", source),
        (rows, "generate_prompt.py", "--input", zh, "--no-image-check"),
    ):
        status, message = limited(5000, script, *options, "--output", output)
        assert status == 1 and message == (
            f"{script}: error: {output} cannot be written: File too large; make room, the same "
            "command continues from what is saved\n"
        )
        assert not output.exists()
        assert limited(10**6, script, *options, "--output", output) == (0, "")


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


def test_nan_is_null(tmp_path):
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text('[{"filename": "1.tif", "sentences": [{"raw": NaN}, {"raw": "Sea ."}]}]')
    assert call(transform, "--input", source, "--output", output) == 0
    assert load(output) == [{"imged_id": "1.tif", "caption": "Sea .  "}]


# ---- generate_prompt


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


def prompt(folder, *options, records_=None, output="rows.json"):
    """Run generate_prompt on `records_` in `folder`: (status, rows by file name).

    records_: {file name: split or None}
    """
    source = folder / "zh.json"
    if records_ is not None:
        save(
            source,
            [
                {"imged_id": name, "caption": f"湖{name}。", **({"split": split} if split else {})}
                for name, split in records_.items()
            ],
        )
    status = call(generate_prompt, "--input", source, "--output", folder / output, *options)
    rows = load(folder / output) if (folder / output).exists() else []
    return status, {row["img"].split("/", 1)[1]: row for row in rows if "img" in row}


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


# ---- merging, leaks


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


# ---- exports


def test_rows_in_the_forms_of_other_trainers(tmp_path):
    """Column names and roles as LLaMA-Factory, ms-swift and LLaVA expect them."""
    records_ = {"1.tif": "train", "2.tif": "val"}
    question, answer = QUESTION, "湖1.tif。"
    for form, output in (
        ("llamafactory", "UCM.json"),
        ("ms-swift", "UCM.jsonl"),
        ("llava", "llava.json"),
    ):
        save(
            tmp_path / "zh.json",
            [
                {"imged_id": name, "caption": f"湖{name}。", "split": split}
                for name, split in records_.items()
            ],
        )
        assert (
            call(
                generate_prompt,
                "--input",
                tmp_path / "zh.json",
                "--image-root",
                "UCM",
                "--no-image-check",
                "--format",
                form,
                "--output",
                tmp_path / output,
            )
            == 0
        )
        rows = load(tmp_path / output)
        assert len(rows) == 2 and load(tmp_path / output.replace(".", "-train.")) == rows[:1]
        assert rows[0] == (
            {
                "image": "UCM/1.tif",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": answer},
                ],
            }
            if form == "llava"
            else {
                "messages": [
                    {"role": "user", "content": f"<image>{question}"},
                    {"role": "assistant", "content": answer},
                ],
                "images": ["UCM/1.tif"],
            }
        )
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert set(info) == {"UCM", "UCM-train", "UCM-val"}
    for name, entry in info.items():
        assert entry == {
            "file_name": f"{name}.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        }
        for row in load(tmp_path / entry["file_name"]):  # as the entry says how to read it
            turns, tags = row[entry["columns"]["messages"]], entry["tags"]
            assert [turn[tags["role_tag"]] for turn in turns] == [
                tags["user_tag"],
                tags["assistant_tag"],
            ]
            assert (
                sum(turn[tags["content_tag"]].count("<image>") for turn in turns)
                == len(row[entry["columns"]["images"]])
                == 1
            )


@pytest.mark.parametrize("form", exports.FORMATS)
def test_a_dialogue_has_one_image_mark_in_its_first_turn(form):
    rounds = [("甲？", "一。"), ("乙？", "二。")]
    row = exports.row(form, "a.tif", rounds)
    turns = row["messages"] if "messages" in row else row["conversations"]
    texts = [turn.get("content") or turn["value"] for turn in turns]
    mark = {"remoteglm": "", "llava": "<image>\n"}.get(form, "<image>")
    assert texts == [f"{mark}甲？", "一。", "乙？", "二。"]
    roles = ["human", "gpt"] if form == "llava" else ["user", "assistant"]
    assert [turn.get("role") or turn["from"] for turn in turns] == roles * 2


def test_default_outputs_of_other_forms_leave_the_trainers_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "DATA", tmp_path)
    save(tmp_path / "UCM" / "UCM-zh.json", [{"imged_id": "1.tif", "caption": "湖。"}])
    for form in exports.FORMATS:
        assert call(generate_prompt, "--no-image-check", "--format", form) == 0
    assert {path.name for path in (tmp_path / "UCM").iterdir()} == {
        "UCM-zh.json",
        "UCM-prompt.json",
        "UCM-llamafactory.json",
        "UCM-ms-swift.jsonl",
        "UCM-llava.json",
        "dataset_info.json",
    }


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp1252", "utf-8"])
def test_dataset_info_reads_alike_in_every_encoding(tmp_path, encoding):
    """LLaMA-Factory opens it in the one of the system."""
    save(tmp_path / "dataset_info.json", {"遥感": {"file_name": "图像.json"}})
    name = "描述-train.json"
    exports.register([tmp_path / name])
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding=encoding))
    assert info["遥感"] == {"file_name": "图像.json"} and info["描述-train"]["file_name"] == name


def test_dataset_info_keeps_other_entries_and_a_broken_one_stops_first(tmp_path, capsys):
    info = save(tmp_path / "dataset_info.json", {"mine": {"file_name": "x.json"}})
    assert (
        prompt(
            tmp_path,
            "--no-image-check",
            "--format",
            "llamafactory",
            records_={"1.png": None},
            output="a.json",
        )[0]
        == 0
    )
    assert set(load(info)) == {"mine", "a"} and load(info)["mine"] == {"file_name": "x.json"}
    for text in ("{broken", "[]"):
        info.write_text(text)
        assert (
            call(
                generate_prompt,
                "--input",
                tmp_path / "zh.json",
                "--output",
                tmp_path / "b.json",
                "--no-image-check",
                "--format",
                "llamafactory",
            )
            == 1
        )
        assert (
            str(info) in capsys.readouterr().err
            and info.read_text() == text
            and not (tmp_path / "b.json").exists()
        )


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


def test_png_of_merged_sets_do_not_overwrite_each_other(tmp_path):
    assert call(generate_prompt, *merged(tmp_path), "--png", "png", "--format", "llava") == 0
    rows = load(tmp_path / "both.json")
    names = ("mine/2", "mine/3", "other/1", "other/2", "other/3")
    assert [row["image"] for row in rows] == [f"png/{name}.png" for name in names]
    sizes = [Image.open(tmp_path / row["image"]).size for row in rows]
    assert sizes == [(30, 30), (40, 40), (21, 20), (20, 20), (41, 40)]


# ---- streaming


def test_jsonl_goes_through_both_stages_in_constant_memory(tmp_path):
    """10 times the records, nearly the same peak; whole, they would take more than that.

    benchmarks/data.py has a million.
    """
    peaks = {}
    for count in (1000, 10000):
        source = tmp_path / f"{count}.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for i in range(count):
                file.write(
                    json.dumps(image(f"{i}.tif", "train", [f"A lake {i} " + "x" * 2000])) + "\n"
                )
        tracemalloc.start()
        assert call(transform, "--input", source, "--output", tmp_path / "en.jsonl") == 0
        assert (
            call(
                generate_prompt,
                "--input",
                tmp_path / "en.jsonl",
                "--output",
                tmp_path / "rows.jsonl",
                "--no-image-check",
            )
            == 0
        )
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(1 for _ in open(tmp_path / "rows-train.jsonl", encoding="utf-8")) == count
    # a hash of each name, where a record takes 2,000 and more
    assert peaks[10000] - peaks[1000] < 9000 * 200


# ---- what users get wrong
# (script, input, options, words of the one line); "@name" is a path in the test's folder

BAD_SPLIT = image("1.tif", "dev")
BAD = {
    "input missing": ("transform", None, (), ("in.json does not exist", "--input")),
    "default captions missing": (
        "transform",
        None,
        ("--dataset", "RSICD", "--input="),
        ("RSICD/dataset.json", "RSICD_optimal"),
    ),
    "demo missing": (
        "transform",
        None,
        ("--dataset", "demo", "--input="),
        ("demo/dataset.json", "synthetic/demo_scenes.py"),
    ),
    "previous stage missing": (
        "translation_en2zh",
        None,
        ("--input=",),
        ("UCM-en.json", "run data/transform.py --dataset UCM"),
    ),
    "translation missing": (
        "generate_prompt",
        None,
        ("--input=",),
        ("UCM-zh.json", "run data/translation_en2zh.py"),
    ),
    "input is a folder": ("transform", None, ("--input", "@."), ("cannot read", "directory")),
    "not JSON": (
        "transform",
        b'{"images": [\n  {"filename": 1,}]}',
        (),
        ("in.json is not JSON", "line 2 column"),
    ),
    "JSONL called JSON": ("transform", b'{"a": 1}\n{"a": 2}\n', (), ("line 2 column 1", ".jsonl")),
    "empty file": ("transform", b"", (), ("is not JSON: the file is empty; it has 0 bytes",)),
    "not UTF-8": (
        "transform",
        '{"images": "湖"}'.encode("gbk"),
        (),
        ("not UTF-8", "byte 12", "save it as UTF-8"),
    ),
    "object without images": ("transform", {"annotations": []}, (), ('{"images": [...]}',)),
    "no records": ("transform", [], (), ("holds no records",)),
    "record is no object": (
        "transform",
        [image("1.tif"), "2.tif"],
        (),
        ("record 1", "expected an object, got str"),
    ),
    "wrong keys": (
        "transform",
        english(5),
        (),
        ("5 bad records", "record 0", "'filename'", "imged_id", "record 4"),
    ),
    "no sentences": (
        "transform",
        [image("7.tif", raws=())],
        (),
        ("record 0 ('7.tif')", "'sentences'"),
    ),
    "sentence is text": (
        "transform",
        [{**image("7.tif"), "sentences": ["A ."]}],
        (),
        ("'7.tif'", '{"raw": text}', "got str"),
    ),
    "raw is no text": (
        "transform",
        [{**image("7.tif"), "sentences": [{"raw": 5}]}],
        (),
        ("'7.tif'", "'raw'", "got 5"),
    ),
    "unknown split": ("transform", [BAD_SPLIT], (), ("'1.tif'", "train, val or test", "'dev'")),
    "duplicate": (
        "transform",
        [image("1.tif"), image("2.tif"), image("1.tif")],
        (),
        ("1 bad", "record 2 ('1.tif')", "duplicate"),
    ),
    "file name is no text": (
        "transform",
        [{**image("1.tif"), "filename": 1}],
        (),
        ("record 0", "'filename'", "got 1"),
    ),
    "output is a folder": (
        "transform",
        [image("1.tif")],
        ("--output", "@."),
        ("is a folder", "--output"),
    ),
    "output is the input": (
        "transform",
        [image("1.tif")],
        ("--output", "@in.json"),
        ("the input itself",),
    ),
    "output under a file": (
        "transform",
        [image("1.tif")],
        ("--output", "@in.json/x/out.json"),
        ("cannot write", "in.json/x/out.json"),
    ),
    "half a surrogate": (
        "transform",
        b'[{"filename": "1", "sentences": [{"raw": "\\ud800"}]}]',
        (),
        ("record 1", "surrogate"),
    ),
    "captions given to translation": (
        "translation_en2zh",
        {"images": [image("1.tif")]},
        (),
        ("'imged_id'", "filename"),
    ),
    "caption is a list": (
        "translation_en2zh",
        [{"imged_id": "1.tif", "caption": ["A"]}],
        (),
        ("'1.tif'", "'caption'", "['A']"),
    ),
    "empty caption": (
        "translation_en2zh",
        [{"imged_id": "1.tif", "caption": " "}],
        (),
        ("'1.tif'", "expected text in 'caption'"),
    ),
    "no key": (
        "translation_en2zh",
        english(3),
        (),
        ("3 captions are left to ask", "OPENAI_API_KEY", "--base-url", "--memory"),
    ),
    "memory of another form": (
        "translation_en2zh",
        english(1),
        ("--memory", "@en-zh.json"),
        ("en-zh.json", "record 0", "'target'"),
    ),
    "memory missing": (
        "translation_en2zh",
        english(1),
        ("--memory", "@none.json"),
        ("none.json", "No such file"),
    ),
    "empty label": (
        "generate_prompt",
        [{"imged_id": "1.tif", "caption": ""}],
        (),
        ("'1.tif'", "expected text in 'caption'"),
    ),
    "images missing": (
        "generate_prompt",
        english(2),
        ("--image-root", "pics"),
        ("2 of 2 images missing: pics/0.png; pics/1.png", "looked in @.", "then in @project"),
    ),
    "image damaged, image missing": (
        "generate_prompt",
        english(3),
        ("--strict",),
        (
            "1 of 3 images missing: images/2.png",
            "1 of 3 images unreadable",
            "@images/1.png (22 bytes, not an image",
        ),
    ),
    "absolute image root": (
        "generate_prompt",
        english(1),
        ("--image-root", "@elsewhere"),
        ("missing: @elsewhere/0.png", "looked in @elsewhere;"),
    ),
    "some without split": (
        "generate_prompt",
        [*english(2), {"imged_id": "x", "caption": "湖", "split": "val"}],
        (),
        ("2 of 3 records have no split: 0.png; 1.png", "give --captions"),
    ),
    "unknown to captions": (
        "generate_prompt",
        english(2),
        ("--captions", "@captions.json"),
        ("1 of 2 records have no split: 1.png", "captions.json does not name them"),
    ),
    "captions without split": (
        "generate_prompt",
        english(2),
        ("--captions", "@in.json"),
        ("in.json", "'filename'"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, tmp_path, monkeypatch, capsys):
    script, content, options, words = BAD[case]
    monkeypatch.setattr(stage, "DATA", tmp_path / "data")
    monkeypatch.setattr(row_images, "PROJECT", tmp_path / "project")
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    save(tmp_path / "en-zh.json", [{"source": "Lake", "zh": "湖"}])
    save(tmp_path / "captions.json", {"images": [image("0.png", "val")]})
    save_images(tmp_path / "images", "0.png", "1.png")
    (tmp_path / "images" / "1.png").write_bytes(b"<html>not found</html>")
    options = [re.sub("^@", f"{tmp_path}/", option) for option in options]
    argv = [] if "--input=" in options else ["--input", str(source), "--output", str(output)]
    before = sorted(tmp_path.rglob("*"))

    status = sys.modules[f"data.{script}"].main(
        [*argv, *(option for option in options if option != "--input=")]
    )

    message = capsys.readouterr().err
    assert status == 1 and message.startswith(f"{script}.py: error: ") and message.count("\n") == 1
    assert "Traceback" not in message
    for word in words:
        assert word.replace("@.", str(tmp_path)).replace("@", f"{tmp_path}/") in message
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != CACHE] == before


@pytest.mark.parametrize(
    "script, options, word",
    (
        ("transform", ("--dataset", "COCO"), "Sydney"),
        ("transform", ("--strict", "--input", "x.json"), "--dataset"),
        ("translation_en2zh", ("--concurrency", "0"), "0 is not at least 1"),
        ("translation_en2zh", ("--timeout", "nan"), "--timeout"),
        ("translation_en2zh", ("--max-retries", "-1"), "-1 is not at least 0"),
        ("translation_en2zh", ("--limit", "0"), "--limit"),
        ("translation_en2zh", ("--base-url", "localhost:8000/v1"), "http://"),
        (
            "generate_prompt",
            ("--input", "a", "b", "--dataset", "UCM"),
            "--dataset UCM names one set, --input 2 files",
        ),
        (
            "generate_prompt",
            ("--input", "a", "b"),
            "2 inputs are merged into one file: name it by --output; --image-root: expected one "
            "per input, 2, got 1",
        ),
        (
            "generate_prompt",
            ("--captions", "a", "b"),
            "--captions: expected one per input, 1, got 2",
        ),
        ("generate_prompt", ("--no-image-check", "--strict"), "--strict opens the images"),
        ("generate_prompt", ("--no-image-check", "--png", "x"), "--png opens the images"),
        (
            "generate_prompt",
            ("--format", "ms-swift", "--output", "a.json"),
            "name --output a.jsonl",
        ),
        ("generate_prompt", ("--prompt", " "), "--prompt is empty"),
        ("generate_prompt", ("--image-root", ""), "--image-root is empty"),
    ),
)
def test_options_that_make_no_sense_are_refused_at_parse_time(script, options, word, capsys):
    with pytest.raises(SystemExit, match="2"):
        sys.modules[f"data.{script}"].main(list(options))
    assert word in capsys.readouterr().err


# every option of more than one word, with a value
SPELLINGS = {
    transform: (["--no-split"], ["--image-column", "x"], ["--caption-column", "x"]),
    translation_en2zh: (
        ["--memory-out", "x.json"],
        ["--no-gate"],
        ["--base-url", "http://localhost/v1"],
        ["--extra-body", "{}"],
        ["--max-retries", "1"],
        ["--dry-run"],
        ["--price-in", "1"],
        ["--price-out", "1"],
        ["--max-cost", "1", "--price-in", "1"],
        ["--export-batch", "x.jsonl"],
        ["--import-batch", "x.jsonl"],
        ["--batch-api"],
        ["--lost-batch"],
    ),
    generate_prompt: (["--image-root", "x"], ["--keep-duplicates"], ["--no-image-check"]),
    demo_scenes: (),
    tiny_pictures: (),
}


@pytest.mark.parametrize("script", SPELLINGS, ids=lambda script: script.__name__)
def test_both_spellings_of_every_option(script, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(script, "run_stage", lambda file, stage, args: seen.append(vars(args)))
    for options in SPELLINGS[script]:
        call(script, *options)
        call(script, options[0].replace("-", "_").replace("__", "--", 1), *options[1:])
        assert seen[-2] == seen[-1] != {}

    with pytest.raises(SystemExit, match="0"):
        call(script, "--help")
    long = set(re.findall(r"^ +(--\w+-[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert long == {options[0] for options in SPELLINGS[script]}


def test_an_interrupted_writer_leaves_the_old_file_and_no_other(tmp_path):
    output = tmp_path / "out.json"
    output.write_text("old")

    def interrupted():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(output, interrupted())
    assert [path.name for path in tmp_path.iterdir()] == [
        "out.json"
    ] and output.read_text() == "old"
    link = tmp_path / "link.json"
    link.symlink_to(output)
    assert (
        records.write_records(link, [{"a": 1}]) == 1
        and link.is_symlink()
        and load(output) == [{"a": 1}]
    )


@pytest.mark.parametrize("readme", ("README.md", "README_en.md"))
def test_known_sets_add_up_and_stand_in_the_readme(readme):
    table = (DATA / readme).read_text(encoding="utf-8")
    table = table.replace("由参数定", "").replace("by options", "")
    for name, known in CAPTION_SETS.items():
        if known.splits:
            assert sum(known.splits) == known.images
        counts = [
            f"{count:,}" if count else ""
            for count in (known.images, *(known.splits or ("", "", "")))
        ]
        size = f"{known.size[0]}×{known.size[1]}"
        cells = " | ".join([name, *counts, str(known.sentences), size])
        assert f"| {cells} |".replace("  ", " ") in table.replace("  ", " ")
        assert not known.example or known.fits_name(known.example)
    for script in ("transform", "translation_en2zh", "generate_prompt"):
        assert f"python data/{script}.py" in table


ALLOWED = {"PIL", "numpy", "openai", "tqdm", "command_line", "data"}
# reads Parquet and Arrow files where a user has some: asked for where it is needed
ALLOWED_OF_TABLES = {"pyarrow"}
ALLOWED_OF_MODEL = {"model.errors", "model.files", "model.images", "model.images.encoding"}
ALLOWED_OF_MODEL |= {"model.row_forms"}  # how turns are read, here as in training


def test_data_imports_only_what_is_light():
    """The standard library, Pillow, numpy, openai, tqdm, and what never loads torch."""
    folders = (DATA, DATA / "synthetic", DATA / "layouts")
    for file in (file for folder in folders for file in folder.glob("*.py")):
        # one drives the trainer, for which the other trains an encoder
        if file.name in ("make_tiny_base.py", "tiny_encoder.py"):
            continue
        text = file.read_text(encoding="utf-8")
        imports = set(re.findall(r"^\s*(?:import|from) ([\w.]+)", text, re.MULTILINE))
        ours = {name for name in imports if name.partition(".")[0] == "model"}
        assert ours <= ALLOWED_OF_MODEL, file.name
        names = {name.partition(".")[0] for name in imports - ours}
        if file.name in ("table.py", "arrow.py"):
            names -= ALLOWED_OF_TABLES
        assert names <= set(sys.stdlib_module_names) | ALLOWED, file.name


def test_a_stage_never_loads_torch(tmp_path):
    """Whatever it does: here it reads and converts an image."""
    save_images(tmp_path / "images", "1.png")
    save(tmp_path / "zh.json", [{"imged_id": "1.png", "caption": "湖。"}])
    code = (
        "import sys; from data import generate_prompt, transform, translation_en2zh; "
        "from data.synthetic import demo_scenes, tiny_pictures; "
        f"options = ['--input', {str(tmp_path / 'zh.json')!r}, '--png', 'png']; "
        "assert generate_prompt.main(options) == 0; "
        "assert 'model.images' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "png" / "1.png").exists()


def test_what_the_gate_rejected_is_no_input(tmp_path, capsys):
    """Its captions are English, and its answers were found wanting."""
    rejected = {"answer": "湖面宁静。", "problems": [["subjective", "宁静"]]}
    rows = [{"imged_id": "0.png", "caption": "A lake ."} | rejected]
    source = save(tmp_path / "UCM-zh-rejected.json", rows)
    assert call(generate_prompt, "--input", source, "--no-image-check") == 1
    assert "UCM-zh-rejected.json holds what the quality gate rejected" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["UCM-zh-rejected.json"]
