"""Qwen3-VL of any size with random weights: LoRA and QLoRA by finetune_RemoteGLM.py, answers.

    python benchmarks/qwen3_vl.py                      # 4B's size on a GPU, a small one without
    python benchmarks/qwen3_vl.py --size 8B --methods qlora --checkpointing on --batch-size 1

Nothing is downloaded: the weights are drawn on the device, texts and images are random. Every row
of the tables is one of the project's scripts in a process of its own, printed as soon as it has
ended; one that fails says why, and the others follow.
"""

import gc
import statistics
import string
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

from networks import machine, table

from command_line import Parser, ctrl_c_ends_at_once, sigterm_cleans_up

with ctrl_c_ends_at_once():
    import torch
    import transformers

from bench import RANK, Bench, lora_work
from hf_networks import SIZES, on_meta, weights_of, write_base
from processes import Failed, gigabytes, readings
from without_gpu import answers

from model.devices import DTYPES

# Products in bfloat16 without sparsity, operations/s, by the vendor's data sheets
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
IMAGES = 16  # that the rows of a training share; their features are made once
ON_GPU = {"size": "4B", "dtype": "bfloat16", "image_side": 768, "steps": 30, "tokens": 128}
ON_CPU = {"size": "small", "dtype": "float32", "image_side": 256, "steps": 6, "tokens": 16}


class Qwen3VL(Bench):
    """A Qwen3-VL of one of SIZES."""

    question = "What is here?"

    def __init__(self, size, image_side, *base):
        super().__init__(*base)
        self.size = size
        self.image_side = image_side
        text = SIZES[size]["text"]
        self.layers = text["num_hidden_layers"]
        self.width, self.inner = text["hidden_size"], text["intermediate_size"]
        self.family = None  # on the meta device: it knows lengths and numbers of weights

    def prepare(self):
        """Write the base's folder; returns self."""
        write_base(self.base, self.size, self.device, self.dtype)
        gc.collect()
        torch.cuda.empty_cache()
        self.family = on_meta(self.base)
        return self

    def answer(self, chance, tokens):
        return "".join(chance.choices(string.ascii_lowercase, k=tokens))  # tokens are bytes

    def rendered(self, file):
        from model.family import Limits
        from model.rows import load_rows

        return [self.family.render(sample, Limits()) for sample in load_rows(file)]

    def prompt_length(self, file):
        """Tokens before the answer, the image's included; the same for all rows."""
        row = self.rendered(file)[0]
        return row.length - row.target_tokens

    def work(self, file):
        """What training on a row file must compute -> bench.Work."""
        rows = self.rendered(file)
        blocks, head = weights_of(self.family)
        tokens = statistics.mean(row.length for row in rows)
        return lora_work(blocks, head, tokens, statistics.mean(row.target_tokens for row in rows))

    def peak(self):
        """The device's operations/s by its data sheet; None where it is not in PEAKS."""
        if self.device != "cuda":
            return None
        name = torch.cuda.get_device_name()
        return next((rate for known, rate in PEAKS.items() if known in name), None)


# Tables


TRAINED = (
    *("s/step", "images/s", "tokens/s", "MFU", "of matmul rate"),
    *("GPU GB allocated", "GPU GB by its driver", "host GB", "images are encoded"),
)
ANSWERED = ("s/batch", "tokens/s", "GPU GB by its driver", "host GB")


def row(what, columns, measure):
    """A row: what is measured, and the columns' cells; in the first of them why there are none."""
    print(", ".join(f"{name} {value}" for name, value in what.items()), file=sys.stderr, flush=True)
    try:
        cells = measure()
    except (MemoryError, Failed) as error:
        cells = [str(error).strip().splitlines()[-1][:300]] + [""] * (len(columns) - 1)
    return what | dict(zip(columns, cells, strict=True))


def trainings(bench, args):
    """Rows of the table of training."""
    for method, checkpointing, batch_size in product(
        args.methods, args.checkpointing, args.batch_size
    ):
        what = {"method": method, "activation checkpointing": checkpointing, "batch": batch_size}
        yield row(what, TRAINED, partial(trained, bench, *what.values(), args.steps))


