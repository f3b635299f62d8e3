"""VisualGLM's checkpoint folders: reading them in every layout, filling a network, writing them.

SAT: `latest`, `<step>/mp_rank_00_model_states.pt`, `model_config.json`. Hugging Face: `config.json`
with `pytorch_model*.bin` or `model*.safetensors`. This project: `model_config.json`, the
vocabulary, `remoteglm.json` (the card) and `adapter.safetensors` or `model.safetensors`.
Files are memory-mapped and unpickled with `weights_only=True`: opening one costs no memory and
runs nobody's code.
"""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.errors import UserError
from model.files import diagnosis, replacing_folder
from model.quantization import QuantizedLinear, chosen_bits, is_quantized
from model.visualglm.layouts import QKV, parts_first, read_config, sat_name
from model.visualglm.lora import PTUNING, adapter_names, add_method, part_names
from model.visualglm.network import VisualGLM
from model.visualglm.quantization import CpmKernels, quantized_shells, quantized_tensors
from model.visualglm.tokenizer import VOCABULARY, Tokenizer, find_vocabulary
from model.weight_files import ADAPTER, CARD, CONFIG, FULL, fingerprint, read_card, weight_files

LORA_MATRIX = re.compile(r"(.*)\.matrix_([AB])\.(\d+)")
# Parameters from which a CPU takes bfloat16: VisualGLM-6B is 31 GB in float32
LARGE = 1e9
# numpy's random state, which upstream's training script stores, and where numpy 1 kept the
# function that restores it
RANDOM_STATE = [
    _reconstruct,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
]


@dataclass
class Stored:
    """The tensors of one checkpoint folder, under SAT's names; made by `open_stored`.

    A full LoRA or P-tuning checkpoint of upstream is taken apart: `names` are the base's tensors,
    `adapter` those that were trained beside it, `method` what they are (None for a plain base).
    """

    folder: Path
    config: dict  # in SAT's form
    card: dict  # {} if the folder has none
    readers: dict[str, Callable[[], torch.Tensor]]
    hf_heads: int | None  # attention heads where fused rows stand in Hugging Face's order

    @property
    def adapter(self):
        return [name for name in self.readers if _is_adapter(name)]

    @property
    def names(self):
        return [name for name in self.readers if not _is_adapter(name)]

    @property
    def dtype(self):
        """Of the weights that are never quantized. Raises UserError where they are missing."""
        name = "transformer.final_layernorm.weight"
        if name not in self.readers:
            raise UserError(f"checkpoint {self.folder}: 1 tensors do not fit: missing {name}")
        return self.readers[name]().dtype

    def shape(self, name):
        return self.readers[name]().shape

    def read(self, name):
        """A tensor as it is stored, its rows in SAT's order; memory-mapped where possible."""
        tensor = self.readers[name]()
        if self.hf_heads and QKV.fullmatch(name):
            return parts_first(tensor, self.hf_heads)
        return tensor

    @property
    def method(self):
        """What upstream trained, told from its tensors: LoRA's alpha is always 1 there."""
        prefixes = [name for name in self.adapter if name.startswith(PTUNING)]
        if prefixes:
            return {"name": "ptuning", "length": self.read(prefixes[0]).size(2)}
        matrices = [name for name in self.adapter if LORA_MATRIX.fullmatch(name)[2] == "A"]
        if not matrices:
            return None
        layers = {int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in matrices}
        return {
            "name": "lora",
            "rank": self.read(matrices[0]).size(0),
            "alpha": 1.0,
            "layers": sorted(layers),
        }

    def fingerprint(self):
        """The base's, the same for every layout; a quantized one carries that of its source."""
        if "fingerprint" in self.card:
            return self.card["fingerprint"]
        return fingerprint({name: self.read(name) for name in self.names})


def _is_adapter(name):
    return name.startswith(PTUNING) or LORA_MATRIX.fullmatch(name) is not None


def open_stored(folder):
    """A checkpoint folder -> Stored.

    Raises UserError for what is missing, cut short or unreadable.
    """
    folder = Path(folder)
    huggingface = not (folder / CONFIG).is_file() and (folder / "config.json").is_file()
    config = read_config(folder / ("config.json" if huggingface else CONFIG))
    card = read_card(folder)

    readers = {}
    for path in weight_files(folder):
        for name, read in _tensors_of(path).items():
            # The official code stores these beside the weights; they are computed here
            if name.endswith("rotary_emb.inv_freq"):
                continue
            name = sat_name(name) if huggingface else name
            readers[name.replace(".original.", ".")] = read
    heads = config["num_attention_heads"] if huggingface else None
    return Stored(folder, config, card, readers, heads)


def _tensors_of(path):
    """One weight file -> {name: function that reads the tensor}. Raises UserError that names it."""
    try:
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt")
            return {name: lambda name=name: file.get_tensor(name) for name in file.keys()}
        state = _unpickled(path)
        if path.suffix == ".pt":
            state = state["module"]
        if not all(isinstance(name, str) and torch.is_tensor(t) for name, t in state.items()):
            raise TypeError("not a table of tensors by name")
        return {name: lambda tensor=tensor: tensor for name, tensor in state.items()}
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {path.parent}: {path.name} is missing; fetch it again"
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint {path}: the weights cannot be read: {_unpickling_problem(error, path)}"
        ) from None
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"checkpoint {path}: the weights cannot be read ({reason}){diagnosis(path)}"
        ) from None


