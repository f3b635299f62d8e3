"""Answers against SwissArmyTransformer's own generation, on a CPU or at full size on a GPU.

    OMP_NUM_THREADS=2 python benchmarks/generate.py
    python benchmarks/generate.py --full-size

Measured: tokens per second, time to the first token, memory. The baseline is SAT's
`filling_sequence` with its cached attention, its ChatGLM attention, rotary and mask code, in
float32 (on a GPU float16), on the same weights and prompts; in float32 both must give the same
tokens. The ways take turns in one process and each number is a median, so that other load falls on
all alike. A first round encodes the image; a third round is asked about the same one. "Products
allow" times nothing but the matrix-vector products of a token, in their order: what is left is this
project's own. "Step of 8 rows" is what a decoding step of a batch costs, in steps of one row.
Memory is that of one answer, each way in a process of its own: the peak of RssAnon, or what torch
allocated on the GPU. --full-size is VisualGLM-6B's size with random weights, on a GPU alone; it
writes 16 GB into TMPDIR.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from networks import (
    TINY_BASE,
    PeakMemory,
    folder_config,
    folder_weights,
    full_size,
    machine,
    mid_size,
    random_base,
    table,
)

from command_line import Parser

BASELINE = "baseline"
# Device -> way -> options of load_assistant; the baseline has those of the first way after it.
WAYS = {
    "cpu": {
        BASELINE: {"dtype": "float32"},
        "float32": {"dtype": "float32"},
        "bfloat16": {"dtype": "bfloat16"},
        "int8": {"bits": 8},
        "int4": {"bits": 4},
    },
    "cuda": {
        BASELINE: {"dtype": "float16"},
        "float16": {"dtype": "float16"},
        "bfloat16": {"dtype": "bfloat16"},
        "int8": {"dtype": "float16", "bits": 8},
        "int4": {"dtype": "float16", "bits": 4},
    },
}
MANY = 8  # rows answered together
QUESTION_TOKENS, ANSWER_TOKENS = 30, 60  # of the question, of an earlier answer
IMAGE_START = 3
PENALTY = 1.2


class Ours:
    """This project's generation. Answers are (ids, seconds from the question to each of them)."""

    def __init__(self, network):
        self.network = network

    def first(self, prompt, tokens, pixels):
        """A first round, which encodes the image."""
        start = time.perf_counter()
        return self._answer(prompt, tokens, self.encode(pixels), start)

    def later(self, prompt, tokens, pixels):
        """A later round: the dialogue has kept the image's embeddings."""
        embeds = self.encode(pixels)
        return self._answer(prompt, tokens, embeds, time.perf_counter())

    def encode(self, pixels):
        import torch

        with torch.inference_mode():
            return self.network.encode_images(pixels.to(self.network.device))

    def together(self, prompt, tokens, pixels):
        """MANY rows with an image each: seconds from the question to each token of all of them."""
        start = time.perf_counter()
        embeds = self.encode(pixels.expand(MANY, -1, -1, -1))
        return self._answer(prompt, tokens, embeds, start, rows=MANY)[1]

    def _answer(self, prompt, tokens, embeds, start, rows=1):
        from model import Sampling
        from model.visualglm.generate import generate

        steps = generate(
            self.network,
            [prompt] * rows,
            eop=-1,
            image_embeds=embeds,
            image_start=IMAGE_START,
            sampling=Sampling(max_new_tokens=tokens, temperature=0, repetition_penalty=PENALTY),
        )
        ids, times = [], []
        for row_tokens in steps:
            ids.append(row_tokens[0])
            times.append(time.perf_counter() - start)
        return ids, times

    def products(self):
        """Seconds that the products of one token take alone."""
        import torch

        from model.visualglm.decoder import LayerStack

        config, device = self.network.config, self.network.device
        with torch.inference_mode():
            stack = LayerStack(self.network)
            narrow = torch.randn(1, config.hidden_size).to(device, self.network.dtype)
            wide = torch.randn(1, config.inner_hidden_size).to(device, self.network.dtype)
            calls = []
            for layer in stack.layers:
                calls += [(layer.qkv, narrow), (layer.dense, narrow)]
                calls += [(layer.up, narrow), (layer.down, wide)]
            calls.append((stack.head, narrow))

            wait_for(device)
            start = time.perf_counter()
            for product, x in calls:
                product(x)
            wait_for(device)
            return time.perf_counter() - start


