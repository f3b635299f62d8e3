"""The folder of a run: its steps, damage, a full disk, signals, gradients that are not finite."""

import json
import re
import shutil
import signal
import time
from types import SimpleNamespace

import fork_server
import pytest
import torch
from safetensors.torch import load_file, save_file
from train_runs import ENVIRONMENT, command, losses, run

from model import UserError
from model.training import run_folder
from model.training.engine import CheckedAdamW
from model.training.log import Meter
from model.training.loop import Trainer
from model.training.resume import Progress, check_resumable
from model.training.run_folder import RunFolder
from model.visualglm.family import VisualGLMFamily
from model.visualglm.sat import ensure_model_parallel_group
from model.weight_files import ADAPTER, FULL


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
