"""Maps that people make in the page, each in a thread and a folder of its own."""

import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from mapping.options import Options
from mapping.run import FILES, make_map, prepared
from model.errors import UserError
from model.files import is_inside
from model.sampling import Sampling
from serving.bulk import Bulk

GREEDY = Sampling(temperature=0)
AT_A_TIME = 2  # maps; a large scene takes some hundred MB
SUFFIXES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".bmp")


class Stopped(Exception):
    """Somebody stopped the map; what was answered stays."""


class Progress:
    """Called by make_map as tqdm would be, read by whoever looks.

    done, total: tiles of the date that is being answered; dates: how many have begun.
    """

    def __init__(self):
        self.done = self.total = self.dates = 0
        self.stopping = threading.Event()
        self._known = 0
        self._began = 0.0

    def __call__(self, total: int, initial: int, unit: str) -> "Progress":
        self.total, self.done, self._known = total, initial, initial
        self._began = time.monotonic()
        self.dates += 1
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, count: int) -> None:
        self.done += count
        if self.stopping.is_set():
            raise Stopped

    @property
    def rate(self) -> float | None:
        """Tiles a second, None before the first one."""
        seconds = time.monotonic() - self._began
        answered = self.done - self._known
        return answered / seconds if answered and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None


class MapRun:
    """One map on its way; error: one line, when it has ended without a map."""

    def __init__(self, options: Options, maps: "Maps"):
        self.options = options
        self.progress = Progress()
        self.summary: dict[str, Any] | None = None
        self.error: str | None = None
        self._maps = maps
        self._thread = threading.Thread(target=self._make, name="map", daemon=True)
        self._thread.start()

    def _make(self):
        maps = self._maps
        try:
            with prepared(self.options) as job:
                self.summary = make_map(
                    job,
                    maps.bulk,
                    checkpoint=maps.checkpoint,
                    sampling=GREEDY,
                    english=maps.answers_in_english,
                    progress=self.progress,
                )
        except Stopped:
            pass
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # noqa: BLE001 -- it goes to the person who waits for the map
            self.error = " ".join(f"{type(error).__name__}: {error}".split())[:300]

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def stop(self) -> None:
        """Returns when it has ended: after the tiles that are being answered."""
        self.progress.stopping.set()
        self._thread.join()

    @property
    def files(self) -> list[Path]:
        found = [self.options.output / name for name in FILES]
        return [path for path in found if path.is_file()]


class Maps:
    """checkpoint: its name; english: as for Assistant.stream; scenes: a folder of this server whose
    images may be mapped, None: only what people upload; beside: folder in which maps get one of
    their own, None: the system's.

    What one set of options has made stays until the server ends, or its room is needed: asked for
    again, it goes on.
    """

    def __init__(
        self,
        bulk: Bulk,
        checkpoint: str,
        english: bool | None = None,
        scenes: Path | None = None,
        beside: Path | None = None,
    ):
        self.bulk = bulk
        self.checkpoint = checkpoint
        self.english = english
        self.scenes = scenes
        self.answers_in_english = bulk.english if english is None else english
        self._turn = threading.Semaphore(AT_A_TIME)
        self._folder = tempfile.TemporaryDirectory(prefix="remoteglm-maps-", dir=beside)
        self._made: list[Path] = []  # at present

    def names(self) -> list[str]:
        """The images in `scenes` and the folders below it, by their paths there."""
        if self.scenes is None:
            return []
        found = []
        for path in sorted(self.scenes.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found.append(str(path.relative_to(self.scenes)))
        return found

    def path_of(self, name: str) -> str:
        """The file of one of those names. Raises UserError for any other."""
        if self.scenes is None or name not in self.names() or not is_inside(self.scenes, name):
            raise UserError(f"{name}: no image in the folder of scenes")
        return str(self.scenes / name)

    def folder_for(self, asked: dict[str, Any]) -> Path:
        """The folder of the map with these options, but for what does not change the answers."""
        key = {name: value for name, value in asked.items() if name != "min_confidence"}
        text = json.dumps(key, sort_keys=True, default=str)
        return Path(self._folder.name) / hashlib.sha256(text.encode()).hexdigest()[:32]

    def make(
        self, asked: dict[str, Any], look: float = 0.5
    ) -> Generator[MapRun | None, None, None]:
        """Make the map with these Options (but output and batch_size).

        Yields every `look` seconds, and once more at the end; None while others' maps are made, or
        the same one for somebody else. Leaving early stops it.
        """
        options = Options(output=self.folder_for(asked), batch_size=self.bulk.rows, **asked)
        while options.output in self._made:
            yield None
            time.sleep(look)
        self._made.append(options.output)
        try:
            while not self._turn.acquire(timeout=look):
                yield None
            try:
                run = yield from self._watched(MapRun(options, self), look)
            finally:
                self._turn.release()
            yield run
        finally:
            self._made.remove(options.output)

    def _watched(self, run, look):
        try:
            while run.is_running:
                yield run
                run.wait(look)
        finally:
            run.stop()
        return run

    def remove_oldest(self) -> bool:
        """Of the maps that nobody makes remove the oldest; False: there is none."""
        kept = [path for path in Path(self._folder.name).iterdir() if path not in self._made]
        if not kept:
            return False
        oldest = min(kept, key=lambda path: path.stat().st_mtime)
        shutil.rmtree(oldest, ignore_errors=True)
        return not oldest.exists()
