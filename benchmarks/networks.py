"""The networks that the benchmarks measure, and what they say of the machine.

Whatever the benchmarks take from inside model/visualglm/ to make a network or a row stands here.
"""

import json
import os
import platform
import sys
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# Before any import of the project: beside this file lies a data.py, which would hide data/.
sys.path.insert(0, str(PROJECT))
TINY = PROJECT / "model" / "tiny"
TINY_BASE = TINY / "base"


def need_caption_set(parser, folder, *names):
    """Ends the script, before its work, where the folder of --data lacks what it is to hold."""
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        parser.error(
            f"--data {folder}: no {', no '.join(missing)} there; expected the folder of a caption "
            f"set with {', '.join(names)}"
        )


# Sizes


def config(
    *, layers, width, heads, inner, vocabulary, vit, qformer, image_size, patch_size=14, slots=32
):
    """A parsed model_config.json, from numbers.

    vit: (layers, width, heads, inner width); qformer: (layers, width, heads); image_size: pixels of
    a side; slots: image tokens that the language model sees.
    """
    new = json.loads((TINY / "model_config.json").read_text())
    new |= {
        "num_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "inner_hidden_size": inner,
        "vocab_size": vocabulary,
        "image_length": slots,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "gmask_token_id": vocabulary - 3,
        "mask_token_id": vocabulary - 4,
    }
    new["eva_args"] |= {
        "num_layers": vit[0],
        "hidden_size": vit[1],
        "num_attention_heads": vit[2],
        "inner_hidden_size": vit[3],
        "image_size": [image_size, image_size],
        "patch_size": patch_size,
        "max_sequence_length": (image_size // patch_size) ** 2 + 1,
    }
    new["qformer_args"] |= {
        "num_layers": qformer[0],
        "hidden_size": qformer[1],
        "num_attention_heads": qformer[2],
        "vocab_size": slots,
        "is_decoder": [layer % 2 == 0 for layer in range(qformer[0])],
        "cross_attn_hidden_size": vit[1],
    }
    return new


def mid_size():
    """Large enough that matrix products rule, small enough for a laptop."""
    return config(
        layers=8,
        width=1024,
        heads=16,
        inner=4096,
        vocabulary=32768,
        vit=(8, 384, 6, 1536),
        qformer=(4, 256, 4),
        image_size=224,
    )


def full_size(layers=28, vit_layers=39, qformer_layers=12):
    """VisualGLM-6B's own numbers, with as many layers as asked for.

    Only the vocabulary size differs a little: at 130528 no file but ChatGLM's own is accepted.
    """
    return config(
        layers=layers,
        width=4096,
        heads=32,
        inner=16384,
        vocabulary=130500,
        vit=(vit_layers, 1408, 16, 6144),
        qformer=(qformer_layers, 768, 12),
        image_size=224,
    )


# Networks, folders, rows


def load_tokenizer(config, folder=TINY_BASE):
    """The vocabulary in a folder, with the special tokens of a network."""
    from model.visualglm.tokenizer import VOCABULARY, Tokenizer

    return Tokenizer(folder / VOCABULARY, config)


def write_checkpoint(folder, network, config, tokenizer):
    """Write a full checkpoint in this project's own layout."""
    from model.visualglm.checkpoint import write_folder
    from model.visualglm.export import full_card

    write_folder(
        folder,
        card=full_card({}),
        config=config,
        tokenizer=tokenizer,
        tensors=network.state_dict(),
    )


def random_base(folder, config, device="cpu", dtype="float32"):
    """Write a checkpoint folder of random weights. Returns its tokenizer."""
    import torch

    from model.devices import DTYPES
    from model.visualglm.network import VisualGLM

    torch.manual_seed(0)
    network = VisualGLM(config, device, DTYPES[dtype])
    tokenizer = load_tokenizer(config)
    write_checkpoint(folder, network, config, tokenizer)
    return tokenizer


def parameters(config):
    """How many parameters a network has; none of them is allocated."""
    from model.visualglm.network import VisualGLM

    network = VisualGLM(config, device="meta", init=False)
    return sum(parameter.numel() for parameter in network.parameters())


def folder_config(folder):
    """The parsed model_config.json of a checkpoint folder."""
    from model.visualglm.layouts import read_config
    from model.weight_files import CONFIG

    return read_config(folder / CONFIG)


def folder_weights(folder):
    """name -> tensor of a full checkpoint in this project's own layout."""
    from safetensors.torch import load_file

    from model.weight_files import FULL

    return load_file(folder / FULL)


def rendered(file, tokenizer, config):
    """A row file -> its rows as ids, each with an image; see model.visualglm.prompt."""
    from model.visualglm.prompt import render

    rows = json.loads(Path(file).read_text(encoding="utf-8"))
    return [
        render(tokenizer, row["prompt"], row["label"], image_slots=config["image_length"])
        for row in rows
    ]


# The machine


def machine(device="cpu"):
    """One line: what was measured on."""
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; torch {torch.__version__}"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {threads}, {instructions}; torch {torch.__version__}"


def processor():
    """The CPU's name, as far as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


class PeakMemory:
    """Context that samples this process's anonymous resident memory; `peak` is in bytes."""

    INTERVAL = 0.002  # seconds

    def __init__(self):
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def _watch(self):
        while not self._done.is_set():
            self.peak = max(self.peak, anonymous())
            time.sleep(self.INTERVAL)

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())


def anonymous():
    """RssAnon of this process, in bytes: mapped pages of files do not count."""
    size = kernel_bytes("/proc/self/status", "RssAnon")
    if not size:
        raise RuntimeError("/proc/self/status has no RssAnon: it needs Linux 4.5 or newer")
    return size


def kernel_bytes(file, name):
    """A size in a file of /proc, `name:  12 kB`, in bytes; 0 if it is not there."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def table(rows):
    """Print dicts of the same keys as a Markdown table, each as soon as it is there."""
    heads = []
    for row in rows:
        if not heads:
            heads = list(row)
            print_row(heads)
            print_row(["---"] * len(heads))
        print_row(str(row[head]) for head in heads)


def print_row(cells):
    print("| " + " | ".join(cells) + " |", flush=True)
