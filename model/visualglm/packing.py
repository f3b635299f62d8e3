"""Weights of a CPU's linear layers in the order that the fastest products read.

Those are oneDNN's: against torch's own 1.3 to 2 times the speed for one row, and more for a
prompt's many. The language model in bfloat16, on a CPU without instructions for it, takes FBGEMM's:
eight rows together cost about what two cost alone. See benchmarks/. Packed layers only compute:
they can no longer be saved, moved or trained.
"""

import functools
import re
from collections.abc import Iterable

import torch

from model.float_products import bfloat16_products
from model.visualglm.network import VisualGLM
from model.visualglm.sat import ColumnParallelLinear, RowParallelLinear

# Weights from which packing pays, by dtype: a call costs some 20 microseconds.
SMALLEST = {torch.float32: 2**18, torch.bfloat16: 0}
LINEAR = (torch.nn.Linear, ColumnParallelLinear, RowParallelLinear)
# Where few rows at a time are multiplied; images are many rows
LANGUAGE_MODEL = re.compile(r"transformer\.layers\.|mixins\.chatglm-final\.lm_head$")
LARGEST_FLOAT16 = torch.finfo(torch.float16).max


class PackedLinear(torch.nn.Module):
    """A linear layer; x [..., K] -> [..., N].

    It calls the operators that torch.compile itself emits for a frozen network.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
        self.bias = None if bias is None else bias.detach()
        self.out_features, self.in_features = weight.shape

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Float16Linear(torch.nn.Module):
    """A linear layer of bfloat16 weights; x [..., K] -> [..., N] in x's dtype.

    FBGEMM reads them as float16 and multiplies in float32. From 2 ** -17 on a bfloat16 is the same
    number in float16; what is smaller is off by at most 2 ** -25.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        bias = None if bias is None else bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float(), bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, x):
        wide = x.float().contiguous()
        return torch.ops.quantized.linear_dynamic_fp16(wide, self.packed).to(x.dtype)


@functools.cache
def has_float16_products() -> bool:
    """Whether FBGEMM's products run here, and agree with torch's."""
    weight, bias, x = torch.randn(48, 64).bfloat16(), torch.randn(48), torch.randn(3, 64)
    try:
        got = Float16Linear(weight, bias)(x)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return torch.allclose(got, torch.nn.functional.linear(x, weight.float(), bias), atol=1e-3)


def pack(
    network: VisualGLM,
    skip: Iterable[str] = (),
    smallest: dict[torch.dtype, int] = SMALLEST,
) -> None:
    """Replace the linear layers of a network on a CPU by packed ones, where this machine has them.

    skip: names of parameters whose layers stay as they are, because their values are exchanged
    later; smallest: by dtype, the weights from which a layer is packed.
    """
    if network.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    skipped = {name.rpartition(".")[0] for name in skip}

    # A list of names, not of layers: a layer that is held here would keep its memory.
    for path in [path for path, _ in network.named_modules()]:
        layer = network.get_submodule(path)
        if not isinstance(layer, LINEAR) or path in skipped:
            continue
        dtype = layer.weight.dtype
        kind = _kind(path, layer.weight)
        if kind and layer.weight.numel() >= smallest[dtype]:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, kind(layer.weight, layer.bias))


def _kind(path, weight):
    """The class of a packed layer; None: there is none for it."""
    if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and bfloat16_products()):
        return PackedLinear
    if weight.dtype != torch.bfloat16 or not LANGUAGE_MODEL.match(path):
        return None
    fits = weight.detach().abs().max() <= LARGEST_FLOAT16
    return Float16Linear if fits and has_float16_products() else None
