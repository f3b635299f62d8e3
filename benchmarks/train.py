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
import statistics
import sys
import tempfile
from functools import cached_property
from pathlib import Path

from networks import full_size, machine, mid_size, random_base, rendered, table

from command_line import Parser, ctrl_c_ends_at_once, sigterm_cleans_up

with ctrl_c_ends_at_once():
    import torch

from baseline import SOURCE, TARGET
from bench import RANK, Bench, lora_work
from processes import as_words, gigabytes, watch
from without_gpu import check_room, without_gpu

HERE = Path(__file__).resolve().parent
EPOCHS = 2
# Where no epoch is completed, images/s is read between these steps.
WARM, STEADY = 10, 60
DTYPES = ("float32", "bfloat16")


def steady_speed(run, batch_size):
    """images/s between two readings after the start."""
    return batch_size * (STEADY - WARM) / (run.seconds[STEADY] - run.seconds[WARM])


# What is trained


class VisualGLM(Bench):
    """A VisualGLM of a parsed model_config.json."""

    # Makes the prompt 55 tokens in the tiny vocabulary; the usual question makes 52 in ChatGLM's.
    question = "场景？"

    def __init__(self, folder, config, threads, device="cpu", dtype="float32"):
        super().__init__(folder, threads, device, dtype)
        self.config = config
        self.layers = config["num_layers"]
        self.width, self.inner = config["hidden_size"], config["inner_hidden_size"]
        self.tokenizer = None

    def prepare(self):
        """Write the base's folder; returns self."""
        self.tokenizer = random_base(self.base, self.config, self.device, self.dtype)
        gc.collect()  # of the network: its parts refer to each other
        torch.cuda.empty_cache()
        return self

    @cached_property
    def characters(self):
        """Chinese characters that are one token each."""
        pieces = self.tokenizer.pieces
        names = [pieces.id_to_piece(index) for index in range(pieces.vocab_size())]
        return [piece for piece in names if len(piece) == 1 and "一" <= piece <= "龥"]

    def answer(self, chance, tokens):
        return "".join(chance.choices(self.characters, k=tokens - 1))  # and a leading blank

    def baseline(self, file, batch_size, steps):
        """Train the baseline -> (Run, images/s without the first step)."""
        options = {
            "--batch-size": batch_size,
            "--steps": steps,
            "--rank": RANK,
            "--device": self.device,
            "--dtype": self.dtype,
        }
        command = [sys.executable, HERE / "baseline.py", self.base, file]
        run = watch(command + as_words(options), self.threads)
        seconds = json.loads(run.output.splitlines()[-1])
        return run, batch_size / statistics.median(seconds[1:])

    def work(self, file):
        """What training on a row file must compute -> Work."""
        blocks = self.layers * (4 * self.width**2 + 2 * self.width * self.inner)
        head = self.config["vocab_size"] * self.width

        rows = rendered(file, self.tokenizer, self.config)
        tokens = statistics.mean(len(row.ids) for row in rows)
        answers = statistics.mean(len(row.target_positions) for row in rows)
        return lora_work(blocks, head, tokens, answers)


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
        bench = VisualGLM(folder, full_size(), args.threads, "cuda", "bfloat16").prepare()
        by_batch(bench, args.batch_size or (1, 8))
        return
    if args.full_size:
        check_room(folder, full_size())
        without_gpu(VisualGLM(folder, full_size(), args.threads, dtype="float16").prepare())
        return

    bench = VisualGLM(folder, mid_size(), args.threads).prepare()
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
