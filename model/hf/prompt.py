"""Dialogues as the base's own chat template writes them: text, ids, and which ids are trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from model.errors import UserError
from model.hf.types import NO_THINKING
from model.pieces import Pieces

PROBE = "X"  # an answer, to see what a template writes around one


@dataclass(frozen=True)
class Row:
    """One round.

    text: of the prompt, each image as its placeholder; target: ids [n] of the answer and its end
    token, all of them trained, none of a question; length: in tokens, the image's included.
    """

    text: str
    target: np.ndarray
    length: int
    with_image: bool
    dropped: int = 0  # earlier rounds beyond the length limit
    shortened: int = 0  # tokens beyond it at the question's end
    answer_cut: bool = False  # the answer's end was beyond its limit

    @property
    def cut(self) -> bool:
        """Whether a length limit left anything out."""
        return bool(self.dropped or self.shortened or self.answer_cut)

    @property
    def target_tokens(self) -> int:
        return len(self.target)


class Prompts:
    """The chat template of a processor. end_ids: the tokens that end an answer of the network."""

    def __init__(self, processor: Any, end_ids: Sequence[int]):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.end_ids = list(end_ids)

    def text(self, rounds: Sequence[tuple[str, str]], question: str, with_image: bool) -> str:
        """The prompt of a question after earlier rounds, up to where the answer begins."""
        return self._render(self._messages(rounds, question, with_image), True)

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt's text."""
        return self.tokenizer(text, add_special_tokens=self.adds_special_tokens(text)).input_ids

    def adds_special_tokens(self, text: str) -> bool:
        """As transformers: not before a template that begins with them itself."""
        start = self.tokenizer.bos_token
        return start is None or not text.startswith(start)

    def _messages(self, rounds, question, with_image):
        messages = []
        for asked, answered in rounds:
            messages.append(self._message("user", asked))
            messages.append(self._message("assistant", answered))
        messages.append(self._message("user", question))
        if with_image:
            messages[0]["content"].insert(0, {"type": "image"})
        return messages

    def _message(self, role, text):
        return {"role": role, "content": [{"type": "text", "text": self._plain(text)}]}

    def _render(self, messages, is_question):
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.processor.chat_template,
            tokenize=False,
            add_generation_prompt=is_question,
            **NO_THINKING,
        )

    @cached_property
    def _special(self):
        words = {*self.tokenizer.all_special_tokens, getattr(self.processor, "image_token", None)}
        return re.compile("|".join(re.escape(word) for word in sorted(filter(None, words))))

    def _plain(self, text):
        """A person's text, in which no words are the template's own or an image's placeholder."""
        return self._special.sub(lambda word: f"{word[0][0]} {word[0][1:]}", text)

    @cached_property
    def _around_answer(self):
        """What the template writes before an answer, and the ids that end it."""
        messages = self._messages((), PROBE, False)
        prompt = self._render(messages, True)
        whole = self._render([*messages, self._message("assistant", PROBE)], False)
        before = after = ""
        if whole.startswith(prompt):
            before, _, after = whole[len(prompt) :].partition(PROBE)
        ids = self.tokenizer(after, add_special_tokens=False).input_ids
        for place, token in enumerate(ids):
            if token in self.end_ids:
                return before, ids[: place + 1]
        # A template that ends an answer only by the next question
        own = self.tokenizer.eos_token_id
        return before, [own if own in self.end_ids else self.end_ids[0]]

    def target(self, answer: str, limit: int | None) -> tuple[list[int], bool]:
        """(ids of an answer and its end, whether the limit cut it: then without the end)."""
        ids, end = self.beginning(answer), self._around_answer[1]
        if limit and len(ids) + len(end) > limit:
            return ids[: limit - len(end)], True
        return ids + end, False

    def beginning(self, text: str) -> list[int]:
        """Ids of an answer that begins with a text."""
        before = self._around_answer[0]
        return self.tokenizer(before + self._plain(text), add_special_tokens=False).input_ids

    @cached_property
    def pieces(self) -> Pieces:
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        return Pieces(name or "" for name in names)  # an id may have no piece

    def row(
        self,
        question: str,
        answer: str | None = None,
        *,
        history: Sequence[tuple[str, str]] = (),
        image_tokens: int | None = None,
        max_source: int | None = None,
        max_target: int | None = None,
    ) -> Row:
        """Render one round.

        image_tokens: by which the image makes the prompt longer, None without one; max_source
        limits the prompt: the oldest rounds are dropped first, then the question's end, the image
        never; max_target limits the answer with its end.
        Raises UserError where max_source cannot hold the image and the frame of the question.
        """
        with_image = image_tokens is not None
        rounds = list(history)
        while True:
            text = self.text(rounds, question, with_image)
            length = len(self.encode(text)) + (image_tokens or 0)
            over = length - max_source if max_source else 0
            if over <= 0 or not rounds:
                break
            rounds.pop(0)

        shortened = max(0, over)
        if shortened:
            text = self._shortened(question, shortened, with_image, length, max_source)
            length = len(self.encode(text)) + (image_tokens or 0)
        target: list[int] = []
        answer_cut = False
        if answer is not None:
            target, answer_cut = self.target(answer, max_target)
        return Row(
            text,
            np.array(target, dtype=np.int32),  # a list of ints takes eight times the memory
            length + len(target),
            with_image,
            len(history) - len(rounds),
            shortened,
            answer_cut,
        )

    def _shortened(self, question, over, with_image, length, limit):
        """The prompt of a question without at least `over` tokens at its end."""
        ids = self.tokenizer(question, add_special_tokens=False).input_ids
        if len(ids) <= over:
            raise UserError(
                f"a limit of {limit} tokens before the answer is too small: the prompt takes "
                f"{length}, with its image; raise --max_source_length (training) or --max_length "
                "(demos), or lower --max_pixels"
            )
        kept = self.tokenizer.decode(ids[: len(ids) - over]).rstrip("\ufffd")
        return self.text((), kept, with_image)
