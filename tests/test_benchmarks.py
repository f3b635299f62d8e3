"""What the benchmarks compare with must be the same network, or the comparison says nothing."""

import importlib
import json
import shutil
import signal
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from conftest import PROJECT
from PIL import Image

sys.path.append(str(PROJECT / "benchmarks"))  # at the end: its data.py would hide data/


def test_the_baseline_is_the_same_network(tiny_config, vocabulary):
    import baseline

    from model.visualglm.network import VisualGLM
    from model.visualglm.prompt import render
    from model.visualglm.tokenizer import Tokenizer

    torch.manual_seed(0)
    ours, theirs = VisualGLM(tiny_config).eval(), baseline.network(tiny_config)
    theirs.load_state_dict(ours.state_dict())
    tokenizer = Tokenizer(vocabulary, tiny_config)
    rows = [
        render(tokenizer, "图中有什么？", answer, image_slots=8)
        for answer in ("两块网球场。", "这是一片绿色的农田。")
    ]
    input_ids, labels = baseline.padded(rows, tiny_config["pad_token_id"])
    pixels, start = torch.randn(2, 3, 28, 28), rows[0].image_start
    with torch.no_grad():
        expected = theirs(input_ids=input_ids, pixels=pixels, image_start=start)[0]
        prefix = torch.tensor([row.prefix for row in rows])
        got = ours(input_ids, prefix, pixels=pixels, image_start=start)[0]
    assert input_ids.shape == (2, 320)
    for row, got_row, expected_row, label in zip(rows, got, expected, labels):
        torch.testing.assert_close(
            got_row[: len(row.ids)], expected_row[: len(row.ids)], atol=1e-5, rtol=1e-4
        )
        trained = (label[1:] != baseline.IGNORED).nonzero().flatten()
        assert trained.tolist() == list(row.target_positions)
        assert label[1:][trained].tolist() == [row.ids[t + 1] for t in row.target_positions]


def test_brief_rows_say_the_scene_first_and_one_thing_more():
    import effect

    def row(text, name="a.tif"):
        return {"img": f"/images/{name}", "prompt": "描述这张图。", "label": text}

    sentences = [
        "a harbor with many boats and a car",
        "there are boats in the harbor",
        "a harbor with a car and a building",
    ]
    images = [
        {"filename": name, "sentences": [{"raw": text} for text in sentences]}
        for name in ("a.tif", "b.tif")
    ]
    scenes = [row("港口。")]
    kept = effect.brief(
        [
            # The water and the pier follow from the harbour, the boats are one thing more.
            row("港口里停着许多船。"),
            row("港口的水面上停着许多船。"),
            row("许多船整齐地停着。"),  # names no scene: it is said before it
            row("港口里停着许多船，旁边有一辆汽车。"),  # two things more
            row("一片沙滩旁停着许多船。"),  # another scene
            row("港口里停着许多船。", "b.tif"),  # of which no scene is agreed
        ],
        scenes,
        images,
    )
    assert [r["label"] for r in kept] == [
        "港口。港口里停着许多船。",
        "港口。港口的水面上停着许多船。",
        "港口。许多船整齐地停着。",
    ]
    assert kept[0] == row("港口。港口里停着许多船。")


def test_folds_share_out_the_training_images_and_nothing_else(tmp_path):
    import effect

    data = tmp_path / "UCM"
    data.mkdir()
    images, records = [], []
    for index in range(2 * effect.FOLDS * effect.BLOCK + 7):
        name, split = f"{index}.tif", "val" if index % 9 == 8 else "train"
        images.append({"filename": name, "split": split, "sentences": []})
        records.append({"imged_id": name, "caption": "港口。", "split": split})
    (data / "dataset.json").write_text(json.dumps({"images": images, "dataset": "UCM"}))
    (data / "UCM-zh.json").write_text(json.dumps(records))
    train = [image["filename"] for image in images if image["split"] == "train"]

    held_out = []
    for fold in range(effect.FOLDS):
        captions, whole = effect.split_again(data, tmp_path, fold)
        split = {i["filename"]: i["split"] for i in effect.read(captions)["images"]}
        assert list(split) == train
        assert {r["imged_id"]: r["split"] for r in effect.read(whole)} == split
        val = [name for name in train if split[name] == "val"]
        # Neighbours stay together
        places = [train.index(name) // effect.BLOCK for name in val]
        assert {place % effect.FOLDS for place in places} == {fold}
        held_out += val
    assert sorted(held_out) == sorted(train)


def test_split_finds_what_a_linear_classifier_finds():
    import split

    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(120) % 3
    features = torch.randn(120, 5, generator=generator) * 0.1
    features[torch.arange(120), classes] += 1
    train = torch.arange(120) < 90
    assert split.accuracy(features, classes, train) == 100
    # In the other part each class looks like another one.
    moved = torch.where(train, classes, (classes + 1) % 3)
    assert split.accuracy(features, moved, train) == 0


def caption_set(folder, *splits, raw="A beach ."):
    """A set of one-coloured images of these splits; returns its folder."""
    (folder / "images").mkdir()
    images = []
    for index, name in enumerate(splits):
        Image.new("RGB", (40, 40), "blue").save(folder / "images" / f"{index}.png")
        images.append({"filename": f"{index}.png", "split": name, "sentences": [{"raw": raw}]})
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "UCM"}))
    return folder


