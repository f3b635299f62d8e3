"""Who decodes an image when: large ones apart, so that nobody's small one waits for them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.images import TOO_LARGE
from model.images.reading import opened, pixels_of
from serving.page.words import WordedError

USUAL = 10**9  # pixels: a scene of 30,000 x 30,000, some ten seconds
LARGE = 2**24  # pixels from which on an image takes more than a moment, and some hundred MB
SMALL_AT_A_TIME, LARGE_AT_A_TIME = 4, 2


class TooManyPixels(WordedError):
    """What the page says of it names its tab of maps; programs do not see the page."""

    kind = TOO_LARGE

    def __str__(self) -> str:
        width, height, most = self.values
        return (
            f"{width} x {height} pixels, at most {most} are read here: crop it or shrink it, or "
            "start the server with a larger --max-image-pixels"
        )


class Turns:
    """most: pixels that are decoded of an image; those of a large file that has overviews are few.

    From any thread.
    """

    def __init__(self, most: int = USUAL):
        self.most = most
        self._small = threading.Semaphore(SMALL_AT_A_TIME)
        self._large = threading.Semaphore(LARGE_AT_A_TIME)

    @contextmanager
    def take(self, size: tuple[int, int, int]) -> Iterator[None]:
        """A context in which an image may be decoded. size: see pixels_of.

        Raises TooManyPixels.
        """
        width, height, pixels = size
        if pixels > self.most:
            raise TooManyPixels("too many pixels", width, height, self.most)
        with self._large if pixels > LARGE else self._small:
            yield

    @contextmanager
    def of_file(self, path: Path) -> Iterator[None]:
        """The same for a file. Raises ImageError as well."""
        with opened(path) as file:
            size = pixels_of(file)
        with self.take(size):
            yield
