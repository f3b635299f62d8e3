"""Answers on disk, so that what is paid for is asked once."""

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass

from model.files import parse_json


def normalized(text):
    """Captions that differ in white space only are one caption."""
    return " ".join(text.split())


@dataclass
class Answer:
    """One answer of an endpoint.

    text: "" where the endpoint's filter refused, then `refused` says what it said. problems: what
    the gate found, judged by these rules; None if it was not judged by them.
    """

    text: str
    refused: str = ""
    problems: list | None = None
    rules: str = ""


class Journal:
    """One line of JSON an answer. `add` returns when its entry is on disk (fsync).

    Entries that arrive meanwhile share the next fsync. Requests that are out in a batch have lines
    as well, so that nothing is asked twice:
    {"source", "style", "out": id}                  a request was written to a file
    {"source", "style", "target", ..., "id": id}    its answer
    {"source", "style", "failed": why, "id": id}    it has none
    {"style", "batch": batch id, "requests": path}  the file was handed to the API
    """

    def __init__(self, path):
        self.path = path
        self.file = None
        # {id: caption} of all requests ever written to a file; of those that are still out
        self.sent, self.out = {}, {}
        # {caption: requests written}, {path of a file of requests: id of its batch}
        self.rounds, self.batches = Counter(), {}
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
                    # the journals of earlier versions knew one style
                    if entry.get("style", "detailed") == style and self._is_answer(entry):
                        answers.setdefault(normalized(entry["source"]), []).append(_answer(entry))
                except (ValueError, KeyError, TypeError, AttributeError):
                    unreadable += 1
        if unreadable:
            print(
                f"translation_en2zh.py: skipped {unreadable} unreadable lines of {self.path}",
                file=sys.stderr,
            )
        return answers

    def _is_answer(self, entry):
        """Whether an entry holds an answer; keeps account of what is out."""
        if "batch" in entry:
            self.batches[entry["requests"]] = entry["batch"]
            return False
        if "out" in entry:
            name = normalized(entry["source"])
            self.sent[entry["out"]] = self.out[entry["out"]] = name
            self.rounds[name] += 1
            return False
        self.out.pop(entry.get("id"), None)
        return "failed" not in entry

    def store(self, entries):
        """Write many entries and return when they are on disk. Raises OSError."""
        if entries:
            self._write([_line(entry) for entry in entries])
        for entry in entries:
            self._is_answer(entry)

    def give_up(self, numbers, style, reason):
        """Requests of these ids have no answer and are asked again. Raises OSError."""
        entries = []
        for number in numbers:
            entry = {"source": self.sent[number], "style": style, "id": number}
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
        # not before there is something to keep
        if self.file is None:
            self.file = open(self.path, "ab+")
            if self.file.tell():
                self.file.seek(-1, os.SEEK_END)
                if self.file.read(1) != b"\n":
                    # keeps what comes apart from a torn last line
                    self.file.write(b"\n")
        self.file.write(b"".join(lines))
        self.file.flush()
        os.fsync(self.file.fileno())

    async def close(self):
        # what an interrupt found between answer and disk is kept
        if self.flushing:
            await self.flushing
        if self.file:
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
    return Answer(entry["target"].strip(), str(refused), problems, rules)
