"""Answers on a CPU against SwissArmyTransformer's own generation.

    OMP_NUM_THREADS=2 python benchmarks/generate.py

Measured: tokens per second, time to the first token, memory. The baseline is SAT's
`filling_sequence` with its cached attention, its ChatGLM attention, rotary and mask code, in
float32, on the same weights and prompts; in float32 both must give the same tokens. The ways take
turns in one process and each number is a median, so that other load falls on all alike. A first
round encodes the image; a third round is asked about the same one. "Products allow" times nothing
but the matrix-vector products of a token, in their order: what is left is this project's own.
Memory is the peak of RssAnon while answering, each way in a process of its own.
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
    machine,
    mid_size,
    random_base,
    table,
)

from command_line import Parser

BASELINE = "baseline float32"
# Ours: options of load_assistant
WAYS = {
    BASELINE: None,
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"bits": 8},
    "int4": {"bits": 4},
}
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
            return self.network.encode_images(pixels)

    def _answer(self, prompt, tokens, embeds, start):
        from model import Sampling
        from model.visualglm.generate import generate

        steps = generate(
            self.network,
            [prompt],
            eop=-1,
            image_embeds=embeds,
            image_start=IMAGE_START,
            sampling=Sampling(max_new_tokens=tokens, temperature=0, repetition_penalty=PENALTY),
        )
        ids, times = [], []
        for (token,) in steps:
            ids.append(token)
            times.append(time.perf_counter() - start)
        return ids, times

    def products(self):
        """Seconds that the products of one token take alone."""
        import torch

        from model.visualglm.decoder import LayerStack

        config = self.network.config
        with torch.inference_mode():
            stack = LayerStack(self.network)
            narrow = torch.randn(1, config.hidden_size).to(self.network.dtype)
            wide = torch.randn(1, config.inner_hidden_size).to(self.network.dtype)
            calls = []
            for layer in stack.layers:
                calls += [(layer.qkv, narrow), (layer.dense, narrow)]
                calls += [(layer.up, narrow), (layer.down, wide)]
            calls.append((stack.head, narrow))

            start = time.perf_counter()
            for product, x in calls:
                product(x)
            return time.perf_counter() - start


class Baseline:
    """SAT's generation; every round encodes the image. Answers as those of Ours."""

    def __init__(self, folder):
        import baseline
        from sat.model.cached_autoregressive_model import CachedAutoregressiveMixin

        self.network = baseline.network(folder_config(folder))
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

        times = []

        class Timed(BaseStrategy):
            def forward(self, *args, **kwargs):
                chosen = super().forward(*args, **kwargs)
                times.append(time.perf_counter() - start)
                return chosen

        def masks_and_positions(sequence):
            return sequence[None], *self.network.get_inputs(sequence[None])

        start = time.perf_counter()
        with torch.inference_mode():
            output = filling_sequence(
                self,
                torch.tensor(prompt + [-1] * tokens),
                batch_size=1,
                pixels=pixels,
                image_start=IMAGE_START,
                strategy=Timed(temperature=1.0, top_k=1, repetition_penalty=PENALTY),
                get_masks_and_position_ids=masks_and_positions,
            )[0]
        return output[0, len(prompt) :].tolist(), times

    later = first


@dataclass
class Seconds:
    """All readings of one way."""

    token: list = field(default_factory=list)  # from one token to the next
    first: list = field(default_factory=list)  # to the first token of a first round
    third: list = field(default_factory=list)  # to the first token of a third round
    products: list = field(default_factory=list)  # of a token; none for the baseline

    def medians(self):
        """name -> median, of those that were read."""
        return {name: statistics.median(times) for name, times in vars(self).items() if times}


def load(folder, way):
    from model import load_assistant

    if way == BASELINE:
        return Baseline(Path(folder))
    return Ours(load_assistant(folder, device="cpu", **WAYS[way]).family.network)


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


def read(folder, tokens, readings):
    """way -> Seconds. Exits if float32 and the baseline give different tokens."""
    runs = {way: load(folder, way) for way in WAYS}
    seconds = {way: Seconds() for way in WAYS}
    first, third, pixels = dialogue(runs["float32"].network.config)
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
            new.token += [after - before for before, after in zip(times, times[1:])]
            new.third.append(third_time)
            if way != BASELINE:
                new.products += [run.products() for _ in range(tokens // 2)]
        if generated["float32"] != generated[BASELINE]:
            sys.exit(
                f"benchmarks/generate.py: error: {folder}: float32 and the baseline gave different "
                f"tokens: {generated}"
            )
    return seconds


def peak_memory(folder, way, tokens):
    """Bytes of one answer, measured in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--memory", way, str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.split()[-1])


def print_peak_memory(folder, way, tokens):
    run = load(folder, way)
    prompt, _, pixels = dialogue(SimpleNamespace(**folder_config(Path(folder))))
    with PeakMemory() as memory:
        run.first(prompt, tokens, pixels)
    print(memory.peak)


def measure(name, folder, args):
    """Rows of the table for one network."""
    medians = {
        way: seconds.medians() for way, seconds in read(folder, args.tokens, args.readings).items()
    }
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
        }
        if "products" in typical:
            row["products allow"] = f"{1 / typical['products']:.0f}"
            row["share"] = f"{typical['products'] / typical['token']:.0%}"
        for what in ("first", "third"):
            row[f"{what} round, ms"] = f"{typical[what] * 1e3:.0f} ({faster[what]:.2f}x)"
        row["peak, MB"] = f"{peak_memory(folder, way, args.tokens) / 1e6:.0f}"
        rows.append(row)
    return rows


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--tokens", type=int, default=64, help="tokens of one reading (%(default)s)")
    add("--readings", type=int, default=7, help="readings of each way (%(default)s)")
    add(
        "--memory",
        nargs=2,
        metavar=("WAY", "FOLDER"),
        help="print the peak memory of one answer, in bytes",
    )
    args = parser.parse_args()

    if args.memory:
        way, folder = args.memory
        print_peak_memory(folder, way, args.tokens)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        random_base(folder, mid_size())
        rows = measure("mid-size", folder, args)
    rows += measure("tiny", TINY_BASE, args)
    print(f"{machine()}; batch 1, answers of {args.tokens} tokens\n")
    table(rows)


if __name__ == "__main__":
    main()
