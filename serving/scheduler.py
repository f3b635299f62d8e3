"""Whose answer goes on when: one thread computes for everybody.

People hand in questions and get pieces of text through a function of their own. Questions wait in
a bounded queue; the batch (model/running_batch.py) takes them as it has room. Clients take turns,
so that one with many questions does not keep another from its first.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from model.assistant import Assistant
from model.errors import UserError
from model.running_batch import Advance, Question
from serving.metrics import Metrics
from serving.stops import StopText

T = TypeVar("T")

# Why an answer ended
STOP = "stop"  # by itself, or at a stop sequence
LENGTH = "length"  # at a limit of tokens
TIME = "time"  # at the limit of seconds
CANCELLED = "cancelled"
ERROR = "error"

# Seconds of an answer before any has been measured, for the estimate of a wait
FIRST_GUESS = 5.0
# How much a further answer changes the measured mean, once there are many
WEIGHT = 0.1


class QueueFull(UserError):
    """No room in the queue; seconds: after how long there may be."""

    def __init__(self, waiting: int, seconds: float):
        super().__init__(f"{waiting} questions are waiting, as many as may; try again in a while")
        self.seconds = seconds


@dataclass
class Event:
    """A piece of an answer, or its end."""

    text: str = ""
    end: str | None = None  # STOP, LENGTH, ...
    error: str | None = None  # with ERROR; one line
    is_users: bool = False  # the error is one that the asking person can mend


@dataclass(eq=False)
class Ticket:
    """A question on its way. deliver: called with each Event, in the scheduler's thread."""

    question: Question
    deliver: Callable[[Event], None]
    client: str
    stop: StopText
    seconds: float  # limit, from the answer's begin on
    turn: int  # of its client: the lower one is first
    number: int  # order of arrival
    asked_at: float = field(default_factory=time.monotonic)
    begun_at: float | None = None
    key: int | None = None  # in the batch
    prompt_tokens: int | None = None
    tokens: int | None = None  # of the answer so far
    cut: tuple[int, int] = (0, 0)  # rounds and tokens of the question that were not read
    cancelled: bool = False
    has_text: bool = False

    @property
    def order(self):
        return self.turn, self.number


