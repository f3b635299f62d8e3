"""Files of requests through OpenAI's Batch API: upload, wait, download.

A batch costs money from the moment it is made: its id goes to the journal at once, and one that
was made just before a kill is found again by its metadata.
"""

import time

from data.connection import check_settings
from data.endpoint import without_key
from model.errors import UserError
from model.files import replacing, sha256

ENDPOINT = "/v1/chat/completions"
WINDOW = "24h"
# a batch in one of these states has ended
ENDED = ("completed", "failed", "expired", "cancelled")
# our key among a batch's metadata: the hash of its file of requests
METADATA = "remoteglm_requests"


class BatchApi:
    """See connect; args: base_url, timeout, max_retries, poll (seconds)."""

    def __init__(self, client, api_error, args, key, report):
        self.client, self.api_error, self.args = client, api_error, args
        self.key, self.report = key, report

    def submit(self, path):
        """Hand a file of requests to the API; returns the id of its batch, the old one if any."""
        digest = sha256(path)[:64]
        for batch in self._call(lambda: list(self.client.batches.list(limit=100))):
            if (batch.metadata or {}).get(METADATA) == digest and batch.status not in ENDED[1:]:
                return batch.id
        with open(path, "rb") as file:
            uploaded = self._call(lambda: self.client.files.create(file=file, purpose="batch"))
        batch = self._call(
            lambda: self.client.batches.create(
                input_file_id=uploaded.id,
                endpoint=ENDPOINT,
                completion_window=WINDOW,
                metadata={METADATA: digest},
            )
        )
        return batch.id

    def wait(self, number):
        """Wait until a batch has ended; returns it."""
        before = None
        while True:
            batch = self._call(lambda: self.client.batches.retrieve(number))
            counts = batch.request_counts
            done = f", {counts.completed + counts.failed} of {counts.total}" if counts else ""
            if (batch.status, done) != before:
                self.report(f"batch {number}: {batch.status}{done}")
                before = batch.status, done
            if batch.status in ENDED:
                return batch
            time.sleep(self.args.poll)

    def download(self, batch, path):
        """Write the results of a batch, answers and errors, to a file, whole or not at all."""
        with replacing(path, "wb") as file:
            for number in (batch.output_file_id, batch.error_file_id):
                if number:
                    content = self._call(lambda number=number: self.client.files.content(number))
                    text = content.read()
                    file.write(text if not text or text.endswith(b"\n") else text + b"\n")

    def _call(self, request):
        """Its result. Raises UserError for whatever the API says, without the key."""
        try:
            return request()
        except self.api_error as error:
            text = without_key(" ".join(str(error).split())[:300], self.key)
            raise UserError(
                f"the Batch API: {type(error).__name__}: {text}; what is handed in is kept, the "
                "same command goes on"
            ) from None


def connect(args, key, report):
    """A BatchApi for options and a key. report: takes a line about a batch. Raises UserError."""
    check_settings()
    try:
        import openai

        client = openai.OpenAI(
            api_key=key,
            base_url=args.base_url,
            timeout=args.timeout,
            max_retries=args.max_retries,
        )
    except Exception as error:  # noqa: BLE001 -- the client reads many variables on its own
        raise UserError(f"cannot start the client: {error}") from None
    return BatchApi(client, openai.APIError, args, key, report)


def failure_of(batch):
    """Why a batch as a whole has failed, "" if it has not."""
    errors = batch.errors.data if batch.errors and batch.errors.data else []
    if batch.status == "completed" or not (errors or batch.status == "failed"):
        return ""
    texts = [error.message or error.code or "" for error in errors]
    return f"{batch.status}: {'; '.join(texts)[:300]}" if texts else batch.status
