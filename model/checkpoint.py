"""Checkpoints: find, read and write them. A folder explains itself.

Readable: SAT folders (`latest`, `<step>/mp_rank_00_model_states.pt`, `model_config.json`), full checkpoints of this
project (`model_config.json`, `model.safetensors`) and its adapters (`adapter.safetensors`). The last two hold
`remoteglm.json`, which says what they are, and the vocabulary. Every missing, unexpected or wrongly shaped tensor is an
error that lists it; files are read with `weights_only=True` and memory-mapped, straight into the target dtype.
"""
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import UserError
from .sat_import import LoraLinear, LoraMixin, PTuningV2Mixin
from .tokenizer import FILE_NAME as VOCABULARY
from .tokenizer import Tokenizer
from .visualglm import IGNORED_BUFFERS, VisualGLM

PROJECT = Path(__file__).resolve().parent.parent
CONFIG, CARD = "model_config.json", "remoteglm.json"
FULL, ADAPTER = "model.safetensors", "adapter.safetensors"
CONFIG_KEYS = ("num_layers", "hidden_size", "inner_hidden_size", "num_attention_heads", "vocab_size", "layernorm_order",
               "max_sequence_length", "layernorm_epsilon", "image_length", "eva_args", "qformer_args", "bos_token_id",
               "gmask_token_id", "pad_token_id")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_json(path, what):
    """The object in a JSON file. Raises UserError in one line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{what} {path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what} {path}: not readable as JSON ({error})") from None


def read_config(path):
    """`model_config.json` of a network, checked for the keys that the network needs."""
    config = read_json(path, "network configuration")
    missing = [key for key in CONFIG_KEYS if key not in config]
    if missing:
        raise UserError(f"{path}: not the configuration of a VisualGLM network; it lacks {', '.join(missing)}")
    return config


def choose_device(name=None):
    """torch.device for a name; None takes the first of cuda, mps, cpu that works. Raises UserError."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def choose_dtype(name, device):
    """torch.dtype for a name; None takes float16 on a GPU (VisualGLM's own) and float32 on a CPU."""
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _sat_file(folder):
    tag = (folder / "latest").read_text().strip()
    return folder / (tag if tag == "release" or not tag.isdigit() else str(int(tag))) / "mp_rank_00_model_states.pt"


def _read_tensors(folder):
    """name -> tensor of a base folder, memory-mapped. Raises UserError."""
    full = folder / FULL
    try:
        if full.is_file():
            with safe_open(full, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        path = _sat_file(folder)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["module"]
        return {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED_BUFFERS)}
    except FileNotFoundError as error:
        raise UserError(f"checkpoint {folder}: no weights; expected {FULL}, or SAT's latest and "
                        f"<step>/mp_rank_00_model_states.pt ({Path(error.filename).name} is missing)") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, OSError) as error:
        raise UserError(f"checkpoint {folder}: the weights cannot be read ({str(error).splitlines()[0]}); "
                        "fetch them again and compare the file size with the source's") from None


def fingerprint(config, tensors):
    """A short hash that tells one base from another: names, shapes and 64 sampled values of every tensor."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        flat = tensors[name].reshape(-1)
        sample = flat[:: max(1, flat.numel() // 64)][:64].float().numpy()
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:16]


def _fill(network, tensors, device, dtype, source, expected=None):
    """Give the network the tensors; expected limits which of its names must come (default: all)."""
    own = network.state_dict()
    expected = set(own) if expected is None else set(expected)
    wrong = [f"missing {name}" for name in sorted(expected - set(tensors))]
    wrong += [f"unexpected {name}" for name in sorted(set(tensors) - expected)]
    wrong += [f"{name} has shape {list(tensors[name].shape)}, expected {list(own[name].shape)}"
              for name in sorted(expected & set(tensors)) if tensors[name].shape != own[name].shape]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(f"{source}: {len(wrong)} tensors do not fit the network: {shown}")
    # A copy: what is memory-mapped from a file must not change when the file is written anew.
    moved = {name: tensors[name].to(device=device, dtype=dtype, copy=True) for name in expected}
    network.load_state_dict(moved, strict=False, assign=True)


def resolve(folder):
    """An experiment folder stands for the checkpoint that its `latest` names. Raises UserError for no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder}: no such folder; expected one with {CONFIG} and weights")
    if (folder / CONFIG).is_file() or not (folder / "latest").is_file():
        return folder
    return folder / (folder / "latest").read_text().strip()


def find_vocabulary(folder, given=None):
    """The vocabulary file: as given, else in the checkpoint folder. Raises UserError that names the places."""
    places = [Path(given)] if given else [Path(folder) / VOCABULARY]
    for place in places:
        place = place / VOCABULARY if place.is_dir() else place
        if place.is_file():
            return place
    raise UserError(f"vocabulary not found: looked at {', '.join(map(str, places))}; put {VOCABULARY} (2.7 MB, part of "
                    "THUDM/chatglm-6b) into the checkpoint folder or name it with --tokenizer")


def build(config_path, tokenizer_path, device, dtype):
    """A network from nothing (random weights) with its tokenizer. Returns (network, tokenizer, config)."""
    config = read_config(config_path)
    tokenizer = Tokenizer(find_vocabulary(Path(config_path).parent, tokenizer_path), config)
    return VisualGLM(config).to(device=device, dtype=dtype), tokenizer, config


