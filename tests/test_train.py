"""Training as a user starts it: scripts in processes of their own, small networks, a few steps."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import fork_server
import psutil
import pytest
import torch
from conftest import load
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune_RemoteGLM as finetune
from data.synthetic import make_tiny_base
from model import UserError, load_assistant, read_image
from model import rows as rows_module
from model.family import FeatureSpec, Limits
from model.opening import export_checkpoint, open_checkpoint
from model.rows import Sample, check_images, load_rows, shuffle_images
from model.training import feature_cache, run_folder, slurm
from model.training.dataset import COLOR, DIRECTION, rendered_dataset
from model.training.engine import CheckedAdamW, Processes
from model.training.feature_cache import FeatureCache
from model.training.log import Meter
from model.training.loop import Trainer
from model.training.options import layers
from model.training.resume import Progress, check_resumable
from model.training.run_folder import RunFolder
from model.training.sampler import DistributedBatchSampler, plan_epoch, validation_batches
from model.visualglm.family import VisualGLMFamily
from model.visualglm.lora import add_lora
from model.visualglm.pixels import MEAN, STD, to_pixels
from model.visualglm.sat import ensure_model_parallel_group
from model.visualglm.tokenizer import Tokenizer
from model.weight_files import ADAPTER, FULL

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


TORCHRUN = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Pictures are encoded into a folder of the tests."""
    CACHE.append(tmp_path_factory.mktemp("vision-cache"))


CACHE = []


def command(*args, launcher=(sys.executable,)):
    return [
        *map(str, launcher),
        str(PROJECT / "finetune_RemoteGLM.py"),
        "--vision_cache",
        str(CACHE[-1]),
        *map(str, args),
    ]


def run(*args, launcher=None, ranks=1, cwd=None, **env):
    """By a launcher that is named, or at once by fork_server."""
    how = {"cwd": cwd, "env": ENVIRONMENT | env, "timeout": 300}
    if launcher:
        words = command(*args, launcher=launcher)
        return subprocess.run(words, capture_output=True, text=True, **how)
    return fork_server.run(command(*args), ranks, **how)


