"""Checkpoints: load a network from any readable folder, add what fine-tuning trains, write folders that explain themselves.

Readable: what `stored.py` lists (SAT, Hugging Face, this project's full checkpoints, quantized ones, the ancestor's full
LoRA checkpoints) and this project's adapters over any of them. A written folder holds `remoteglm.json`, which says what
it is, `model_config.json`, the vocabulary, and `adapter.safetensors` (trained tensors only) or `model.safetensors`.
"""

import json
import math
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.errors import UserError
from model.files import read_json, sha256
from model.find import find_checkpoint
from model.visualglm.network import PARTS, VisualGLM
from model.visualglm.quantization import (
    BITS,
    QuantizedLinear,
    is_quantized,
    quantized_shells,
    quantized_tensors,
)
from model.visualglm.sat import LoraLinear, PTuningV2Mixin
from model.visualglm.stored import Stored, read_config
from model.visualglm.tokenizer import VOCABULARY, Tokenizer, find_vocabulary
from model.weight_files import ADAPTER, CARD, CONFIG, FULL

PROJECT = Path(__file__).resolve().parents[2]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LARGE = 1e9  # parameters from which a CPU takes bfloat16: VisualGLM-6B is 31 GB in float32


def choose_device(name=None):
    """torch.device for a name; None takes the first of cuda, mps, cpu that works. Raises UserError."""
    if name is None:
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu"
        ) from None
    return device


def choose_dtype(name, device, network=None, bits=None):
    """torch.dtype for a name. None takes float16 on a GPU (VisualGLM's own); on a CPU float32, and bfloat16 for a large or
    quantized network (what its fast kernels compute in)."""
    if name is None:
        large = network is not None and sum(p.numel() for p in network.parameters()) >= LARGE
        return (
            torch.float16
            if device.type != "cpu"
            else torch.bfloat16
            if large or bits
            else torch.float32
        )
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_fit(shapes, expected, source):
    """UserError that lists what is missing, unexpected or of another shape. Both: name -> shape."""
    wrong = [f"missing {name}" for name in sorted(set(expected) - set(shapes))]
    wrong += [f"unexpected {name}" for name in sorted(set(shapes) - set(expected))]
    wrong += [
        f"{name} has shape {list(shapes[name])}, expected {list(expected[name])}"
        for name in sorted(set(expected) & set(shapes))
        if shapes[name] != expected[name]
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(f"{source}: {len(wrong)} tensors do not fit the network: {shown}")


def _place(network, tensors, device, dtype):
    """Give the network tensors (name, tensor), each moved alone to where and what it is to be."""
    placed = {}
    for name, tensor in tensors:
        # A copy: what is memory-mapped from a file must not change when the file is written anew.
        placed[name] = tensor.to(
            device="cpu" if name.startswith(network.on_cpu) else device,
            dtype=tensor.dtype if is_quantized(name, tensor) else dtype,
            copy=True,
        )
    network.load_state_dict(placed, strict=False, assign=True)


def _fill(network, stored, device, dtype, bits):
    plain = {name: parameter.shape for name, parameter in network.state_dict().items()}
    if bits:
        quantized_shells(network, bits)
    own = {name: parameter.shape for name, parameter in network.state_dict().items()}
    expected = own if "quantization" in stored.card else plain
    _check_fit(
        {name: stored.shape(name) for name in stored.names}, expected, f"checkpoint {stored.folder}"
    )
    tensors = ((name, stored.read(name)) for name in stored.names)
    _place(network, quantized_tensors(tensors, bits) if bits else tensors, device, dtype)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.pack()


def build(config_path, tokenizer_path, device, dtype):
    """A network from nothing (random weights) with its tokenizer. Returns (network, tokenizer, config)."""
    config = read_config(config_path)
    tokenizer = Tokenizer(find_vocabulary(Path(config_path).parent, tokenizer_path), config)
    return VisualGLM(config).to(device=device, dtype=dtype), tokenizer, config


def load_base(
    name,
    tokenizer_path=None,
    device=torch.device("cpu"),
    dtype=None,
    bits=None,
    download=None,
    encoder_on_cpu=False,
):
    """A network in evaluation mode, filled tensor by tensor straight on its device in its dtype.

    name: a folder, or a name to look up; dtype: a name of DTYPES, "stored", or None to choose; bits: 8 or 4 quantizes (a quantized
    folder keeps its own); download: see find.py; encoder_on_cpu: the image encoder visits the GPU layer by layer.
    Returns (network, tokenizer, Stored); what a full LoRA checkpoint of the ancestor adds is not in yet. Raises UserError.
    """
    stored = Stored(find_checkpoint(name, download))
    if "quantization" in stored.card:
        own = stored.card["quantization"]["bits"]
        if bits not in (None, own):
            raise UserError(
                f"checkpoint {stored.folder} holds {own}-bit weights, --quant {bits} was asked for; leave it out"
            )
        bits = own
    if bits not in (None, *BITS):
        raise UserError(f"quantization to {bits} bits: expected 8 or 4")
    tokenizer = Tokenizer(find_vocabulary(stored.folder, tokenizer_path), stored.config)
    network = VisualGLM(stored.config, device="meta", init=False)
    dtype = stored.dtype if dtype == "stored" else choose_dtype(dtype, device, network, bits)
    if device.type == "cuda" and (bits == 4 or encoder_on_cpu):
        network.keep_on_cpu(embeddings=bits == 4)
    _fill(network, stored, device, dtype, bits)
    network.bits = bits
    return network.eval(), tokenizer, stored


class Lora(LoraLinear):
    """SAT's LoRA around any linear layer, which stays the very same object: also one on a GPU, quantized or on meta."""

    def __init__(self, linear, parts, rank, alpha, dropout, device, dtype):
        """parts: how many projections the layer fuses (3 for q, k, v); each gets matrices of its own."""
        inputs = (
            getattr(linear, "in_features", None) or linear.input_size
        )  # torch's name, SAT's name
        outputs = getattr(linear, "out_features", None) or linear.output_size
        with torch.device("meta"):
            shape = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype)
            super().__init__(
                torch.nn.Linear, parts, inputs, outputs, rank, alpha, dropout, original_obj=shape
            )
        self.original = linear
        for matrices in (self.matrix_A, self.matrix_B):
            for index, matrix in enumerate(matrices):
                matrices[index] = torch.nn.Parameter(torch.zeros_like(matrix, device=device))
        for matrix in self.matrix_A:
            torch.nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))


