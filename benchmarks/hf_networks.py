"""Folders of random weights: Qwen3-VL's sizes, and a LLaVA-1.5.

Whatever the benchmarks take from inside model/hf/ stands here. The folders are those that the tests
make, with other numbers.
"""

import json
import sys
from functools import partial

from networks import PROJECT

sys.path.append(str(PROJECT / "tests"))

VOCABULARY = 151936
# Bounds on an image's pixels, as the published folders have them
PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}


def _size(*, layers, width, inner, heads, kv_heads, head_dim, vit, deepstack, tied, vocabulary):
    """vit: (layers, width, inner width, heads); deepstack: its layers that others get as well."""
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [head_dim // 2 - 2 * (head_dim * 5 // 32), *[head_dim * 5 // 32] * 2],
        "mrope_interleaved": True,
    }
    text = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 262144,
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
    }
    tower = {
        "depth": vit[0],
        "hidden_size": vit[1],
        "intermediate_size": vit[2],
        "num_heads": vit[3],
        "out_hidden_size": width,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": deepstack,
    }
    return {"text": text, "tower": tower, "tied": tied}


_published = partial(_size, kv_heads=8, head_dim=128, vocabulary=VOCABULARY)
_vit = {"vit": (24, 1024, 4096, 16), "deepstack": [5, 11, 17]}
# Of the published config.json files; `small` is for a CPU
SIZES = {
    "small": _size(
        **{"layers": 4, "width": 256, "inner": 768, "heads": 4, "kv_heads": 2, "head_dim": 64},
        **{"vit": (2, 128, 256, 2), "deepstack": [0], "tied": True, "vocabulary": 4096},
    ),
    "2B": _published(layers=28, width=2048, inner=6144, heads=16, tied=True, **_vit),
    "4B": _published(layers=36, width=2560, inner=9728, heads=32, tied=True, **_vit),
    "8B": _published(
        **{"layers": 36, "width": 4096, "inner": 12288, "heads": 32, "tied": False},
        **{"vit": (27, 1152, 4304, 16), "deepstack": [8, 16, 24]},
    ),
}


def configuration(size, ids):
    """transformers' configuration of one of SIZES. ids: words of the tokenizer -> its ids."""
    from hf_checkpoints import qwen3_vl

    config = qwen3_vl(ids, SIZES[size]["text"], SIZES[size]["tower"])
    config.tie_word_embeddings = SIZES[size]["tied"]
    return config


def write_base(folder, size, device, dtype):
    """Write a folder of one of SIZES, its weights drawn on the device. dtype: a name."""
    from hf_checkpoints import write_checkpoint

    import model.hf.loading  # noqa: F401  (turns transformers' progress bars off)
    from model.devices import DTYPES

    configure = partial(configuration, size)
    write_checkpoint("qwen3_vl", folder, configure, DTYPES[dtype], device)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": PIXELS}))


# LLaVA-1.5's layout: tower, projector of two layers, Llama
LLAVA_SIDE, LLAVA_PATCH = 224, 14
LLAVA_TEXT = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
LLAVA_TOWER = {
    "model_type": "clip_vision_model",
    "num_hidden_layers": 8,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 6,
    "image_size": LLAVA_SIDE,
    "patch_size": LLAVA_PATCH,
}


def llava(ids, text=LLAVA_TEXT, tower=LLAVA_TOWER):
    """transformers' configuration. ids: words of the tokenizer -> its ids."""
    import transformers

    return transformers.LlavaConfig(
        text_config=text,
        vision_config=tower,
        image_token_index=ids("<image>"),
        image_seq_length=(LLAVA_SIDE // LLAVA_PATCH) ** 2,
    )


def write_llava(folder):
    """Write a folder of 149 M random weights in float32."""
    import torch
    from hf_checkpoints import write_checkpoint

    import model.hf.loading  # noqa: F401  (turns transformers' progress bars off)

    write_checkpoint("llava", folder, llava, torch.float32)
    path = folder / "preprocessor_config.json"
    sides = {
        "size": {"shortest_edge": LLAVA_SIDE},
        "crop_size": {"height": LLAVA_SIDE, "width": LLAVA_SIDE},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | sides))


def on_meta(folder):
    """The family of a folder around a network without values: it renders rows, counts weights."""
    import torch
    import transformers

    from model.hf.family import HFFamily
    from model.hf.loading import read_config
    from model.hf.processor import load_processor

    config = read_config(folder)
    with torch.device("meta"):
        network = transformers.AutoModelForImageTextToText.from_config(config)
    return HFFamily(network, load_processor(folder, config), folder, folder, "")


def weights_of(family):
    """(weights of the language model's linear layers, of its head)"""
    from model.hf.adapter import linear_layers
    from model.hf.types import part_of

    network = family.network.base
    blocks = 0
    for name, layer in linear_layers(network).items():
        if part_of(name) == "language":
            blocks += layer.weight.numel()
    return blocks, network.get_output_embeddings().weight.numel()
