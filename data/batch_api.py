"""Files of requests through OpenAI's Batch API: upload, wait, download.

A batch costs money from the moment it is made: its id goes to the journal at once, and one that
was made just before a kill is found again by its metadata.
"""

import json
import time

from data.connection import without_markup
from data.endpoint import TRANSIENT, explained, open_client, without_key
from model.errors import UserError
from model.files import replacing, sha256

ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
# a batch in one of these states has ended
ENDED = ("completed", "failed", "expired", "cancelled")
# our key among a batch's metadata: the hash of its file of requests
METADATA = "remoteglm_requests"
# seconds of an outage that a wait goes on over
LONGEST_OUTAGE = 24 * 3600
# seconds that the answers of a completed batch may take to appear
LONGEST_DELAY = 3600


class LostBatch(UserError):
    """The API does not know a batch that the journal names, or does not give its answers."""


class ForeignReply(ValueError):
    """A reply with a good status that is none of the Batch API: a proxy's page, an empty object."""


class BatchApi:
    """See connect; args: base_url, timeout, max_retries, poll (seconds)."""

    def __init__(self, client, args, key, report):
        self.client, self.args = client, args
        self.key, self.report = key, report
        # before it has answered once, an outage may be a wrong address
        self.has_answered = False

    def submit(self, path):
        """Hand a file of requests to the API; returns the id of its batch, the old one if any."""
        digest = sha256(path)[:64]
        made = self._call(lambda: self._made_of(digest))
        if made:
            return made
        with open(path, "rb") as file:
            uploaded = self._call(
                lambda: _checked(self.client.files.create(file=file, purpose="batch"), "id")
            )
        # One try: a batch that is made although no answer came is found by the next run
        once = self.client.with_options(max_retries=0)
        batch = self._call(
            lambda: _checked(
                once.batches.create(
                    input_file_id=uploaded.id,
                    endpoint=ENDPOINT,
                    completion_window=WINDOW,
                    metadata={METADATA: digest},
                ),
                "id",
            )
        )
        return batch.id

    def _made_of(self, digest):
        """The id of the batch that was made of these requests and has not failed; None."""
        for page in self.client.batches.list(limit=100).iter_pages():
            # not "no batches yet": one more would be made, and paid for
            if not isinstance(page.data, list):
                raise ForeignReply(_shown(page))
            for batch in page.data:
                if (batch.metadata or {}).get(METADATA) == digest and batch.status not in ENDED[1:]:
                    return _checked(batch, "id").id
        return None

    def fetch(self, number, path):
        """Wait until a batch has ended and write its results, answers and errors, to a file, whole
        or not at all; returns the batch. Raises LostBatch, UserError.
        """
        before, completed = None, None
        while True:
            batch = self._call(
                lambda: _checked(self.client.batches.retrieve(number), "id", "status"), number
            )
            state = batch.status + _progress(batch)
            if state != before:
                self.report(f"batch {number}: {state}")
                before = state
            if batch.status in ENDED:
                answers = self._content(batch.output_file_id, number)
                errors = self._content(batch.error_file_id, number)
                if not _are_awaited(batch, answers, errors):
                    break
                if completed is None:
                    completed = time.monotonic()
                    self.report(f"batch {number}: its answers are not there yet; the wait goes on")
                self._check_delay(number, time.monotonic() - completed)
            time.sleep(self.args.poll)

        with replacing(path, "wb") as file:
            for text in (answers, errors):
                file.write(text if not text or text.endswith(b"\n") else text + b"\n")
        return batch

    def _content(self, file, batch):
        """The bytes of a file of results, none where there is no file."""
        if not file:
            return b""
        return self._call(lambda: _checked_content(self.client.files.content(file).read()), batch)

    def _check_delay(self, batch, seconds):
        if seconds >= LONGEST_DELAY:
            raise LostBatch(
                f"batch {batch} is completed, but its answers have not come for "
                f"{seconds / 60:.0f} minutes: the same command looks again; --lost-batch gives it "
                "up and asks, and pays, for its requests again"
            )

    def _call(self, request, batch=None):
        """Its result. Raises UserError for what the API says, without the key.

        batch: the id of the one it is about, which is waited for over outages; raises LostBatch
        as well.
        """
        from openai import APIError

        began = None
        while True:
            try:
                result = request()
                self.has_answered = True
                return result
            except APIError as error:
                said = self._said(error)
                status = getattr(error, "status_code", None)
            # a ForeignReply, or what the client makes of one
            except (ValueError, TypeError, AttributeError) as error:
                # the other two speak of the client's code
                what = f": {error}" if isinstance(error, ValueError) else ""
                said = self._one_line(f"a good status, but a foreign reply{what}")
                status = None
            if batch and status == 404:
                raise LostBatch(
                    f"batch {batch} or its file is not known at {self.args.base_url} ({said}): "
                    "take the key and --base-url it was made with; --lost-batch gives it up and "
                    "asks, and pays, for its requests again"
                )
            is_outage = status is None or status in TRANSIENT or status >= 500
            now = time.monotonic()
            began = began or now
            lasts = now - began
            if not (batch and is_outage and self.has_answered and lasts < LONGEST_OUTAGE):
                raise UserError(
                    f"the Batch API: {said}; what is handed in is kept, the same command goes on"
                )
            if not lasts:
                self.report(f"batch {batch}: {said}; the wait goes on")
            time.sleep(self.args.poll)

    def _said(self, error):
        """An error of the API in words."""
        return self._one_line(f"{type(error).__name__}: {explained(error, self.args.base_url)}")

    def _one_line(self, text):
        return without_key(" ".join(text.split())[:300], self.key)


