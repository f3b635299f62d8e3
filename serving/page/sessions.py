"""What the server keeps of each open page: dialogue and files. It goes when the page is closed.

A page that is loaded again takes over what the one before it left.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from model.errors import UserError
from serving.page.dialogue import Dialogue
from serving.page.view import View
from serving.page.words import Said

MOST = 1000  # pages; those used longest ago go first
GRACE = 120.0  # seconds that a closed page is kept, so that it may be loaded again
PATIENCE = 5.0  # seconds for an answer to end that was told to
JUST_NOW = 60.0  # seconds in which a page shows what it has uploaded


@dataclass
class Refused:
    """A file that could not be read. path: as the error calls it, where it does."""

    name: str
    error: UserError
    path: Path | None

    def __post_init__(self):
        # Its frames hold what was read of the file
        self.error.__traceback__ = self.error.__context__ = self.error.__cause__ = None


@dataclass(eq=False)
class Session:
    """One open page. main: the dialogue; side: the one beside it, of the base or another image.

    refused: in the place of the image; shows: "image" or "seen", what the model sees; pending: a
    question that waits for its person's yes; pending_typed: it stands in the box; state: of the
    last answer, None: nothing is said of it; turn: held while an answer is under way; stopping: it
    is to end; idle: there is none, nor the last of one on its way to the page; uploads: its files;
    scenes: those of the map tab; map_said: what stands beside its map; map_is_open: one was begun
    and has not come to its end.
    """

    main: Dialogue = field(default_factory=Dialogue)
    side: Dialogue = field(default_factory=Dialogue)
    view: View | None = None
    other: View | None = None
    refused: Refused | None = None
    shows: str = "image"
    mode: str = "alone"
    pending: str = ""
    pending_typed: bool = True
    english: bool | None = None
    state: Said | None = None
    turn: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)
    uploads: set[Path] = field(default_factory=set)
    scenes: set[Path] = field(default_factory=set)
    map_said: Said | None = None
    map_is_open: bool = False

    def __post_init__(self):
        self.idle.set()

    def begin_answer(self) -> bool:
        """Take the turn; False: another answer is under way."""
        if not self.turn.acquire(blocking=False):
            return False
        self.idle.wait(PATIENCE)
        self.stopping.clear()
        self.idle.clear()
        return True

    def end_answer(self) -> None:
        """Let the answer under way show its last piece, lest it arrive after what follows."""
        self.stopping.set()
        self.idle.wait(PATIENCE)

    def cut(self, question: int) -> None:
        """Drop a question, counted from 0, and what follows, also beside it."""
        left = len(self.side.questions) - len(self.main.questions) + question
        self.main.cut(question)
        if left > 0:
            self.side.cut(left)
        else:
            self.side.clear()

    @property
    def dialogues(self) -> tuple[Dialogue, Dialogue]:
        """Both as they are now; set: as they were."""
        return self.main.copy(), self.side.copy()

    @dialogues.setter
    def dialogues(self, kept: tuple[Dialogue, Dialogue]) -> None:
        self.main, self.side = kept

    @property
    def files(self) -> set[Path]:
        """Uploaded files that it still shows; examples are not among them."""
        shown = {view.path for view in (self.view, self.other) if view}
        return self.uploads & (shown | self.scenes)


class Sessions:
    """Sessions by the hash that Gradio gives each open page."""

    def __init__(self, most: int = MOST, grace: float = GRACE):
        self.most = most
        self.grace = grace
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._ends: dict[str, threading.Timer] = {}

    def __iter__(self) -> Iterator[Session]:
        with self._lock:
            return iter(list(self._open.values()))

    def of(self, key: str) -> Session:
        """The session of a page, a new one where there is none."""
        with self._lock:
            session = self._open.setdefault(key, Session())
            self._open.move_to_end(key)
            # Its connection was lost, the page is still there: it goes on asking, and see PING
            if key in self._ends:
                self._start_timer(key)
            old = [self._open.popitem(last=False)[1] for _ in range(len(self._open) - self.most)]
        for one in old:
            self.drop(one, one.uploads)
        return session

    def take_over(self, key: str, old_key: str) -> None:
        """A page that was loaded again gets the session that it had before."""
        with self._lock:
            self._stop_timer(old_key)
            session = self._open.pop(old_key, None)
            if session:
                self._open[key] = session

    def leave(self, key: str) -> None:
        """A page was closed, is loaded again, or lost its connection."""
        with self._lock:
            if key in self._open:
                self._start_timer(key)

    def release(self, session: Session) -> None:
        """Remove what the session uploaded and no longer shows."""
        self.drop(session, session.uploads - session.files)

    def drop(self, session: Session, paths: set[Path]) -> None:
        """Files of a session are no longer its own; those that are nobody's are removed."""
        session.uploads = session.uploads - paths
        # Gradio keeps one copy of files of the same content
        for path in paths - self._used():
            _remove(path)

    def end_oldest(self) -> bool:
        """Forget the page that was closed first; False: none was."""
        with self._lock:
            key = next(iter(self._ends), "")
            self._stop_timer(key)
        return self._end(key)

    def remove_unclaimed(self, uploaded: Iterable[str]) -> bool:
        """Of these files remove the oldest that no page shows; False: there is none."""
        used = self._used()
        left = []
        for path in map(Path, uploaded):
            with suppress(OSError):
                changed = path.stat().st_ctime
                if path not in used and time.time() - changed > JUST_NOW:
                    left.append((changed, path))
        if not left:
            return False
        oldest = min(left)[1]
        _remove(oldest)
        return not oldest.exists()

    def _end(self, key):
        with self._lock:
            self._ends.pop(key, None)
            session = self._open.pop(key, None)
        if session:
            self.drop(session, session.uploads)
        return session is not None

    def _start_timer(self, key):
        self._stop_timer(key)
        timer = threading.Timer(self.grace, self._end, [key])
        timer.daemon = True
        self._ends[key] = timer
        timer.start()

    def _stop_timer(self, key):
        timer = self._ends.pop(key, None)
        if timer:
            timer.cancel()

    def _used(self):
        return set().union(*(one.uploads for one in self))


def _remove(path):
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
