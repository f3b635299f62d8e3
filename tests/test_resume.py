"""What a saved step holds, and that no run goes another way for having been interrupted."""

import json
import os
import sys

import fork_server
import pytest
import torch
from safetensors.torch import load_file

from model.files import PROJECT
from model.weight_files import ADAPTER

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
# Every kind of optimizer that DeepSpeed wraps around ours: name -> options
KINDS = {
    "float32": "",
    "bfloat16": "--bf16 --lora_dropout 0.1",
    "stage-1": "--zero-stage 1 --offload",
    "stage-2": "--zero-stage 2 --bf16",
    "stage-3": "--zero-stage 3",
    "stage-3-bf16": "--zero-stage 3 --bf16 --offload",
}
# All of them in the same two processes; each is copied as a crash after step 3 leaves it
SCRIPT = """import json, shutil, sys, torch, finetune_RemoteGLM
from pathlib import Path
finetune_RemoteGLM.leave_process_group = lambda *_: None
save, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
for kind, argv in runs.items():
    finetune_RemoteGLM.main([*argv, "--experiment-name", kind])
    if torch.distributed.get_rank() == 0:
        shutil.copytree(save / kind, save / f"{kind}-again")
        shutil.rmtree(save / f"{kind}-again" / "6")
    torch.distributed.barrier()
    finetune_RemoteGLM.main([*argv, "--experiment-name", f"{kind}-again", "--resume"])
"""


def train_argv(base, rows, save, *more):
    """6 steps, saved every 3."""
    argv = f"--from_pretrained {base} --train-data {rows}/rows-train.json --save {save} --lr 0.01 "
    argv += f"--vision_cache {save}/cache --train-iters 6 --save-interval 3 --eval-interval 100 "
    argv += "--batch-size 2 --log-interval 1 --clip-grad 0.5"
    return [*argv.split(), *map(str, more)]


@pytest.fixture(scope="module")
def resumed(tiny_checkpoint, rows, tmp_path_factory):
    """The --save folder of all KINDS, trained at one go and resumed, by two processes."""
    save = tmp_path_factory.mktemp("resumed")
    (save / "script.py").write_text(SCRIPT)
    runs = {}
    for kind, options in KINDS.items():
        runs[kind] = train_argv(tiny_checkpoint, rows, save, *options.split())
    command = [sys.executable, save / "script.py", save, json.dumps(runs)]
    result = fork_server.run(command, ranks=2, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("resumed at step 3") == len(KINDS)
    return save


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [(e["step"], e["loss"], e["lr"]) for e in entries if "loss" in e]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact_for_every_optimizer(resumed, kind):
    whole, again = resumed / kind, resumed / f"{kind}-again"
    assert logged(again) == logged(whole) and len(logged(whole)) == 6
    ours, theirs = (load_file(folder / "6" / ADAPTER) for folder in (again, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # and what the next save would continue from
    for file in sorted((whole / "6" / "state").glob("*.safetensors")):
        assert file.read_bytes() == (again / "6" / "state" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_run_is_a_pickle(resumed, kind):
    files = [path for path in (resumed / kind / "6").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".model"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80")), path
