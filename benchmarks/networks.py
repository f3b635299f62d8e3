"""The networks that the benchmarks measure, and what they say of the machine."""

import json
import os
import platform
import sys
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
TINY = PROJECT / "model" / "tiny"


def config(
    *, layers, width, heads, inner, vocabulary, vit, qformer, image_size, patch_size=14, slots=32
):
    """A model_config; vit = (layers, width, heads, inner), qformer = (layers, width, heads)."""
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
        "image_size": [image_size] * 2,
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


def full_size(layers=28, vit_layers=39, qformer_layers=12, vocabulary=130528):
    """VisualGLM-6B's own numbers, with as many layers as asked for."""
    return config(
        layers=layers,
        width=4096,
        heads=32,
        inner=16384,
        vocabulary=vocabulary,
        vit=(vit_layers, 1408, 16, 6144),
        qformer=(qformer_layers, 768, 12),
        image_size=224,
    )


def random_base(folder, config, device="cpu", dtype="float32"):
    """Write a checkpoint folder of random weights, with the tiny base's vocabulary. Returns its tokenizer."""
    import torch

    from model.visualglm import export
    from model.visualglm import loading as checkpoint
    from model.visualglm.network import VisualGLM
    from model.visualglm.tokenizer import Tokenizer

    torch.manual_seed(0)
    network = VisualGLM(config, device, checkpoint.DTYPES[dtype])
    words = Tokenizer(TINY / "base" / "ice_text.model", config)
    checkpoint.write_folder(
        folder,
        card=export.full_card({}),
        config=config,
        tokenizer=words,
        tensors=network.state_dict(),
    )
    return words


def rendered(file, words, config):
    """A row file -> its rows as ids, every one with a picture."""
    from model.visualglm.prompt import render

    return [
        render(words, row["prompt"], row["label"], image_slots=config["image_length"])
        for row in json.loads(Path(file).read_text(encoding="utf-8"))
    ]


def machine(device="cpu"):
    """One line: what was measured on."""
    import torch

    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else next(
            (
                line.split(":")[1].strip()
                for line in open("/proc/cpuinfo")
                if line.startswith("model name")
            ),
            platform.processor(),
        )
    )
    threads = (
        ""
        if device == "cuda"
        else f", {torch.get_num_threads()} threads of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    )
    return f"{name}{threads}; torch {torch.__version__}"


class PeakMemory:
    """Context that samples this process's anonymous resident memory (RssAnon: mapped file pages do not count), in bytes."""

    def __enter__(self):
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done.is_set():
            self.peak = max(self.peak, anonymous())
            time.sleep(0.002)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.peak = max(self.peak, anonymous())


def anonymous():
    """RssAnon now, in bytes."""
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def table(rows):
    """Print a list of dicts of the same keys as a Markdown table."""
    heads = list(rows[0])
    for line in (
        heads,
        ["---"] * len(heads),
        *([str(row[head]) for head in heads] for row in rows),
    ):
        print("| " + " | ".join(line) + " |")
