"""What fine-tuning adds to VisualGLM: LoRA (SAT's), P-tuning v2 prefixes, and whole trained parts.

A method is a dict as an adapter's card stores it: {"name": "lora", "rank", "alpha", "layers",
"dropout", "targets"} or {"name": "ptuning", "length"}, and {"name": "full"}; "parts" names parts
of the network that are trained in full beside an adapter.
References: LoRA https://arxiv.org/abs/2106.09685, P-tuning v2 https://arxiv.org/abs/2110.07602.
"""

import math
from contextlib import contextmanager

import torch

from model.errors import UserError
from model.float_products import linear
from model.quantization import QuantizedLinear
from model.visualglm.network import PARTS
from model.visualglm.sat import LoraLinear, PTuningV2Mixin

LORA_TARGETS = ("attention", "mlp", "vision", "projection")
PTUNING = "mixins.ptuning."
MAX_SIZE = 100_000  # of a rank or a prefix; what is above is a damaged card


class Lora(LoraLinear):
    """SAT's LoRA around any linear layer: also one on a GPU, quantized, or on the meta device.

    The layer stays the very same object, and so does its place in memory.
    """

    def __init__(self, linear, projections, rank, alpha, dropout, device, dtype):
        """projections: how many the layer fuses (3 for q, k, v); each gets matrices of its own."""
        inputs = getattr(linear, "in_features", None) or linear.input_size  # torch's name, SAT's
        outputs = getattr(linear, "out_features", None) or linear.output_size
        with torch.device("meta"):
            shape = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
            super().__init__(
                torch.nn.Linear,
                projections,
                inputs,
                outputs,
                rank,
                alpha,
                dropout,
                original_obj=shape,
            )
        self.original = linear
        for matrices in (self.matrix_A, self.matrix_B):
            for index, matrix in enumerate(matrices):
                matrices[index] = torch.nn.Parameter(torch.zeros_like(matrix, device=device))
        for matrix in self.matrix_A:
            torch.nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def factors(self):
        """The two factors of what is added to the weight: [projections * rank, K], [N, the same].

        One pair of products then serves all projections that the layer fuses.
        """
        return torch.cat(list(self.matrix_A)), torch.block_diag(*self.matrix_B) * self.scaling

    def forward(self, x):
        """[..., K] -> [..., N]"""
        down, up = self.factors()
        added = linear(linear(self.lora_dropout(x), down), up)
        return added.add_(self.original(x))


def _lora_places(network, layers, targets):
    """Yield (parent module, name of its linear layer, how many projections that layer fuses)."""
    for index in layers:
        layer = network.transformer.layers[index]
        if "attention" in targets:
            yield layer.attention, "query_key_value", 3
            yield layer.attention, "dense", 1
        if "mlp" in targets:
            yield layer.mlp, "dense_h_to_4h", 1
            yield layer.mlp, "dense_4h_to_h", 1

    encoder = network.mixins["eva"].model
    if "vision" in targets:
        for layer in encoder.vit.transformer.layers:
            yield layer.attention, "query_key_value", 3
            yield layer.attention, "dense", 1
    if "projection" in targets:
        yield encoder, "glm_proj", 1


def add_lora(network, rank, alpha, layers, dropout=0.0, targets=("attention",)):
    """Add LoRA, scaled by alpha / rank, to the targets.

    layers: indices of language-model layers; targets: attention (q, k, v and output) and mlp of
    those layers, vision (attention of the whole tower), projection.
    """
    for parent, name, projections in _lora_places(network, layers, targets):
        linear = getattr(parent, name)
        added = Lora(linear, projections, rank, alpha, dropout, network.device, network.dtype)
        setattr(parent, name, added)


