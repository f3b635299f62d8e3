"""Training as a user starts it: scripts in processes of their own, small networks, a few steps."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import fork_server
import pytest
import torch
from conftest import PROJECT, load
from safetensors.torch import load_file
from train_runs import ENVIRONMENT, losses, run, started

from data.synthetic import make_tiny_base
from model import UserError, load_assistant, read_image
from model.opening import export_checkpoint, open_checkpoint
from model.visualglm.lora import add_lora
from model.weight_files import ADAPTER, FULL

pytestmark = pytest.mark.usefixtures("vision_cache")

TORCHRUN = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def adapter(pretrained, rows, tmp_path_factory):
    """LoRA with upstream's whole command line."""
    save = tmp_path_factory.mktemp("lora")
    legacy = (
        "--experiment-name finetune-visualglm-6b --model-parallel-size 1 --mode finetune "
        "--train-iters 12 --resume-dataloader --max_source_length 64 --max_target_length 256 "
        "--lora_rank 4 --layer_range 0 1 --pre_seq_len 4 --distributed-backend nccl "
        "--lr-decay-style cosine --warmup .02 --checkpoint-activations --save-interval 300 "
        "--eval-interval 10000 --split 1 --eval-iters 10 --eval-batch-size 8 --zero-stage 1 "
        "--lr 0.01 --batch-size 4 --skip-init --fp16 --use_lora"
    ).split()
    result = run(
        *legacy,
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--valid-data",
        rows / "rows-val.json",
        "--save",
        save,
    )
    assert result.returncode == 0, result.stderr
    return save / "finetune-visualglm-6b", result


def test_pretraining_learns_to_look(pretrained, rows):
    folder, result = pretrained
    train, valid = losses(folder)
    assert train[-1] < 0.3 * train[0]
    assert (
        valid[-1]["real"] < 0.5 < valid[-1]["shuffled"]
        and valid[-1]["blank"] > 2 * valid[-1]["real"]
    )
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == [
        "120",
        "40",
        "80",
        "best",
        "latest",
        "loss.png",
        "metrics.jsonl",
    ]
    assert (
        (folder / "latest").read_text() == "120"
        and "9 rows, 3 validation rows, 12 images; 120 steps of 9 rows" in result.stdout
    )
    assistant = load_assistant(folder, device="cpu")
    assert assistant.prompt == "这张遥感图像展现了什么场景？"
    answers = assistant.answer_batch(
        [assistant.prompt] * 3,
        [read_image(rows / f"images/{i}.tif") for i in (9, 10, 11)],
        finetune_sampling(),
    )
    assert answers == ["红色的屋顶。", "绿色的农田。", "蓝色的河流。"]


def finetune_sampling():
    from model import Sampling

    return Sampling(temperature=0, max_new_tokens=20, repetition_penalty=1.0)


def test_the_ancestors_command_line(adapter, pretrained):
    folder, result = adapter
    for flag in ("--resume-dataloader", "--distributed-backend", "--split", "--skip-init"):
        assert flag in next(
            line for line in result.stdout.splitlines() if line.startswith("no effect any more")
        )
    assert "--dtype float16 needs a GPU: training in float32" in result.stderr
    assert re.search(
        r"trains lora .*'layers': \[0, 1\].* 3,072 parameters, \d", result.stdout
    )  # 2 layers x 4 x (48 + 48) x 4
    stored = load_file(folder / "12" / ADAPTER)
    assert len(stored) == 16 and any(
        t.abs().max() > 0 for name, t in stored.items() if "matrix_B" in name
    )
    network, _, card = load(folder, device="cpu")
    assert card["options"]["lr"] == 0.01 and card["step"] == 12
    base = load(pretrained[0], device="cpu")[0].state_dict()
    for name, tensor in network.state_dict().items():
        if ".original." in name:
            assert torch.equal(tensor, base[name.replace(".original", "")]), name


