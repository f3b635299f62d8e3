"""Numbers of a running server in Prometheus' text format.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/. The client library is no
dependency of the project, and these are three counters, two gauges and one histogram.
"""

import bisect
import threading
from collections import Counter

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # seconds
NAME = "remoteglm"


class Metrics:
    """Counts from any thread."""

    def __init__(self):
        self._lock = threading.Lock()
        self._ends = Counter()
        self._generated = 0
        self._prompt = 0
        self._first_pieces = [0] * (len(BUCKETS) + 1)
        self._first_seconds = 0.0

    def count(self, end):
        """A question has ended in this way, or was refused."""
        with self._lock:
            self._ends[end] += 1

    def tokens(self, ticket):
        """A further token of a ticket's answer."""
        if ticket.tokens is None:
            return
        with self._lock:
            self._generated += 1
            if ticket.tokens == 1:
                self._prompt += ticket.prompt_tokens or 0

    def first_piece(self, seconds):
        """So long after the question the first piece of text went out."""
        with self._lock:
            self._first_pieces[bisect.bisect_left(BUCKETS, seconds)] += 1
            self._first_seconds += seconds

    def text(self, running, waiting):
        """All of it; running, waiting: the scheduler's load."""
        with self._lock:
            lines = [
                *self._family("requests_total", "counter", "Questions by how they ended."),
                *(f'{NAME}_requests_total{{end="{e}"}} {n}' for e, n in self._ends.items()),
                *self._family("prompt_tokens_total", "counter", "Tokens of prompts."),
                f"{NAME}_prompt_tokens_total {self._prompt}",
                *self._family("generated_tokens_total", "counter", "Tokens of answers."),
                f"{NAME}_generated_tokens_total {self._generated}",
                *self._family("running", "gauge", "Answers under way."),
                f"{NAME}_running {running}",
                *self._family("waiting", "gauge", "Questions in the queue."),
                f"{NAME}_waiting {waiting}",
                *self._histogram(),
            ]
        return "\n".join(lines) + "\n"

    def _family(self, name, kind, meaning):
        return f"# HELP {NAME}_{name} {meaning}", f"# TYPE {NAME}_{name} {kind}"

    def _histogram(self):
        name = "time_to_first_token_seconds"
        yield from self._family(name, "histogram", "From the question to the first piece.")
        total = 0
        for limit, number in zip([*map(str, BUCKETS), "+Inf"], self._first_pieces):
            total += number
            yield f'{NAME}_{name}_bucket{{le="{limit}"}} {total}'
        yield f"{NAME}_{name}_sum {self._first_seconds:.3f}"
        yield f"{NAME}_{name}_count {total}"
