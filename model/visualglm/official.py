"""What the official code of THUDM/visualglm-6b reads beside the weights, and what it cannot load.

Source: the five files of that repository (OFFICIAL_FILES). They run with transformers 4.33.3 and
SwissArmyTransformer 0.3.7, whose classes their image encoder is made of; with 4.48.3 the model
computes, but their tokenizer and generation are older; with 5.x they do not load.
"""

import torch

from model.visualglm.layouts import HF_LAYERS

OFFICIAL_FILES = (
    "configuration_chatglm.py",
    "modeling_chatglm.py",
    "quantization.py",
    "tokenization_chatglm.py",
    "visual.py",
)
HUB_NAME = "THUDM/visualglm-6b"
MODEL_CLASS = "modeling_chatglm.ChatGLMForConditionalGenerationWithImage"
# Of config.json: the class behind each Auto class, and what the official code would take
# otherwise. Without the last key transformers replaces the head by the embedding.
CONFIG = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMForConditionalGenerationWithImage"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": MODEL_CLASS,
        "AutoModelForSeq2SeqLM": MODEL_CLASS,
    },
    "position_encoding_2d": True,
    "use_cache": True,
    "tie_word_embeddings": False,
}
CONTROL_TOKENS = {
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "mask_token": "[MASK]",
    "gmask_token": "[gMASK]",
    "pad_token": "<pad>",
}
# Of tokenizer_config.json. The code's own default reserves 20,000 ids for images, which would
# shift every other one.
TOKENIZER_CONFIG = {
    "name_or_path": HUB_NAME,
    **CONTROL_TOKENS,
    "end_token": "</s>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "num_image_tokens": 0,
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
# Numbers that stand in the code itself, whatever config.json says
QUERIES = 32
QFORMER_WIDTH = 768
HIDDEN_SIZE = 4096
IMAGE_SIZE = 224


def token_ids(config, tokenizer):
    """The ids of control tokens for config.json, all of them inside the vocabulary.

    SAT's configuration names neither `<eop>` nor [MASK]; the code's defaults for them are
    those of an older, larger vocabulary, so that no answer would end.
    """
    return {
        "bos_token_id": tokenizer.sop,
        "eos_token_id": tokenizer.eop,
        "gmask_token_id": tokenizer.gmask,
        "mask_token_id": config.get("mask_token_id", tokenizer.gmask - 1),
        "pad_token_id": tokenizer.pad,
    }


def rotary_buffers(config):
    """Rotary frequencies of every layer, which the official code stores beside the weights.

    name -> float32 [d / 4], for heads of width d.
    """
    half = config["hidden_size"] // config["num_attention_heads"] // 2
    frequencies = 10000 ** (-torch.arange(0, half, 2).float() / half)
    return {
        f"transformer.layers.{layer}.attention.rotary_emb.inv_freq": frequencies.clone()
        for layer in range(config["num_layers"])
    }


def obstacles(config, tokenizer):
    """What keeps the official code from reading this network as it is -> list of short texts."""
    written = {
        "hidden_size": (config["hidden_size"], HIDDEN_SIZE),
        "image_length": (config["image_length"], QUERIES),
        "qformer vocab_size": (config["qformer_args"]["vocab_size"], QUERIES),
        "qformer hidden_size": (config["qformer_args"]["hidden_size"], QFORMER_WIDTH),
        "residual scale, in layers": (
            config.get("residual_layers", config["num_layers"]),
            HF_LAYERS,
        ),
        "image_size": (config["eva_args"]["image_size"], [IMAGE_SIZE, IMAGE_SIZE]),
    }
    found = []
    for name, (value, expected) in written.items():
        if value != expected:
            found.append(f"{name} is {value}, {expected} is written into it")

    ids = token_ids(config, tokenizer)
    for name, piece in CONTROL_TOKENS.items():
        # mask_token never occurs in a prompt
        if name != "mask_token" and tokenizer.pieces.piece_to_id(piece) != ids[f"{name}_id"]:
            found.append(f"the vocabulary has no {piece} with the id {ids[f'{name}_id']}")
    return found
