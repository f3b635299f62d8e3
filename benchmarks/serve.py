"""Many clients at once: answers per minute, time to the first piece, memory of the server.

    OMP_NUM_THREADS=2 python benchmarks/serve.py --clients 16 --seconds 60

The server is a process of its own, with the page and OpenAI's protocol; clients stream by the
protocol, people (--people) by the page's endpoint, in plain text, and ask again as soon as they
have their answer. "one at a time" is the same server over `Family.generate` for one question at a
time. Every answer is compared with the one that the question got alone, before.
"""

import argparse
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from networks import TINY_BASE, kernel_bytes, machine, mid_size, random_base, table

from command_line import Parser
from model.images.encoding import data_uri

WAYS = ("one at a time", "together")
QUESTIONS = ("这张遥感图像展现了什么场景？", "有几条船？", "图中有没有飞机？请说明理由。")
PLAIN = ("你好", "有几条船？")  # without an image, of the page, too
IMAGES = 6  # different ones


def questions():
    """(name, messages) of each different question."""
    made = []
    rng = random.Random(0)
    for index in range(IMAGES):
        url = image_uri(tuple(rng.randrange(256) for _ in range(3)))
        for text in QUESTIONS:
            image = {"type": "image_url", "image_url": {"url": url}}
            parts = [image, {"type": "text", "text": text}]
            made.append((f"{text} {index}", [{"role": "user", "content": parts}]))
    made += [(text, [{"role": "user", "content": text}]) for text in PLAIN]
    return made


