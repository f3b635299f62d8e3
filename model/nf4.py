"""Frozen linear layers in 4 bits: NF4 of bitsandbytes, QLoRA (https://arxiv.org/abs/2305.14314).

bitsandbytes is imported where a layer is made: only --method qlora and some --quant need it.
"""

from typing import Any

import torch

from model.errors import UserError
from model.float_products import widens


def nf4_linear(linear: Any, device: torch.device) -> torch.nn.Module:
    """A linear layer (anything with weight and bias) -> a frozen 4-bit copy of it on the device.

    Raises UserError where bitsandbytes is missing.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        message = "4-bit weights need bitsandbytes: pip install bitsandbytes==0.50.2"
        raise UserError(message) from None

    weight, bias = linear.weight, linear.bias
    new = Linear4bit(
        weight.size(1),
        weight.size(0),
        bias=bias is not None,
        compute_dtype=torch.float32 if widens(device, weight.dtype) else weight.dtype,
        quant_type="nf4",
        device="cpu",
    )
    state = {"weight": weight.detach().cpu()}
    if bias is not None:
        state["bias"] = bias.detach().cpu()
    new.load_state_dict(state)
    # Its packed form for inference on a CPU cannot go back to training.
    new.support_avx512bf16_for_cpu = False
    # The move to the device quantizes.
    return new.requires_grad_(False).to(device)