def test_the_test_images_of_a_set_are_not_looked_at(tmp_path):
    import split

    features, classes, train = split.load_set(caption_set(tmp_path, "train", "test", "val"))
    assert len(features) == 2 and classes.tolist() == [0, 0] and train.tolist() == [True, False]


@pytest.mark.parametrize("script", ["split", "effect"])
@pytest.mark.parametrize("name", ["nowhere", "dataset.json", "images"])
def test_a_folder_that_is_no_caption_set_is_one_line(script, name, tmp_path, monkeypatch, capsys):
    """Before the work: effect.py would draw and train first."""
    module = importlib.import_module(script)
    work = tmp_path / "work"
    folder = caption_set(tmp_path, "train", "val")
    (folder / f"{folder.name}-zh.json").write_text("[]")
    if name == "images":
        shutil.rmtree(folder / name)
    elif name == "dataset.json":
        (folder / name).unlink()
    else:
        folder /= name
    options = ["--work", str(work)] if script == "effect" else []
    monkeypatch.setattr(sys, "argv", [script, "--data", str(folder), *options])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    said = capsys.readouterr().err
    missing = "dataset.json" if name == "nowhere" else name
    assert f"error: --data {folder}: no {missing}" in said and said.count("\n") == 1
    assert "expected the folder of a caption set with dataset.json, " in said
    assert not work.exists()


@pytest.mark.parametrize(
    "splits, raw, words",
    [
        (("train", "train"), "A beach .", "dataset.json: 2 train and 0 val images"),
        (("train", "val"), "Something .", "dataset.json: 0 train and 0 val images"),
        (("train", "val"), 5, "expected text in 'raw'"),
    ],
)
def test_a_set_that_cannot_be_split_is_one_line(splits, raw, words, tmp_path, monkeypatch, capsys):
    import split

    folder = caption_set(tmp_path, *splits, raw=raw)
    monkeypatch.setattr(sys, "argv", ["split", "--data", str(folder)])
    with pytest.raises(SystemExit, match="2"):
        split.main()
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_an_image_of_a_set_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    import split

    folder = caption_set(tmp_path, "train", "val")
    (folder / "images" / "1.png").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["split", "--data", str(folder)])
    with pytest.raises(SystemExit, match="2"):
        split.main()
    said = capsys.readouterr().err
    assert "1.png" in said and said.count("\n") == 1


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def tiny_size():
    import networks

    return networks.config(
        layers=1,
        width=128,
        heads=4,
        inner=256,
        vocabulary=2200,
        vit=(1, 32, 2, 64),
        qformer=(2, 32, 2),
        image_size=28,
        slots=8,
    )


def run_full_size(monkeypatch, folder, *options):
    """benchmarks/train.py --full-size with a tiny network in the place of VisualGLM-6B's size."""
    import train

    monkeypatch.setattr(train, "full_size", tiny_size)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder.parent))  # torch's own, else there
    monkeypatch.setattr(sys, "argv", ["train.py", "--full-size", *options])
    before = signal.getsignal(signal.SIGTERM)
    train.main()
    assert signal.getsignal(signal.SIGTERM) == before


def test_full_size_without_a_gpu(monkeypatch, no_gpu, tmp_path, capsys):
    run_full_size(monkeypatch, tmp_path, "--threads", "1")
    printed = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    rows = {cells[0]: cells[1:] for cells in lines[2:]}
    assert list(rows) == [
        "LoRA, bfloat16: 2 steps",
        "QLoRA, bfloat16: 2 steps",
        "export to int4",
        "2 answers, --quant 8",
        "2 answers, --quant 4",
        "2 answers of the int4 export",
    ]
    for what, (seconds, one, speed, anonymous, resident) in rows.items():
        assert float(seconds) > 0
        assert 0.05 < float(anonymous) <= float(resident) < 5
        assert (one.strip() == speed.strip() == "") == (what == "export to int4")
    assert "answers of 30 tokens" in printed
    assert list(tmp_path.iterdir()) == []


