"""What a training run tells of itself: metrics.jsonl, loss.png, trackers, speed and memory."""

import json
import resource
import sys
import time

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def plot(log, path):
    """loss.png: training loss, held-out loss with the picture, with a blank one and with another one."""
    figure, axes = plt.subplots(figsize=(7, 4))
    train = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    axes.plot(*zip(*train), color="0.7", label="train") if train else None
    for key, style in (("real", "C0o-"), ("blank", "C1s--"), ("swapped", "C3^--")):
        points = [
            (entry["step"], entry["valid"][key]) for entry in log if key in entry.get("valid", {})
        ]
        axes.plot(*zip(*points), style, label=f"held out, {key} images") if points else None
    axes.set(xlabel="step", ylabel="loss per answer token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


class Log:
    """What a run measures: metrics.jsonl (a resumed run drops what came after its step), loss.png, and trackers."""

    def __init__(self, folder, step, trackers):
        self.folder, self.trackers, path = folder, trackers, folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if step and path.is_file() else []
        self.entries = [
            entry
            for entry in map(json.loads, (line for line in lines if line.endswith("}")))
            if entry["step"] <= step
        ]
        path.write_text(
            "".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8"
        )
        self.file = open(path, "a", encoding="utf-8")

    def note(self, step, **entry):
        self.entries.append({"step": step, **entry})
        self.file.write(json.dumps(self.entries[-1]) + "\n")
        self.file.flush()
        flat = {f"valid/{name}": value for name, value in entry.get("valid", {}).items()} or entry
        for tracker in self.trackers:
            tracker(step, flat)

    def draw(self):  # not at every reading: a plot takes longer than a small step
        plot(self.entries, self.folder / "loss.png")


def make_trackers(names, folder, name, options):
    """Functions (step, measures) that hand measures on to "wandb" and "tensorboard"."""
    trackers = []
    if "wandb" in names:
        import wandb

        run = wandb.init(project="RemoteGLM", name=name, dir=str(folder), config=options)
        trackers.append(lambda step, measures: run.log(measures, step=step))
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(folder / "tensorboard")
        trackers.append(
            lambda step, measures: [
                writer.add_scalar(key, value, step) for key, value in measures.items()
            ]
        )
    return trackers


def memory_gb(device):
    """The most memory this process has held so far: of the GPU where there is one, else resident, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / 1e9
    )


class Meter:
    """Loss and speed since the last reading; reads the device only when asked."""

    def __init__(self, device):
        self.device = device
        self.restart()
        self.losses, self.steps = [], 0

    def restart(self):
        """Leave out what was neither training nor waiting for data."""
        self.since, self.images, self.tokens = time.perf_counter(), 0, 0

    def add(self, loss):
        self.losses.append(loss)

    def step(self, images, tokens):
        self.steps, self.images, self.tokens = (
            self.steps + 1,
            self.images + images,
            self.tokens + tokens,
        )

    def read(self):
        """Mean loss per answer token over all processes, images and tokens a second."""
        total = torch.stack(self.losses).double().sum()
        torch.distributed.all_reduce(total)
        seconds = time.perf_counter() - self.since
        read = {
            "loss": total.item() / self.steps,
            "images_per_s": round(self.images / seconds, 2),
            "tokens_per_s": round(self.tokens / seconds, 1),
        }
        self.losses, self.steps = [], 0
        self.restart()
        return read
