"""The pieces of a vocabulary, and which of them go beyond the end of a text.

A text may end inside a token of an answer: 停车场 within the piece 停车场里.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice


class Pieces:
    """The pieces of a vocabulary, of which a text's are always the same characters in a row.

    names: by id.
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)
        self._sorted = sorted((name, index) for index, name in enumerate(self.names))

    def endings(self, ids: list[int]) -> list[list[int]]:
        """For each token, those that in its place bring the text to its end, or beyond it.

        Of 停车 + 场 these are at the first place 停车场 and 停车场里, if there are such pieces, and
        at the second 场 and all that begin with it.
        """
        found = []
        rest = ""
        for token in reversed(ids):
            rest = self.names[token] + rest
            start = bisect_left(self._sorted, (rest,))
            matching = []
            for name, index in islice(self._sorted, start, None):
                if not name.startswith(rest):
                    break
                matching.append(index)
            found.append(matching)
        return found[::-1]
