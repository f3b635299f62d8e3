"""Runs that are stopped, resumed, extended and replaced, and what goes wrong around them."""

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fork_server
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_resume import ENVIRONMENT, logged, train_argv

import finetune_RemoteGLM as finetune
from model import UserError, files
from model.files import PROJECT
from model.training import log as training_log
from model.training.base import as_resolved
from model.training.dataset import batches_of, make_loader
from model.training.engine import Processes
from model.training.inputs import read_inputs
from model.training.log import Log
from model.training.memory import Memory
from model.training.options import Options, without_effect
from model.training.run_folder import REPLACED, RunFolder
from model.weight_files import ADAPTER, CARD

SCRIPT = str(PROJECT / "finetune_RemoteGLM.py")
LAUNCH = [sys.executable, "-P", str(PROJECT / "model/training/launch.py"), "--standalone"]
# Several runs in one process, each with what it prints and how it ends
SERIES = """import contextlib, io, json, sys, finetune_RemoteGLM
finetune_RemoteGLM.leave_process_group = lambda *_: None
results = []
for argv in json.loads(sys.argv[1]):
    said, end = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            finetune_RemoteGLM.main(argv)
        except SystemExit as stop:
            end = stop.code
    results.append([end, said.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def series(tiny_checkpoint, rows, tmp_path_factory):
    """(--save folder, name -> how that run ended, name -> what it printed), in this order."""
    save = tmp_path_factory.mktemp("series")
    common = train_argv(tiny_checkpoint, rows, save)

    def argv(experiment, *more, **other):
        words = [*common, "--experiment-name", experiment, *more]
        for option, value in other.items():
            words[words.index(f"--{option.replace('_', '-')}") + 1] = str(value)
        return words

    from_x = str(save / "x")
    runs = {
        "nothing to resume": argv("x", "--resume"),
        "the same dtype": argv("x", "--resume", "--dtype", "float32"),
        "more steps": argv("x", "--resume", train_iters=8),
        "fewer steps": argv("x", "--resume", train_iters=5),
        "smaller batch": argv("x", "--resume", batch_size=1),
        "other rate": argv("x", "--resume", lr=0.5),
        "accumulated": argv("x", "--resume", "--gradient-accumulation-steps", "2", batch_size=1),
        "eight": argv("eight", train_iters=8),
        "extended": argv("x", "--resume", "--extend", train_iters=8),
        "from the adapter": argv("y", "--from_pretrained", from_x, train_iters=1, lr=1e-12),
        "other rank": argv("z", "--from_pretrained", from_x, "--lora_rank", "3"),
        "other method": argv("z", "--from_pretrained", from_x, "--method", "ptuning"),
        "in its own folder": argv("x", "--from_pretrained", from_x, "--overwrite"),
        "early": argv("z", "--early-stopping", "1", train_data=rows / "rows-val.json"),
        "unused": argv("u", "--method", "ptuning", "--lora_rank", "3", train_iters=1),
    }
    command = [sys.executable, "-c", SERIES, json.dumps(list(runs.values()))]
    result = fork_server.run(command, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    ends = {name: end for name, (end, _) in zip(runs, results)}
    return save, ends, {name: said for name, (_, said) in zip(runs, results)}


@pytest.mark.parametrize(
    "name, end, words",
    [
        ("nothing to resume", 0, r"--resume: \S+x holds no saved step .*: starting from step 0"),
        ("the same dtype", 0, "is finished at step 6: nothing to do"),
        ("more steps", "", r"steps 6 -> 8 \(--extend trains on to them\)"),
        ("fewer steps", "", r"steps 6 -> 5 \(--train-iters 6\)"),
        ("smaller batch", "", r"2 -> 1 \(--gradient-accumulation-steps 2 makes them the same\)"),
        (
            "other rate",
            "",
            "--lr 0.01 -> 0.5; name another .*--from_pretrained may be a saved step",
        ),
        ("accumulated", 0, "is finished at step 6: nothing to do"),
        ("extended", 0, "extended from 6 to 8 steps: the learning rate goes on at 0.00"),
        ("from the adapter", 0, "trains lora {'rank': 10"),
        ("other rank", "", "--lora_rank 3: the adapter .* has 10; leave it out"),
        ("other method", "", "holds lora: it cannot be trained on as --method ptuning; leave that"),
        ("in its own folder", "", "lies in the folder that this run writes"),
        ("early", "", "--early-stopping 1 needs validation rows: name them with --valid-data"),
        ("unused", 0, "no effect with --method ptuning: --lora_rank"),
    ],
)
def test_the_way_on_is_named(series, name, end, words):
    _, ends, said = series
    if end == 0:
        assert ends[name] == 0 and re.search(words, said[name]), (ends[name], said[name])
    else:
        assert re.search(words, ends[name]) and "\n" not in ends[name], ends[name]


def test_an_extended_run_follows_the_longer_schedule(series):
    save, *_ = series
    rates = {folder: [rate for _, _, rate in logged(save / folder)] for folder in ("x", "eight")}
    assert len(rates["x"]) == 8 and rates["x"][6:] == rates["eight"][6:]
    assert rates["x"][5] != rates["eight"][5]  # step 6 was the last of the first plan
    card = json.loads((save / "x/8" / CARD).read_text())
    assert card["options"]["dtype"] == "float32" and card["options"]["train_iters"] == 8


def test_training_on_from_an_adapter_starts_with_its_tensors(series, tiny_checkpoint):
    save, *_ = series
    ours, theirs = (load_file(save / run / ADAPTER) for run in ("y/1", "x/8"))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-9) and tensor.any(), name
    cards = [json.loads((save / run / CARD).read_text()) for run in ("y/1", "x/8")]
    assert cards[0]["base"] == cards[1]["base"] and cards[0]["method"] == cards[1]["method"]


@pytest.mark.parametrize(
    "of_card, asked, english",
    [
        (False, [], False),
        (True, [], True),
        (True, ["--no-english"], False),
        (True, ["--no_english"], False),
        (False, ["--english"], True),
        (None, [], False),
    ],
)
def test_training_on_keeps_the_language_of_the_checkpoint(
    series, tiny_checkpoint, tmp_path, of_card, asked, english
):
    """Of an adapter and of a full checkpoint, unless the command line says another."""
    for source in (series[0] / "eight/8", tiny_checkpoint):
        folder = shutil.copytree(source, tmp_path / Path(source).name)
        card = json.loads((folder / CARD).read_text()) | {"english": of_card}
        (folder / CARD).write_text(json.dumps(card))
        options, _ = finetune.parse(["--from_pretrained", str(folder), *asked])
        assert as_resolved(options, torch.float32).english is english


def test_a_run_of_no_language_is_chinese():
    nowhere = Options(from_pretrained="visualglm-of-nowhere")
    scratch = Options(model_config="model.json", method="full")
    for options in (nowhere, scratch):
        assert options.english is None and as_resolved(options, torch.float32).english is False


def test_a_replaced_run_is_not_resumed(series, tiny_checkpoint, rows, tmp_path):
    """--overwrite, killed before its first save, then --resume: the old steps are not its own."""
    folder = shutil.copytree(series[0] / "eight", tmp_path / "eight")
    run, said = RunFolder(folder), []
    assert run.steps() == [3, 6, 8]
    finetune.begin(run, run.steps(), Options(overwrite=True), said.append)
    assert run.steps() == [] and run.replaced() == [3, 6, 8] and (folder / "8").is_dir()
    again = RunFolder(folder)
    run._lock.close()
    finetune.begin(again, again.steps(), Options(resume=True), said.append)
    assert said[-1].endswith("holds no saved step to resume from: starting from step 0")

    # Its first save takes the place of the old ones, the pointers with them
    (folder / "best").write_text("6")
    again.scratch(6).mkdir()
    (again.scratch(6) / "weights").write_text("new")
    again.publish(6)
    assert again.steps() == [6] and again.replaced() == [3, 8]
    (folder / "best").write_text("8")
    again.drop(again.replaced())
    again.replace([])
    assert again.steps() == [6] and not (folder / "best").exists()
    assert (folder / "latest").read_text() == "6" and not (folder / REPLACED).exists()


@pytest.fixture
def started():
    """Starts a training process and returns it once `ready(process)` says so; ends what is left.

    Without a launcher its imports are done.
    """
    processes = []

    def start(*argv, ready, launcher=None, nohup=False, **how):
        # whatever the tests themselves run under
        action = signal.SIG_IGN if nohup else signal.SIG_DFL
        before = partial(signal.signal, signal.SIGHUP, action)
        how |= {"env": ENVIRONMENT}
        if launcher:
            how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            words = [*launcher, SCRIPT, *argv]
            process = subprocess.Popen(words, preexec_fn=before, **how)
        else:
            process = fork_server.Popen([sys.executable, SCRIPT, *argv], before=before, **how)
        processes.append(process)
        return wait_until(ready, process)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(ready, process):
    deadline = time.time() + 60
    while process.poll() is None and time.time() < deadline and not ready(process):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    return process


def trains(save):
    path = save / "x/metrics.jsonl"
    return lambda process: path.is_file() and '"loss"' in path.read_text()


def endless(base, rows, save, *more):
    words = train_argv(base, rows, save, "--experiment-name", "x", *more)
    words[words.index("--train-iters") + 1] = words[words.index("--save-interval") + 1] = "100000"
    return words


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("library", ["libtorch_cpu", "_sentencepiece"])
def test_a_signal_while_anything_loads_is_one_line(
    started, tiny_checkpoint, rows, tmp_path, library
):
    def is_loading(process):
        with open(f"/proc/{process.pid}/maps") as maps:
            return library in maps.read()

    argv = endless(tiny_checkpoint, rows, tmp_path)
    process = started(*argv, ready=is_loading, launcher=[sys.executable])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "finetune_RemoteGLM.py: stopped by SIGINT; saved steps are as they were\n"


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_signals_of_logins_and_batch_systems_save(started, tiny_checkpoint, rows, tmp_path, name):
    process = started(*endless(tiny_checkpoint, rows, tmp_path), ready=trains(tmp_path))
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert re.search(r"stopped at step \d+ of 100000; the same command with --resume", out)
    assert RunFolder(tmp_path / "x").damage(RunFolder(tmp_path / "x").steps()[-1]) is None


@pytest.mark.slow
def test_what_nohup_ignores_stays_ignored(started, tiny_checkpoint, rows, tmp_path):
    process = started(
        *endless(tiny_checkpoint, rows, tmp_path),
        ready=trains(tmp_path),
        nohup=True,
    )
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 143


def test_a_signal_to_all_processes_of_a_job(started, tiny_checkpoint, rows, tmp_path):
    """Workers that read images get it as well, and the launcher: no traceback of any."""
    more = ["--num-workers", "1", "--vision_cache", "off"]
    process = started(
        *endless(tiny_checkpoint, rows, tmp_path, *more),
        ready=trains(tmp_path),
        launcher=[*LAUNCH, "--nproc_per_node", "2"],
        start_new_session=True,
    )
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 143 and "Traceback" not in err
    assert "the same command with --resume continues" in out
    assert RunFolder(tmp_path / "x").damage(RunFolder(tmp_path / "x").steps()[-1]) is None


ONE_FAILS = """import sys, torch
sys.path.insert(0, sys.argv[1])
import finetune_RemoteGLM
from model.errors import UserError
from model.training.engine import start_processes

