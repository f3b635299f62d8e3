"""Rows for trainers, evaluation toolkits and datasets, and images and rows packed into shards."""

import base64
import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from stages import QUESTION, call, load, prompt, save, save_images

from data import exports, generate_prompt, stage, transform
from model.images import read_image
from model.row_store import StoredSamples
from model.rows import check_images, load_rows

csv.field_size_limit(10**9)


@pytest.fixture
def described(tmp_path):
    """Five images in three splits, one of them with two rows of its own."""
    splits = {"a.png": "train", "d/b.tif": "train", "c.png": "val", "e.png": "test"}
    rows = [
        {"imged_id": name, "caption": f"湖泊，\t{name}。", "split": split}
        for name, split in splits.items()
    ]
    (tmp_path / "images" / "d").mkdir(parents=True)
    save_images(tmp_path / "images", *splits)
    return save(tmp_path / "zh.json", rows)


def generate(source, output, *options, status=0):
    assert call(generate_prompt, "--input", source, "--output", output, *options) == status
    return output


def test_evalscope_rows(described):
    folder = described.parent
    output = generate(described, folder / "x.jsonl", "--format", "evalscope")
    rows = load(output)
    assert len(rows) == 4 and load(folder / "x-test.jsonl") == rows[3:]
    [message] = rows[1]["messages"]
    path = message["content"][0]["image_url"]["url"]
    assert path == str(folder / "images" / "d" / "b.tif") and message["role"] == "user"
    assert message["content"][1] == {"type": "text", "text": QUESTION}
    assert rows[1]["answer"] == "湖泊，\td/b.tif。"


