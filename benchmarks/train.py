"""LoRA training by finetune_RemoteGLM.py against the stock way (benchmarks/stock.py), in one run.

    python benchmarks/train.py                    mid-size network on the CPU: images/s, memory, share of the matmul rate
    python benchmarks/train.py --rows 1000 10000  memory and images/s as the data set grows
    python benchmarks/train.py --full-size        VisualGLM-6B's size on a GPU

Each way is a process of its own. Weights and pictures are random; answers are random Chinese of real lengths.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from networks import PROJECT, full_size, machine, mid_size, random_base, rendered, table
from stock import SOURCE, TARGET

HERE = Path(__file__).resolve().parent
# Tokens of UCM's 1,890 Chinese captions in ChatGLM's vocabulary: the middles of 20 equal shares, 33 on average.
ANSWER_TOKENS = (11, 14, 16, 19, 21, 23, 25, 27, 28, 31, 33, 35, 37, 40, 42, 45, 48, 51, 55, 66)
QUESTION = "场景？"  # makes the prompt 55 tokens in the tiny vocabulary; the usual question makes 52 in ChatGLM's
PICTURE = 256  # pixels of a side
RANK = 10
EPOCHS = 2
WARM, STEADY = 10, 60  # where no epoch is completed, images/s is read between these steps
PASSES = 5


@dataclass
class Run:
    """What was seen of a process from outside."""

    output: str
    memory: int  # greatest resident size, mapped files included, in bytes
    gpu_memory: int  # greatest growth of what the GPU's driver counts as used, in bytes
    seconds: dict  # step -> from the start of the process until the step stood in the metrics


def gpu_used():
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def watch(command, threads, experiment=None):
    """Run a command to its end -> Run. experiment: the folder in which a training writes its metrics, one reading a line."""
    seconds, memory, before, gpu_memory, running = {}, 0, gpu_used(), 0, True
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        while running:
            running = process.poll() is None
            status = Path(f"/proc/{process.pid}/status").read_text() if running else ""
            for line in status.splitlines():
                if line.startswith("VmHWM"):
                    memory = int(line.split()[1]) * 1024
            gpu_memory = max(gpu_memory, gpu_used() - before)
            for metrics in experiment.glob("*.jsonl") if experiment else ():
                written = metrics.read_text().rpartition("\n")[
                    0
                ]  # the last line may be half a line
                for entry in map(json.loads, written.splitlines()):
                    if "loss" in entry:
                        seconds.setdefault(entry["step"], time.perf_counter() - start)
            time.sleep(0.05)
        output.seek(0)
        said = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: ended with {process.returncode}\n{said[-3000:]}")
    return Run(said, memory, gpu_memory, seconds)


class Bench:
    """A network, and what all measurements on it share."""

    def __init__(self, folder, config, threads, device="cpu", dtype="float32"):
        self.folder, self.config, self.threads = folder, config, threads
        self.device, self.dtype = device, dtype
        self.words = random_base(folder / "base", config, device, dtype)
        torch.cuda.empty_cache()

    def rows(self, name, count, pictures):
        """Write count rows over so many pictures; returns the file. Texts are the same in every run, pictures never, so that
        no cache knows them."""
        import numpy as np
        from PIL import Image

        folder = self.folder / name
        folder.mkdir()
        chance, noise = random.Random(0), np.random.default_rng()
        pieces = map(self.words.pieces.id_to_piece, range(self.words.pieces.vocab_size()))
        letters = [piece for piece in pieces if len(piece) == 1 and "一" <= piece <= "龥"]
        for index in range(pictures):
            pixels = noise.integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.tif")
        file = folder / "rows.json"
        lengths = (
            chance.choice(ANSWER_TOKENS) - 1 for _ in range(count)
        )  # a text's first token is a blank
        file.write_text(
            json.dumps(
                [
                    {
                        "img": f"{index % pictures}.tif",
                        "prompt": QUESTION,
                        "label": "".join(chance.choices(letters, k=length)),
                    }
                    for index, length in enumerate(lengths)
                ]
            )
        )
        return file

    def ours(self, file, batch_size, interval, *options):
        """Train with the project's script, which writes a reading every interval steps and saves once, at the end."""
        name = file.parent.name
        return watch(
            [
                sys.executable,
                PROJECT / "finetune_RemoteGLM.py",
                "--from_pretrained",
                self.folder / "base",
                "--train-data",
                file,
                "--batch-size",
                str(batch_size),
                "--lora_rank",
                str(RANK),
                "--device",
                self.device,
                "--vision_cache",
                self.folder / "vision-cache",
                "--log-interval",
                str(interval),
                "--save-interval",
                str(sys.maxsize),
                "--save",
                self.folder / "runs",
                "--experiment-name",
                name,
                *map(str, options),
            ],
            self.threads,
            self.folder / "runs" / name,
        )

    def stock(self, file, batch_size, steps):
        """Train the stock way -> (Run, images/s without the first step)"""
        run = watch(
            [
                sys.executable,
                HERE / "stock.py",
                self.folder / "base",
                file,
                "--batch-size",
                str(batch_size),
                "--steps",
                str(steps),
                "--rank",
                str(RANK),
                "--device",
                self.device,
                "--dtype",
                self.dtype,
            ],
            self.threads,
        )
        return run, batch_size / statistics.median(json.loads(run.output.splitlines()[-1])[1:])

    def work(self, file):
        """(operations that a LoRA step must do for an image, tokens of an image's row, the formula in words)"""
        c, rows = self.config, rendered(file, self.words, self.config)
        width, inner = c["hidden_size"], c["inner_hidden_size"]
        blocks, head = c["num_layers"] * (4 * width**2 + 2 * width * inner), c["vocab_size"] * width
        tokens = statistics.mean(len(row.ids) for row in rows)
        answers = statistics.mean(len(row.target_positions) for row in rows)
        operations = 4 * (blocks * tokens + head * answers)
        return (
            operations,
            tokens,
            (
                f"An image must cost 4 x ({blocks / 1e6:.1f} M weights of the language model's blocks x {tokens:.1f} "
                f"tokens + {head / 1e6:.1f} M of the head x {answers:.1f} answer tokens) = {operations / 1e9:.1f} GFLOP: "
                "2 forward, 2 backward through frozen weights, no weight gradients; attention products, LoRA, norms and "
                "the vision tower are left out."
            ),
        )

    def product_rate(self, rows, dtype):
        """Operations per second of F.linear over x [rows, width], w [inner, width]: the best of some passes."""
        c, to = self.config, {"dtype": dtype, "device": self.device}
        width, inner, layers = c["hidden_size"], c["inner_hidden_size"], c["num_layers"]
        x = torch.randn(rows, width, **to)
        weights = [
            torch.randn(inner, width, **to) for _ in range(layers)
        ]  # more than a cache holds
        fastest = float("inf")
        for _ in range(PASSES):
            start = time.perf_counter()
            for weight in weights * 4:
                torch.nn.functional.linear(x, weight)
            if self.device == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - start)
        del x, weights
        torch.cuda.empty_cache()
        return 4 * layers * 2 * rows * width * inner / fastest


