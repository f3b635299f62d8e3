"""Small random checkpoints of transformers' image-text models, made from configurations.

Each is a folder as its project publishes it: weights, configurations, a tokenizer over bytes, the
image processor and a chat template in the manner of the real one.
"""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ROPE = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [2, 3, 3],
    "partial_rotary_factor": 1.0,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "rope_parameters": ROPE,
}
TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 64,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
LLAMA = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
QWEN_WORDS = {
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "image": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "others": ["<|im_start|>", "<|video_pad|>", "<think>", "</think>"],
}
GLM_WORDS = {
    "eos_token": "<|user|>",
    "pad_token": "<|endoftext|>",
    "image": ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    "others": ["[gMASK]", "<sop>", "<|assistant|>", "<|video|>", "<|begin_of_video|>"]
    + ["<|end_of_video|>", "<think>", "</think>", "/nothink"],
}
INTERN_WORDS = QWEN_WORDS | {
    "image": ("<img>", "<IMG_CONTEXT>", "</img>"),
    "named": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<|video_pad|>",
    },
}
SMOL_WORDS = {
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|endoftext|>",
    "image": ("", "<image>", ""),
    "others": ["<fake_token_around_image>", "<global-img>", "<|im_start|>", "<video>"],
}
LLAVA_WORDS = {
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "image": ("", "<image>", ""),
    "others": [],
}


def content(image):
    return (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
        "{% if c.type == 'image' %}" + image + "{% else %}{{ c.text }}{% endif %}{% endfor %}"
        "{% endif %}"
    )


def chatml(image, thinks=False):
    """Qwen's template; thinks: the one of models that think unless told otherwise."""
    ask = "{% if add_generation_prompt %}<|im_start|>assistant\n"
    if thinks:
        ask += "{% if enable_thinking is defined and enable_thinking is false %}"
        ask += "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    own = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        + (own if thinks else "")
        + content(image)
        + "<|im_end|>\n{% endfor %}"
        + ask
        + "{% endif %}"
    )


def glm(image, thinks=False):
    """GLM's template: nothing ends an answer but the next question."""
    off = "{% if enable_thinking is defined and not enable_thinking %}"
    nothink = f"{{% if m.role == 'user' %}}{off}/nothink{{% endif %}}{{% endif %}}"
    empty = "{% if m.role == 'assistant' %}<think></think>\n{% endif %}"
    return (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n"
        + (empty if thinks else "")
        + content(image)
        + (nothink if thinks else "")
        + "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n"
        + (f"{off}<think></think>\n{{% endif %}}" if thinks else "")
        + "{% endif %}"
    )


LLAVA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% endif %}{% endfor %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def make_tokenizer(words):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    named = {key: words[key] for key in ("eos_token", "pad_token", "bos_token") if key in words}
    extra = [word for word in (*words["image"], *words["others"]) if word]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=extra, **named
    )
    if "named" in words:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            additional_special_tokens=extra,
            extra_special_tokens=words["named"],
            **named,
        )
    return tokenizer


def qwen_ids(ids):
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def glm_ids(ids):
    return {
        "image_token_id": ids("<|image|>"),
        "video_token_id": ids("<|video|>"),
        "image_start_token_id": ids("<|begin_of_image|>"),
        "image_end_token_id": ids("<|end_of_image|>"),
        "video_start_token_id": ids("<|begin_of_video|>"),
        "video_end_token_id": ids("<|end_of_video|>"),
    }


QWEN3_TOWER = TOWER | {
    "patch_size": 16,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 64,
}


def qwen3_vl(ids, text=TEXT, tower=QWEN3_TOWER):
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, **qwen_ids(ids))


def qwen2_5_vl(ids):
    tower = TOWER | {"patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56}
    return transformers.Qwen2_5_VLConfig(text_config=TEXT, vision_config=tower, **qwen_ids(ids))


def qwen3_5(ids):
    text = TEXT | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    }
    tower = TOWER | {"patch_size": 16, "num_position_embeddings": 64}
    return transformers.Qwen3_5Config(text_config=text, vision_config=tower, **qwen_ids(ids))


def glm_config(kind):
    def config(ids):
        tower = TOWER | {"patch_size": 14, "image_size": 112}
        text = dict(TEXT)
        return kind(text_config=text, vision_config=tower, **glm_ids(ids))

    return config


