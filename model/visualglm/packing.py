"""Weights of a CPU's linear layers in the order that oneDNN's products read fastest.

Against torch's own products that is 1.3 to 2 times the speed for one row and more for a prompt's many; see benchmarks/.
The packed layers compute only: they can no longer be saved, moved or trained.
"""

import torch

from model.visualglm.sat import ColumnParallelLinear, RowParallelLinear

SMALLEST = {
    torch.float32: 2**18,
    torch.bfloat16: 0,
}  # weights from which packing pays: a call costs some 20 microseconds


class PackedLinear(torch.nn.Module):
    """A linear layer; x [..., K] -> [..., N]. Speaks to the ops that torch.compile itself emits for a frozen network."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)
        self.bias = None if bias is None else bias.detach()
        self.out_features, self.in_features = weight.shape

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(network, skip=(), smallest=SMALLEST):
    """Replace the linear layers of a network on a CPU, one by one, by packed ones, where this machine has them."""
    if network.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    exchanged = {name.rpartition(".")[0] for name in skip}  # by checkpoint.without_adapter
    packable = {torch.float32} | (
        {torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()
    )
    for path in [
        path for path, _ in network.named_modules()
    ]:  # no layers, whose memory would stay taken
        layer = network.get_submodule(path)
        if (
            isinstance(layer, (torch.nn.Linear, ColumnParallelLinear, RowParallelLinear))
            and layer.weight.dtype in packable
            and layer.weight.numel() >= smallest[layer.weight.dtype]
            and path not in exchanged
        ):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, PackedLinear(layer.weight, layer.bias))
