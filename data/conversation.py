"""Turns of a dialogue about an image <-> its rounds, [(question, answer), ...]."""

from data.faults import Fault, got, has_words
from model.row_forms import IMAGE_PLACE, MARKUP, joined

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SYSTEM = "system"


def turns_of(rounds):
    """[{"role", "content"}, ...]"""
    turns = []
    for question, answer in rounds:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def rounds_of(turns):
    """The rounds of turns {"role", "content"} or {"from", "value"}, or the Fault of the first.

    The mark of the image's place is taken out of the first question; a system text is left out.
    """
    if not isinstance(turns, list) or not turns:
        return got("a list of turns of user and assistant", turns)
    if _role(turns[0]) == SYSTEM:
        turns = turns[1:]
    contents = []
    for index, turn in enumerate(turns):
        role = ("user", "assistant")[index % 2]
        content = _text(turn)
        if ROLES.get(_role(turn)) != role or not isinstance(content, str):
            return got(f"turns of user and assistant with a text each, here {role}", turn)
        contents.append(content)
    if not contents or len(contents) % 2:
        return Fault("a question without an answer")
    contents[0] = _without_place(contents[0])
    for content in contents:
        if not has_words(content):
            return got("a text in every turn", content)
        found = MARKUP.search(content)
        if found:
            return Fault("markup of another tool in a text", f", {found[0]}")
    return list(zip(contents[::2], contents[1::2]))


def has_system(turns):
    """Whether a system text stands before the turns."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return _role(first) == SYSTEM and has_words(str(_text(first) or ""))


def images_in(turns):
    """What the parts of the turns name as images, each once, in order. Raises ValueError."""
    images = []
    for turn in turns if isinstance(turns, list) else ():
        joined(_content(turn), images)
    return list(dict.fromkeys(images))


def _without_place(question):
    """A question without the one mark of where its image stands, and the space around it."""
    return " ".join(filter(None, IMAGE_PLACE.split(question, 1)))


def _role(turn):
    role = turn.get("role") or turn.get("from") if isinstance(turn, dict) else None
    return role if isinstance(role, str) else None


def _text(turn):
    """The text of a turn, its parts joined; what is no text as it is."""
    try:
        return joined(_content(turn), [])
    except ValueError:  # of a part's image
        return _content(turn)


def _content(turn):
    if not isinstance(turn, dict):
        return None
    return turn["content"] if "content" in turn else turn.get("value")
