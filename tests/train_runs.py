"""Trainings as a user starts them, of small networks: what the tests of training share."""

import json
import os
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import fork_server
import psutil
from conftest import PROJECT

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
CACHE = []  # the fixture vision_cache: the folder of the cached features


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
