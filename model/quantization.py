"""Weights in 8 or 4 bits: less memory, and faster decoding where memory bandwidth is the limit.

Every row (8 bits) or group of 32 weights in a row (4 bits) has its own scale, stored in a form that
belongs to no device; when a layer reaches its device it is packed for the fastest kernel that runs
and agrees there. benchmarks/quantized_layers.py compares them with others. For training in 4 bits
see model/nf4.py.

Shapes
    M  rows of activations
    N  outputs
    K  inputs
    G  groups of a row
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from model.errors import UserError
from model.float_products import bfloat16_products

GROUP = 32
BITS = (8, 4)
PIECE = 256  # outputs converted at a time: on the way they take 8 to 32 times their final memory
# What the kernels take. Weights are rounded after their scale, so it costs no accuracy.
SCALE_DTYPE = torch.bfloat16
# Of the largest output: kernels may round differently, a wrong one is off by far more.
PROBE_ERROR = 0.02
PROBE_OUTPUTS = 1024  # a head of 130,528 words would take 6 GB to try

Stored = dict[str, torch.Tensor]  # what `quantize` returns
Product = Callable[[torch.Tensor], torch.Tensor]  # [M, K] -> [M, N]
Kernel = Callable[[Stored], Product]


def chosen_bits(card: dict[str, Any], bits: int | None, source: str) -> int | None:
    """8, 4 or None: what a checkpoint holds, by its card, else what is asked for.

    source: the checkpoint, for the UserError where both differ.
    """
    if "quantization" in card:
        own = card["quantization"]["bits"]
        if bits not in (None, own):
            raise UserError(
                f"{source} holds {own}-bit weights, --quant {bits} was asked for; leave it out"
            )
        return int(own)
    if bits not in (None, *BITS):
        raise UserError(f"quantization to {bits} bits: expected 8 or 4")
    return bits


def groups_of(inputs: int) -> int:
    """G for K inputs. Raises UserError."""
    if inputs % GROUP:
        raise UserError(
            f"4-bit weights come in groups of {GROUP}: a layer of this network has {inputs} "
            "inputs; use 8 bits"
        )
    return inputs // GROUP


def quantize(weight: torch.Tensor, bits: int) -> Stored:
    """A weight [N, K] -> what QuantizedLinear stores, by name.

    8 bits: weight int8 [N, K], scale [N]; w = weight * scale.
    4 bits: weight uint8 [N, K/2], two values q - 8 in -8..7 per byte, the first in the high half;
    scale and zero [N, G]; w = (q - 8) * scale + zero.
    Scales and zeros are bfloat16. Raises UserError where 4 bits do not fit.
    """
    kind = _quantize_int8 if bits == 8 else _quantize_int4
    pieces = [kind(piece.float()) for piece in weight.split(PIECE)]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _quantize_int8(weight: torch.Tensor) -> Stored:
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).to(SCALE_DTYPE)  # [N]
    q = (weight / scale.float()[:, None]).round_().clamp_(-127, 127)
    return {"weight": q.to(torch.int8), "scale": scale}


def _quantize_int4(weight: torch.Tensor) -> Stored:
    groups = weight.unflatten(1, (groups_of(weight.size(1)), GROUP))  # [N, G, GROUP]
    low, high = groups.aminmax(dim=-1)  # each [N, G]
    scale = ((high - low) / 15).clamp(min=1e-30).to(SCALE_DTYPE)
    zero = (low + 8 * scale.float()).to(SCALE_DTYPE)

    q = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round_().clamp_(-8, 7)
    q = q.to(torch.int8).flatten(1)  # [N, K]
    packed = (q[:, ::2] << 4 | q[:, 1::2] & 15).view(torch.uint8)  # [N, K/2]
    return {"weight": packed, "scale": scale, "zero": zero}


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is a part of what `quantize` returns: it keeps its dtype."""
    return tensor.dtype in (torch.int8, torch.uint8) or name.endswith((".scale", ".zero"))


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K/2] -> int8 [N, K], values q - 8"""
    signed = packed.view(torch.int8)
    return torch.stack((signed >> 4, signed << 4 >> 4), -1).flatten(1)


def dequantize(stored: Stored, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] that the stored form means."""
    scale = stored["scale"].to(dtype)[..., None]
    if "zero" not in stored:
        return stored["weight"].to(dtype) * scale
    q = _unpacked(stored["weight"]).to(dtype).unflatten(1, (-1, GROUP))  # [N, G, GROUP]
    return (q * scale + stored["zero"].to(dtype)[..., None]).flatten(1)


class Dequantized:
    """Works everywhere: the weight is computed again for every product."""

    def __init__(self, stored: Stored):
        self.stored = stored

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, dequantize(self.stored, x.dtype))


