"""What a training run reports: metrics.jsonl, loss.png, trackers, speed and memory."""

import json
import resource
import sys
import time
from contextlib import contextmanager

import torch

from model.files import parse_json, write_text

# key of a validation loss in metrics.jsonl -> style of its line, label
CURVES = {
    "real": ("C0o-", "validation"),
    "blank": ("C1s--", "validation, blank images"),
    "shuffled": ("C3^--", "validation, shuffled images"),
}
DRAW_INTERVAL = 10  # seconds: a plot takes longer than many a step
OLD_KEYS = {"swapped": "shuffled"}  # of runs by an earlier version


def plot(entries, path):
    """loss.png: training loss, and validation loss with its images, blank and shuffled ones."""
    from matplotlib.figure import Figure  # its import takes a second

    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    train = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    if train:
        axes.plot(*zip(*train), color="0.7", label="train")
    for key, (style, label) in CURVES.items():
        points = [(entry["step"], entry["valid"][key]) for entry in entries if _has(entry, key)]
        if points:
            axes.plot(*zip(*points), style, label=label)
    axes.set(xlabel="step", ylabel="loss per answer token")
    if axes.has_data():
        axes.legend()
    figure.savefig(path, dpi=120)


def _entry(line):
    """The entry of a line of metrics.jsonl; None where a crash tore it, or it is none."""
    try:
        entry = parse_json(line)
        if "valid" in entry:
            entry["valid"] = {OLD_KEYS.get(k, k): loss for k, loss in entry["valid"].items()}
        return entry if entry["step"] >= 0 else None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _has(entry, key):
    return key in entry.get("valid", {})


class Log:
    """metrics.jsonl, loss.png and trackers of one run; `open` reads what is there.

    Training never ends for what only looks at it: what fails is told once, by `say`, and left out.
    """

    def __init__(self, folder, trackers=(), say=print):
        self.folder = folder
        self.trackers = list(trackers)
        self.entries = []
        self.say = say
        self._told = set()
        self._file = None
        self._drawn = time.monotonic()

    def open(self, step):
        """Continue the metrics up to this step: a resumed run drops what came after it."""
        path = self.folder / "metrics.jsonl"
        lines = []
        if step and path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            entry = _entry(line)
            if entry and entry["step"] <= step:
                self.entries.append(entry)
        with self._not_fatal("metrics.jsonl"):
            write_text(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))
            # Unbuffered: what a full disk refused is not tried again at the end
            self._file = open(path, "ab", buffering=0)
        return self

    @contextmanager
    def _not_fatal(self, what):
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- plots and trackers are other people's code
            if what not in self._told:
                reason = str(error).partition("\n")[0] or type(error).__name__
                self.say(f"{what} left out ({reason[:200]}); the training goes on")
            self._told.add(what)

    def note(self, step, **entry):
        """Write one entry: metrics of training, or valid={name: loss}."""
        self.entries.append({"step": step, **entry})
        with self._not_fatal("metrics.jsonl"):
            if self._file:
                self._file.write((json.dumps(self.entries[-1]) + "\n").encode())
        metrics = entry
        if "valid" in entry:
            metrics = {f"valid/{name}": value for name, value in entry["valid"].items()}
        for number, tracker in enumerate(self.trackers, 1):
            with self._not_fatal(f"tracker {number} of --report"):
                tracker(step, metrics)

    def draw(self, is_last=False):
        """Write loss.png, unless that was less than DRAW_INTERVAL ago and more is to come."""
        if not is_last and time.monotonic() - self._drawn < DRAW_INTERVAL:
            return
        self._drawn = time.monotonic()
        with self._not_fatal("loss.png"):
            plot(self.entries, self.folder / "loss.png")

    def track(self, names, run_name, options):
        """Also log to "wandb" and "tensorboard"."""
        for name in names:
            with self._not_fatal(name):
                self.trackers.append(TRACKERS[name](self.folder, run_name, options))


def _wandb(folder, name, options):
    """A function (step, metrics) that logs to Weights & Biases."""
    import wandb

    run = wandb.init(project="RemoteGLM", name=name, dir=str(folder), config=options)
    return lambda step, metrics: run.log(metrics, step=step)


def _tensorboard(folder, name, options):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard")

    def write(step, metrics):
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)

    return write


TRACKERS = {"wandb": _wandb, "tensorboard": _tensorboard}


def memory_gb(device):
    """Peak memory of this process in GB: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Meter:
    """Loss and speed since the last reading; reads the device only when asked."""

    def __init__(self):
        self.losses = []
        self.steps = 0
        self.restart()

    def restart(self):
        """Leave out what was neither training nor waiting for data."""
        self.since = time.perf_counter()
        self.images = self.tokens = 0

    def add_loss(self, loss):
        """loss: this process's share of a step's, a tensor on the device."""
        self.losses.append(loss)

    def add_step(self, images, tokens):
        self.steps += 1
        self.images += images
        self.tokens += tokens

    def read(self):
        """Mean loss per answer token over all processes, images and tokens per second."""
        total = torch.stack(self.losses).double().sum()
        torch.distributed.all_reduce(total)
        seconds = time.perf_counter() - self.since
        metrics = {
            "loss": total.item() / self.steps,
            "images_per_s": round(self.images / seconds, 2),
            "tokens_per_s": round(self.tokens / seconds, 1),
        }
        self.losses = []
        self.steps = 0
        self.restart()
        return metrics
