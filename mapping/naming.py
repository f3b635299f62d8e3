"""What the answers about a tile name, by the lexicon, and how sure the scene is."""

import math
from collections.abc import Sequence

from data.instructions import QUESTIONS
from data.lexicon import find, first_scene, language, load
from mapping.options import TASKS
from model.images.tiles import Window

ENGLISH_QUESTIONS = {
    "scene": "What kind of scene does this aerial image show?",
    "objects": "What objects are in this aerial image?",
}


def questions_of(tasks: Sequence[str], description: str, english: bool) -> dict[str, str]:
    """{task: its question} in the order of TASKS; description: the question for that one."""
    questions = {"description": description}
    for task in TASKS[1:]:
        questions[task] = ENGLISH_QUESTIONS[task] if english else QUESTIONS[task][0]
    return {task: questions[task] for task in TASKS if task in tasks}


def scene_task(questions: dict[str, str]) -> str:
    """The task whose answer says what the scene is."""
    return next(task for task in ("scene", "description", "objects") if task in questions)


def objects_in(answers: dict[str, str]) -> list[str]:
    """Names of the objects that are said to be there, each once, in reading order.

    answers: by task; what the answer about objects does not say, the others do not add.
    """
    task = next(task for task in ("objects", "description", "scene") if task in answers)
    text = answers[task]
    found = {}
    for mention in find(text, language(text)):
        if mention.kind == "object" and not mention.negated:
            found[mention.name] = True
    return list(found)


def scene_in(text: str) -> str | None:
    """The name of the scene that an answer says it is."""
    mentions = first_scene(text)
    return mentions[0].name if mentions else None


def scene_names() -> list[str]:
    """The scenes of the lexicon."""
    return list(load()["scenes"])


def alternatives(text: str) -> tuple[list[str], int]:
    """Beginnings of an answer that names a scene, up to its name: one for each of scene_names().

    Returns them and the index of the one that stands there.
    """
    mention = first_scene(text)[0]
    own = scene_names().index(mention.name)
    words = scene_words(language(text) == "en")
    words[own] = text[mention.start : mention.end]
    return [text[: mention.start] + word for word in words], own


def scene_words(english: bool) -> list[str]:
    """How each scene of the lexicon is called, in its order."""
    return [entry["en" if english else "zh"][0] for entry in load()["scenes"].values()]


def shares_of(scores: Sequence[float]) -> list[float]:
    """The probability of each of several log probabilities among all of them."""
    greatest = max(scores)
    weights = [math.exp(score - greatest) for score in scores]
    return [weight / sum(weights) for weight in weights]


def scene_word(name: str | None, english: bool) -> str:
    """How a scene is called on the map; None: no scene, or none that is sure enough."""
    if name is None:
        return "unsure" if english else "未定"
    return load()["scenes"][name]["en" if english else "zh"][0]


def object_word(name: str, english: bool) -> str:
    return load()["objects"][name]["en" if english else "zh"][0]


def window_of(entry: dict) -> Window:
    """The window of a line of the answers' file."""
    return Window(*entry["window"])
