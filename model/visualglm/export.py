"""VisualGLM for other programs: merged (SAT's or Hugging Face's layout), as PEFT, quantized.

Every folder appears complete or not at all; all functions raise UserError where it cannot be
written.
"""

import json
import re
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from model.errors import UserError
from model.files import PROJECT
from model.find import BASE
from model.visualglm import official
from model.visualglm.checkpoint import new_checkpoint, write_card, write_folder
from model.visualglm.layouts import HF_LAYERS, HF_PARTS, QKV, heads_first, hf_name
from model.visualglm.lora import lora_layers, merge
from model.visualglm.quantization import quantized_tensors
from model.visualglm.tokenizer import VOCABULARY
from model.weight_files import CONFIG, HF_CONFIG

SHARD_BYTES = 2e9
VISION = "mixins.eva.model.vit."
PEFT_FIELDS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_dropout": 0.0,
}


def full_card(card):
    """The card of a checkpoint without adapter; it still knows the question of its training."""
    kept = {key: card[key] for key in ("prompt", "english") if key in card}
    return {"format": 1, "method": {"name": "full"}, "base": None} | kept


def _write_beside(folder, card, tokenizer):
    write_card(folder, full_card(card))
    shutil.copy(tokenizer.path, folder / VOCABULARY)


def to_sat(folder, network, tokenizer, card):
    """The merged network as SAT reads it (`latest`, `1/mp_rank_00_model_states.pt`)."""
    config = dict(vars(network.config))
    depth = config["num_layers"]
    if config.pop("residual_layers", depth) != depth:
        raise UserError(
            f"SAT scales residuals by the depth: a network of {depth} layers that was trained as "
            f"if it had {HF_LAYERS} cannot be stored in its layout; use the hf format"
        )
    merge(network)
    tensors = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    with new_checkpoint(folder) as new:
        (new / "1").mkdir()
        torch.save({"module": tensors}, new / "1" / "mp_rank_00_model_states.pt")
        (new / "latest").write_text("1")
        (new / CONFIG).write_text(json.dumps({"model_class": "VisualGLMModel"} | config, indent=2))
        _write_beside(new, card, tokenizer)