def test_evalscope_rows_of_dialogues_and_of_images_in_tars(described):
    folder = described.parent
    with tarfile.open(folder / "s.tar", "w") as tar:
        tar.add(folder / "images" / "a.png", "a.png")
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant") * 2]
    turns[2]["content"] = "second"
    source = save(folder / "own.json", [{"imged_id": "s.tar/a.png", "conversations": turns}])
    options = ("--format", "evalscope", "--image-root", ".")
    [row] = load(generate(source, folder / "x.jsonl", *options))
    uri = row["messages"][0]["content"][0]["image_url"]["url"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    assert list(image.getdata()) == list(read_image(folder / "images" / "a.png").getdata())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user"]
    assert row["messages"][2]["content"] == "second" and row["answer"] == "a"


def test_vlmevalkit_table(described, capsys):
    folder = described.parent
    options = ("--format", "vlmevalkit", "--tasks", "description=2")
    output = generate(described, folder / "x.tsv", *options)
    with open(output, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["index"] for row in rows] == [str(number) for number in range(8)]
    assert rows[0]["answer"] == "湖泊，\ta.png。" and rows[1]["image"] == "0"
    shown = Image.open(io.BytesIO(base64.b64decode(rows[2]["image"])))
    assert shown.format == "PNG" and shown.getpixel((3, 3)) == read_image(
        folder / "images" / "d" / "b.tif"
    ).getpixel((3, 3))
    # within a file of its own, an image is whole again
    with open(folder / "x-test.tsv", encoding="utf-8", newline="") as file:
        assert len(next(csv.DictReader(file, delimiter="\t"))["image"]) > 64
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    source = save(folder / "own.json", [{"imged_id": "a.png", "conversations": turns}])
    generate(source, folder / "y.tsv", "--format", "vlmevalkit", status=1)
    assert "asks one question a row, images/a.png has 2" in capsys.readouterr().err
    assert not (folder / "y.tsv").exists()


def test_a_folder_for_datasets(described, capsys):
    folder = described.parent
    for _ in range(2):
        output = generate(described, folder / "set", "--format", "hf")
    assert sorted(path.name for path in output.iterdir()) == ["test", "train", "validation"]
    rows = load(output / "train" / "metadata.jsonl")
    assert [row["file_name"] for row in rows] == ["images/a.png", "images/d/b.tif"]
    assert rows[0]["prompt"] == QUESTION and rows[0]["label"] == "湖泊，\ta.png。"
    for row in rows:
        copy = output / "train" / row["file_name"]
        assert copy.read_bytes() == (folder / row["file_name"]).read_bytes()
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("x")
    generate(described, folder / "mine", "--format", "hf", status=1)
    assert "no earlier --format hf made it: name another" in capsys.readouterr().err
    assert (folder / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("options", ((), ("--png", "png")))
def test_a_folder_for_datasets_does_not_tell_where_its_images_were(described, options):
    """Neither of an absolute --image-root nor of rows that name their images in full."""
    folder = described.parent
    own = folder / "other" / "images"
    save_images(own / "d", "b.tif")
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [{"imged_id": str(own / "d" / "b.tif"), "conversations": turns, "split": "train"}]
    named = save(folder / "own.json", rows)
    found = {}
    for number, inputs in enumerate(((described,), (named,), (described, named))):
        roots = {described: f"{folder}/./images/", named: "."}
        files = ("--output", folder / f"set{number}", "--format", "hf", *options)
        roots = ("--image-root", *(roots[path] for path in inputs))
        assert call(generate_prompt, "--input", *inputs, *files, *roots) == 0
        rows = load(folder / f"set{number}" / "train" / "metadata.jsonl")
        found[number] = [row["file_name"] for row in rows]
        for row in rows:
            assert (folder / f"set{number}" / "train" / row["file_name"]).is_file()
        assert folder.name not in str(found[number])
    if not options:
        assert found[0] == ["a.png", "d/b.tif"] and found[1] == ["b.tif"]
        assert found[2] == ["images/a.png", "images/d/b.tif", "other/images/d/b.tif"]


def test_two_images_of_one_name_are_not_one_in_a_folder_for_datasets(described, capsys):
    folder = described.parent
    save_images(folder / "x" / "images", "a.png")
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [
        {"imged_id": name, "conversations": turns} for name in ("images/a.png", "../images/a.png")
    ]
    source = save(folder / "own.json", rows)
    options = ("--format", "hf", "--image-root", ".", "--keep-duplicates")
    generate(source, folder / "x" / "set", *options, status=1)
    assert "would both be images/a.png: rename one of them" in capsys.readouterr().err
    assert not (folder / "x" / "set").exists()


def test_services_take_no_tiff(described, capsys):
    folder = described.parent
    generate(described, folder / "x.jsonl", "--format", "evalscope")
    message = capsys.readouterr().err
    assert f"1 images are TIFF ({folder}/images/d/b.tif)" in message and "give --png DIR" in message
    assert message.count("\n") == 1
    output = generate(described, folder / "x.jsonl", "--format", "evalscope", "--png", "png")
    assert "TIFF" not in capsys.readouterr().err
    urls = [row["messages"][0]["content"][0]["image_url"]["url"] for row in load(output)]
    assert all(Path(url).read_bytes().startswith(b"\x89PNG") for url in urls)


@pytest.mark.slow
def test_evalscope_loads_the_rows(described):
    pytest.importorskip("evalscope", reason="evalscope is not installed")
    import evalscope.benchmarks  # noqa: F401  (registers general_vqa)
    from evalscope.api.registry import get_benchmark
    from evalscope.config import TaskConfig

    folder = described.parent
    generate(described, folder / "x.jsonl", "--format", "evalscope")
    own = {"general_vqa": {"local_path": str(folder), "subset_list": ["x"]}}
    config = TaskConfig(model="m", datasets=["general_vqa"], dataset_args=own)
    loaded = get_benchmark("general_vqa", config).load_dataset()
    samples = list(loaded["x"])
    assert len(samples) == 4 and samples[1].target == "湖泊，\td/b.tif。"
    shown, asked = samples[1].input[0].content
    assert shown.image == str(folder / "images" / "d" / "b.tif") and asked.text == QUESTION


@pytest.mark.slow
def test_datasets_loads_the_folder(described):
    datasets = pytest.importorskip("datasets")
    output = generate(described, described.parent / "set", "--format", "hf")
    cache = str(described.parent / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(output), cache_dir=cache)
    assert {split: len(rows) for split, rows in loaded.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert loaded["train"][1]["label"] == "湖泊，\td/b.tif。"
    assert loaded["train"][1]["image"].size == (16, 16)


@pytest.mark.slow
def test_vlmevalkit_loads_the_table(described, monkeypatch):
    """By the toolkit's own reading code: its packages' __init__ load every model and judge."""
    spec = importlib.util.find_spec("vlmeval")
    if spec is None:
        pytest.skip("vlmeval is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name, path in (("vlmeval", folder), ("vlmeval.dataset", folder / "dataset")):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        monkeypatch.setitem(sys.modules, name, package)
    base = pytest.importorskip("vlmeval.dataset.image_base").ImageBaseDataset

    folder = described.parent
    options = ("--format", "vlmevalkit", "--tasks", "description=2")
    generate(described, folder / "x.tsv", *options)
    monkeypatch.setenv("LMUData", str(folder))
    loaded = type("Own", (base,), {"TYPE": "VQA", "evaluate": None})("x")
    assert len(loaded) == 8 and loaded[1]["answer"] == "湖泊，\ta.png。"
    # the second row of an image names the first by its index
    for number, name in ((1, "a.png"), (2, "d/b.tif")):
        shown, asked = loaded.build_prompt(loaded.data.iloc[number])
        with Image.open(shown["value"]) as image:
            expected = read_image(folder / "images" / name)
            assert image.convert("RGB").tobytes() == expected.tobytes()
        assert asked == {"type": "text", "value": loaded[number]["question"]}


# Prints {file: [[messages, path of the image, a pixel of it], ...]} of the rows that the trainer's
# own code loads; its arguments: the folder, the files in it.
LLAMA_FACTORY = """import contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.hparams import DataArguments, ModelArguments
    from PIL import Image
    from transformers import Seq2SeqTrainingArguments
    folder, *files = sys.argv[1:]
    model = ModelArguments(model_name_or_path="none")
    training = Seq2SeqTrainingArguments(output_dir=f"{folder}/out", use_cpu=True)
    found = {}
    for file in files:
        name = file.rpartition(".")[0]
        data = DataArguments(dataset=name, dataset_dir=folder, template="qwen2_vl")
        found[file] = []
        for row in _get_merged_dataset([name], model, data, training, "sft"):
            [path] = row["_images"]
            pixel = Image.open(path).convert("RGB").getpixel((3, 3))
            found[file].append([row["_prompt"] + row["_response"], path, pixel])
print(json.dumps(found))
"""
SWIFT = """import contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    from swift.dataset import load_dataset
    from swift.template.vision_utils import load_image
    folder, *files = sys.argv[1:]
    found = {}
    for file in files:
        rows, _ = load_dataset(f"{folder}/{file}", load_from_cache_file=False, strict=True)
        found[file] = []
        for row in rows:
            [image] = row["images"]
            pixel = load_image(image["path"]).convert("RGB").getpixel((3, 3))
            found[file].append([row["messages"], image["path"], pixel])
print(json.dumps(found))
"""
ROUNDS = [
    {"role": "user", "content": "图中\n有什么？"},
    {"role": "assistant", "content": "湖泊。\n“岸边”有 3 棵树😀"},
    {"role": "user", "content": "有船吗？"},
    {"role": "assistant", "content": "没有。"},
]
RIVER = "一条河流穿过绿色的田野，两岸有树。"


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, suffix, program, variable",
    [
        ("llamafactory", "json", LLAMA_FACTORY, "LLAMAFACTORY_PYTHON"),
        ("ms-swift", "jsonl", SWIFT, "SWIFT_PYTHON"),
    ],
)
def test_trainers_load_every_row(described, form, suffix, program, variable):
    """By the trainer's own code: all rows, texts and images are those that stand in the files."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no interpreter that has the trainer")
    folder = described.parent
    names = ("a.png", "d/b.tif", "c.png")
    rounds = [{"imged_id": name, "conversations": ROUNDS} for name in names]
    scenes = [{"imged_id": name, "caption": RIVER, "split": "train"} for name in names]
    files = []
    for name, source, options in (
        ("one", described, ()),
        ("rounds", save(folder / "own.json", rounds), ()),
        (
            "tasks",
            save(folder / "scenes.json", scenes),
            ("--tasks", "description=2", "scene", "objects", "existence=2", "dialogue"),
        ),
    ):
        output = folder / f"{name}.{suffix}"
        generate(source, output, "--format", form, *options)
        files += sorted(path.name for path in folder.glob(f"{name}*.{suffix}"))

    elsewhere = folder / "cache"
    elsewhere.mkdir()
    environment = {
        # Relative images: of LLaMA-Factory's beside dataset_info.json, of ms-swift's as said here
        "ROOT_IMAGE_DIR": str(folder),
        "HF_HOME": str(elsewhere),
        # No network, no hub, and whichever release of transformers is there
        **{"HF_HUB_OFFLINE": "1", "USE_HF": "1", "DISABLE_VERSION_CHECK": "1"},
    }
    result = subprocess.run(
        [python, "-c", program, folder, *files],
        cwd=elsewhere,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)

    assert len(files) > 3 and list(loaded) == files
    for file in files:
        rows = load(folder / file)
        assert len(loaded[file]) == len(rows) > 0
        for (messages, path, pixel), row in zip(loaded[file], rows):
            said = [{key: turn[key] for key in ("role", "content")} for turn in messages]
            assert said == row["messages"]
            [img] = row["images"]
            assert folder / path == folder / img
            with Image.open(folder / img) as image:
                assert tuple(pixel) == image.convert("RGB").getpixel((3, 3))
        print(f"{form} {file}: {len(rows)} rows")


# ---- shards


def members(path):
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def test_packed_rows_are_what_the_trainer_reads(described):
    folder = described.parent
    plain = load(generate(described, folder / "plain.json", "--tasks", "description=2"))
    options = ("--tasks", "description=2", "--pack", "--shards", "2")
    output = generate(described, folder / "out" / "rows.json", *options, "--image-root",
                      folder / "images")  # fmt: skip
    rows = load(output)
    assert [(row["prompt"], row["label"]) for row in rows] == [
        (row["prompt"], row["label"]) for row in plain
    ]
    assert [row["img"] for row in rows[::2]] == [
        "rows-train-00000.tar/00000000.png",
        "rows-train-00001.tar/00000001.tif",
        "rows-val-00000.tar/00000000.png",
        "rows-test-00000.tar/00000000.png",
    ]
    inside = members(folder / "out" / "rows-train-00001.tar")
    assert inside["00000001.tif"] == (folder / "images" / "d" / "b.tif").read_bytes()
    about = json.loads(inside["00000001.json"])
    assert about["img"] == f"{folder}/images/d/b.tif" and len(about["rows"]) == 2
    shards = sorted((folder / "out").glob("*.tar"))
    assert [sample for shard in shards for sample in StoredSamples(shard)] == sorted(
        load_rows(output), key=lambda sample: str(sample.image)
    )
    samples = load_rows(output)
    assert check_images(samples, "rows") == 4
    assert (
        read_image(samples[2].image).tobytes()
        == read_image(folder / "images" / "d" / "b.tif").tobytes()
    )

    # and back: the same rows, by their shards alone
    assert call(transform, "--input", folder / "out") == 0
    back = load(folder / "out-rows.json")
    assert [row["conversations"][1]["content"] for row in back] == [
        row["label"] for row in sorted(rows, key=lambda row: row["img"])
    ]
    assert {row["split"] for row in back} == {"train", "val", "test"}


def test_more_shards_than_images_leave_no_gaps_in_the_numbers(described):
    folder = described.parent / "many"
    rows = load(generate(described, folder / "rows.json", "--pack", "--shards", "9",
                         "--image-root", described.parent / "images"))  # fmt: skip
    tars = sorted(path.name for path in folder.glob("rows-train-*.tar"))
    count = sum(row["img"].startswith("rows-train-") for row in rows)
    assert tars == [f"rows-train-{number:05d}.tar" for number in range(count)] and count > 1


def test_shards_of_an_earlier_run_are_not_left_beside_fewer(described, capsys):
    folder = described.parent
    generate(described, folder / "rows.json", "--pack", "--shards", "2")
    generate(described, folder / "rows.json", "--pack", status=1)
    message = capsys.readouterr().err
    assert "has 1 more shards of an earlier run (rows-train-00001.tar): remove them" in message
    generate(described, folder / "rows.json", "--pack", "--shards", "2")


def test_png_are_packed_as_training_reads_them(described):
    folder = described.parent
    output = generate(described, folder / "rows.json", "--pack", "--png", "png")
    assert load(output)[1]["img"] == "rows-train-00000.tar/00000001.png"
    packed = members(folder / "rows-train-00000.tar")["00000001.png"]
    assert packed == (folder / "png" / "d" / "b.png").read_bytes()


@pytest.mark.slow
def test_webdataset_reads_the_shards(described):
    webdataset = pytest.importorskip("webdataset")
    output = generate(described, described.parent / "rows.json", "--pack")
    shard = str(output.with_name("rows-train-00000.tar"))
    samples = list(webdataset.WebDataset(shard, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001"]
    assert samples[1]["tif"].size == (16, 16) if "tif" in samples[1] else True
    assert samples[0]["png"].size == (16, 16)
    assert samples[0]["json"]["rows"][0]["prompt"] == QUESTION


@pytest.mark.parametrize(
    "options, words",
    (
        (("--shards", "3"), "--shards is of --pack"),
        (("--pack", "--format", "llava"), "--pack writes rows of its own"),
        (("--pack", "--no-image-check"), "--pack opens the images"),
        (("--format", "hf", "--no-image-check"), "--format hf opens the images"),
        (("--format", "vlmevalkit", "--output", "a.json"), "name --output a.tsv"),
        (("--format", "hf", "--output", "a.json"), "name --output a"),
        (("--format", "hf", "llava"), "--format hf llava: one a run; run it once for each"),
        (("--format", "hf", "--format", "llava"), "--format hf llava: one a run"),
    ),
)
def test_options_of_exports_that_make_no_sense(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        generate_prompt.main(list(options))
    assert words in capsys.readouterr().err


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
