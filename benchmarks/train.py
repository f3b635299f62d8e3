"""LoRA training by finetune_RemoteGLM.py against the baseline (benchmarks/baseline.py), in one run.

On the CPU with a mid-size network: images/s, memory, share of the matmul rate; then memory and
images/s as the data set grows; then VisualGLM-6B's size, on a GPU where there is one, else what
two steps, answers and an export take without it:

    python benchmarks/train.py
    python benchmarks/train.py --rows 1000 10000
    python benchmarks/train.py --full-size

Each way is a process of its own. Weights and images are random; answers are random Chinese of real
lengths. A CPU without bfloat16 instructions (AVX2 only) takes an hour over the rows in bfloat16:
leave them out with --dtypes float32.
"""

import gc
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from baseline import SOURCE, TARGET
from networks import PROJECT, full_size, machine, mid_size, random_base, rendered, table
from processes import as_words, gigabytes, logged_steps, watch
from without_gpu import check_room, without_gpu

from command_line import Parser, sigterm_cleans_up

HERE = Path(__file__).resolve().parent
# Tokens of UCM's 1,890 Chinese captions in ChatGLM's vocabulary: the middles of 20 equal shares,
# 33 on average.
ANSWER_TOKENS = (11, 14, 16, 19, 21, 23, 25, 27, 28, 31, 33, 35, 37, 40, 42, 45, 48, 51, 55, 66)
# Makes the prompt 55 tokens in the tiny vocabulary; the usual question makes 52 in ChatGLM's.
QUESTION = "场景？"
IMAGE_SIDE = 256  # pixels
RANK = 10
EPOCHS = 2
# Where no epoch is completed, images/s is read between these steps.
WARM, STEADY = 10, 60
PASSES = 5  # of the measurement of the matmul rate, over the weights four times each
REPEATS = 4
DTYPES = ("float32", "bfloat16")


def steady_speed(run, batch_size):
    """images/s between two readings after the start."""
    return batch_size * (STEADY - WARM) / (run.seconds[STEADY] - run.seconds[WARM])


# What is trained


@dataclass
class Work:
    """What a LoRA step must compute."""

    operations: float  # per image
    tokens: float  # of an image's row, on average
    formula: str  # the same in words


class Bench:
    """A network, and what all measurements on it share."""

    def __init__(self, folder, config, threads, device="cpu", dtype="float32"):
        self.folder = folder
        self.config = config
        self.threads = threads
        self.device = device
        self.dtype = dtype
        self.tokenizer = None

    def prepare(self):
        """Write the base's folder; returns self."""
        self.tokenizer = random_base(self.folder / "base", self.config, self.device, self.dtype)
        gc.collect()  # of the network: its parts refer to each other
        torch.cuda.empty_cache()
        return self

    def rows(self, name, count, images):
        """Write count rows over so many images; returns the file.

        Texts are the same in every run, images never, so that no cache knows them.
        """
        folder = self.folder / name
        folder.mkdir()
        write_images(folder, images)

        pieces = self.tokenizer.pieces
        names = [pieces.id_to_piece(index) for index in range(pieces.vocab_size())]
        characters = [piece for piece in names if len(piece) == 1 and "一" <= piece <= "龥"]
        chance = random.Random(0)
        lengths = [chance.choice(ANSWER_TOKENS) - 1 for _ in range(count)]  # and a leading blank
        rows = []
        for index, length in enumerate(lengths):
            answer = "".join(chance.choices(characters, k=length))
            rows.append({"img": f"{index % images}.tif", "prompt": QUESTION, "label": answer})
        file = folder / "rows.json"
        file.write_text(json.dumps(rows))
        return file

    def ours(self, file, batch_size, interval, dtype, length, method="lora"):
        """Train with the project's script -> Run.

        It writes a reading every interval steps and saves once, at the end. length: {"--epochs" or
        "--train-iters": number}.
        """
        name = file.parent.name
        options = {
            "--from-pretrained": self.folder / "base",
            "--train-data": file,
            "--batch-size": batch_size,
            "--method": method,
            "--lora-rank": RANK,
            "--device": self.device,
            "--dtype": dtype,
            "--vision-cache": self.folder / "vision-cache",
            "--log-interval": interval,
            "--save-interval": sys.maxsize,
            "--save": self.folder / "runs",
            "--experiment-name": name,
        }
        command = [sys.executable, PROJECT / "finetune_RemoteGLM.py"]
        command += as_words(options | length)
        metrics = self.folder / "runs" / name
        return watch(command, self.threads, lambda: logged_steps(metrics))

    def baseline(self, file, batch_size, steps):
        """Train the baseline -> (Run, images/s without the first step)."""
        options = {
            "--batch-size": batch_size,
            "--steps": steps,
            "--rank": RANK,
            "--device": self.device,
            "--dtype": self.dtype,
        }
        command = [sys.executable, HERE / "baseline.py", self.folder / "base", file]
        run = watch(command + as_words(options), self.threads)
        seconds = json.loads(run.output.splitlines()[-1])
        return run, batch_size / statistics.median(seconds[1:])

    def work(self, file):
        """What training on a row file must compute -> Work."""
        config = self.config
        width, inner = config["hidden_size"], config["inner_hidden_size"]
        blocks = config["num_layers"] * (4 * width**2 + 2 * width * inner)
        head = config["vocab_size"] * width

        rows = rendered(file, self.tokenizer, config)
        tokens = statistics.mean(len(row.ids) for row in rows)
        answers = statistics.mean(len(row.target_positions) for row in rows)
        operations = 4 * (blocks * tokens + head * answers)
        formula = (
            f"An image must cost 4 x ({blocks / 1e6:.1f} M weights of the language model's blocks "
            f"x {tokens:.1f} tokens + {head / 1e6:.1f} M of the head x {answers:.1f} answer "
            f"tokens) = {operations / 1e9:.1f} GFLOP: 2 forward, 2 backward through frozen "
            "weights, no weight gradients; attention products, LoRA, norms and the vision tower "
            "are left out."
        )
        return Work(operations, tokens, formula)

    def matmul_rate(self, rows, dtype):
        """Operations per second of F.linear over x [rows, width], w [inner, width].

        That of the best pass; dtype: torch's.
        """
        width, inner = self.config["hidden_size"], self.config["inner_hidden_size"]
        layers = self.config["num_layers"]
        x = torch.randn(rows, width, dtype=dtype, device=self.device)
        weights = []  # more than a cache holds
        for _ in range(layers):
            weights.append(torch.randn(inner, width, dtype=dtype, device=self.device))

        fastest = float("inf")
        for _ in range(PASSES):
            start = time.perf_counter()
            for weight in weights * REPEATS:
                torch.nn.functional.linear(x, weight)
            if self.device == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - start)
        del x, weights
        torch.cuda.empty_cache()
        return REPEATS * layers * 2 * rows * width * inner / fastest

    def matmul_shape(self):
        return f"[{self.config['inner_hidden_size']}, {self.config['hidden_size']}]"


