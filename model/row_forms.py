"""One row as this project or another tool writes it -> its image and its rounds.

image      img, image or images (a list of one): a path, an address, {"path"} or {"url"}
question   prompt, query, question or instruction (with input after it); of what is only to be
           asked also text, where it ends in a question mark
answer     label, response, answer or output
history    earlier [question, answer] pairs
dialogue   conversations, conversation or messages: [{"role", "content"}] or [{"from", "value"}] in
           turns of user (human) and assistant (gpt, bot, model); content is a text or a list of
           parts; a turn may name the image

Keys and roles may have capitals: Prompt, USER.
What marks the image's place in a text (<image> and the like) is taken out.
"""

import re
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

from model.markup import IMAGE_PLACE, MARKUP, SIGN, signs_of_turns, without_places

IMAGE_KEYS = ("img", "image", "images")
QUESTION_KEYS = ("prompt", "query", "question", "instruction")
ANSWER_KEYS = ("label", "response", "answer", "output")
DIALOGUE_KEYS = ("conversations", "conversation", "messages")
ALWAYS_READ = {*IMAGE_KEYS, *QUESTION_KEYS, *DIALOGUE_KEYS, *ANSWER_KEYS, "history"}
# What a key in capitals may stand for, where no other of its kind is there
KINDS_OF_KEYS = (
    *(IMAGE_KEYS, (*QUESTION_KEYS, *DIALOGUE_KEYS), ANSWER_KEYS),
    *(("history",), ("input",), ("text",)),
)
KINDS_OF_TURN_KEYS = (IMAGE_KEYS, ("role", "from"), ("content", "value"))
TURN_KEYS = {*chain(*KINDS_OF_TURN_KEYS)}
EMPTY: tuple = (None, "", [], {})  # what tools write for what a row has not
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")

NO_TURNS = "conversations must be a list of user and assistant turns"
MOST_SHOWN = 80  # characters of a wrong value
PLACE = "<image>"
# The name of an image file in a text, tried once where a run without blanks begins
IMAGE_FILE = re.compile(
    r"(?<![^\s，。？?\"'])[^\s，。？?\"']+"
    r"\.(?:tiff?|png|jpe?g|bmp|gif|webp|jp2)(?![A-Za-z0-9])",
    re.I,
)


class FormError(ValueError):
    """What is wrong with a row, in a few words. kind: alike of many rows; seen: how it shows here.

    message: in place of both together.
    """

    def __init__(self, kind: str, seen: str = "", message: str | None = None):
        super().__init__(message or kind + seen)
        self.kind = kind
        self.seen = seen


@dataclass
class Form:
    """What a row holds."""

    image: str | None
    rounds: list[tuple[str | None, str | None]]  # (question, answer)
    unused: list[str] = field(default_factory=list)  # keys that nothing is read from
    # a file name in an unused key or a question, where the row names no image
    lost_image: str | None = None


def read_form(row: Any, answered: bool = True, about: str | None = None) -> Form:
    """Read one row. Raises FormError.

    answered: every question must have its answer; else the last may lack it, and a row that is an
    image alone has the question None. about: the image, whatever the row says of it.
    """
    if not isinstance(row, dict):
        raise FormError(f"is {type(row).__name__}, not an object")
    row = in_small_letters(row)
    images = []
    for key in _given(row, IMAGE_KEYS):
        image = image_name(key, row[key])
        if image is not None:
            images.append(image)

    dialogue_key, dialogue = _one_of(row, DIALOGUE_KEYS)
    question_key, question = _one_of(row, QUESTION_KEYS)
    if not answered and question in EMPTY and dialogue in EMPTY and _is_question(row.get("text")):
        question = row["text"]
        row = row | {"prompt": question, "text": None}
    unused = [key for key in row if key not in ALWAYS_READ and row[key] not in EMPTY]
    if dialogue_key and (dialogue not in EMPTY or question in EMPTY):
        if question not in EMPTY:
            raise FormError(f"has both {question_key} and {dialogue_key}; keep one of them")
        unused += [key for key in (*ANSWER_KEYS, "history") if row.get(key)]
        rounds, unused_in_turns = _rounds_of_dialogue(dialogue, images, answered)
        unused += unused_in_turns
    else:
        rounds = _rounds_of_pair(row, images, answered)
        if row.get("instruction") and "input" in unused:
            unused.remove("input")

    if about:
        images = [about]
    if len(set(images)) > 1:
        raise FormError(f"names {len(set(images))} images; a row has one")
    image = images[0] if images else None
    _refuse_turns(rounds)
    rounds = _without_places(rounds, image)
    lost = None if image else _lost_image(row, rounds, unused)
    return Form(image, rounds, unused, lost)