def losses(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [e["loss"] for e in entries if "loss" in e], [
        e["valid"] for e in entries if "valid" in e
    ]


@pytest.fixture(scope="module")
def pretrained(rows, config_file, vocabulary, tmp_path_factory):
    """From nothing on one-coloured pictures, long enough to learn which colour is which."""
    save = tmp_path_factory.mktemp("pretrain")
    result = run(
        "--mode",
        "pretrain",
        "--model_config",
        config_file,
        "--tokenizer",
        vocabulary,
        "--train-data",
        rows / "rows-train.json",
        "--save",
        save,
        "--experiment-name",
        "base",
        "--train-iters",
        120,
        "--lr",
        3e-3,
        "--batch-size",
        9,
        "--clip-grad",
        1,
        "--eval-interval",
        40,
        "--lr-decay-style",
        "linear",
    )
    assert result.returncode == 0, result.stderr
    return save / "base", result


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


def started(*args, until, ranks=1):
    """Start a run and kill it (-9, with all its processes) once its metrics have reached a step."""
    folder = Path(args[args.index("--save") + 1]) / args[args.index("--experiment-name") + 1]
    processes = fork_server.start(command(*args), ranks, env=ENVIRONMENT)
    process = processes[0]
    path, deadline = folder / "metrics.jsonl", time.time() + 120
    while time.time() < deadline and process.poll() is None:
        lines = path.read_text().splitlines() if path.is_file() else []
        if any(line.endswith("}") and json.loads(line)["step"] >= until for line in lines):
            break
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be killed"
    workers = [psutil.Process(one.pid).children(recursive=True) for one in processes]
    for victim in [*chain(*workers), *processes]:
        victim.kill()
    for process in processes:
        process.wait()
    return folder


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


@pytest.fixture(scope="module")
def finished(pretrained, rows, tmp_path_factory):
    """(options, --save folder) of a run of 12 steps, saved every 3."""
    save = tmp_path_factory.mktemp("runs")
    common = [
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--lr",
        0.01,
        "--batch-size",
        3,
        "--log-interval",
        1,
        "--experiment-name",
        "x",
    ]
    result = run(
        *common,
        "--train-iters",
        12,
        "--save-interval",
        3,
        "--keep",
        3,
        "--eval-interval",
        100,
        "--save",
        save,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(int(p.name) for p in (save / "x").iterdir() if p.is_dir()) == [
        6,
        9,
        12,
    ]  # --keep; best is the last
    assert (save / "x" / "best").read_text() == (save / "x" / "latest").read_text() == "12"
    trained = sum(t.nbytes for t in load_file(save / "x" / "12" / ADAPTER).values())
    assert (save / "x" / "12" / ADAPTER).stat().st_size <= 1.2 * trained + 2000  # names and shapes
    return common, save


class TestRunFolder:
    def copy(self, finished, tmp_path):
        shutil.copytree(finished[1] / "x", tmp_path / "x")
        return [
            *finished[0],
            "--train-iters",
            12,
            "--save-interval",
            3,
            "--keep",
            3,
            "--save",
            tmp_path,
            "--resume",
        ]

    def test_damaged_step_is_passed_over(self, finished, tmp_path):
        args, file = self.copy(finished, tmp_path), "state/optimizer-0.safetensors"
        for name in (file, "adapter.safetensors", "complete.json"):
            path = tmp_path / "x" / "12" / name
            kept = path.read_bytes()
            assert RunFolder(tmp_path / "x").damage(12) is None
            path.write_bytes(kept[:100])
            assert RunFolder(tmp_path / "x").damage(12) == name
            path.write_bytes(kept)
        (tmp_path / "x" / "12" / file).write_bytes(b"cut")
        result = run(*args)
        assert result.returncode == 0, result.stderr
        assert (
            f"12 is damaged ({file}): going back" in result.stdout
            and "resumed at step 9" in result.stdout
        )
        assert losses(tmp_path / "x")[0] == losses(finished[1] / "x")[0]

    def test_nothing_whole(self, finished, tmp_path):
        args = self.copy(finished, tmp_path)
        for step in (6, 9, 12):
            (tmp_path / "x" / str(step) / "complete.json").unlink()
        assert (
            "holds no complete step to resume from; start again with --overwrite"
            in run(*args).stderr
        )
        inside = run(*args[:-1], "--overwrite", "--from_pretrained", tmp_path / "x" / "12")
        assert "lies in the folder that this run writes" in inside.stderr and RunFolder(
            tmp_path / "x"
        ).steps() == [6, 9, 12]
        again = run(*args[:-1], "--overwrite")
        assert again.returncode == 0 and losses(tmp_path / "x")[0] == losses(finished[1] / "x")[0]

    def test_other_settings_are_refused(self, finished, tmp_path):
        result = run(*self.copy(finished, tmp_path), "--lr", 0.5, "--lora_rank", 3)
        assert result.returncode == 1 and re.search(
            "--resume cannot continue with other settings: --lora_rank 10 -> 3; --lr 0.01 -> 0.5; "
            "name another "
            "--experiment-name",
            result.stderr.splitlines()[-1],
        )

    def test_another_language_is_refused_with_the_way_on(self, finished, tmp_path):
        result = run(*self.copy(finished, tmp_path), "--english")
        assert "--english False -> True (--no-english keeps it)" in result.stderr

    @pytest.mark.parametrize(
        "change, world, words",
        [
            ({"rows per step": 2}, 1, "rows per step 3 -> 2"),
            ({"steps": 20}, 1, "steps 12 -> 20"),
            ({"training rows": "0"}, 1, r"training rows \w+ -> 0"),
            ({"base": "0"}, 1, r"base \w+ -> 0 \(fingerprint\)"),
            ({"zero_stage": 1}, 1, r"saved by 1 process\(es\) with --zero-stage 0.*stage 1"),
            ({}, 2, None),
        ],
        ids=["batch", "steps", "rows", "base", "stage", "processes"],
    )
    def test_what_resuming_compares(self, finished, change, world, words):
        before = json.loads((finished[1] / "x" / "12" / "state" / "progress.json").read_text())
        now = before | {key: value for key, value in change.items() if key in before}
        now["options"] = before["options"] | {
            key: value for key, value in change.items() if key in before["options"]
        }
        if words is None:  # stage 0 goes on with any number of processes
            return check_resumable(before, now, world, VisualGLMFamily.parts)
        with pytest.raises(UserError, match=words):
            check_resumable(before, now, world, VisualGLMFamily.parts)


def test_a_full_disk_leaves_the_last_step(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "x").prepare()
    for step in (1, 2):
        folder.scratch(step).mkdir()
        (folder.scratch(step) / "weights").write_text("w" * step)
        if step == 2:
            monkeypatch.setattr(
                run_folder.os,
                "replace",
                lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
            )
            with pytest.raises(
                UserError,
                match="2 cannot be written: No space left on device; the steps before it are as "
                "they were",
            ):
                folder.publish(2)
        else:
            folder.publish(1)
    monkeypatch.undo()
    assert (
        folder.steps() == [1]
        and (folder.folder / "latest").read_text() == "1"
        and folder.damage(1) is None
    )
    folder.lock()
    with pytest.raises(UserError, match="another run is writing there"):
        RunFolder(tmp_path / "x").lock()
    monkeypatch.setattr(
        run_folder.shutil, "disk_usage", lambda _: type("", (), {"free": run_folder.SPARE + 10})
    )
    folder.check_space(10)
    with pytest.raises(
        UserError, match="the disk has 0.02 GB free; make room, or choose another --save"
    ):
        folder.check_space(11)
    folder.drop([1])
    assert folder.steps() == [] and not list(folder.folder.glob(".saving-*"))


def test_old_steps_are_removed_but_never_the_newest(tmp_path):
    """A resumed run went back before a damaged step, whose number is higher than the new ones'."""
    folder = RunFolder(tmp_path / "x").prepare()
    for step in (100, 200, 250, 300):
        (folder.folder / str(step)).mkdir()
    folder.keep(1, newest=250, best=100)
    assert folder.steps() == [100, 250]


def test_a_first_loss_of_nan_is_not_the_best():
    losses = iter([float("nan"), 2.0, 3.0])
    processes = SimpleNamespace(say=lambda *_: None)
    trainer = SimpleNamespace(
        validation=lambda: {"real": next(losses)},
        progress=Progress(),
        processes=processes,
        log=None,
        meter=Meter(),
    )
    for step in range(3):
        trainer.progress.step = step
        Trainer.validate(trainer)
    assert trainer.progress.best == {"step": 1, "loss": 2.0} and trainer.progress.waited == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave(pretrained, rows, tmp_path, number):
    args = [
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--train-iters",
        5000,
        "--batch-size",
        2,
        "--log-interval",
        1,
        "--save-interval",
        4000,
        "--eval-interval",
        4000,
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
    ]
    process = fork_server.Popen(command(*args), env=ENVIRONMENT)
    path = tmp_path / "x" / "metrics.jsonl"
    while process.poll() is None and not (path.is_file() and '"loss"' in path.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and re.search(
        r"stopped at step \d+ of 5000; the same command with --resume continues", out
    )
    assert RunFolder(tmp_path / "x").damage(int((tmp_path / "x" / "latest").read_text())) is None


def test_gradients_that_are_not_finite(pretrained, rows, tmp_path):
    """They never reach the weights, are counted, and stop the run when they persist."""
    broken = shutil.copytree(pretrained[0] / "120", tmp_path / "base")
    tensors = load_file(broken / FULL)
    tensors["transformer.layers.1.mlp.dense_4h_to_h.weight"][0, 0] = float("nan")
    save_file(tensors, broken / FULL)
    result = run(
        "--from_pretrained",
        broken,
        "--train-data",
        rows / "rows-train.json",
        "--batch-size",
        3,
        "--train-iters",
        30,
        "--save",
        tmp_path,
        "--experiment-name",
        "x",
        "--clip-grad",
        0,
    )
    assert (
        result.returncode == 1
        and "the gradient was NaN or Inf in 10 steps in a row, up to step 10"
        in result.stderr.splitlines()[-1]
    )
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = CheckedAdamW([weight], lr=0.1)
    ensure_model_parallel_group()
    for gradient, moved in (
        ([1, 2, 3], True),
        ([1, float("inf"), 3], False),
        ([1, float("nan"), 3], False),
        ([1, 1, 1], True),
    ):
        before = weight.detach().clone()
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        assert (not torch.equal(weight, before)) == moved and torch.isfinite(weight).all()
    assert optimizer.skipped == 2 and optimizer.in_a_row == 0


class TestFeatureCache:
    def test_same_losses_with_and_without(self, pretrained, rows, tmp_path):
        """And a second run finds every picture."""
        common = [
            "--from_pretrained",
            pretrained[0],
            "--train-data",
            rows / "rows-train.json",
            "--valid-data",
            rows / "rows-val.json",
            "--batch-size",
            3,
            "--train-iters",
            6,
            "--log-interval",
            1,
            "--lr",
            0.01,
            "--save",
            tmp_path,
        ]
        first, second = (
            run(*common, "--vision_cache", tmp_path / "cache", "--experiment-name", name)
            for name in ("first", "second")
        )
        off = run(*common, "--vision_cache", "off", "--experiment-name", "off")
        assert [r.returncode for r in (first, second, off)] == [0, 0, 0], (
            first.stderr + second.stderr + off.stderr
        )
        assert (
            "encoded 13 images once" in first.stdout and "encoded" not in second.stdout + off.stdout
        )  # 12 and the blank one
        trained, valid = losses(tmp_path / "first")
        assert losses(tmp_path / "second") == (trained, valid)
        without = losses(tmp_path / "off")
        assert trained == pytest.approx(without[0], abs=1e-5)
        for ours, theirs in zip(valid, without[1]):
            assert ours == pytest.approx(theirs, abs=1e-5)

    def make(self, folder, pictures, **change):
        made = {
            "shape": (2, 3),
            "dtype": torch.float32,
            "image_size": [8, 8],
            "mark": "base",
        } | change
        spec = FeatureSpec(made["shape"], made["dtype"], str(made))
        return FeatureCache(folder, spec).scan(pictures)

    def test_key_is_bytes_weights_and_preprocessing(self, rows, tmp_path):
        def mean_pixel(images):
            pixels = torch.stack([to_pixels(image, [8, 8]) for image in images])
            return pixels.mean((1, 2, 3))[:, None, None].expand(-1, 2, 3)

        pictures = sorted((rows / "images").glob("*.tif"))
        copy = shutil.copy(pictures[0], tmp_path / "same.tif")
        cache = self.make(tmp_path / "c", [*pictures, copy])
        assert len(cache.missing) == 13 and cache.has_space()
        cache.fill(mean_pixel, cache.missing, batch=5)
        assert self.make(tmp_path / "c", pictures).missing == []
        assert torch.equal(cache.read(copy), cache.read(pictures[0])) and not torch.equal(
            cache.read(pictures[1]), cache.read(pictures[0])
        )
        assert torch.allclose(
            cache.read(pictures[0]), to_pixels(read_image(pictures[0]), [8, 8]).mean(), atol=1e-6
        )
        for change in (
            {"mark": "other"},
            {"image_size": [9, 9]},
            {"dtype": torch.bfloat16},
            {"shape": (3, 2)},
        ):
            assert len(self.make(tmp_path / "c", pictures, **change).missing) == 13
        for damage in (
            lambda content: content[:5],
            lambda content: bytes(len(content)),
        ):  # cut short; zeros, as after a power cut
            kept = cache.files[pictures[2]].read_bytes()
            cache.files[pictures[2]].write_bytes(damage(kept))
            assert self.make(tmp_path / "c", pictures).missing == [pictures[2]]
            with pytest.raises(UserError, match="was removed or damaged while the run needed it"):
                cache.read(pictures[2])
            cache.files[pictures[2]].write_bytes(kept)

    def test_full_disk_and_pruning(self, rows, tmp_path, monkeypatch):
        def zeros(images):
            return torch.zeros(len(images), 2, 3)

        pictures = sorted((rows / "images").glob("*.tif"))
        old = self.make(tmp_path / "c", pictures, mark="old")
        old.fill(zeros, old.missing)
        for age, file in enumerate(old.files.values()):
            os.utime(file, (age, age))
        new = self.make(tmp_path / "c", pictures[:3])
        new.fill(zeros, new.missing)
        foreign = tmp_path / "c" / "ab" / "thesis.txt"
        foreign.parent.mkdir(exist_ok=True)
        foreign.touch()
        os.utime(foreign, (0, 0))
        new.prune(
            28 * 10
        )  # 13 old ones and 4 of this run, 28 bytes each: the seven used longest ago go
        assert [file.exists() for file in old.files.values()] == [False] * 7 + [True] * 6
        new.prune(0)
        assert foreign.exists()
        assert (
            new.missing
            and all(file.exists() for file in new.files.values())
            and not any(f.exists() for f in old.files.values())
        )
        monkeypatch.setattr(
            feature_cache.shutil,
            "disk_usage",
            lambda _: type("", (), {"free": feature_cache.SPARE + 10}),
        )
        assert (
            self.make(tmp_path / "c", pictures[:3]).has_space()
            and not self.make(tmp_path / "c", pictures).has_space()
        )
        with pytest.raises(UserError, match="feature cache /proc/c cannot be written"):
            self.make(Path("/proc/c"), pictures).has_space()


class TestSharded:
    """What every process needs of every row is done once, each process doing its share."""

    @pytest.fixture
    def in_ranks(self, monkeypatch):
        """Calls a function with the Processes of each of three ranks, which are threads here ->
        their results or errors.
        """
        world, rank = 3, threading.local()
        shared, barrier = [None] * world, threading.Barrier(world, timeout=60)

        def all_gather_object(shares, own):
            shared[rank.number] = own
            barrier.wait()
            shares[:] = shared
            barrier.wait()

        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)

        def of(function):
            def of_rank(number):
                rank.number = number
                try:
                    return function(Processes(number, world, torch.device("cpu")))
                except UserError as error:
                    return str(error)

            with ThreadPoolExecutor(world) as pool:
                return list(pool.map(of_rank, range(world)))

        return of

    @pytest.mark.parametrize("count", [0, 1, 3, 7])
    def test_every_item_once_and_in_order(self, in_ranks, count):
        worked = []

        def work(share):
            worked.append(len(share))
            return [item * item for item in share]

        found = in_ranks(lambda processes: processes.sharded(work, list(range(count))))
        assert found == [[item * item for item in range(count)]] * 3
        assert sum(worked) == count and max(worked) - min(worked) <= 1

    def test_an_error_of_one_is_raised_in_all(self, in_ranks):
        def work(share):
            if 5 in share:
                raise UserError("the fifth is broken")
            return share

        found = in_ranks(lambda processes: processes.sharded(work, list(range(7))))
        assert found == ["the fifth is broken"] * 3

    def test_rows_are_rendered_once(self, in_ranks):
        rendered = []

        class Words:
            def render(self, sample, limits):
                rendered.append(sample)
                length = len(sample)
                return SimpleNamespace(length=length, target_tokens=1, cut=False)

        samples = ["a", "bb", "ccc", "dddd"]
        sets = in_ranks(
            lambda processes: rendered_dataset(Words(), samples, None, sharded=processes.sharded)
        )
        assert sorted(rendered) == samples
        assert [list(rows.lengths) for rows in sets] == [[1, 2, 3, 4]] * 3

    def test_images_are_hashed_and_decoded_once(self, rows, tmp_path, in_ranks, monkeypatch):
        pictures = sorted((rows / "images").glob("*.tif"))
        alone = TestFeatureCache().make(tmp_path / "c", pictures)
        alone.fill(lambda images: torch.zeros(len(images), 2, 3), alone.missing[:4])
        alone.scan(pictures)

        hashed, decoded = [], []
        name, read = FeatureCache._name, rows_module.read_image
        monkeypatch.setattr(
            FeatureCache, "_name", lambda self, image: hashed.append(image) or name(self, image)
        )
        monkeypatch.setattr(
            rows_module, "read_image", lambda path, bands: decoded.append(path) or read(path, bands)
        )
        caches = in_ranks(
            lambda processes: FeatureCache(tmp_path / "c", alone.spec).scan(
                pictures, processes.sharded
            )
        )
        assert len(hashed) == len(set(hashed)) == 13
        assert all(cache.files == alone.files for cache in caches)
        assert all(cache.missing == alone.missing for cache in caches) and alone.missing

        broken = tmp_path / "broken.tif"
        broken.write_bytes(b"II*")
        samples = [Sample(path, "?", "!") for path in (*pictures, broken)]
        said = in_ranks(lambda own: check_images(samples, "rows.json", sharded=own.sharded))
        assert len(decoded) == len(set(decoded)) == 13
        assert len(set(said)) == 1 and "rows.json: 1 of 13 wrong: " in said[0]


def test_plan_of_an_epoch():
    """Every row once, alike lengths together, other orders in other epochs, whoever asks."""
    lengths = [random.Random(i).randrange(20, 200) for i in range(1000)]
    steps = plan_epoch(lengths, 8, 1, 0)
    assert len(steps) == 125 and sorted(i for rows in steps for i in rows) == list(range(1000))
    assert steps == plan_epoch(lengths, 8, 1, 0) != plan_epoch(lengths, 8, 1, 1)
    spread = [max(lengths[i] for i in rows) - min(lengths[i] for i in rows) for rows in steps]
    assert sum(spread) / len(spread) < 25
    short = [
        24 + i % 8 for i in range(800)
    ]  # differ by less than a step of padding: answers of one length do not stand together
    assert min(len({short[i] for i in rows}) for rows in plan_epoch(short, 16, 1, 0)) > 4
    uneven = plan_epoch(lengths[:10], 4, 1, 0)
    assert [len(rows) for rows in uneven] == [4, 4, 4] and {
        i for rows in uneven for i in rows
    } == set(range(10))

    def plan(epoch):
        return plan_epoch(lengths, 8, 1, epoch)

    shares = [list(DistributedBatchSampler(plan, 1000, 2, 2, rank, 2)) for rank in range(2)]
    assert [shares[0][0], shares[1][0], shares[0][1], shares[1][1]] == [
        steps[0][i : i + 2] for i in (0, 2, 4, 6)
    ]
    late = DistributedBatchSampler(plan, 1000, 2, 2, 1, 2)
    late.start = 100
    assert list(late) == shares[1][200:]
    late.epoch, late.start = 3, 124  # indices say which epoch they belong to
    assert list(late) == [[3000 + i for i in plan(3)[124][first : first + 2]] for first in (2, 6)]


@pytest.mark.parametrize("count, world", [(10, 1), (10, 3), (3, 4)])
def test_held_out_rows_are_counted_once(count, world):
    shares = [validation_batches(count, 2, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(
        i for share in shares for rows, counted in share if counted for i in rows
    ) == list(range(count))


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


def test_shell_script(pretrained, rows, tmp_path):
    """finetune_RemoteGLM.sh from another directory, two processes by NUM_GPUS, dialogues and rows
    without a picture.
    """
    talk = [
        {
            "img": str(rows / "images/0.tif"),
            "conversations": [
                {"role": "user", "content": "有什么？"},
                {"role": "assistant", "content": "屋顶。"},
                {"role": "user", "content": "什么颜色？"},
                {"role": "assistant", "content": "红色。"},
            ],
        },
        {"prompt": "你好", "label": "是"},
    ]
    (tmp_path / "talk.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in talk), encoding="utf-8"
    )
    result = subprocess.run(
        [
            "bash",
            PROJECT / "finetune_RemoteGLM.sh",
            "--from_pretrained",
            pretrained[0],
            "--train-data",
            "talk.jsonl",
            "--save",
            tmp_path,
            "--train-iters",
            "2",
            "--batch-size",
            "2",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"NUM_GPUS": "2"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert (
        "3 rows, 0 validation rows, 1 images" in result.stdout and "2 process(es)" in result.stdout
    )


@pytest.mark.parametrize(
    "nodes, host",
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],login", "gpu03"),
        ("a-[12,14].lab.cn,b1", "a-12.lab.cn"),
        ("n1,n[2-3]", "n1"),
    ],
)
def test_ranks_of_a_slurm_step(nodes, host):
    """The second of two nodes with two tasks each."""
    step = {
        "SLURM_JOB_ID": "123456",
        "SLURM_NTASKS": "8",  # of the job; the step may have fewer
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_GTIDS": "2,3",
    }
    found = slurm.ranks(step)
    assert 20000 <= found.pop("MASTER_PORT") < 50000
    assert found == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": 4,
        "LOCAL_WORLD_SIZE": 2,
        "MASTER_ADDR": host,
    }
    assert slurm.ranks(step | {"RANK": "0"}) == {}  # torchrun under srun
    assert slurm.ranks(step | {"SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert slurm.ranks({}) == {}
    script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}
    assert slurm.ranks(script) == {}  # sbatch without srun
    assert slurm.ranks(script | {"SLURM_STEP_NUM_TASKS": "8"})["WORLD_SIZE"] == 8


def test_tasks_of_srun_train_together(pretrained, rows, tmp_path):
    """`srun -n 2 bash finetune_RemoteGLM.sh`, whose tasks only differ in their number."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": str(random.randrange(30000))}
    arguments = command(
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--save",
        tmp_path,
        "--train-iters",
        2,
    )
    tasks = []
    for task in ("0", "1"):
        environment = ENVIRONMENT | step | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        arguments[:2] = ["bash", str(PROJECT / "finetune_RemoteGLM.sh")]
        tasks.append(subprocess.Popen(arguments, env=environment, text=True, stdout=-1, stderr=-1))
    outputs = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert "2 process(es)" in outputs[0][0] and "task 0 of 2 of a SLURM step" in outputs[0][0]
    assert "process(es)" not in outputs[1][0]


class TestRows:
    def test_dialogue_becomes_one_sample_per_round(self, rows, tmp_path, vocabulary, tiny_config):
        turns = [
            {"role": r, "content": c}
            for r, c in (
                ("user", "甲"),
                ("assistant", "农田"),
                ("user", "乙"),
                ("assistant", "河流"),
            )
        ]
        path = tmp_path / "a.json"
        path.write_text(json.dumps([{"img": str(rows / "images/1.tif"), "conversations": turns}]))
        samples = load_rows(path)
        assert [(s.question, s.answer, s.history) for s in samples] == [
            ("甲", "农田", ()),
            ("乙", "河流", (("甲", "农田"),)),
        ]
        tokenizer = Tokenizer(vocabulary, tiny_config)
        family = VisualGLMFamily(None, tokenizer, tiny_config)
        dataset = rendered_dataset(family, samples, Limits())
        batch = family.collate([dataset[0], dataset[1]])
        flat = batch["input_ids"].flatten()
        assert torch.equal(flat[batch["target_positions"] + 1], batch["targets"])
        trained = [
            tokenizer.decode(
                batch["targets"][
                    batch["target_positions"] // batch["input_ids"].size(1) == i
                ].tolist()
            )
            for i in (0, 1)
        ]
        assert trained == ["农田", "河流"] and batch["pixels"].shape == (2, 3, 28, 28)

    def test_augmented_pictures(self, rows, tmp_path, vocabulary, tiny_config):
        """Other ones in every epoch, the same ones again when asked again; up stays up where the
        words need it.
        """
        corner = Image.new("RGB", (40, 40), "black")
        corner.paste("white", (0, 0, 20, 20))
        corner.save(tmp_path / "a.png")
        samples = [
            Sample(tmp_path / "a.png", "有什么？", answer)
            for answer in ("一块白色。", "左上角是白色。", "The top is white.")
        ]
        family = VisualGLMFamily(None, Tokenizer(vocabulary, tiny_config), tiny_config)
        dataset, plain = (
            rendered_dataset(family, samples, Limits(), augmentation=how)
            for how in ((3, 0.8), None)
        )
        white = {
            row: {
                int(
                    dataset[row + 3 * epoch]["pixels"]
                    .mean(0)
                    .reshape(2, 14, 2, 14)
                    .mean((1, 3))
                    .argmax()
                )
                for epoch in range(40)
            }
            for row in range(3)
        }
        assert white == {0: {0, 1, 2, 3}, 1: {0}, 2: {0}}  # the brightest quarter of the picture
        pixels = dataset[7]["pixels"]
        assert torch.equal(pixels, dataset[7]["pixels"]) and not torch.equal(
            pixels, dataset[4]["pixels"]
        )
        assert (
            torch.equal(plain[7]["pixels"], plain[1]["pixels"])
            and dataset[7]["row"] is dataset.rows[1]
        )

    def test_augmented_colours(self, tmp_path, vocabulary, tiny_config):
        """A red picture may lose its hue, but not where the words name a colour."""
        Image.new("RGB", (40, 40), (140, 90, 90)).save(tmp_path / "a.png")
        samples = [
            Sample(tmp_path / "a.png", "有什么？", answer)
            for answer in ("一片屋顶。", "一片红色屋顶。", "A red roof.")
        ]
        family = VisualGLMFamily(None, Tokenizer(vocabulary, tiny_config), tiny_config)
        dataset = rendered_dataset(family, samples, Limits(), augmentation=(3, 0.8))

        def spread(row, epoch):  # of red above green and blue; the pixels are normalised
            r, g, b = (
                (dataset[row + 3 * epoch]["pixels"].mean((1, 2))) * torch.tensor(STD)
                + torch.tensor(MEAN)
            ).tolist()
            return r - g, r - b

        assert [
            all(
                g > 0.05 and b > 0.05 and abs(g - b) < 0.02
                for g, b in (spread(row, epoch) for epoch in range(40))
            )
            for row in range(3)
        ] == [False, True, True]

    def test_words_of_direction_and_colour(self):
        for text in (
            "左侧的河",
            "西南角",
            "图的下半部",
            "一条斜向的跑道",
            "纵横交错",
            "对角",
            "leftmost",
            "North-eastern",
            "两条diagonal跑道",
            "upper part",
        ):
            assert DIRECTION.search(text), text
        for text in ("有什么东西？", "地上有车", "flowers", "a stop sign", "天下"):
            assert not DIRECTION.search(text), text
        for text in ("彩色屋顶", "灰色", "Greenish", "是white的", "a tan roof", "beige", "greyish"):
            assert COLOR.search(text), text
        for text in ("storage tanks", "altered", "evergreen", "一片屋顶"):
            assert not COLOR.search(text), text

    def test_padding_and_mixed_rows_do_not_change_the_loss(
        self, rows, vocabulary, tiny_config, tiny_checkpoint
    ):
        """Rows alone against the same rows in one padded batch with and without pictures."""
        family = open_checkpoint(tiny_checkpoint, device="cpu")
        network = family.network
        samples = load_rows(rows / "rows-train.json")[:2] + [Sample(None, "你好" * 20, "是。")]
        dataset = rendered_dataset(family, samples, Limits())
        with torch.no_grad():
            whole = network(**family.collate([dataset[i] for i in range(3)]))[1]
            parts = [
                (network(**family.collate([dataset[i]]))[1] * len(dataset.rows[i].target_positions))
                for i in range(3)
            ]
        tokens = sum(len(row.target_positions) for row in dataset.rows)
        assert abs(whole - sum(parts) / tokens) < 1e-5

    def test_swapped_images_are_other_images(self, rows):
        samples = load_rows(rows / "rows-train.json")
        swapped = shuffle_images(samples, 1)
        assert all(a.image != b.image and a.answer == b.answer for a, b in zip(samples, swapped))
        assert sorted(s.image for s in swapped) == sorted(s.image for s in samples)

    BAD = {
        "no file": (None, "no such file"),
        "not json": ("[{", "not readable as JSON"),
        "an object": (
            '{"a": 1}',
            "expected a list of .*got dict; make it with data/generate_prompt.py",
        ),
        "empty": ("[]", "got an empty list"),
        "wrong keys": (
            '[{"image": "a", "text": "b"}]',
            "1 of 1 wrong: row 0: has keys image, text",
        ),
        "empty label": (
            '[{"img": "a", "prompt": "b", "label": " "}]',
            "row 0: has keys img, prompt, label",
        ),
        "missing image": (
            '[{"img": "no.tif", "prompt": "b", "label": "c"}]',
            "row 0: image not found at .*no.tif or .*no.tif",
        ),
        "roles": (
            '[{"conversations": [{"role": "user", "content": "a"}, '
            '{"role": "user", "content": "b"}]}]',
            "expected assistant",
        ),
        "content in parts": (
            '[{"conversations": [{"role": "user", "content": [{"type": "text"}]}, '
            '{"role": "assistant", "content": "a"}]}]',
            "expected user",
        ),
        "half a surrogate pair": (
            '[{"prompt": "\\ud800", "label": "b"}]',
            "row 0: has keys prompt, label",
        ),
        "long name": (
            '[{"img": "' + "x" * 300 + '", "prompt": "b", "label": "c"}]',
            "row 0: image x+...: File name too long",
        ),
        "odd turns": (
            '[{"conversations": [{"role": "user", "content": "a"}]}]',
            "list of user and assistant turns",
        ),
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
        for name, content in (
            ("0", b"not a picture"),
            ("4", (rows / "images/4.tif").read_bytes()[:300]),
        ):
            (tmp_path / "r/images" / f"{name}.tif").write_bytes(content)
        with pytest.raises(UserError, match="2 of 9 wrong: image .*0.tif: .*; image .*4.tif: "):
            check_images(load_rows(tmp_path / "r/rows-train.json"), "rows")


@pytest.mark.parametrize(
    "options, words",
    [
        ("--model-parallel-size 2", "--model-parallel-size 2: only 1"),
        ("--epochs 1 --train-iters 5", "exclude each other"),
        (
            "--fp16 --bf16 --lr 0",
            "--dtype float16 and bfloat16 exclude each other.*--lr 0.0: must be above 0",
        ),
        ("--use_lora --use_ptuning", "exclude each other"),
        ("--use_qlora --use_ptuning", "exclude each other"),
        ("--mode pretrain --use_qlora", "--method qlora and full exclude each other"),
        ("--model_config a.json", "needs --method full"),
        ("--layer_range all", "--layer_range all: expected numbers"),
        ("--method full --use_lora", "--method full and lora exclude each other"),
        ("--dtype float32 --bf16", "--dtype float32 and bfloat16 exclude each other"),
        ("--resume --overwrite", "--resume and --overwrite exclude each other"),
        ("--offload", "--offload needs --zero-stage"),
        ("--use_qlora --zero-stage 3", "4-bit weights cannot be partitioned"),
        ("--gradient-accumulation-steps 0", "must be above 0"),
        (
            "--train-iters -3 --lora_dropout 2 --warmup 7",
            "--train_iters -3: must not be below 0; --lora_dropout 2.0: must be below 1; "
            "--warmup 7.0",
        ),
        ("--layer_range 3-0", "--layer_range 3-0: expected numbers"),
        (
            "--augment 1.5 --patch_dropout 1",
            "--patch_dropout 1.0: must be below 1; --augment 1.5: a share of each side",
        ),
        ("--label_smoothing 1", "--label_smoothing 1.0: must be below 1"),
        ("--max_target_length 1", "--max_target_length 1: must be at least 3"),
        (
            "--augment nan --lr inf",
            "--augment nan: must be a finite number; --lr inf: must be a finite number",
        ),
        ("--report tensorboard", "--report tensorboard needs its package: pip install tensorboard"),
    ],
)
def test_contradictions(capsys, options, words):
    with pytest.raises(SystemExit):
        finetune.parse(options.split())
    assert re.search(words, capsys.readouterr().err)


def test_layer_range_forms():
    assert layers(["0", "14"]) == [0, 14] and layers(["0-3", "9"]) == [
        0,
        1,
        2,
        3,
        9,
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--train-data", "nowhere.json"], "rows nowhere.json: no such file"),
        (["--from_pretrained", "nowhere"], "checkpoint nowhere: no such folder"),
        (["--save", "/proc/x"], "checkpoint folder /proc/x/RemoteGLM cannot be written"),
        (["--layer_range", "5"], r"layer_range names layers \[5\]"),
        (
            [
                "--from_pretrained",
                PROJECT / "tests/fixtures/visualglm-sat-lora",
                "--tokenizer",
                "VOCABULARY",
            ],
            "is no base to train on: it holds lora; merge",
        ),
        (["--trainable", "tower"], "--trainable tower: expected language, embeddings, head, vis"),
        (["--vision_cache", "/proc/x"], "feature cache /proc/x cannot be written.*--vision_cache"),
    ],
    ids=["rows", "base", "save", "layers", "lora", "trainable", "cache"],
)
def test_user_errors_are_one_line(pretrained, rows, vocabulary, tmp_path, options, words):
    options = [{"VOCABULARY": vocabulary}.get(word, word) for word in options]
    result = run(
        "--from_pretrained",
        pretrained[0],
        "--train-data",
        rows / "rows-train.json",
        "--save",
        tmp_path,
        *options,
    )
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert result.returncode == 1 and len(lines) == 1 and re.search(words, lines[0]), result.stderr


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"NUM_GPUS": "1"}, "python {script} --lr 1"),
        ({"NUM_GPUS": ""}, "python {script} --lr 1"),  # as many as there are: the stand-in says 0
        ({"NUM_GPUS": "2"}, "python -P {launch} --standalone --nproc_per_node 2 {script} --lr 1"),
        ({"HOSTFILE": "hosts"}, "deepspeed --hostfile hosts {script} --lr 1"),
        (
            {"HOSTFILE": "hosts", "NUM_GPUS": "4"},
            "deepspeed --hostfile hosts --num_gpus 4 {script} --lr 1",
        ),
        ({"NUM_GPUS": "two"}, "finetune_RemoteGLM.sh: error: NUM_GPUS=two: expected a number"),
        (
            {"HOSTFILE": "nowhere"},
            "finetune_RemoteGLM.sh: error: HOSTFILE=nowhere: no file with lines like "
            "'node1 slots=4'",
        ),
    ],
)
def test_the_launch_script(tmp_path, environment, expected):
    """What finetune_RemoteGLM.sh starts, by stand-ins for the launchers that print their command
    lines.
    """
    script = shutil.copy(PROJECT / "finetune_RemoteGLM.sh", tmp_path)
    (tmp_path / "hosts").write_text("# machines\nnode1 slots=4\n")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("python", "torchrun", "deepspeed"):
        stand_in = tmp_path / ".venv/bin" / name
        stand_in.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo 0 || echo {name} "$@"\n')
        stand_in.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if key not in ("NUM_GPUS", "HOSTFILE")}
    result = subprocess.run(
        ["bash", script, "--lr", "1"],
        cwd=tmp_path,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    error = "error" in expected
    assert (result.stderr if error else result.stdout).strip() == expected.format(
        script=tmp_path / "finetune_RemoteGLM.py",
        launch=tmp_path / "model/training/launch.py",
    )
    assert result.returncode == error