def write_images(folder, count):
    """Images of noise, other ones in every run."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng()
    for index in range(count):
        pixels = noise.integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.tif")


# Tables


def by_dtype(bench, dtypes, images, batch_size, baseline_steps):
    """The baseline in float32 against ours in each dtype, epoch by epoch."""
    file = bench.rows("baseline", images, images)
    work = bench.work(file)
    products = round(batch_size * work.tokens)
    baseline, baseline_speed = bench.baseline(file, batch_size, baseline_steps)

    rates = {}
    for dtype in dict.fromkeys(["float32", *dtypes]):
        rates[dtype] = bench.matmul_rate(products, getattr(torch, dtype))

    def row(way, dtype, run, first, later):
        return {
            "way": f"{way} {dtype}",
            "images/s, first epoch": f"{first:.2f}",
            "against baseline": f"{first / baseline_speed:.2f}",
            "images/s, second epoch": f"{later:.2f}",
            "against baseline ": f"{later / baseline_speed:.2f}",
            "peak GB": gigabytes(run.memory),
            "against baseline  ": f"{run.memory / baseline.memory:.2f}",
            "of matmul rate": f"{work.operations * later / rates[dtype]:.0%}",
        }

    rows = [row("baseline", "float32", baseline, baseline_speed, baseline_speed)]
    steps = -(-images // batch_size)  # of an epoch
    for dtype in dtypes:
        own = bench.rows(f"ours-{dtype}", images, images)
        run = bench.ours(own, batch_size, steps, dtype, {"--epochs": EPOCHS})
        first, last = run.seconds[steps], run.seconds[EPOCHS * steps]
        rows.append(row("ours", dtype, run, images / first, images * (EPOCHS - 1) / (last - first)))
    table(rows)

    measured_rates = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items()
    )
    print(
        f"\nBaseline: the median of {baseline_steps - 1} steps, all alike (every row "
        f"{SOURCE + TARGET} tokens, the image encoded in each step, full logits). Ours: {images} "
        "rows with an image each; the first epoch counts from the start of the process and holds "
        "imports, loading and the encoding of every image; neither way saves in between. Memory: "
        f"greatest resident size.\n{work.formula}\nMatmul rate: F.linear of {products} rows (a "
        f"batch's tokens) by {bench.matmul_shape()}: {measured_rates}."
    )


def by_rows(bench, counts, images, batch_size):
    """Ours in bfloat16 on more and more rows."""
    rows = []
    for count in counts:
        file = bench.rows(f"rows-{count}", count, images)
        run = bench.ours(file, batch_size, WARM, "bfloat16", {"--train-iters": STEADY})
        rows.append(
            {
                "rows": f"{count:,}",
                "images/s": f"{steady_speed(run, batch_size):.2f}",
                "peak GB": gigabytes(run.memory),
                f"seconds to step {WARM}": f"{run.seconds[WARM]:.1f}",
            }
        )
    table(rows)
    print(
        f"\nOurs in bfloat16, batch {batch_size}, steps {WARM} to {STEADY}. The rows share "
        f"{images} images, so that encoding does not dominate."
    )


def by_batch(bench, batches):
    """Baseline, LoRA and QLoRA at VisualGLM-6B's size on a GPU."""
    rows, formula = [], ""
    for batch_size in batches:
        file = bench.rows(f"baseline-{batch_size}", 256, 32)
        work = bench.work(file)
        formula = work.formula
        rate = bench.matmul_rate(round(batch_size * work.tokens), torch.bfloat16)
        baseline, baseline_speed = bench.baseline(file, batch_size, WARM)
        measured = [("baseline lora", baseline, baseline_speed)]
        for method in ("lora", "qlora"):
            own = bench.rows(f"{method}-{batch_size}", 256, 32)
            length = {"--train-iters": STEADY}
            run = bench.ours(own, batch_size, WARM, "bfloat16", length, method)
            measured.append((f"ours {method}", run, steady_speed(run, batch_size)))

        for way, run, speed in measured:
            rows.append(
                {
                    "way": way,
                    "batch": batch_size,
                    "images/s": f"{speed:.2f}",
                    "against baseline": f"{speed / baseline_speed:.2f}",
                    "of matmul rate": f"{work.operations * speed / rate:.0%}",
                    "matmul TFLOP/s": f"{rate / 1e12:.0f}",
                    "GPU GB": gigabytes(run.gpu_memory),
                    "host GB": gigabytes(run.memory),
                }
            )
    table(rows)
    print(
        f"\nAll in bfloat16. Baseline: the median of {WARM - 1} steps; ours: steps {WARM} to "
        f"{STEADY}, images already encoded. GPU memory as the driver counts it, the allocator's "
        "reserve and the CUDA context included; host memory of the training process without those "
        f"that read images.\n{formula}\nMatmul rate: F.linear of a batch's tokens by "
        f"{bench.matmul_shape()}."
    )