def image_uri(color):
    from PIL import Image

    image = Image.new("RGB", (256, 256), color)
    image.paste((40, 90, 200), (color[0] // 2, 20, 200, 60 + color[1] // 2))
    return data_uri(image)


# The server, in a process of its own


def serve(way, folder, dtype, rows):
    """Serve until SIGTERM; prints the port."""
    import web_demo
    from model import load_assistant
    from model.running_batch import GeneratedBatch
    from serving.api import Api, create_app
    from serving.scheduler import Scheduler
    from serving.served import Served
    from serving.server import listen

    assistant = load_assistant(folder, device="cpu", dtype=dtype)
    if way == "one at a time":
        family = assistant.family
        family.open_batch = lambda max_rows, memory=None: GeneratedBatch(family, 1)
    api = Api("model", served=Served(assistant, Scheduler(assistant, rows=rows, waiting=1000)))
    app = create_app(api, with_page=True)
    server = web_demo.serve_app(app, listen("127.0.0.1", 0), api.served, at_a_time=1000)
    print(server.port, flush=True)
    signal.sigwait({signal.SIGTERM})


# The clients


@dataclass
class Seen:
    """What the clients saw."""

    answers: int = 0
    first: list = field(default_factory=list)  # seconds to the first piece
    otherwise: int = 0  # not as alone
    mixed: int = 0  # as another question's alone
    memory: list = field(default_factory=list)  # bytes, once a second
    lock: threading.Lock = field(default_factory=threading.Lock)


def ask(port, messages, tokens):
    """(answer, seconds to its first piece)"""
    body = {"model": "model", "messages": messages, "max_tokens": tokens, "temperature": 0}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start = time.perf_counter()
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps(body | {"stream": True}),
        {"Content-Type": "application/json"},
    )
    text, first = "", None
    for line in connection.getresponse():
        if not line.startswith(b"data: {"):
            continue
        (choice,) = json.loads(line[6:])["choices"]
        piece = choice["delta"].get("content")
        if piece and first is None:
            first = time.perf_counter() - start
        text += piece or ""
    connection.close()
    return text, first


def ask_page(port, messages, tokens):
    """As `ask`, through the page; greedy."""
    settings = [2048, tokens, 0.8, 0, 100, 1.2, -1]
    body = json.dumps({"data": [messages[0]["content"], "alone", *settings]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start = time.perf_counter()
    path = "/gradio_api/call/answer"
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    event = json.loads(connection.getresponse().read())["event_id"]
    connection.request("GET", f"{path}/{event}")
    text, first = "", None
    for line in connection.getresponse():
        if not line.startswith(b"data: ["):
            continue
        messages = json.loads(line[6:])[0]
        text = messages[1]["content"][0]["text"] if len(messages) > 1 else ""
        if text.strip("…") and first is None and "排队中" not in text:
            first = time.perf_counter() - start
    connection.close()
    return text, first


def client(number, port, asked, alone, args, seen, end):
    rng = random.Random(number)
    by_page = number >= args.clients
    if by_page:
        asked = [(name, messages) for name, messages in asked if name in PLAIN]
    while time.monotonic() < end:
        name, messages = rng.choice(asked)
        text, first = (ask_page if by_page else ask)(port, messages, args.tokens)
        with seen.lock:
            seen.answers += 1
            if first is not None:
                seen.first.append(first)
            if text != alone[name]:
                seen.otherwise += 1
                seen.mixed += text in alone.values()


def load(way, folder, args):
    """Seen, and the answers alone."""
    command = [sys.executable, __file__, "--serve", way, str(folder)]
    command += ["--dtype", args.dtype, "--rows", str(args.rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            asked = questions()
            alone = {name: ask(port, messages, args.tokens)[0] for name, messages in asked}
            seen = Seen()
            end = time.monotonic() + args.seconds
            threads = []
            for number in range(args.clients + args.people):
                arguments = (number, port, asked, alone, args, seen, end)
                threads.append(threading.Thread(target=client, args=arguments))
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                seen.memory.append(kernel_bytes(f"/proc/{process.pid}/status", "RssAnon"))
                time.sleep(1)
            seconds = args.seconds + time.monotonic() - end
        finally:
            process.terminate()
    return seen, alone, seconds


def measure(name, folder, args):
    """Rows of the table for one network."""
    rows, rates = [], {}
    for way in WAYS:
        seen, alone, seconds = load(way, folder, args)
        rates[way] = seen.answers * 60 / seconds
        p50, p95 = np.percentile(seen.first, (50, 95))
        half = len(seen.memory) // 2
        rows.append(
            {
                "network": name,
                "way": way,
                "answers/min": f"{rates[way]:.0f} ({rates[way] / rates[WAYS[0]]:.2f}x)",
                "first piece p50, s": f"{p50:.2f}",
                "p95, s": f"{p95:.2f}",
                "mixed": seen.mixed,
                "not as alone": f"{seen.otherwise} of {seen.answers}",
                "different answers": len(set(alone.values())),
                "memory half-way, MB": f"{max(seen.memory[: half + 1]) / 1e6:.0f}",
                "at most, MB": f"{max(seen.memory) / 1e6:.0f}",
            }
        )
    return rows


def main():
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--clients", type=int, default=16, help="that ask at once (%(default)s)")
    add("--people", type=int, default=0, help="on the page at once (%(default)s)")
    add("--seconds", type=float, default=60, help="of each way (%(default)s)")
    add("--tokens", type=int, default=40, help="most tokens of an answer (%(default)s)")
    add("--rows", type=int, default=8, help="answers under way at a time (%(default)s)")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="(%(default)s)")
    add("--checkpoint", type=Path, help="measure this one; default: mid-size and the tiny base")
    add("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.serve:
        way, folder = args.serve
        serve(way, folder, args.dtype, args.rows)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        if args.checkpoint:
            rows += measure(args.checkpoint.name, args.checkpoint, args)
        else:
            folder = Path(scratch) / "base"
            random_base(folder, mid_size())
            rows += measure("mid-size", folder, args)
            rows += measure("tiny", TINY_BASE, args)
    asking = f"{args.clients} clients, {args.people} people"
    print(f"{machine()}; {args.dtype}, {asking}, {args.tokens} tokens\n")
    table(rows)


if __name__ == "__main__":
    main()
