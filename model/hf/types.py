"""Which model types are accepted, and the one table of what they need beyond transformers.

Accepted is whatever transformers lists as image-text-to-text and brings a chat template.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from packaging.version import InvalidVersion, Version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from model.errors import UserError

# Part -> the modules it is made of, by their names anywhere in the tree. The projector may lie
# inside the vision part; what is neither is the language model.
PROJECTOR = (
    "merger",  # Qwen-VL, GLM-V
    "deepstack_merger_list",  # Qwen3-VL
    "downsample",  # GLM-V, before its merger
    "multi_modal_projector",  # LLaVA, InternVL, Gemma 3, Mistral 3
    "image_newline",  # LLaVA-NeXT
    "connector",  # SmolVLM, Idefics
    "aligner",  # Janus, DeepSeek-VL
    "modality_projection",
    "vision_projection",
)
VISION = (
    "visual",
    "vision_tower",
    "vision_model",
    "vision_encoder",
    "high_res_vision_model",
)
# Variables by which chat templates turn thinking off; one that a template does not know has no
# effect on it
NO_THINKING = {"enable_thinking": False, "thinking": False}
# Image processors that count the pixels of every frame, and an image as two frames
COUNTS_FRAMES = ("Glm4v", "Glm46V")


def part_of(name: str) -> str:
    """vision, projector or language: the part that a parameter or module belongs to."""
    path = name.split(".")
    if any(word in PROJECTOR for word in path):
        return "projector"
    if any(word in VISION for word in path):
        return "vision"
    return "language"


def names_of(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Those of the names that belong to one of the parts."""
    wanted = set(parts)
    return [name for name in names if part_of(name) in wanted]


def check_type(config: dict[str, Any], path: Path) -> None:
    """UserError for a config.json of a model that this family does not open."""
    kind = config["model_type"]
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return
    start = f"{path}: model_type {kind!r}"
    if kind not in CONFIG_MAPPING_NAMES and config.get("auto_map"):
        raise UserError(
            f"{start} needs code of its own (auto_map), and foreign code is never run; look for "
            "its conversion for transformers, often published as <name>-HF"
        )
    if kind not in CONFIG_MAPPING_NAMES and _is_newer(config.get("transformers_version")):
        raise UserError(
            f"{start} is not known to transformers {transformers.__version__}, it was written by "
            f"{config['transformers_version']}: pip install -U transformers"
        )
    problem = f"transformers {transformers.__version__} does not know it"
    if kind in CONFIG_MAPPING_NAMES:
        problem = "it does not answer questions about images"
    raise UserError(
        f"{start}, expected one of visualglm, chatglm or an image-text-to-text type of "
        f"transformers ({problem}); name another base"
    )


def _is_newer(version):
    """Whether a version as a config names it is above the one here."""
    try:
        return Version(str(version)) > Version(transformers.__version__)
    except InvalidVersion:
        return False