def connect(args, key, report):
    """A BatchApi for options and a key. report: takes a line about a batch. Raises UserError."""
    client = open_client(
        "OpenAI",
        key,
        args.base_url,
        is_bounded=False,  # files of results are large
        timeout=args.timeout,
        max_retries=args.max_retries,
    )
    return BatchApi(client, args, key, report)


def _checked(reply, *names):
    """A reply that has texts of these names. Raises ForeignReply for another."""
    for name in names:
        text = getattr(reply, name, None)
        if not (isinstance(text, str) and text):
            raise ForeignReply(_shown(reply))
    return reply


def _checked_content(text):
    """The bytes of a file of results. Raises ForeignReply for a page, null or an empty object."""
    if text[:1] == b"<" or text.strip() in (b"null", b"{}"):
        raise ForeignReply(_shown(text[:2000].decode(errors="replace")))
    return text


def _shown(reply):
    if isinstance(reply, str):
        return without_markup(reply) or "nothing"
    value = reply.to_dict() if hasattr(reply, "to_dict") else reply
    return json.dumps(value, ensure_ascii=False, default=str)


def _counts(batch):
    """How many of its requests have ended how; None where the API does not say."""
    counts = batch.request_counts
    numbers = [getattr(counts, name, None) for name in ("completed", "failed", "total")]
    return counts if all(isinstance(number, int) for number in numbers) else None


def _progress(batch):
    """How many of its requests are done, in words; "" where the API does not say."""
    counts = _counts(batch)
    return f", {counts.completed + counts.failed} of {counts.total}" if counts else ""


def _are_awaited(batch, answers, errors):
    """Whether a batch that has ended has answers, which are paid for, that are not there yet."""
    if batch.status != "completed" or answers:
        return False
    counts = _counts(batch)
    if not counts:
        return not errors
    return counts.completed > 0 or counts.failed < counts.total


def failure_of(batch):
    """Why a batch as a whole has failed, "" if it has not."""
    errors = batch.errors.data if batch.errors and batch.errors.data else []
    if batch.status == "completed" or not (errors or batch.status == "failed"):
        return ""
    texts = [error.message or error.code or "" for error in errors]
    return f"{batch.status}: {'; '.join(texts)[:300]}" if texts else batch.status
