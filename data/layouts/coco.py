"""COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""

from data.caption_sets import CAPTIONS_UNDER
from data.faults import Fault, got, no_key, object_problem
from data.layouts.content import named_image, sentences_in, stated_split
from model.errors import UserError


def recognises(content):
    return isinstance(content.data, dict) and {"images", "annotations"} <= content.data.keys()


def read(content):
    if not recognises(content):
        expected = "expected an object with 'images' and 'annotations'"
        raise UserError(f"{content.path}: {expected} at the top, in a .json")
    images = {}
    for index, entry in enumerate(_list(content.data, "images")):
        image = _image(entry, images)
        if isinstance(image, Fault):
            yield f"image {index}", image
        else:
            images[str(entry["id"])] = (f"image {index}", image)

    for index, annotation in enumerate(_list(content.data, "annotations")):
        fault = _add(annotation, images)
        if fault:
            yield f"annotation {index}", fault
    yield from images.values()


def _list(data, key):
    return data[key] if isinstance(data[key], list) else [data[key]]


def _image(entry, images):
    problem = object_problem(entry)
    if problem:
        return problem
    key = "filename" if "filename" in entry else "file_name"
    for needed in ("id", key):
        if needed not in entry:
            return no_key(entry, needed)
    if not isinstance(entry["id"], int | str):
        return got("a number or text in 'id'", entry["id"])
    if str(entry["id"]) in images:
        return Fault("an 'id' that an earlier image has", f", {entry['id']!r}")
    image = named_image(entry[key], key)
    if isinstance(image, Fault):
        return image
    return stated_split({**image, "sentences": [], CAPTIONS_UNDER: "annotations"}, entry)


def _add(annotation, images):
    """Add a caption to its image; returns its Fault, or None.

    images: by their ids as text, which one list may have and the other as numbers.
    """
    problem = object_problem(annotation)
    if problem:
        return problem
    for key in ("image_id", "caption"):
        if key not in annotation:
            return no_key(annotation, key)
    number = annotation["image_id"]
    if not isinstance(number, int | str) or str(number) not in images:
        return Fault("an 'image_id' that no image has", f", {number!r}")
    sentences = sentences_in(annotation["caption"], "caption")
    if isinstance(sentences, Fault):
        return sentences
    images[str(number)][1]["sentences"] += sentences
    return None
