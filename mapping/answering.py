"""The tiles of a scene are answered in batches, each kept in a file as soon as it is there."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from mapping.naming import (
    alternatives,
    objects_in,
    questions_of,
    scene_in,
    scene_names,
    scene_task,
    scene_words,
    shares_of,
    window_of,
)
from model import Assistant, Sampling
from model.answer_file import AnswerFile
from model.batch import enough_memory
from model.images import ImageError
from model.images.tiles import Scene, Window

# Share of its pixels that a tile needs to be asked about
LEAST_VALID = 0.5
# Probability that a network names some scene when it is asked for it, if it was trained to
LEAST_NAMED = 0.5
LEAST_SHARE = 0.01  # of a scene that is kept as a likely one


class TileFile(AnswerFile):
    """JSON lines, one a tile: {"window": [left, top, width, height], "valid": share, ...}.

    "answers": by task, "scene" and "objects" by their names in the lexicon, "likely": the
    probabilities of scenes, "confidence": that of its own, "truncated": the tasks whose answer the
    length limit ended; or "error"; a tile with too little data has none of them.
    """

    beginning = b'{"window": '

    @staticmethod
    def is_entry(entry):
        return "window" in entry and ("valid" in entry or "error" in entry)

    def by_window(self) -> dict[Window, dict]:
        """The lines that need not be made again."""
        return {window_of(entry): entry for entry in self.entries if "error" not in entry}


def answer_tiles(
    assistant: Assistant,
    scene: Scene,
    windows: list[Window],
    file: TileFile,
    questions: dict[str, str],
    *,
    sampling: Sampling,
    english: bool,
    batch_size: int,
    done: Callable[[int], object] = lambda count: None,
) -> list[dict]:
    """Ask the questions (by task) about each window; returns the lines in the windows' order.

    What the open file holds already is not asked again; a window that cannot be read gives a line
    with "error", which a later run asks again. done: told how many tiles are new in the file.
    Raises UserError.
    """
    known = file.by_window()
    missing = [window for window in windows if window not in known]
    lines: list[dict] = []
    asked: list[tuple[dict, object]] = []

    def keep():
        if asked:
            with enough_memory(len(asked)):
                _answer(assistant, asked, questions, sampling, english)
        file.append(lines)
        known.update((window_of(line), line) for line in lines)
        done(len(lines))
        lines.clear()
        asked.clear()

    for window, image, valid in _read_ahead(scene, missing, 2 * batch_size):
        line: dict = {"window": list(window)}
        lines.append(line)
        if isinstance(image, ImageError):
            line["error"] = str(image)
            continue
        line["valid"] = round(valid, 4)
        if valid >= LEAST_VALID:
            asked.append((line, image))
        if len(asked) == batch_size:
            keep()
    if lines:
        keep()
    return [known[window] for window in windows]


def _read_ahead(scene: Scene, windows: list[Window], count: int) -> Iterator[tuple]:
    """(window, image or the ImageError of reading it, valid share), while answers are made."""

    def read(window):
        try:
            return window, *scene.read(window)
        except ImageError as error:
            return window, error, 0.0

    pool = ThreadPoolExecutor(1)
    waiting: deque = deque()
    try:
        for window in windows:
            waiting.append(pool.submit(read, window))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _answer(assistant, asked, questions, sampling, english):
    """Put answers, scene, objects and confidence into the lines of (line, image) pairs."""
    images = [image for _, image in asked]
    for line, _ in asked:
        line["answers"] = {}
    for task, question in questions.items():

        def truncated(index, task=task):
            asked[index][0].setdefault("truncated", []).append(task)

        answers = assistant.answer_batch(
            [question] * len(asked), images, sampling, english, on_truncated=truncated
        )
        for (line, _), answer in zip(asked, answers):
            line["answers"][task] = answer

    task = scene_task(questions)
    for line, _ in asked:
        line["scene"] = scene_in(line["answers"][task])
        line["objects"] = objects_in(line["answers"])
        line["confidence"] = None
    _score(assistant, asked, questions, english)


def _score(assistant, asked, questions, english):
    """Put how likely the scenes are, and the confidence, into the lines that name one."""
    named = [(line, image) for line, image in asked if line["scene"]]
    if named and "scene" not in questions:
        named = _score_by_question(assistant, named, english)
    if named:
        _score_by_answer(assistant, named, questions, english)


def _score_by_question(assistant, named, english):
    """By what the network answers when it is asked for the scene alone.

    Returns the (line, image) pairs of which it then says something else than a scene's name.
    Trap: in the words of a description the scene is often decided before its name comes (two
    brown round ...), and its name is then certain, whatever else lies in the tile.
    """
    [question] = questions_of(["scene"], "", english).values()
    texts = [scene_words(english)] * len(named)
    images = [image for _, image in named]
    scores = assistant.score([question] * len(named), images, texts, english)
    rest = []
    for pair, of_line in zip(named, scores or ()):
        if sum(map(math.exp, of_line)) < LEAST_NAMED:
            rest.append(pair)
        else:
            _put_shares(pair[0], of_line)
    return rest


def _score_by_answer(assistant, named, questions, english):
    """By the other scenes' names in the place of the one that stands in the answer."""
    task = scene_task(questions)
    texts = [alternatives(line["answers"][task])[0] for line, _ in named]
    images = [image for _, image in named]
    scores = assistant.score([questions[task]] * len(named), images, texts, english)
    for (line, _), of_line in zip(named, scores or ()):
        _put_shares(line, of_line)


def _put_shares(line, scores):
    shares = dict(zip(scene_names(), shares_of(scores)))
    line["confidence"] = round(shares[line["scene"]], 4)
    line["likely"] = {n: round(share, 4) for n, share in shares.items() if share >= LEAST_SHARE}