def parse():
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--rows",
        type=int,
        nargs="+",
        metavar="N",
        help="measure ours in bfloat16 on so many rows instead",
    )
    add(
        "--full-size",
        action="store_true",
        help="VisualGLM-6B's size instead, on a GPU where there is one; 16 GB of files in TMPDIR, "
        "without a GPU 25 GB and 20 GB of memory",
    )
    add("--images", type=int, default=160, help="rows of an epoch, an image each (%(default)s)")
    add(
        "--batch-size",
        type=int,
        nargs="+",
        help="rows of a step (4; with --full-size 1 and 8 in turn, without a GPU always 1)",
    )
    add(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=DTYPES,
        help="of ours, without --rows and --full-size (default: all)",
    )
    add(
        "--baseline-steps",
        type=int,
        default=6,
        help="steps of the baseline; the first is not counted (%(default)s)",
    )
    add(
        "--shared-images",
        type=int,
        default=16,
        help="with --rows: images that the rows share (%(default)s)",
    )
    add("--threads", type=int, default=2, help="of the CPU (%(default)s)")
    args = parser.parse_args()
    if args.full_size and args.batch_size and not torch.cuda.is_available():
        parser.error("--batch-size with --full-size needs a CUDA GPU, and torch finds none here")
    return args


def measure(args, folder):
    """Measure what the options ask for; files are written into a folder."""
    if args.full_size and torch.cuda.is_available():
        bench = Bench(folder, full_size(), args.threads, "cuda", "bfloat16").prepare()
        by_batch(bench, args.batch_size or (1, 8))
        return
    if args.full_size:
        check_room(folder, full_size())
        without_gpu(Bench(folder, full_size(), args.threads, dtype="float16").prepare())
        return

    bench = Bench(folder, mid_size(), args.threads).prepare()
    batch_size = args.batch_size[0] if args.batch_size else 4
    if args.rows:
        by_rows(bench, args.rows, args.shared_images, batch_size)
    else:
        by_dtype(bench, args.dtypes, args.images, batch_size, args.baseline_steps)


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    on_gpu = args.full_size and torch.cuda.is_available()
    print(f"{machine('cuda' if on_gpu else 'cpu')}\n", flush=True)
    with sigterm_cleans_up(), tempfile.TemporaryDirectory() as scratch:
        try:
            measure(args, Path(scratch))
        except MemoryError as error:
            sys.exit(f"benchmarks/train.py: error: {error}")


if __name__ == "__main__":
    main()