def gigabytes(size):
    return f"{size / 1e9:.2f}"


def by_dtype(bench, images, batch_size, stock_steps):
    """Stock in float32 against ours in float32 and bfloat16, epoch by epoch."""
    files = {
        way: bench.rows(way.replace(" ", "-"), images, images)
        for way in ("stock", "ours float32", "ours bfloat16")
    }
    operations, tokens, formula = bench.work(files["stock"])
    products = round(batch_size * tokens)
    stock, stock_speed = bench.stock(files["stock"], batch_size, stock_steps)
    measured = [("stock float32", stock, stock_speed, stock_speed)]
    epoch = -(-images // batch_size)
    for dtype, options in (("float32", ()), ("bfloat16", ("--bf16",))):
        run = bench.ours(
            files[f"ours {dtype}"], batch_size, epoch, "--use_lora", "--epochs", EPOCHS, *options
        )
        first, last = run.seconds[epoch], run.seconds[EPOCHS * epoch]
        measured.append(
            (f"ours {dtype}", run, images / first, images * (EPOCHS - 1) / (last - first))
        )
    rates = {
        dtype: bench.product_rate(products, getattr(torch, dtype))
        for dtype in ("float32", "bfloat16")
    }
    table(
        [
            {
                "way": way,
                "images/s, first epoch": f"{first:.2f}",
                "against stock": f"{first / stock_speed:.2f}",
                "images/s, second epoch": f"{later:.2f}",
                "against stock ": f"{later / stock_speed:.2f}",
                "peak GB": gigabytes(run.memory),
                "against stock  ": f"{run.memory / stock.memory:.2f}",
                "of matmul rate": f"{operations * later / rates[way.split()[1]]:.0%}",
            }
            for way, run, first, later in measured
        ]
    )
    print(
        f"\nStock: the median of {stock_steps - 1} steps, all alike (every row {SOURCE + TARGET} tokens, the picture "
        f"encoded in each step, full logits). Ours: {images} rows with a picture each; the first epoch counts from the "
        "start of the process and holds imports, loading and the encoding of every picture; neither way saves in between. "
        f"Memory: greatest resident size.\n{formula}\nMatmul rate: F.linear of {products} rows (a batch's tokens) by "
        f"[{bench.config['inner_hidden_size']}, {bench.config['hidden_size']}]: "
        + ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
        + "."
    )


def steady(run, batch_size):
    """images/s between two readings after the start."""
    return batch_size * (STEADY - WARM) / (run.seconds[STEADY] - run.seconds[WARM])


def by_rows(bench, counts, pictures, batch_size):
    """Ours in bfloat16 on more and more rows."""
    runs = {}
    for count in counts:
        file = bench.rows(f"rows-{count}", count, pictures)
        runs[count] = bench.ours(
            file, batch_size, WARM, "--use_lora", "--bf16", "--train-iters", STEADY
        )
    table(
        [
            {
                "rows": f"{count:,}",
                "images/s": f"{steady(run, batch_size):.2f}",
                "peak GB": gigabytes(run.memory),
                f"seconds to step {WARM}": f"{run.seconds[WARM]:.1f}",
            }
            for count, run in runs.items()
        ]
    )
    print(
        f"\nOurs in bfloat16, batch {batch_size}, steps {WARM} to {STEADY}. The rows share {pictures} pictures, so that "
        "encoding does not dominate."
    )


def by_batch(bench, batches):
    """Stock, LoRA and QLoRA at VisualGLM-6B's size on a GPU."""
    rows = []
    for batch_size in batches:
        file = bench.rows(f"stock-{batch_size}", 256, 32)
        operations, tokens, formula = bench.work(file)
        rate = bench.product_rate(round(batch_size * tokens), torch.bfloat16)
        stock, stock_speed = bench.stock(file, batch_size, WARM)
        measured = [("stock LoRA", stock, stock_speed)]
        for way, option in (("ours LoRA", "--use_lora"), ("ours QLoRA", "--use_qlora")):
            own = bench.rows(f"{option[6:]}-{batch_size}", 256, 32)
            run = bench.ours(own, batch_size, WARM, option, "--bf16", "--train-iters", STEADY)
            measured.append((way, run, steady(run, batch_size)))
        rows += [
            {
                "way": way,
                "batch": batch_size,
                "images/s": f"{speed:.2f}",
                "against stock": f"{speed / stock_speed:.2f}",
                "of matmul rate": f"{operations * speed / rate:.0%}",
                "matmul TFLOP/s": f"{rate / 1e12:.0f}",
                "GPU GB": gigabytes(run.gpu_memory),
                "host GB": gigabytes(run.memory),
            }
            for way, run, speed in measured
        ]
    table(rows)
    print(
        f"\nAll in bfloat16. Stock: the median of {WARM - 1} steps; ours: steps {WARM} to {STEADY}, pictures already "
        "encoded. GPU memory as the driver counts it, the allocator's reserve and the CUDA context included; host memory "
        f"of the training process without those that read images.\n{formula}\nMatmul rate: F.linear of a batch's tokens "
        f"by [{bench.config['inner_hidden_size']}, {bench.config['hidden_size']}]."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", metavar="N", help="measure ours on so many rows instead"
    )
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="VisualGLM-6B's size on a GPU instead; 16 GB of files in TMPDIR",
    )
    parser.add_argument(
        "--images", type=int, default=160, help="rows of an epoch, a picture each (%(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        help="rows of a step (4; with --full-size 1 and 8 in turn)",
    )
    parser.add_argument(
        "--stock-steps",
        type=int,
        default=6,
        help="steps of the stock way; the first is not counted (%(default)s)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=16,
        help="with --rows: pictures the rows share (%(default)s)",
    )
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    args = parser.parse_args()
    if args.full_size and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/train.py: error: --full-size needs a CUDA GPU, and torch finds none here"
        )
    torch.set_num_threads(args.threads)
    device = "cuda" if args.full_size else "cpu"
    print(f"{machine(device)}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if args.full_size:
            # A vocabulary of another size, since only ChatGLM's own file is accepted for its own.
            bench = Bench(folder, full_size(vocabulary=130500), args.threads, device, "bfloat16")
            return by_batch(bench, args.batch_size or (1, 8))
        bench, batch_size = (
            Bench(folder, mid_size(), args.threads),
            args.batch_size[0] if args.batch_size else 4,
        )
        if args.rows:
            by_rows(bench, args.rows, args.pictures, batch_size)
        else:
            by_dtype(bench, args.images, batch_size, args.stock_steps)


if __name__ == "__main__":
    main()
