"""An OpenAI-compatible endpoint on this machine that answers as a test wants."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789"


def chinese(text):
    """A faithful description of "Lake 12 .": the number matches answer and caption."""
    return f"图中有{re.search(r'[0-9]+', text)[0]}个湖泊。"


def asked_of(messages):
    """What stands behind the instruction, or the text of a dialogue's question without one."""
    content = messages[min(1, len(messages) - 1)]["content"]
    has_instruction = messages[0]["role"] == "system"
    return content if has_instruction or isinstance(content, str) else content[-1]["text"]


class Stub:
    """An OpenAI-compatible endpoint.

    `answer(text, nth request)`, text being the caption, gives a description, or (status, headers,
    body), or None for a connection that is reset. `asked`: the captions in order of arrival.
    """

    def __init__(self):
        self.asked, self.bodies, self.answer = [], [], lambda text, nth: chinese(text)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = asked_of(body["messages"])
                stub.asked.append(text)
                stub.bodies.append((self.path, self.headers["Authorization"], body))
                reply = stub.answer(text, len(stub.asked))
                if reply is None:
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )
                    self.connection.close()
                    self.close_connection = True
                    return
                status, headers, body = (
                    reply if isinstance(reply, tuple) else (200, {}, completion(reply))
                )
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    for name, value in {
                        "Content-Type": "application/json",
                        "Content-Length": len(body),
                        **headers,
                    }.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = (
                        True  # the client was killed or did not wait, as some tests want
                    )

            def do_GET(self):
                self.send_error(404)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 128

            def handle_error(self, request, client_address):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def completion(text, finish="stop", usage=(50, 10)):
    message = {"role": "assistant", "content": text}
    counted = (
        {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        if usage
        else None
    )
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "usage": counted,
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }


def error(status, message="no", headers=None, **more):
    return status, headers or {}, {"error": {"message": message, **more}}
