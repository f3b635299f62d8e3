"""The files and batches routes of an OpenAI-compatible API on this machine."""

import json
import threading
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stub_endpoint import chinese, completion


def result(request, answer):
    """A line of results. answer: a text, or (status, body)."""
    status, body = answer if isinstance(answer, tuple) else (200, completion(answer))
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "x", "custom_id": request["custom_id"], "response": response, "error": None}


class BatchStub:
    """answer(caption, nth request) gives a text, (status, body), or None for no line at all.

    look(batch id) gives the batch, None for 404, ConnectionError for no reply; a batch needs
    `looks` looks until it has ended. made: requests of each batch in order. These and list,
    upload, make and read (a file) are a test's to replace, and may give (bytes, content type).
    """

    def __init__(self, looks=1):
        self.files, self.batches, self.made, self.looks = {}, [], [], looks
        self.answer = lambda text, nth: chinese(text)
        self.asked = []
        self.ending = "completed"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/files":
                    header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                    parts = BytesParser().parsebytes(header + content).get_payload()
                    fields = {
                        part.get_param("name", header="content-disposition"): part for part in parts
                    }
                    assert fields["purpose"].get_payload() == "batch"
                    self.reply(stub.upload(fields["file"].get_payload(decode=True)))
                else:
                    self.reply(stub.make(json.loads(content)))

            def do_GET(self):
                path = self.path.partition("?")[0].split("/")[2:]
                if path[0] == "files":
                    self.reply(stub.read(path[1]))
                elif len(path) == 1:
                    self.reply(stub.list())
                else:
                    self.reply(stub.look(path[1]))

            def reply(self, body):
                if body is ConnectionError:
                    return
                status = 404 if body is None else 200
                body, kind = body if isinstance(body, tuple) else (body, "application/json")
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def upload(self, content):
        number = f"file-{len(self.files)}"
        self.files[number] = content
        return {"id": number, "object": "file"}

    def read(self, number):
        return self.files[number]

    def list(self):
        data = [dict(batch) for batch in self.batches[::-1]]
        return {"object": "list", "data": data, "has_more": False}

    def make(self, options):
        assert options["endpoint"] == "/v1/chat/completions"
        assert options["completion_window"] == "24h"
        lines = self.files[options["input_file_id"]].decode().splitlines()
        self.made.append([json.loads(line) for line in lines])
        batch = {
            "id": f"batch-{len(self.batches)}",
            "object": "batch",
            "status": "in_progress",
            "metadata": options.get("metadata"),
            "input_file_id": options["input_file_id"],
            "endpoint": options["endpoint"],
            "completion_window": "24h",
            "created_at": 0,
            "looks": 0,
        }
        self.batches.append(batch)
        return batch

    def look(self, number):
        index = int(number.partition("-")[2])
        batch = self.batches[index]
        batch["looks"] += 1
        if batch["looks"] > self.looks and batch["status"] == "in_progress":
            batch["status"] = self.ending
            if self.ending == "failed":
                batch["errors"] = {"object": "list", "data": [{"message": "quota is used up"}]}
            else:
                self.answer_all(batch, self.made[index])
        return batch

    def answer_all(self, batch, requests):
        good, bad = [], []
        for request in reversed(requests):
            self.asked.append(request["body"]["messages"][1]["content"])
            answer = self.answer(self.asked[-1], len(self.asked))
            if answer is not None:
                (bad if isinstance(answer, tuple) else good).append(result(request, answer))
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[key] = self.upload("\n".join(map(json.dumps, lines)).encode())["id"]
