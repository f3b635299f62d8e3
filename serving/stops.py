"""Stop sequences: an answer ends before the first of them."""

from collections.abc import Sequence


class StopText:
    """Hands text on as it comes, except what may be the beginning of a stop sequence."""

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = stops
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """A further piece -> (what may be shown, whether a stop sequence has come)."""
        text = self._held + piece
        places = [text.find(stop) for stop in self.stops if stop in text]
        if places:
            self._held = ""
            return text[: min(places)], True
        end = len(text) - self._open_end(text)
        self._held = text[end:]
        return text[:end], False

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held

    def _open_end(self, text):
        """Length of the longest end of the text with which a stop sequence begins."""
        longest = max(map(len, self.stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0
