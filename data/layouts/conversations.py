"""Questions and answers about images, as LLaVA, LLaMA-Factory, ms-swift and our own rows hold them.

The inverse of exports.row: what an image is asked stays as it is, so nothing is translated.
"""

from data.conversation import has_system, images_in, rounds_of, turns_of
from data.faults import Fault, got, has_words, object_problem
from data.layouts.content import named_image, stated_split
from model.errors import UserError

IMAGE_KEYS = ("img", "image", "images")
# what tools write for what a row has not
EMPTY = (None, "", [])
DIALOGUE_KEYS = ("conversations", "messages")
# (key of the question, key of the answer) of rows with one round
PAIR_KEYS = (
    *(("prompt", "label"), ("query", "response"), ("instruction", "output")),
    ("question", "answer"),
)


def recognises(content):
    return is_dialogue(content.first)


def is_dialogue(record):
    if any(record.get(key) not in EMPTY for key in DIALOGUE_KEYS):
        return True
    return any(question in record and answer in record for question, answer in PAIR_KEYS)


def read(content):
    left_out = others = 0
    for where, record in content.records():
        image = object_problem(record) or image_of(content, record)
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


def image_of(content, record):
    """{"filename", "conversations": turns} of a row, its Fault, or None where it has no image."""
    try:
        key, value = _named(record)
    except ValueError as error:
        return Fault(str(error))
    if key is None:
        return None
    image = named_image(value, key)
    if isinstance(image, Fault):
        return image
    turns = _turns(record)
    if isinstance(turns, Fault):
        return turns
    if has_system(turns) or has_words(str(record.get("system") or "")):
        content.notes.add("a system text, left out", repr(image["filename"]))
    rounds = rounds_of(turns)
    if isinstance(rounds, Fault):
        return rounds
    return stated_split({**image, "conversations": turns_of(rounds)}, record)


def _named(record):
    """(key, what names the image under it) of a row, or of a part of its turns; (None, None)."""
    for key in IMAGE_KEYS:
        if record.get(key):
            return key, record[key]
    for key in DIALOGUE_KEYS:
        images = images_in(record.get(key))
        if images:
            return key, images
    return None, None


def _turns(record):
    for key in DIALOGUE_KEYS:
        if record.get(key):
            return record[key]
    for question_key, answer_key in PAIR_KEYS:
        if question_key in record and answer_key in record:
            return _turns_of_pair(record, question_key, answer_key)
    keys = [key for key in DIALOGUE_KEYS if key in record]
    if keys:
        return record[keys[0]]
    return Fault("no question and answer among its keys", f" ({', '.join(record)})")


def _turns_of_pair(record, question_key, answer_key):
    question = record[question_key]
    extra = record.get("input") if question_key == "instruction" else None
    if isinstance(extra, str) and has_words(extra):
        question = f"{question}\n{extra}"
    history = record.get("history") or []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            return got("pairs of texts in 'history'", pair)
    rounds = [*map(tuple, history), (question, record[answer_key])]
    return turns_of(rounds)