def train(options, ignored):
    processes = start_processes(torch.device("cpu"))
    if sys.argv[2] == "both":
        raise UserError("no rows")
    if sys.argv[2] == "one":
        if processes.rank == 1:
            raise UserError("no rows")
        torch.distributed.barrier()
    with processes.together():
        if processes.rank == 1:
            raise UserError("no rows")

finetune_RemoteGLM.train = train
finetune_RemoteGLM.main([])
"""


@pytest.mark.parametrize("where", ["both", pytest.param("one", marks=pytest.mark.slow), "together"])
def test_an_error_of_any_process_is_one_line(tmp_path, where):
    (tmp_path / "script.py").write_text(ONE_FAILS)
    command = [*LAUNCH, "--nproc_per_node", "2", str(tmp_path / "script.py"), str(PROJECT), where]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=90)
    assert result.returncode == 1
    assert result.stderr == "finetune_RemoteGLM.py: error: no rows\n"


class Unreadable(torch.utils.data.Dataset):
    family = SimpleNamespace(collate=list)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise UserError("image 3.tif: no such file")
        return index


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_its_one_line(workers):
    batches = batches_of(make_loader(Unreadable(), [[0, 1], [2, 3]], workers))
    assert next(batches) == [0, 1]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == "image 3.tif: no such file"


AGAIN = """import os, sys
from model.training import allocator
allocator.GPUS = sys.argv[2:]
os.write(1, b"started ")
allocator.start_without_caches()
print(os.environ.get(allocator.VARIABLE), sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
@pytest.mark.parametrize(
    "given, gpus, printed",
    [
        ({}, [], "started started glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, [], "started glibc.malloc.check=0"),
        ({}, ["/dev/null"], "started None"),
    ],
)
def test_the_allocator_is_set_by_starting_once_more(given, gpus, printed):
    own = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", AGAIN, "a b", *gpus]
    result = subprocess.run(command, env=own | given, cwd=PROJECT, capture_output=True, text=True)
    assert result.stdout == f"{printed} a b\n"


@pytest.mark.parametrize(
    "message, words",
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "is killed by signal: Killed"),
        ("CUDA out of memory. Tried to allocate 3 GiB", "lower --batch-size"),
        ("DefaultCPUAllocator: can't allocate memory: 3 bytes", "lower --batch-size"),
    ],
)
def test_want_of_memory_says_what_to_do(monkeypatch, message, words):
    def train(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(finetune, "train", train)
    with pytest.raises(SystemExit, match=words) as caught:
        finetune.main([])
    assert "--resume" in caught.value.code and "\n" not in caught.value.code


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {},
            "weights 8.0 GB (--method qlora: less than half), gradients and AdamW's state 0.5 GB, "
            "activations 12.0 GB (--batch-size 2: 6.0; --checkpoint-activations: a small part)",
        ),
        (
            {"method": "full", "batch_size": 1, "checkpoint_activations": True},
            "weights 8.0 GB, gradients and AdamW's state 0.5 GB (--method lora: nearly none), "
            "activations 12.0 GB",
        ),
    ],
)
def test_want_of_memory_says_what_helps_and_by_how_much(options, words):
    memory = Memory(8.0, 0.5, 12.0)
    assert memory.advice(Options(**options)) == f"by the estimate {words}"


