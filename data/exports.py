"""The same rows in the forms that other trainers read, and their pictures as PNG.

remoteglm    {"img", "prompt", "label"}, or {"img", "conversations": [{"role", "content"}, ...]} for dialogues
llamafactory {"messages": [{"role", "content": "<image>Q"}, ...], "images": [img]}, and dataset_info.json beside
ms-swift     the same rows, one a line; needs no registration
llava        {"image": img, "conversations": [{"from": "human", "value": "<image>\\nQ"}, {"from": "gpt", "value": "A"}, ...]}

A relative img is looked for under media_dir (default: the folder of dataset_info.json) by LLaMA-Factory, in the current
folder by ms-swift, under --image_folder by LLaVA.
"""

import json
import math
import os
from array import array
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps
from tqdm import tqdm

from data.records import StageError, temporary_beside

FORMATS = ("remoteglm", "llamafactory", "ms-swift", "llava")
DATASET_INFO = "dataset_info.json"


def row(form, img, rounds):
    """One row of a dialogue about a picture; rounds: [(question, answer), ...]."""
    if form == "llava":
        turns = [
            {"from": who, "value": text}
            for pair in rounds
            for who, text in zip(("human", "gpt"), pair)
        ]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        return {"image": img, "conversations": turns}
    if form == "remoteglm" and len(rounds) == 1:
        return {"img": img, "prompt": rounds[0][0], "label": rounds[0][1]}
    turns = [
        {"role": who, "content": text}
        for pair in rounds
        for who, text in zip(("user", "assistant"), pair)
    ]
    if form == "remoteglm":
        return {"img": img, "conversations": turns}
    turns[0]["content"] = "<image>" + turns[0]["content"]  # as many <image> as pictures
    return {"messages": turns, "images": [img]}


def read_dataset_info(folder):
    """LLaMA-Factory's registry in this folder, {} where there is none; StageError where it is not to be read."""
    path = folder / DATASET_INFO
    try:
        registry = json.loads(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    except ValueError as error:
        raise StageError(
            f"{path} is not JSON ({error}): mend it, or write the output to another folder"
        ) from None
    if not isinstance(registry, dict):
        raise StageError(f"{path}: expected an object of data sets, got {type(registry).__name__}")
    return registry


def register(paths):
    """Enter row files of the llamafactory form into dataset_info.json beside them, under their names; other entries stay."""
    path = paths[0].parent / DATASET_INFO
    registry = read_dataset_info(path.parent)
    for file in paths:
        registry[file.stem] = {
            "file_name": file.name,
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        }
    temporary = temporary_beside(path)
    temporary.write_text(
        json.dumps(registry, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    os.replace(temporary, path)
    return path


def to_rgb(image):
    """Any Pillow image -> 8-bit RGB as training reads it (model/images.py): upright, on white where it is transparent, bands
    of more than 8 bits stretched between their 2nd and 98th percentile."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        band = image.convert("F")
        values = sorted(filter(math.isfinite, array("f", band.tobytes()))) or [0]
        low, high = (values[round(share * (len(values) - 1))] for share in (0.02, 0.98))
        scale = 255 / max(high - low, 1e-6)
        image = band.point(lambda value: value * scale - low * scale).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_png(source, target):
    """Write the picture of `source` as a PNG, unless `target` is there and not older; a half-written one never stays."""
    if target.exists() and target.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        with Image.open(source) as image:
            to_rgb(image).save(temporary, format="PNG")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def convert(pictures):
    """pictures: {target: source} -> how many were written; StageError names the first that cannot be read or written."""

    def one(target):
        try:
            return to_png(pictures[target], target)
        except (OSError, SyntaxError, ValueError) as error:
            raise StageError(f"cannot convert {pictures[target]} to {target}: {error}") from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(tqdm(pool.map(one, pictures), total=len(pictures), unit="image", disable=None))
