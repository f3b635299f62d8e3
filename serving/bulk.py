"""Many questions that are in no hurry, answered beside those of people."""

import queue
from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident

from PIL import Image

from model.assistant import Assistant
from model.rows import Sample
from model.running_batch import Question
from model.sampling import Sampling
from serving.scheduler import Scheduler
from serving.served import is_truncated


class Bulk:
    """Like an Assistant, from any thread, for whoever asks in batches.

    rows: questions of a batch that are answered together; one more is left to people, and beyond
    that they take turns with the threads that ask here.
    """

    def __init__(self, assistant: Assistant, scheduler: Scheduler):
        self.scheduler = scheduler
        self.rows = max(1, scheduler.rows - 1)
        self.fingerprint = assistant.fingerprint
        self.english = assistant.english
        self.first_question = assistant.first_question
        self._assistant = assistant

    def answer_batch(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image | None],
        sampling: Sampling,
        english: bool,
        on_truncated: Callable[[int], object] = lambda index: None,
    ) -> list[str]:
        """As Assistant.answer_batch. Raises UserError."""
        asked = []
        for question, image in zip(questions, images):
            asked.append(Question(Sample(None, question, None), image, sampling, english))
        answers = [""] * len(asked)
        for start in range(0, len(asked), self.rows):
            indices = range(start, min(start + self.rows, len(asked)))
            for index, event in self._events(indices, asked):
                answers[index] += event.text
                if event.end and is_truncated(event):
                    on_truncated(index)
        return answers

    def _events(self, indices, asked):
        """(index, Event) of the questions until all have ended; leaving early drops them."""
        events: queue.Queue = queue.Queue()
        tickets = []
        try:
            with self.scheduler.together():
                for index in indices:
                    deliver = partial(_put, events, index)
                    ticket = self.scheduler.submit(
                        asked[index], deliver, client=f"bulk {get_ident()}", is_bulk=True
                    )
                    tickets.append(ticket)
            unfinished = len(tickets)
            while unfinished:
                index, event = events.get()
                yield index, event
                unfinished -= event.end is not None
        finally:
            for ticket in tickets:
                self.scheduler.cancel(ticket)

    def score(
        self,
        questions: Sequence[str],
        images: Sequence[Image.Image | None],
        texts: Sequence[Sequence[str]],
        english: bool,
    ) -> list[list[float]] | None:
        """As Assistant.score, between two tokens of the answers under way. Raises UserError."""
        return self.scheduler.compute(
            partial(self._assistant.score, questions, images, texts, english)
        )


def _put(events, index, event):
    events.put((index, event))
