"""An answer, or two side by side, while they come."""

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from model.errors import UserError
from serving.page.dialogue import Dialogue, Message
from serving.scheduler import QueueFull

PERIOD = 0.1  # seconds between two views of an answer: a browser draws no more of them


@dataclass
class Stream:
    """One answer under way. pieces: of Assistant.stream."""

    dialogue: Dialogue
    answer: Message
    pieces: Generator[str, None, bool]
    started: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when it no longer had to wait
    tokens: int | None = None
    place: tuple[int, float] | None = None  # in the queue
    was_taken: bool = False  # by the assistant
    error: UserError | None = None
    was_stopped: bool = False
    truncated: bool = False
    ended: float | None = None

    def advance(self) -> None:
        """Wait for its next piece, which may be empty."""
        try:
            piece = next(self.pieces)
        except StopIteration as end:
            self.truncated = bool(end.value)
            self.ended = time.monotonic()
            return
        except UserError as error:
            self.error = error
            self.ended = time.monotonic()
            return
        self.was_taken = True
        self.place = getattr(piece, "place", None)
        self.tokens = getattr(piece, "tokens", None)
        if self.place is not None:
            self.begun = time.monotonic()
        self.answer.text += piece

    @property
    def was_refused(self) -> bool:
        """Whether there was no place for the question."""
        return isinstance(self.error, QueueFull) and not self.was_taken

    def sign(self, words: dict[str, str]) -> str:
        """What stands in the answer's place before its first piece."""
        if self.ended is not None:
            return ""
        if self.place is None:
            return words["working"]
        ahead, seconds = self.place
        return words["waiting"].format(ahead, max(1, round(seconds)))

    def summary(self, words: dict[str, str]) -> str:
        """Tokens, tokens a second and seconds; without tokens where they are not counted."""
        now = self.ended or time.monotonic()
        seconds = _short(now - self.started)
        if not self.tokens:
            return words["seconds"].format(seconds)
        rate = self.tokens / max(now - (self.begun or self.started), 1e-3)
        return words["tokens"].format(self.tokens, _short(rate), seconds)


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"


def together(streams: Sequence[Stream], stopping: threading.Event) -> Generator[None, None, None]:
    """Advance all until they have ended or are to; yields when there may be more to show."""
    running = list(streams)
    shown = time.monotonic()  # the caller has shown the beginning
    try:
        while running and not stopping.is_set():
            for stream in running:
                stream.advance()
            running = [stream for stream in running if stream.ended is None]
            if time.monotonic() - shown >= PERIOD:
                yield
                shown = time.monotonic()
    finally:
        for stream in streams:
            if stream.ended is None:
                stream.was_stopped = True
                stream.ended = time.monotonic()
            stream.pieces.close()
