"""Weights in 8 or 4 bits: less memory, and faster decoding where memory bandwidth is the limit.

Inference: every row (8 bits) or group of 32 weights in a row (4 bits) has its own scale, stored in a form that no device
owns; when a layer reaches its device it is packed for the fastest kernel that runs and agrees there.
Training (QLoRA, https://arxiv.org/abs/2305.14314): NF4 layers of bitsandbytes, as SAT 0.4.12's own QLoRA raises NameError.
Shapes: M rows of activations, N outputs, K inputs, G groups of a row.
"""

import ctypes
import re

import torch
import torch.nn.functional as F

from model.errors import UserError

GROUP = 32
BITS = (8, 4)
SCALE_DTYPE = (
    torch.bfloat16
)  # what the kernels take; weights are rounded after their scale, so this costs no accuracy
LAYERS = re.compile(r"transformer\.layers\.\d+\.(attention|mlp)\.\w+")
HEAD = "mixins.chatglm-final.lm_head"
PROBE_ERROR = (
    0.02  # of the largest output: kernels may round differently, a wrong one is off by far more
)


def bits_of(name, bits):
    """How many bits the layer of this name gets: the head, which picks the word, keeps 8; None leaves it as it is."""
    return 8 if name == HEAD else bits if LAYERS.fullmatch(name) else None


def groups_of(inputs):
    """G for K inputs. Raises UserError."""
    if inputs % GROUP:
        raise UserError(
            f"4-bit weights come in groups of {GROUP}: a layer of this network has {inputs} inputs; use 8 bits"
        )
    return inputs // GROUP


def quantize(weight, bits):
    """A weight [N, K] -> what QuantizedLinear stores, by name.

    8 bits: weight int8 [N, K], scale [N]; w = weight * scale.
    4 bits: weight uint8 [N, K/2], two values q - 8 in -8..7 a byte, the first in the high half; scale and zero [N, G];
    w = (q - 8) * scale + zero.
    """
    weight = weight.float()
    if bits == 8:
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-30).to(SCALE_DTYPE)
        return {
            "weight": (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8),
            "scale": scale,
        }
    groups = weight.unflatten(1, (groups_of(weight.size(1)), GROUP))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp(min=1e-30).to(SCALE_DTYPE)
    zero = (low + 8 * scale.float()).to(SCALE_DTYPE)
    q = (
        ((groups - zero.float()[..., None]) / scale.float()[..., None])
        .round()
        .clamp(-8, 7)
        .to(torch.int8)
        .flatten(1)
    )
    return {
        "weight": (q[:, ::2] << 4 | q[:, 1::2] & 15).view(torch.uint8),
        "scale": scale,
        "zero": zero,
    }


def is_quantized(name, tensor):
    """Is this a part of what `quantize` stores? It keeps its dtype."""
    return tensor.dtype in (torch.int8, torch.uint8) or name.endswith((".scale", ".zero"))


def quantized_tensors(tensors, bits):
    """(name, tensor) of a network one after the other -> the same with the weights of quantized layers in their stored form."""
    for name, tensor in tensors:
        layer, _, kind = name.rpartition(".")
        layer_bits = bits_of(layer, bits) if kind == "weight" else None
        if layer_bits and not is_quantized(name, tensor):
            yield from (
                (f"{layer}.{part}", value) for part, value in quantize(tensor, layer_bits).items()
            )
        else:
            yield name, tensor


def _unpacked(packed):
    """uint8 [N, K/2] -> int8 [N, K], values q - 8"""
    signed = packed.view(torch.int8)
    return torch.stack((signed >> 4, signed << 4 >> 4), -1).flatten(1)


def dequantize(stored, dtype):
    """The weight [N, K] that the stored form stands for."""
    if "zero" not in stored:
        return stored["weight"].to(dtype) * stored["scale"].to(dtype)[:, None]
    q = _unpacked(stored["weight"]).to(dtype).unflatten(1, (-1, GROUP))
    return (q * stored["scale"].to(dtype)[..., None] + stored["zero"].to(dtype)[..., None]).flatten(
        1
    )


