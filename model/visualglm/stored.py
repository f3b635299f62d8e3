"""The tensors of a checkpoint folder, whatever wrote it, under the names of SAT's layout.

SAT: `latest`, `<step>/mp_rank_00_model_states.pt`, `model_config.json`. Hugging Face: `config.json` with
`pytorch_model*.bin` or `model*.safetensors`. This project: `model_config.json`, `model.safetensors`, `remoteglm.json`.
Files are memory-mapped and unpickled with `weights_only=True`: opening costs no memory and runs nobody's code.
"""

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from model.errors import UserError
from model.files import diagnosis, read_json
from model.weight_files import CARD, CONFIG, weight_files

CONFIG_KEYS = (
    "num_layers",
    "hidden_size",
    "inner_hidden_size",
    "num_attention_heads",
    "vocab_size",
    "max_sequence_length",
    "layernorm_epsilon",
    "image_length",
    "eva_args",
    "qformer_args",
    "bos_token_id",
    "gmask_token_id",
    "pad_token_id",
)
HF_LAYERS = 28  # written into the Hugging Face code where the residual scale is computed, whatever num_layers says
HF_NAMES = {
    "lm_head.weight": "mixins.chatglm-final.lm_head.weight",
    "image_encoder.": "mixins.eva.model.",
}
HF_PARTS = {"eva_config": "eva_args", "qformer_config": "qformer_args"}
QKV = re.compile(r"transformer\.layers\.\d+\.attention\.query_key_value\.(weight|bias)")
LORA = re.compile(r"(.*)\.matrix_([AB])\.(\d+)")
# numpy's random state, which the ancestor's training script stores, and where numpy 1 kept the function that restores it
RANDOM_STATE = [
    np._core.multiarray._reconstruct,
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
]


def read_config(path):
    """The configuration of a network in SAT's form, checked for the keys that the network needs; Hugging Face's is turned."""
    config = read_json(path, "network configuration", dict)
    if Path(path).name == "config.json":
        config = {HF_PARTS.get(key, key): value for key, value in config.items()}
        config = {"residual_layers": HF_LAYERS, "layernorm_order": "post"} | config
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise UserError(
            f"{path}: not the configuration of a VisualGLM network; it lacks {', '.join(missing)}"
        )
    odd = [
        key
        for key in CONFIG_KEYS
        if not isinstance(config[key], dict if key.endswith("_args") else (int, float))
    ]
    if odd:
        raise UserError(
            f"{path}: {odd[0]} is {config[odd[0]]!r}, expected {'an object' if odd[0].endswith('_args') else 'a number'}; copy it again"
        )
    return config


def heads_first(tensor, heads):
    """Rows of a fused q, k, v weight or bias from SAT's order [3, heads, d] to Hugging Face's [heads, 3, d]."""
    return tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def parts_first(tensor, heads):
    """The way back from `heads_first`."""
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def hf_name(name):
    """A SAT name -> the Hugging Face name of the same tensor."""
    for theirs, ours in HF_NAMES.items():
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


def sat_name(name):
    """The way back from `hf_name`."""
    for theirs, ours in HF_NAMES.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def fingerprint(tensors):
    """A short hash that tells one base from another: names, shapes and 64 sampled values of every tensor."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _open_pickle(path):
    with open(path, "rb") as file:
        mapped = file.read(2) == b"PK"  # torch's older format cannot be mapped
    with torch.serialization.safe_globals(RANDOM_STATE):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _open(path):
    """name -> a function that reads the tensor, for one weight file. Raises UserError that names the file."""
    try:
        if path.suffix == ".safetensors":
            file = safe_open(path, framework="pt")
            return {name: (lambda name=name: file.get_tensor(name)) for name in file.keys()}
        state = _open_pickle(path)
        state = state["module"] if path.suffix == ".pt" else state
        return {name: (lambda tensor=tensor: tensor) for name, tensor in state.items()}
    except FileNotFoundError:
        raise UserError(
            f"checkpoint {path.parent}: {path.name} is missing; fetch it again"
        ) from None
    except (
        SafetensorError,
        pickle.UnpicklingError,
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


class Stored:
    """One checkpoint folder, opened: `config` in SAT's form, `card` ({} if the folder has none), tensors by name.

    A full LoRA or P-tuning checkpoint of the ancestor is told apart: `names` are the base's tensors, `adapter` those
    that were trained beside it, `method` what they are (None for a plain base).
    Raises UserError for anything missing, incomplete or unreadable.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        huggingface = (
            not (self.folder / CONFIG).is_file() and (self.folder / "config.json").is_file()
        )
        self.config = read_config(self.folder / ("config.json" if huggingface else CONFIG))
        self.card = (
            read_json(self.folder / CARD, "checkpoint card", dict)
            if (self.folder / CARD).is_file()
            else {}
        )
        readers = {
            name: read for path in weight_files(self.folder) for name, read in _open(path).items()
        }
        if huggingface:
            readers = {sat_name(name): read for name, read in readers.items()}
        self._heads = self.config["num_attention_heads"] if huggingface else None
        # What the official code stores beside the weights; computed in float32 here.
        self._readers = {
            name.replace(".original.", "."): read
            for name, read in readers.items()
            if not name.endswith("rotary_emb.inv_freq")
        }
        self.adapter = [
            name
            for name in self._readers
            if LORA.fullmatch(name) or name.startswith("mixins.ptuning.")
        ]
        self.names = [name for name in self._readers if name not in set(self.adapter)]
        self.method = self._method()

    @property
    def dtype(self):
        return self._readers["transformer.final_layernorm.weight"]().dtype

    def shape(self, name):
        return self._readers[name]().shape

    def read(self, name):
        """A tensor as it is stored, its rows in SAT's order; memory-mapped where the file allows."""
        tensor = self._readers[name]()
        return parts_first(tensor, self._heads) if self._heads and QKV.fullmatch(name) else tensor

    def _method(self):
        """What the ancestor trained, from its tensors and `model_config.json`: LoRA's alpha is always 1 there."""
        if not self.adapter:
            return None
        prefixes = [name for name in self.adapter if name.startswith("mixins.ptuning.")]
        if prefixes:
            return {"name": "ptuning", "length": self.read(prefixes[0]).size(2)}
        matrices = {
            LORA.fullmatch(name)[1]: name for name in self.adapter if LORA.fullmatch(name)[2] == "A"
        }
        layers = sorted({int(re.search(r"\.layers\.(\d+)\.", name)[1]) for name in matrices})
        return {
            "name": "lora",
            "rank": self.read(next(iter(matrices.values()))).size(0),
            "alpha": 1.0,
            "layers": layers,
        }

    def fingerprint(self):
        """`fingerprint` of the base, the same for every layout; a quantized one carries that of the weights it was made from."""
        return self.card.get("fingerprint") or fingerprint(
            {name: self.read(name) for name in self.names}
        )
