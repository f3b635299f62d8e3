"""Load a checkpoint of VisualGLM-6B's layers (fewer of them, its real tensor names) from every layout: seconds and memory.

    python benchmarks/load.py --folder /tmp/load-benchmark

Each row is a process of its own on files in the page cache. "plain" builds the network, reads the file with torch.load or
load_file and copies with load_state_dict. The limit is the size in the target dtype x 1.15 + 0.5 GB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from networks import TINY, PeakMemory, anonymous, full_size, machine, table

LAYOUTS = ("sat", "hf-bin", "hf-safetensors", "remoteglm")


def write(folder, layers):
    """The same float16 weights in every layout."""
    import torch
    from safetensors.torch import load_file

    from model.visualglm import export
    from model.visualglm import loading as checkpoint
    from model.visualglm.network import VisualGLM
    from model.visualglm.tokenizer import Tokenizer

    # A vocabulary of another size, since only ChatGLM's own file is accepted for its own.
    network = VisualGLM(full_size(layers, 4, 2, vocabulary=130500), device="meta", init=False)
    values = torch.randn(1 << 20).half() * 0.02
    filled = {
        name: values.repeat(-(-p.numel() // values.numel()))[: p.numel()].view(p.shape)
        for name, p in network.state_dict().items()
    }
    network.load_state_dict(filled, assign=True)
    words = Tokenizer(TINY / "base" / "ice_text.model", vars(network.config))
    network.half()
    export.to_sat(folder / "sat", network, words, {})
    export.to_huggingface(folder / "hf-safetensors", network, words, {})
    shutil.copytree(folder / "hf-safetensors", folder / "hf-bin")
    index = json.loads((folder / "hf-bin" / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        torch.save(
            load_file(folder / "hf-bin" / file),
            folder / "hf-bin" / f"pytorch_{file}".replace("safetensors", "bin"),
        )
        (folder / "hf-bin" / file).unlink()
    index["weight_map"] = {
        name: f"pytorch_{file}".replace("safetensors", "bin")
        for name, file in index["weight_map"].items()
    }
    (folder / "hf-bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "hf-bin" / "model.safetensors.index.json").unlink()
    checkpoint.write_folder(
        folder / "remoteglm",
        card=export.full_card({}),
        config=vars(network.config),
        tokenizer=words,
        tensors=network.state_dict(),
    )


def load(way, folder, dtype):
    """Runs in its own process: load once and print what it took."""
    import torch
    from model.visualglm.stored import Stored, sat_name
    from safetensors.torch import load_file

    from model.visualglm import loading as checkpoint
    from model.visualglm.network import VisualGLM
    from model.weight_files import weight_files

    target, before = checkpoint.DTYPES[dtype], anonymous()
    with PeakMemory() as memory:
        start = time.perf_counter()
        if way == "ours":
            network = checkpoint.load_base(folder, dtype=dtype)[0]
        else:
            network = VisualGLM(Stored(folder).config, dtype=target)
            state = {}
            for file in weight_files(folder):
                read = (
                    load_file(file)
                    if file.suffix == ".safetensors"
                    else torch.load(file, map_location="cpu", weights_only=True)
                )
                state |= read["module"] if file.suffix == ".pt" else read
            network.load_state_dict(
                {sat_name(name): tensor for name, tensor in state.items()}, strict=False
            )
            del state, read
        seconds = time.perf_counter() - start
    size = sum(p.numel() for p in network.parameters()) * target.itemsize
    print(json.dumps({"seconds": seconds, "peak": memory.peak - before, "size": size}))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="scratch folder for 13 GB of files; kept if it was there, else removed",
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=2,
        help="layers of the language model; 2 make a checkpoint of 3.2 GB",
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return load(args.one[0], Path(args.one[1]), args.one[2])
    if not args.folder.exists():
        write(args.folder, args.layers)
    rows = []
    for layout in LAYOUTS:
        for dtype in ("float16", "float32") if layout == "sat" else ("float16",):
            for way in ("plain", "ours"):
                command = [
                    sys.executable,
                    __file__,
                    "--folder",
                    args.folder,
                    "--one",
                    way,
                    args.folder / layout,
                    dtype,
                ]
                got = json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout
                )
                rows.append(
                    {
                        "layout": layout,
                        "target": dtype,
                        "way": way,
                        "GB in target": f"{got['size'] / 1e9:.2f}",
                        "seconds": f"{got['seconds']:.1f}",
                        "peak GB": f"{got['peak'] / 1e9:.2f}",
                        "limit GB": f"{got['size'] * 1.15 / 1e9 + 0.5:.2f}",
                    }
                )
    print(f"{machine()}\n")
    table(rows)


if __name__ == "__main__":
    main()