def test_full_size_needs_room(monkeypatch, no_gpu, tmp_path):
    import without_gpu

    monkeypatch.setattr(without_gpu, "kernel_bytes", lambda file, name: 1000)
    with pytest.raises(SystemExit, match=r"takes .* GB of memory, 0.00 GB are free$"):
        run_full_size(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run_full_size(monkeypatch, tmp_path, "--batch-size", "8")


def test_qwen3_vl_in_small(monkeypatch, no_gpu, tmp_path, capsys):
    """Steps, answers, and what a LoRA step must cost, by the scripts that train and answer."""
    import qwen3_vl

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent))  # torch's own, else there
    options = "--methods lora --checkpointing on --batch-size 2 --steps 3 --answers 2 --tokens 4"
    monkeypatch.setattr(sys, "argv", ["qwen3_vl.py", "--threads", "1", *options.split()])
    qwen3_vl.main()
    printed = capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    trained, answered = (dict(zip(lines[start], lines[start + 2])) for start in (0, 3))
    assert trained["method"] == "lora" and trained["images are encoded"] == "once, before"
    assert float(trained["images/s"]) == pytest.approx(2 / float(trained["s/step"]), rel=0.05)
    per_image = float(trained["tokens/s"]) / float(trained["images/s"])
    assert 100 < per_image < 170
    speed = 2 * 4 / float(answered["s/batch"])
    assert float(answered["tokens/s"]) == pytest.approx(speed, rel=0.15)

    # Weights of the small size's layers: q and o, k and v, three of the MLP
    layer = 256 * (2 * 4 * 64 + 2 * 2 * 64 + 3 * 768)
    assert f"4 x ({4 * layer / 1e6:.1f} M weights" in printed
    assert f"{4096 * 256 / 1e6:.1f} M of the head" in printed
    assert list(tmp_path.iterdir()) == []


def test_peers_in_small(monkeypatch, tmp_path, capsys):
    """This project and transformers' Trainer take the same steps from the same weights."""
    import hf_networks
    import peers

    small = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512}
    text, tower = hf_networks.LLAVA_TEXT | small, hf_networks.LLAVA_TOWER | {"num_hidden_layers": 2}
    monkeypatch.setattr(hf_networks.llava, "__defaults__", (text, tower))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent))  # torch's own, else there
    options = "--count 6 --epochs 2 --batch-size 2 --threads 1"
    for name in peers.ENVIRONMENT:  # main sets them: they are gone afterwards
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["peers.py", *options.split()])
    peers.main()
    lines = capsys.readouterr().out.splitlines()
    lines = [line.strip("| ").split(" | ") for line in lines if line[:1] == "|"]
    ours, theirs = (dict(zip(lines[0], line)) for line in lines[2:4])
    assert (ours["way"], theirs["way"]) == ("RemoteGLM", "Trainer + peft")
    differ = theirs["losses of 20 steps differ by"]
    assert float(differ.split("%")[0]) < 0.1
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_fails_says_why():
    import processes
    import qwen3_vl

    def measure():
        command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
        return processes.watch(command, threads=1)

    columns = ("s/batch", "tokens/s")
    row = qwen3_vl.row({"batch": 1}, columns, measure)
    assert row == {"batch": 1, "s/batch": "no such thing", "tokens/s": ""}


@pytest.mark.parametrize("size, billions", [("2B", 2.13), ("4B", 4.44), ("8B", 8.77)])
def test_sizes_of_qwen3_vl(size, billions):
    """Weights as the published checkpoints count them; the memory that the READMEs name."""
    import transformers
    from hf_checkpoints import QWEN_WORDS, make_tokenizer
    from hf_networks import configuration

    from model.hf.adapter import linear_layers
    from model.hf.family import HFFamily
    from model.hf.types import part_of

    ids = make_tokenizer(QWEN_WORDS).convert_tokens_to_ids
    with torch.device("meta"):
        network = transformers.AutoModelForImageTextToText.from_config(configuration(size, ids))
    weights = sum(p.numel() for p in network.parameters())
    assert weights / 1e9 == pytest.approx(billions, abs=0.01)

    # The READMEs' table: bfloat16; LoRA's weights, gradients and AdamW's state
    layers = linear_layers(network).items()
    layers = [layer for name, layer in layers if part_of(name) == "language"]
    blocks = sum(layer.weight.numel() for layer in layers)
    states = 16 * sum(10 * (layer.in_features + layer.out_features) for layer in layers)
    estimates = []
    for frozen, recomputes in (
        (2 * weights, False),
        (2 * weights, True),
        (2 * weights - 1.5 * blocks, True),
    ):
        family = SimpleNamespace(
            network=SimpleNamespace(base=network), dtype=torch.bfloat16, _recomputes=recomputes
        )
        kept = HFFamily.activation_bytes(family, 576 + 64, 40)
        estimates.append(f"{(frozen + states + kept) / 1e9:.1f} GB")
    for readme in ("README.md", "README_en.md"):
        row = f"| Qwen3-VL {size} | {' | '.join(estimates)} |"
        assert row in (PROJECT / readme).read_text(encoding="utf-8")


