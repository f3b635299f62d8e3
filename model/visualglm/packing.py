"""Weights of a CPU's linear layers in the order that oneDNN's products read fastest.

Against torch's own products that is 1.3 to 2 times the speed for one row, and more for a prompt's
many; see benchmarks/. Packed layers only compute: they can no longer be saved, moved or trained.
"""

from collections.abc import Iterable

import torch

from model.float_products import bfloat16_products
from model.visualglm.network import VisualGLM
from model.visualglm.sat import ColumnParallelLinear, RowParallelLinear

# Weights from which packing pays, by dtype: a call costs some 20 microseconds.
SMALLEST = {torch.float32: 2**18, torch.bfloat16: 0}
LINEAR = (torch.nn.Linear, ColumnParallelLinear, RowParallelLinear)


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
    packable = {torch.float32}
    if bfloat16_products():
        packable.add(torch.bfloat16)
    skipped = {name.rpartition(".")[0] for name in skip}

    # A list of names, not of layers: a layer that is held here would keep its memory.
    for path in [path for path, _ in network.named_modules()]:
        layer = network.get_submodule(path)
        if not isinstance(layer, LINEAR) or path in skipped:
            continue
        dtype = layer.weight.dtype
        if dtype in packable and layer.weight.numel() >= smallest[dtype]:
            parent, _, name = path.rpartition(".")
            packed = PackedLinear(layer.weight, layer.bias)
            setattr(network.get_submodule(parent), name, packed)
