"""What a person typed or set -> a question and its Sampling; what is wrong with it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from model.errors import UserError
from model.sampling import Sampling
from serving.page.dialogue import JOINER
from serving.protocol import MAX_CHARACTERS

# In the order of the page's sliders
SETTINGS = (
    "max_length",
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
)
WHOLE = {field.name for field in fields(Sampling) if "int" in str(field.type)}
# Shown for None
NONE = {"max_new_tokens": 0, "seed": -1}


def checked(question: Any, words: dict[str, str]) -> str:
    """A question, stripped. Raises UserError, in the page's words."""
    if question is None:
        raise UserError(words["empty"])
    if not isinstance(question, str):
        raise UserError(words["not text"])
    if len(question) > MAX_CHARACTERS:
        raise UserError(words["too long"].format(len(question), MAX_CHARACTERS))
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError(words["surrogates"]) from None
    # What is edited comes back as it was shown
    question = question.replace(JOINER, "").strip()
    if not question:
        raise UserError(words["empty"])
    return question


def sampling_of(values: Sequence[Any], words: dict[str, str]) -> Sampling:
    """Values of SETTINGS, as many as there are -> Sampling. Raises UserError."""
    given: dict[str, Any] = {}
    for name, value in zip(SETTINGS, values):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(words["setting"].format(name, value))
        if value == NONE.get(name):
            continue
        try:
            given[name] = int(value) if name in WHOLE else value
        except (ValueError, OverflowError):
            raise UserError(words["setting"].format(name, value)) from None
    return Sampling(**given)


def defaults() -> list[int | float]:
    """What the sliders show at first."""
    usual = Sampling()
    values = (getattr(usual, name) for name in SETTINGS)
    return [NONE[name] if value is None else value for name, value in zip(SETTINGS, values)]