def internvl(ids):
    tower = CLIP | {"image_size": [56, 56], "patch_size": [14, 14], "model_type": "internvl_vision"}
    return transformers.InternVLConfig(
        text_config=LLAMA | {"model_type": "qwen2"},
        vision_config=tower,
        image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )


def smolvlm(ids):
    return transformers.SmolVLMConfig(
        text_config=LLAMA | {"model_type": "llama"},
        vision_config=CLIP,
        image_token_id=ids("<image>"),
        scale_factor=2,
    )


def llava(ids):
    return transformers.LlavaConfig(
        text_config=LLAMA | {"model_type": "llama"},
        vision_config=CLIP | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=ids("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
    )


def by_pixels(kind, patch, frames=1):
    """An image processor that keeps an image's shape, with bounds on its pixels."""
    return kind(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": frames * 4 * patch**2, "longest_edge": frames * 1024 * patch**2},
    )


PIL_QWEN = "Qwen2VLImageProcessorPil"
# model type -> configuration, words, template, processor class, image processor
KINDS = {
    "qwen3_vl": (qwen3_vl, QWEN_WORDS, chatml, "Qwen3VLProcessor", (PIL_QWEN, 16)),
    "qwen2_5_vl": (qwen2_5_vl, QWEN_WORDS, chatml, "Qwen2_5_VLProcessor", (PIL_QWEN, 14)),
    "qwen3_5": (qwen3_5, QWEN_WORDS, "thinks", "Qwen3VLProcessor", (PIL_QWEN, 16)),
    "glm4v": (
        glm_config(transformers.Glm4vConfig),
        *(GLM_WORDS, glm, "Glm4vProcessor", ("Glm4vImageProcessorPil", 14)),
    ),
    "glm46v": (
        glm_config(transformers.Glm46VConfig),
        *(GLM_WORDS, "thinks", "Glm46VProcessor", ("Glm46VImageProcessorPil", 14)),
    ),
    "internvl": (internvl, INTERN_WORDS, chatml, "InternVLProcessor", ("GotOcr2", 0)),
    "smolvlm": (smolvlm, SMOL_WORDS, chatml, "SmolVLMProcessor", ("SmolVLM", 0)),
    "llava": (llava, LLAVA_WORDS, None, "LlavaProcessor", ("Llava", 0)),
}
TYPES = tuple(KINDS)


def image_processor(name, patch):
    if patch:
        kind = getattr(transformers, name)
        return by_pixels(kind, patch, 2 if name.startswith("Glm") else 1)
    if name == "GotOcr2":
        size = {"height": 56, "width": 56}
        return transformers.GotOcr2ImageProcessorPil(size=size, crop_to_patches=False)
    if name == "SmolVLM":
        return transformers.SmolVLMImageProcessorPil(
            size={"longest_edge": 224}, max_image_size={"longest_edge": 56}
        )
    size = {"shortest_edge": 56}
    return transformers.LlavaImageProcessorPil(size=size, crop_size={"height": 56, "width": 56})


def template_of(words, template):
    image = "".join(words["image"])
    if template is None:
        return LLAVA_TEMPLATE
    if template == "thinks":
        return (chatml if words is QWEN_WORDS else glm)(image, thinks=True)
    if words is INTERN_WORDS:
        return template("<IMG_CONTEXT>\n")
    return template(image)


def write_checkpoint(kind, folder, configure=None, dtype=torch.float32, device="cpu"):
    """A folder of this model type -> its path.

    configure: ids of the tokenizer's words -> another configuration of the type. Weights are drawn
    on the device.
    """
    folder = Path(folder)
    small, words, template, processor, images = KINDS[kind]
    configure = configure or small
    tokenizer = make_tokenizer(words)
    config = configure(tokenizer.convert_tokens_to_ids)
    config.pad_token_id = tokenizer.pad_token_id

    torch.manual_seed(0)
    with torch.device(device):
        network = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor(*images).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template_of(words, template), encoding="utf-8")

    more = {"processor_class": processor}
    if kind == "internvl":
        more["image_seq_length"] = 4
    if kind == "smolvlm":
        more["image_seq_len"] = 4
    if kind == "llava":
        more |= {"patch_size": 14, "vision_feature_select_strategy": "default"}
        more["num_additional_image_tokens"] = 1
    (folder / "processor_config.json").write_text(json.dumps(more))
    return folder
