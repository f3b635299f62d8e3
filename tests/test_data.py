"""The data stages, against expectations written out here; translation itself is in test_translation.py."""
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

DATA = Path(__file__).resolve().parents[1] / "data"
sys.path.insert(0, str(DATA))

import exports  # noqa: E402
import generate_prompt  # noqa: E402
import image_check  # noqa: E402
import instructions  # noqa: E402
import records  # noqa: E402
import transform  # noqa: E402
import translation_en2zh  # noqa: E402
from image_check import CACHE  # noqa: E402

QUESTION = "这张遥感图像展现了什么场景？"


def image(name, split=None, raws=("A lake .", "There is a lake .")):
    entry = {"filename": name, "sentences": [{"raw": raw, "tokens": raw.split()} for raw in raws], "imgid": 0}
    return entry if split is None else {**entry, "split": split}


def english(count, split=None):
    rows = [{"imged_id": f"{i}.png", "caption": f"Lake {i} ."} for i in range(count)]
    return [{**row, "split": split} for row in rows] if split else rows


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value) if path.suffix == ".jsonl" else ""
    path.write_text(lines or json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def load(path):
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if Path(path).suffix == ".jsonl" else json.loads(text)


def pictures(folder, *names, size=(16, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])).save(folder / name)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# ---- the chain


def test_chain_by_defaults_from_another_folder_and_again(tmp_path):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    for file in (*DATA.glob("*.py"), DATA / "lexicon.json"):
        shutil.copy(file, project / "data")
    folder = project / "data" / "Sydney"
    names = {"1.tif": "train", "2.tif": "train", "3.tif": "val", "4.tif": "test"}
    save(folder / "dataset_sydney.json", {"images": [image(n, s, (f"Lake {n[0]} .", "Blue .")) for n, s in names.items()]})
    save(folder / "memory.jsonl", [{"source": f"Lake {n[0]} .  Blue .", "target": f"蓝色的湖{n[0]}。"} for n in names])
    pictures(folder / "images", *names, size=(500, 500))

    def run_all():
        for script, *options in (("transform",), ("translation_en2zh", "--memory", folder / "memory.jsonl"), ("generate_prompt",)):
            command = [sys.executable, project / "data" / f"{script}.py", "--dataset", "Sydney", *options]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
            assert done.returncode == 0, done.stderr
            assert re.search(rf"{re.escape(str(folder))}/Sydney-\w+.json: 4 r(ecords|ows)", done.stdout)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    files = run_all()
    assert load(folder / "Sydney-en.json")[0] == {"imged_id": "1.tif", "caption": "Lake 1 .  Blue .  ", "split": "train"}
    assert load(folder / "Sydney-zh.json")[2] == {"imged_id": "3.tif", "caption": "蓝色的湖3。", "split": "val"}
    row = {"img": "images/4.tif", "prompt": QUESTION, "label": "蓝色的湖4。"}
    assert load(folder / "Sydney-prompt-test.json") == [row]
    assert [len(load(folder / f"Sydney-prompt{part}.json")) for part in ("", "-train", "-val", "-test")] == [4, 2, 1, 1]
    assert files == run_all()
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_default_dataset_is_ucm_and_own_corpora_chain_beside_their_input(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "DATA", tmp_path / "data")
    save(tmp_path / "data" / "UCM" / "dataset.json", {"images": [image("1.tif", "val")]})
    assert transform.main([]) == 0
    assert load(tmp_path / "data" / "UCM" / "UCM-en.json")[0]["imged_id"] == "1.tif"

    mine = save(tmp_path / "mine" / "port.jsonl", [image("1.png"), image("2.png")])
    memory = save(tmp_path / "memory.json", [{"source": "A lake .  There is a lake .", "target": "湖。"}])
    pictures(mine.parent / "images", "1.png", "2.png")
    assert transform.main(["--input", str(mine)]) == 0
    assert translation_en2zh.main(["--input", str(mine.with_name("port-en.jsonl")), "--memory", str(memory)]) == 0
    assert generate_prompt.main(["--input", str(mine.with_name("port-zh.jsonl"))]) == 0
    expected = [{"img": f"images/{n}.png", "prompt": QUESTION, "label": "湖。"} for n in (1, 2)]
    assert load(mine.with_name("port-prompt.jsonl")) == expected
    assert {path.name for path in mine.parent.iterdir()} == {
        "port.jsonl", "port-en.jsonl", "port-zh.jsonl", "port-prompt.jsonl", "images", CACHE}


# ---- transform


