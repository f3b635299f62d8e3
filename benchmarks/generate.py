"""Answers on a CPU: tokens per second, time to the first token, memory; against SwissArmyTransformer's own generation.

    OMP_NUM_THREADS=2 python benchmarks/generate.py

Stock is SAT's `filling_sequence` with its cached attention, its ChatGLM attention, rotary and mask code, in float32, on the same
weights and prompts; in float32 both must give the same tokens. The ways take turns in one process and each number is a
median, so that other load falls on all alike. A first turn encodes the picture; a third turn is asked about the same one.
"Products allow" times nothing but the matrix-vector products of a token, in their order: what is left is this project's own.
Memory is the peak of RssAnon while answering, each way in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from networks import TINY, PeakMemory, machine, mid_size, random_base, table

WAYS = {
    "stock float32": None,
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"bits": 8},
    "int4": {"bits": 4},
}
TEXT, ANSWER = 30, 60  # tokens of a question and of an earlier answer
IMAGE_START = 3
PENALTY = 1.2


class Ours:
    def __init__(self, network):
        self.network = network

    def answer(self, prompt, tokens, pixels=None, embeds=None):
        """(ids, seconds from the question to each of them); pixels: a first turn's, embeds: what a dialogue keeps."""
        from model import Sampling
        from model.visualglm.generate import generate

        start = time.perf_counter()
        if pixels is not None:
            embeds = self.encode(pixels)
        ids, times = [], []
        for (token,) in generate(
            self.network,
            [prompt],
            eop=-1,
            image_embeds=embeds,
            image_start=IMAGE_START,
            sampling=Sampling(max_new_tokens=tokens, temperature=0, repetition_penalty=PENALTY),
        ):
            ids.append(token)
            times.append(time.perf_counter() - start)
        return ids, times

    def encode(self, pixels):
        import torch

        with torch.inference_mode():
            return self.network.encode_images(pixels)

    def products(self):
        """Seconds that the products of one token take alone."""
        import torch

        from model.visualglm.decoder import Decoder

        with torch.inference_mode():
            decoder, config = Decoder(self.network, [1], 0), self.network.config
            inputs = {
                width: torch.randn(1, width).to(self.network.dtype)
                for width in (config.hidden_size, config.inner_hidden_size)
            }
            narrow, wide = inputs.values()
            calls = [
                call
                for layer in decoder.layers
                for call in (
                    (layer.qkv, narrow),
                    (layer.dense, narrow),
                    (layer.up, narrow),
                    (layer.down, wide),
                )
            ] + [(decoder.head, narrow)]
            start = time.perf_counter()
            for product, x in calls:
                product(x)
            return time.perf_counter() - start


class Stock:
    def __init__(self, folder):
        import stock
        from model.visualglm.loading import CONFIG, FULL, read_config
        from safetensors.torch import load_file
        from sat.model.cached_autoregressive_model import CachedAutoregressiveMixin

        self.network = stock.network(read_config(folder / CONFIG))
        self.network.load_state_dict(load_file(folder / FULL))
        self.network.add_mixin("auto-regressive", CachedAutoregressiveMixin())

    def parameters(self):
        return self.network.parameters()

    def __call__(self, input_ids, pixels, **kwargs):
        return self.network(
            input_ids=input_ids, pixels=pixels if input_ids.size(1) > 1 else None, **kwargs
        )

    def answer(self, prompt, tokens, pixels):
        import torch
        from sat.generation.autoregressive_sampling import filling_sequence
        from sat.generation.sampling_strategies.base_strategy import BaseStrategy

        times = []

        class Timed(BaseStrategy):
            def forward(self, *args, **kwargs):
                chosen = super().forward(*args, **kwargs)
                times.append(time.perf_counter() - start)
                return chosen

        start = time.perf_counter()
        with torch.inference_mode():
            out = filling_sequence(
                self,
                torch.tensor(prompt + [-1] * tokens),
                batch_size=1,
                pixels=pixels,
                image_start=IMAGE_START,
                strategy=Timed(temperature=1.0, top_k=1, repetition_penalty=PENALTY),
                get_masks_and_position_ids=lambda seq: (
                    seq[None],
                    *self.network.get_inputs(seq[None]),
                ),
            )[0]
        return out[0, len(prompt) :].tolist(), times


