"""How the same tensors are named and ordered in SwissArmyTransformer's and Hugging Face's layouts.

Source: both official code bases of VisualGLM-6B.
"""

import re
from pathlib import Path

from model.errors import UserError
from model.files import read_json
from model.visualglm.config_check import check_config, shown

CONFIG_KEYS = (
    "num_layers",
    "hidden_size",
    "inner_hidden_size",
    "num_attention_heads",
    "vocab_size",
    "max_sequence_length",
    "layernorm_epsilon",
    "image_length",
    "eva_args",
    "qformer_args",
    "bos_token_id",
    "gmask_token_id",
    "pad_token_id",
)
# Written into the Hugging Face code where the residual scale is computed, whatever num_layers says
HF_LAYERS = 28
HF_NAMES = {
    "lm_head.weight": "mixins.chatglm-final.lm_head.weight",
    "image_encoder.": "mixins.eva.model.",
}
HF_PARTS = {"eva_config": "eva_args", "qformer_config": "qformer_args"}
QKV = re.compile(r"transformer\.layers\.\d+\.attention\.query_key_value\.(weight|bias)")


def read_config(path):
    """A network's configuration in SAT's form (dict), whichever layout it is stored in.

    Raises UserError where a key that the network needs is missing or of another kind.
    """
    config = read_json(path, "network configuration", dict)
    if Path(path).name == "config.json":
        config = {HF_PARTS.get(key, key): value for key, value in config.items()}
        config = {"residual_layers": HF_LAYERS, "layernorm_order": "post"} | config
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise UserError(
            f"{path}: not the configuration of a VisualGLM network; it lacks {', '.join(missing)}"
        )
    for key in CONFIG_KEYS:
        kind, name = (dict, "an object") if key.endswith("_args") else ((int, float), "a number")
        if not isinstance(config[key], kind):
            raise UserError(
                f"{path}: {key} is {shown(config[key])}, expected {name}; correct it or copy it "
                "again"
            )
    check_config(config, path)
    return config


def heads_first(tensor, heads):
    """Rows of a fused q, k, v weight or bias: SAT's order [3, heads, d] -> HF's [heads, 3, d]."""
    return tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def parts_first(tensor, heads):
    """The inverse of `heads_first`."""
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def hf_name(name):
    """A SAT name -> the Hugging Face name of the same tensor."""
    for theirs, ours in HF_NAMES.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def sat_name(name):
    """The inverse of `hf_name`."""
    for theirs, ours in HF_NAMES.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name
