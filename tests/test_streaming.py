"""Rows that stay on the disk: the same samples, the same training, in memory that stays flat."""

import json
import sys
import tarfile
from io import BytesIO

import fork_server
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from test_resume import ENVIRONMENT, logged
from train_runs import started

from model.errors import UserError
from model.files import PROJECT, sha256
from model.row_store import StoredSamples, sample_keys
from model.rows import load_rows
from model.weight_files import ADAPTER

QUESTION = "图中有什么？"
DIALOGUE = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "一个湖泊。"},
    {"role": "user", "content": "还有呢？"},
    {"role": "assistant", "content": "一座桥。"},
]


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, BytesIO(content))


def png(color):
    file = BytesIO()
    Image.new("RGB", (40, 40), color).save(file, "PNG")
    return file.getvalue()


def write_shards(folder, rows, shards, name="set-train"):
    """Rows {"color", ...} as --pack writes them; returns them as a .jsonl over the same tars."""
    listed = []
    for number in range(shards):
        path = folder / f"{name}-{number:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for index, row in enumerate(rows[number::shards]):
                texts = {key: value for key, value in row.items() if key != "color"}
                image = f"{index:08d}.png"
                about = {"img": "x.tif", "image": image, "rows": [texts, texts]}
                add(tar, image, png(row["color"]))
                add(tar, f"{index:08d}.json", json.dumps(about).encode())
                listed += [{"img": f"{path.name}/{image}", **texts}] * 2
    lines = [json.dumps(row, ensure_ascii=False) for row in listed]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.jsonl"


