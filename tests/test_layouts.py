"""Layouts of caption sets, each on a small file of its true shape; expectations written out."""

import csv
import io
import json
import os
import random
import tarfile
from collections import Counter

import pytest
from PIL import Image
from stages import call, image, load, save, save_images
from test_rows import ANSWER, QUESTION, SAME, WRONG

from data import existing, exports, generate_prompt, transform, translation_en2zh
from data.layouts import classes, open_files
from model.errors import UserError
from model.row_forms import ANSWER_KEYS, QUESTION_KEYS
from model.rows import load_rows


def imported(source, output, *options, status=0):
    sources = source if isinstance(source, list) else [source]
    assert call(transform, "--input", *sources, "--output", output, *options) == status
    return load(output) if status == 0 else None


def record(name, *sentences, **more):
    return {"imged_id": name, "caption": "".join(f"{text}  " for text in sentences), **more}


def faults(source, folder, capsys, *options):
    """The lines of the error; nothing is written."""
    imported(source, folder / "out.json", *options, status=1)
    assert not (folder / "out.json").exists()
    return capsys.readouterr().err


# ---- COCO

COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "height": 224, "width": 224},
        {"id": 3, "file_name": "b.jpg"},
        {"id": 9, "file_name": "sub/c.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "B one ."},
        {"id": 2, "image_id": 7, "caption": "A one ."},
        {"id": 3, "image_id": 3, "caption": "B two ."},
        {"id": 4, "image_id": 9, "caption": "C one ."},
    ],
}


def test_coco_captions(tmp_path, capsys):
    source = save(tmp_path / "captions_val2017.json", {"info": {}, "licenses": [], **COCO})
    assert imported(source, tmp_path / "en.json") == [
        record("a.jpg", "A one .", split="val"),
        record("b.jpg", "B one .", "B two .", split="val"),
        record("sub/c.jpg", "C one .", split="val"),
    ]
    assert "3 images with the split that captions_val2017.json names" in capsys.readouterr().err
    # the other stages read it as well
    zh = save(tmp_path / "zh.json", [{"imged_id": "b.jpg", "caption": "湖。"}])
    options = ("--input", zh, "--captions", source, "--no-image-check")
    assert call(generate_prompt, *options, "--output", tmp_path / "rows.json") == 0
    assert len(load(tmp_path / "rows-val.json")) == 1


def test_all_faults_of_a_coco_file_at_once(tmp_path, capsys):
    content = json.loads(json.dumps(COCO))
    content["images"] += [{"id": 3, "file_name": "d.jpg"}, {"file_name": "e.jpg"}, 5]
    content["annotations"] += [{"image_id": 99, "caption": "X"}, {"image_id": 3}]
    content["annotations"].append({"image_id": 3, "caption": 5})
    message = faults(save(tmp_path / "in.json", content), tmp_path, capsys)
    for line in (
        "6 bad records",
        "image 3: an 'id' that an earlier image has, 3",
        "image 4: no 'id' among its keys (file_name)",
        "image 5: expected an object, got 5",
        "annotation 4: an 'image_id' that no image has, 99",
        "annotation 5: no 'caption' among its keys (image_id)",
        "annotation 6: expected a text or a list of texts in 'caption', got 5",
    ):
        assert line in message


# ---- pairs and tables


def test_pairs_by_caption_and_by_image(tmp_path):
    rows = [
        {"caption": "A one .", "image": "train/a.tif", "label_name": "bridge"},
        {"caption": "B one .", "image": "train/b.tif"},
        {"caption": "A two .", "image": "train/a.tif"},
    ]
    train = save(tmp_path / "rsitmd_train.json", rows)
    val = save(tmp_path / "x.jsonl", [{"image": "val/c.tif", "caption": ["C one .", "C two ."]}])
    expected = [
        record("train/a.tif", "A one .", "A two .", split="train"),
        record("train/b.tif", "B one .", split="train"),
        record("val/c.tif", "C one .", "C two .", split="val"),
    ]
    assert imported([train, val], tmp_path / "en.json") == expected
    plain = imported([train, val], tmp_path / "en.json", "--no-split")
    assert all(set(row) == {"imged_id", "caption"} for row in plain)


def test_keys_of_pairs_that_are_named_otherwise(tmp_path):
    source = save(tmp_path / "in.json", [{"photo_id": "a.jpg", "words": ["A ."], "text": "no"}])
    options = ("--layout", "pairs", "--image-column", "photo_id", "--caption-column", "words")
    assert imported(source, tmp_path / "en.json", *options) == [record("a.jpg", "A .")]


def test_faults_of_pairs(tmp_path, capsys):
    rows = [{"image": "a.jpg", "caption": "A .", "split": "train"}]
    rows += [{"image": "a.jpg", "caption": "B .", "split": "val"}, {"image": 5, "caption": "A ."}]
    rows += [{"caption": "A ."}, {"image": "b.jpg", "caption": [1]}, 7]
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    for line in (
        "5 bad records",
        "record 1: another 'split' than an earlier row of a.jpg",
        "record 2: expected a path or an address in 'image', got 5",
        "record 3: no 'image' among its keys (caption)",
        "record 4: expected a text or a list of texts in 'caption', got 1",
        "record 5: expected an object, got 7",
    ):
        assert line in message


CSV = {
    ",": 'filename,caption,split\na.jpg,"A , ""big"" lake .",train\nb.jpg,"B\nC .",val\n',
    ";": 'File Name;Captions;split\na.jpg;A , """big""" lake .;train\nb.jpg;\'B C .\';val\n',
}


def test_a_csv_with_quotes_and_line_breaks(tmp_path):
    source = tmp_path / "in.csv"
    source.write_bytes(b"\xef\xbb\xbf" + CSV[","].replace("\n", "\r\n").encode())
    assert imported(source, tmp_path / "en.json") == [
        record("a.jpg", 'A , "big" lake .', split="train"),
        record("b.jpg", "B\nC .", split="val"),
    ]
    assert call(transform, "--input", source) == 0
    assert (tmp_path / "in-en.json").read_bytes() == (tmp_path / "en.json").read_bytes()


def test_columns_of_several_captions_lists_in_cells_and_addresses(tmp_path):
    source = tmp_path / "in.tsv"
    source.write_text("Image_Path\tcaption_1\tcaption_2\nx/a.jpg\tA .\tB .\n")
    assert imported(source, tmp_path / "en.json") == [record("x/a.jpg", "A .", "B .")]
    # as pandas writes a list of Python, and one of NumPy
    source = tmp_path / "in.csv"
    source.write_text("path|captions\na.jpg|['A \"x\" .', \"B's .\"]\nb.jpg|['A .' 'B .']\n")
    assert imported(source, tmp_path / "en.json") == [
        record("a.jpg", 'A "x" .', "B's ."),
        record("b.jpg", "A .", "B ."),
    ]
    source.write_text("text,url\nA .,https://host/x/a.jpg?size=3\n")
    assert imported(source, tmp_path / "en.json") == [
        record("a.jpg", "A .", url="https://host/x/a.jpg?size=3")
    ]
    source.write_text("text,url\nA .,https://host/x/a.jpg\nB .,https://host/y/a.jpg\n")
    imported(source, tmp_path / "en.json", status=1)


@pytest.mark.parametrize("content", ("", "\n", "\ufeff", "\n\na.jpg,A .\n", ",,\n"))
@pytest.mark.parametrize("suffix", (".csv", ".tsv"))
def test_a_table_without_names_of_columns_says_so(tmp_path, capsys, content, suffix):
    source = tmp_path / f"set{suffix}"
    source.write_text(content)
    message = faults(source, tmp_path, capsys)
    assert f"set{suffix} has no columns: it is empty" in message and message.count("\n") == 1


@pytest.mark.parametrize("layout", ("csv", "coco", "texts"))
def test_a_chinese_file_is_checked_against_a_set_in_its_layout(tmp_path, layout):
    if layout == "csv":
        source = tmp_path / "set.csv"
        source.write_text("filename,caption\na.jpg,Two lakes .\na.jpg,A boat .\n")
    elif layout == "coco":
        pictures = [{"id": 1, "file_name": "a.jpg"}]
        captions = [
            {"id": n, "image_id": 1, "caption": c}
            for n, c in enumerate(("Two lakes .", "A boat ."))
        ]
        source = save(tmp_path / "set.json", {"images": pictures, "annotations": captions})
    else:
        source = tmp_path / "set"
        source.mkdir()
        (source / "train_caps.txt").write_text("Two lakes .\nA boat .\n")
        (source / "train_filename.txt").write_text("a.jpg\na.jpg\n")
    assert existing.english_of(source) == {"a.jpg": "Two lakes .  A boat ."}
    zh = save(tmp_path / "zh.json", [{"imged_id": "a.jpg", "caption": "两个湖泊，有一艘船。"}])
    assert call(translation_en2zh, "--check", zh, "--input", source) == 0
    assert len(load(tmp_path / "zh-checked.json")) == 1


