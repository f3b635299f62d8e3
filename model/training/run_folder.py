"""The folder of one training run: a folder per saved step, `latest` and `best` that name one.

A step is written beside its place and published atomically: every file reaches the disk, a manifest
of their hashes is added, and only then the folder gets its name. A crash at any moment leaves the
steps before it as they were, and what a disk lost later is found by its hash.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from model.adapters import MANIFEST
from model.errors import UserError
from model.files import is_inside, lock_file, read_json, sha256, sync_files, write_text

REPLACED = ".replaced"  # JSON list of steps
SPARE = 20e6  # bytes beyond a step: plot, metrics, what the file system needs


class RunFolder:
    """folder: where the run's steps are; `prepare` makes it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self._lock = None

    def prepare(self):
        """Make the folder and try to write in it; returns self. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Every process of a run tries at the same time
            probe = self.folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"checkpoint folder {self.folder} cannot be written: {error.strerror}; "
                "choose another --save"
            ) from None
        return self

    def steps(self):
        """Saved steps, oldest first."""
        found = []
        for path in self.folder.iterdir():
            if path.name.isdecimal() and path.is_dir() and not path.is_symlink():
                found.append(int(path.name))
        return sorted(set(found) - set(self.replaced()))

    def replaced(self):
        """Steps of the run that another one has begun to replace."""
        if not (self.folder / REPLACED).is_file():
            return []
        steps = read_json(self.folder / REPLACED, "list of replaced steps", list)
        # Nothing else of a prepared folder may be removed in their place
        return [step for step in steps if type(step) is int and step >= 0]

    def replace(self, steps):
        """A new run begins in place of these steps, which stay until it saves its first."""
        if steps:
            write_text(self.folder / REPLACED, json.dumps(steps))
        else:
            (self.folder / REPLACED).unlink(missing_ok=True)

    def lock(self, say=print):
        """Keep other runs out while this process lives. Raises UserError where one is at work.

        say: told in a line where the file system has no locks.
        """
        try:
            self._lock = open(self.folder / ".lock", "w")
            is_locked = lock_file(self._lock)
        except BlockingIOError:
            raise UserError(
                f"{self.folder}: another run is writing there; wait for it, or name another "
                "--experiment-name"
            ) from None
        except OSError as error:
            raise UserError(
                f"checkpoint folder {self.folder} cannot be written: {error.strerror}; "
                "choose another --save"
            ) from None
        if not is_locked:
            say(f"{self.folder}: the file system has no locks; start no second run there")

    def drop(self, steps):
        """Remove these steps, and what crashed runs left unfinished."""
        unfinished = list(self.folder.glob(".saving-*"))
        for path in [self.folder / str(step) for step in steps] + unfinished:
            shutil.rmtree(path, ignore_errors=True)
        for name in ("latest", "best"):
            pointer = self.folder / name
            if not pointer.is_file():
                continue
            step = pointer.read_text(errors="replace").strip()
            if not is_inside(self.folder, step) or not (self.folder / step).is_dir():
                pointer.unlink()

    def check_space(self, size):
        """UserError where the disk has no space for a step of this many bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < size + SPARE:
            raise UserError(
                f"checkpoint folder {self.folder}: a step takes {size / 1e9:.2f} GB, the disk has "
                f"{free / 1e9:.2f} GB free; make room, or choose another --save; the steps saved "
                "so far are as they were"
            )

    def scratch(self, step):
        """Where a step is put together."""
        return self.folder / f".saving-{step}"

    @contextmanager
    def writing(self, step):
        """A context in which a full disk and the like raise UserError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be written: {reason}; the steps "
                "before it are as they were; make room, the same command with --resume continues"
            ) from None

    def publish(self, step):
        """The step is complete: give it its name, and name it in `latest`. Raises UserError."""
        new, place = self.scratch(step), self.folder / str(step)
        with self.writing(step):
            files = sync_files(new)
            hashes = {str(path.relative_to(new)): sha256(path) for path in files}
            write_text(new / MANIFEST, json.dumps(hashes, indent=1))
            if place.exists():
                shutil.rmtree(place)
            if step in self.replaced():
                self.replace([other for other in self.replaced() if other != step])
            os.replace(new, place)
            self.point("latest", step)

    def point(self, name, step):
        """`latest` or `best` names a step from now on."""
        write_text(self.folder / name, str(step))

    def damage(self, step):
        """The first file of a step that is not what was written, or None."""
        folder = self.folder / str(step)
        try:
            hashes = read_json(folder / MANIFEST, "list of hashes", dict)
        except UserError:
            return MANIFEST
        if not hashes or not all(is_inside(folder, name) for name in hashes):
            return MANIFEST
        for name, expected in hashes.items():
            if not (folder / name).is_file() or sha256(folder / name) != expected:
                return name
        return None

    def keep(self, count, newest, best=None):
        """Remove all but the last `count` steps up to the newest, and the best one.

        Steps beyond the newest one are what a resumed run went back from: they are removed, too.
        """
        steps = [step for step in self.steps() if step <= newest]
        kept = {*steps[-count:], best}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.folder / str(step))