COLORS = {"red": "红色的屋顶。", "green": "绿色的农田。", "blue": "蓝色的河流。"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of five images, two rows each."""
    folder = tmp_path_factory.mktemp("shards")
    rows = []
    for index in range(10):
        color = list(COLORS)[index % 3]
        label = COLORS[color] * (1 + index % 2)
        rows.append({"color": color, "prompt": QUESTION, "label": label})
    write_shards(folder, rows, 2)
    write_shards(folder, rows[:3], 1, "set-val")
    return folder


# ---- samples


def test_lines_give_the_samples_that_are_loaded_whole(shards):
    rows = [json.loads(line) for line in (shards / "set-train.jsonl").read_text().splitlines()]
    rows.insert(3, {"img": rows[0]["img"], "conversations": DIALOGUE})
    rows.insert(5, {"prompt": "你好", "label": "你好。", "history": [["一", "二"]], "note": 1})
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path = shards / "mixed.jsonl"
    path.write_text("\ufeff" + "\r\n".join(lines[:4]) + "\n\n" + "\n".join(lines[4:]))
    notes, noted = [], []
    loaded = load_rows(path, notes=notes)
    stored = StoredSamples(path, notes=noted)
    assert list(stored) == loaded and len(stored) == len(rows) + 2 and notes == noted
    assert stored.fingerprint == sha256(path)
    assert (sample_keys(stored) == sample_keys(loaded)).all()
    assert np.unique(stored.keys[:, 0]).size == len({sample.image for sample in loaded})
    texts = ["图中有什么？一个湖泊。", "图中有什么？一个湖泊。还有呢？一座桥。"]
    assert stored.characters[3:5].tolist() == [len(text) for text in texts]


def test_shards_give_the_rows_that_name_their_members(shards):
    stored = StoredSamples(shards / "set-train-*.tar")
    loaded = load_rows(shards / "set-train.jsonl")
    assert list(stored) == loaded and len(loaded) == 20
    assert list(StoredSamples(shards / "set-train-00001.tar")) == loaded[10:]


def test_an_index_takes_few_bytes_a_row(shards):
    stored = StoredSamples(shards / "set-train.jsonl")
    arrays = (stored.places, stored.keys, stored.characters)
    assert sum(array.nbytes for array in arrays) <= 64 * len(stored)


CASES = {
    "a broken line": ('{"img": "a"\n', "not readable as JSON lines: line 2 column"),
    "a wrong row": ('{"prompt": "x"}\n', "1 of 3 wrong: line 2: "),
    "no image": ('{"img": "gone.png", "prompt": "x", "label": "y"}\n', "line 2: image not found"),
    "no UTF-8": (b"\xff\xfe\n", "not readable as JSON lines: line 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_rows_are_one_line(shards, case):
    line, words = CASES[case]
    good = (shards / "set-train.jsonl").read_bytes().splitlines(keepends=True)[:2]
    line = line if isinstance(line, bytes) else line.encode()
    path = shards / "wrong.jsonl"
    path.write_bytes(good[0] + line + good[1])
    with pytest.raises(UserError, match=words) as raised:
        StoredSamples(path)
    assert "\n" not in str(raised.value)


def test_what_is_no_stored_set_is_said(shards, rows, tmp_path):
    with pytest.raises(UserError, match="only .jsonl and shards .*can stay on the disk"):
        StoredSamples(rows / "rows-train.json")
    for name in ("none-*.tar", "none.jsonl"):
        with pytest.raises(UserError, match="no such file"):
            StoredSamples(tmp_path / name)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no row; make them with"):
        StoredSamples(tmp_path / "empty.jsonl")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        add(tar, "1.png", png("red"))
        add(tar, "1.json", b'{"caption": "a lake"}')
    with pytest.raises(UserError, match="1.json is not .*transform.py, then .* --pack"):
        StoredSamples(tmp_path / "other.tar")
    cut = (shards / "set-train-00000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(cut[:3000])
    with pytest.raises(UserError, match="cut.tar: .*the tar ends in the middle"):
        StoredSamples(tmp_path / "cut.tar")


def test_a_file_that_changes_under_a_run_is_said(shards, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x", "label": "y"}\n' * 3)
    stored = StoredSamples(path)
    path.write_text('{"prompt": "x"')
    with pytest.raises(UserError, match="rows.jsonl: changed since the run began"):
        stored[2]


# ---- training


def arguments(base, shards, save, *more):
    argv = f"--from_pretrained {base} --train-data {shards}/set-train-*.tar --save {save} --lr 0.01"
    argv += " --batch-size 2 --log-interval 1 --train-iters 24 --save-interval 5 --clip-grad 0.5"
    argv += " --eval-interval 100 --lora_dropout 0.1"
    return [*argv.split(), *map(str, more)]


def train(base, shards, save, *more, ranks=1):
    command = [sys.executable, PROJECT / "finetune_RemoteGLM.py"]
    command += arguments(base, shards, save, *more)
    result = fork_server.run(command, ranks, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def streamed(tiny_checkpoint, shards, tmp_path_factory):
    save = tmp_path_factory.mktemp("streamed")
    return save, train(tiny_checkpoint, shards, save, "--experiment-name", "whole")


def test_a_streamed_training_says_what_it_reads(streamed):
    said = streamed[1]
    assert "20 rows, 6 validation rows, 13 images; 24 steps of 2 rows" in said
    assert "training rows stay on the disk" in said and "validation loss" in said


def test_any_number_of_workers_gives_the_same_result(streamed, tiny_checkpoint, shards):
    save, _ = streamed
    train(tiny_checkpoint, shards, save, "--experiment-name", "workers", "--num-workers", 2)
    assert logged(save / "workers") == logged(save / "whole") and len(logged(save / "whole")) == 24


def test_a_streamed_training_goes_on_exactly_after_a_kill(
    streamed, tiny_checkpoint, shards, monkeypatch
):
    save, _ = streamed
    monkeypatch.setattr("train_runs.CACHE", ["off"])
    more = ("--experiment-name", "killed", "--num-workers", 2)
    started(*arguments(tiny_checkpoint, shards, save, *more), until=13)
    assert "resumed at step 1" in train(tiny_checkpoint, shards, save, *more, "--resume")
    assert logged(save / "killed") == logged(save / "whole")
    ours, theirs = (load_file(save / name / "24" / ADAPTER) for name in ("killed", "whole"))
    assert all((tensor == theirs[name]).all() for name, tensor in ours.items())


def test_lines_and_rows_in_memory_train_alike(tiny_checkpoint, shards, tmp_path):
    """Every step is the whole set: by one process from memory, by two from the disk."""
    common = ("--train-data", shards / "set-train.jsonl", "--lora_dropout", 0, "--train-iters", 6)
    more = (*common, "--vision_cache", "off", "--batch-size", 20)
    train(tiny_checkpoint, shards, tmp_path, *more, "--experiment-name", "memory")
    more = (*common, "--stream", "--batch-size", 10)
    train(tiny_checkpoint, shards, tmp_path, *more, "--experiment-name", "disk", ranks=2)
    losses = [[loss for _, loss, _ in logged(tmp_path / name)] for name in ("memory", "disk")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[0]) == 6


def test_rows_that_cannot_be_streamed_are_one_line(tiny_checkpoint, rows, tmp_path):
    command = [sys.executable, str(PROJECT / "finetune_RemoteGLM.py"), "--stream"]
    command += f"--from_pretrained {tiny_checkpoint} --train-data {rows}/rows-train.json".split()
    command += ["--save", str(tmp_path)]
    result = fork_server.run(command, env=ENVIRONMENT)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "give data/generate_prompt.py an --output that ends in .jsonl" in result.stderr
