"""Caption sets -> records, against expectations written out here; layouts: test_layouts.py."""

import json
import re

import pytest
from stages import call, english, image, limited, load, save

from data import (
    existing,
    generate_prompt,
    records,
    row_sources,
    sentences,
    transform,
    translation_en2zh,
)
from data.caption_sets import CAPTION_SETS
from model.errors import UserError

pytestmark = pytest.mark.usefixtures("no_key")


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


def test_nan_is_null(tmp_path):
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text('[{"filename": "1.tif", "sentences": [{"raw": NaN}, {"raw": "Sea ."}]}]')
    assert call(transform, "--input", source, "--output", output) == 0
    assert load(output) == [{"imged_id": "1.tif", "caption": "Sea .  "}]
