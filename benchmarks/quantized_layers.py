"""Layers with weights of 8 and 4 bits on a CPU: this project's kernels, torchao, bitsandbytes.

    OMP_NUM_THREADS=2 python benchmarks/quantized_layers.py

One 4096 x 4096 layer (VisualGLM-6B's width); inputs of 1 row (a token), of 64 rows (a prompt) and
of 257 rows (an image in VisualGLM-6B's vision tower).
Each way has as many copies of the layer as fill --megabytes, and each call takes the next copy, so
that no cache holds the weights. All ways take turns and each number is a median, so that other
load falls on all alike. The error is that of the 257 rows against the float32 product, relative, in
the L2 norm.

A library that is missing has "not installed" in its rows, a kernel that this CPU or this build
lacks has the reason. torchao is no requirement of this project, so give it a folder of its own:

    pip install --no-deps --target /tmp/torchao torchao==0.18.0
    OMP_NUM_THREADS=2 PYTHONPATH=/tmp/torchao python benchmarks/quantized_layers.py
"""

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from networks import machine, table

from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import torch
    import torch.nn.functional as F

from model.float_products import widen_products
from model.quantization import GROUP, Dequantized, TorchInt4, TorchInt8, quantize
from model.visualglm.packing import PackedLinear

SIZE = 4096  # inputs and outputs
ROWS = (1, 64, 257)


class Way(NamedTuple):
    """A kind of layer to measure."""

    name: str
    dtype: torch.dtype  # of the activations
    bytes_per_weight: float
    build: Callable  # float32 weight [N, K] -> function [M, K] -> [M, N]
    library: str = "torch"


def linear(weight, dtype=torch.float32):
    """torch.nn.Linear with a copy of the weight."""
    outputs, inputs = weight.shape
    layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    layer.weight.data.copy_(weight)
    return layer.requires_grad_(False).eval()


def widened(weight):
    """The bfloat16 layer of a CPU without instructions for it."""
    layer = linear(weight, torch.bfloat16)
    widen_products(layer)
    return layer


def packed(weight, dtype):
    return PackedLinear(weight.to(dtype), None)


def ours(weight, kernel, bits):
    return kernel(quantize(weight, bits))


def torchao_layer(weight, config, compiled=False):
    """A layer that torchao quantized; compiled: as its documentation runs it."""
    from torchao.quantization import quantize_

    layer = linear(weight, torch.bfloat16)
    quantize_(layer, config())
    if not compiled:
        return layer
    return lambda x: compiled_linear(x, layer.weight)


@torch.compile
def compiled_linear(x, weight):
    """One compilation for all copies of a layer."""
    return F.linear(x, weight)


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def torchao_int8_dynamic():
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig()


def torchao_int4():
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP)


def bitsandbytes_int8(weight):
    from bitsandbytes.nn import Linear8bitLt

    outputs, inputs = weight.shape
    layer = Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu").eval()


def bitsandbytes_nf4(weight, dtype):
    from bitsandbytes.nn import Linear4bit

    outputs, inputs = weight.shape
    layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=dtype, quant_type="nf4")
    layer.load_state_dict({"weight": weight.to(dtype)})
    return layer.to("cpu").requires_grad_(False).eval()  # the move quantizes