class Plain:
    """Works everywhere: the weight is made again for every product."""

    def __init__(self, stored):
        self.stored = stored

    def __call__(self, x):
        return F.linear(x, dequantize(self.stored, x.dtype))


class TorchInt8:
    """torch's int8 weight-only product."""

    few = 8  # rows up to which the kernel beats making the weight again, on a CPU with bfloat16
    piece = (
        2**22
    )  # weights made again at a time: memory for more is given back to the system and cleared at every product

    def __init__(self, stored):
        self.weight, self.scale = stored["weight"], stored["scale"]

    def __call__(self, x):
        x = x.to(SCALE_DTYPE)
        if x.size(0) > self.few:
            pieces = self.weight.split(max(1, self.piece // self.weight.size(1)))
            return torch.cat([F.linear(x, piece.to(x.dtype)) for piece in pieces], 1) * self.scale
        return torch._weight_int8pack_mm(x, self.weight, self.scale)


class TorchInt4:
    """torch's int4 weight-only products; CPU and CUDA pack differently."""

    def __init__(self, stored):
        q = _unpacked(stored["weight"]) + 8
        # [G, N, 2]
        self.scales = (
            torch.stack((stored["scale"], stored["zero"]), -1).transpose(0, 1).contiguous()
        )
        if q.device.type == "cpu":
            self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
            self.product = torch.ops.aten._weight_int4pack_mm_for_cpu
        else:
            pairs = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8)
            tiles = next(t for t in (8, 4, 2) if q.size(1) % (t * 16) == 0)
            self.weight = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
            self.product = torch.ops.aten._weight_int4pack_mm

    def __call__(self, x):
        return self.product(x.to(SCALE_DTYPE), self.weight, GROUP, self.scales)


class CpmKernels:
    """SAT's kernels (cpm_kernels): the weight is unpacked to float16 by one launch. For GPUs torch's products leave out."""

    def __init__(self, stored):
        from model.visualglm.sat import cpm_kernels

        self.kernels, self.round_up = cpm_kernels()
        weight, scale = stored["weight"], stored["scale"].half()
        self.shape = (weight.size(0), -1)
        self.zero = stored["zero"].half()[..., None] if "zero" in stored else None
        # The kernel knows one scale a row: a group of 4-bit weights is a row to it.
        self.weight = weight if self.zero is None else weight.reshape(-1, GROUP // 2)
        self.scale = scale.flatten().contiguous()

    def __call__(self, x):
        rows, width = self.weight.shape
        out = torch.empty(
            rows, width * (1 if self.zero is None else 2), dtype=torch.half, device=x.device
        )
        unpack = (
            self.kernels.int8WeightExtractionHalf
            if self.zero is None
            else self.kernels.int4WeightExtractionHalf
        )
        with torch.cuda.device(x.device):
            unpack(
                (rows, 1, 1),
                (min(self.round_up(width, 32), 1024), 1, 1),
                0,
                torch.cuda.current_stream(),
                [ctypes.c_void_p(t.data_ptr()) for t in (self.weight, self.scale, out)]
                + [ctypes.c_int32(rows), ctypes.c_int32(width)],
            )
        if self.zero is not None:
            out = out.view(self.zero.size(0), -1, GROUP) + self.zero
        return F.linear(x.half(), out.reshape(self.shape))


KERNELS = {
    "cpu": {8: (TorchInt8,), 4: (TorchInt4,)},
    "cuda": {8: (TorchInt8, CpmKernels), 4: (TorchInt4, CpmKernels)},
}
_chosen = {}


def choose_kernel(device, bits, outputs, inputs):
    """The first kernel for this device that runs on this shape and gives what the plain product gives."""
    key = (device.type, bits, outputs, inputs)
    if key not in _chosen:
        x = torch.randn(2, inputs, device=device, dtype=SCALE_DTYPE)
        stored = quantize(torch.randn(outputs, inputs, device=device), bits)
        wanted = Plain(stored)(x.float())
        _chosen[key] = Plain
        for kernel in KERNELS.get(device.type, {}).get(bits, ()):
            try:
                got = kernel(stored)(x).float()
            except (RuntimeError, NotImplementedError, ImportError, OSError, StopIteration):
                continue  # not on this GPU, not this shape, not this build
            if (got - wanted).abs().max() <= PROBE_ERROR * wanted.abs().max():
                _chosen[key] = kernel
                break
    return _chosen[key]


class QuantizedLinear(torch.nn.Module):
    """A linear layer without gradients to its weight; x [..., K] -> [..., N] in x's dtype.

    Made empty: fill its buffers (the names of `quantize`, and bias), then call `pack` on the device it stays on.
    """

    def __init__(self, outputs, inputs, bias, bits):
        super().__init__()
        self.bits = bits
        groups = (groups_of(inputs),) if bits == 4 else ()
        weight = (
            torch.empty(outputs, inputs // 2, dtype=torch.uint8)
            if bits == 4
            else torch.empty(outputs, inputs, dtype=torch.int8)
        )
        self.register_buffer("weight", weight)
        for name in ("scale", "zero") if bits == 4 else ("scale",):
            self.register_buffer(name, torch.empty(outputs, *groups, dtype=SCALE_DTYPE))
        self.register_buffer("bias", torch.empty(outputs) if bias else None)
        self.in_features, self.out_features = inputs, outputs
        self.product = None

    def pack(self):
        """Give the weights the form of the fastest kernel; they can no longer be saved or moved."""
        stored = {name: buffer for name, buffer in self.named_buffers() if name != "bias"}
        self.product = choose_kernel(
            self.weight.device, self.bits, self.out_features, self.in_features
        )(stored)
        for name in stored:
            delattr(self, name)

    def forward(self, x):
        out = self.product(x.reshape(-1, self.in_features)).to(x.dtype)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)


def quantized_shells(network, bits):
    """Put empty QuantizedLinear layers where the network, still on the meta device, has linear ones to quantize."""
    for name, module in list(network.named_modules()):
        layer_bits = bits_of(name, bits)
        if layer_bits and hasattr(module, "weight"):
            outputs, inputs = module.weight.shape
            parent, _, child = name.rpartition(".")
            with torch.device("meta"):
                shell = QuantizedLinear(outputs, inputs, module.bias is not None, layer_bits)
            setattr(network.get_submodule(parent), child, shell)


def to_nf4(network, device=None):
    """Replace the linear layers of the language model's blocks, frozen, by 4-bit ones on the device. Before or after LoRA is added.

    Vision tower, Q-Former, embeddings and head stay as they are. Raises UserError where bitsandbytes is missing.
    """
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        raise UserError(
            "4-bit weights need bitsandbytes: pip install bitsandbytes==0.50.2"
        ) from None

    for name, module in list(network.named_modules()):
        path, _, child = name.rpartition(".")
        if (
            not LAYERS.fullmatch(name.removesuffix(".original"))
            or getattr(module, "weight", None) is None
        ):
            continue
        weight, bias = module.weight, module.bias
        new = Linear4bit(
            weight.size(1),
            weight.size(0),
            bias=bias is not None,
            compute_dtype=weight.dtype,
            quant_type="nf4",
            device="cpu",
        )
        state = {"weight": weight.detach().cpu()} | (
            {"bias": bias.detach().cpu()} if bias is not None else {}
        )
        new.load_state_dict(state)
        new.support_avx512bf16_for_cpu = (
            False  # its packed form for CPU inference cannot go back to training
        )
        setattr(
            network.get_submodule(path),
            child,
            new.requires_grad_(False).to(device or weight.device),
        )  # the move quantizes
