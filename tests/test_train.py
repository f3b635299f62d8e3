"""Training as a user starts it: scripts in processes of their own, small networks, a few steps."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune_RemoteGLM as finetune
from model import UserError, checkpoint, load_assistant, read_image, rows as model_rows
from model.rows import RowDataset, check_images, collate, load_rows
from model.tokenizer import Tokenizer

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(*args, launcher=(sys.executable,), cwd=None, **env):
    return subprocess.run([*map(str, launcher), str(PROJECT / "finetune_RemoteGLM.py"), *map(str, args)], cwd=cwd,
                          capture_output=True, text=True, env=ENVIRONMENT | env, timeout=300)


def losses(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if "loss" in e], [e["valid"] for e in entries if "valid" in e]


@pytest.fixture(scope="module")
def pretrained(rows, config_file, vocabulary, tmp_path_factory):
    """From nothing on one-coloured pictures, long enough to learn which colour is which."""
    save = tmp_path_factory.mktemp("pretrain")
    result = run("--mode", "pretrain", "--model_config", config_file, "--tokenizer", vocabulary, "--train-data",
                 rows / "rows-train.json", "--save", save, "--experiment-name", "base", "--train-iters", 120, "--lr", 3e-3,
                 "--batch-size", 9, "--clip-grad", 1, "--eval-interval", 40, "--lr-decay-style", "linear", "--save-interval", 80)
    assert result.returncode == 0, result.stderr
    return save / "base", result


@pytest.fixture(scope="module")
def adapter(pretrained, rows, tmp_path_factory):
    """LoRA with the ancestor's whole command line."""
    save = tmp_path_factory.mktemp("lora")
    legacy = ("--experiment-name finetune-visualglm-6b --model-parallel-size 1 --mode finetune --train-iters 12 "
              "--resume-dataloader --max_source_length 64 --max_target_length 256 --lora_rank 4 --layer_range 0 1 "
              "--pre_seq_len 4 --distributed-backend nccl --lr-decay-style cosine --warmup .02 --checkpoint-activations "
              "--save-interval 300 --eval-interval 10000 --split 1 --eval-iters 10 --eval-batch-size 8 --zero-stage 1 "
              "--lr 0.01 --batch-size 4 --skip-init --fp16 --use_lora").split()
    result = run(*legacy, "--from_pretrained", pretrained[0], "--train-data", rows / "rows-train.json", "--valid-data",
                 rows / "rows-val.json", "--save", save)
    assert result.returncode == 0, result.stderr
    return save / "finetune-visualglm-6b", result


def test_pretraining_learns_to_look(pretrained, rows):
    folder, result = pretrained
    train, valid = losses(folder)
    assert train[-1] < 0.3 * train[0]
    assert valid[-1]["real"] < 0.5 < valid[-1]["swapped"] and valid[-1]["blank"] > 2 * valid[-1]["real"]
    assert sorted(p.name for p in folder.iterdir()) == ["120", "80", "latest", "log.jsonl", "loss.png"]
    assert (folder / "latest").read_text() == "120" and "9 rows, 3 held out, 12 images; 120 steps of 9 rows" in result.stdout
    assistant = load_assistant(folder, device="cpu")
    assert assistant.prompt == "这张遥感图像展现了什么场景？"
    answers = assistant.answer_batch([assistant.prompt] * 3, [read_image(rows / f"images/{i}.tif") for i in (9, 10, 11)],
                                     finetune_sampling())
    assert answers == ["红色的屋顶。", "绿色的农田。", "蓝色的河流。"]


def finetune_sampling():
    from model import Sampling
    return Sampling(temperature=0, max_new_tokens=20, repetition_penalty=1.0)


def test_the_ancestors_command_line(adapter, pretrained):
    folder, result = adapter
    for flag in ("--resume-dataloader", "--distributed-backend", "--split", "--skip-init"):
        assert flag in next(line for line in result.stdout.splitlines() if line.startswith("no effect any more"))
    assert "--fp16 needs a GPU: training in float32" in result.stderr
    assert re.search(r"trains lora .*'layers': \[0, 1\].* 3,072 parameters, \d", result.stdout)  # 2 layers x 4 x (48 + 48) x 4
    stored = load_file(folder / "12" / checkpoint.ADAPTER)
    assert len(stored) == 16 and any(t.abs().max() > 0 for name, t in stored.items() if "matrix_B" in name)
    network, _, card = checkpoint.load(folder, device="cpu")
    assert card["options"]["lr"] == 0.01 and card["step"] == 12
    base = checkpoint.load(pretrained[0], device="cpu")[0].state_dict()
    for name, tensor in network.state_dict().items():
        if ".original." in name:
            assert torch.equal(tensor, base[name.replace(".original", "")]), name


