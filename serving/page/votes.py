"""A local file of what people think of the answers."""

import json
import threading
import time
from pathlib import Path

from model.errors import UserError


class Votes:
    """path: a file of one JSON object a line. Raises UserError where it cannot be written."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise UserError(f"--votes {path}: cannot be written ({error.strerror})") from None

    def add(self, **vote: object) -> None:
        """Append one, with its time in seconds since 1970. Raises OSError."""
        line = json.dumps({"time": round(time.time(), 3), **vote}, ensure_ascii=False)
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