def all_ways():
    single, half = torch.float32, torch.bfloat16
    ao, bnb = "torchao", "bitsandbytes"
    return [
        Way("float32: F.linear", single, 4, linear),
        Way("float32: packed (ours)", single, 4, partial(packed, dtype=single)),
        Way("bfloat16: F.linear", half, 2, partial(linear, dtype=half)),
        Way("bfloat16: widened (ours)", half, 2, widened),
        Way("int8: TorchInt8 (ours)", half, 1, partial(ours, kernel=TorchInt8, bits=8)),
        Way("int8: dequantized", half, 1, partial(ours, kernel=Dequantized, bits=8)),
        Way("int8: torchao", half, 1, partial(torchao_layer, config=torchao_int8), ao),
        Way(
            "int8: torchao, compiled",
            half,
            1,
            partial(torchao_layer, config=torchao_int8, compiled=True),
            ao,
        ),
        Way(
            "int8 x int8: torchao",
            half,
            1,
            partial(torchao_layer, config=torchao_int8_dynamic),
            ao,
        ),
        Way(
            "int8 x int8: torchao, compiled",
            half,
            1,
            partial(torchao_layer, config=torchao_int8_dynamic, compiled=True),
            ao,
        ),
        Way("int8 x int8: bitsandbytes", half, 1, bitsandbytes_int8, bnb),
        Way("int4: TorchInt4 (ours)", half, 0.5, partial(ours, kernel=TorchInt4, bits=4)),
        Way("int4: dequantized", half, 0.5, partial(ours, kernel=Dequantized, bits=4)),
        Way(
            "int4: torchao (prototype)",
            half,
            0.5,
            partial(torchao_layer, config=torchao_int4),
            ao,
        ),
        Way("nf4, bfloat16: bitsandbytes", half, 0.5, partial(bitsandbytes_nf4, dtype=half), bnb),
        Way(
            "nf4, float32: bitsandbytes", single, 0.5, partial(bitsandbytes_nf4, dtype=single), bnb
        ),
    ]


class Layers:
    """The copies of one way's layer, called in turn."""

    def __init__(self, way, weight, inputs, megabytes):
        self.way, self.calls = way, 0
        self.inputs = {rows: x.to(way.dtype) for rows, x in inputs.items()}
        self.seconds = {rows: [] for rows in inputs}

        copies = round(megabytes * 1e6 / (weight.numel() * way.bytes_per_weight))
        self.layers = [way.build(weight) for _ in range(max(2, copies))]
        self.outputs = {rows: self.call(rows) for rows in inputs}  # also compiles

    def call(self, rows):
        self.calls += 1
        return self.layers[self.calls % len(self.layers)](self.inputs[rows])

    def time(self, rows, repeats):
        """Note the seconds of some calls, each by itself."""
        for _ in range(repeats):
            start = time.perf_counter()
            self.call(rows)
            self.seconds[rows].append(time.perf_counter() - start)

    def error(self, wanted):
        """Relative error of the output for the most rows."""
        got = self.outputs[max(ROWS)].float()
        return ((got - wanted).norm() / wanted.norm()).item()


def build(way, weight, inputs, megabytes):
    """The way's Layers, or in one line why there are none."""
    if importlib.util.find_spec(way.library) is None:
        return "not installed"
    try:
        return Layers(way, weight, inputs, megabytes)
    except (RuntimeError, NotImplementedError, ImportError, AttributeError, TypeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def row_of(way, layers, base, wanted):
    """A row of the table; base: the Layers that ratios compare with."""
    row = {"way": way.name}
    for rows in ROWS:
        row[f"{rows} rows, ms" if rows > 1 else "1 row, ms"] = ""
        row[f"against F.linear, {rows}"] = ""
    row["relative error"] = ""
    if isinstance(layers, str):
        row["1 row, ms"] = layers
        return row
    for rows in ROWS:
        typical = statistics.median(layers.seconds[rows])
        ratio = statistics.median(base.seconds[rows]) / typical
        row[f"{rows} rows, ms" if rows > 1 else "1 row, ms"] = f"{typical * 1e3:.2f}"
        row[f"against F.linear, {rows}"] = f"{ratio:.2f}x"
    row["relative error"] = f"{layers.error(wanted):.1e}"
    return row


def main():
    parser = Parser(__doc__)
    parser.add_argument("--readings", type=int, default=25, help="turns of each way (%(default)s)")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=256,
        help="weights of each way, in MB; more than any cache (%(default)s)",
    )
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator) * SIZE**-0.5
    inputs = {rows: torch.randn(rows, SIZE, generator=generator) for rows in ROWS}
    wanted = F.linear(inputs[max(ROWS)], weight)

    ways = all_ways()
    with torch.inference_mode():
        built = [build(way, weight, inputs, args.megabytes) for way in ways]
        for _ in range(args.readings):
            for layers in built:
                if isinstance(layers, Layers):
                    for rows in ROWS:
                        layers.time(rows, repeats=4 if rows == 1 else 1)

    print(f"{machine()}; {SIZE} x {SIZE}, {args.readings} readings\n")
    table([row_of(way, layers, built[0], wanted) for way, layers in zip(ways, built)])


if __name__ == "__main__":
    main()
