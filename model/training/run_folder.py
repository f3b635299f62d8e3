"""The folder of one training run: a folder for each saved step, `latest` and `best` that name one, and what is whole.

A step is written beside its place, sealed with the hash of every file, and only then moved to its name: a crash at any
moment leaves the steps before it as they were, and what a disk lost later is found by its hash.
"""

import fcntl
import json
import os
import shutil
from pathlib import Path

from model.errors import UserError
from model.files import sha256

SEAL = "complete.json"
SPARE = 20e6  # bytes beyond a step: plot, measures, what the file system needs


class RunFolder:
    def __init__(self, folder):
        """Raises UserError where nothing can be written."""
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = (
                self.folder / f".writable-{os.getpid()}"
            )  # every process of a run tries at the same time
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"checkpoint folder {folder} cannot be written: {error.strerror}; choose another --save"
            ) from None

    def steps(self):
        """Saved steps, oldest first."""
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isdigit() and path.is_dir()
        )

    def lock(self):
        """Keep other runs out while this process lives. Raises UserError where one is at work."""
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.folder}: another run is writing there; wait for it, or name another --experiment-name"
            ) from None

    def drop(self, steps):
        """Remove these steps, and what crashed runs left unfinished."""
        for path in [self.folder / str(step) for step in steps] + list(
            self.folder.glob(".saving-*")
        ):
            shutil.rmtree(path, ignore_errors=True)

    def check_room(self, size):
        """UserError where the disk has no room for a step of this many bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE:
            raise UserError(
                f"checkpoint folder {self.folder}: a step takes {size / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; make room, "
                "or choose another --save; the steps saved so far are as they were"
            )

    def scratch(self, step):
        """Where a step is put together."""
        return self.folder / f".saving-{step}"

    def seal(self, step):
        """The step is whole: give it its name and let `latest` say so. Raises UserError."""
        new, place = self.scratch(step), self.folder / str(step)
        try:
            files = sorted(path for path in new.rglob("*") if path.is_file())
            for path in files:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            self._write(
                new / SEAL,
                json.dumps({str(path.relative_to(new)): sha256(path) for path in files}, indent=1),
            )
            if place.exists():
                shutil.rmtree(place)
            os.replace(new, place)
            self.point("latest", step)
        except OSError as error:
            raise UserError(
                f"checkpoint {place} cannot be written: {error.strerror}; the steps before it are as they were"
            ) from None

    def point(self, name, step):
        """`latest` or `best` names a step from now on."""
        self._write(self.folder / f".{name}", str(step))
        os.replace(self.folder / f".{name}", self.folder / name)

    @staticmethod
    def _write(path, text):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def damage(self, step):
        """The first file of a step that is not what was written, or None."""
        folder = self.folder / str(step)
        try:
            wanted = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return SEAL
        return next(
            (
                name
                for name, mark in wanted.items()
                if not (folder / name).is_file() or sha256(folder / name) != mark
            ),
            None,
        )

    def keep(self, count, best=None):
        """Remove all but the last `count` steps and the best one."""
        for step in self.steps()[:-count]:
            if step != best:
                shutil.rmtree(self.folder / str(step))
