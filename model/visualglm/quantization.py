"""Weights in 8 or 4 bits: less memory, and faster decoding where memory bandwidth is the limit.

Inference: every row (8 bits) or group of 32 weights in a row (4 bits) has its own scale, stored in
a form that belongs to no device; when a layer reaches its device it is packed for the fastest
kernel that runs and agrees there. benchmarks/quantized_layers.py compares them with others.

Training (QLoRA, https://arxiv.org/abs/2305.14314): NF4 layers of bitsandbytes, because SAT 0.4.12's
own QLoRA raises NameError.

Shapes
    M  rows of activations
    N  outputs
    K  inputs
    G  groups of a row
"""

import ctypes
import functools
import re
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F

from model.errors import UserError
from model.float_products import bfloat16_products
from model.nf4 import nf4_linear

GROUP = 32
BITS = (8, 4)
# What the kernels take. Weights are rounded after their scale, so it costs no accuracy.
SCALE_DTYPE = torch.bfloat16
LAYERS = re.compile(r"transformer\.layers\.\d+\.(attention|mlp)\.\w+")
HEAD = "mixins.chatglm-final.lm_head"
# Of the largest output: kernels may round differently, a wrong one is off by far more.
PROBE_ERROR = 0.02
PROBE_OUTPUTS = 1024  # a head of 130,528 words would take 6 GB to try

Stored = dict[str, torch.Tensor]  # what `quantize` returns
Product = Callable[[torch.Tensor], torch.Tensor]  # [M, K] -> [M, N]


def bits_of(name: str, bits: int | None) -> int | None:
    """The bits of the layer of this name in a network of so many; None: it is not quantized.

    The head, which picks the token, keeps 8.
    """
    if name == HEAD:
        return 8
    if LAYERS.fullmatch(name):
        return bits
    return None


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
    if bits == 8:
        return _quantize_int8(weight.float())
    return _quantize_int4(weight.float())


def _quantize_int8(weight: torch.Tensor) -> Stored:
    scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).to(SCALE_DTYPE)  # [N]
    q = (weight / scale.float()[:, None]).round().clamp(-127, 127)
    return {"weight": q.to(torch.int8), "scale": scale}


def _quantize_int4(weight: torch.Tensor) -> Stored:
    groups = weight.unflatten(1, (groups_of(weight.size(1)), GROUP))  # [N, G, GROUP]
    low, high = groups.aminmax(dim=-1)  # each [N, G]
    scale = ((high - low) / 15).clamp(min=1e-30).to(SCALE_DTYPE)
    zero = (low + 8 * scale.float()).to(SCALE_DTYPE)

    q = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round().clamp(-8, 7)
    q = q.to(torch.int8).flatten(1)  # [N, K]
    packed = (q[:, ::2] << 4 | q[:, 1::2] & 15).view(torch.uint8)  # [N, K/2]
    return {"weight": packed, "scale": scale, "zero": zero}


