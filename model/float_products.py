"""Training in bfloat16 on a CPU without instructions for it (AVX2, AVX512 without BF16).

torch has no fast product for the gradients there: those of a 4096 x 4096 layer over 90 rows take
25 s, in float32 0.3 s. The weights stay in bfloat16 and are widened for a product, layer by layer.
"""

from functools import partial

import torch
import torch.nn.functional as F


def bfloat16_products() -> bool:
    """Whether this CPU has instructions for oneDNN's products in bfloat16."""
    available = torch.backends.mkldnn.is_available()
    return available and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of a dtype are to be computed in float32 on a device."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not bfloat16_products()


def widen_products(network: torch.nn.Module, kinds: tuple[type, ...] = (torch.nn.Linear,)) -> None:
    """From now on the bfloat16 linear layers, whose parameters stay as they are, compute so."""
    for layer in network.modules():
        if isinstance(layer, kinds) and layer.weight.dtype == torch.bfloat16:
            layer.forward = partial(_linear, layer)  # type: ignore[method-assign]


def _linear(layer, x):
    return _Linear.apply(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    """F.linear of x [..., K], weight [N, K] and bias [N] or None, all of one dtype."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        trains_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if trains_weight else None, weight)
        wide_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        dtype, wide = gradient.dtype, gradient.float()  # [..., N]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (wide @ weight.float()).to(dtype)  # [..., K]
        rows = wide.flatten(0, -2)  # [rows, N]
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ x.float().flatten(0, -2)).to(dtype)  # [N, K]
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(dtype)
        return of_x, of_weight, of_bias
