"""Bases of transformers with the linear layers of the language model in 8 or 4 bits.

On a CPU, and wherever a folder is stored so, they are those of model/quantization.py; a GPU that
quantizes while it loads takes bitsandbytes. Embeddings, head and vision part stay as they are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from model.errors import UserError
from model.hf.types import part_of
from model.nf4 import nf4_linear
from model.quantization import QuantizedLinear

METHOD = "remoteglm"  # quant_method in the config.json of a folder whose weights are stored so


def language_layers(model: Any) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """(parent, name in it, linear layer) of the language model, without its head."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        is_layer = isinstance(module, torch.nn.Linear) and module is not head
        if is_layer and part_of(name) == "language":
            parent, _, child = name.rpartition(".")
            yield model.get_submodule(parent), child, module


def to_nf4(model: Any, device: torch.device) -> None:
    """The linear layers of the language model frozen in 4 bits, on the device. UserError."""
    for parent, name, linear in language_layers(model):
        setattr(parent, name, nf4_linear(linear, device))


def quantize(model: Any, bits: int, device: torch.device) -> None:
    """A model on the CPU in 8 or 4 bits, for answering on the device. Raises UserError."""
    if device.type == "cpu":
        to_stored_form(model, bits)
    elif bits == 4:
        to_nf4(model, device)
    else:
        _to_int8(model, device)


def to_stored_form(model: Any, bits: int) -> None:
    """The layers as a folder stores them. Raises UserError where 4 bits do not fit."""
    for parent, name, linear in language_layers(model):
        setattr(parent, name, QuantizedLinear.of(linear, bits))


def _to_int8(model, device):
    try:
        from bitsandbytes.nn import Linear8bitLt
    except ImportError:
        message = "8-bit weights need bitsandbytes: pip install bitsandbytes==0.50.2"
        raise UserError(message) from None
    for parent, name, linear in language_layers(model):
        new = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
        )
        new.load_state_dict({key: value.cpu() for key, value in linear.state_dict().items()})
        setattr(parent, name, new.requires_grad_(False).to(device))


def pack(model: torch.nn.Module) -> None:
    """Give the stored weights the form of their device's fastest kernel."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.pack()


# By these two transformers reads such a folder: its layers are made empty, then filled


@register_quantization_config(METHOD)
class StoredBits(QuantizationConfigMixin):
    """quantization_config in config.json."""

    def __init__(self, bits: int, **_: Any):
        self.quant_method = METHOD
        self.bits = bits


@register_quantizer(METHOD)
class StoredQuantizer(HfQuantizer):
    """Puts empty layers where the stored ones belong."""

    def _process_model_before_weight_loading(self, model, **_):
        for parent, name, linear in language_layers(model):
            setattr(parent, name, QuantizedLinear.shell(linear, self.quantization_config.bits))

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return False
