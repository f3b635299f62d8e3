"""{"image": path, "caption": text or [text, ...]}: a record an image or a caption.

HarMA's RSITMD and RSICD, ALBEF and BLIP style sets.
"""

from data.faults import Fault, no_key, object_problem
from data.layouts.content import by_image, named_image, with_captions


def recognises(content):
    image, captions = content.keys(content.first)
    return bool(image and captions) and not isinstance(content.first.get("sentences"), list)


def read(content):
    image_key, caption_keys = content.keys(content.first)
    image_key = image_key or content.image_key or "image"
    caption_keys = caption_keys or [content.caption_key or "caption"]

    def rows():
        for where, record in content.records():
            yield where, image_of(record, image_key, caption_keys)

    return by_image(rows)


def image_of(record, image_key, caption_keys):
    """A record with an image and captions under these keys as an image, or its Fault."""
    problem = object_problem(record)
    if problem:
        return problem
    for key in (image_key, caption_keys[0]):
        if key not in record:
            return no_key(record, key)
    image = named_image(record[image_key], image_key)
    if isinstance(image, Fault):
        return image

    return with_captions(image, record, caption_keys)