LORA_TARGETS = ("attention", "mlp", "vision", "projection")


def _lora_places(network, layers, targets):
    """(parent module, name of its linear layer, how many projections that fuses) for LoRA's targets."""
    for index in layers:
        layer = network.transformer.layers[index]
        if "attention" in targets:
            yield from ((layer.attention, "query_key_value", 3), (layer.attention, "dense", 1))
        if "mlp" in targets:
            yield from ((layer.mlp, "dense_h_to_4h", 1), (layer.mlp, "dense_4h_to_h", 1))
    encoder = network.mixins["eva"].model
    if "vision" in targets:
        for layer in encoder.vit.transformer.layers:
            yield from ((layer.attention, "query_key_value", 3), (layer.attention, "dense", 1))
    if "projection" in targets:
        yield encoder, "glm_proj", 1


def add_lora(network, rank, alpha, layers, dropout=0.0, targets=("attention",)):
    """LoRA on the targets: attention (q, k, v and output) and mlp of the given language-model layers, attention of the whole
    vision tower, the projection."""
    depth = network.config.num_layers
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside:
        raise UserError(f"layer_range names layers {outside}; the network has layers 0-{depth - 1}")
    for parent, name, parts in _lora_places(network, layers, targets):
        setattr(
            parent,
            name,
            Lora(getattr(parent, name), parts, rank, alpha, dropout, network.device, network.dtype),
        )