@pytest.mark.parametrize("suffix", (".json", ".jsonl"))
def test_transform_reads_bom_and_crlf_and_writes_what_json_dump_writes(tmp_path, suffix):
    images = [image("1.tif", "train", ["A lake .", "水\u2028 \"x\" ."]), image("2.tif", "val", ["Sea ."])]
    source = tmp_path / f"in{suffix}"
    text = json.dumps({"images": images}, indent=1) if suffix == ".json" else "\n".join(map(json.dumps, images)) + "\n\n"
    source.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    expected = [{"imged_id": "1.tif", "caption": "A lake .  水\u2028 \"x\" .  ", "split": "train"},
                {"imged_id": "2.tif", "caption": "Sea .  ", "split": "val"}]
    plain, lines = tmp_path / "new" / "folder" / "out.json", tmp_path / "out.jsonl"
    for output in (plain, lines):
        assert transform.main(["--input", str(source), "--output", str(output)]) == 0
    assert plain.read_text(encoding="utf-8") == json.dumps(expected, indent=4, ensure_ascii=False) + "\n"
    assert [json.loads(line) for line in lines.read_text(encoding="utf-8").rstrip("\n").split("\n")] == expected


def test_transform_no_split_leaves_exactly_the_two_published_keys(tmp_path):
    source, output = save(tmp_path / "in.json", {"images": [image("1.tif", "train")]}), tmp_path / "out.json"
    assert transform.main(["--input", str(source), "--output", str(output), "--no-split"]) == 0
    assert [list(row.items()) for row in load(output)] == [
        [("imged_id", "1.tif"), ("caption", "A lake .  There is a lake .  ")]]


def run_transform(folder, capsys, images, *options):
    """Exit status, records written or None, what was printed and what was complained of."""
    output = folder / "out.json"
    output.unlink(missing_ok=True)
    status = transform.main(["--input", str(save(folder / "in.json", {"images": images})), "--output", str(output), *options])
    printed = capsys.readouterr()
    return status, load(output) if output.exists() else None, printed.out, printed.err


def sydney():
    splits = ["train"] * 497 + ["val"] * 58 + ["test"] * 58
    return [image(f"{i}.tif", split, ["A ."] * 5) for i, split in enumerate(splits, 1)]


def test_transform_counts_and_names_warn_and_with_strict_stop_before_writing(tmp_path, capsys):
    whole = sydney()
    status, rows, _, message = run_transform(tmp_path, capsys, whole, "--dataset", "Sydney", "--strict")
    assert (status, len(rows), message) == (0, 613, "")
    status, rows, _, message = run_transform(tmp_path, capsys, whole[:-2], "--dataset", "Sydney", "--strict")
    assert status == 1 and rows is None and message.startswith("transform.py: error:")
    assert all(text in message for text in ("images 611 (expected 613)", "test 56 (expected 58)", "RSICD_optimal"))
    odd = whole[:-1] + [image("x.jpg", "test", ["A ."])]
    status, rows, _, message = run_transform(tmp_path, capsys, odd, "--dataset", "Sydney")
    assert status == 0 and len(rows) == 613 and message.startswith("transform.py: warning:")
    assert "1 images without exactly 5 sentences; 1 file names unlike 1.tif: x.jpg" in message and message.count("\n") == 1
    _, _, _, message = run_transform(tmp_path, capsys, whole, "--dataset", "UCM")
    assert "this looks like Sydney: 613 images, split 497/58/58" in message and "images 613 (expected 2100)" in message


def test_transform_dedupe_drops_repeated_sentences_and_fill_repeats_existing_ones(tmp_path, capsys):
    images = [image("1.tif", None, ["A lake .", "a LAKE .", "Blue .", "A lake ."]), image("2.tif", None, ["Sea ."])]
    _, rows, out, _ = run_transform(tmp_path, capsys, images, "--dedupe")
    assert [row["caption"] for row in rows] == ["A lake .  Blue .  ", "Sea .  "] and "(2 of 5 repeated" in out
    _, rows, out, _ = run_transform(tmp_path, capsys, images)
    assert "2 images have fewer than 5: --fill" in out and rows[1]["caption"] == "Sea .  "
    for seed in range(3):
        _, rows, out, _ = run_transform(tmp_path, capsys, images, "--fill", "--seed", str(seed))
        first, second = (row["caption"].split("  ")[:-1] for row in rows)
        assert len(first) == 5 and second == ["Sea ."] * 5 and "10 sentences (5 of them repeated)" in out
        # another order of the images draws the same
        assert run_transform(tmp_path, capsys, images[::-1], "--fill", "--seed", str(seed))[1] == rows[::-1]
    images = [image("1.tif", None, ["A .", "B .", "C ."])]
    drawn = {run_transform(tmp_path, capsys, images, "--fill", "--seed", str(seed))[1][0]["caption"] for seed in range(8)}
    assert len(drawn) > 1
    for caption in drawn:
        parts = caption.split("  ")[:-1]
        assert parts[:3] == ["A .", "B .", "C ."] and len(parts) == 5 and parts[3] != parts[4]


