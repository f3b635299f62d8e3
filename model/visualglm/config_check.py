"""Whether a parsed configuration can be a VisualGLM network, before anything of it is built."""

import math
import os

from model.errors import UserError

# Whole numbers: key -> (least, most). VisualGLM-6B is far below the most; what lies above is a
# damaged file, which would only take minutes and all memory to fail
LAYERS = {
    "num_layers": (1, 1000),
    "hidden_size": (1, 100_000),
    "num_attention_heads": (1, 10_000),
    "vocab_size": (1, 10_000_000),
}
IDS = (0, 10_000_000)
LANGUAGE = LAYERS | {
    "inner_hidden_size": (1, 1_000_000),
    "max_sequence_length": (1, 10_000_000),
    "image_length": (1, 100_000),
    "bos_token_id": IDS,
    "gmask_token_id": IDS,
    "pad_token_id": IDS,
}
VISION = LAYERS | {
    "patch_size": (1, 10_000),
    "in_channels": (1, 100),
    "pre_len": (0, 1000),
    "post_len": (0, 1000),
}
# Keys that a part may do without
OPTIONAL = {
    "inner_hidden_size": (1, 1_000_000),
    "cross_attn_hidden_size": (1, 100_000),
    "residual_layers": (1, 1000),
    "eos_token_id": IDS,
}
IMAGE_SIDE = (1, 100_000)
ORDERS = ("pre", "post", "sandwich")
MOST_PARAMETERS = 1e12


def check_config(config, path):
    """UserError that names the first value that no network can have. config: in SAT's form."""
    vision, qformer = config["eva_args"], config["qformer_args"]
    for part, name, numbers in (
        (config, "", LANGUAGE),
        (vision, "eva_args.", VISION),
        (qformer, "qformer_args.", LAYERS),
    ):
        problem = _problem(part, numbers)
        if problem:
            raise UserError(f"{path}: {name}{problem}; correct it or copy it again")
    size = vision.get("image_size")
    if not isinstance(size, list) or len(size) != 2 or any(_wrong(s, IMAGE_SIDE) for s in size):
        raise UserError(
            f"{path}: eva_args.image_size is {shown(size)}, expected [height, width] in pixels; "
            "correct it or copy it again"
        )
    if config["hidden_size"] // config["num_attention_heads"] % 4:
        raise UserError(
            f"{path}: hidden_size / num_attention_heads is "
            f"{config['hidden_size'] // config['num_attention_heads']}, expected a multiple of 4 "
            "(rotary positions); correct it or copy it again"
        )
    parameters = _parameters(config)
    if parameters > MOST_PARAMETERS:
        raise UserError(
            f"{path}: a network of about {parameters:.0e} parameters, expected at most "
            f"{MOST_PARAMETERS:.0e}; correct it or copy it again"
        )


def check_memory(config, path):
    """UserError where this machine has not the memory to make such a network at random."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 4 * _parameters(config)
    if needed > memory:
        raise UserError(
            f"{path}: this network takes about {needed / 1e9:,.0f} GB in float32, the machine has "
            f"{memory / 1e9:,.0f} GB; choose smaller numbers"
        )


def _problem(part, numbers):
    """What is wrong with one part, or None."""
    wanted = numbers | {key: span for key, span in OPTIONAL.items() if part.get(key) is not None}
    for key, span in wanted.items():
        if key not in part:
            return f"{key} is missing"
        if _wrong(part[key], span):
            least, most = span
            value = shown(part[key])
            return f"{key} is {value}, expected a whole number from {least} to {most:,}"
    if part["hidden_size"] % part["num_attention_heads"]:
        return (
            f"hidden_size is {part['hidden_size']}, expected a multiple of num_attention_heads, "
            f"{part['num_attention_heads']}"
        )
    epsilon = part.get("layernorm_epsilon", 1e-5)
    if not isinstance(epsilon, float) or not math.isfinite(epsilon) or epsilon <= 0:
        return f"layernorm_epsilon is {shown(epsilon)}, expected a small number above 0"
    if part.get("layernorm_order") not in ORDERS:
        order = shown(part.get("layernorm_order"))
        return f"layernorm_order is {order}, expected one of {', '.join(ORDERS)}"
    decoder = part.get("is_decoder", False)
    if isinstance(decoder, list) and len(decoder) != part["num_layers"]:
        return f"is_decoder has {len(decoder)} entries for {part['num_layers']} layers"
    return None


def _wrong(value, span):
    """Whether it is no whole number of this span; True and 2.0 are none."""
    least, most = span
    return type(value) is not int or not least <= value <= most


def shown(value):
    """A value of any kind and length, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def _parameters(config):
    """Of the language model, about."""
    width = config["hidden_size"]
    layer = 4 * width**2 + 2 * width * config["inner_hidden_size"]
    return config["num_layers"] * layer + 2 * config["vocab_size"] * width
