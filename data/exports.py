"""The same rows in the forms that other trainers read, and their images as PNG.

remoteglm    {"img", "prompt", "label"}, or for dialogues
             {"img", "conversations": [{"role", "content"}, ...]}
llamafactory {"messages": [{"role", "content": "<image>Q"}, ...], "images": [img]},
             and dataset_info.json beside
ms-swift     the same rows, one a line; needs no registration
llava        {"image": img, "conversations": [{"from": "human", "value": "<image>\\nQ"},
             {"from": "gpt", "value": "A"}, ...]}

A relative img is looked for under media_dir (default: the folder of dataset_info.json) by
LLaMA-Factory, in the current folder (or $ROOT_IMAGE_DIR) by ms-swift, under --image_folder by
LLaVA.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from data.conversation import turns_of
from model.errors import UserError
from model.files import NO_ROOM, parse_json, replacing, write_text

FORMATS = ("remoteglm", "llamafactory", "ms-swift", "llava")
DATASET_INFO = "dataset_info.json"
# in each PNG: the source it was made of, and the reader
ORIGIN = "RemoteGLM source"


def row(form, img, rounds):
    """One row of a dialogue about an image; rounds: [(question, answer), ...]."""
    if form == "remoteglm" and len(rounds) == 1:
        [(question, answer)] = rounds
        return {"img": img, "prompt": question, "label": answer}

    if form == "llava":
        messages = []
        for question, answer in rounds:
            messages.append({"from": "human", "value": question})
            messages.append({"from": "gpt", "value": answer})
        messages[0]["value"] = "<image>\n" + messages[0]["value"]
        return {"image": img, "conversations": messages}

    messages = turns_of(rounds)
    if form == "remoteglm":
        return {"img": img, "conversations": messages}
    # as many <image> as images
    messages[0]["content"] = "<image>" + messages[0]["content"]
    return {"messages": messages, "images": [img]}


def read_dataset_info(folder):
    """LLaMA-Factory's registry in this folder, {} where there is none. Raises UserError."""
    path = folder / DATASET_INFO
    if not path.exists():
        return {}
    try:
        registry = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): fix it, or write the output to another folder"
        ) from None
    if not isinstance(registry, dict):
        raise UserError(f"{path}: expected an object of data sets, got {type(registry).__name__}")
    return registry


def register(paths):
    """Enter row files of the llamafactory form into dataset_info.json beside them.

    Other entries stay. Returns the path of the registry.
    """
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
    # ASCII: LLaMA-Factory opens the registry in the system's encoding, which Windows sets to GBK
    write_text(path, json.dumps(registry, indent=2) + "\n")
    return path


def to_png(source, target, made_before, bands=None):
    """Write the image of `source` as a PNG, as training reads it; returns whether it was written.

    made_before: see _made_of; nothing is done where that is this very source, read by the reader
    of today. bands: see read_image. Raises UserError.
    """
    # only here: it loads numpy and lowers Pillow's limit of pixels for the whole process
    from model.images import read_image, reader_of, stamp

    size, mtime = stamp(source)
    made_of = f"{source.name} {size} {mtime} {reader_of(bands)}"
    if made_before == made_of:
        return False
    image = read_image(source, bands)
    origin = PngInfo()
    origin.add_itxt(ORIGIN, made_of)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # not synced: a lost PNG costs one more conversion
        with replacing(target, "wb", sync=False) as file:
            image.save(file, format="PNG", pnginfo=origin)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"cannot write {target}: {error}") from None
    return True


def inside(img):
    """The parts of a path that lead down: the name of a copy within a folder."""
    return [part for part in img.split("/") if part not in ("", ".", "..")]


def _made_of(target):
    """What an earlier run wrote into its PNG; None where there is none."""
    try:
        with Image.open(target) as image:
            return image.info.get(ORIGIN)
    except (OSError, SyntaxError, ValueError):
        return None


def convert(images, bands=None):
    """Convert {PNG: source}; returns how many were written.

    Nothing is overwritten but earlier conversions. Raises UserError naming the first that cannot
    be read or written.
    """
    sources = {source.resolve() for source in images.values()}
    made_before = {target: _made_of(target) for target in images}
    for target, made_of in made_before.items():
        if target.resolve() in sources:
            raise UserError(f"{target} is itself the image of a row: name another folder by --png")
        if made_of is None and target.exists():
            raise UserError(
                f"{target} is there and no earlier --png has made it: name another folder by --png"
            )

    def one(target):
        return to_png(images[target], target, made_before[target], bands)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(one, images)
        return sum(tqdm(results, total=len(images), unit="image", disable=None))