@pytest.fixture(scope="module")
def long_and_short(rows, tmp_path_factory):
    """Rows whose answers differ in length, so that a mean over passes or processes would differ
    from one over tokens.
    """
    folder = tmp_path_factory.mktemp("lengths")
    picked = json.loads((rows / "rows-train.json").read_text(encoding="utf-8"))[:8]
    for index, row in enumerate(picked):
        row["label"] *= 1 + index % 4
    (folder / "rows.json").write_text(json.dumps(picked), encoding="utf-8")
    return [
        "--train-data",
        folder / "rows.json",
        "--image-root",
        rows,
        "--log-interval",
        1,
        "--lr",
        0.01,
        "--lr-decay-style",
        "constant",
    ]


def test_processes_accumulation_and_zero_stages_do_not_change_the_result(
    pretrained, long_and_short, tmp_path
):
    """Six rows a step: at once, in two passes, by two processes, with every ZeRO stage and
    offloading: the same losses.
    """
    ways = {
        "one": (["--batch-size", 6], {}),
        "accumulated": (["--batch-size", 2, "--gradient-accumulation-steps", 3], {}),
        "two": (["--batch-size", 3], {"launcher": TORCHRUN}),
        "zero 1": (["--batch-size", 6, "--zero-stage", 1, "--offload"], {}),
        "zero 2": (
            ["--batch-size", 3, "--zero-stage", 2],
            {
                "launcher": [
                    Path(sys.executable).parent / "deepspeed",
                    "--num_gpus",
                    "2",
                    "--master_port",
                    "29741",
                ]
            },
        ),
        "zero 3": (
            ["--batch-size", 1, "--gradient-accumulation-steps", 3, "--zero-stage", 3],
            {"ranks": 2},
        ),
    }
    found = {}
    for name, (options, how) in ways.items():
        result = run(
            "--from_pretrained",
            pretrained[0],
            *long_and_short,
            *options,
            "--train-iters",
            5,
            "--clip-grad",
            0.5,
            "--save",
            tmp_path,
            "--experiment-name",
            name.replace(" ", ""),
            **how,
        )
        assert result.returncode == 0, name + result.stderr
        found[name] = losses(tmp_path / name.replace(" ", ""))[0]
        assert len(found[name]) == 5
        stored = load_file(tmp_path / name.replace(" ", "") / "5" / ADAPTER)
        assert len(stored) == 16 and all(
            tensor.any() for tensor in stored.values()
        )  # matrix_B starts as zeros: all have learnt
    for name, values in found.items():
        assert values == pytest.approx(found["one"], abs=1e-5), name
    run(
        "--from_pretrained",
        pretrained[0],
        *long_and_short,
        *ways["one"][0],
        "--lr",
        1e-9,
        "--train-iters",
        5,
        "--save",
        tmp_path,
        "--experiment-name",
        "still",
    )
    unlearnt = losses(tmp_path / "still")[0]  # of the same rows
    assert (
        found["one"][0] == pytest.approx(unlearnt[0], abs=1e-5) and found["one"][-1] < unlearnt[-1]
    )