class Scheduler:
    """rows: answers under way at a time; waiting: questions that may wait; seconds: greatest time
    of an answer; max_tokens: of an answer; memory: bytes of the KV cache; None: without a limit.
    Raises UserError.
    """

    def __init__(
        self,
        assistant: Assistant,
        *,
        rows: int = 8,
        waiting: int = 64,
        seconds: float = 120,
        max_tokens: int | None = None,
        memory: int | None = None,
    ):
        self.rows = rows
        self.max_waiting = waiting
        self.seconds = seconds
        self.max_tokens = max_tokens
        self.metrics = Metrics()
        self._batch = assistant.family.open_batch(rows, memory)
        self._waiting: list[Ticket] = []
        self._running: dict[int, Ticket] = {}
        self._work: list[tuple[Callable[[], Any], Future]] = []
        self._turns: Counter[str] = Counter()  # the next turn of each client
        self._turn = 0  # of the question that began last
        self._number = 0
        self._measured = 0  # answers that have ended
        self._mean_seconds = 0.0  # of them, the later ones more
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    # What clients call, from any thread

    def submit(
        self,
        question: Question,
        deliver: Callable[[Event], None],
        *,
        client: str = "",
        stop: Sequence[str] = (),
        is_bulk: bool = False,
    ) -> Ticket:
        """Queue a question. client: who asks, for the order; is_bulk: by somebody who asks no more
        than there are rows, and has a place in a full queue, too. Raises QueueFull.
        """
        question = self._limited(question)
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler has ended")
            if len(self._waiting) >= self.max_waiting and not is_bulk:
                self.metrics.count("refused")
                raise QueueFull(len(self._waiting), self._wait(len(self._waiting)))
            turn = max(self._turns[client], self._turn)
            self._turns[client] = turn + 1
            self._forget_turns()
            self._number += 1
            ticket = Ticket(
                question, deliver, client, StopText(stop), self.seconds, turn, self._number
            )
            self._waiting.append(ticket)
            self._waiting.sort(key=lambda ticket: ticket.order)
            self._changed.notify()
        return ticket

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context whose questions are looked at when it ends: they can begin in one batch."""
        with self._changed:
            yield

    def compute(self, work: Callable[[], T]) -> T:
        """What a function makes of the network, between two tokens of the answers under way.

        Raises what it raises, and UserError where the scheduler ends.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise UserError("the server is shutting down")
            self._work.append((work, future))
            self._changed.notify()
        try:
            return future.result()
        except CancelledError:
            raise UserError("the server is shutting down") from None

    def cancel(self, ticket: Ticket) -> None:
        """Drop a question, at the next token where its answer has begun."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify()

    def place(self, ticket: Ticket) -> tuple[int, float] | None:
        """(questions before it, estimated seconds) of one that waits; None once it has begun."""
        with self._changed:
            if ticket not in self._waiting:
                return None
            ahead = self._waiting.index(ticket)
            return ahead, self._wait(ahead)

    @property
    def load(self) -> tuple[int, int]:
        """(answers under way, questions that wait)"""
        with self._changed:
            return len(self._running), len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether questions are still answered."""
        return not self._closed and self._thread.is_alive()

    def close(self) -> None:
        """End all answers as cancelled, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _limited(self, question):
        asked = question.sampling.max_new_tokens
        if self.max_tokens is None or (asked is not None and asked <= self.max_tokens):
            return question
        return replace(
            question, sampling=replace(question.sampling, max_new_tokens=self.max_tokens)
        )

    def _forget_turns(self):
        """Leave out clients that have no turn to wait for."""
        if len(self._turns) > 2 * self.max_waiting:
            later = {c: turn for c, turn in self._turns.items() if turn > self._turn}
            self._turns = Counter(later)

    def _wait(self, ahead):
        return self._answer_seconds() * (ahead + 1) / self.rows

    def _answer_seconds(self):
        """As measured; before, as long as one under way has taken already."""
        if self._measured:
            return self._mean_seconds
        now = time.monotonic()
        under_way = [now - ticket.begun_at for ticket in list(self._running.values())]
        return max([FIRST_GUESS, *under_way])

    # The thread

    def _run(self):
        try:
            while self._go_on():
                if self._running:
                    self._step()
                self._compute()
        finally:
            with self._changed:
                self._closed = True
                for _, future in self._work:
                    future.cancel()
            for ticket in [*self._running.values(), *self._waiting]:
                self._deliver(ticket, Event(end=CANCELLED))
            self._running.clear()
            self._waiting.clear()

    def _go_on(self):
        """Wait for something to do -> False when it is over."""
        with self._changed:
            while not (self._closed or self._waiting or self._running or self._work):
                self._changed.wait()
            if self._closed:
                return False
            self._drop()
            self._admit()
        return True

    def _drop(self):
        """Leave out those who are gone, and end answers that take too long."""
        for ticket in [ticket for ticket in self._waiting if ticket.cancelled]:
            self._waiting.remove(ticket)
            self._end(ticket, Event(end=CANCELLED))
        now = time.monotonic()
        for ticket in list(self._running.values()):
            if ticket.cancelled:
                self._end(ticket, Event(end=CANCELLED))
            elif now - ticket.begun_at > ticket.seconds:
                self._end(ticket, Event(ticket.stop.rest(), TIME))

    def _admit(self):
        while self._waiting and self._batch.takes(self._waiting[0].question):
            ticket = self._waiting.pop(0)
            self._turn = max(self._turn, ticket.turn)
            ticket.begun_at = time.monotonic()
            try:
                joined = self._batch.add(ticket.question)
            except Exception as error:  # noqa: BLE001 -- one person's question ends nobody else's
                self._end(ticket, error_event(error))
                continue
            ticket.key = joined.key
            ticket.prompt_tokens, ticket.cut = joined.prompt_tokens, joined.cut
            self._running[joined.key] = ticket
        if not self._waiting and not self._running:
            self._turns.clear()

    def _compute(self):
        """One of the computations that wait."""
        if not self._work:
            return
        work, future = self._work.pop(0)
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 -- whoever waits for the result gets it
            future.set_exception(error)

    def _step(self):
        try:
            advances = self._batch.step()
        except Exception as error:  # noqa: BLE001 -- the server goes on with the next questions
            advances = [Advance(key, error=error) for key in self._running]
        for advance in advances:
            ticket = self._running.get(advance.key)
            if ticket:
                self._hand_on(ticket, advance)

    def _hand_on(self, ticket, advance):
        if advance.error:
            self._end(ticket, error_event(advance.error))
            return
        ticket.tokens = advance.tokens
        self.metrics.tokens(ticket)
        text, stopped = ticket.stop.feed(advance.text)
        if stopped:
            self._end(ticket, Event(text, STOP))
        elif advance.ended:
            end = LENGTH if advance.truncated else STOP
            self._end(ticket, Event(text + ticket.stop.rest(), end))
        elif text:
            self._deliver(ticket, Event(text))

    def _end(self, ticket, event):
        """The last event of a question, wherever it was."""
        if ticket.key is not None:
            self._running.pop(ticket.key, None)
            self._batch.remove(ticket.key)
        if ticket.begun_at is not None:
            seconds = time.monotonic() - ticket.begun_at
            self._measured += 1
            weight = max(WEIGHT, 1 / self._measured)
            self._mean_seconds += weight * (seconds - self._mean_seconds)
        self.metrics.count(event.end)
        self._deliver(ticket, event)

    def _deliver(self, ticket, event):
        if event.text and not ticket.has_text:
            ticket.has_text = True
            self.metrics.first_piece(time.monotonic() - ticket.asked_at)
        try:
            ticket.deliver(event)
        except Exception:  # noqa: BLE001 -- a client that is gone in whatever way
            ticket.cancelled = True


def error_event(error: Exception) -> Event:
    """The end of an answer that failed."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return Event(end=ERROR, error=text, is_users=isinstance(error, UserError))