class Baseline:
    """SAT's generation; every round encodes the image. Answers as those of Ours."""

    def __init__(self, folder, device, dtype):
        import baseline
        from sat.model.cached_autoregressive_model import CachedAutoregressiveMixin

        from model.devices import DTYPES

        self.device = device
        self.network = baseline.network(folder_config(folder), device, DTYPES[dtype])
        self.network.load_state_dict(folder_weights(folder))
        self.network.add_mixin("auto-regressive", CachedAutoregressiveMixin())

    def parameters(self):
        """Asked for by filling_sequence."""
        return self.network.parameters()

    def __call__(self, input_ids, pixels, **kwargs):
        """A step of filling_sequence: only the first one, of the whole prompt, sees the image."""
        if input_ids.size(1) == 1:
            pixels = None
        return self.network(input_ids=input_ids, pixels=pixels, **kwargs)

    def first(self, prompt, tokens, pixels):
        import torch
        from sat.generation.autoregressive_sampling import filling_sequence
        from sat.generation.sampling_strategies.base_strategy import BaseStrategy

        times, device = [], self.device

        class Timed(BaseStrategy):
            def forward(self, *args, **kwargs):
                chosen = super().forward(*args, **kwargs)
                wait_for(device)
                times.append(time.perf_counter() - start)
                return chosen

        def masks_and_positions(sequence):
            return sequence[None], *self.network.get_inputs(sequence[None])

        start = time.perf_counter()
        with torch.inference_mode():
            output = filling_sequence(
                self,
                torch.tensor(prompt + [-1] * tokens, device=device),
                batch_size=1,
                pixels=pixels.to(device, next(self.parameters()).dtype),
                image_start=IMAGE_START,
                strategy=Timed(temperature=1.0, top_k=1, repetition_penalty=PENALTY),
                get_masks_and_position_ids=masks_and_positions,
            )[0]
        return output[0, len(prompt) :].tolist(), times

    later = first


def wait_for(device):
    """Work on a GPU is only started by what asks for it."""
    import torch

    if str(device).startswith("cuda"):
        torch.cuda.synchronize()


@dataclass
class Seconds:
    """All readings of one way."""

    token: list = field(default_factory=list)  # from one token to the next
    first: list = field(default_factory=list)  # to the first token of a first round
    third: list = field(default_factory=list)  # to the first token of a third round
    products: list = field(default_factory=list)  # of a token; none for the baseline
    # Of MANY rows, likewise: all in all by their number of tokens, and from one step to the next
    together: list = field(default_factory=list)
    step: list = field(default_factory=list)

    def medians(self):
        """name -> median, of those that were read."""
        return {name: statistics.median(times) for name, times in vars(self).items() if times}


def load(folder, way, device):
    from model import load_assistant

    options = WAYS[device][way]
    if way == BASELINE:
        return Baseline(Path(folder), device, **options)
    return Ours(load_assistant(folder, device=device, **options).family.network)


def dialogue(config):
    """Prompts of a first and a third round of random tokens, and the image's pixels."""
    import torch

    chance = torch.Generator().manual_seed(1)
    count = 3 * QUESTION_TOKENS + 2 * ANSWER_TOKENS
    ids = torch.randint(10, config.gmask_token_id - 100, (count,), generator=chance).tolist()
    head = ids[:IMAGE_START] + [3] * config.image_length
    end = [config.gmask_token_id, config.bos_token_id]
    height, width = config.eva_args["image_size"]
    pixels = torch.randn(1, 3, height, width)
    return head + ids[:QUESTION_TOKENS] + end, head + ids + end, pixels


def between(times):
    return [after - before for before, after in zip(times, times[1:])]


