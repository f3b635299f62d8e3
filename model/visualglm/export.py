"""Write a loaded network for others: merged into one checkpoint in SAT's or Hugging Face's layout, as a PEFT adapter, or
quantized. Each folder appears complete or not at all; all functions raise UserError where it cannot be written.
"""

import json
import re
import shutil

import torch
from safetensors.torch import save_file

from model.errors import UserError
from model.find import find_checkpoint
from model.visualglm.loading import load, lora_layers, new_folder, write_folder
from model.visualglm.quantization import QuantizedLinear, quantized_tensors
from model.visualglm.stored import (
    HF_LAYERS,
    HF_PARTS,
    QKV,
    Stored,
    fingerprint,
    heads_first,
    hf_name,
)
from model.visualglm.tokenizer import VOCABULARY, Tokenizer, find_vocabulary
from model.weight_files import ADAPTER, CARD, CONFIG

SHARD_BYTES = 2e9
PEFT_FIELDS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_dropout": 0.0,
}


@torch.no_grad()
def merge(network):
    """Add LoRA to the weights it stands beside, in float32, and take it out of the network. Raises UserError."""
    if "ptuning" in network.mixins:
        raise UserError(
            "P-tuning adds keys and values, not weights: it cannot be merged; keep its adapter folder"
        )
    if any(isinstance(module, QuantizedLinear) for module in network.modules()):
        raise UserError(
            "quantized weights cannot be merged into: load the checkpoint in full precision"
        )
    for name, lora in lora_layers(network).items():
        linear = lora.original
        change = torch.cat(
            [b.float() @ a.float() * lora.scaling for a, b in zip(lora.matrix_A, lora.matrix_B)]
        )
        linear.weight.copy_(linear.weight.float() + change)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, linear)


def full_card(card):
    """What a checkpoint without adapter says of itself; it still knows the question it was trained on."""
    return {"format": 1, "method": {"name": "full"}, "base": None} | {
        key: card[key] for key in ("prompt",) if key in card
    }


def _explain(folder, card, tokenizer):
    (folder / CARD).write_text(
        json.dumps(full_card(card), indent=2, ensure_ascii=False), encoding="utf-8"
    )
    shutil.copy(tokenizer.path, folder / VOCABULARY)


def to_sat(folder, network, tokenizer, card):
    """The merged network as SwissArmyTransformer reads it (`latest`, `1/mp_rank_00_model_states.pt`)."""
    config = dict(vars(network.config))
    if config.pop("residual_layers", config["num_layers"]) != config["num_layers"]:
        raise UserError(
            f"SAT scales residuals by the depth: a network of {config['num_layers']} layers that was trained as if it "
            f"had {HF_LAYERS} cannot be stored in its layout; use the hf format"
        )
    merge(network)
    with new_folder(folder) as new:
        (new / "1").mkdir()
        torch.save(
            {"module": {name: tensor.cpu() for name, tensor in network.state_dict().items()}},
            new / "1" / "mp_rank_00_model_states.pt",
        )
        (new / "latest").write_text("1")
        (new / CONFIG).write_text(json.dumps({"model_class": "VisualGLMModel"} | config, indent=2))
        _explain(new, card, tokenizer)