def add_ptuning(network, length):
    """Add P-tuning v2: a trained prefix of `length` keys and values in every layer."""
    config = network.config
    heads = config.num_attention_heads
    mixin = PTuningV2Mixin(config.num_layers, config.hidden_size // heads, heads, length)
    network.add_mixin("ptuning", mixin.to(network.device, network.dtype))


def check_method(method, depth):
    """UserError for a method, as of a card, that a network of so many layers cannot have."""
    if "peft" in method:
        raise UserError(
            "an adapter of PEFT over VisualGLM is for peft itself, over what --format hf wrote; "
            "here name the adapter that it was exported from"
        )
    wanted = {"lora": ("rank", "layers"), "ptuning": ("length",), "full": ()}
    name = method.get("name")
    if name not in wanted:
        raise UserError(f"method {name!r}: expected one of {', '.join(wanted)}")
    for key in wanted[name]:
        value = method.get(key)
        is_number = type(value) is int and 1 <= value <= MAX_SIZE
        if key != "layers" and not is_number:
            raise UserError(f"method {name}: {key} is {value!r}, expected 1 to {MAX_SIZE:,}")

    layers = method.get("layers", [])
    if not isinstance(layers, list) or any(type(layer) is not int for layer in layers):
        raise UserError(f"method {name}: layers must be a list of whole numbers")
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside:
        raise UserError(
            f"layer_range names layers {outside[:9]}; the network has layers 0-{depth - 1}"
        )


def add_method(network, method):
    """Add the tensors that the method trains; "full" adds none. Raises UserError."""
    check_method(method, network.config.num_layers)
    if method["name"] == "lora":
        add_lora(
            network,
            method["rank"],
            method["alpha"],
            method["layers"],
            method.get("dropout", 0.0),
            method.get("targets", ("attention",)),
        )
    elif method["name"] == "ptuning":
        add_ptuning(network, method["length"])


def lora_layers(network):
    """name -> LoRA layer"""
    return {name: module for name, module in network.named_modules() if isinstance(module, Lora)}


def adapter_names(network):
    """Names of the tensors that LoRA or P-tuning added."""
    added = set()
    for name in lora_layers(network):
        added.update((f"{name}.matrix_A", f"{name}.matrix_B"))

    def is_added(name):
        return name.startswith(PTUNING) or name.rpartition(".")[0] in added

    return [name for name, _ in network.named_parameters() if is_added(name)]


def part_names(network, parts):
    """Names of the parameters of whole parts (keys of PARTS), without LoRA's."""
    prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
    if not prefixes:
        return []
    added = set(adapter_names(network))
    return [
        name
        for name, _ in network.named_parameters()
        if name.startswith(prefixes) and name not in added
    ]


@contextmanager
def without_adapter(network, base_values=None):
    """Inside, the network computes what its base computes.

    base_values: the base's tensors by name, of the parts that were trained in full.
    """
    base_values = base_values or {}
    tuned_values = {name: network.get_parameter(name).data for name in base_values}
    layers = lora_layers(network).values()
    scales = [layer.scaling for layer in layers]
    prefix = network.mixins["ptuning"] if "ptuning" in network.mixins else None

    def put(values):
        for name, value in values.items():
            network.get_parameter(name).data = value

    try:
        put(base_values)
        for layer in layers:
            layer.scaling = 0.0
        if prefix is not None:
            network.del_mixin("ptuning")
        yield
    finally:
        put(tuned_values)
        for layer, scale in zip(layers, scales):
            layer.scaling = scale
        if prefix is not None:
            network.add_mixin("ptuning", prefix)


@torch.no_grad()
def merge(network):
    """Add LoRA to the weights beside it, in float32, and take it out of the network.

    Raises UserError for what cannot be merged: P-tuning, and LoRA over quantized weights.
    """
    if "ptuning" in network.mixins:
        raise UserError(
            "P-tuning adds keys and values, not weights: it cannot be merged; "
            "keep its adapter folder"
        )
    if any(isinstance(module, QuantizedLinear) for module in network.modules()):
        raise UserError(
            "quantized weights cannot be merged into: load the checkpoint in full precision"
        )
    for name, lora in lora_layers(network).items():
        layer, (down, up) = lora.original, lora.factors()
        layer.weight.copy_(layer.weight.float() + up.float() @ down.float())
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer)