class TorchInt8:
    """torch's int8 weight-only product, and for many rows the weight computed again."""

    # Weights computed again at a time: memory for more is given back to the system, and cleared,
    # at every product.
    piece = 2**22

    def __init__(self, stored: Stored):
        self.weight, self.scale = stored["weight"], stored["scale"]
        # The rows up to which the kernel is faster, and the dtype of the other product.
        self.few, self.dtype = 8, torch.bfloat16
        if self.weight.device.type == "cpu" and not bfloat16_products():
            # Without instructions for bfloat16 its products take four times as long as float32's.
            self.few, self.dtype = 32, torch.float32

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.size(0) <= self.few:
            return torch._weight_int8pack_mm(x.to(SCALE_DTYPE), self.weight, self.scale)
        x, scale = x.to(self.dtype), self.scale.to(self.dtype)
        pieces = self.weight.split(max(1, self.piece // self.weight.size(1)))
        return torch.cat([F.linear(x, piece.to(self.dtype)) for piece in pieces], 1) * scale


class TorchInt4:
    """torch's int4 weight-only products; CPU and CUDA pack differently.

    Raises NotImplementedError where K does not suit CUDA's tiles.
    """

    def __init__(self, stored: Stored):
        scales = torch.stack((stored["scale"], stored["zero"]), -1)  # [N, G, 2]
        self.scales = scales.transpose(0, 1).contiguous()  # [G, N, 2]
        if scales.device.type == "cpu":
            pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
            pieces = stored["weight"].split(PIECE)
            self.weight = torch.cat([pack(_unpacked(piece).int() + 8, 1) for piece in pieces])
            self.product = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            q = _unpacked(stored["weight"]) + 8  # [N, K]
            pairs = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8)  # [N, K/2]
            tiles = self._inner_tiles(q.size(1))
            self.weight = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
            self.product = torch.ops.aten._weight_int4pack_mm

    @staticmethod
    def _inner_tiles(inputs: int) -> int:
        for tiles in (8, 4, 2):
            if inputs % (tiles * 16) == 0:
                return tiles
        raise NotImplementedError(f"int4 products with {inputs} inputs")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x.to(SCALE_DTYPE), self.weight, GROUP, self.scales)


# Device type -> bits -> kernel
KERNELS: dict[str, dict[int, Kernel]] = {
    "cpu": {8: TorchInt8, 4: TorchInt4},
    "cuda": {8: TorchInt8, 4: TorchInt4},
}


@functools.cache
def choose_kernel(
    device: torch.device, bits: int, outputs: int, inputs: int, others: tuple[Kernel, ...] = ()
) -> Kernel:
    """The first kernel that runs on this shape and agrees with Dequantized.

    Of many outputs a part is tried, with the same remainder: kernels go by whether N is divisible.
    others: to try after the device's own.
    """
    outputs = min(outputs, PROBE_OUTPUTS + outputs % PROBE_OUTPUTS)
    x = torch.randn(2, inputs, device=device, dtype=SCALE_DTYPE)
    stored = quantize(torch.randn(outputs, inputs, device=device), bits)
    wanted = Dequantized(stored)(x.float())
    own = KERNELS.get(device.type, {}).get(bits)
    for kernel in (*filter(None, [own]), *others):
        try:
            got = kernel(stored)(x).float()
        except (RuntimeError, NotImplementedError, ImportError, OSError):
            continue  # not on this GPU, not this shape, not this build
        if (got - wanted).abs().max() <= PROBE_ERROR * wanted.abs().max():
            return kernel
    return Dequantized


class QuantizedLinear(torch.nn.Module):
    """A linear layer without gradients to its weight; x [..., K] -> [..., N] in x's dtype.

    Made empty: fill its buffers (the names of `quantize`, and bias), then call `pack` on the device
    it stays on; until then it computes slowly.
    """

    def __init__(self, outputs: int, inputs: int, bias: bool, bits: int):
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = inputs, outputs
        self.product: Product | None = None

        if bits == 8:
            self.register_buffer("weight", torch.empty(outputs, inputs, dtype=torch.int8))
            self.register_buffer("scale", torch.empty(outputs, dtype=SCALE_DTYPE))
        else:
            groups = groups_of(inputs)
            self.register_buffer("weight", torch.empty(outputs, inputs // 2, dtype=torch.uint8))
            self.register_buffer("scale", torch.empty(outputs, groups, dtype=SCALE_DTYPE))
            self.register_buffer("zero", torch.empty(outputs, groups, dtype=SCALE_DTYPE))
        self.register_buffer("bias", torch.empty(outputs) if bias else None)

    @classmethod
    def shell(cls, linear: Any, bits: int) -> "QuantizedLinear":
        """An empty one on the meta device, for a linear layer (anything with weight and bias)."""
        outputs, inputs = linear.weight.shape
        with torch.device("meta"):
            return cls(outputs, inputs, linear.bias is not None, bits)

    @classmethod
    def of(cls, linear: Any, bits: int) -> "QuantizedLinear":
        """One with the weights of a linear layer, on its device."""
        state = quantize(linear.weight.detach(), bits)
        if linear.bias is not None:
            state["bias"] = linear.bias.detach()
        layer = cls.shell(linear, bits)
        layer.load_state_dict(state, assign=True)
        return layer

    def _stored(self) -> Stored:
        return {name: buffer for name, buffer in self.named_buffers() if name != "bias"}

    def pack(self, others: tuple[Kernel, ...] = ()) -> None:
        """Give the weights the fastest kernel's form; they can no longer be saved or moved.

        others: kernels to try where the device's own does not run.
        """
        stored = self._stored()
        device = stored["weight"].device
        kernel = choose_kernel(device, self.bits, self.out_features, self.in_features, others)
        self.product = kernel(stored)
        for name in stored:
            delattr(self, name)

    def forward(self, x):
        product = self.product or Dequantized(self._stored())
        out = product(x.reshape(-1, self.in_features)).to(x.dtype)  # [M, N]
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)
