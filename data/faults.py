"""What is wrong with the records of a file, in words, so that all of it is said at once."""

import html
import reprlib
from collections import Counter
from itertools import islice
from typing import NamedTuple

from data.caption_sets import SPLITS
from model.errors import UserError

# records without content that are listed: all that a person would fill by hand
MOST_LISTED = 1000
# as many faults share one line, each in full; of more there is a line for each kind
ON_ONE_LINE = 5
# examples of a kind: of one value, and in all where values differ
OF_A_VALUE, OF_A_KIND = 3, 8
# what spreadsheets and data frames write for nothing
NOTHING = {"nan", "none", "null", "n/a", "<na>"}


class Fault(NamedTuple):
    """What is wrong with a record; those of a kind share a line."""

    kind: str
    # how it shows in this record, following on `kind`: ", got 5"
    seen: str = ""
    # the form is right, there is just no content: few of them do not stop a run
    empty: bool = False
    # what to do, said once for all records
    advice: str = ""

    def __str__(self):
        return self.kind + self.seen


class Tally:
    """How often each kind occurred, with the first few examples; in the order of appearance."""

    def __init__(self):
        self.counts = Counter()
        # {kind: [example, ...]}
        self.examples = {}
        self.values = set()

    def add(self, kind, example, value=""):
        """value: one that was not seen before is worth an example even where there are some."""
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        new = (kind, value) not in self.values
        if len(examples) < (OF_A_KIND if new else OF_A_VALUE):
            examples.append(example)
            self.values.add((kind, value))

    def lines(self, what):
        """["9 WHAT KIND: EXAMPLE; EXAMPLE; and 7 more", ...]"""
        return [self.line(kind, what) for kind in self.counts]

    def line(self, kind, what):
        count, examples = self.counts[kind], self.examples[kind]
        more = f"; and {count - len(examples)} more" if count > len(examples) else ""
        return f"{count} {what} {kind}: {'; '.join(examples)}{more}"


def has_words(text):
    """Whether a text says anything: not blank, invisible, punctuation, or a word for nothing."""
    text = html.unescape(text)
    # half a surrogate pair is damage to report, not a blank
    words = any(char.isalnum() or "\ud800" <= char <= "\udfff" for char in text)
    return words and text.strip().lower() not in NOTHING


def no_key(record, key):
    keys = ", ".join(islice(record, 12)) + (", ..." if len(record) > 12 else "")
    return Fault(f"no {key!r} among its keys", f" ({keys})")


def got(expected, value):
    return Fault(f"expected {expected}", f", got {reprlib.repr(value)}")


def outside_fault(name, advice=""):
    """Of a file name of a caption set, which the user may have from anybody."""
    return got("a file name within the image folder", name)._replace(advice=advice)


def inner_fault(record):
    """The Fault that a record is, or that one of its values is or lists; or None."""
    if isinstance(record, Fault):
        return record
    if not isinstance(record, dict):
        return None
    for value in record.values():
        if isinstance(value, Fault):
            return value
        if isinstance(value, list):
            fault = next((one for one in value if isinstance(one, Fault)), None)
            if fault:
                return fault
    return None


def object_problem(record):
    """The Fault of a record that is no object, itself perhaps a Fault; or None."""
    fault = inner_fault(record)
    if fault:
        return fault
    if not isinstance(record, dict):
        return got("an object", record)
    return None


def text_problem(record, key):
    """What is wrong with the text under `key`, or None."""
    if key not in record:
        return no_key(record, key)
    if not isinstance(record[key], str) or not has_words(record[key]):
        return got(f"text in {key!r}", record[key])
    return None


def split_problem(record):
    """What is wrong with the split of a record, or None; it may have none."""
    if record.get("split", SPLITS[0]) in SPLITS:
        return None
    return got("'split' train, val or test", record["split"])


class Problems:
    """The bad records of a file, in words: each of the first few, and each kind."""

    def __init__(self, path):
        self.path = path
        self.count = 0
        self.empty = 0
        self.without_key = 0
        self.last = None
        # an ordered set
        self.advice = {}
        # each in full
        self.first = []
        self.kinds = Tally()
        # {kind: a line for each record} of those without content; of others the first line
        self.each = {}

    def add(self, where, name, fault, without_key):
        self.count += 1
        self.empty += fault.empty
        self.without_key += without_key
        self.last = fault
        if fault.advice:
            self.advice[fault.advice] = True
        example = where if name is None else f"{where} ({reprlib.repr(name)})"

        if len(self.first) < ON_ONE_LINE:
            self.first.append(f"{example}: {fault}")
        self.kinds.add(fault.kind, example + fault.seen, fault.seen)
        lines = self.each.setdefault(fault.kind, [])
        if len(lines) < (MOST_LISTED if fault.empty else 1):
            lines.append(f"{example}: {fault}")

    def report(self, good):
        """Raises UserError if there are any, or no `good` records; at least a line for each kind.

        Some records without content are let through, if there are more good ones.
        """
        if self.count == self.empty < good:
            return
        if not self.count:
            raise UserError(f"{self.path} holds no records")

        # a file of another kind: the same once for all
        if self.count == self.without_key > ON_ONE_LINE and not good:
            raise UserError(f"{self.path}: all {self.count} records: {self.last}")
        advice = "".join(f"; {text}" for text in self.advice)
        if self.count <= ON_ONE_LINE:
            first = "; ".join(self.first)
            raise UserError(f"{self.path}: {self.count} bad records: {first}{advice}")

        lines = self._lines()
        separator = "\n  " if len(lines) > 1 else " "
        text = separator.join([f"{self.path}: {self.count} bad records:", *lines])
        raise UserError(text + advice)

    def _lines(self):
        lines = []
        for kind, count in self.kinds.counts.items():
            each = self.each[kind]
            if count > len(each) == 1:
                lines.append(self.kinds.line(kind, "records,"))
                continue
            lines += each
            if count > len(each):
                lines.append(f"and {count - len(each)} more")
        return lines
