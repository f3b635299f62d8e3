"""Answers that are computed together; rows join and leave between tokens.

This is what a scheduler knows of a family. `GeneratedBatch` serves every family by its `generate`:
its rows begin together. A family whose rows can join at any token has a batch of its own.
"""

from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from PIL import Image

from model.family import Family, Returning
from model.rows import Sample
from model.sampling import Sampling


@dataclass(frozen=True)
class Question:
    """What one answer needs. untuned: the base answers, as if nothing had been fine-tuned."""

    sample: Sample  # only question and history are read
    image: Image.Image | None  # RGB
    sampling: Sampling
    english: bool = False
    untuned: bool = False


@dataclass
class Joined:
    """A question's place in the batch. prompt_tokens: None where that is not known."""

    key: int
    prompt_tokens: int | None = None
    cut: tuple[int, int] = (0, 0)  # rounds and tokens beyond the length limit, not read


@dataclass
class Advance:
    """What a step made of one row; after `ended` or `error` the row is no longer in the batch."""

    key: int
    text: str = ""  # a further piece of the answer
    tokens: int | None = None  # of the answer so far; None where that is not known
    ended: bool = False
    truncated: bool = False  # a length limit ended it
    error: Exception | None = None


class RunningBatch(ABC):
    """One at a time of these uses a network, and one thread."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows whose answers have not ended."""

    @abstractmethod
    def takes(self, question: Question) -> bool:
        """Whether `add` may be called now; an empty batch takes every question."""

    @abstractmethod
    def add(self, question: Question) -> Joined:
        """Raises UserError for a question that cannot be answered."""

    @abstractmethod
    def step(self) -> list[Advance]:
        """Go on by a token. What goes wrong with one row is its own; raises what spoils all."""

    @abstractmethod
    def remove(self, key: int) -> None:
        """Drop a row at once; one that has left already is none."""


def weights_for(family: Family, untuned: bool) -> AbstractContextManager[None]:
    """Context in which the network computes as a question asks."""
    return family.untuned() if untuned else nullcontext()


class GeneratedBatch(RunningBatch):
    """Batches formed at arrival: the rows begin at one step, with settings that all of them share.

    max_rows: rows of one batch.
    """

    def __init__(self, family: Family, max_rows: int):
        self.family = family
        self.max_rows = max_rows
        self._next_key = 0
        self._questions: dict[int, Question] = {}
        self._order: list[int] = []  # keys of the rows that `generate` answers
        self._tokens: Counter[int] = Counter()  # of the answers so far, where they are counted
        self._untuned = False
        self._steps: Any = None  # an iterator over the pieces of all rows, from the first step on
        self._result = Returning(())

    def __len__(self):
        return len(self._questions)

    def takes(self, question):
        if not self._questions:
            return True
        if self._steps is not None or len(self._questions) >= self.max_rows:
            return False
        return _settings(question) == _settings(next(iter(self._questions.values())))

    def add(self, question):
        size = self.family.prompt_size(
            question.sample, question.image, question.sampling, question.english
        )
        self._next_key += 1
        self._questions[self._next_key] = question
        if size[0] is not None:
            self._tokens[self._next_key] = 0
        return Joined(self._next_key, *size)

    def step(self):
        try:
            if self._steps is None:
                self._begin()
            with weights_for(self.family, self._untuned):
                pieces = next(self._steps, None)
        except BaseException:
            self._clear()
            raise
        ended = pieces is None
        pieces = pieces or [""] * len(self._order)
        truncated = self._result.value or [False] * len(self._order)
        advances = []
        for key, piece, at_limit in zip(self._order, pieces, truncated):
            if key in self._questions:
                tokens = self._tokens.get(key)
                advances.append(Advance(key, piece, tokens, ended, ended and at_limit))
        if ended:
            self._clear()
        return advances

    def _begin(self):
        self._order = list(self._questions)
        questions = list(self._questions.values())
        sampling, english, self._untuned = _settings(questions[0])
        self._result = Returning(
            self.family.generate(
                [question.sample for question in questions],
                [question.image for question in questions],
                sampling,
                english=english,
                stream=True,
                on_token=self._count,
            )
        )
        self._steps = iter(self._result)

    def _count(self, index):
        self._tokens[self._order[index]] += 1

    def remove(self, key):
        self._questions.pop(key, None)
        if not self._questions:
            self._clear()

    def _clear(self):
        self._questions.clear()
        self._tokens.clear()
        if self._steps is not None:
            self._steps.close()
        self._steps = None


def _settings(question):
    return question.sampling, question.english, question.untuned
