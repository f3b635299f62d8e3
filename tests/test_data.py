"""The data stages one after another, what users get wrong in any of them, and what they import."""

import json
import re
import shutil
import subprocess
import sys
import tracemalloc

import pytest
from stages import DATA, PROJECT, QUESTION, call, english, image, load, save, save_images

from data import generate_prompt, records, row_images, stage, transform, translation_en2zh
from data.caption_sets import CAPTION_SETS
from data.image_check import CACHE
from data.synthetic import demo_scenes, tiny_pictures

pytestmark = pytest.mark.usefixtures("no_key")


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


def test_jsonl_goes_through_both_stages_in_constant_memory(tmp_path):
    """10 times the records, nearly the same peak; whole, they would take more than that.

    benchmarks/data.py has a million.
    """
    peaks = {}
    for count in (10, 500, 5000):  # the first one imports
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
    # A hash of each name, where a record takes 2,000 and more; and Python's own table of names may
    # be rebuilt meanwhile, 4 MB at once
    assert peaks[5000] - peaks[500] < 4500 * 1000


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
