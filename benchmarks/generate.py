"""Decode with the key-value cache on a mid-size network (language model 8 x 1024): tokens per second by dtype.

    python benchmarks/generate.py

One process; the ways take turns and each row is its median, so that other load falls on all alike.
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

from networks import TINY, machine, mid_size, table

WAYS = {"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"bits": 8}, "int4": {"bits": 4}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of one reading (%(default)s)")
    parser.add_argument("--readings", type=int, default=5, help="readings of each way (%(default)s)")
    args = parser.parse_args()

    import torch

    from model import Sampling, checkpoint, export
    from model.generate import generate
    from model.tokenizer import Tokenizer
    from model.visualglm import VisualGLM

    torch.manual_seed(0)
    config = mid_size()
    with tempfile.TemporaryDirectory() as folder:
        network = VisualGLM(config)
        words = Tokenizer(TINY / "base" / "ice_text.model", config)
        checkpoint.write_folder(Path(folder) / "base", card=export.full_card({}), config=config, tokenizer=words,
                                tensors=network.state_dict())
        networks = {way: checkpoint.load_base(Path(folder) / "base", **options)[0] for way, options in WAYS.items()}
    prompt = [*range(10, 70), config["gmask_token_id"], config["bos_token_id"]]
    sampling = Sampling(max_new_tokens=args.tokens, temperature=0)
    steps, firsts = {way: [] for way in WAYS}, {way: [] for way in WAYS}
    for reading in range(args.readings + 1):  # the first warms up
        for way, network in networks.items():
            start = time.perf_counter()
            answer = generate(network, [prompt], eop=-1, sampling=sampling)
            next(answer)
            first = time.perf_counter()
            count = sum(1 for _ in answer)
            if reading:
                firsts[way].append(first - start)
                steps[way].append((time.perf_counter() - first) / count)
    typical = {way: statistics.median(times) for way, times in steps.items()}
    print(f"{machine()}; batch 1, prompt of {len(prompt)} tokens\n")
    table([{"weights": way, "tokens/s": f"{1 / typical[way]:.1f}", "against bfloat16": f"{typical['bfloat16'] / typical[way]:.2f}",
            "against float32": f"{typical['float32'] / typical[way]:.2f}", "first token, ms": f"{statistics.median(firsts[way]) * 1e3:.0f}"}
           for way in WAYS])


if __name__ == "__main__":
    main()
