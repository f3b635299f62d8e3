"""Translation against a stub server on this machine that counts what it is asked and can be told to fail."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import translation_en2zh
from test_data import DATA, english, load, no_key, save  # noqa: F401  (no_key is a fixture)

KEY = "sk-secret-0123456789"


class Stub:
    """An OpenAI-compatible endpoint; `answer(text, nth request)` gives a description, or (status, headers, body)."""

    def __init__(self):
        self.asked, self.bodies, self.answer = [], [], lambda text, nth: f"译：{' '.join(text.split())}"
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"]
                stub.asked.append(text)
                stub.bodies.append((self.path, self.headers["Authorization"], body))
                reply = stub.answer(text, len(stub.asked))
                status, headers, body = reply if isinstance(reply, tuple) else (200, {}, completion(reply))
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())
                except OSError:
                    pass  # the client was killed, as some tests want

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.block_on_close = True, False
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def completion(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "stub",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}]}


def error(status, message="no", headers=None, **more):
    return status, headers or {}, {"error": {"message": message, **more}}


@pytest.fixture
def stub(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    stub = Stub()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def translate(source, target, *options):
    return translation_en2zh.main(["--input", str(source), "--output", str(target), *map(str, options)])


def journal_of(output):
    return output.with_name(output.name + ".journal.jsonl")


def test_translation_asks_identical_captions_once_and_passes_other_keys_through(tmp_path, stub, capsys):
    rows = [{"imged_id": f"{i}.tif", "caption": caption, "split": "val", "extra": i}
            for i, caption in enumerate(["A lake .  ", "A sea .  ", "A lake .  ", "A  lake . "])]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    assert translate(source, output, "--model", "qwen-x", "--base-url", stub.url + "/") == 0
    assert sorted(stub.asked) == ["A lake .  ", "A sea .  "]
    expected = ["译：A lake .", "译：A sea .", "译：A lake .", "译：A lake ."]
    assert load(output) == [{**row, "caption": text} for row, text in zip(rows, expected)]
    entries = load(journal_of(output))
    assert sorted(map(tuple, entries)) == [("source", "target", "model")] * 2
    assert {(e["source"], e["target"], e["model"]) for e in entries} == {
        ("A lake .  ", "译：A lake .", "qwen-x"), ("A sea .  ", "译：A sea .", "qwen-x")}
    path, authorization, body = stub.bodies[0]
    assert (path, authorization, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "qwen-x")
    assert "遥感" in body["messages"][0]["content"] and "不得添加" in body["messages"][0]["content"]
    output.unlink()
    assert translate(source, output) == 0 and len(stub.asked) == 2 and len(load(output)) == 4
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err and "4 records, 2 distinct captions, 2 known, 0 to ask" in printed.out


def test_memory_needs_neither_network_nor_key_nor_client(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)  # an import of it raises
    source, output = save(tmp_path / "en.jsonl", english(3)), tmp_path / "zh.jsonl"
    first = save(tmp_path / "a.json", [{"source": f" Lake {i} .", "target": f"湖{i}"} for i in range(3)])
    second = save(tmp_path / "b.jsonl", [{"source": "Lake 1 .", "target": "改"}] * 2)
    save(journal_of(output), [{"source": "Lake 1 .", "target": "旧", "model": "m"}])
    assert translate(source, output, "--memory", first, "--memory", second) == 0
    assert [row["caption"] for row in load(output)] == ["湖0", "改", "湖2"]


def test_limit_concurrency_and_bounds(tmp_path, stub):
    running, peak = [], []

    def slow(text, nth):
        running.append(text)
        peak.append(len(running))
        time.sleep(0.03)
        running.remove(text)
        return "<think>湖？</think>\n湖。"

    stub.answer = slow
    source, output = save(tmp_path / "en.json", english(9)), tmp_path / "zh.json"
    assert translate(source, output, "--limit", 6, "--concurrency", 3) == 0
    assert len(stub.asked) == 6 and 2 <= max(peak) <= 3
    assert [row["caption"] for row in load(output)] == ["湖。"] * 6
    assert translate(source, output, "--concurrency", 1) == 0 and len(stub.asked) == 9 and len(load(output)) == 9


def test_failures_keep_the_journal_and_the_old_output(tmp_path, stub, capsys):
    failing = {"Lake 1 .": error(500), "Lake 2 .": "  ", "Lake 3 .": (200, {}, completion("半", "length")),
               "Lake 4 .": (200, {"Content-Type": "text/html"}, b"<html>"), "Lake 5 .": (200, {}, b"{broken"),
               "Lake 6 .": (200, {}, {"choices": None}), "Lake 8 .": "\ud83d", "Lake 7 .": error(400, "a\nb")}
    stub.answer = lambda text, nth: failing.get(text, "湖。")
    source, output = save(tmp_path / "en.json", english(9)), tmp_path / "zh.json"
    output.write_text("old")
    assert translate(source, output, "--max-retries", 0, "--concurrency", 1) == 1
    message = capsys.readouterr().err
    assert len(stub.asked) == 9 and output.read_text() == "old" and message.count("\n") == 1
    assert "8 of 9 captions failed" in message and "InternalServerError" in message and "Traceback" not in message
    assert [entry["source"] for entry in load(journal_of(output))] == ["Lake 0 ."]
    failing.clear()
    stub.asked.clear()
    assert translate(source, output) == 0
    assert sorted(stub.asked) == [f"Lake {i} ." for i in range(1, 9)] and len(load(output)) == 9


@pytest.mark.parametrize("reply", (
    error(401, f"bad key {KEY}\nsecond line"), error(402, "balance"), error(403, "region"), error(404, "no such model"),
    error(429, "quota", {"retry-after-ms": "1"}, code="insufficient_quota")), ids=("401", "402", "403", "404", "quota"))
def test_hopeless_errors_stop_at_once_with_one_line(tmp_path, stub, capsys, reply):
    stub.answer = lambda text, nth: "湖。" if nth <= 2 else reply
    source, output = save(tmp_path / "en.json", english(40)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 2, "--max-retries", 0) == 1
    message = capsys.readouterr().err
    assert len(stub.asked) <= 4 and not output.exists() and len(load(journal_of(output))) == 2
    assert message.count("\n") == 1 and "stopped" in message and KEY not in message and "--model" in message


def test_rate_limit_waits_as_long_as_the_server_says(tmp_path, stub):
    stub.answer = lambda text, nth: error(429, "slow down", {"Retry-After": "1"}) if nth == 1 else "湖。"
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    start = time.monotonic()
    assert translate(source, output, "--max-retries", 1) == 0
    assert 1.0 <= time.monotonic() - start < 4 and len(stub.asked) == 2


def test_timeout_and_no_listener_are_failures(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: time.sleep(0.5) or "湖。"
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output, "--timeout", 0.1, "--max-retries", 0) == 1
    assert "APITimeoutError" in capsys.readouterr().err and len(stub.asked) == 1
    assert translate(source, output, "--base-url", "http://127.0.0.1:9/v1", "--max-retries", 0) == 1
    assert "1 of 1 captions failed, first: APIConnectionError" in capsys.readouterr().err


@pytest.mark.parametrize("sent", (signal.SIGKILL, signal.SIGINT), ids=("kill -9", "Ctrl-C"))
def test_killed_in_the_middle_asks_only_the_rest(tmp_path, stub, sent):
    hold = threading.Event()
    stub.answer = lambda text, nth: hold.wait(20) and "" if nth > 3 else f"湖{text}"
    source, output = save(tmp_path / "en.json", english(6)), tmp_path / "zh.json"
    command = [sys.executable, DATA / "translation_en2zh.py", "--input", source, "--output", output, "--concurrency", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 15
        while len(stub.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(sent)
        _, message = process.communicate(timeout=15)
    hold.set()
    assert len(load(journal_of(output))) == 3 and not output.exists()
    if sent == signal.SIGINT:
        assert process.returncode == 130 and message.count("\n") == 1 and "continues" in message
    with open(journal_of(output), "ab") as file:
        file.write('{"source": "Lake 3 .", "target": "湖'.encode()[:-1])  # torn, in the middle of a character
    stub.asked.clear()
    stub.answer = lambda text, nth: f"湖{text}"
    assert translate(source, output) == 0
    assert sorted(stub.asked) == ["Lake 3 .", "Lake 4 .", "Lake 5 ."]
    assert [row["caption"] for row in load(output)] == [f"湖Lake {i} ." for i in range(6)]
    stub.asked.clear()
    assert translate(source, output) == 0 and stub.asked == []  # the torn line did not spoil the one after it
