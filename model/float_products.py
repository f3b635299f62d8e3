"""bfloat16 networks on a CPU without instructions for it (AVX2, AVX512 without BF16).

torch has no fast product there: 257 rows by a 4096 x 4096 layer take 0.4 s, the gradients of 90
rows 25 s; in float32 0.08 and 0.3 s. The weights stay in bfloat16 and are widened for a product, a
piece at a time: a piece stays in the cache, and the system need not find memory for the whole.
"""

from functools import partial

import torch
import torch.nn.functional as F

PIECE = 2**20  # weights, 4 MB in float32
FEW_ROWS = 4  # up to which torch's own product in bfloat16 is as fast
CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def bfloat16_products() -> bool:
    """Whether this CPU has instructions for oneDNN's products in bfloat16."""
    available = torch.backends.mkldnn.is_available()
    return available and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of a dtype are to be computed in float32 on a device."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not bfloat16_products()


def widen_products(network: torch.nn.Module, kinds: tuple[type, ...] = (torch.nn.Linear,)) -> None:
    """From now on bfloat16 linear layers and convolutions compute so; parameters stay as they are.

    kinds: the classes of the linear layers.
    """
    for layer in network.modules():
        if not isinstance(layer, kinds + CONVOLUTIONS) or layer.weight.dtype != torch.bfloat16:
            continue
        product = _convolution if isinstance(layer, CONVOLUTIONS) else _linear
        layer.forward = partial(product, layer)  # type: ignore[method-assign]


def _convolution(layer, x):
    bias = None if layer.bias is None else layer.bias.float()
    return layer._conv_forward(x.float(), layer.weight.float(), bias).to(x.dtype)


def _linear(layer, x):
    rows = x[..., 0].numel()
    if rows <= FEW_ROWS and not torch.is_grad_enabled():
        return F.linear(x, layer.weight, layer.bias)
    return _Linear.apply(x, layer.weight, layer.bias)


def linear(x, weight) -> torch.Tensor:
    """x [..., K] by weight [N, K] -> [..., N], in float32 where `widens` says so."""
    if widens(x.device, x.dtype):
        return _Linear.apply(x, weight, None)
    return F.linear(x, weight)


class _Linear(torch.autograd.Function):
    """F.linear of x [..., K], weight [N, K] and bias [N] or None, all of one dtype."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        trains_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if trains_weight else None, weight)
        wide = x.float()
        out = torch.cat([F.linear(wide, piece.float()) for piece in _pieces(weight)], -1)
        if bias is not None:
            out += bias.float()
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        dtype, rows = gradient.dtype, gradient.float().flatten(0, -2)  # [rows, N]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            pieces = _pieces(weight)
            of_x = rows.new_zeros(len(rows), weight.size(1))  # [rows, K]
            for part, piece in zip(rows.split(len(pieces[0]), -1), pieces):
                of_x.addmm_(part, piece.float())
            of_x = of_x.to(dtype).view(*gradient.shape[:-1], -1)  # [..., K]
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ x.float().flatten(0, -2)).to(dtype)  # [N, K]
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(dtype)
        return of_x, of_weight, of_bias


def _pieces(weight):
    """The weight [N, K] in parts of so many outputs that each is a piece."""
    return weight.split(max(1, PIECE // weight.size(1)))