def test_faults_of_a_table(tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("path,caption\na.jpg,A .\nb.jpg\nc.jpg,C .,more\n,D .\n")
    message = faults(source, tmp_path, capsys)
    assert "line 3: expected 2 columns, got 1" in message
    assert "line 4: expected 2 columns, got 3" in message
    assert "line 5: expected a path or an address in 'path', got ''" in message
    source.write_text("a,b\n1,2\n")
    message = faults(source, tmp_path, capsys)
    assert "its columns are a, b; name the one of images by --image-column and of" in message
    message = faults(source, tmp_path, capsys, "--image-column", "c", "--caption-column", "b")
    assert "images by --image-column c" in message


def test_parquet(tmp_path, capsys, monkeypatch):
    import sys

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = {"filename": ["a.jpg", "b.jpg"], "captions": [["A .", "B ."], ["C ."]], "x": [1, 2]}
    source = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table(table), source)
    expected = [record("a.jpg", "A .", "B ."), record("b.jpg", "C .")]
    assert imported(source, tmp_path / "en.jsonl") == expected
    held = {"image": [{"bytes": b"x", "path": None}], "text": ["A ."]}
    parquet.write_table(pyarrow.table(held), source)
    assert "row 0: expected the bytes of an image in 'image', got b'x'" in faults(
        source, tmp_path, capsys
    )
    source.write_bytes(source.read_bytes()[:-9])
    assert "is no Parquet file, or not whole" in faults(source, tmp_path, capsys)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in faults(source, tmp_path, capsys)


# ---- text files


@pytest.mark.parametrize("each", (1, 5))
def test_captions_and_names_in_text_files(tmp_path, each):
    """AMFMN's: the name once for five captions (train) or once for each (test)."""
    captions = [f"Lake {number} ." for number in range(10)]
    captions[3] = ""
    names = ["a.jpg", "b.jpg"] if each == 5 else ["a.jpg"] * 5 + ["b.jpg"] * 5
    (tmp_path / "test_caps.txt").write_text("\n".join(captions) + "\n")
    (tmp_path / "test_filename.txt").write_text("\n".join(names) + "\n")
    expected = [
        record("a.jpg", *captions[:3], captions[4], split="test"),
        record("b.jpg", *captions[5:], split="test"),
    ]
    assert imported(tmp_path / "test_caps.txt", tmp_path / "en.json") == expected
    (tmp_path / "train_caps.txt").write_text("Sea .\n" * 5)
    (tmp_path / "train_filename.txt").write_text("c.jpg\n")
    assert imported(tmp_path, tmp_path / "en.json") == [
        *expected,
        record("c.jpg", *["Sea ."] * 5, split="train"),
    ]


def test_both_text_files_of_a_set_are_one_input(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / f"{split}_caps.txt").write_text(f"A {split} .\n")
        (tmp_path / f"{split}_filename.txt").write_text(f"{split}.jpg\n")
    files = [tmp_path / f"{split}_{kind}.txt" for kind in ("filename", "caps") for split in
             ("train", "val")]  # fmt: skip
    expected = [record(f"{split}.jpg", f"A {split} .", split=split) for split in ("train", "val")]
    for options in ((), ("--layout", "texts")):
        assert imported(files, tmp_path / "en.json", *options) == expected
    # those of no captions among them
    message = faults([files[0], files[2], files[1]], tmp_path, capsys)
    assert "val_filename.txt: a file of captions is called like train_caps.txt" in message


def test_text_files_that_do_not_go_together(tmp_path, capsys):
    (tmp_path / "train_caps.txt").write_text("A .\nB .\nC .\n")
    message = faults(tmp_path, tmp_path, capsys)
    assert "the file names of its captions are missing; expected train_filename.txt" in message
    (tmp_path / "train_filename.txt").write_text("a.jpg\nb.jpg\n")
    message = faults(tmp_path, tmp_path, capsys)
    assert "got 3 captions, train_filename.txt 2 names" in message


# ---- dialogues

ROUNDS = [
    [("图中有什么？", "一个湖。")],
    [("Is there\na lake?", "Yes.\n\nOne."), ("几个？", "一个。")],
    [("<b>多少</b>？", " 一 ")],
]


@pytest.mark.parametrize("form", exports.FORMATS)
def test_what_is_exported_comes_back_as_it_was(tmp_path, form):
    rows = [(f"images/{number % 2}.png", rounds) for number, rounds in enumerate(ROUNDS)]
    suffix = "jsonl" if form == "ms-swift" else "json"
    for split, part in (("train", rows[:2]), ("val", rows[2:])):
        exported = [exports.row(form, img, rounds) for img, rounds in part]
        save(tmp_path / f"set-{split}.{suffix}", exported)
    sources = [tmp_path / f"set-{split}.{suffix}" for split in ("train", "val")]
    imported(sources, tmp_path / "set.json")
    options = ("--image-root", ".", "--no-image-check", "--output", tmp_path / "rows.json")
    assert call(generate_prompt, "--input", tmp_path / "set.json", *options) == 0
    expected = [exports.row("remoteglm", img, rounds) for img, rounds in rows]
    assert load(tmp_path / "rows.json") == expected
    assert load(tmp_path / "rows-train.json") == expected[:2]
    assert load(tmp_path / "rows-val.json") == expected[2:]