def read(folder, tokens, readings, device):
    """way -> Seconds. Exits if float32 and the baseline give different tokens."""
    runs = {way: load(folder, way, device) for way in WAYS[device]}
    seconds = {way: Seconds() for way in runs}
    first, third, pixels = dialogue(SimpleNamespace(**folder_config(Path(folder))))
    for reading in range(readings + 1):
        generated = {}
        for way, run in runs.items():
            ids, times = run.first(first, tokens, pixels)
            later, (third_time,) = run.later(third, 1, pixels)
            generated[way] = ids + later
            if reading == 0:  # warms up
                continue
            new = seconds[way]
            new.first.append(times[0])
            new.token += between(times)
            new.third.append(third_time)
            if way != BASELINE:
                new.products += [run.products() for _ in range(tokens // 2)]
                times = run.together(first, tokens, pixels)
                new.together.append(times[-1] / (MANY * tokens))
                new.step += between(times)
        # In half precision two equal logits may change places.
        if generated.get("float32", generated[BASELINE]) != generated[BASELINE]:
            sys.exit(
                f"benchmarks/generate.py: error: {folder}: float32 and the baseline gave different "
                f"tokens: {generated}"
            )
    return seconds


def peak_memory(folder, way, tokens, device):
    """Bytes of one answer, measured in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(tokens)]
    command += ["--memory", way, str(folder), device]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def print_peak_memory(folder, way, tokens, device):
    import torch

    run = load(folder, way, device)
    prompt, _, pixels = dialogue(SimpleNamespace(**folder_config(Path(folder))))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # of the loading
    with PeakMemory() as memory:
        run.first(prompt, tokens, pixels)
    print(torch.cuda.max_memory_allocated() if device == "cuda" else memory.peak)


def measure(name, folder, args, device="cpu"):
    """Rows of the table for one network."""
    readings = read(folder, args.tokens, args.readings, device)
    medians = {way: seconds.medians() for way, seconds in readings.items()}
    baseline = medians[BASELINE]
    rows = []
    for way, typical in medians.items():
        faster = {what: baseline[what] / typical[what] for what in ("token", "first", "third")}
        row = {
            "network": name,
            "way": way,
            "tokens/s": f"{1 / typical['token']:.0f} ({faster['token']:.2f}x)",
            "products allow": "",
            "share": "",
            f"batch {MANY}, tokens/s": "",
            f"step of {MANY} rows": "",
        }
        if "products" in typical:
            row["products allow"] = f"{1 / typical['products']:.0f}"
            row["share"] = f"{typical['products'] / typical['token']:.0%}"
            row[f"batch {MANY}, tokens/s"] = f"{1 / typical['together']:.0f}"
            row[f"step of {MANY} rows"] = f"{typical['step'] / typical['token']:.2f}x"
        for what in ("first", "third"):
            row[f"{what} round, ms"] = f"{typical[what] * 1e3:.0f} ({faster[what]:.2f}x)"
        row["peak, MB"] = f"{peak_memory(folder, way, args.tokens, device) / 1e6:.0f}"
        rows.append(row)
    return rows


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--tokens", type=int, default=64, help="tokens of one reading (%(default)s)")
    add("--readings", type=int, default=7, help="readings of each way (%(default)s)")
    add(
        "--memory",
        nargs=3,
        metavar=("WAY", "FOLDER", "DEVICE"),
        help="print the peak memory of one answer, in bytes",
    )
    add("--full-size", action="store_true", help="VisualGLM-6B's size, on a GPU")
    args = parser.parse_args()
    if args.full_size and not available():
        parser.error("--full-size needs a CUDA GPU, and torch finds none here")

    if args.memory:
        way, folder, device = args.memory
        print_peak_memory(folder, way, args.tokens, device)
        return
    device = "cuda" if args.full_size else "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        if args.full_size:
            random_base(folder, full_size(), device, "float16")
            rows = measure("full size", folder, args, device)
        else:
            random_base(folder, mid_size())
            rows = measure("mid-size", folder, args) + measure("tiny", TINY_BASE, args)
    print(f"{machine(device)}; batch 1, answers of {args.tokens} tokens\n")
    table(rows)


def available():
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