def to_huggingface(folder, network, tokenizer, card):
    """The merged network as THUDM/visualglm-6b stores it: config.json and safetensors shards with their index.

    Its code (the .py files of that repository) is not ours to write; copy it beside to load the folder with transformers.
    """
    merge(network)
    config = {
        next((theirs for theirs, ours in HF_PARTS.items() if ours == key), key): value
        for key, value in vars(network.config).items()
    }
    config |= {
        "model_type": "chatglm",
        "architectures": ["ChatGLMForConditionalGenerationWithImage"],
        "position_encoding_2d": True,
        "torch_dtype": str(network.dtype).removeprefix("torch."),
        "residual_layers": config.get("residual_layers", config["num_layers"]),
    }
    if config["residual_layers"] == HF_LAYERS:
        del config["residual_layers"]  # what their code does anyway
    shards, size = [{}], 0
    for name, tensor in network.state_dict().items():
        tensor = (
            heads_first(tensor, config["num_attention_heads"]) if QKV.fullmatch(name) else tensor
        )
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        size += tensor.nbytes
        shards[-1][hf_name(name)] = tensor
    with new_folder(folder) as new:
        index = {
            "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard.values())},
            "weight_map": {},
        }
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in shard.items()},
                new / file,
                {"format": "pt"},
            )
            index["weight_map"] |= dict.fromkeys(shard, file)
        (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        (new / "config.json").write_text(json.dumps(config, indent=2))
        _explain(new, card, tokenizer)


@torch.no_grad()
def to_peft(folder, network, base):
    """LoRA as the peft library reads it, over the Hugging Face names of the weights; base: what it calls the base.

    A fused layer has one pair of matrices there: A of its parts stacked, B block-diagonal, rank and alpha times the parts.
    """
    layers = lora_layers(network)
    if not layers:
        raise UserError("the peft format stores LoRA; this checkpoint has none")
    if getattr(network, "base_values", None):
        raise UserError(
            "the peft format stores LoRA alone, and this checkpoint also holds whole trained parts; merge it (sat or hf)"
        )
    tensors, ranks, alphas = {}, {}, {}
    for name, lora in layers.items():
        parts = len(lora.matrix_A)
        b = torch.block_diag(*lora.matrix_B)
        if QKV.fullmatch(f"{name}.weight"):
            b = heads_first(b, network.config.num_attention_heads)
        target = hf_name(name)
        tensors[f"base_model.model.{target}.lora_A.weight"] = (
            torch.cat(list(lora.matrix_A)).cpu().contiguous()
        )
        tensors[f"base_model.model.{target}.lora_B.weight"] = b.cpu().contiguous()
        ranks[target], alphas[target] = parts * lora.r, parts * lora.lora_alpha
    targets = sorted(ranks)
    # As a pattern: a list would be compared with the ends of names, and the image encoder has layers of the same names.
    config = PEFT_FIELDS | {
        "base_model_name_or_path": str(base),
        "r": ranks[targets[0]],
        "lora_alpha": alphas[targets[0]],
        "rank_pattern": {f"^{re.escape(name)}$": rank for name, rank in ranks.items()},
        "alpha_pattern": {f"^{re.escape(name)}$": alpha for name, alpha in alphas.items()},
        "target_modules": "|".join(map(re.escape, targets)),
    }
    with new_folder(folder) as new:
        save_file(tensors, new / "adapter_model.safetensors", {"format": "pt"})
        (new / "adapter_config.json").write_text(json.dumps(config, indent=2))


def to_quantized(folder, name, bits, **options):
    """A checkpoint, merged, with the language model's weights in 8 or 4 bits; loading it never needs the full weights.

    A base is read tensor by tensor, so that this too needs little memory. name and options as for checkpoint.load.
    """
    source = find_checkpoint(name, options.get("download"))
    if (source / ADAPTER).is_file() or (stored := Stored(source)).method:
        network, tokenizer, card = load(name, **options)
        merge(network)
        config, tensors = vars(network.config), network.state_dict()
        items, mark = tensors.items(), fingerprint(tensors)
    else:
        config, card, mark = stored.config, stored.card, stored.fingerprint()
        tokenizer = Tokenizer(find_vocabulary(source, options.get("tokenizer")), config)
        items = ((name, stored.read(name)) for name in stored.names)
    if "quantization" in card:
        raise UserError(f"checkpoint {source} is quantized already")
    write_folder(
        folder,
        card=full_card(card) | {"quantization": {"bits": bits}, "fingerprint": mark},
        config=config,
        tokenizer=tokenizer,
        tensors=dict(quantized_tensors(items, bits)),
    )