def test_two_processes_compute_what_one_computes(pretrained, rows, tmp_path):
    """Same global batch, ZeRO 0 and 2: the loss is a mean over the tokens of all processes."""
    eight = json.loads((rows / "rows-train.json").read_text(encoding="utf-8"))[:8]
    (tmp_path / "eight.json").write_text(json.dumps(eight))
    common = ["--from_pretrained", pretrained[0], "--train-data", tmp_path / "eight.json", "--image-root", rows, "--train-iters", 3,
              "--log-interval", 1, "--clip-grad", 0, "--lr", 0.01, "--lr-decay-style", "constant", "--save", tmp_path]
    torchrun = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]
    deepspeed = [Path(sys.executable).parent / "deepspeed", "--num_gpus", "2", "--master_port", "29741"]
    one = run(*common, "--batch-size", 6, "--experiment-name", "one")
    two = run(*common, "--batch-size", 3, "--experiment-name", "two", launcher=torchrun)
    three = run(*common, "--batch-size", 3, "--experiment-name", "three", "--zero-stage", 2, launcher=deepspeed)
    assert [r.returncode for r in (one, two, three)] == [0, 0, 0], one.stderr + two.stderr + three.stderr
    weights = [load_file(tmp_path / name / "3" / checkpoint.ADAPTER) for name in ("one", "two", "three")]
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            assert torch.allclose(tensor, other[name], atol=2e-4), name