def load(folder, way):
    from model import load_assistant

    if WAYS[way] is None:
        return Stock(Path(folder))
    return Ours(load_assistant(folder, device="cpu", **WAYS[way]).network)


def dialogue(config):
    """Prompts of a first and a third turn of random words, and the picture's pixels."""
    import torch

    words = torch.randint(
        10,
        config.gmask_token_id - 100,
        (3 * TEXT + 2 * ANSWER,),
        generator=torch.Generator().manual_seed(1),
    ).tolist()
    head, end = (
        words[:IMAGE_START] + [3] * config.image_length,
        [config.gmask_token_id, config.bos_token_id],
    )
    height, width = config.eva_args["image_size"]
    return head + words[:TEXT] + end, head + words + end, torch.randn(1, 3, height, width)


def measure(name, folder, args):
    """Rows of the table for one network."""
    runs = {way: load(folder, way) for way in WAYS}
    first, third, pixels = dialogue(runs["float32"].network.config)
    seconds = {way: {"token": [], "first": [], "third": [], "products": []} for way in WAYS}
    for reading in range(args.readings + 1):  # the first warms up and is compared
        said = {}
        for way, run in runs.items():
            ids, times = run.answer(first, args.tokens, pixels)
            kept = {"pixels": pixels} if way == "stock float32" else {"embeds": run.encode(pixels)}
            later, [third_time] = run.answer(third, 1, **kept)
            said[way] = ids + later
            if reading:
                new = seconds[way]
                new["first"].append(times[0])
                new["token"] += [b - a for a, b in zip(times, times[1:])]
                new["third"].append(third_time)
                new["products"] += (
                    [run.products() for _ in range(args.tokens // 2)]
                    if isinstance(run, Ours)
                    else []
                )
        if said["float32"] != said["stock float32"]:
            sys.exit(
                f"benchmarks/generate.py: error: {name}: float32 and stock gave different tokens: {said}"
            )
    rows, base = [], {}
    for way in WAYS:
        typical = {what: statistics.median(times) for what, times in seconds[way].items() if times}
        base = base or typical
        peak = subprocess.run(
            [sys.executable, __file__, "--tokens", str(args.tokens), "--memory", way, str(folder)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        row = {
            "network": name,
            "way": way,
            "tokens/s": f"{1 / typical['token']:.0f} ({base['token'] / typical['token']:.2f}x)",
        }
        row["products allow"] = f"{1 / typical['products']:.0f}" if "products" in typical else ""
        row["share"] = (
            f"{typical['products'] / typical['token']:.0%}" if "products" in typical else ""
        )
        for what in ("first", "third"):
            row[f"{what} turn, ms"] = (
                f"{typical[what] * 1e3:.0f} ({base[what] / typical[what]:.2f}x)"
            )
        rows.append(row | {"peak, MB": f"{int(peak.split()[-1]) / 1e6:.0f}"})
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", type=int, default=64, help="tokens of one reading (%(default)s)"
    )
    parser.add_argument(
        "--readings", type=int, default=7, help="readings of each way (%(default)s)"
    )
    parser.add_argument(
        "--memory",
        nargs=2,
        metavar=("WAY", "FOLDER"),
        help="print the peak memory of one answer, in bytes",
    )
    args = parser.parse_args()

    from model.visualglm.loading import CONFIG, read_config

    if args.memory:
        way, folder = args.memory
        run = load(folder, way)
        prompt, _, pixels = dialogue(SimpleNamespace(**read_config(Path(folder) / CONFIG)))
        with PeakMemory() as memory:
            run.answer(prompt, args.tokens, pixels)
        return print(memory.peak)
    with tempfile.TemporaryDirectory() as folder:
        random_base(Path(folder) / "base", mid_size())
        rows = measure("mid-size", Path(folder) / "base", args) + measure(
            "tiny", TINY / "base", args
        )
    print(f"{machine()}; batch 1, answers of {args.tokens} tokens\n")
    table(rows)


if __name__ == "__main__":
    main()