def _unpickling_problem(error, path):
    """Our words for torch's, which end in advice to run the file's code."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if not foreign:
        return f"they are no table of tensors{diagnosis(path)}"
    return (
        f"a pickle that calls {foreign[1]}, which could do anything on this machine. Nothing of it "
        "was run; get the weights as safetensors, or a file that holds tensors alone"
    )


def _unpickled(path):
    with open(path, "rb") as file:
        mapped = file.read(2) == b"PK"  # torch's older format cannot be mapped
    with torch.serialization.safe_globals(RANDOM_STATE):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def choose_dtype(dtype, device, parameters=0, bits=None):
    """A torch.dtype as it is; for None float16 on a GPU (VisualGLM's own), on a CPU float32.

    A network of LARGE parameters or more, or a quantized one, is bfloat16 on a CPU: that is what
    the fast kernels compute in.
    """
    if dtype is not None:
        return dtype
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if parameters >= LARGE or bits else torch.float32


def load_base(
    stored,
    tokenizer=None,
    device=torch.device("cpu"),  # noqa: B008  (a device is immutable)
    dtype=None,
    bits=None,
    vision_on_cpu=False,
):
    """A network in evaluation mode, filled tensor by tensor straight on its device in its dtype.

    stored: a Stored, or its folder; tokenizer: vocabulary file or folder, None looks for it;
    dtype: torch.dtype, "stored", or None to choose; bits: 8 or 4 quantizes, a quantized folder
    keeps its own; vision_on_cpu: the image encoder visits the GPU layer by layer.
    Returns (network, Tokenizer); what upstream's adapter adds is not in yet. Raises UserError.
    """
    stored = stored if isinstance(stored, Stored) else open_stored(stored)
    bits = chosen_bits(stored.card, bits, f"checkpoint {stored.folder}")
    words = Tokenizer(find_vocabulary(stored.folder, tokenizer), stored.config)
    network = VisualGLM(stored.config, device="meta", init=False)
    if dtype == "stored":
        dtype = stored.dtype
    parameters = sum(p.numel() for p in network.parameters())
    dtype = choose_dtype(dtype, device, parameters, bits)
    if device.type == "cuda" and (bits == 4 or vision_on_cpu):
        network.keep_on_cpu(embeddings=bits == 4)
    fill(network, stored, device, dtype, bits)
    network.bits = bits
    return network.eval(), words


def fill(network, stored, device, dtype, bits=None):
    """Give a network on the meta device its weights. Raises UserError where they do not fit."""
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if bits:
        quantized_shells(network, bits)
    if "quantization" in stored.card:
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found = {name: stored.shape(name) for name in stored.names}
    _check_fit(found, shapes, f"checkpoint {stored.folder}")

    tensors = ((name, stored.read(name)) for name in stored.names)
    _place(network, quantized_tensors(tensors, bits) if bits else tensors, device, dtype)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.pack((CpmKernels,))


def fill_adapter(network, method, tensors, source):
    """Add what the method trained, with its tensors by name -> the base's values of whole parts.

    source: named in the message of UserError, which lists tensors that do not fit.
    """
    add_method(network, method)
    own = network.state_dict()
    parts = part_names(network, method.get("parts", ()))
    expected = {name: own[name].shape for name in (*adapter_names(network), *parts)}
    _check_fit({name: tensor.shape for name, tensor in tensors.items()}, expected, source)
    _place(network, tensors.items(), network.device, network.dtype)
    return {name: own[name] for name in parts}


def _check_fit(shapes, expected, source):
    """UserError that lists what is missing, unexpected or of another shape. Both: name -> shape."""
    wrong = [f"missing {name}" for name in sorted(set(expected) - set(shapes))]
    wrong += [f"unexpected {name}" for name in sorted(set(shapes) - set(expected))]
    for name in sorted(set(expected) & set(shapes)):
        if shapes[name] != expected[name]:
            wrong.append(f"{name} has shape {list(shapes[name])}, expected {list(expected[name])}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{source}: {len(wrong)} tensors do not fit the network: {'; '.join(wrong[:5])}{more}"
        )


def _place(network, tensors, device, dtype):
    """Give the network tensors (name, tensor), each moved alone to its device and dtype."""
    placed = {}
    for name, tensor in tensors:
        # A copy: what is memory-mapped from a file must not change when the file is rewritten
        placed[name] = tensor.to(
            device="cpu" if name.startswith(network.on_cpu) else device,
            dtype=tensor.dtype if is_quantized(name, tensor) else dtype,
            copy=True,
        )
    network.load_state_dict(placed, strict=False, assign=True)


@contextmanager
def new_checkpoint(folder):
    """A folder to write into, which appears complete or not at all. Raises UserError."""
    try:
        with replacing_folder(folder) as new:
            yield new
    # A full disk, in the words of the file system, safetensors and torch.save
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"checkpoint {folder} cannot be written: {reason}") from None


def write_folder(folder, *, card, config, tokenizer, tensors):
    """Write a full checkpoint or an adapter (by card["method"]), whole or not at all.

    tensors: name -> tensor, stored in its dtype. Raises UserError where it cannot be written.
    """
    with new_checkpoint(folder) as new:
        name = FULL if card["method"]["name"] == "full" else ADAPTER
        on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(on_cpu, new / name)
        (new / CONFIG).write_text(json.dumps(config, indent=2))
        write_card(new, card)
        shutil.copy(tokenizer.path, new / VOCABULARY)


def write_card(folder, card):
    text = json.dumps(card, indent=2, ensure_ascii=False)
    (Path(folder) / CARD).write_text(text, encoding="utf-8")
