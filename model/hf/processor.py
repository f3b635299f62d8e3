"""A base's tokenizer, image processor and chat template, without torchvision.

Images are always processed by the PIL classes, also where torchvision is installed: its pixels
differ (by up to 0.03 of a standard deviation), and training and answering must see the same.
"""

import inspect
import json
import math
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from model.errors import UserError
from model.files import read_json
from model.hf.types import COUNTS_FRAMES

MAX_PIXELS = 768 * 768  # of an image, unless another bound is asked for
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
# What a folder has beside weights and configuration
FILES = (
    PREPROCESSOR,
    PROCESSOR,
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
WORDS = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.model", "*.tiktoken")


def has_processor(folder: Path) -> bool:
    """Whether a folder, maybe an adapter's, brings an image processor and a tokenizer."""
    return _has_images(folder) and _has_words(folder)


def _has_images(folder):
    return any((folder / name).is_file() for name in (PREPROCESSOR, PROCESSOR))


def _has_words(folder):
    return any(any(folder.glob(pattern)) for pattern in WORDS)


def load_processor(folder: Path, config: transformers.PreTrainedConfig) -> Any:
    """The processor of a folder, for images and text. Raises UserError."""
    # transformers would go on with an empty vocabulary
    if not _has_words(folder):
        raise UserError(
            f"checkpoint {folder}: no tokenizer; expected tokenizer.json beside the weights; fetch "
            "it again"
        )
    if not _has_images(folder):
        raise UserError(
            f"checkpoint {folder}: no image processor; expected {PREPROCESSOR} or {PROCESSOR} "
            "beside the weights; fetch it again"
        )
    if type(config) not in PROCESSOR_MAPPING:
        raise UserError(
            f"checkpoint {folder}: model_type {config.model_type!r} has no processor for images "
            "and text in transformers; name another base"
        )
    kind = _without_video(PROCESSOR_MAPPING[type(config)])
    try:
        processor = kind.from_pretrained(folder, backend="pil", local_files_only=True)
    except (OSError, ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"checkpoint {folder}: its tokenizer or image processor cannot be read ({reason}); "
            "fetch the files that are missing again"
        ) from None
    if not _template(processor):
        raise UserError(
            f"checkpoint {folder}: no chat template, so it was not made to answer questions; name "
            "its version for dialogues (often -Instruct or -it), or fetch chat_template.jinja"
        )
    processor.chat_template = _template(processor)
    return processor


def _template(processor):
    """The one chat template for dialogues."""
    template = processor.chat_template or processor.tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _without_video(kind):
    """The processor class without its video processor, which needs torchvision.

    Of the same name: it is written into the files, and AutoProcessor looks it up.
    """
    parameters = inspect.signature(kind.__init__).parameters
    wants_video = "video_processor" in parameters
    needs_video = wants_video and parameters["video_processor"].default is inspect.Parameter.empty

    def get_attributes(cls):
        return [name for name in kind.get_attributes() if "video" not in name]

    def arguments(cls, *args, **options):
        found = kind._get_arguments_from_pretrained.__func__(cls, *args, **options)
        return [*found, None] if needs_video else found

    changed = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(arguments),
    }
    return type(kind.__name__, (kind,), changed)


# Bounds on an image's pixels


def pixel_bounds(image_processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    """Attributes of an image processor that bound an image to so many pixels; {}: it has none.

    None keeps the processor's own least, and of its own most no more than MAX_PIXELS.
    """
    size = dict(image_processor.size or {})
    if hasattr(image_processor, "merge_size") and "longest_edge" in size:
        return _bounded_area(image_processor, size, least, most)
    if hasattr(image_processor, "max_patches"):  # tiles of one size and a small copy of the whole
        tiles = max(1, (most or MAX_PIXELS) // (size["height"] * size["width"]))
        return {"max_patches": tiles if most else min(tiles, image_processor.max_patches)}
    if hasattr(image_processor, "max_image_size"):  # the same, chosen by the longest edge
        tile = image_processor.max_image_size["longest_edge"]
        tiles = max(1, math.isqrt(most or MAX_PIXELS) // tile)
        if not most:
            tiles = min(tiles, max(1, size["longest_edge"] // tile))
        return {"size": {"longest_edge": tiles * tile}, "do_image_splitting": tiles > 1}
    return {}


def _bounded_area(image_processor, size, least, most):
    """Of processors that keep an image's shape and bound its area, which they call edges."""
    kind = type(image_processor).__name__
    frames = image_processor.temporal_patch_size if kind.startswith(COUNTS_FRAMES) else 1
    unit = (image_processor.patch_size * image_processor.merge_size) ** 2  # pixels of one token
    most = max(unit, most or min(MAX_PIXELS, size["longest_edge"] // frames))
    least = max(unit, least or min(most, size["shortest_edge"] // frames))
    return {"size": {"shortest_edge": frames * least, "longest_edge": frames * most}}


def set_bounds(image_processor: Any, bounds: dict[str, Any]) -> None:
    for name, value in bounds.items():
        kept = getattr(image_processor, name)
        is_size = isinstance(value, dict) and not isinstance(kept, dict)
        setattr(image_processor, name, type(kept)(**value) if is_size else value)


def copy_files(source: Path, target: Path, bounds: dict[str, Any]) -> None:
    """Copy what a folder has beside weights and configuration, with the bounds written in."""
    for pattern in FILES:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)
    for name in (PREPROCESSOR, PROCESSOR):
        if (target / name).is_file():
            _write_bounds(target / name, bounds)


def _write_bounds(path, bounds):
    content = read_json(path, "image processor", dict)
    place = content
    if path.name == PROCESSOR:
        place = content.get("image_processor")
        if not isinstance(place, dict):
            return
    if "size" in bounds:  # names that older releases wrote, which would come before
        place.pop("min_pixels", None)
        place.pop("max_pixels", None)
    place |= bounds
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