def test_transform_reads_nwpu_captions_as_distributed(tmp_path, capsys):
    entry = {"split": "val", "raw": "A lake .", "raw_1": "Blue .", "imgid": 3, "sentid": 1}
    source = save(tmp_path / "in.json", {"lake": [{"filename": "lake_001.jpg", **entry}], "sea": [{"filename": "sea_002.jpg", **entry}]})
    assert transform.main(["--input", str(source), "--output", str(tmp_path / "out.json")]) == 0
    assert load(tmp_path / "out.json") == [
        {"imged_id": name, "caption": "A lake .  Blue .  ", "split": "val"} for name in ("lake/lake_001.jpg", "sea/sea_002.jpg")]
    assert records.CAPTION_SETS["NWPU"].fits_name("lake/lake_001.jpg")


@pytest.mark.parametrize("suffix", (".json", ".jsonl"))
def test_all_problems_of_a_file_are_listed_at_once(tmp_path, capsys, suffix):
    images = [image(f"{i}.tif", raws=() if i % 2 else ("A .",)) for i in range(40)]
    source = save(tmp_path / f"in{suffix}", images)
    expected = [f"'{i}.tif'" for i in range(1, 40, 2)]
    if suffix == ".jsonl":
        with open(source, "a") as file:
            file.write("{broken\n[]\n")
        expected += ["line 41: not JSON", "line 42: expected an object, got list"]
    assert transform.main(["--input", str(source), "--output", str(tmp_path / "out.json")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert f"{len(expected)} bad records" in lines[0]
    assert len(lines) == 1 + len(expected) and all(text in line for text, line in zip(expected, lines[1:]))
    assert f"{'line 2' if suffix == '.jsonl' else 'record 1'} ('1.tif')" in lines[1]


def test_jsonl_is_streamed(tmp_path):
    """The first records reach the writer before the last line is read: a bad last line stops a run, but only at the end."""
    source = save(tmp_path / "in.jsonl", [image("1.tif"), image("2.tif")])
    with open(source, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    stream = records.checked_records(source, "filename", transform.image_problem)
    assert [next(stream)["filename"], next(stream)["filename"]] == ["1.tif", "2.tif"]
    with pytest.raises(records.StageError, match="line 3: not JSON from column 2"):
        next(stream)


# ---- generate_prompt


def test_prompt_image_root_and_splits_from_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_prompt, "PROJECT", tmp_path / "project")
    rows = [{"imged_id": "1.png", "caption": "湖。"}, {"imged_id": "2.png", "caption": "海。", "split": "test"}]
    source = save(tmp_path / "zh.json", rows)
    captions = save(tmp_path / "dataset.json", {"images": [image("1.png", "val"), image("2.png", "train"), image("9.png", "val")]})
    pictures(tmp_path / "out" / "a b", "1.png")        # beside the output
    pictures(tmp_path / "project" / "a b", "2.png")    # in the project root
    output = tmp_path / "out" / "rows.json"
    stale = save(tmp_path / "out" / "rows-train.json", [])
    assert generate_prompt.main(["--input", str(source), "--captions", str(captions), "--image-root", "a b/",
                                 "--prompt", "图里有什么？", "--output", str(output)]) == 0
    first = {"img": "a b//1.png", "prompt": "图里有什么？", "label": "湖。"}
    second = {"img": "a b//2.png", "prompt": "图里有什么？", "label": "海。"}
    assert load(output) == [first, second] and list(load(output)[0]) == ["img", "prompt", "label"]
    assert load(output.with_name("rows-val.json")) == [first] and load(output.with_name("rows-test.json")) == [second]
    assert not stale.exists()  # no training rows any more

    root = tmp_path / "project" / "a b"
    pictures(root, "1.png")
    assert generate_prompt.main(["--input", str(source), "--captions", str(captions), "--image-root", str(root),
                                 "--output", str(output.with_suffix(".jsonl"))]) == 0
    assert [row["img"] for row in load(output.with_suffix(".jsonl"))] == [f"{root}/1.png", f"{root}/2.png"]


def test_no_image_check_opens_nothing(tmp_path):
    source, output = save(tmp_path / "zh.json", english(2)), tmp_path / "out.json"
    assert generate_prompt.main(["--input", str(source), "--output", str(output), "--no-image-check"]) == 0
    assert [row["img"] for row in load(output)] == ["images/0.png", "images/1.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"zh.json", "out.json"}


# ---- what users get wrong: (script, input, options, words of the one line); "@name" is a path in the test's folder

BAD_SPLIT = image("1.tif", "dev")
BAD = {
    "input missing": ("transform", None, (), ("in.json does not exist", "--input")),
    "default captions missing": ("transform", None, ("--dataset", "RSICD", "--input="), ("RSICD/dataset.json", "RSICD_optimal")),
    "demo missing": ("transform", None, ("--dataset", "demo", "--input="), ("demo/dataset.json", "demo_scenes.py")),
    "previous stage missing": ("translation_en2zh", None, ("--input=",), ("UCM-en.json", "run data/transform.py --dataset UCM")),
    "translation missing": ("generate_prompt", None, ("--input=",), ("UCM-zh.json", "run data/translation_en2zh.py")),
    "input is a folder": ("transform", None, ("--input", "@.",), ("cannot read", "directory")),
    "not JSON": ("transform", b'{"images": [\n  {"filename": 1,}]}', (), ("in.json is not JSON", "line 2 column")),
    "JSONL called JSON": ("transform", b'{"a": 1}\n{"a": 2}\n', (), ("line 2 column 1", ".jsonl")),
    "empty file": ("transform", b"", (), ("is not JSON: line 1 column 1",)),
    "not UTF-8": ("transform", '{"images": "湖"}'.encode("gbk"), (), ("not UTF-8", "byte 12", "save it as UTF-8")),
    "object without images": ("transform", {"annotations": []}, (), ('{"images": [...]}',)),
    "no records": ("transform", [], (), ("holds no records",)),
    "record is no object": ("transform", [image("1.tif"), "2.tif"], (), ("record 1", "expected an object, got str")),
    "wrong keys": ("transform", english(5), (), ("5 bad records", "record 0", "'filename'", "imged_id", "record 4")),
    "no sentences": ("transform", [image("7.tif", raws=())], (), ("record 0 ('7.tif')", "'sentences'")),
    "sentence is text": ("transform", [{**image("7.tif"), "sentences": ["A ."]}], (), ("'7.tif'", '{"raw": text}', "got str")),
    "raw is no text": ("transform", [{**image("7.tif"), "sentences": [{"raw": 5}]}], (), ("'7.tif'", "'raw'", "got 5")),
    "unknown split": ("transform", [BAD_SPLIT], (), ("'1.tif'", "train, val or test", "'dev'")),
    "duplicate": ("transform", [image("1.tif"), image("2.tif"), image("1.tif")], (), ("1 bad", "record 2 ('1.tif')", "duplicate")),
    "file name is no text": ("transform", [{**image("1.tif"), "filename": 1}], (), ("record 0", "'filename'", "got 1")),
    "output is a folder": ("transform", [image("1.tif")], ("--output", "@."), ("is a folder", "--output")),
    "output is the input": ("transform", [image("1.tif")], ("--output", "@in.json"), ("the input itself",)),
    "output under a file": ("transform", [image("1.tif")], ("--output", "@in.json/x/out.json"), ("cannot write", "in.json/x/out.json")),
    "half a surrogate": ("transform", b'[{"filename": "1", "sentences": [{"raw": "\\ud800"}]}]', (), ("record 1", "surrogate")),
    "captions given to translation": ("translation_en2zh", {"images": [image("1.tif")]}, (), ("'imged_id'", "filename")),
    "caption is a list": ("translation_en2zh", [{"imged_id": "1.tif", "caption": ["A"]}], (), ("'1.tif'", "'caption'", "['A']")),
    "empty caption": ("translation_en2zh", [{"imged_id": "1.tif", "caption": " "}], (), ("'1.tif'", "expected text in 'caption'")),
    "no key": ("translation_en2zh", english(3), (), ("3 captions are left to ask", "OPENAI_API_KEY", "--base-url", "--memory")),
    "memory of another form": ("translation_en2zh", english(1), ("--memory", "@en-zh.json"), ("en-zh.json", "record 0", "'target'")),
    "memory missing": ("translation_en2zh", english(1), ("--memory", "@none.json"), ("none.json", "No such file")),
    "empty label": ("generate_prompt", [{"imged_id": "1.tif", "caption": ""}], (), ("'1.tif'", "expected text in 'caption'")),
    "images missing": ("generate_prompt", english(2), ("--image-root", "pics"),
                       ("2 of 2 images missing: pics/0.png; pics/1.png", "looked in @.", "then in @project")),
    "image damaged, image missing": ("generate_prompt", english(3), ("--strict",),
                                     ("1 of 3 images missing: images/2.png", "1 of 3 images unreadable", "@images/1.png (22 bytes, not a picture")),
    "absolute image root": ("generate_prompt", english(1), ("--image-root", "@elsewhere"),
                            ("missing: @elsewhere/0.png", "looked in @elsewhere;")),
    "some without split": ("generate_prompt", [*english(2), {"imged_id": "x", "caption": "湖", "split": "val"}], (),
                           ("2 of 3 records have no split: 0.png; 1.png", "give --captions")),
    "unknown to captions": ("generate_prompt", english(2), ("--captions", "@captions.json"),
                            ("1 of 2 records have no split: 1.png", "captions.json does not name them")),
    "captions without split": ("generate_prompt", english(2), ("--captions", "@in.json"), ("in.json", "'filename'")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(case, tmp_path, monkeypatch, capsys):
    script, content, options, words = BAD[case]
    monkeypatch.setattr(records, "DATA", tmp_path / "data")
    monkeypatch.setattr(generate_prompt, "PROJECT", tmp_path / "project")
    source, output = tmp_path / "in.json", tmp_path / "out.json"
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    save(tmp_path / "en-zh.json", [{"source": "Lake", "zh": "湖"}])
    save(tmp_path / "captions.json", {"images": [image("0.png", "val")]})
    pictures(tmp_path / "images", "0.png", "1.png")
    (tmp_path / "images" / "1.png").write_bytes(b"<html>not found</html>")
    options = [re.sub("^@", f"{tmp_path}/", option) for option in options]
    argv = [] if "--input=" in options else ["--input", str(source), "--output", str(output)]
    before = sorted(tmp_path.rglob("*"))

    status = sys.modules[script].main([*argv, *(option for option in options if option != "--input=")])

    message = capsys.readouterr().err
    assert status == 1 and message.startswith(f"{script}.py: error: ") and message.count("\n") == 1
    assert "Traceback" not in message
    for word in words:
        assert word.replace("@.", str(tmp_path)).replace("@", f"{tmp_path}/") in message
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != CACHE] == before


@pytest.mark.parametrize("script, options, word", (
    ("transform", ("--dataset", "COCO"), "Sydney"), ("transform", ("--strict", "--input", "x.json"), "--dataset"),
    ("translation_en2zh", ("--concurrency", "0"), "0 is not at least 1"), ("translation_en2zh", ("--timeout", "nan"), "--timeout"),
    ("translation_en2zh", ("--max-retries", "-1"), "-1 is not at least 0"), ("translation_en2zh", ("--limit", "0"), "--limit"),
    ("translation_en2zh", ("--base-url", "localhost:8000/v1"), "http://"),
    ("generate_prompt", ("--prompt", " "), "--prompt is empty"), ("generate_prompt", ("--image-root", ""), "--image-root is empty")))
def test_options_that_make_no_sense_are_refused_at_parse_time(script, options, word, capsys):
    with pytest.raises(SystemExit, match="2"):
        sys.modules[script].main(list(options))
    assert word in capsys.readouterr().err


def test_an_interrupted_writer_leaves_the_old_file_and_no_other(tmp_path):
    output = tmp_path / "out.json"
    output.write_text("old")

    def interrupted():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(output, interrupted())
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"] and output.read_text() == "old"
    link = tmp_path / "link.json"
    link.symlink_to(output)
    assert records.write_records(link, [{"a": 1}]) == 1 and link.is_symlink() and load(output) == [{"a": 1}]


def test_known_sets_add_up_and_stand_in_the_readme():
    table = (DATA / "README.md").read_text(encoding="utf-8")
    for name, known in records.CAPTION_SETS.items():
        if known.splits:
            assert sum(known.splits) == known.images
        counts = [f"{count:,}" if count else "" for count in (known.images, *(known.splits or ("", "", "")))]
        size = f"{known.size[0]}×{known.size[1]}"
        assert f"| {' | '.join([name, *counts, str(known.sentences), size])} |".replace("  ", " ") in table.replace("由参数定", "").replace("  ", " ")
        assert not known.example or known.fits_name(known.example)
    for script in ("transform", "translation_en2zh", "generate_prompt"):
        assert f"python data/{script}.py" in table


def test_the_stages_import_nothing_beyond_the_standard_library_pillow_openai_tqdm():
    for file in DATA.glob("*.py"):
        names = {name.split(".")[0] for name in re.findall(r"^\s*(?:import|from) (\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)}
        assert names <= set(sys.stdlib_module_names) | {"PIL", "openai", "tqdm"} | {path.stem for path in DATA.glob("*.py")}
