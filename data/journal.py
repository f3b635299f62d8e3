"""Answers on disk, so that what is paid for is asked once."""

import asyncio
import json
import os
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from model.errors import UserError
from model.files import lock_file, naming, parse_json

# of its name, after that of the output
SUFFIX = ".journal.jsonl"


def normalized(text):
    """Captions that differ in white space only are one caption."""
    return " ".join(text.split())


@dataclass
class Answer:
    """One answer of an endpoint.

    text: "" where the endpoint's filter refused, then `refused` says what it said. problems: what
    the gate found, judged by these rules; None if it was not judged by them. model: that was asked,
    "" in journals of earlier versions.
    """

    text: str
    refused: str = ""
    problems: list | None = None
    rules: str = ""
    model: str = ""

    def as_entry(self):
        """What of it stands in the journal."""
        entry = {"target": self.text, "model": self.model}
        if self.refused:
            entry["refused"] = self.refused
        if self.problems is not None:
            entry["verdict"] = {"rules": self.rules, "problems": self.problems}
        return entry


class Sent(NamedTuple):
    """A request that was written to a file; journals of earlier versions know the caption only."""

    caption: str
    file: str = ""
    model: str = ""


@contextmanager
def held(path):
    """A context in which no other run works on this journal. Raises UserError where one does.

    A journal without a line is removed at its end.
    """
    with open(path, "ab") as file:
        try:
            is_locked = lock_file(file)
        except BlockingIOError:
            raise _busy(path) from None
        # a run that has just ended removed it
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise _busy(path)
        if not is_locked:
            print(f"{path}: the file system has no locks; start no second run on this output")
        try:
            yield
        finally:
            with suppress(OSError):
                if not path.stat().st_size:
                    path.unlink()


def _busy(path):
    return UserError(
        f"{path}: another run is working on this output and would ask the same; wait for it or "
        "end it, or name another --output"
    )


class Journal:
    """One line of JSON an answer. `add` returns when its entry is on disk (fsync).

    Entries that arrive meanwhile share the next fsync. Requests that are out in a batch have lines
    as well, so that nothing is asked twice:
    {"source", "style", "out": id, "requests": file name, "model"}  was written to a file
    {"source", "style", "target", ..., "id": id}         its answer
    {"source", "style", "failed": why, "id": id}         it has none, or none until a later line
    {"style", "batch": batch id, "requests": file name}  the file was handed to the API

    is_dry: nothing reaches the disk.
    """

    def __init__(self, path, is_dry=False):
        self.path, self.is_dry = path, is_dry
        self.file = None
        # {id: Sent} of all requests ever written to a file; {id: caption} of those still out
        self.sent, self.out = {}, {}
        # ids that have an answer
        self.answered = set()
        # {caption: requests written}, {file name: id of its batch}
        self.rounds, self.batches = Counter(), {}
        # names of all files of requests, of other styles as well
        self.files = set()
        # [(line, future of who waits for it)]; the task that writes them, or None
        self.pending = []
        self.flushing = None

    def read(self, style):
        """{caption: [Answer of earlier runs in this style, in order]}.

        A line torn by a kill costs one more question.
        """
        answers, unreadable = {}, 0
        if not self.path.exists():
            return answers
        with open(self.path, "rb") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    entry = parse_json(line)
                    # of whatever style
                    self.files.add(entry.get("requests"))
                    # the journals of earlier versions knew one style
                    if entry.get("style", "detailed") == style and self.account(entry):
                        answers.setdefault(normalized(entry["source"]), []).append(_answer(entry))
                except (ValueError, KeyError, TypeError, AttributeError):
                    unreadable += 1
        if unreadable:
            print(
                f"translation_en2zh.py: skipped {unreadable} unreadable lines of {self.path}",
                file=sys.stderr,
            )
        return answers

    def account(self, entry):
        """Keep account of an entry; returns whether it is an answer that was not there before."""
        self.files.add(entry.get("requests"))
        if "batch" in entry:
            self.batches[entry["requests"]] = entry["batch"]
            return False
        if "out" in entry:
            self._send(entry)
            return False
        number = entry.get("id")
        self.out.pop(number, None)
        if "failed" in entry or number in self.answered:
            return False
        if number:
            self.answered.add(number)
        return True

    def _send(self, entry):
        name, number = normalized(entry["source"]), entry["out"]
        self.sent[number] = Sent(name, entry.get("requests", ""), entry.get("model", ""))
        self.rounds[name] += 1
        if number not in self.answered:
            self.out[number] = name

    def store(self, entries):
        """Write many entries and return when they are on disk. Raises OSError."""
        if entries:
            self._write([_line(entry) for entry in entries])
        for entry in entries:
            self.account(entry)

    def give_up(self, numbers, style, reason):
        """Requests of these ids have no answer and are asked again. Raises OSError."""
        entries = []
        for number in numbers:
            entry = {"source": self.sent[number].caption, "style": style, "id": number}
            entries.append({**entry, "failed": reason})
        self.store(entries)

    async def add(self, entry):
        """entry: {"source": English, "target": Chinese, ...}. Raises OSError."""
        done = asyncio.get_running_loop().create_future()
        self.pending.append((_line(entry), done))
        if self.flushing is None:
            self.flushing = asyncio.create_task(self._flush())
        await done

    async def _flush(self):
        try:
            while self.pending:
                batch, self.pending = self.pending, []
                error = None
                try:
                    await asyncio.to_thread(self._write, [line for line, _ in batch])
                # for those who wait: they end the run
                except OSError as full:
                    error = full
                for _, done in batch:
                    if done.done():
                        continue
                    if error:
                        done.set_exception(error)
                    else:
                        done.set_result(None)
        finally:
            self.flushing = None

    def _write(self, lines):
        if self.is_dry:
            return
        with naming(self.path):
            self._open()
            self.file.write(b"".join(lines))
            self.file.flush()
            os.fsync(self.file.fileno())

    def _open(self):
        # not before there is something to keep
        if self.file is not None:
            return
        self.file = open(self.path, "ab+")
        if self.file.tell():
            self.file.seek(-1, os.SEEK_END)
            if self.file.read(1) != b"\n":
                # keeps what comes apart from a torn last line
                self.file.write(b"\n")

    async def close(self):
        # what an interrupt found between answer and disk is kept
        if self.flushing:
            await self.flushing
        if self.file:
            with naming(self.path):
                self.file.close()


def _line(entry):
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _answer(entry):
    """Raises what a damaged entry raises."""
    verdict = entry.get("verdict") or {}
    problems = verdict.get("problems")
    if problems is not None:
        problems = [(str(reason), str(words)) for reason, words in problems]
    refused, rules = entry.get("refused") or "", verdict.get("rules", "")
    model = str(entry.get("model") or "")
    return Answer(entry["target"].strip(), str(refused), problems, rules, model)
