"""Frozen weights in 4 bits (NF4, QLoRA https://arxiv.org/abs/2305.14314), by bitsandbytes.

SAT 0.4.12's own QLoRA raises NameError on every device, so only the layer is borrowed from bitsandbytes and put where
SAT keeps the frozen weight of a LoRA layer.
"""
import torch

from .errors import UserError
from .sat_import import LoraLinear


def to_nf4(network):
    """Replace the frozen linear layers of the language model's blocks, those under LoRA included, by 4-bit ones.

    Vision tower, Q-Former, embeddings and head stay as they are. Call it after `add_lora`. Raises UserError where
    bitsandbytes is missing.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise UserError("4-bit weights need bitsandbytes: pip install bitsandbytes==0.50.2") from None

    def quantized(linear):
        weight, bias = linear.weight, linear.bias
        new = Linear4bit(weight.size(1), weight.size(0), bias=bias is not None, compute_dtype=weight.dtype,
                         quant_type="nf4", device="cpu")
        state = {"weight": weight.detach().cpu()} | ({"bias": bias.detach().cpu()} if bias is not None else {})
        new.load_state_dict(state)
        new.support_avx512bf16_for_cpu = False  # its packed form for CPU inference cannot go back to training
        return new.requires_grad_(False).to(weight.device)  # this move quantizes

    for layer in network.transformer.layers:
        for block, names in ((layer.attention, ("query_key_value", "dense")), (layer.mlp, ("dense_h_to_4h", "dense_4h_to_h"))):
            for name in names:
                linear = getattr(block, name)
                if isinstance(linear, LoraLinear):
                    linear.original = quantized(linear.original)
                else:
                    setattr(block, name, quantized(linear))