def test_dialogues_of_other_tools(tmp_path, capsys):
    rows = [
        {"image": "a.png", "conversations": [
            {"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A lake."}]},
        {"images": ["b.png"], "messages": [
            {"role": "system", "content": "You see."},
            {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "B."}]},
        {"query": "<image>What?", "response": "C.", "history": [["Old?", "Yes."]], "images": ["c"]},
        {"instruction": "Say", "input": "it", "output": "D.", "images": ["d.png"]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ]  # fmt: skip
    rows[2]["query"] = "What?"
    source = save(tmp_path / "in.json", rows)
    assert call(transform, "--input", source) == 0
    found = load(tmp_path / "in-rows.json")
    spoken = [[turn["content"] for turn in row["conversations"]] for row in found]
    assert [row["imged_id"] for row in found] == ["a.png", "b.png", "c", "d.png"]
    assert spoken == [["What?", "A lake."], ["What?", "B."], ["Old?", "Yes.", "What?", "C."],
                      ["Say\nit", "D."]]  # fmt: skip
    printed = capsys.readouterr()
    assert "4 records (no split 4), 5 rounds" in printed.out
    assert "1 rows with a system text, left out: 'b.png'" in printed.err
    assert "1 rows with no image, left out: record 4" in printed.err


def test_keys_of_rows_that_are_not_used_are_told_as_in_training(tmp_path, capsys):
    """In one line, whatever their number; the split is read."""
    plain = {"img": "a.png", "prompt": "Q?", "label": "A.", "id": 1, "split": "train"}
    turns = [{"role": "user", "content": "Q?", "loss": True}, {"role": "assistant", "content": "A"}]
    rows = [plain] * 5 + [{"img": "b.png", "messages": turns, "source": "x"}]
    rows += [{"img": "c.png", "Instruction": "Count", "Input": "ships", "Output": "2."}]
    made = imported(save(tmp_path / "in.json", rows), tmp_path / "rows.json")
    assert made[-1]["conversations"][0]["content"] == "Count\nships"
    said = capsys.readouterr().err
    assert (
        "6 rows with keys that are not used: id of 'a.png'; id of 'a.png'; id of 'a.png'; "
        "source, loss of turns of 'b.png'; and 2 more\n"
    ) in said
    assert "Input" not in said


def test_repeating_sentences_is_not_for_dialogues(tmp_path, capsys):
    source = save(tmp_path / "in.json", [{"img": "a.png", "prompt": "Q", "label": "A"}])
    assert "leave --fill and --dedupe out" in faults(source, tmp_path, capsys, "--fill")


def test_faults_of_dialogues(tmp_path, capsys):
    def row(*texts, **more):
        roles = ("user", "assistant") * 2
        turns = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        return {"image": "a.png", "messages": turns, **more}

    rows = [row("Q", "A"), row("Q"), row("Q", "<image>A"), row("<image><image>Q", "A"), 5]
    rows += [row("", "A"), row("Q", "A", images=["x", "y"], image=None), row("Q", None)]
    rows += [row("<ref>plane</ref>", "A"), {"image": "a.png", "prompt": "Q"}]
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    assert "9 bad records" in message
    for kind in (
        "record 1: a question without an answer",
        "2 records, markup of another tool in a text: record 2",
        ", <image>; record 8",
        ", <ref>",
        "record 3: has 2 places of images in a text; a row has one image",
        "record 4: expected an object, got 5",
        "record 5: conversations must alternate user, assistant with content; expected user, got",
        "record 6: images holds 2 images; a row has one",
        "record 7: conversations must alternate user, assistant with content; expected assistant",
        "record 9: has keys image, prompt; prompt and label must be non-empty texts, got nothing",
    ):
        assert kind in message


def test_rows_and_captions_are_merged_and_tasks_need_captions(tmp_path, capsys):
    save_images(tmp_path / "images", "0.png", "1.png")
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    own = save(tmp_path / "own.json", [{"imged_id": "0.png", "conversations": turns}] * 2)
    zh = save(tmp_path / "zh.json", [{"imged_id": "1.png", "caption": "湖。"}])
    options = ("--image-root", "images", "images", "--output", tmp_path / "rows.json")
    assert call(generate_prompt, "--input", own, zh, *options) == 0
    rows = load(tmp_path / "rows.json")
    assert [row["label"] for row in rows] == ["A", "A", "湖。"]
    assert call(generate_prompt, "--input", own, "--tasks", "scene") == 1
    assert "bring their own questions: leave --tasks out" in capsys.readouterr().err
    save(own, [{"imged_id": "0.png", "conversations": turns[:1]}, {"imged_id": "0.png"}])
    assert call(generate_prompt, "--input", own) == 1
    message = capsys.readouterr().err
    assert "record 0 ('0.png'): a question without an answer" in message
    assert "record 1 ('0.png'): no 'conversations' among its keys" in message


# ---- WebDataset


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_captions_in_shards(tmp_path):
    shard(tmp_path / "s-000.tar", [("a.jpg", b"x"), ("a.txt", "湖 A .".encode()), ("a.json", {})])
    shard(tmp_path / "s-001.tar", [("b.jpg", b"y"), ("b.json", {"caption": ["B .", "C ."]})])
    expected = [record("s-000.tar/a.jpg", "湖 A ."), record("s-001.tar/b.jpg", "B .", "C .")]
    assert imported(tmp_path, tmp_path / "en.json") == expected
    assert imported(tmp_path / "s-001.tar", tmp_path / "en.json") == expected[1:]
    assert not list(tmp_path.glob("*.index"))


def test_dialogues_in_shards(tmp_path):
    rows = [{"prompt": "Q", "label": "A"}, {"prompt": "R", "label": "B"}]
    shard(tmp_path / "s.tar", [("a.png", b"x"), ("a.json", {"rows": rows})])
    assert call(transform, "--input", tmp_path / "s.tar") == 0
    found = load(tmp_path / "s-rows.json")
    assert [row["imged_id"] for row in found] == ["s.tar/a.png"] * 2
    assert [row["conversations"][1]["content"] for row in found] == ["A", "B"]


def test_all_faults_of_a_shard_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data.layouts.webdataset.MOST_TEXT", 100)
    text = ("caption", "A .")
    members = [
        ("ok.jpg", b"x"), ("ok.json", dict([text])),
        ("a.jpg", b"x"), ("a.jpg", b"x"), ("a.json", dict([text])),
        ("ok.png", b"x"), ("ok.txt", b"A ."),
        ("../b.jpg", b"x"), ("../b.txt", b"A ."),
        ("c.txt", b"A ."),
        ("d.jpg", b"x"), ("d.json", b"{"),
        ("e.jpg", b"x"), ("e.txt", b"x" * 101),
        ("f.jpg", b"x"), ("f.json", {"x": 1}),
        ("g.jpg", b"x"), ("g.txt", b"\xff"),
        ("h.jpg", b"x"), ("h.png", b"x"), ("h.txt", b"A ."),
    ]  # fmt: skip
    path = shard(tmp_path / "s.tar", members)
    path.write_bytes(path.read_bytes()[: len(members) * 1024 - 300])
    message = faults(path, tmp_path, capsys)
    for kind in (
        "a member that is there twice, 'a.jpg'",
        "a key that came before, 'ok'",
        "a member that lies outside the tar's folder, '../b.jpg'",
        "expected one image of a key, 'c' has ['.txt']",
        "a text that cannot be read, of 'd'",
        "a member that has more than 100 bytes, too many for a text, 'e.txt'",
        "no 'caption' among its keys (x)",
        "a text that cannot be read, of 'g'",
        "a member that the tar",
    ):
        first, _, second = kind.partition(", ")
        assert first in message and second in message
    assert "s.tar member 4" in message or "s.tar member 3" in message


# ---- class folders


def test_class_folders_give_scene_rows(tmp_path, capsys):
    root = tmp_path / "UCMerced"
    for folder in ("storagetanks", "DenseResidential", "volcano", "农田"):
        save_images(root / folder, f"{folder}01.png")
    (root / "storagetanks" / "Thumbs.db").write_bytes(b"x")
    assert call(transform, "--input", root) == 1
    message = capsys.readouterr().err
    assert "no Chinese known for the class 'volcano': add it to CLASSES" in message
    # no split, though its name begins like one
    (root / "volcano").rename(root / "train_station")
    assert call(transform, "--input", root, "--split", "50/25/25") == 0
    assert "1 rows with a name of no image, left out" in capsys.readouterr().err
    found = load(tmp_path / "UCMerced-rows.json")
    answers = {row["imged_id"].partition("/")[0]: row["conversations"][1]["content"]
               for row in found}  # fmt: skip
    assert answers == {"storagetanks": "储罐。", "DenseResidential": "密集住宅区。",
                       "train_station": "火车站。", "农田": "农田。"}  # fmt: skip
    assert Counter(row["split"] for row in found) == {"train": 2, "val": 1, "test": 1}
    options = ("--input", tmp_path / "UCMerced-rows.json", "--image-root", "UCMerced")
    assert call(generate_prompt, *options, "--output", tmp_path / "rows.json") == 0
    rows = load(tmp_path / "rows-train.json")
    assert len(rows) == 2 and all(
        "场景" in row["prompt"] or "区域" in row["prompt"] for row in rows
    )


def test_splits_above_class_folders_and_images_out_of_place(tmp_path, capsys):
    save_images(tmp_path / "set" / "train" / "beach", "1.png")
    save_images(tmp_path / "set" / "Validation" / "beach", "2.png")
    found = imported(tmp_path / "set", tmp_path / "rows.json")
    assert {row["imged_id"]: row["split"] for row in found} == {
        "train/beach/1.png": "train",
        "Validation/beach/2.png": "val",
    }
    save_images(tmp_path / "set", "3.png")
    imported(tmp_path / "set", tmp_path / "other.json", status=1)
    message = capsys.readouterr().err
    assert "3.png: expected its class folder above an image, got 0 folders" in message


def test_a_folder_above_the_class_folders_names_theirs(tmp_path, capsys):
    root = tmp_path / "UCMerced_LandUse"
    for folder in ("beach", "river"):
        save_images(root / "Images" / folder, "1.png")
    (root / "readme.txt").write_text("x")
    message = faults(root, tmp_path, capsys)
    assert f"class folders one level down: give --input {root}/Images\n" in message
    assert message.count("\n") == 1
    assert len(imported(root / "Images", tmp_path / "rows.json")) == 2


def test_classes_of_the_published_sets_are_known():
    names = (
        # UCMerced, RESISC45
        "agricultural airplane baseballdiamond beach buildings chaparral denseresidential forest "
        "freeway golfcourse harbor intersection mediumresidential mobilehomepark overpass "
        "parkinglot river runway sparseresidential storagetanks tenniscourt airport "
        "basketball_court bridge church circular_farmland cloud commercial_area desert "
        "ground_track_field industrial_area island lake meadow mountain palace railway "
        "railway_station rectangular_farmland roundabout sea_ice ship snowberg stadium terrace "
        "thermal_power_station wetland "
        # AID, EuroSAT, RSSCN7
        "BareLand BaseballField Center Park Parking Playground Pond Port Resort School Square "
        "Viaduct AnnualCrop HerbaceousVegetation Highway Pasture PermanentCrop Residential "
        "SeaLake aGrass bField cIndustry dRiverLake eForest fResident gParking"
    )
    assert not [name for name in names.split() if not classes.scene_of(name)]


# ---- choice


def test_a_sample_is_drawn_by_image_and_grows(tmp_path):
    rows = [
        {"image": f"{number}.png", "caption": f"{letter} ."}
        for number in range(40)
        for letter in "AB"
    ]
    random.Random(0).shuffle(rows)
    source = save(tmp_path / "in.json", rows)
    few = imported(source, tmp_path / "a.json", "--sample", "10")
    assert len(few) == 10 and all(len(row["caption"]) == 10 for row in few)
    more = imported(source, tmp_path / "a.json", "--sample", "11")
    assert {row["imged_id"] for row in few} < {row["imged_id"] for row in more}
    other = imported(source, tmp_path / "a.json", "--sample", "10", "--seed", "1")
    assert other != few
    save(source, rows[::-1])
    again = imported(source, tmp_path / "a.json", "--sample", "10")
    assert {row["imged_id"] for row in again} == {row["imged_id"] for row in few}


def test_a_split_keeps_copies_of_an_image_together(tmp_path, capsys):
    names = [f"{number}.png" for number in range(50)]
    source = save(tmp_path / "in.json", [image(name) for name in names])
    assert call(transform, "--input", source, "--split", "80/10/10") == 1
    message = capsys.readouterr().err
    assert "50 of 50 are not in" in message and "name their folder by --images" in message
    folder = tmp_path / "pictures"
    save_images(folder, *names)
    for number in range(10):
        (folder / f"{40 + number}.png").write_bytes((folder / f"{number}.png").read_bytes())
    options = ("--split", "80/10/10", "--images", folder)
    found = imported(source, tmp_path / "en.json", *options)
    splits = {row["imged_id"]: row["split"] for row in found}
    sizes = Counter(splits.values())
    assert 39 <= sizes["train"] <= 41 and min(sizes["val"], sizes["test"]) >= 4
    assert all(splits[f"{n}.png"] == splits[f"{40 + n}.png"] for n in range(10))
    assert imported(source, tmp_path / "en.json", *options, "--seed", "1") != found
    sampled = imported(source, tmp_path / "en.json", *options, "--sample", "20")
    assert 15 <= sum(row["split"] == "train" for row in sampled) <= 17 and len(sampled) == 20
    save(source, [image(name, "train") for name in names])
    assert call(transform, "--input", source, *options) == 1
    assert "has splits of its own (50 images, such as 0.png)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    (
        (("--split", "80/20"), "80/20: expected percents such as 80/10/10"),
        (("--split", "80/10/20"), "100 in all"),
        (("--split", "a/b/c"), "expected percents"),
        (("--sample", "0"), "0: expected a whole number from 1 on"),
        (("--images", "x"), "give --split as well"),
        (("--input", "a", "b"), "2 inputs are merged into one file: name it by --output"),
        (("--layout", "xml"), "coco"),
    ),
)
def test_options_of_choice_and_layout_that_make_no_sense(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        transform.main(list(options))
    assert words in capsys.readouterr().err


def test_inputs_of_several_layouts_are_refused(tmp_path, capsys):
    coco = save(tmp_path / "a.json", COCO)
    other = save(tmp_path / "b.json", [image("x.jpg")])
    message = faults([coco, other], tmp_path, capsys)
    assert "of several layouts" in message and "b.json (karpathy)" in message


def test_forcing_a_layout_names_what_is_missing(tmp_path, capsys):
    source = save(tmp_path / "in.json", [{"picture": "a.jpg", "words": "A ."}])
    message = faults(source, tmp_path, capsys, "--layout", "pairs")
    assert "no 'caption' among its keys (picture, words)" in message
    message = faults(save(source, [1]), tmp_path, capsys, "--layout", "coco")
    assert "expected an object with 'images' and 'annotations'" in message
    message = faults(source, tmp_path, capsys, "--layout", "classes")
    assert "is no folder" in message
    message = faults(source, tmp_path, capsys, "--layout", "webdataset")
    assert "is no plain tar" in message


# ---- Arrow


def picture(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(file, "PNG")
    return file.getvalue()


def write_arrow(path, rows, form="new_stream"):
    """Rows of XLRS-Bench_caption_zh's columns, as datasets saves them: images are structs."""
    pyarrow = pytest.importorskip("pyarrow")
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"id": pyarrow.int64(), "path": pyarrow.string(), "image": image}
    columns |= {"question": pyarrow.string(), "answer": pyarrow.list_(pyarrow.string())}
    schema = pyarrow.schema(columns | {"category": pyarrow.string()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with getattr(pyarrow.ipc, form)(str(path), schema) as writer:
        for start in range(0, len(rows), 2):
            batch = pyarrow.RecordBatch.from_pylist(rows[start : start + 2], schema)
            writer.write_batch(batch)
    return path


def xlrs_row(number, color, *answers):
    return {
        "id": number,
        "path": f"DOTA/P{number:04d}.png",
        "image": {"bytes": color if isinstance(color, bytes) else picture(color), "path": None},
        "question": "Describe the image in detail.",
        "answer": list(answers),
        "category": "caption",
    }


@pytest.fixture
def xlrs(tmp_path):
    """Two Arrow files of three rows: the folder as it is downloaded."""
    folder = tmp_path / "XLRS-Bench_caption_zh" / "train"
    rows = [
        xlrs_row(1, "red", "这幅图像展示了一座海港。", ""),
        xlrs_row(2, "green", "图中有一片农田", "农田旁有一条道路。"),
        xlrs_row(3, "blue", "图中有一条河流。"),
    ]
    write_arrow(folder / "data-00000-of-00002.arrow", rows[:2])
    write_arrow(folder / "data-00001-of-00002.arrow", rows[2:], "new_file")
    # what datasets has computed of them
    write_arrow(folder / "cache-0123456789abcdef.arrow", rows)
    (folder / "state.json").write_text('{"_split": "train"}')
    return folder.parent, rows


@pytest.mark.parametrize("inside", ("", "train"))
def test_arrow_files_become_evaluation_rows(xlrs, tmp_path, inside):
    """Through all stages: the images are files, the captions as they are, none is to train on."""
    folder, rows = xlrs
    zh, out = tmp_path / "xlrs-zh.json", tmp_path / "out"
    names = [f"XLRS-Bench_caption_zh/{number:06d}.png" for number in range(3)]
    assert imported(folder / inside, out / "xlrs-en.json") == [
        record(names[0], "这幅图像展示了一座海港。"),
        record(names[1], "图中有一片农田", "农田旁有一条道路。"),
        record(names[2], "图中有一条河流。"),
    ]
    for name, row in zip(names, rows):
        assert (out / "images" / name).read_bytes() == row["image"]["bytes"]
    files = ("--input", out / "xlrs-en.json", "--output", zh)
    assert call(translation_en2zh, *files, "--no-gate") == 0
    files = ("--input", zh, "--output", out / "xlrs-prompt.json")
    assert call(generate_prompt, *files) == 0
    labels = ["这幅图像展示了一座海港。", "图中有一片农田。农田旁有一条道路。", "图中有一条河流。"]
    made = load(out / "xlrs-prompt.json")
    assert [(row["img"], row["label"]) for row in made] == [
        (f"images/{name}", label) for name, label in zip(names, labels)
    ]
    assert not list(out.glob("*-train.json"))


def test_splits_of_arrow_files_and_drawn_ones(xlrs, tmp_path):
    folder, rows = xlrs
    write_arrow(folder / "test" / "data-00000-of-00001.arrow", [xlrs_row(4, "red", "一座海港。")])
    made = imported(folder, tmp_path / "out" / "en.json")
    assert [record["split"] for record in made] == ["test", "train", "train", "train"]
    one = folder / "train" / "data-00000-of-00002.arrow"
    made = imported(one, tmp_path / "one" / "en.json", "--split", "50/0/50", "--sample", "2")
    assert sorted(record["split"] for record in made) == ["test", "train"]
    copies = write_arrow(
        tmp_path / "copies.arrow", [xlrs_row(k, "red", "海港。") for k in range(4)]
    )
    made = imported(copies, tmp_path / "four" / "en.json", "--split", "50/0/50")
    assert len({record["split"] for record in made}) == 1


def test_faults_of_arrow_files_write_nothing(xlrs, tmp_path, capsys):
    folder, rows = xlrs
    faulty = [rows[0], xlrs_row(5, b"<html>", "海港。"), rows[1]]
    faulty.append({**rows[1], "image": {"bytes": None, "path": None}})
    source = write_arrow(tmp_path / "faulty.arrow", faulty)
    message = faults(source, tmp_path, capsys)
    assert "faulty.arrow: 2 bad records" in message and not (tmp_path / "images").exists()
    assert "row 1" in message and "the bytes of an image in 'image', got b'<html>'" in message
    assert "row 3: expected a path or an address in 'image'" in message

    (folder / "train" / "data-00001-of-00002.arrow").unlink()
    write_arrow(folder / "train" / "data-00002-of-00003.arrow", rows)
    words = "files of the set are missing (train/data-00001-of-00002.arrow): download them"
    assert words in faults(folder, tmp_path, capsys)
    cut = tmp_path / "cut.arrow"
    whole = (folder / "train" / "data-00000-of-00002.arrow").read_bytes()
    for content, words in (
        (whole[:-500], "no Arrow file, or not whole: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "no Arrow file"),
    ):
        cut.write_bytes(content)
        assert words in faults(cut, tmp_path, capsys)
    other = write_arrow(tmp_path / "other.arrow", rows)
    options = ("--caption-column", "text")
    assert "name the one of captions by --caption-column text" in faults(
        other, tmp_path, capsys, *options
    )


def held(color, form="struct"):
    """An image as Parquet files hold it."""
    content = picture(color)
    as_struct = {"bytes": content, "path": f"{color}.png"}
    return {"struct": as_struct, "binary": content, "list": [as_struct]}[form]


def write_parquet(path, columns, rows_each=2):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_each)
    return path


@pytest.mark.parametrize("form", ("struct", "binary", "list"))
def test_parquet_files_with_images_inside(tmp_path, form):
    """As the Hub has them: a list of captions or rows of one image, the split in the name."""
    colors = ["red", "green", "blue"]
    pictures = [held(color, form) for color in colors]
    folder, out = tmp_path / "sets" / "ucm", tmp_path / "out"
    captions = [["Red .", "R ."], ["Green ."], ["Blue ."]]
    columns = {"image": pictures, "captions": captions, "width": [64] * 3}
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", columns)
    columns = {"caption": ["A .", "B .", "C ."], "image": [pictures[k] for k in (1, 0, 1)]}
    for number, last in enumerate(("", "-0123456789abcdef")):
        name = f"train-{number:05d}-of-00002{last}.parquet"
        write_parquet(folder / "data" / name, columns)
    names = [f"ucm/{number:06d}.png" for number in (0, 1, 2, 3, 4)]
    expected = [
        record(names[0], "Red .", "R .", split="test"),
        record(names[1], "Green .", split="test"),
        record(names[2], "Blue .", split="test"),
        record(names[3], "A .", "C .", "A .", "C .", split="train"),
        record(names[4], "B .", "B .", split="train"),
    ]
    assert imported(folder, out / "en.json") == expected
    for name, color in zip(names, [*colors, "green", "red"]):
        assert (out / "images" / name).read_bytes() == picture(color)
    # again, and of one file by each way
    assert imported(folder, out / "en.json") == expected
    one = folder / "data" / "test-00000-of-00001.parquet"
    for options in ((), ("--layout", "table"), ("--layout", "arrow")):
        made = imported(one, tmp_path / "one" / "en.json", *options)
        assert [row["caption"] for row in made] == [row["caption"] for row in expected[:3]]
    options = ("--sample", "2", "--split", "50/0/50")
    made = imported(tmp_path / "sets" / "ucm" / "data", tmp_path / "two.json", *options, status=1)
    alone = write_parquet(tmp_path / "alone" / "train-00000-of-00001.parquet", columns)
    made = imported(alone.parent, tmp_path / "three" / "en.json", *options)
    assert sorted(row["split"] for row in made) == ["test", "train"]


def test_sentences_of_karpathy_in_a_table(tmp_path):
    columns = {"filename": ["a.jpg"], "sentences": [[{"raw": "A ."}, {"raw": "B ."}]]}
    source = write_parquet(tmp_path / "set.parquet", {**columns, "split": ["val"]})
    assert imported(source, tmp_path / "en.json") == [record("a.jpg", "A .", "B .", split="val")]


def test_folders_of_parquet_files_with_paths(tmp_path):
    """As the Hub converts sets: no split in the names but in the folders; one image in two rows."""
    folder = tmp_path / "default"
    columns = {"image": ["a.jpg", "b.jpg", "a.jpg"], "caption": ["A .", "B .", "C ."]}
    write_parquet(folder / "train" / "0000.parquet", columns)
    columns = {"image": ["c.jpg"], "caption": ["D ."]}
    write_parquet(folder / "validation" / "0000.parquet", columns)
    assert imported(tmp_path, tmp_path / "en.json") == [
        record("a.jpg", "A .", "C .", split="train"),
        record("b.jpg", "B .", split="train"),
        record("c.jpg", "D .", split="val"),
    ]


def test_faults_of_parquet_files_write_nothing(tmp_path, capsys):
    folder = tmp_path / "set" / "data"
    pictures = [held("red"), {"bytes": b"<html>", "path": None}, None, held("blue")]
    columns = {"image": pictures, "caption": ["A .", "B .", "C .", "D ."]}
    first = write_parquet(folder / "train-00000-of-00003.parquet", columns)
    message = faults(folder, tmp_path, capsys)
    words = "2 files of the set are missing (data/train-00001-of-00003.parquet): download them"
    assert words in message
    first.rename(folder / "train.parquet")
    columns["image"][1:3] = [[held("red"), held("blue")], [held("green")]]
    columns["image"] = [columns["image"][k] if k in (1, 2) else [pictures[k]] for k in range(4)]
    write_parquet(folder / "test.parquet", columns)
    message = faults(tmp_path / "set", tmp_path, capsys)
    assert "3 bad records" in message and not (tmp_path / "images").exists()
    assert "test.parquet row 1: expected a path or an address in 'image'" in message
    assert "train.parquet row 1: expected the bytes of an image in 'image', got b'<htm" in message
    assert "train.parquet row 2: expected a path or an address in 'image', got None" in message
    write_parquet(folder / "test.parquet", {"image": [held("red")], "words": ["A ."]})
    assert "name the one of captions by --caption-column" in faults(folder, tmp_path, capsys)
    (folder / "test.parquet").write_bytes(first.with_name("train.parquet").read_bytes()[:200])
    assert "test.parquet: row 0: " in faults(folder, tmp_path, capsys)
    (folder / "test.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "a Git LFS pointer" in faults(folder, tmp_path, capsys)


def test_an_image_of_another_set_is_not_replaced(tmp_path, capsys):
    """Uncompressed images all have one size."""
    columns = {"image": [held("red")], "caption": ["A ."]}
    source = write_parquet(tmp_path / "a" / "set.parquet", columns)
    imported(source, tmp_path / "one.json")
    [image] = (tmp_path / "images" / "set").iterdir()
    other = image.read_bytes()[::-1]
    image.write_bytes(other)
    message = faults(source, tmp_path, capsys)
    assert "is there already and another image than the one to be written" in message
    assert image.read_bytes() == other and message.count("\n") == 1


def test_images_of_a_parquet_file_are_not_all_in_memory(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    draw = random.Random(0)
    pictures = []
    for _ in range(80):
        pictures.append({"bytes": b"\x89PNG" + draw.randbytes(100_000), "path": None})
    # one image twice: the rows of an image are gathered
    columns = {"image": [*pictures, pictures[0]], "caption": ["A ."] * 81}
    source = write_parquet(tmp_path / "set.parquet", columns, rows_each=5)
    del pictures, columns
    rows, before, held_bytes = open_files([source]).read(), pyarrow.total_allocated_bytes(), []
    for _ in rows:
        held_bytes.append(pyarrow.total_allocated_bytes() - before)
    assert len(held_bytes) == 80 and max(held_bytes) < 4e6


@pytest.mark.slow
def test_sets_that_datasets_has_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [], "question": [], "answer": []}
    for color in ("red", "green", "blue"):
        columns["image"].append(Image.new("RGB", (20, 30), color))
        columns["question"].append("Describe the image in detail.")
        columns["answer"].append([f"一片{color}。"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.List(datasets.Value("string")),
        }
    )
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.save_to_disk(tmp_path / "set" / "train", num_shards=2)
    made = imported(tmp_path / "set", tmp_path / "out" / "en.json")
    assert [record["caption"] for record in made] == [
        "一片red。  ",
        "一片green。  ",
        "一片blue。  ",
    ]
    with Image.open(tmp_path / "out" / "images" / made[2]["imged_id"]) as shown:
        assert shown.size == (20, 30) and shown.getpixel((0, 0)) == (0, 0, 255)


# ---- what else is wrong with files


@pytest.fixture
def usual_limit():
    """What a cell may have unless somebody in this process has changed it."""
    limit = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(limit)


def test_tables_lose_no_line_to_a_quote_and_no_column_to_its_name(tmp_path, capsys, usual_limit):
    source = tmp_path / "in.csv"
    long = "lake " * 30_000
    text = f'image,caption\na.jpg,a lake\nb.jpg,{long}\nc.jpg\nd.jpg,x\0y\ne.jpg,"a boat\nf.jpg,z\n'
    source.write_text(text)
    message = faults(source, tmp_path, capsys)
    assert "4 bad records: line 2: not CSV: field larger than" in message
    assert (
        "line 4: expected 2 columns, got 1; line 5: expected a text in 'caption', no zero"
        in message
    )
    assert "line 5: not CSV: unexpected end of data" in message
    source.write_text("image,caption,caption\na.jpg,a lake,a boat\n")
    assert "columns of the same name, rename one: caption" in faults(source, tmp_path, capsys)


def test_lines_that_are_no_json_are_named_in_every_layout(tmp_path, capsys):
    for good in ('{"image": "a.jpg", "caption": "A lake ."}',
                 '{"img": "a.jpg", "prompt": "q?", "label": "a"}',
                 '{"filename": "a.jpg", "sentences": [{"raw": "A lake ."}]}'):  # fmt: skip
        source = tmp_path / "in.jsonl"
        source.write_text(f"{good}\n{{bad\n[5]\n{good[:-9]}")
        message = faults(source, tmp_path, capsys)
        assert "3 bad records: line 2: not JSON from column 2" in message
        assert "line 3: expected an object, got" in message
        assert "line 4: not JSON from column" in message
        assert "the file ends in the middle: make it again, or copy it whole" in message


def test_all_tars_of_a_folder_are_said(tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    shard(folder / "a.tar", [("a.jpg", b"x"), ("b.jpg", b"x"), ("b.txt", b"A lake .")])
    (folder / "b.tar").write_text("<html>")
    whole = shard(folder / "c.tar", [("a.jpg", b"x" * 900), ("a.txt", b"A lake .")])
    whole.write_bytes(whole.read_bytes()[:1800])
    message = faults(folder, tmp_path, capsys)
    assert "a.tar member 1: no .json or .txt with the caption beside an image" in message
    assert "b.tar: no tar that can be read" in message and "an HTML page of 6 bytes" in message
    assert "c.tar member 2: a member that the tar is damaged or cut short" in message


@pytest.mark.parametrize(
    "text",
    (
        "Il y a plusieurs avions sur la piste .",
        "Viele Flugzeuge stehen neben dem Gebäude auf dem Flughafen .",
        "Hay muchos aviones en el aeropuerto .",
        "空港に飛行機があります。",
        "Много самолётов .",
    ),
)
def test_captions_in_another_language_are_named(tmp_path, capsys, text):
    rows = [
        {"imged_id": "a.jpg", "caption": "La Paz stadium"},
        {"imged_id": "b.jpg", "caption": text},
    ]
    rows += [{"imged_id": "c.jpg", "caption": "Die casting plants , no planes"}]
    source = save(tmp_path / "en.json", rows)
    assert call(translation_en2zh, "--input", source, "--dry-run") == 1
    message = capsys.readouterr().err
    assert "1 of 3 captions are neither English nor Chinese: record 1 (b.jpg: " in message


RUSSIAN = "Много самолётов стоит на аэродроме ."


def test_sentences_in_another_language_are_told_at_import(tmp_path, capsys):
    five = [f"There are {number} lakes ." for number in range(5)]
    images = [image("a.jpg", None, five), image("b.jpg", None, [*five, RUSSIAN])]
    images += [image("c.jpg", None, ["La Paz stadium", "Die casting plants , 3 ."])]
    images += [image("d.jpg", None, [five[0], "图中有一个湖泊。"])]
    images += [image("e.jpg", None, ["图中有一个湖泊。"])]
    source = save(tmp_path / "in.json", images)
    assert len(imported(source, tmp_path / "en.json")) == 5
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "warning: " in message
    words = "1 images with a sentence that is neither English nor Chinese: record 1 ('b.jpg': "
    assert words in message and "Много" in message
    assert "1 images with sentences in English and in Chinese: record 3 ('d.jpg': " in message
    options = ("--dataset", "demo", "--strict")
    assert words in faults(source, tmp_path / "x", capsys, *options)
    members = [("a.jpg", b"x"), ("a.txt", RUSSIAN.encode())]
    members += [("b.jpg", b"x"), ("b.json", {"caption": RUSSIAN})]
    imported(shard(tmp_path / "s.tar", members), tmp_path / "en.json")
    words = "2 images with a sentence that is neither English nor Chinese: record 0 ('s.tar/a.jpg'"
    message = capsys.readouterr().err
    assert words in message and "record 1 ('s.tar/b.jpg'" in message


def test_converted_images_stay_in_their_folder(tmp_path):
    (tmp_path / "x").mkdir()
    save_images(tmp_path / "x", "a.png")
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    rows = [{"imged_id": str(tmp_path / "x" / "a.png"), "conversations": turns}]
    rows += [{"imged_id": "../x/a.png", "conversations": turns}]
    for number, row in enumerate(rows):
        out = tmp_path / f"out{number}" / "rows.json"
        options = ("--image-root", ".", "--png", "png")
        files = ("--input", save(tmp_path / "own.json", [row]), "--output", out)
        assert call(generate_prompt, *files, *options) == 0
        [made] = out.parent.glob("png/**/*.png")
        assert [row["img"] for row in load(out)] == [made.relative_to(out.parent).as_posix()]
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a.png"]


ADVICE = (
    "; write the names relative to one folder of images, and name that to generate_prompt.py by "
    "--image-root\n"
)


@pytest.mark.parametrize("name", ("../../etc/passwd", "/etc/passwd", "C:/x.jpg", "a/../../b.jpg"))
@pytest.mark.parametrize("form", ("coco", "csv", "texts", "karpathy", "nwpu", "pairs"))
def test_captions_name_no_image_outside_of_their_folder(tmp_path, capsys, form, name):
    named = [{"filename": "a/b.jpg", "raw": "A ."}, {"filename": name, "raw": "B ."}]
    if form == "csv":
        source = tmp_path / "in.csv"
        source.write_text(f"image,caption\na/b.jpg,A .\n{name},B .\n")
    elif form == "texts":
        source = tmp_path / "in_caps.txt"
        source.write_text("A .\nB .\n")
        (tmp_path / "in_filename.txt").write_text(f"a/b.jpg\n{name}\n")
    elif form == "coco":
        pictures = [{"id": n, "file_name": one["filename"]} for n, one in enumerate(named)]
        captions = [{"image_id": n, "caption": one["raw"]} for n, one in enumerate(named)]
        source = save(tmp_path / "in.json", {"images": pictures, "annotations": captions})
    elif form == "karpathy":
        source = save(tmp_path / "in.json", [image("a/b.jpg"), image(name)])
    elif form == "nwpu":
        # within a folder ../ leads to the set's own
        named[1]["filename"] = name = "../../b.jpg"
        source = save(tmp_path / "in.json", {"lake": named})
    else:
        rows = [{"image": one["filename"], "caption": one["raw"]} for one in named]
        source = save(tmp_path / "in.json", rows)
    message = faults(source, tmp_path, capsys)
    assert "1 bad records: " in message
    assert "expected a file name within the image folder, got " in message
    assert message.endswith(ADVICE)
    # what the next stages read
    for script, caption in ((translation_en2zh, "A lake ."), (generate_prompt, "湖。")):
        records = save(tmp_path / "x.json", [{"imged_id": name, "caption": caption}])
        assert call(script, "--input", records, "--output", tmp_path / "out.json") == 1
        message = capsys.readouterr().err
        assert "expected a file name within the image folder, got " in message
        assert message.endswith(ADVICE)


def test_what_to_do_about_absolute_names_is_said_once_and_works(tmp_path, capsys):
    folder = tmp_path / "far" / "pictures"
    save_images(folder, *(f"{i}.png" for i in range(9)))
    images = [image(f"{folder}/{i}.png") for i in range(9)]
    message = faults(save(tmp_path / "in.json", images), tmp_path, capsys)
    assert message.count("--image-root") == 1 and message.endswith(ADVICE)

    captions = [{"imged_id": f"{i}.png", "caption": "湖。"} for i in range(9)]
    source = save(tmp_path / "zh.json", captions)
    options = ("--input", source, "--output", tmp_path / "rows.json", "--image-root", folder)
    assert call(generate_prompt, *options) == 0
    named = [row["img"] for row in load(tmp_path / "rows.json")]
    assert named == [f"{folder}/{i}.png" for i in range(9)]


def test_a_class_folder_has_no_links_out_of_it(tmp_path, capsys):
    root = tmp_path / "set"
    save_images(root / "lake", "a.jpg")
    (root / "lake" / "b.jpg").symlink_to("a.jpg")
    assert len(imported(root, tmp_path / "rows.json")) == 2
    (root / "lake" / "c.jpg").symlink_to("/etc/passwd")
    message = faults(root, tmp_path, capsys)
    words = "lake/c.jpg: expected a file name within the image folder, got '/etc/passwd'"
    assert words in message and "1 bad records" in message
    assert message.endswith("'/etc/passwd'; copy the image to where the link is\n")


def test_a_class_folder_has_names_that_json_can_hold(tmp_path, capsys):
    """A name of GBK bytes, as archives made on Windows leave them."""
    root = tmp_path / "set"
    save_images(root / "lake", "a.jpg")
    (root / "lake" / "a.jpg").rename(root / "lake" / os.fsdecode("湖.jpg".encode("gbk")))
    message = faults(root, tmp_path, capsys)
    assert "expected a name in UTF-8, got 'lake/" in message
    assert message.endswith("; rename the image\n")


def test_rows_name_images_wherever_they_are(tmp_path):
    """Their author has put them there: exported rows with an absolute --image-root come back."""
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"}]
    names = ["/data/x/a.png", "../x/b.png"]
    source = save(tmp_path / "in.json", [{"img": name, "conversations": turns} for name in names])
    made = imported(source, tmp_path / "rows.json")
    assert [row["imged_id"] for row in made] == names


def test_no_mark_of_a_file_stays_in_captions_and_names(tmp_path):
    """A BOM and the line breaks of Windows, as cat and editors leave them."""
    expected = [record("a.jpg", "A\nlake ."), record("b.jpg", "B .")]
    texts = ("\ufeffA\r\nlake .", "\ufeffB .")
    pictures = [{"id": 1, "file_name": "\ufeffa.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    captions = [{"image_id": n, "caption": text} for n, text in enumerate(texts, 1)]
    save(tmp_path / "coco.json", {"images": pictures, "annotations": captions})
    save(tmp_path / "own.json", [image("a.jpg", None, texts[:1]), image("b.jpg", None, texts[1:])])
    table = f'image,caption\r\na.jpg,"{texts[0]}"\r\n\ufeffb.jpg,B .\r\n'
    (tmp_path / "table.csv").write_bytes(table.encode("utf-8-sig"))
    for name in ("coco.json", "own.json", "table.csv"):
        assert imported(tmp_path / name, tmp_path / "en.json") == expected
    (tmp_path / "x_caps.txt").write_bytes("\ufeffA\r\n\ufeffB .\r\n".encode())
    (tmp_path / "x_filename.txt").write_bytes("\ufeffa.jpg\r\n\ufeffb.jpg\r\n".encode())
    lines = [record("a.jpg", "A"), record("b.jpg", "B .")]
    assert imported(tmp_path / "x_caps.txt", tmp_path / "en.json") == lines
    members = [("a.jpg", b"x"), ("a.txt", f"{texts[0]}\r\n".encode()), ("b.jpg", b"x")]
    members += [("b.json", json.dumps({"caption": texts[1]}).encode("utf-8-sig"))]
    members += [("c.jpg", b"x"), ("c.txt", "C 湖 .\r\n".encode("utf-16"))]
    made = imported(shard(tmp_path / "s.tar", members), tmp_path / "en.json")
    assert [row["caption"] for row in made] == ["A\nlake .  ", "B .  ", "C 湖 .  "]


def test_keys_that_stand_twice_lose_nothing(tmp_path, capsys):
    """As a class of NWPU that was pasted twice; the JSON of Python keeps the last."""
    source = tmp_path / "in.json"
    source.write_text('{"a": [{"filename": "1.jpg", "raw": "A ."}], "a": [{"filename": "2.jpg"}]}')
    assert "a key that stands twice in an object, 'a'" in faults(source, tmp_path, capsys)
    twice = '{"image": "b.jpg", "caption": "B .", "caption": "C ."}'
    source.write_text(f'[{{"image": "a.jpg", "caption": "A ."}}, {twice}, {{"image": 5}}]')
    message = faults(source, tmp_path, capsys)
    assert "2 bad records: record 1: a key that stands twice in an object, 'caption'" in message
    lines = tmp_path / "in.jsonl"
    lines.write_text(f'{{"image": "a.jpg", "caption": "A ."}}\n{twice}\n')
    assert "line 2: a key that stands twice in an object" in faults(lines, tmp_path, capsys)
    inner = '{"filename": "a.jpg", "sentences": [{"raw": "A .", "raw": "B ."}]}'
    source.write_text(f"[{inner}]")
    assert "record 0" in (message := faults(source, tmp_path, capsys)) and "'raw'" in message
    path = shard(tmp_path / "s.tar", [("a.jpg", b"x"), ("a.json", twice.encode())])
    assert "member 1: a key that stands twice" in faults(path, tmp_path, capsys)


@pytest.mark.parametrize(
    "cell, sentences",
    (
        # as json.dumps, repr, NumPy and pandas print lists
        (json.dumps(["湖 A .", 'B "x" .']), ["湖 A .", 'B "x" .']),
        (repr(['it\'s "big" .', "B ."]), ['it\'s "big" .', "B ."]),
        ("['A .' 'B .']", ["A .", "B ."]),
        ("['A .\n'\n 'B .']", ["A .\n", "B ."]),
        ('["Park" sign] on a roof .', ['["Park" sign] on a roof .']),
        ("[0] lakes", ["[0] lakes"]),
        ("['A .', 'B", None),
        ("['A .', 5]", None),
    ),
)
def test_lists_of_captions_in_a_cell_are_read_whole(tmp_path, capsys, cell, sentences):
    source = tmp_path / "in.csv"
    with open(source, "w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], ["a.jpg", cell]])
    if sentences is None:
        message = faults(source, tmp_path, capsys)
        assert "line 2: expected a whole list of texts in 'caption', got" in message
    else:
        assert imported(source, tmp_path / "en.json") == [record("a.jpg", *sentences)]


def test_spaces_and_spellings_of_a_name_are_one_image(tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('caption, image\nA ., x/a.jpg\nB ., "./x//a.jpg"\n')
    assert imported(source, tmp_path / "en.json") == [record("x/a.jpg", "A .", "B .")]


def test_endings_in_capitals_are_read(tmp_path):
    """As Windows and old archives write them."""
    row = {"image": "a.jpg", "caption": "A ."}
    expected = [record("a.jpg", "A .")]
    assert imported(save(tmp_path / "IN.JSON", [row]), tmp_path / "en.json") == expected
    (tmp_path / "IN.JSONL").write_text(json.dumps(row) + "\n")
    assert imported(tmp_path / "IN.JSONL", tmp_path / "en.json") == expected
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "VAL_CAPS.TXT").write_text("A .\n")
    (texts / "VAL_FILENAME.TXT").write_text("a.jpg\n")
    for source in (texts, texts / "VAL_CAPS.TXT"):
        made = imported(source, tmp_path / "en.json")
        assert made == [record("a.jpg", "A .", split="val")]
    path = shard(tmp_path / "S.tar", [("a.JPG", b"x"), ("a.TXT", b"A .")])
    assert imported(path, tmp_path / "en.json") == [record("S.tar/a.JPG", "A .")]


def test_files_of_captions_without_their_names_are_all_said(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / f"{split}_caps.txt").write_text("A .\n")
    message = faults(tmp_path, tmp_path, capsys)
    assert "expected train_filename.txt" in message and "expected val_filename.txt" in message
    (tmp_path / "train_filename.txt").write_text("a.jpg\n")
    message = faults(tmp_path / "train_filename.txt", tmp_path, capsys)
    assert "a file of captions is called like train_caps.txt" in message


def test_a_first_record_of_another_kind_does_not_hide_the_layout(tmp_path, capsys):
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    rows = [{"note": "x"}, {"image": "a.png", "conversations": turns}]
    made = imported(save(tmp_path / "in.json", rows), tmp_path / "rows.json")
    assert [row["imged_id"] for row in made] == ["a.png"]
    rows[1]["conversations"] = "Q A"
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    words = "record 1: conversations must be a list of user and assistant turns, got Q A"
    assert words in message
    rows = [{"conversations": turns}] * 3
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    assert "none of 3 rows names an image under img, image, images" in message


def test_turns_of_parts_as_of_qwen_and_openai(tmp_path, capsys):
    def asked(*images, **more):
        parts = [{"type": kind, kind: value} for kind, value in images]
        parts.append({"type": "text", "text": "What?"})
        answer = {"role": "assistant", "content": [{"type": "text", "text": "A lake."}]}
        return {"messages": [{"role": "user", "content": parts}, answer], **more}

    rows = [asked(("image", "a.png")), asked(("image_url", {"url": "b.png"}))]
    rows += [asked(("image", "c.png"), images=["c.png"])]
    rows += [{"image": "d.png", "question": "What?", "answer": "A lake."}]
    made = imported(save(tmp_path / "in.json", rows), tmp_path / "rows.json")
    assert [row["imged_id"] for row in made] == ["a.png", "b.png", "c.png", "d.png"]
    for row in made:
        assert [turn["content"] for turn in row["conversations"]] == ["What?", "A lake."]
    rows = [asked(("image", "a.png"), ("image", "b.png"))]
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    assert "record 0: names 2 images; a row has one" in message
    rows = [{"images": ["a.png"], "query": "Q", "response": "A", "system": "You see."}]
    imported(save(tmp_path / "in.json", rows), tmp_path / "rows.json")
    assert "1 rows with a system text, left out" in capsys.readouterr().err


MIXED = [(question, answer) for question in QUESTION_KEYS for answer in ANSWER_KEYS]


@pytest.mark.parametrize("form", [*SAME, *MIXED])
def test_rows_that_training_reads_are_imported(tmp_path, form):
    row = SAME[form] if form in SAME else {"img": "a.png", form[0]: QUESTION, form[1]: ANSWER}
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    expected = [{"imged_id": "a.png", "conversations": turns}]
    assert imported(save(tmp_path / "in.json", [row]), tmp_path / "rows.json") == expected
    # within a shard it is the image beside it, whatever the row calls it
    path = shard(tmp_path / "s.tar", [("x.png", b"x"), ("x.json", row)])
    made = imported(path, tmp_path / "rows.json")
    assert made == [{"imged_id": "s.tar/x.png", "conversations": turns}]


@pytest.mark.parametrize("case", [case for case in WRONG if case != "an address"])
def test_rows_that_training_refuses_are_not_imported(tmp_path, capsys, case):
    row, _ = WRONG[case]
    (tmp_path / "in.json").write_text(json.dumps([row]))
    message = faults(tmp_path / "in.json", tmp_path, capsys, "--layout", "conversations")
    assert message.count("\n") <= 2 and "Traceback" not in message


@pytest.mark.parametrize("history", (5, "ab", {"a": 1}, ["x", "y"], [[1, 2]]))
def test_a_history_that_is_none_is_a_fault(tmp_path, capsys, history):
    row = {"img": "a.png", "prompt": QUESTION, "label": ANSWER, "history": history}
    message = faults(save(tmp_path / "in.json", [row]), tmp_path, capsys)
    assert "record 0: history must be pairs of texts, got " in message


def test_markup_in_turns_is_read_as_in_training(tmp_path, capsys):
    def row(question, answer="A lake."):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"image": "a.png", "conversations": turns}

    place = "<|vision_start|><|image_pad|><|vision_end|>"
    rows = [row(f"{mark}What?") for mark in (place, "<image>\n", "Picture 1: <img></img>")]
    made = imported(save(tmp_path / "in.json", rows), tmp_path / "rows.json")
    assert [one["conversations"][0]["content"] for one in made] == ["What?"] * 3
    marks = ("<think>", "[gMASK]", "<bbox>", "![](a.png)", "<|im_end|>", place)
    rows = [row("What?", f"A {mark} lake.") for mark in marks]
    rows += [row([{"type": "image", "image": {"x": 1}}, {"type": "text", "text": "What?"}])]
    del rows[-1]["image"]
    message = faults(save(tmp_path / "in.json", rows), tmp_path, capsys)
    assert "7 bad records" in message
    assert "image must be a path" in message
    path = tmp_path / "rows.json"
    for one in rows:
        save(path, [one])
        with pytest.raises(UserError, match="markup of another tool|must be a path"):
            load_rows(path)


def test_captions_and_dialogues_of_shards_are_not_mixed(tmp_path, capsys):
    dialogue = [("a.jpg", b"x"), ("a.json", {"rows": [{"prompt": "Q", "label": "A"}]})]
    caption = [("b.jpg", b"x"), ("b.txt", b"A .")]
    for members in (dialogue + caption, caption + dialogue):
        message = faults(shard(tmp_path / "s.tar", members), tmp_path, capsys)
        assert "1 bad records: s.tar member 3: captions and dialogues in one set" in message
    rows = [("a.jpg", b"x"), ("a.json", {"rows": []}), ("b.jpg", b"x")]
    rows += [("b.json", {"rows": [{"prompt": "Q"}]})]
    message = faults(shard(tmp_path / "s.tar", rows), tmp_path, capsys)
    assert "no 'caption' among its keys (rows)" in message
    assert "has keys prompt; prompt and label must be non-empty texts, got nothing" in message


def test_the_text_beside_a_json_without_a_caption_is_not_lost(tmp_path):
    members = [("a.jpg", b"x"), ("a.json", {"caption": None}), ("a.txt", b"A .")]
    members += [("b.jpg", b"x"), ("b.json", {"caption": "B ."}), ("b.txt", b"B .")]
    members += [("c.jpg", b"x"), ("c.json", {"caption": "C ."}), ("c.txt", b"D .")]
    path = shard(tmp_path / "s.tar", members)
    assert imported(path, tmp_path / "en.json") == [
        record("s.tar/a.jpg", "A ."),
        record("s.tar/b.jpg", "B ."),
        record("s.tar/c.jpg", "C .", "D ."),
    ]


def test_an_image_without_a_caption_is_named_in_every_layout(tmp_path, capsys):
    content = {**COCO, "annotations": COCO["annotations"][:1]}
    message = faults(save(tmp_path / "in.json", content), tmp_path, capsys)
    assert (
        "2 bad records: image 0 ('a.jpg'): no caption (none in 'annotations'); image 2" in message
    )
    # what is called captions there
    source = save(tmp_path / "in.json", [{"image": "a.jpg", "captions": []}])
    assert "no caption (none in 'captions')" in faults(source, tmp_path, capsys)
    path = shard(
        tmp_path / "s.tar", [("a.jpg", b"x"), ("a.txt", b""), ("b.jpg", b"x"), ("b.txt", b"")]
    )
    assert "member 3 ('s.tar/b.jpg'): no caption (none in '.txt')" in faults(path, tmp_path, capsys)


def test_a_fault_of_nwpu_is_found_by_its_class(tmp_path, capsys):
    content = {"lake": [{"filename": "1.jpg", "raw": "A ."}]}
    content["river"] = [{"filename": "1.jpg", "raw": "B ."}, {"filename": "2.jpg", "raw_1": "C ."}]
    content["sea"] = [{"filename": "1.jpg", "raw": 5}, 7]
    message = faults(save(tmp_path / "in.json", content), tmp_path, capsys)
    assert "river record 1 ('river/2.jpg'): no 'raw' among its keys (filename, raw_1); " in message
    assert "sea record 0 ('sea/1.jpg'): expected text in 'raw', got 5" in message
    assert "sea record 1: expected an object, got int" in message and "3 bad records" in message


@pytest.mark.parametrize("kinds", ((str, int), (int, str)))
def test_ids_of_coco_are_one_as_text_and_as_number(tmp_path, capsys, kinds):
    of_image, of_annotation = kinds
    content = json.loads(json.dumps(COCO))
    for entry in content["images"]:
        entry["id"] = of_image(entry["id"])
    for entry in content["annotations"]:
        entry["image_id"] = of_annotation(entry["image_id"])
    plain = imported(save(tmp_path / "x.json", COCO), tmp_path / "plain.json")
    assert imported(save(tmp_path / "x.json", content), tmp_path / "en.json") == plain
    # of which image?
    content["images"] += [{"id": of_annotation(7), "file_name": "d.jpg"}]
    message = faults(save(tmp_path / "x.json", content), tmp_path, capsys)
    assert f"image 3: an 'id' that an earlier image has, {of_annotation(7)!r}" in message


def test_addresses_that_end_in_one_file_name_say_what_to_do(tmp_path, capsys):
    source = tmp_path / "in.csv"
    source.write_text("text,url\nA .,https://host/x/a.jpg\nB .,https://host/y/a.jpg\n")
    message = faults(source, tmp_path, capsys)
    assert "line 3: an address that ends in the file name of an earlier one: download" in message
    assert "https://host/y/a.jpg and https://host/x/a.jpg" in message and "'address'" not in message


def test_faults_of_shards_name_the_member_and_how_members_stand(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data.layouts.webdataset.MOST_TEXT", 9)
    members = [("a.jpg", b"x"), ("a.txt", b"x" * 10), ("b.jpg", b"x"), ("b.json", {"x": 1})]
    message = faults(shard(tmp_path / "s.tar", members), tmp_path, capsys)
    assert "member 2: a member that has more than 9 bytes" in message
    assert "member 3: no 'caption' among its keys (x), in 'b.json'" in message
    # the images first, then their texts; names with a dot
    for order in (("a.jpg", "b.jpg", "a.txt", "b.txt"), ("P1.v2.jpg", "P1.v2.txt")):
        members = [(name, b"A .") for name in order]
        message = faults(shard(tmp_path / "s.tar", members), tmp_path, capsys)
        assert f"in {order[0]!r}" in message
        words = "the members of a key, their name up to the first dot, stand one after the other"
        assert words in message and message.count("\n") == 1