def add_ptuning(network, length):
    """P-tuning v2: a trained prefix of keys and values in every layer."""
    config = network.config
    heads = config.num_attention_heads
    mixin = PTuningV2Mixin(config.num_layers, config.hidden_size // heads, heads, length)
    network.add_mixin("ptuning", mixin.to(network.device, network.dtype))


def add_method(network, method):
    """Prepare the network for {"name": "lora", "rank", "alpha", "layers", "targets"} or {"name": "ptuning", "length"}."""
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
    return {
        name: module for name, module in network.named_modules() if isinstance(module, LoraLinear)
    }


def adapter_names(network):
    """Names of the tensors that LoRA or P-tuning added."""
    lora = [
        f"{name}.{matrix}" for name in lora_layers(network) for matrix in ("matrix_A", "matrix_B")
    ]
    return [
        name
        for name, _ in network.named_parameters()
        if name.startswith("mixins.ptuning.") or name.rpartition(".")[0] in lora
    ]


def part_names(network, parts):
    """Names of the parameters of whole parts (keys of PARTS), LoRA's left out."""
    begins = tuple(begin for part in parts for begin in PARTS[part])
    added = set(adapter_names(network))
    return [
        name
        for name, _ in network.named_parameters()
        if begins and name.startswith(begins) and name not in added
    ]


@contextmanager
def without_adapter(network):
    """Inside, the network computes what its base computes."""
    lora = lora_layers(network).values()
    scales = [module.scaling for module in lora]
    prefix = network.mixins["ptuning"] if "ptuning" in network.mixins else None
    base = getattr(network, "base_values", {})
    tuned = {name: network.get_parameter(name).data for name in base}

    def put(values):
        for name, value in values.items():
            network.get_parameter(name).data = value

    try:
        put(base)
        for module in lora:
            module.scaling = 0.0
        if prefix is not None:
            network.del_mixin("ptuning")
        yield
    finally:
        put(tuned)
        for module, scale in zip(lora, scales):
            module.scaling = scale
        if prefix is not None:
            network.add_mixin("ptuning", prefix)


def _add_adapter(network, method, tensors, source, device, dtype):
    add_method(network, method)
    own, parts = network.state_dict(), part_names(network, method.get("parts", ()))
    _check_fit(
        {name: tensor.shape for name, tensor in tensors.items()},
        {name: own[name].shape for name in (*adapter_names(network), *parts)},
        source,
    )
    network.base_values = {name: own[name] for name in parts}  # what `without_adapter` puts back
    _place(network, tensors.items(), device, dtype)


def load(name, *, base=None, tokenizer=None, device=None, dtype=None, bits=None, download=None):
    """Any readable folder, or a name to look up -> (network, tokenizer, card). The card of a plain base is {}.

    base overrides where an adapter looks for its base; the others as for load_base. Raises UserError.
    """
    folder, device = find_checkpoint(name, download), choose_device(device)
    options = {"device": device, "dtype": dtype, "bits": bits, "download": download}
    if not (folder / ADAPTER).is_file():
        network, words, stored = load_base(folder, tokenizer, **options)
        card = stored.card
        if stored.method:
            card = card | {
                "method": stored.method,
                "base": {"path": str(folder), "fingerprint": stored.fingerprint()},
            }
            _add_adapter(
                network,
                stored.method,
                {name: stored.read(name) for name in stored.adapter},
                f"checkpoint {folder}",
                network.device,
                network.dtype,
            )
        return network.eval(), words, card
    card = read_json(folder / CARD, "checkpoint card", dict)
    if not {"base", "method"} <= set(card) or not card["base"]:
        raise UserError(
            f"adapter {folder}: {CARD} does not say what its base is; copy the folder again"
        )
    wanted, given = card["base"]["path"], base
    if base is None:
        base = next(
            (place for place in (PROJECT / wanted, folder / wanted) if place.is_dir()), wanted
        )
    try:
        base = find_checkpoint(base, download)
    except UserError as error:
        raise UserError(
            f"adapter {folder}: its base is not at {base}; "
            + ("name it with --base_path. " if given is None else "")
            + str(error)
        ) from None
    if (base / ADAPTER).is_file():
        raise UserError(f"adapter {folder}: {base} is an adapter, too, not its base")
    seal = folder / "complete.json"  # of a training run, see run_folder.py
    if seal.is_file() and read_json(seal, "list of hashes", dict).get(ADAPTER) != sha256(
        folder / ADAPTER
    ):
        raise UserError(
            f"adapter {folder}: {ADAPTER} is not what training wrote (its hash differs from {seal.name}); copy it again"
        )
    network, words, stored = load_base(base, tokenizer or folder / VOCABULARY, **options)
    mark = stored.fingerprint()
    if mark != card["base"]["fingerprint"]:
        raise UserError(
            f"adapter {folder}: {base} is not the base it was trained on (fingerprint {mark}, expected "
            f"{card['base']['fingerprint']}); name the right one with --base_path"
        )
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"adapter {folder}: {ADAPTER} cannot be read ({error}); copy it again"
        ) from None
    _add_adapter(
        network, card["method"], tensors, f"adapter {folder}", network.device, network.dtype
    )
    return network.eval(), words, card


def portable(name):
    """A base as a checkpoint names it: relative to the project where it lies inside; a looked-up name as it is."""
    if not Path(name).is_dir():
        return str(name)
    path = find_checkpoint(name).resolve()  # the step that an experiment stands for today
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


@contextmanager
def new_folder(folder):
    """A folder to write into; it appears under its name complete or not at all. Raises UserError when it cannot."""
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    file.chmod(
                        0o644
                    )  # safetensors writes for the owner alone; a lab shares its checkpoints
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
    ) as error:  # the latter two: a full disk, in safetensors' and torch.save's words
        raise UserError(
            f"checkpoint {folder} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from None


def write_folder(folder, *, card, config, tokenizer, tensors):
    """Write a full checkpoint or an adapter (by card["method"]); the folder appears complete or not at all.

    tensors: name -> tensor, stored as they are. Raises UserError when the place cannot be written.
    """
    with new_folder(folder) as new:
        name = FULL if card["method"]["name"] == "full" else ADAPTER
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in tensors.items()}, new / name
        )
        (new / CONFIG).write_text(json.dumps(config, indent=2))
        (new / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
        shutil.copy(tokenizer.path, new / VOCABULARY)