def is_quantized(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is a part of what `quantize` returns: it keeps its dtype."""
    return tensor.dtype in (torch.int8, torch.uint8) or name.endswith((".scale", ".zero"))


def quantized_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], bits: int | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a network -> the same with the weights of quantized layers as stored."""
    for name, tensor in tensors:
        layer, _, kind = name.rpartition(".")
        layer_bits = bits_of(layer, bits) if kind == "weight" else None
        if layer_bits is None or is_quantized(name, tensor):
            yield name, tensor
            continue
        for part, value in quantize(tensor, layer_bits).items():
            yield f"{layer}.{part}", value


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
        q = _unpacked(stored["weight"]) + 8  # [N, K]
        scales = torch.stack((stored["scale"], stored["zero"]), -1)  # [N, G, 2]
        self.scales = scales.transpose(0, 1).contiguous()  # [G, N, 2]
        if q.device.type == "cpu":
            self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
            self.product = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
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


class CpmKernels:
    """SAT's kernels (cpm_kernels): one launch unpacks the weight to float16.

    For GPUs that torch's products leave out. Raises ImportError.
    """

    def __init__(self, stored: Stored):
        from model.visualglm.sat import cpm_kernels

        self.kernels, self.round_up = cpm_kernels()
        weight = stored["weight"]
        self.outputs = weight.size(0)
        self.zero = None
        if "zero" in stored:
            self.zero = stored["zero"].half()[..., None]  # [N, G, 1]
            # The kernel knows one scale per row: a group of 4-bit weights is a row to it.
            weight = weight.reshape(-1, GROUP // 2)
        self.weight = weight
        self.scale = stored["scale"].half().flatten().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._unpack(x.device)
        if self.zero is not None:
            weight = weight.view(self.outputs, -1, GROUP) + self.zero  # [N, G, GROUP]
        return F.linear(x.half(), weight.reshape(self.outputs, -1))

    def _unpack(self, device: torch.device) -> torch.Tensor:
        """The stored values times their scale, float16, in the shape that the kernel knows."""
        rows, width = self.weight.shape
        if self.zero is None:
            kernel, values = self.kernels.int8WeightExtractionHalf, width
        else:
            kernel, values = self.kernels.int4WeightExtractionHalf, 2 * width
        out = torch.empty(rows, values, dtype=torch.half, device=device)

        grid, block = (rows, 1, 1), (min(self.round_up(width, 32), 1024), 1, 1)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (self.weight, self.scale, out)]
        arguments = [*pointers, ctypes.c_int32(rows), ctypes.c_int32(width)]
        with torch.cuda.device(device):
            kernel(grid, block, 0, torch.cuda.current_stream(), arguments)
        return out


# Device type -> bits -> kernels, the fastest first.
KERNELS: dict[str, dict[int, tuple[Callable[[Stored], Product], ...]]] = {
    "cpu": {8: (TorchInt8,), 4: (TorchInt4,)},
    "cuda": {8: (TorchInt8, CpmKernels), 4: (TorchInt4, CpmKernels)},
}


@functools.cache
def choose_kernel(
    device: torch.device, bits: int, outputs: int, inputs: int
) -> Callable[[Stored], Product]:
    """The first kernel of the device that runs on this shape and agrees with Dequantized.

    Of many outputs a part is tried, with the same remainder: kernels go by whether N is divisible.
    """
    outputs = min(outputs, PROBE_OUTPUTS + outputs % PROBE_OUTPUTS)
    x = torch.randn(2, inputs, device=device, dtype=SCALE_DTYPE)
    stored = quantize(torch.randn(outputs, inputs, device=device), bits)
    wanted = Dequantized(stored)(x.float())
    for kernel in KERNELS.get(device.type, {}).get(bits, ()):
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
    it stays on.
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

    def pack(self) -> None:
        """Give the weights the fastest kernel's form; they can no longer be saved or moved."""
        stored = {name: buffer for name, buffer in self.named_buffers() if name != "bias"}
        device = stored["weight"].device
        kernel = choose_kernel(device, self.bits, self.out_features, self.in_features)
        self.product = kernel(stored)
        for name in stored:
            delattr(self, name)

    def forward(self, x):
        out = self.product(x.reshape(-1, self.in_features)).to(x.dtype)  # [M, N]
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)


def quantized_shells(network: torch.nn.Module, bits: int) -> None:
    """Put empty QuantizedLinear layers where a network on the meta device has layers to quantize.

    Raises UserError where 4 bits do not fit.
    """
    for name, module in list(network.named_modules()):
        layer_bits = bits_of(name, bits)
        if layer_bits is None or not hasattr(module, "weight"):
            continue
        outputs, inputs = module.weight.shape
        with torch.device("meta"):
            shell = QuantizedLinear(outputs, inputs, module.bias is not None, layer_bits)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, shell)


def to_nf4(network: torch.nn.Module, device: torch.device | None = None) -> None:
    """Replace the linear layers of the language model's blocks by frozen 4-bit ones on the device.

    Before or after LoRA is added. Vision tower, Q-Former, embeddings and head stay as they are.
    Raises UserError where bitsandbytes is missing.
    """
    for path, module in list(network.named_modules()):
        is_block = LAYERS.fullmatch(path.removesuffix(".original"))
        if not is_block or getattr(module, "weight", None) is None:
            continue
        parent, _, name = path.rpartition(".")
        new = nf4_linear(module, device or module.weight.device)
        setattr(network.get_submodule(parent), name, new)