WITHOUT_MEMORY = """import sys, finetune_RemoteGLM

def fit(trainer):
    raise RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")

finetune_RemoteGLM.Trainer.fit = fit
finetune_RemoteGLM.main(sys.argv[1:])
"""


def test_want_of_memory_while_training_names_the_estimate(tiny_checkpoint, rows, tmp_path):
    argv = train_argv(tiny_checkpoint, rows, tmp_path)
    command = [sys.executable, "-c", WITHOUT_MEMORY, *argv]
    result = fork_server.run(command, env=ENVIRONMENT, cwd=PROJECT)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert re.search(r"lower --batch-size .*; by the estimate weights 0\.0 GB", line)


def test_reports_never_stop_a_training(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no network\nor so")

    said = []
    log = Log(tmp_path, [broken], said.append).open(0)
    monkeypatch.setitem(training_log.TRACKERS, "wandb", broken)
    log.track(["wandb"], "x", {})
    log._file = open("/dev/full", "ab", buffering=0)
    monkeypatch.setattr(training_log, "plot", broken)
    for step in (1, 2):
        log.note(step, loss=1.0)
        log.draw(is_last=True)
    assert said == [
        "wandb left out (no network); the training goes on",
        "metrics.jsonl left out ([Errno 28] No space left on device); the training goes on",
        "tracker 1 of --report left out (no network); the training goes on",
        "loss.png left out (no network); the training goes on",
    ]


class Failing(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self.write("")


def test_output_that_fails_never_stops_a_training(monkeypatch):
    def train(options, ignored):
        Processes(device=None, rank=0, world=1).say("step 1")
        print("step 2", file=sys.stderr, flush=True)
        return "folder"

    failing = Failing()
    monkeypatch.setattr(finetune, "train", train)
    monkeypatch.setattr(sys, "stdout", failing)
    monkeypatch.setattr(sys, "stderr", failing)
    assert finetune.main([]) == "folder"
    assert sys.stdout is failing and sys.stderr is failing


def test_validation_rows_that_nobody_named_are_left_out(rows, tmp_path):
    """They lie beside those named for training, and are wrong."""
    shutil.copytree(rows / "images", tmp_path / "images")
    shutil.copy(rows / "rows-train.json", tmp_path)
    (tmp_path / "rows-val.json").write_text('[{"img": "gone.tif", "prompt": "问", "label": "答"}]')
    options = Options(train_data=str(tmp_path / "rows-train.json"))
    inputs = read_inputs(options)
    assert inputs.samples and inputs.valid_samples == []
    assert "no validation by the rows beside --train-data: " in inputs.notes[-1]
    assert "image not found" in inputs.notes[-1]
    options.valid_data = str(tmp_path / "rows-val.json")
    with pytest.raises(UserError, match="image not found"):
        read_inputs(options)


def test_losses_are_drawn_now_and_then_and_at_the_end(tmp_path, monkeypatch):
    drawn, now = [], [0.0]
    monkeypatch.setattr(training_log, "plot", lambda entries, path: drawn.append(now[0]))
    monkeypatch.setattr(training_log.time, "monotonic", lambda: now[0])
    log = Log(tmp_path)
    for second in range(0, 34, 3):
        now[0] = float(second)
        log.draw()
    log.draw(is_last=True)
    assert drawn == [12, 24, 33]
    monkeypatch.undo()
    log.note(1, loss=1.0)
    log.note(2, valid={"real": 1.0, "blank": 2.0})
    log.draw(is_last=True)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (840, 480) and len(picture.convert("RGB").getcolors(2**16)) > 9


def test_metrics_torn_anywhere_are_passed_over(tmp_path):
    whole = [{"step": 1, "loss": 2.0}, {"step": 2, "valid": {"swapped": 1.0}}]
    lines = [json.dumps(entry) for entry in whole]
    torn = ['{"step": 3, "valid": {"real": 1.0}', "[1]", '{"loss": 1}', '{"step": "x"}', "}", "\0"]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, *torn]))
    entries = Log(tmp_path).open(5).entries
    assert entries == [whole[0], {"step": 2, "valid": {"shuffled": 1.0}}]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    said = []
    run = RunFolder(tmp_path / "x").prepare()

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    run.lock(said.append)
    assert len(said) == 1 and "the file system has no locks; start no second run" in said[0]


