"""An assistant behind a scheduler: the same answers, to many people at once."""

import queue
from collections.abc import Callable, Generator, Sequence

from PIL import Image

from model.assistant import Assistant
from model.errors import UserError
from model.rows import Sample
from model.running_batch import Question
from model.sampling import Sampling
from serving.scheduler import CANCELLED, ERROR, LENGTH, TIME, QueueFull, Scheduler

LOOK = 0.3  # seconds without a piece after which the place in the queue is told again


class Silence(str):
    """An empty piece. place: (questions before this one, estimated seconds) while it waits."""

    place: tuple[int, float] | None

    def __new__(cls, place):
        silence = super().__new__(cls, "")
        silence.place = place
        return silence


class Served:
    """Like an Assistant, from any thread."""

    def __init__(self, assistant: Assistant, scheduler: Scheduler):
        self.scheduler = scheduler
        self.prompt = assistant.prompt
        self.english = assistant.english
        self.fingerprint = assistant.fingerprint
        self.has_adapter = assistant.has_adapter
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
    ) -> Generator[str, None, bool]:
        """As Assistant.stream. Raises UserError, also where the queue is full.

        Every LOOK seconds without a piece a Silence comes, so that the caller can show it. Leaving
        early drops the answer.
        """
        asked = Question(
            Sample(None, question, None, tuple(history)),
            image,
            sampling or Sampling(),
            self.english if english is None else english,
            untuned,
        )
        events: queue.Queue = queue.Queue()
        try:
            # Each question is a client of its own: who asks is not known here
            ticket = self.scheduler.submit(asked, events.put, client=f"stream {id(events)}")
        except QueueFull as error:
            raise UserError(str(error)) from None
        try:
            event = yield from self._next(ticket, events)
            if any(ticket.cut) and on_cut:
                on_cut(*ticket.cut)
            while not event.end:
                yield event.text
                event = yield from self._next(ticket, events)
            yield event.text
            return _is_truncated(event)
        finally:
            self.scheduler.cancel(ticket)

    def _next(self, ticket, events):
        """The next event; meanwhile yields Silence."""
        while True:
            try:
                return events.get(timeout=LOOK)
            except queue.Empty:
                yield Silence(self.scheduler.place(ticket))


def _is_truncated(event):
    if event.end == CANCELLED:
        raise UserError("the server is shutting down")
    if event.end == ERROR:
        raise UserError(event.error)
    return event.end in (LENGTH, TIME)
