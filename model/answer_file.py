"""The file of a run's answers: appended to as they come, so that a second run continues."""

import json
from contextlib import suppress
from pathlib import Path

from model.errors import UserError
from model.files import lock_file, parse_json


class AnswerFile:
    """JSON lines: {"img", "prompt", "history", "label", "answer" or "error", "settings"}.

    "cut" says what the length limit left out: {"rounds": oldest ones of the history, "tokens": of
    the question's end}; "truncated": true, that it ended the answer. A context that closes the file
    at its end. Raises UserError where the file cannot be written or holds something else.
    A subclass for other lines changes `beginning` and `is_entry`.
    """

    beginning = b'{"img": '  # of every line

    def __init__(self, path):
        self.path = Path(path)
        self.entries = []
        self._file = None

    def __enter__(self):
        return self if self._file else self.open()

    def __exit__(self, *_):
        # What could not be written has been reported; closing would only try it again
        with suppress(OSError):
            self._file.close()

    def open(self):
        """Read the earlier entries; a last line torn by a crash is cut off."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")
            self._lock()
            self._file.seek(0)
            lines = self._file.read().splitlines(keepends=True)
        except OSError as error:
            raise UserError(f"output {self.path} cannot be written: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            entry = self._entry(line)
            if entry is not None:
                self.entries.append(entry)
            elif self._is_torn(line):
                self._file.truncate(self._file.tell() - len(line))
            else:
                raise UserError(
                    f"output {self.path}: line {number} is no answer of an earlier run; "
                    "name another file"
                )
        if self.entries and lines[-1].endswith(b"}"):
            self._file.write(b"\n")
        return self

    def _lock(self):
        """Keep other processes out while this file is open."""
        try:
            lock_file(self._file)
        except BlockingIOError:
            raise UserError(
                f"output {self.path}: another run is writing there; wait for it, or name another "
                "file"
            ) from None

    def append(self, entries):
        """Write entries, each on its line, before the next batch is asked."""
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"output {self.path} cannot be written: {error.strerror}; make room, the same "
                "command continues"
            ) from None
        self.entries += entries

    @staticmethod
    def is_entry(entry):
        """Whether the JSON object of a line is an answer."""
        return "prompt" in entry and ("answer" in entry or "error" in entry)

    def _entry(self, line):
        """The entry of a line, None where it is no answer."""
        try:
            entry = parse_json(line)
        except ValueError:
            return None
        return entry if isinstance(entry, dict) and self.is_entry(entry) else None

    def _is_torn(self, line):
        """The beginning of an entry; only the last line of a file has no end."""
        try:
            parse_json(line)
            return False
        except ValueError:
            begins = self.beginning.startswith(line[: len(self.beginning)])
            return begins and not line.endswith(b"\n")