def trained(bench, method, checkpointing, batch_size, steps):
    """Train -> the cells of TRAINED, over the steps after the first third."""
    name = f"{method}-{checkpointing}-{batch_size}"
    file = bench.rows(name, batch_size * steps, IMAGES)
    more = ["--lora_targets", "attention", "mlp"]
    more += ["--checkpoint-activations"] * (checkpointing == "on")
    interval = steps // 3
    run = bench.ours(
        file, batch_size, interval, bench.dtype, {"--train-iters": steps}, method, more
    )
    first, *_, last = readings(bench.run_of(file))
    seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])

    work = bench.work(file)
    speed = batch_size / seconds  # images/s
    rate = bench.matmul_rate(round(batch_size * work.tokens), DTYPES[bench.dtype])
    peak = bench.peak()
    on_gpu = bench.device == "cuda"
    return (
        f"{seconds:.3f}",
        f"{speed:.2f}",
        f"{speed * work.tokens:.0f}",
        f"{work.operations * speed / peak:.1%}" if peak else "",
        f"{work.operations * speed / rate:.1%}",
        f"{last['memory_gb']:.1f}" if on_gpu else "",
        gigabytes(run.gpu_memory) if on_gpu else "",
        gigabytes(run.memory),
        "in every step" if "in every step" in run.output else "once, before",
    )


def answerings(bench, args):
    """Rows of the table of answers."""
    for bits, batch_size in product(args.quant, args.answers):
        what = {"weights": bits or bench.dtype, "batch": batch_size}
        yield row(what, ANSWERED, partial(answered, bench, bits, batch_size, args.tokens))


def answered(bench, bits, batch_size, tokens):
    """Answer two batches -> the cells of ANSWERED, of the second."""
    file = bench.rows(f"asked-{bits}-{batch_size}", 2 * batch_size, 2 * batch_size)
    loading = {"--quant": bits} if bits else {"--dtype": bench.dtype}
    run = answers(bench, file, bench.base, loading, batch_size, bench.prompt_length(file), tokens)
    seconds = run.seconds[2 * batch_size] - run.seconds[batch_size]
    return (
        f"{seconds:.2f}",
        f"{batch_size * tokens / seconds:.1f}",
        gigabytes(run.gpu_memory) if bench.device == "cuda" else "",
        gigabytes(run.memory),
    )


def measure(args, folder):
    """Write a base into a folder and print the tables."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Qwen3VL(args.size, args.image_side, folder, args.threads, device, args.dtype).prepare()
    asked = bench.rows("one", 1, 1)
    weights = sum(parameter.numel() for parameter in bench.family.network.parameters())
    print(
        f"{machine(device)}; transformers {transformers.__version__}\n"
        f"Qwen3-VL {args.size}: {weights / 1e9:.2f} B random weights in {args.dtype}; images of "
        f"{args.image_side} x {args.image_side}, with the question {bench.prompt_length(asked)} "
        "tokens\n",
        flush=True,
    )
    if args.methods:
        table(trainings(bench, args))
        print(
            f"\nLoRA of rank {RANK} on all linear layers of the language model; steps "
            f"{args.steps // 3} to {args.steps}. MFU: what an image must cost, times images/s, "
            "over the data sheet's operations/s of the device; of matmul rate: over the rate of "
            f"F.linear with a batch's tokens by {bench.matmul_shape()}, measured beside it. What "
            f"is computed again for activation checkpointing counts in neither.\n"
            f"{bench.work(asked).formula} (of the first row)\n"
        )
    if args.answers:
        table(answerings(bench, args))
        print(
            f"\nGreedy answers of {args.tokens} tokens; the second batch, its images and prompts "
            "included, loading not."
        )


def parse():
    defaults = ON_GPU if torch.cuda.is_available() else ON_CPU
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), help="default: 4B on a GPU, else small")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    add("--image-side", type=int, help="pixels; default: 768 on a GPU, else 256")
    add(
        "--methods",
        nargs="*",
        choices=("lora", "qlora"),
        default=["lora", "qlora"],
        help="trained in turn (default: both; none named: no training)",
    )
    add(
        "--checkpointing",
        nargs="+",
        choices=("off", "on"),
        default=["off", "on"],
        help="activation checkpointing of the trainings (default: off and on)",
    )
    add(
        "--batch-size",
        type=int,
        nargs="+",
        default=[8],
        help="rows of a step (default: 8)",
    )
    add("--steps", type=int, help="of a training, at least 3; default: 30 on a GPU, else 6")
    add(
        "--answers",
        type=int,
        nargs="*",
        default=[1, 8],
        help="batch sizes of answers (default: 1 and 8; none named: no answers)",
    )
    add(
        "--quant",
        type=int,
        nargs="+",
        choices=(0, 4, 8),
        default=[0],
        help="bits of the weights that answer; 0: not quantized (default)",
    )
    add("--tokens", type=int, help="of an answer; default: 128 on a GPU, else 16")
    add("--threads", type=int, default=2, help="of the CPU (default: 2)")
    args = parser.parse_args()
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.steps < 3:
        parser.error(f"--steps {args.steps}: expected at least 3")
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    with sigterm_cleans_up(), tempfile.TemporaryDirectory() as scratch:
        measure(args, Path(scratch))


if __name__ == "__main__":
    main()
