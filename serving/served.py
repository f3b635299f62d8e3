"""An assistant behind a scheduler: the same answers, to many people at once."""

import queue
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from PIL import Image

from model.assistant import Assistant
from model.errors import UserError
from model.rows import Sample
from model.running_batch import Question
from model.sampling import Sampling
from serving.scheduler import CANCELLED, ERROR, LENGTH, TIME, Event, Scheduler

LOOK = 0.3  # seconds without a piece after which the place in the queue is told again


class Piece(str):
    """A piece of an answer, maybe empty.

    tokens: of the answer so far, None where they are not counted; place: (questions before this
    one, estimated seconds) while it waits.
    """

    tokens: int | None
    place: tuple[int, float] | None

    def __new__(cls, text, tokens=None, place=None):
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        piece.place = place
        return piece


class Served:
    """Like an Assistant, from any thread."""

    def __init__(self, assistant: Assistant, scheduler: Scheduler):
        self.scheduler = scheduler
        self.family = assistant.family
        self.prompt = assistant.prompt
        self.english = assistant.english
        self.fingerprint = assistant.fingerprint
        self.has_adapter = assistant.has_adapter
        self.seen = assistant.seen
        self.first_question = assistant.first_question

    def stream(
        self,
        question: str,
        image: Image.Image | None = None,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
        english: bool | None = None,
        on_cut: Callable[[int, int], None] | None = None,
        untuned: bool = False,
    ) -> Generator[Piece, None, bool]:
        """As Assistant.stream, in pieces of what has come. Raises UserError; QueueFull is one.

        Every LOOK seconds without text an empty piece comes, so that the caller can show it.
        Leaving early drops the answer.
        """
        asked = Question(
            Sample(None, question, None, tuple(history)),
            image,
            sampling or Sampling(),
            self.english if english is None else english,
            untuned,
        )
        events: queue.Queue = queue.Queue()
        # Each question is a client of its own: who asks is not known here
        ticket = self.scheduler.submit(asked, events.put, client=f"stream {id(events)}")
        try:
            event = yield from self._next(ticket, events)
            if any(ticket.cut) and on_cut:
                on_cut(*ticket.cut)
            while not event.end:
                yield Piece(event.text, ticket.tokens)
                event = yield from self._next(ticket, events)
            yield Piece(event.text, ticket.tokens)
            return is_truncated(event)
        finally:
            self.scheduler.cancel(ticket)

    def _next(self, ticket, events):
        """What has come as one event; meanwhile yields empty pieces."""
        while True:
            try:
                return _joined(events.get(timeout=LOOK), events)
            except queue.Empty:
                yield Piece("", ticket.tokens, self.scheduler.place(ticket))


def _joined(event, events):
    """An event and those that wait behind it, as one."""
    text = event.text
    while not event.end and not events.empty():
        event = events.get()
        text += event.text
    return replace(event, text=text)


def is_truncated(event: Event) -> bool:
    """Whether a limit ended the answer whose last event this is. Raises UserError."""
    if event.end == CANCELLED:
        raise UserError("the server is shutting down")
    if event.end == ERROR:
        raise UserError(event.error)
    return event.end in (LENGTH, TIME)
