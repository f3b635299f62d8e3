"""Turns of a dialogue about an image <-> its rounds, [(question, answer), ...]."""

import re

from data.faults import Fault, got, has_words

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
SYSTEM = "system"
PLACE = "<image>"
# of the turns of Qwen-VL and the OpenAI API, which are lists of parts
IMAGE_PARTS = ("image", "image_url")
MARKUP = re.compile(r"</?(?:img|image|video|audio|ref|box)>|<\|\w+\|>")


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
        content = _content(turn)
        if ROLES.get(_role(turn)) != role or not isinstance(content, str):
            return got(f"turns of user and assistant with a text each, here {role}", turn)
        contents.append(content)
    if not contents or len(contents) % 2:
        return Fault("a question without an answer")
    contents[0] = without_place(contents[0])
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
    return _role(first) == SYSTEM and has_words(str(_content(first) or ""))


def without_place(question):
    """A question without the one mark of where its image stands, and the line break beside it."""
    before, _, after = question.partition(PLACE)
    return before.removesuffix("\n") + (after.removeprefix("\n") if not before else after)


def _role(turn):
    role = turn.get("role") or turn.get("from") if isinstance(turn, dict) else None
    return role if isinstance(role, str) else None


def _content(turn):
    """The text of a turn, its parts joined; what is no text as it is."""
    content = _content_of(turn)
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in IMAGE_PARTS:
            texts.append(PLACE)
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return content
    return "".join(texts)


def images_in(turns):
    """What the parts of the turns name as images, each once, in order."""
    found = []
    for turn in turns if isinstance(turns, list) else ():
        content = _content_of(turn)
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            image = part.get(kind) if kind in IMAGE_PARTS else None
            if image and image not in found:
                found.append(image)
    return found


def _content_of(turn):
    if not isinstance(turn, dict):
        return None
    return turn["content"] if "content" in turn else turn.get("value")