def test_a_file_size_limit_is_one_line_and_resumes(tiny_checkpoint, rows, tmp_path):
    argv = train_argv(tiny_checkpoint, rows, tmp_path, "--experiment-name", "x")
    command = [sys.executable, SCRIPT, *argv, "--vision_cache", "off"]

    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    result = fork_server.run(command, env=ENVIRONMENT, before=limit)
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert re.search("checkpoint .*3 cannot be written: .*File too large", line)
    again = fork_server.run([*command, "--resume"], env=ENVIRONMENT)
    assert again.returncode == 0 and RunFolder(tmp_path / "x").steps() == [3, 6]


WITHOUT_TORCH = """import runpy, sys
sys.modules["torch"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("options, status", [(["--help"], 0), (["--lr", "x"], 2)])
def test_help_and_wrong_options_are_answered_before_the_imports(options, status):
    command = [sys.executable, "-c", WITHOUT_TORCH, SCRIPT, *options]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == status and "Traceback" not in result.stderr
    assert status == 0 or result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (f"--seed {2**64}", "--seed 18446744073709551616: must be below 2**63"),
        (f"--train-iters {10**400}", "must be below 2**63"),
        ("--extend", "--extend needs --resume"),
        ("--experiment-name=", "--experiment-name '': expected the name of a folder"),
        ("--experiment-name ..", "--experiment-name '..': expected the name of a folder"),
    ],
)
def test_options_that_cannot_be(capsys, options, words):
    with pytest.raises(SystemExit):
        finetune.parse(options.split())
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_options_without_effect():
    assert without_effect(Options(method="lora", lora_rank=3)) == []
    assert without_effect(Options(method="qlora", pre_seq_len=9)) == ["pre_seq_len"]
    assert without_effect(Options(method="full", lora_targets=["mlp"])) == ["lora_targets"]