def to_huggingface(folder, network, tokenizer, card):
    """The merged network as THUDM/visualglm-6b stores it: configurations, safetensors, index.

    With the official code beside (its files are not ours to write) transformers loads the folder.
    """
    merge(network)
    shards = _shards(network)
    weight_map = {}
    with new_checkpoint(folder) as new:
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            on_cpu = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
            save_file(on_cpu, new / file, {"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        config = _hf_config(network, tokenizer)
        (new / HF_CONFIG).write_text(json.dumps(config, indent=2))
        words = official.TOKENIZER_CONFIG | {"model_max_length": config["max_sequence_length"]}
        (new / "tokenizer_config.json").write_text(json.dumps(words, indent=2))
        _write_beside(new, card, tokenizer)


def remarks(form, network, tokenizer):
    """What the user should know of an hf or peft export, line by line; others need none."""
    if form not in ("hf", "peft"):
        return []
    obstacles = official.obstacles(vars(network.config), tokenizer)
    if obstacles:
        return [
            "VisualGLM-6B's official code for transformers, which this is for, does not read a "
            f"network of this kind: {'; '.join(obstacles)}"
        ]
    if form == "peft":
        return []
    return [
        f"for transformers 4.33.3 copy {', '.join(official.OFFICIAL_FILES)} of "
        f"{official.HUB_NAME} into the folder (4.48.3 loads the model, not its tokenizer)"
    ]


def _shards(network):
    """The weights under Hugging Face's names and in its order, in dicts of about SHARD_BYTES."""
    shards, size = [official.rotary_buffers(vars(network.config))], 0
    for name, tensor in network.state_dict().items():
        if QKV.fullmatch(name):
            tensor = heads_first(tensor, network.config.num_attention_heads)
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        size += tensor.nbytes
        shards[-1][hf_name(name)] = tensor
    return shards


def _hf_config(network, tokenizer):
    own = vars(network.config)
    theirs = {ours: theirs for theirs, ours in HF_PARTS.items()}
    config = {theirs.get(key, key): value for key, value in own.items()}
    config |= official.CONFIG | official.token_ids(own, tokenizer)
    config |= {
        "torch_dtype": str(network.dtype).removeprefix("torch."),
        "residual_layers": config.get("residual_layers", config["num_layers"]),
    }
    if config["residual_layers"] == HF_LAYERS:
        del config["residual_layers"]  # what their code does anyway
    return config


@torch.no_grad()
def to_peft(folder, network, base, trained_parts=()):
    """LoRA as the peft library reads it, over the Hugging Face names of the weights.

    base: the base's name or folder; trained_parts: of the checkpoint, must be empty. A fused
    layer has one pair of matrices there: A of its projections stacked, B block-diagonal, the rank
    times the number of projections. Layers of fewer projections are filled up with zeros to that
    rank: what releases of peft know of ranks that differ, and by which keys, differs itself.
    """
    layers = lora_layers(network)
    _check_peft(layers, trained_parts)
    tensors = {}
    rank = max(len(lora.matrix_A) * lora.r for lora in layers.values())
    for name, lora in layers.items():
        a = torch.cat(list(lora.matrix_A))
        b = torch.block_diag(*lora.matrix_B)
        unused = rank - len(a)
        a, b = F.pad(a, (0, 0, 0, unused)), F.pad(b, (0, unused))
        if QKV.fullmatch(f"{name}.weight"):
            b = heads_first(b, network.config.num_attention_heads)
        target = hf_name(name)
        tensors[f"base_model.model.{target}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"base_model.model.{target}.lora_B.weight"] = b.cpu().contiguous()

    config = PEFT_FIELDS | {
        "base_model_name_or_path": _peft_base(base),
        "r": rank,
        "lora_alpha": rank * lora.scaling,  # the same scale in every layer
        # A pattern: a list would be compared with the ends of names, and the image encoder has
        # layers of the same names
        "target_modules": "|".join(re.escape(hf_name(name)) for name in layers),
    }
    with new_checkpoint(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", {"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=2))


def _check_peft(layers, trained_parts):
    """UserError for what peft cannot put over the official model. layers: LoRA's, by name."""
    if not layers:
        raise UserError("the peft format stores LoRA; this checkpoint has none")
    if trained_parts:
        raise UserError(
            "the peft format stores LoRA alone, and this checkpoint also holds whole trained "
            "parts; merge it (sat or hf)"
        )
    vision = [name for name in layers if name.startswith(VISION)]
    if vision:
        raise UserError(
            f"the peft format cannot hold {len(vision)} of {len(layers)} LoRA layers, those of the "
            "vision tower: the official model has SwissArmyTransformer's layers there, which peft "
            "does not know; merge it (--format hf)"
        )


def _peft_base(base):
    """The base as peft may look it up: VisualGLM's public name, an hf folder, or nothing.

    base: a name, or a folder as a card names it.
    """
    if base is None:
        return None
    folder = Path(base)
    # As a folder is called by hand, and in the cache of Hugging Face
    in_cache = any(part.endswith(f"--{BASE}") for part in folder.parts)
    if folder.name == BASE or in_cache:
        return official.HUB_NAME
    for place in (folder, PROJECT / folder):
        if place.is_dir():
            # Other layouts only this project and SAT read
            return str(place.resolve()) if (place / HF_CONFIG).is_file() else None
    return str(base)


def to_quantized(folder, tensors, bits, *, config, tokenizer, card, fingerprint):
    """Full-precision tensors (name, tensor) -> a folder with the language model in 8 or 4 bits.

    The tensors are read one by one, so that a base needs little memory. card and fingerprint:
    of what they come from.
    """
    card = full_card(card) | {"quantization": {"bits": bits}, "fingerprint": fingerprint}
    write_folder(
        folder,
        card=card,
        config=config,
        tokenizer=tokenizer,
        tensors=dict(quantized_tensors(tensors, bits)),
    )
