"""Questions and answers about images, as LLaVA, LLaMA-Factory, ms-swift and our own rows hold them.

The inverse of exports.row: what an image is asked stays as it is, so nothing is translated. Rows
are read as in training, by model/row_forms.py.
"""

from data.conversation import form_of, turns_of
from data.faults import Fault, object_problem
from data.layouts.content import named_image, stated_split
from model.errors import UserError
from model.row_forms import (
    ANSWER_KEYS,
    DIALOGUE_KEYS,
    EMPTY,
    IMAGE_KEYS,
    QUESTION_KEYS,
    in_small_letters,
)


def recognises(content):
    return is_dialogue(content.first)


def is_dialogue(record):
    record = in_small_letters(record)
    if any(record.get(key) not in EMPTY for key in DIALOGUE_KEYS):
        return True
    return all(any(key in record for key in keys) for keys in (QUESTION_KEYS, ANSWER_KEYS))


def read(content):
    left_out = others = 0
    for where, record in content.records():
        image = object_problem(record)
        if image is None and _says_something(record):
            image = image_of(content, record)
        if image is None:
            content.notes.add("no image, left out", where)
            left_out += 1
            continue
        others += 1
        yield where, image
    if left_out and not others:
        raise UserError(
            f"{content.path}: none of {left_out} rows names an image under {', '.join(IMAGE_KEYS)} "
            "or in a part of its turns"
        )


def _says_something(record):
    record = in_small_letters(record)
    return is_dialogue(record) or any(record.get(key) not in EMPTY for key in IMAGE_KEYS)


def image_of(content, record, name=None):
    """{"filename", "conversations": turns} of a row, its Fault, or None where it has no image.

    name: of the image that it is about, whatever it says itself.
    """
    form = form_of(record, name)
    if isinstance(form, Fault):
        return form
    if form.image is None:
        return None
    image = {"filename": name} if name else named_image(form.image, "img")
    if isinstance(image, Fault):
        return image
    if "system" in form.unused:
        content.notes.add("a system text, left out", repr(image["filename"]))
    unused = ", ".join(key for key in form.unused if key not in ("system", "split"))
    if unused:
        example = f"{unused} of {image['filename']!r}"
        content.notes.add("keys that are not used", example, unused)
    return stated_split({**image, "conversations": turns_of(form.rounds)}, record)