@pytest.mark.parametrize(
    "ranks, batch, more",
    [
        (1, 4, ["--lora_dropout", 0.2, "--augment", 0.7, "--patch_dropout", 0.5]),
        (2, 2, ["--zero-stage", 2]),
    ],
    ids=["one process", "two processes"],
)
def test_resume_is_exact(pretrained, long_and_short, tmp_path, ranks, batch, more):
    """40 steps at one go against kill -9 after step 23 and --resume: every later loss is equal, to
    the last bit.
    """
    common = [
        "--from_pretrained",
        pretrained[0],
        *long_and_short,
        "--batch-size",
        batch,
        "--train-iters",
        40,
        "--save-interval",
        10,
        "--save",
        tmp_path,
        *more,
    ]
    whole = run(*common, "--experiment-name", "whole", ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    folder = started(*common, "--experiment-name", "killed", until=23, ranks=ranks)
    assert (folder / "latest").read_text() in ("20", "30")
    assert "holds a run already, at step" in run(*common, "--experiment-name", "killed").stderr
    again = run(*common, "--experiment-name", "killed", "--resume", ranks=ranks)
    assert again.returncode == 0 and re.search("resumed at step [23]0", again.stdout), again.stderr
    assert losses(folder)[0] == losses(tmp_path / "whole")[0] and len(losses(folder)[0]) == 40
    ours, theirs = (load_file(tmp_path / name / "40" / ADAPTER) for name in ("killed", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    done = run(*common, "--experiment-name", "killed", "--resume", ranks=ranks)
    assert done.returncode == 0 and "is finished at step 40: nothing to do" in done.stdout


@pytest.mark.parametrize(
    "options, check",
    [
        (
            ["--train-iters", 2, "--use_ptuning", "--pre_seq_len", 6],
            lambda card, t: card["method"] == {"name": "ptuning", "length": 6} and len(t) == 2,
        ),
        (
            [
                "--train-iters",
                2,
                "--bf16",
                "--lora_alpha",
                8,
                "--lora_dropout",
                0.1,
                "--layer_range",
                "0-1",
                "--weight_decay",
                0.1,
            ],
            lambda card, t: (
                card["method"]["dropout"] == 0.1
                and all(v.dtype == torch.bfloat16 for v in t.values())
            ),
        ),
        (
            ["--train-iters", 2, "--use_qlora"],
            lambda card, t: card["method"]["name"] == "lora" and len(t) == 16,
        ),
        (
            ["--train-iters", 2, "--lora_targets", "mlp", "vision", "projection", "--lora_rank", 2],
            lambda card, t: (
                len(t) == 2 * (2 * 2 + 1) + 2 * 2 * 4 and any("vit" in name for name in t)
            ),
        ),
        (
            ["--train-iters", 2, "--trainable", "projection", "--layer_range", "0"],
            lambda card, t: (
                card["method"]["parts"] == ["projection"]
                and len(t) == 8 + 2
                and "mixins.eva.model.glm_proj.weight" in t
            ),
        ),
        (
            ["--train-iters", 2, "--compile", "--checkpoint-activations"],
            lambda card, t: len(t) == 16,
        ),
        (
            [
                "--train-iters",
                2,
                "--adam_beta1",
                0.8,
                "--adam_beta2",
                0.9,
                "--adam_eps",
                1e-6,
                "--vision_cache_gb",
                1,
            ],
            lambda card, t: card["options"]["adam_beta1"] == 0.8,
        ),
        (
            ["--epochs", 0.6, "--english", "--num-workers", 1, "--seed", 7, "--device", "cpu"],
            lambda card, t: card["english"] and card["step"] == 3,
        ),
    ],
    ids=["ptuning", "bf16", "qlora", "targets", "parts", "compile", "adam", "english"],
)
def test_options(pretrained, rows, tmp_path, options, check):
    result = run(
        "--batch-size",
        2,
        *options,
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    _, _, card = load(tmp_path / "x", device="cpu")
    step = (tmp_path / "x" / "latest").read_text()
    assert check(card, load_file(tmp_path / "x" / step / ADAPTER))


def test_rows_of_another_tool_in_a_terminal_that_shows_ascii_alone(tiny_checkpoint, rows, tmp_path):
    """Images under `image` are seen; cut labels, unused keys and rows without an image are told."""
    turns = [{"from": "human", "value": "<image>\n有什么？"}, {"from": "gpt", "value": "屋顶" * 9}]
    other = [{"image": str(rows / "images/0.tif"), "conversations": turns, "编号": "a"}]
    other.append({"prompt": "你好", "label": "你好。"})
    (tmp_path / "行.json").write_text(json.dumps(other), encoding="utf-8")
    options = "--train-iters 1 --batch-size 2 --max_target_length 5 --experiment-name 飞机".split()
    result = run(
        *options,
        "--from_pretrained",
        tiny_checkpoint,
        "--train-data",
        tmp_path / "行.json",
        "--save",
        tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert result.returncode == 0, result.stderr
    escaped = r"\u884c.json"
    assert rf"{escaped}: not used: \u7f16\u53f7 (1 rows)" in result.stdout
    assert f"{escaped}: 1 of 2 rows have no image" in result.stdout
    assert "2 rows, 0 validation rows, 1 images" in result.stdout
    assert (
        "rows cut by --max_source_length 0 or --max_target_length 5 (a cut answer trains no end)"
        in result.stdout
    )


def test_label_smoothing(pretrained, rows, tmp_path):
    """Loss of the first step with and without: a share goes to all tokens alike; the held-out loss
    of step 0 stays what it is.
    """
    read = {}
    for share in (0, 0.25):
        result = run(
            "--batch-size",
            2,
            "--train-iters",
            1,
            "--log-interval",
            1,
            "--label_smoothing",
            share,
            "--from_pretrained",
            pretrained[0],
            "--train-data",
            rows / "rows-train.json",
            "--save",
            tmp_path,
            "--experiment-name",
            str(share),
        )
        assert result.returncode == 0, result.stderr
        read[share] = losses(tmp_path / str(share))[0]
        read[share, "validation"] = re.search(r"step 0: validation loss (\S+),", result.stdout)[1]
    assert (
        read[0, "validation"] == read[0.25, "validation"] and read[0.25][0] > read[0][0] + 0.5
    )  # the network is sure of its answers

    network = load(pretrained[0], device="cpu")[0]
    ids, prefix, at, targets = (
        torch.tensor([[5, 6, 7, 8, 9, 10, 509, 510, 20]]),
        torch.tensor([7]),
        torch.tensor([6, 7]),
        torch.tensor([510, 20]),
    )
    network.configure_training(label_smoothing=0.25)
    logits, loss = network.train()(ids, prefix, targets=targets, target_positions=at)
    chances = logits.log_softmax(-1)
    exact, spread = -chances[[0, 1], targets].mean(), -chances.mean()
    assert loss.item() == pytest.approx((0.75 * exact + 0.25 * spread).item(), rel=1e-5)
    assert network.eval()(ids, prefix, targets=targets, target_positions=at)[
        1
    ].item() == pytest.approx(exact.item(), rel=1e-5)


def test_nf4_stays_near_full_precision(pretrained):
    """Logits with 4-bit weights: not equal, but as near as rounding to 16 levels allows; only the
    blocks' weights change.
    """
    from model.visualglm.quantization import to_nf4

    full, quantized = (load(pretrained[0], device="cpu")[0] for _ in range(2))
    add_lora(quantized, 2, 1.0, [0])
    to_nf4(quantized)
    ids, prefix = torch.tensor([[5, 6, 7, 8, 9, 10, 509, 510, 20]]), torch.tensor([7])
    with torch.no_grad():
        a, b = full(ids, prefix)[0], quantized(ids, prefix)[0]
    assert 0 < (a - b).norm() / a.norm() < 0.3
    four_bit = [name for name, p in quantized.named_parameters() if p.dtype == torch.uint8]
    assert len(four_bit) == 8 and all(name.startswith("transformer.layers.") for name in four_bit)


def test_the_tiny_base_is_made_by_its_script(tmp_path, rows, monkeypatch):
    """data/synthetic/make_tiny_base.py from pictures to a base in half precision, with few of
    everything.
    """

    def at_once(command, check):
        assert check
        fork_server.run(command, env=ENVIRONMENT).check_returncode()

    monkeypatch.setattr(make_tiny_base, "subprocess", SimpleNamespace(run=at_once))
    few = "--pictures 40 --iters 2 2 2 1".split()
    make_tiny_base.main(["--work", str(tmp_path), "--output", str(tmp_path / "base"), *few])
    made, committed = (
        load_file(folder / FULL) for folder in (tmp_path / "base", PROJECT / "model/tiny/base")
    )
    assert {n: (t.shape, t.dtype) for n, t in made.items()} == {
        n: (t.shape, t.dtype) for n, t in committed.items()
    }
    assert (
        sum(t.numel() for t in made.values()) <= 10e6
        and (PROJECT / "model/tiny/base" / FULL).stat().st_size <= 12e6
    )
    keywords = json.loads((tmp_path / "keywords-train.json").read_text(encoding="utf-8"))
    assert all(
        "的" not in row["label"] and "。" not in row["label"] for row in keywords if "img" in row
    )
    assistant = load_assistant(tmp_path / "base", device="cpu")
    assert isinstance("".join(assistant.stream("你好", read_image(rows / "images/0.tif"))), str)


def test_early_stopping_overlap_and_report(pretrained, rows, tmp_path):
    """Held-out rows that are training rows are counted; a rate of 1 only makes the loss worse, so
    the run ends early.
    """
    site = tmp_path / "site" / "wandb.py"
    site.parent.mkdir()
    site.write_text(
        "import json, pathlib\n"
        "def init(dir, **settings):\n"
        "    file = open(pathlib.Path(dir) / 'tracked', 'a')\n"
        "    file.write(settings['name'] + '\\n')\n"
        "    class Run:\n"
        "        def log(self, metrics, step):\n"
        "            file.write(json.dumps([step, sorted(metrics)]) + '\\n'); file.flush()\n"
        "    return Run()\n"
    )
    result = run(
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--valid-data",
        rows / "rows-train.json",
        "--batch-size",
        3,
        "--epochs",
        20,
        "--lr",
        1,
        "--clip-grad",
        0,
        "--lr-decay-style",
        "constant",
        "--warmup",
        0,
        "--eval-interval",
        2,
        "--early-stopping",
        2,
        "--log-interval",
        2,
        "--report",
        "wandb",
        "--keep",
        1,
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
        PYTHONPATH=str(site.parent),
    )
    assert result.returncode == 0, result.stderr
    assert (
        "of 9 validation rows 9 are also training rows, and 9 show a training image"
        in result.stdout
    )
    assert re.search(r"stopped early: the validation loss was lowest at step 0", result.stdout)
    assert (tmp_path / "x" / "latest").read_text() == "4"
    tracked = (tmp_path / "x" / "tracked").read_text().splitlines()
    assert (
        tracked[0] == "x"
        and json.loads(tracked[1])[1] == ["valid/blank", "valid/real", "valid/shuffled"]
        and "loss" in tracked[2]
    )
    assert sum(p.is_dir() for p in (tmp_path / "x").iterdir()) == 1


def test_frozen_parts_stay_in_a_full_checkpoint(pretrained, rows, tmp_path):
    """The tower's features come from the cache, its weights are saved all the same, bit for bit."""
    result = run(
        "--mode",
        "pretrain",
        "--trainable",
        "language",
        "head",
        "projection",
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--train-iters",
        3,
        "--batch-size",
        3,
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
        "--lr",
        0.01,
        "--vision_cache",
        tmp_path / "cache",
    )
    assert result.returncode == 0 and "encoded 13 images once" in result.stdout, result.stderr
    before, after = (
        load_file(folder / FULL) for folder in (pretrained[0] / "120", tmp_path / "x" / "3")
    )
    assert set(before) == set(after)
    for name, tensor in before.items():
        frozen = name.startswith(
            ("mixins.eva.model.vit.", "mixins.eva.model.qformer.", "transformer.word_embeddings.")
        )
        assert torch.equal(tensor, after[name]) == frozen, name


def test_a_part_trained_beside_lora(pretrained, rows, tmp_path):
    """It stands in the adapter, is left out with it, and merges."""
    result = run(
        "--trainable",
        "projection",
        "--lora_targets",
        "attention",
        "mlp",
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--train-iters",
        3,
        "--batch-size",
        3,
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
        "--lr",
        0.01,
    )
    assert result.returncode == 0, result.stderr
    family = open_checkpoint(tmp_path / "x", device="cpu")
    tuned = family.network
    base = load(pretrained[0], device="cpu")[0]
    weight = "mixins.eva.model.glm_proj.weight"
    assert not torch.equal(tuned.get_parameter(weight), base.get_parameter(weight))
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28)
    with torch.no_grad():
        with family.untuned():
            assert torch.equal(tuned.encode_images(pixels), base.encode_images(pixels))
        whole = tuned.encode_images(pixels)
        assert not torch.equal(whole, base.encode_images(pixels))
        with pytest.raises(UserError, match="whole trained parts; merge it"):
            export_checkpoint(tmp_path / "x", "peft", tmp_path / "peft", device="cpu")
        export_checkpoint(tmp_path / "x", "sat", tmp_path / "sat", device="cpu")
        assert torch.equal(load(tmp_path / "sat", device="cpu")[0].encode_images(pixels), whole)
