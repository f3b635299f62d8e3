"""Load a checkpoint of VisualGLM-6B's layers from every layout: seconds and memory.

    python benchmarks/load.py --folder /tmp/load-benchmark

It has fewer layers than the real one and its tensor names. Each row is a process of its own on
files in the page cache. "plain" builds the network, reads the file with torch.load or load_file and
copies with load_state_dict. The limit is the size in the target dtype x 1.15 + 0.5 GB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from networks import (
    PeakMemory,
    anonymous,
    full_size,
    load_tokenizer,
    machine,
    table,
    write_checkpoint,
)

from command_line import Parser

# (layout, target dtype)
CASES = (
    ("sat", "float16"),
    ("sat", "float32"),
    ("hf-bin", "float16"),
    ("hf-safetensors", "float16"),
    ("remoteglm", "float16"),
)
VIT_LAYERS, QFORMER_LAYERS = 4, 2


def write(folder, layers):
    """The same float16 weights in every layout."""
    from model.visualglm import export

    network = filled_network(full_size(layers, VIT_LAYERS, QFORMER_LAYERS))
    config = vars(network.config)
    tokenizer = load_tokenizer(config)
    export.to_sat(folder / "sat", network, tokenizer, {})
    export.to_huggingface(folder / "hf-safetensors", network, tokenizer, {})
    shutil.copytree(folder / "hf-safetensors", folder / "hf-bin")
    safetensors_to_bin(folder / "hf-bin")
    write_checkpoint(folder / "remoteglm", network, config, tokenizer)


def filled_network(config):
    """A float16 network of repeated random values: drawing each would take minutes."""
    import torch

    from model.visualglm.network import VisualGLM

    network = VisualGLM(config, device="meta", init=False)
    values = torch.randn(1 << 20).half() * 0.02
    filled = {}
    for name, parameter in network.state_dict().items():
        repeats = -(-parameter.numel() // values.numel())
        filled[name] = values.repeat(repeats)[: parameter.numel()].view(parameter.shape)
    network.load_state_dict(filled, assign=True)
    return network.half()


def safetensors_to_bin(folder):
    """Replace the shards of a Hugging Face folder by those that torch.save writes."""
    import torch
    from safetensors.torch import load_file

    old_index = folder / "model.safetensors.index.json"
    index = json.loads(old_index.read_text())
    for name in sorted(set(index["weight_map"].values())):
        torch.save(load_file(folder / name), folder / bin_name(name))
        (folder / name).unlink()
    index["weight_map"] = {tensor: bin_name(name) for tensor, name in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    old_index.unlink()


def bin_name(shard):
    return f"pytorch_{shard}".replace("safetensors", "bin")


def load(way, folder, dtype):
    """Runs in its own process: load once and print what it took."""
    from model.devices import DTYPES
    from model.visualglm.checkpoint import load_base

    target = DTYPES[dtype]
    before = anonymous()
    with PeakMemory() as memory:
        start = time.perf_counter()
        if way == "ours":
            network = load_base(folder, dtype=target)[0]
        else:
            network = load_plain(folder, target)
        seconds = time.perf_counter() - start
    size = sum(p.numel() for p in network.parameters()) * target.itemsize
    print(json.dumps({"seconds": seconds, "peak": memory.peak - before, "size": size}))


def load_plain(folder, dtype):
    """What one would write without this project."""
    import torch
    from safetensors.torch import load_file

    from model.visualglm.checkpoint import open_stored
    from model.visualglm.layouts import sat_name
    from model.visualglm.network import VisualGLM
    from model.weight_files import weight_files

    network = VisualGLM(open_stored(folder).config, dtype=dtype)
    state = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            state |= load_file(file)
            continue
        content = torch.load(file, map_location="cpu", weights_only=True)
        state |= content["module"] if file.suffix == ".pt" else content
    named = {sat_name(name): tensor for name, tensor in state.items()}
    network.load_state_dict(named, strict=False)
    return network


def measure(folder, layout, dtype, way):
    """A row of the table."""
    command = [sys.executable, __file__, "--folder", folder]
    command += ["--one", way, folder / layout, dtype]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    got = json.loads(output)
    return {
        "layout": layout,
        "target": dtype,
        "way": way,
        "GB in target": f"{got['size'] / 1e9:.2f}",
        "seconds": f"{got['seconds']:.1f}",
        "peak GB": f"{got['peak'] / 1e9:.2f}",
        "limit GB": f"{got['size'] * 1.15 / 1e9 + 0.5:.2f}",
    }


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--folder",
        type=Path,
        required=True,
        help="scratch folder for 13 GB of files; written unless it is there, and kept",
    )
    add(
        "--layers",
        type=int,
        default=2,
        help="layers of the language model; 2 make a checkpoint of 3.2 GB (%(default)s)",
    )
    add("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.one:
        way, folder, dtype = args.one
        load(way, Path(folder), dtype)
        return
    if not args.folder.exists():
        write(args.folder, args.layers)
    rows = []
    for layout, dtype in CASES:
        for way in ("plain", "ours"):
            rows.append(measure(args.folder, layout, dtype, way))
    print(f"{machine()}\n")
    table(rows)


if __name__ == "__main__":
    main()
