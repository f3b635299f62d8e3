"""VisualGLM with weights in 8 or 4 bits: which layers, in files and in the network.

Training (QLoRA) takes NF4 layers of bitsandbytes, because SAT 0.4.12's own QLoRA raises NameError.
Shapes as in model/quantization.py.
"""

import ctypes
import re
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F

from model.nf4 import nf4_linear
from model.quantization import GROUP, QuantizedLinear, Stored, is_quantized, quantize

LAYERS = re.compile(r"transformer\.layers\.\d+\.(attention|mlp)\.\w+")
HEAD = "mixins.chatglm-final.lm_head"


def bits_of(name: str, bits: int | None) -> int | None:
    """The bits of the layer of this name in a network of so many; None: it is not quantized.

    The head, which picks the token, keeps 8.
    """
    if name == HEAD:
        return 8
    if LAYERS.fullmatch(name):
        return bits
    return None


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


def quantized_shells(network: torch.nn.Module, bits: int) -> None:
    """Put empty QuantizedLinear layers where a network on the meta device has layers to quantize.

    Raises UserError where 4 bits do not fit.
    """
    for name, module in list(network.named_modules()):
        layer_bits = bits_of(name, bits)
        if layer_bits is None or not hasattr(module, "weight"):
            continue
        parent, _, child = name.rpartition(".")
        shell = QuantizedLinear.shell(module, layer_bits)
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
