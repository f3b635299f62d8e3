"""A command of this project in a process of its own, watched from outside: seconds and memory."""

import json
import os
import resource
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

import torch
from networks import kernel_bytes

POLL_INTERVAL = 0.05  # seconds
LEAST_AVAILABLE = 0.5e9  # bytes of memory that a command must leave to the machine


class Failed(SystemExit):
    """A command that ended with an error; its text is the command and the end of its output."""


@dataclass
class Run:
    """What was seen of a process from outside."""

    output: str = ""
    memory: int = 0  # greatest resident size, mapped files included, in bytes
    anonymous: int = 0  # greatest RssAnon, without mapped files, in bytes
    gpu_memory: int = 0  # greatest growth of what the GPU's driver counts as used, in bytes
    total: float = 0.0  # seconds to its end
    cpu_seconds: float = 0.0  # of all its threads and processes
    # step -> seconds from the start of the process until the step was reached
    seconds: dict = field(default_factory=dict)


def watch(command, threads, reached=tuple, least_available=LEAST_AVAILABLE):
    """Run a command to its end -> Run.

    reached: called again and again, gives the steps that the command has reached so far. Raises
    MemoryError where the command takes so much memory that the machine has less than
    least_available bytes left: it is ended then; and Failed where it ends with an error.
    """
    run = Run()
    gpu_before, cpu_before = gpu_used(), children_seconds()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            running = True
            while running:
                running = process.poll() is None
                if running:
                    read_memory(process, run, least_available)
                run.gpu_memory = max(run.gpu_memory, gpu_used() - gpu_before)
                run.total = time.perf_counter() - start
                for step in reached():
                    run.seconds.setdefault(step, run.total)
                time.sleep(POLL_INTERVAL)
        finally:
            process.kill()
            process.wait()
        run.cpu_seconds = children_seconds() - cpu_before
        output.seek(0)
        run.output = output.read()

    if process.returncode == -signal.SIGKILL:  # by the system
        raise out_of_memory(run)
    if process.returncode:
        shown = " ".join(map(str, command))
        raise Failed(f"{shown}: ended with {process.returncode}\n{run.output[-3000:]}")
    return run


def read_memory(process, run, least_available):
    """Note a running process's memory in its Run. Raises MemoryError, see watch."""
    status = f"/proc/{process.pid}/status"  # without sizes if it has just ended
    run.memory = max(run.memory, kernel_bytes(status, "VmHWM"))
    run.anonymous = max(run.anonymous, kernel_bytes(status, "RssAnon"))
    if kernel_bytes("/proc/meminfo", "MemAvailable") < least_available:
        raise out_of_memory(run)


def out_of_memory(run):
    return MemoryError(f"not enough memory: ended at {gigabytes(run.anonymous)} GB of RssAnon")


def children_seconds():
    """CPU seconds of the processes that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def gpu_used():
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def logged_steps(experiment):
    """The steps that stand in the metrics of an experiment's folder."""
    for entry in readings(experiment):
        yield entry["step"]


def readings(experiment):
    """The readings of training in the metrics of an experiment's folder, one a line."""
    for file in experiment.glob("*.jsonl"):
        whole_lines = file.read_text().rpartition("\n")[0]  # the last may be half a line
        for entry in map(json.loads, whole_lines.splitlines()):
            if "loss" in entry:
                yield entry


def as_words(options):
    """{option: value} -> the words of a command."""
    words = []
    for option, value in options.items():
        words += [option, str(value)]
    return words


def gigabytes(size):
    return f"{size / 1e9:.2f}"