def load_base(folder, tokenizer_path, device, dtype):
    """A base network with its tokenizer. Returns (network, tokenizer, config, fingerprint)."""
    folder = resolve(folder)
    config = read_config(folder / CONFIG)
    tokenizer = Tokenizer(find_vocabulary(folder, tokenizer_path), config)
    tensors = _read_tensors(folder)
    network = VisualGLM(config, device="meta", init=False)
    _fill(network, tensors, device, dtype, f"checkpoint {folder}")
    return network.eval(), tokenizer, config, fingerprint(config, tensors)


def add_lora(network, rank, alpha, layers, dropout=0.0):
    """SAT's LoRA on q, k, v and the attention output of the given language-model layers."""
    depth = network.config.num_layers
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside:
        raise UserError(f"layer_range names layers {outside}; the network has layers 0-{depth - 1}")
    network.add_mixin("lora", LoraMixin(depth, rank, alpha, dropout, layer_range=layers), reinit=True)


def add_ptuning(network, length):
    """P-tuning v2: a trained prefix of keys and values in every layer."""
    config = network.config
    heads = config.num_attention_heads
    mixin = PTuningV2Mixin(config.num_layers, config.hidden_size // heads, heads, length)
    network.add_mixin("ptuning", mixin.to(network.device, network.dtype))


def add_method(network, method):
    """Prepare the network for {"name": "lora", "rank", "alpha", "layers"} or {"name": "ptuning", "length"}."""
    if method["name"] == "lora":
        add_lora(network, method["rank"], method["alpha"], method["layers"], method.get("dropout", 0.0))
    elif method["name"] == "ptuning":
        add_ptuning(network, method["length"])


def adapter_names(network):
    """Names of the tensors that LoRA or P-tuning added."""
    lora = [f"{name}.{matrix}" for name, module in network.named_modules() if isinstance(module, LoraLinear)
            for matrix in ("matrix_A", "matrix_B")]
    return [name for name, _ in network.named_parameters()
            if name.startswith("mixins.ptuning.") or name.rpartition(".")[0] in lora]


@contextmanager
def without_adapter(network):
    """Inside, the network computes what its base computes."""
    lora = [module for module in network.modules() if isinstance(module, LoraLinear)]
    scales = [module.scaling for module in lora]
    prefix = network.mixins["ptuning"] if "ptuning" in network.mixins else None
    try:
        for module in lora:
            module.scaling = 0.0
        if prefix is not None:
            network.del_mixin("ptuning")
        yield
    finally:
        for module, scale in zip(lora, scales):
            module.scaling = scale
        if prefix is not None:
            network.add_mixin("ptuning", prefix)


def load(folder, *, base=None, tokenizer=None, device=None, dtype=None):
    """Any readable folder -> (network, tokenizer, card). The card of a plain base is {}.

    base overrides where an adapter looks for its base. Raises UserError.
    """
    folder, device = resolve(folder), choose_device(device)
    dtype = choose_dtype(dtype, device)
    card = read_json(folder / CARD, "checkpoint card") if (folder / CARD).is_file() else {}
    if not (folder / ADAPTER).is_file():
        network, words, _, _ = load_base(folder, tokenizer, device, dtype)
        return network, words, card
    place = Path(base or card["base"]["path"])
    places = [place] if place.is_absolute() or base else [PROJECT / place, folder / place]
    found = next((p for p in places if p.is_dir()), None)
    if found is None:
        raise UserError(f"adapter {folder}: its base is not at {' or '.join(map(str, places))}; name it with --base_path")
    network, words, config, mark = load_base(found, tokenizer or folder / VOCABULARY, device, dtype)
    if mark != card["base"]["fingerprint"]:
        raise UserError(f"adapter {folder}: {found} is not the base it was trained on (fingerprint {mark}, expected "
                        f"{card['base']['fingerprint']}); name the right one with --base_path")
    add_method(network, card["method"])
    try:
        with safe_open(folder / ADAPTER, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"adapter {folder}: {ADAPTER} cannot be read ({error}); copy it again") from None
    _fill(network, tensors, device, dtype, f"adapter {folder}", adapter_names(network))
    return network.eval(), words, card


def portable(path):
    """A path as a checkpoint stores it: relative to the project where it lies inside."""
    path = Path(path).resolve()
    return str(path.relative_to(PROJECT)) if path.is_relative_to(PROJECT) else str(path)


def write_folder(folder, *, card, config, tokenizer, tensors):
    """Write a full checkpoint or an adapter (by card["method"]); the folder appears complete or not at all.

    tensors: name -> tensor, stored as they are. Raises UserError when the place cannot be written.
    """
    folder = Path(folder)
    name = FULL if card["method"]["name"] == "full" else ADAPTER
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            new = Path(scratch) / "new"
            new.mkdir()
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, new / name)
            (new / CONFIG).write_text(json.dumps(config, indent=2))
            (new / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False), encoding="utf-8")
            shutil.copy(tokenizer.path, new / VOCABULARY)
            for file in new.iterdir():
                file.chmod(0o644)  # safetensors writes for the owner alone; a lab shares its checkpoints
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
            if folder.exists():
                os.replace(folder, Path(scratch) / "old")
            os.replace(new, folder)
    except OSError as error:
        raise UserError(f"checkpoint {folder} cannot be written: {error.strerror}") from None