def test_a_command_without_memory_is_ended_and_its_row_says_so():
    import processes
    import without_gpu

    command = [sys.executable, "-c", "import time; time.sleep(60)"]

    def measure():
        return processes.watch(command, threads=1, least_available=2**60)

    row = without_gpu.row("sleep", measure)
    assert row["what"] == "sleep" and "not enough memory: ended at" in row["seconds"]
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(MemoryError, match="not enough memory"):
        processes.watch(killed, threads=1)


def test_answers_that_end_early_are_no_measurement(monkeypatch, tmp_path):
    import without_gpu

    entry = {"answer": "港口。"}

    def watch(command, threads, reached):
        output = command[command.index("--output") + 1]
        with open(output, "w", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n" + "half a line")
        assert list(reached()) == [1]
        with open(output, "w", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    monkeypatch.setattr(without_gpu, "watch", watch)
    monkeypatch.setattr(without_gpu, "prompt_length", lambda bench, file: 40)
    bench = SimpleNamespace(folder=tmp_path, device="cpu", threads=1)
    with pytest.raises(SystemExit, match="ended before 30 tokens"):
        without_gpu.answered(bench, "rows.json", tmp_path, {})
    entry["truncated"] = True
    assert without_gpu.answered(bench, "rows.json", tmp_path, {})[1] == 30


def test_answers_are_timed_against_the_same_tokens(monkeypatch, no_gpu, tmp_path, capsys):
    import generate
    import networks

    networks.random_base(tmp_path / "base", tiny_size())
    seconds = generate.read(tmp_path / "base", tokens=3, readings=1, device="cpu")
    assert list(seconds) == ["baseline", "float32", "bfloat16", "int8", "int4"]
    for way, readings in seconds.items():
        assert len(readings.token) == 2
        assert len(readings.together) == (way != "baseline")
        assert len(readings.step) == 2 * (way != "baseline")
        assert min(readings.medians().values()) > 0

    monkeypatch.setattr(sys, "argv", ["generate.py", "--full-size"])
    with pytest.raises(SystemExit) as left:
        generate.main()
    assert left.value.code == 2
    assert "--full-size needs a CUDA GPU" in capsys.readouterr().err


def test_a_map_of_known_fields_is_measured(tmp_path):
    """Answers of which one in four is wrong, on a map of 2 x 2 fields within a border."""
    pytest.importorskip("rasterio")
    import rasterio
    import scene

    from data.instructions import word

    fields = scene.draw_fields(2, seed=1)
    path = tmp_path / "a.tif"
    scene.write_scene(path, fields, 64)
    with rasterio.open(path) as file:
        assert (file.width, file.height, file.crs.to_epsg()) == (256, 256, 32650)
        assert not file.read()[:, :64].any() and file.read()[:, 64:192, 64:192].all()

    known = [truth.scene for _, truth in fields]
    other = next(name for name in ("church", "desert") if name not in known)
    said = [f"{word(name, 'scenes')}。" for name in (*known[:3], other)]

    class Named(scene.Silent):
        def answer_batch(self, questions, *rest, **options):
            return [said.pop(0) for _ in questions]

    options = {"tile": 64, "overlap": 0.0, "min_confidence": 0.0}
    grid, lines, _ = scene.run(Named(), path, tmp_path / "map", **options)
    assert scene.right_tiles(lines, fields, 64) == [True, True, True, False]
    # 3 of 4 + 4 - 3
    assert scene.overlap_by_area(grid, lines, fields, 64, 0) == pytest.approx(3 / 5)
    # a cell that reaches over a border is cut there
    assert list(scene.within_fields([48, 80, 192], 64)) == [
        *((0, 48, 64), (0, 64, 80), (1, 80, 128), (1, 128, 192)),
    ]
    assert scene.share([True] * 3 + [False]) == "75.0 ± 42.4"
