"""VisualGLM for other programs: merged (SAT's or Hugging Face's layout), as PEFT, quantized.

Every folder appears complete or not at all; all functions raise UserError where it cannot be
written.
"""

import json
import re
import shutil

import torch
from safetensors.torch import save_file

from model.errors import UserError
from model.visualglm.checkpoint import new_checkpoint, write_card, write_folder
from model.visualglm.layouts import HF_LAYERS, HF_PARTS, QKV, heads_first, hf_name
from model.visualglm.lora import lora_layers, merge
from model.visualglm.quantization import quantized_tensors
from model.visualglm.tokenizer import VOCABULARY
from model.weight_files import CONFIG

SHARD_BYTES = 2e9
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
    """The merged network as THUDM/visualglm-6b stores it: config.json, safetensors shards, index.

    Its code (the .py files of that repository) is not ours to write; copy it beside to load the
    folder with transformers.
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
        (new / "config.json").write_text(json.dumps(_hf_config(network), indent=2))
        _write_beside(new, card, tokenizer)


def _shards(network):
    """The weights under Hugging Face's names and in its order, in dicts of about SHARD_BYTES."""
    shards, size = [{}], 0
    for name, tensor in network.state_dict().items():
        if QKV.fullmatch(name):
            tensor = heads_first(tensor, network.config.num_attention_heads)
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        size += tensor.nbytes
        shards[-1][hf_name(name)] = tensor
    return shards


def _hf_config(network):
    theirs = {ours: theirs for theirs, ours in HF_PARTS.items()}
    config = {theirs.get(key, key): value for key, value in vars(network.config).items()}
    config |= {
        "model_type": "chatglm",
        "architectures": ["ChatGLMForConditionalGenerationWithImage"],
        "position_encoding_2d": True,
        "torch_dtype": str(network.dtype).removeprefix("torch."),
        "residual_layers": config.get("residual_layers", config["num_layers"]),
    }
    if config["residual_layers"] == HF_LAYERS:
        del config["residual_layers"]  # what their code does anyway
    return config


@torch.no_grad()
def to_peft(folder, network, base, trained_parts=()):
    """LoRA as the peft library reads it, over the Hugging Face names of the weights.

    base: the base's name in its config; trained_parts: of the checkpoint, must be empty. A fused
    layer has one pair of matrices there: A of its projections stacked, B block-diagonal, rank and
    alpha times the number of projections.
    """
    layers = lora_layers(network)
    if not layers:
        raise UserError("the peft format stores LoRA; this checkpoint has none")
    if trained_parts:
        raise UserError(
            "the peft format stores LoRA alone, and this checkpoint also holds whole trained "
            "parts; merge it (sat or hf)"
        )
    tensors, ranks, alphas = {}, {}, {}
    for name, lora in layers.items():
        projections = len(lora.matrix_A)
        a = torch.cat(list(lora.matrix_A))
        b = torch.block_diag(*lora.matrix_B)
        if QKV.fullmatch(f"{name}.weight"):
            b = heads_first(b, network.config.num_attention_heads)
        target = hf_name(name)
        tensors[f"base_model.model.{target}.lora_A.weight"] = a.cpu().contiguous()
        tensors[f"base_model.model.{target}.lora_B.weight"] = b.cpu().contiguous()
        ranks[target] = projections * lora.r
        alphas[target] = projections * lora.lora_alpha

    targets = sorted(ranks)
    config = PEFT_FIELDS | {
        "base_model_name_or_path": str(base),
        "r": ranks[targets[0]],
        "lora_alpha": alphas[targets[0]],
        "rank_pattern": {f"^{re.escape(name)}$": rank for name, rank in ranks.items()},
        "alpha_pattern": {f"^{re.escape(name)}$": alpha for name, alpha in alphas.items()},
        # A pattern: a list would be compared with the ends of names, and the image encoder has
        # layers of the same names
        "target_modules": "|".join(map(re.escape, targets)),
    }
    with new_checkpoint(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", {"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=2))


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
