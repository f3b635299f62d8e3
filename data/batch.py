"""Requests and answers in files: the form of OpenAI's Batch API, which vLLM and Ray read as well.

{"custom_id", "method": "POST", "url": "/v1/chat/completions", "body"}   a request
{"custom_id", "response": {"status_code", "body"}, "error"}              its answer, in any order

What is out and what has come back stands in the journal: see there. An answer is stored once,
however often its file is read.
"""

import hashlib
import json
import re
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
# why requests that were given up have no answer
LOST = "lost, by --lost-batch"


def request_id(model, style, name, number):
    """The custom_id of a request to a model for a caption in this style; `number` went before."""
    return hashlib.sha256(f"{model}\n{style}\n{number}\n{name}".encode()).hexdigest()[:32]


def shard(path, number):
    """requests.jsonl, then requests-2.jsonl and so on."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def is_shard(file, path):
    """Whether a file has the name of `path` or one that shard() gives."""
    names = rf"{re.escape(path.stem)}(-\d+)?{re.escape(path.suffix)}"
    same_folder = file.absolute().parent.resolve() == path.absolute().parent.resolve()
    return same_folder and bool(re.fullmatch(names, file.name))


def shards(path):
    """The files that are there under these names."""
    return sorted(file for file in path.parent.iterdir() if is_shard(file, path))


def remove_unfinished(path):
    """Remove what a kill has left of files of requests that were being written."""
    for file in path.parent.glob(".*.tmp"):
        whole = re.fullmatch(r"\.(.+)\.\d+\.tmp", file.name)
        if whole and is_shard(file.with_name(whole[1]), path):
            file.unlink(missing_ok=True)


def export(path, texts, journal, args):
    """Write the requests of all texts left, in as many files as they need; returns their paths.

    They count as out from then on. Raises OSError.
    """
    remove_unfinished(path)
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
            entry = {"source": texts.texts[name], "style": args.style, "out": number}
            entries.append({**entry, "requests": paths[-1].name, "model": args.model})
    journal.store(entries)
    return paths


def _request(name, texts, journal, args):
    """(its id, its line)."""
    body = {"model": args.model, "messages": texts.messages(name), **(args.extra_body or {})}
    number = request_id(args.model, args.style, name, journal.rounds[name])
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


def check_results(path, journal):
    """Raises UserError that lists the lines which are no results, or of another run."""
    for _ in _results(path, journal):
        pass


def import_results(path, texts, journal, style):
    """Judge and store every answer of a checked file of results; returns what it was.

    An answer to a request that was given up counts as well: it is paid for.
    """
    found, waiting = Imported(), []
    for result in _results(path, journal):
        number = result["custom_id"]
        name, _, model = journal.sent[number]
        answer, tokens, failure = _answer(result, texts.bare, model)
        # a copy of an answer, or one more failure of what has failed before
        if number in journal.answered or (failure and number not in journal.out):
            found.known += 1
            continue
        entry = {"source": texts.texts.get(name, name), "style": style, "id": number}
        if failure:
            entry["failed"] = failure
            found.failed.add(failure, repr(name[:40]))
        else:
            texts.receive(name, answer)
            entry |= {**answer.as_entry(), "tokens": tokens}
            found.answers += 1
        found.tokens_in += tokens[0]
        found.tokens_out += tokens[1]
        # at once: a later line of the same id is a copy
        journal.account(entry)
        waiting.append(entry)
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


def _answer(result, bare, model):
    """(Answer or None, (tokens in, tokens out), why there is none) of a result."""
    tokens = (0, 0)
    try:
        reply = _reply(result)
        tokens = reported_tokens(reply.usage)
        return Answer(usable_text(reply, bare), model=model), tokens, ""
    except Refused as error:
        return Answer("", refused=str(error), model=model), tokens, ""
    except (NoAnswer, UnusableReply) as error:
        return None, tokens, str(error)[:200]


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