def in_small_letters(row, kinds=KINDS_OF_KEYS):
    """The row with keys such as Prompt in small letters, where it has no other key of the kind."""
    known = {*chain(*kinds)}
    odd = [key for key in row if key not in known and key.lower() in known]
    if not odd:
        return row
    row = dict(row)
    for key in odd:
        kind = next(keys for keys in kinds if key.lower() in keys)
        if all(row.get(one) in EMPTY for one in kind):
            row[key.lower()] = row.pop(key)
    return row


def _is_question(text):
    return is_text(text) and text.rstrip().endswith(("?", "？"))


def image_name(key: str, value: Any) -> str | None:
    """The path or address under an image key; None where there is none. Raises FormError."""
    if isinstance(value, list):
        if len(value) > 1:
            raise FormError(f"{key} holds {len(value)} images; a row has one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("path") or value.get("url") or value
    if value is None:
        return None
    if isinstance(value, str) and not value.strip():
        raise FormError(f"{key} is empty; name the image, or leave {key} out for plain text")
    if not is_text(value):
        raise FormError(f"{key} must be a path", f", got {shown(value)}")
    return value.removeprefix("file://")


def is_text(value: Any) -> bool:
    """Whether it is text with anything in it, which UTF-8 can store (half a surrogate cannot)."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """A wrong value in a message."""
    text = "nothing" if value is None else str(value)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def joined(content: Any, images: list[str]) -> Any:
    """A content as text: parts are joined, and the images they name are added to `images`.

    Anything else comes back as it is, several texts as well: they are choices, not parts. Raises
    FormError for an image that is no path.
    """
    if not isinstance(content, list):
        return content
    if len(content) > 1 and all(isinstance(part, str) for part in content):
        return content
    texts = []
    for part in content:
        kind = _kind(part)
        if isinstance(part, str):
            texts.append(part)
        elif kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in IMAGE_PARTS:
            texts.append(PLACE)
            keys = (kind, "image_url", "path", "url")
            named = next((part[key] for key in keys if part.get(key)), None)
            image = image_name(kind, named)
            if image:
                images.append(image)
        else:
            return content
    return "".join(texts)


def _kind(part):
    """What a part of a content is: text, image or another; None where it is no object."""
    if not isinstance(part, dict):
        return None
    return part.get("type") or ("image" if "image" in part else "text")


def _given(row, keys):
    """Those of the keys that the row has; empty ones only where it has no other."""
    given = [key for key in keys if row.get(key) is not None]
    return [key for key in given if row[key] not in EMPTY] or given


def _one_of(row, keys):
    """(key, value) of the one of these keys that the row has, else (None, None)."""
    given = _given(row, keys)
    for key in given[1:]:
        if row[key] != row[given[0]]:
            raise FormError(f"has both {given[0]} and {key}, which differ; keep one of them")
    return (given[0], row[given[0]]) if given else (None, None)


def _rounds_of_pair(row, images, answered):
    key, question = _one_of(row, QUESTION_KEYS)
    question = joined(question, images)
    if key == "instruction" and is_text(row.get("input")) and is_text(question):
        question = f"{question}\n{row['input']}"
    if answered:
        _, answer = _one_of(row, ANSWER_KEYS)
        answer = joined(answer, images)
        needed = [question, answer]
    else:
        # Of an answer file the label is the reference
        answer = next((row[key] for key in _given(row, ANSWER_KEYS)), None)
        answer = joined(answer, images)
        needed = [] if question is None and images else [question]

    if not all(is_text(text) for text in needed):
        keys = ", ".join(row) or "none"
        wrong = next(text for text in needed if not is_text(text))
        raise FormError(
            f"has keys {keys}; prompt and label must be non-empty texts", f", got {shown(wrong)}"
        )
    if answer is not None and answer != "" and not is_text(answer):
        raise FormError("label must be a text", f", got {shown(answer)}")
    return [*_history(row.get("history")), (question, answer)]


def _history(pairs):
    if not pairs:
        return []
    if not isinstance(pairs, list):
        pairs = [pairs]
    rounds = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_text, pair)):
            raise FormError("history must be pairs of texts", f", got {shown(pair)}")
        rounds.append(tuple(pair))
    return rounds


def _rounds_of_dialogue(turns, images, answered):
    """(rounds, what is not read: a system text, keys of the turns)

    images: gets those that the turns name.
    """
    if not isinstance(turns, list):
        raise FormError(NO_TURNS, f", got {shown(turns)}")
    turns = [
        in_small_letters(turn, KINDS_OF_TURN_KEYS) if isinstance(turn, dict) else turn
        for turn in turns
    ]
    unused = {}  # an ordered set
    if turns and _role(turns[0]) == "system":
        if _content(turns[0]):
            unused["system"] = True
        turns = turns[1:]
    if not turns:
        raise FormError(NO_TURNS)

    contents = []
    for index, turn in enumerate(turns):
        role = ("user", "assistant")[index % 2]
        content = joined(_content(turn), images)
        if _role(turn) != role or not is_text(content):
            raise FormError(
                f"conversations must alternate user, assistant with content; expected {role}",
                f", got {shown(turn)}",
            )
        contents.append(content)
        images += filter(None, [image_name(key, turn.get(key)) for key in IMAGE_KEYS])
        for key in turn:
            if key not in TURN_KEYS and turn[key] not in EMPTY:
                unused[f"{key} of turns"] = True
    if answered and len(contents) % 2:
        kind = "a question without an answer"
        raise FormError(kind, message=f"{NO_TURNS}; {kind}")
    return list(zip_longest(contents[::2], contents[1::2])), list(unused)


def _role(turn):
    role = turn.get("role") or turn.get("from") if isinstance(turn, dict) else None
    return ROLES.get(role.lower(), role.lower()) if isinstance(role, str) else None


def _content(turn):
    if not isinstance(turn, dict):
        return None
    return turn["content"] if "content" in turn else turn.get("value")


def _without_places(rounds, image):
    """The rounds without the place of the image. Raises FormError for any other tag."""
    if not any(map(SIGN.search, _texts(rounds))):
        return rounds
    first, answer = rounds[0]
    places = IMAGE_PLACE.findall(first or "")
    if places and not image:
        raise FormError(f"has {places[0].strip()} in a text, but names no image under img")
    if len(places) > 1:
        raise FormError(f"has {len(places)} places of images in a text; a row has one image")
    if places:
        first = without_places(first)
        if not first:
            raise FormError(f"has no question beside {places[0].strip()}")

    rounds = [(first, answer), *rounds[1:]]
    for text in _texts(rounds):
        found = IMAGE_PLACE.search(text) or MARKUP.search(text)
        if found:
            mark = " ".join(found[0].split())[:60]
            is_tag = found.re is MARKUP and mark[0] == "<"
            plain = ", or put blanks around < and >" if is_tag else ""
            raise _markup_error(mark, f"remove it{plain}; the image is named under img")
    return rounds


def _refuse_turns(rounds):
    """Raises FormError where the texts of a round hold turns of both roles."""
    for a_round in rounds:
        signs = signs_of_turns("\n".join(_texts([a_round])))
        if signs:
            raise _markup_error(" and ".join(signs), "make each turn one of conversations")


def _markup_error(mark, advice):
    kind = "markup of another tool in a text"
    message = f"has {mark} in a text, markup of another tool: {advice}"
    return FormError(kind, f", {mark}", message)


def _texts(rounds):
    return filter(None, chain(*rounds))


def _lost_image(row, rounds, unused):
    """Where a row without an image seems to name one: in an unused key or in its question."""
    for key in unused:
        value = row.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str) and IMAGE_FILE.fullmatch(value.replace(" ", "_")):
            return f"{key}: {value}"
    for question, _ in rounds:
        found = IMAGE_FILE.search(question or "")
        if found:
            return found[0]
    return None
