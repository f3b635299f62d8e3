"""Questions and answers about images, as LLaVA, LLaMA-Factory, ms-swift and our own rows hold them.

The inverse of exports.row: what an image is asked stays as it is, so nothing is translated.
"""

from data.conversation import has_system, rounds_of, turns_of
from data.faults import Fault, got, has_words, object_problem
from data.layouts.content import named_image, stated_split

IMAGE_KEYS = ("img", "image", "images")
DIALOGUE_KEYS = ("conversations", "messages")
# (key of the question, key of the answer) of rows with one round
PAIR_KEYS = (("prompt", "label"), ("query", "response"), ("instruction", "output"))


def recognises(content):
    return is_dialogue(content.first)


def is_dialogue(record):
    if any(isinstance(record.get(key), list) for key in DIALOGUE_KEYS):
        return True
    return any(question in record and answer in record for question, answer in PAIR_KEYS)


def read(content):
    for where, record in content.records():
        problem = object_problem(record)
        if problem:
            yield where, problem
            continue
        if not any(record.get(key) for key in IMAGE_KEYS):
            content.notes.add("no image, left out", where)
            continue
        yield where, image_of(content, record)


def image_of(content, record):
    """{"filename", "conversations": turns} of a row with an image, or its Fault."""
    key = next(key for key in IMAGE_KEYS if record.get(key))
    image = named_image(record[key], key)
    if isinstance(image, Fault):
        return image
    turns = _turns(record)
    if isinstance(turns, Fault):
        return turns
    if has_system(turns):
        content.notes.add("a system text, left out", repr(image["filename"]))
    rounds = rounds_of(turns)
    if isinstance(rounds, Fault):
        return rounds
    return stated_split({**image, "conversations": turns_of(rounds)}, record)


def _turns(record):
    for key in DIALOGUE_KEYS:
        if record.get(key):
            return record[key]
    for question_key, answer_key in PAIR_KEYS:
        if question_key in record and answer_key in record:
            return _turns_of_pair(record, question_key, answer_key)
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
