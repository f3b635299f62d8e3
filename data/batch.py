"""Requests and answers in files: the form of OpenAI's Batch API, which vLLM and Ray read as well.

{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}   a request
{"custom_id", "response": {"status_code", "body"}, "error"}              its answer, in any order

What is out and what has come back stands in the journal: see there. An answer is stored once,
however often its file is read.
"""

import hashlib
import json
from contextlib import ExitStack

from data.answers import NoAnswer, Refused, usable_text
from data.faults import Fault, Tally, got
from data.journal import Answer
from data.records import checked_records, read_records
from data.replies import FILTERED, UnusableReply, parse
from data.usage import reported_tokens
from model.files import replacing

URL = "/v1/chat/completions"
# of a file: what OpenAI takes
MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000
# answers that share an fsync
STORED_AT_ONCE = 1000


def request_id(style, name, number):
    """The custom_id of the request for a caption in this style, of `number` that went before."""
    return hashlib.sha256(f"{style}\n{number}\n{name}".encode()).hexdigest()[:32]


def shard(path, number):
    """requests.jsonl, then requests-2.jsonl and so on."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def export(path, texts, journal, args):
    """Write the requests of all texts left, in as many files as they need; returns their paths.

    They count as out from then on. Raises OSError.
    """
    paths, entries = [], []
    requests = (_request(name, texts, journal, args) for name in texts.left)
    # all files, then the journal: killed between them, the same requests are written again
    with ExitStack() as files:
        file, count, size = None, 0, 0
        for name, (number, line) in zip(texts.left, requests):
            if file is None or count >= MOST_REQUESTS or size + len(line) > MOST_BYTES:
                paths.append(shard(path, len(paths) + 1))
                file, count, size = files.enter_context(replacing(paths[-1], "wb")), 0, 0
            file.write(line)
            count, size = count + 1, size + len(line)
            entries.append({"source": texts.texts[name], "style": args.style, "out": number})
    journal.store(entries)
    return paths


def _request(name, texts, journal, args):
    """(its id, its line)."""
    body = {"model": args.model, "messages": texts.messages(name), **(args.extra_body or {})}
    number = request_id(args.style, name, journal.rounds[name])
    request = {"custom_id": number, "method": "POST", "url": URL, "body": body}
    return number, json.dumps(request, ensure_ascii=False).encode() + b"\n"


class Imported:
    """What a file of results brought."""

    def __init__(self):
        self.answers = self.known = self.tokens_in = self.tokens_out = 0
        self.failed = Tally()

    def __str__(self):
        text = f"{self.answers} answers, {self.tokens_in} tokens in, {self.tokens_out} out"
        if self.known:
            text += f"; {self.known} stored before"
        return "; ".join([text, *self.failed.lines("requests failed with")])


def import_results(path, texts, journal, style):
    """Judge and store every answer of a file of results; returns what it was.

    Raises UserError that lists the lines which are no results or answer no request of this
    journal; then nothing is stored.
    """
    for _ in _results(path, journal):
        pass
    found, waiting = Imported(), []
    for result in _results(path, journal):
        number = result["custom_id"]
        if number not in journal.out:
            found.known += 1
            continue
        waiting.append(_entry(result, texts, journal.out[number], style, found))
        # a later line of the same id is a copy
        del journal.out[number]
        if len(waiting) >= STORED_AT_ONCE:
            journal.store(waiting)
            waiting = []
    journal.store(waiting)
    return found


def answers_some(path, journal):
    """Whether a file of results has an answer to a request of this journal. Raises UserError."""
    for _, result in read_records(path):
        if isinstance(result, dict) and result.get("custom_id") in journal.sent:
            return True
    return False


def _results(path, journal):
    def problem(result):
        if "response" not in result and "error" not in result:
            return got("a result with 'response' or 'error'", sorted(result))
        if result["custom_id"] not in journal.sent:
            return Fault(
                f"answers no request of {journal.path.name}: results of another run, or that "
                "journal is missing"
            )
        return None

    return checked_records(path, "custom_id", problem, unique=False)


def _entry(result, texts, name, style, found):
    """The journal's entry of a result; counts it in `found`."""
    entry = {"source": texts.texts.get(name, name), "style": style, "id": result["custom_id"]}
    try:
        reply = _reply(result)
        tokens = reported_tokens(reply.usage)
        found.tokens_in += tokens[0]
        found.tokens_out += tokens[1]
        answer = Answer(usable_text(reply, texts.bare))
        entry |= {"target": answer.text, "tokens": tokens}
    except Refused as error:
        answer = Answer("", refused=str(error))
        entry |= {"target": "", "refused": answer.refused}
    except (NoAnswer, UnusableReply) as error:
        found.failed.add(str(error)[:200], repr(name[:40]))
        return {**entry, "failed": str(error)[:200]}
    found.answers += 1
    texts.receive(name, answer)
    if answer.problems is not None:
        entry["verdict"] = {"rules": answer.rules, "problems": answer.problems}
    return entry


def _reply(result):
    """The Reply in a result. Raises Refused, UnusableReply."""
    response = result.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    error = result.get("error")
    if body is None or error:
        body = {"error": error or "no response"}
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    try:
        return parse(text)
    except UnusableReply as failure:
        if FILTERED.search(str(failure)):
            raise Refused(str(failure)[:300]) from None
        raise