@pytest.mark.parametrize("options, check", [
    (["--train-iters", 2, "--use_ptuning", "--pre_seq_len", 6],
     lambda card, t: card["method"] == {"name": "ptuning", "length": 6} and len(t) == 2),
    (["--train-iters", 2, "--bf16", "--lora_alpha", 8, "--lora_dropout", 0.1, "--layer_range", "0-1", "--weight_decay", 0.1],
     lambda card, t: card["method"]["dropout"] == 0.1 and all(v.dtype == torch.bfloat16 for v in t.values())),
    (["--train-iters", 2, "--use_qlora"], lambda card, t: card["method"]["name"] == "lora" and len(t) == 16),
    (["--epochs", 0.6, "--english", "--num-workers", 1, "--seed", 7, "--device", "cpu"],
     lambda card, t: card["english"] and card["step"] == 3),
], ids=["ptuning", "bf16", "qlora", "english"])
def test_options(pretrained, rows, tmp_path, options, check):
    result = run("--batch-size", 2, *options, "--from_pretrained", pretrained[0], "--train-data", rows / "rows-train.json",
                 "--save", tmp_path, "--experiment-name", "x", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    _, _, card = checkpoint.load(tmp_path / "x", device="cpu")
    step = (tmp_path / "x" / "latest").read_text()
    assert check(card, load_file(tmp_path / "x" / step / checkpoint.ADAPTER))


def test_nf4_stays_near_full_precision(pretrained):
    """Logits with 4-bit weights: not equal, but as near as rounding to 16 levels allows; only the blocks' weights change."""
    from model.quantization import to_nf4
    full, quantized = (checkpoint.load(pretrained[0], device="cpu")[0] for _ in range(2))
    checkpoint.add_lora(quantized, 2, 1.0, [0])
    to_nf4(quantized)
    ids, prefix = torch.tensor([[5, 6, 7, 8, 9, 10, 509, 510, 20]]), torch.tensor([7])
    with torch.no_grad():
        a, b = full(ids, prefix)[0], quantized(ids, prefix)[0]
    assert 0 < (a - b).norm() / a.norm() < 0.3
    four_bit = [name for name, p in quantized.named_parameters() if p.dtype == torch.uint8]
    assert len(four_bit) == 8 and all(name.startswith("transformer.layers.") for name in four_bit)


def test_the_tiny_base_is_made_by_its_script(tmp_path, rows):
    """model/tiny/make.py from pictures to a base in half precision, with few of everything."""
    result = subprocess.run([sys.executable, PROJECT / "model/tiny/make.py", "--work", tmp_path, "--output", tmp_path / "base",
                             "--pictures", "40", "--iters", "2", "2", "1"], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    made, committed = (load_file(folder / checkpoint.FULL) for folder in (tmp_path / "base", PROJECT / "model/tiny/base"))
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {n: (t.shape, t.dtype) for n, t in committed.items()}
    assert sum(t.numel() for t in made.values()) <= 10e6 and (PROJECT / "model/tiny/base" / checkpoint.FULL).stat().st_size <= 12e6
    keywords = json.loads((tmp_path / "keywords-train.json").read_text(encoding="utf-8"))
    assert all("的" not in row["label"] and "。" not in row["label"] for row in keywords if "img" in row)
    assistant = load_assistant(tmp_path / "base", device="cpu")
    assert isinstance("".join(assistant.stream("你好", read_image(rows / "images/0.tif"))), str)


def test_shell_script(pretrained, rows, tmp_path):
    """finetune_RemoteGLM.sh from another directory, two processes by NUM_GPUS, dialogues and rows without a picture."""
    talk = [{"img": str(rows / "images/0.tif"), "conversations": [
        {"role": "user", "content": "有什么？"}, {"role": "assistant", "content": "屋顶。"},
        {"role": "user", "content": "什么颜色？"}, {"role": "assistant", "content": "红色。"}]},
        {"prompt": "你好", "label": "是"}]
    (tmp_path / "talk.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in talk), encoding="utf-8")
    result = subprocess.run(
        ["bash", PROJECT / "finetune_RemoteGLM.sh", "--from_pretrained", pretrained[0], "--train-data", "talk.jsonl", "--save",
         tmp_path, "--train-iters", "2", "--batch-size", "2"],
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT | {"NUM_GPUS": "2"}, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "3 rows, 0 held out, 1 images" in result.stdout and "2 process(es)" in result.stdout


class TestRows:
    def test_dialogue_becomes_one_sample_per_round(self, rows, tmp_path, vocabulary, tiny_config):
        turns = [{"role": r, "content": c} for r, c in (("user", "甲"), ("assistant", "农田"), ("user", "乙"), ("assistant", "河流"))]
        path = tmp_path / "a.json"
        path.write_text(json.dumps([{"img": str(rows / "images/1.tif"), "conversations": turns}]))
        samples = load_rows(path)
        assert [(s.question, s.answer, s.history) for s in samples] == [("甲", "农田", ()), ("乙", "河流", (("甲", "农田"),))]
        tokenizer = Tokenizer(vocabulary, tiny_config)
        dataset = RowDataset(samples, tokenizer, tiny_config, max_source=None, max_target=None)
        batch = collate([dataset[0], dataset[1]])
        flat = batch["input_ids"].flatten()
        assert torch.equal(flat[batch["target_positions"] + 1], batch["targets"])
        trained = [tokenizer.decode(batch["targets"][batch["target_positions"] // batch["input_ids"].size(1) == i].tolist()) for i in (0, 1)]
        assert trained == ["农田", "河流"] and batch["pixels"].shape == (2, 3, 28, 28)

    def test_padding_and_mixed_rows_do_not_change_the_loss(self, rows, vocabulary, tiny_config, tiny_checkpoint):
        """Rows alone against the same rows in one padded batch with and without pictures."""
        network, tokenizer, _ = checkpoint.load(tiny_checkpoint, device="cpu")
        samples = load_rows(rows / "rows-train.json")[:2] + [model_rows.Sample(None, "你好" * 20, "是。")]
        dataset = RowDataset(samples, tokenizer, tiny_config, max_source=None, max_target=None)
        with torch.no_grad():
            whole = network(**collate([dataset[i] for i in range(3)]))[1]
            parts = [(network(**collate([dataset[i]]))[1] * len(dataset.rows[i].target_positions)) for i in range(3)]
        tokens = sum(len(row.target_positions) for row in dataset.rows)
        assert abs(whole - sum(parts) / tokens) < 1e-5

    def test_swapped_images_are_other_images(self, rows):
        samples = load_rows(rows / "rows-train.json")
        swapped = finetune.swap_images(samples, 1)
        assert all(a.image != b.image and a.answer == b.answer for a, b in zip(samples, swapped))
        assert sorted(s.image for s in swapped) == sorted(s.image for s in samples)

    BAD = {
        "no file": (None, "no such file"),
        "not json": ("[{", "not readable as JSON"),
        "an object": ('{"a": 1}', "expected a list of .*got dict; make it with data/generate_prompt.py"),
        "empty": ("[]", "got an empty list"),
        "wrong keys": ('[{"image": "a", "text": "b"}]', "1 of 1 wrong: row 0: has keys image, text"),
        "empty label": ('[{"img": "a", "prompt": "b", "label": " "}]', "row 0: has keys img, prompt, label"),
        "missing image": ('[{"img": "no.tif", "prompt": "b", "label": "c"}]', "row 0: image not found at .*no.tif or .*no.tif"),
        "roles": ('[{"conversations": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}]', "expected assistant"),
        "odd turns": ('[{"conversations": [{"role": "user", "content": "a"}]}]', "list of user and assistant turns"),
    }

    @pytest.mark.parametrize("case", BAD)
    def test_bad_rows(self, tmp_path, case):
        content, words = self.BAD[case]
        if content is not None:
            (tmp_path / "rows.json").write_text(content)
        with pytest.raises(UserError, match=words) as caught:
            load_rows(tmp_path / "rows.json")
        assert "\n" not in str(caught.value)

    def test_image_root_is_the_only_place_when_given(self, rows, tmp_path):
        shutil.copy(rows / "rows-val.json", tmp_path / "rows.json")
        with pytest.raises(UserError, match="3 of 3 wrong"):
            load_rows(tmp_path / "rows.json")
        assert len(load_rows(tmp_path / "rows.json", rows)) == 3

    def test_unreadable_images_are_all_named_before_training(self, rows, tmp_path):
        shutil.copytree(rows, tmp_path / "r")
        for name, content in (("0", b"not a picture"), ("4", (rows / "images/4.tif").read_bytes()[:300])):
            (tmp_path / "r/images" / f"{name}.tif").write_bytes(content)
        with pytest.raises(UserError, match="2 of 9 wrong: image .*0.tif: .*; image .*4.tif: "):
            check_images(load_rows(tmp_path / "r/rows-train.json"), "rows")


@pytest.mark.parametrize("options, words", [
    ("--model-parallel-size 2", "--model-parallel-size 2: only 1"),
    ("--epochs 1 --train-iters 5", "exclude each other"),
    ("--fp16 --bf16 --lr 0", "--fp16 and --bf16 exclude each other.*--lr 0.0: must be above 0"),
    ("--use_lora --use_ptuning", "exclude each other"),
    ("--use_qlora --use_ptuning", "exclude each other"),
    ("--mode pretrain --use_qlora", "trains all parameters"),
    ("--model_config a.json", "only --mode pretrain"),
    ("--layer_range all", "--layer_range all: expected numbers"),
])
def test_contradictions(capsys, options, words):
    with pytest.raises(SystemExit):
        finetune.parse(options.split())
    assert re.search(words, capsys.readouterr().err)


def test_layer_range_forms():
    assert finetune.layers(["0", "14"]) == [0, 14] and finetune.layers(["0-3", "9"]) == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("options, words", [
    (["--train-data", "nowhere.json"], "rows nowhere.json: no such file"),
    (["--from_pretrained", "nowhere"], "checkpoint nowhere: no such folder"),
    (["--save", "/proc/x"], "checkpoint folder /proc/x/RemoteGLM cannot be written"),
    (["--layer_range", "5"], r"layer_range names layers \[5\]"),
], ids=["rows", "base", "save", "layers"])
def test_user_errors_are_one_line(pretrained, rows, tmp_path, options, words):
    result = run("--from_pretrained", pretrained[0], "--train-data", rows / "rows-train.json", "--save", tmp_path, *options)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert result.returncode == 1 and len(lines) == 1 and re.search(words, lines[0]), result.stderr
