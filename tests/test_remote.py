"""A server instead of a checkpoint: the terminal, batches and the evaluation over an API."""

import base64
import gzip
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from types import SimpleNamespace

import fork_server
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from stub_endpoint import KEY, completion, error
from test_api import running, wait_for
from test_cli import shown
from test_web import free_port

import cli_demo
import evaluate_RemoteGLM
from data.endpoint import Settings
from model import Sampling, UserError, load_assistant, read_image
from model.errors import NoAnswerError
from model.rows import load_rows
from serving.client import RemoteAssistant, api_address, sent_image

GREEDY = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=12)
MOST = 16  # tokens of the server's answers
RED = Image.new("RGB", (40, 30), "red")


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory):
    from test_checkpoint import LORA, save_adapter

    folder = tmp_path_factory.mktemp("remote") / "a"
    save_adapter(folder, tiny_checkpoint, LORA)
    return folder


@pytest.fixture(scope="module")
def assistant(adapter):
    return load_assistant(adapter, device="cpu")


@pytest.fixture(scope="module")
def server(assistant):
    with running(assistant, rows=4, waiting=100, max_tokens=MOST) as (server, _):
        yield server


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "REMOTEGLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def remote(url, model="", key="", **settings):
    settings = {"backoff": 0.01} | settings
    with closing(RemoteAssistant(Settings(url, model, **settings), key)) as opened:
        yield opened


def ends_with(script, argv):
    """What a script says at its end."""
    with pytest.raises(SystemExit) as end:
        script.main(list(map(str, argv)))
    return str(end.value.code)


# Like the checkpoint


def test_it_answers_as_the_checkpoint_does(server, assistant):
    history = [("有路吗？", "没有。")]
    with remote(server.local_url) as far:
        for image, rounds in ((RED, ()), (RED, history), (None, history)):
            asked = ("有什么？", image, rounds, GREEDY)
            pieces = list(far.stream(*asked))
            assert "".join(pieces) == "".join(assistant.stream(*asked))
        assert len(pieces) > 1
        images = [RED, None, Image.new("RGB", (9, 9), "blue")]
        asked = (["有什么？", "你好", "几个？"], images, GREEDY)
        assert far.answer_batch(*asked) == assistant.answer_batch(*asked)
        with far.untuned(), assistant.untuned():
            assert far.answer_batch(*asked) == assistant.answer_batch(*asked)


def test_it_is_known_by_what_the_server_tells(server, assistant):
    with remote(server.local_url) as far:
        assert (far.name, far.has_adapter, far.is_base) == ("demo", True, False)
        assert far.prompt == assistant.prompt and far.english is assistant.english
        assert assistant.fingerprint in far.fingerprint
        assert far.first_question(True) == assistant.first_question(True)


def test_all_settings_reach_the_server(server, assistant):
    hot = Sampling(
        temperature=1.5, top_p=0.9, top_k=40, repetition_penalty=1.3, seed=5, max_new_tokens=12
    )
    with remote(server.local_url) as far:
        assert "".join(far.stream("你好", RED, (), hot)) == "".join(
            assistant.stream("你好", RED, (), hot)
        )


def test_what_was_cut_and_truncated_is_told(server, assistant):
    rounds, told, expected = [("很长" * 600, "好"), ("短", "好")], [], []
    asked = ("你好" * 300, None, rounds, Sampling(max_new_tokens=1))
    list(assistant.stream(*asked, None, lambda *cut: expected.append(cut)))
    with remote(server.local_url) as far:
        stream = far.stream(*asked, None, lambda *cut: told.append(cut))
        with pytest.raises(StopIteration) as end:
            while True:
                next(stream)
        assert told == expected and end.value.value is True
        ends = []
        far.answer_batch(
            [asked[0]], [None], asked[3], None, [rounds], lambda *cut: told.append(cut), ends.append
        )
    assert told == [expected[0], (0, *expected[0])] and ends == [0]


def test_who_stops_listening_is_dropped(assistant):
    with running(assistant) as (server, api), remote(server.local_url) as far:
        endless = far.stream("你好", None, (), Sampling(top_k=1))
        next(endless)
        endless.close()
        wait_for(lambda: api.served.scheduler.load == (0, 0))


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://127.0.0.1:7860", "http://127.0.0.1:7860/v1"),
        ("http://127.0.0.1:7860/", "http://127.0.0.1:7860/v1"),
        ("https://a.example/compatible/v1/", "https://a.example/compatible/v1"),
        ("http://[::1]:7860", "http://[::1]:7860/v1"),
    ],
)
def test_addresses(url, expected):
    assert api_address(url) == expected


def test_an_image_arrives_as_it_is_unless_it_is_large():
    noise = Image.effect_noise((60, 50), 90).convert("RGB")
    sent = Image.open(io.BytesIO(base64.b64decode(sent_image(noise).split(",")[1])))
    assert np.array_equal(np.array(sent), np.array(noise))
    small = Image.open(io.BytesIO(base64.b64decode(sent_image(noise, 1000).split(",")[1])))
    assert small.width * small.height <= 1000 and abs(small.width / small.height - 1.2) < 0.05


# The terminal


def chat(server, *options):
    cli_demo.main(["--serve", server.local_url, *map(str, options)])


def test_the_terminal_talks_to_a_server(server, assistant, rows, capsys):
    path = rows / "images/0.tif"
    image = read_image(path)
    options = ["--temperature", 0, "--repetition_penalty", 1.2]
    chat(server, "--image", path, "--prompt", "红色吗？", "--base", *options)
    expected = {}
    sampling = Sampling(temperature=0, max_new_tokens=MOST)
    expected["tuned"] = "".join(assistant.stream("红色吗？", image, (), sampling))
    with assistant.untuned():
        expected["base"] = "".join(assistant.stream("红色吗？", image, (), sampling))
    out = capsys.readouterr().out
    assert out == f"微调前：{shown(expected['base'])}\nRemoteGLM：{shown(expected['tuned'])}\n"
    chat(
        server, "--image", path, "--prompt", "红色吗？", "--json", "--model", "demo:base", *options
    )
    assert json.loads(capsys.readouterr().out)["answer"] == expected["base"]


def test_a_dialogue_with_a_server(server, assistant, rows, capsys, monkeypatch):
    typed = iter([str(rows / "images/0.tif"), "几个？", "stop"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    chat(server, "--temperature", 0)
    image, sampling = (
        read_image(rows / "images/0.tif"),
        Sampling(temperature=0, max_new_tokens=MOST),
    )
    first = "".join(assistant.stream(assistant.prompt, image, (), sampling))
    second = "".join(assistant.stream("几个？", image, [(assistant.prompt, first)], sampling))
    out = capsys.readouterr().out
    assert f"RemoteGLM：{shown(first)}\n" in out and f"RemoteGLM：{shown(second)}\n" in out


def test_a_file_of_rows_by_a_server_without_torch(server, assistant, rows, tmp_path):
    """The answers are the checkpoint's; the same command asks nothing again."""
    samples = load_rows(rows / "rows-train.json", questions=True)
    questions, images = [], []
    for sample in samples:
        questions.append(sample.question)
        images.append(read_image(sample.image))
    sampling = Sampling(temperature=0, max_new_tokens=MOST)
    expected = {"tuned": assistant.answer_batch(questions, images, sampling)}
    with assistant.untuned():
        expected["base"] = assistant.answer_batch(questions, images, sampling)

    output = tmp_path / "answers.jsonl"
    code = (
        "import sys, cli_demo\ncli_demo.main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    argv = ["--serve", server.local_url, "--input", rows / "rows-train.json", "--output", output]
    argv += ["--temperature", 0, "--batch-size", 3, "--base"]
    command = [sys.executable, "-c", code, *map(str, argv)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {"tuned": {}, "base": {}}
    for line in lines_of(output):
        assert line["settings"]["checkpoint"] == "demo" and line["truncated"] is True
        found[line["settings"]["system"]][line["img"]] = line["answer"]
    for system, answers in expected.items():
        wanted = {str(one.image): answer for one, answer in zip(samples, answers)}
        assert found[system] == wanted

    before = output.read_bytes()
    cli_demo.main(list(map(str, argv)))
    assert output.read_bytes() == before


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "options, says",
    [
        ("--serve http://a --from_pretrained b --quant 4", "--from_pretrained, --quant: not with"),
        ("--serve http://a --scene b.tif --output c", "--scene: not with --serve"),
        ("--serve http://a --max_length 99", "--max_length: not with --serve"),
        ("--timeout 5", "--timeout waits for a server: name its --serve"),
        ("--model b", "--model names one of a server: name its --serve"),
        ("--serve http://a --api-key 钥匙", "expected a key in ASCII"),
    ],
)
def test_options_that_do_not_go_together(options, says, capsys):
    with pytest.raises(SystemExit):
        cli_demo.main(options.split())
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_servers_that_cannot_be_asked(assistant, tmp_path):
    nowhere = f"http://127.0.0.1:{free_port()}"
    for url, says in (
        (nowhere, "refused, nothing listens there"),
        ("ftp://a", "'ftp://a' does not start with http:// or https:// and a host"),
    ):
        assert says in ends_with(cli_demo, ["--serve", url, "--prompt", "你好"])
    with running(None) as (server, _):
        says = ends_with(cli_demo, ["--serve", server.local_url, "--prompt", "你好"])
        assert "the model is being loaded" in says
    with running(assistant, key="sk-of-the-lab", max_tokens=MOST) as (server, _):
        argv = ["--serve", server.local_url, "--prompt", "你好", "--model", "demo"]
        assert "check --api-key (or REMOTEGLM_API_KEY)" in ends_with(cli_demo, argv)
        cli_demo.main([*argv, "--api-key", "sk-of-the-lab", "--temperature", "0"])
        argv[-1] = "other"
        says = ends_with(cli_demo, [*argv, "--api-key", "sk-of-the-lab"])
        assert "has no model 'other'; there is demo, demo:base" in says


def test_a_proxy_does_not_lead_to_this_machine(server, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with remote(server.local_url) as far:
        assert far.answer_batch(["你好"], [None], GREEDY)


# Any server


def asked(body):
    """(text, image's address or None) of a request's last message."""
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content, None
    return content[1]["text"], content[0]["image_url"]["url"]


def bodies(stub):
    return [body for _, _, body in stub.bodies]


def test_a_foreign_server_gets_fields_of_the_protocol_alone(stub):
    stub.answer = lambda text, nth: "<think>\n红色？\n</think>\n\n一片农田，。"
    with remote(stub.url, "gpt", KEY, extra_body={"max_tokens": None, "user": "a"}) as far:
        assert far.answer_batch(["有什么？"], [RED], GREEDY) == ["一片农田，。"]
        assert far.is_base and not far.has_adapter
        far.answer_batch(["有什么？"], [RED], Sampling(seed=3))
    (path, key, first), (_, _, second) = stub.bodies
    assert path == "/v1/chat/completions" and key == f"Bearer {KEY}"
    assert {name: first[name] for name in first if name != "messages"} == {
        "model": "gpt",
        "temperature": 0,
        "user": "a",
    }
    assert {"temperature": 0.8, "top_p": 0.4, "seed": 3}.items() <= second.items()
    text, url = asked(first)
    sent = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert text == "有什么？" and sent.size == (40, 30) and sent.getpixel((0, 0)) == (255, 0, 0)


def test_how_an_answer_ended(stub):
    ends = {"cut": "length", "empty": "stop", "thinks": "length", "bad": "content_filter"}
    texts = {"cut": "一片", "empty": "", "thinks": "<think>一片", "bad": "农田"}
    stub.answer = lambda text, nth: (200, {}, completion(texts[text], ends[text]))
    truncated = []
    with remote(stub.url, "gpt") as far:
        answers = far.answer_batch(
            ["cut", "empty", "thinks"], [None] * 3, GREEDY, on_truncated=truncated.append
        )
        with pytest.raises(NoAnswerError, match="refused: finish_reason content_filter") as refused:
            far.answer_batch(["bad"], [None], GREEDY)
    assert answers == ["一片", "", ""] and truncated == [0, 2] and refused.value.is_refused


def event(text, finish=None):
    chunk = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    head = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "gpt"}
    return f"data: {json.dumps({**head, 'choices': [chunk]})}\n\n".encode()


@pytest.mark.parametrize(
    "body, says",
    [
        (event("一片"), "without a finish_reason"),
        (event("一片") + b"data: [DONE]\n\n", "without a finish_reason"),
        (b"<html>maintenance</html>", "without a finish_reason"),
        (event("一片") + event("", "content_filter"), "refused: finish_reason content_filter"),
    ],
)
def test_a_stream_that_ends_early_is_no_whole_answer(stub, body, says):
    stub.answer = lambda text, nth: (200, {"Content-Type": "text/event-stream"}, body)
    with remote(stub.url, "gpt") as far:
        with pytest.raises(NoAnswerError, match=says):
            list(far.stream("有什么？"))
    stub.answer = lambda *_: (200, {"Content-Type": "text/event-stream"}, event("湖", "stop"))
    with remote(stub.url, "gpt") as far:
        assert list(far.stream("有什么？")) == ["湖"]


def test_a_wrong_key_ends_all_and_is_not_shown(stub):
    stub.answer = lambda text, nth: error(401, f"wrong key {KEY}")
    with remote(stub.url, "gpt", KEY) as far:
        with pytest.raises(UserError, match=r"wrong key \*\*\*") as first:
            far.answer_batch(["a"], [None])
        with pytest.raises(UserError, match="stopped: "):
            far.answer_batch(["b"], [None])
    assert not isinstance(first.value, NoAnswerError) and len(stub.asked) == 1


COMMANDS = "\x1b]0;名\x07\x1b[2J\x9b1m湖\r岸\n"
SHOWN = r"\x1b]0;名\x07\x1b[2J\x9b1m湖\x0d岸"


def test_a_server_cannot_command_the_terminal(stub, capsys):
    stream = {"Content-Type": "text/event-stream"}
    stub.answer = lambda text, nth: (200, stream, event(COMMANDS, "stop"))
    argv = ["--serve", stub.url, "--model", "gpt", "--prompt", "你好"]
    cli_demo.main(argv)
    assert capsys.readouterr().out == f"RemoteGLM：{SHOWN}\n\n"
    cli_demo.main([*argv, "--json"])
    printed = capsys.readouterr().out
    assert json.loads(printed)["answer"] == COMMANDS and printed.count("\n") == 1
    assert "\x1b" not in printed and "\x9b" not in printed
    stub.answer = lambda text, nth: error(400, COMMANDS)
    said = ends_with(cli_demo, argv)
    assert r"\x1b[2J\x9b1m湖" in said and "\x1b" not in said


# Servers that do not end, or say nothing


@pytest.fixture
def little_is_read(monkeypatch):
    monkeypatch.setattr("data.bounded.MOST", 10_000)
    monkeypatch.setattr("data.bounded.MOST_PACKED", 1000)


HUGE = b" " * 10**6
PACKED = gzip.compress(json.dumps(completion("湖" * 10**6)).encode())


@pytest.mark.parametrize(
    "reply, says",
    [
        ((200, {}, HUGE), "a reply of more than 10 kB"),
        ((200, {}, event("湖") * 1000), "a reply of more than 10 kB"),
        ((500, {}, HUGE), "a reply of more than 10 kB"),
        ((200, {"Content-Encoding": "gzip"}, PACKED), "a compressed reply of more than 1 kB"),
    ],
)
def test_a_reply_without_an_end_is_read_to_a_limit_and_not_asked_for_again(
    stub, little_is_read, reply, says
):
    stub.answer = lambda text, nth: reply
    with remote(stub.url, "gpt") as far:
        with pytest.raises(NoAnswerError, match=says):
            far.answer_batch(["有什么？"], [None])
    assert len(stub.asked) == 1


def test_a_stream_without_an_end_is_read_to_a_limit(stub, little_is_read):
    stub.answer = lambda text, nth: (
        200,
        {"Content-Type": "text/event-stream"},
        event("湖") * 1000,
    )
    pieces = []
    with remote(stub.url, "gpt") as far:
        with pytest.raises(NoAnswerError, match="a reply of more than 10 kB"):
            pieces.extend(far.stream("有什么？"))


def test_a_silent_server_is_not_waited_for_and_not_asked_again(stub):
    stub.answer = lambda text, nth: time.sleep(2) or "一片农田。"
    says = "the server has sent nothing for 0.3 s; --timeout waits longer"
    with remote(stub.url, "gpt", silence=0.3) as far:
        for ask in (lambda: list(far.stream("a")), lambda: far.answer_batch(["b"], [None])):
            began = time.monotonic()
            with pytest.raises(NoAnswerError, match=says):
                ask()
            assert time.monotonic() - began < 1.5
    assert len(stub.asked) == 2


def test_a_port_that_accepts_and_says_nothing_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        said = ends_with(cli_demo, ["--serve", url, "--prompt", "你好", "--timeout", 0.3])
    assert "has sent nothing for 0.3 s" in said and time.monotonic() - began < 3


@pytest.mark.parametrize("path, hint", [("/page", ", or is its address {}/v1?"), ("/page/v1", "")])
def test_a_path_that_is_not_the_api_is_asked_about(stub, path, hint):
    url = stub.url.removesuffix("/v1") + path
    said = ends_with(cli_demo, ["--serve", url, "--prompt", "你好"])
    assert said.endswith(f"{url} lists no models; name one with --model{hint.format(url)}")


def test_a_busy_server_is_asked_again_when_it_says(stub):
    busy = [error(429, "full", {"Retry-After": "0.1"}), error(503, "later", {"Retry-After": "0.1"})]
    whole = (200, {"Content-Type": "text/event-stream"}, event("湖", "stop"))
    stub.answer = lambda text, nth: busy.pop() if busy else whole
    with remote(stub.url, "gpt") as far:
        assert list(far.stream("有什么？")) == ["湖"]
    assert len(stub.asked) == 3


# The evaluation


def evaluation(rows, output, *more):
    argv = ["--data", rows / "rows-val.json", "--output", output, "--resamples", 100]
    argv += ["--max-new-tokens", 12, "--batch-size", 4, "--existence", 1, *more]
    return list(map(str, argv))


def test_a_server_stands_in_the_table_of_a_checkpoint(server, adapter, rows, tmp_path, capsys):
    argv = ["--from_pretrained", adapter, "--device", "cpu"]
    argv += ["--api", server.local_url, "--model", "demo"]
    columns = evaluate_RemoteGLM.main(evaluation(rows, tmp_path, *argv))["columns"]
    for ablation in ("", ", blank images", ", shuffled images"):
        assert columns["demo" + ablation] == columns["tuned" + ablation]
    assert "POPE F1, random" in columns["demo"] and "nearest" in columns
    assert "requests (0 of them retries)" in capsys.readouterr().err


def test_a_server_with_its_base_and_nothing_asked_twice(server, rows, tmp_path, capsys):
    argv = ["--api", server.local_url, "--model", "demo", "--base", "--api-key", "sk-unknown-1"]
    first = evaluate_RemoteGLM.main(evaluation(rows, tmp_path, *argv))
    assert {"demo", "demo, base", "demo, base, blank images"} <= set(first["columns"])
    assert first["columns"]["demo"] != first["columns"]["demo, base"]
    capsys.readouterr()
    again = evaluate_RemoteGLM.main(evaluation(rows, tmp_path, *argv))
    assert again["columns"] == first["columns"]
    assert "demo: 0 requests" in capsys.readouterr().err
    for path in tmp_path.iterdir():
        assert b"sk-unknown-1" not in path.read_bytes()


def describes(stub, answer):
    """answer(text, number of the description): what the stub says."""
    number = iter(range(1000))
    stub.answer = lambda text, nth: answer(text, next(number) if "吗" not in text else -1)


def test_errors_of_one_image_stay_with_it_and_are_asked_again(stub, rows, tmp_path):
    argv = evaluation(rows, tmp_path, "--api", stub.url, "--model", "a/b", "--backoff", 0.01)
    failing = [error(500, "busy"), error(400, "image too small")]

    def answer(text, nth):
        return failing.pop(0) if failing and nth >= 0 else "没有农田。"

    describes(stub, answer)
    assert "1 of 3 rows have no answer; the first: " in ends_with(evaluate_RemoteGLM, argv)
    lines = lines_of(tmp_path / "predictions.jsonl")
    assert sorted("error" in line for line in lines) == [False, False, True]
    assert "image too small" in next(line["error"] for line in lines if "error" in line)
    before = len(stub.asked)
    columns = evaluate_RemoteGLM.main(argv)["columns"]
    assert {"a/b", "a/b, blank images", "a/b, shuffled images", "constant"} <= set(columns)
    # one description, a blank image, and the yes / no questions
    questions = sum("吗" in text for text in stub.asked)
    assert len(stub.asked) - before == 2 + questions


def test_a_huge_answer_to_one_image_is_its_error_alone(stub, rows, tmp_path, little_is_read):
    argv = evaluation(rows, tmp_path, "--api", stub.url, "--model", "m")
    huge = (200, {}, HUGE)
    describes(stub, lambda text, nth: huge if nth == 0 else "没有农田。")
    said = ends_with(evaluate_RemoteGLM, argv)
    assert "1 of 3 rows have no answer; the first: a reply of more than 10 kB" in said
    lines = lines_of(tmp_path / "predictions.jsonl")
    assert ["a reply of" in line.get("error", "") for line in lines].count(True) == 1


def test_what_a_filter_refuses_is_an_empty_answer(stub, rows, tmp_path, capsys):
    argv = evaluation(rows, tmp_path, "--api", stub.url, "--model", "m", "--no-image-ablation")
    describes(
        stub,
        lambda text, nth: (200, {}, completion("农田。", "content_filter" if nth == 0 else "stop")),
    )
    evaluate_RemoteGLM.main(argv)
    assert "m: 1 of 3 descriptions count as empty" in capsys.readouterr().out


def test_several_requests_at_a_time(stub, rows, tmp_path):
    under_way, most, lock = [0], [0], threading.Lock()

    def answer(text, nth):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.1)
        with lock:
            under_way[0] -= 1
        return "没有。"

    stub.answer = answer
    argv = ["--api", stub.url, "--model", "m"]
    evaluate_RemoteGLM.main(evaluation(rows, tmp_path, *argv))
    assert 2 < most[0] <= 4


def test_ctrl_c_keeps_what_was_answered(stub, rows, tmp_path):
    hang = threading.Event()

    def answer(text, nth):
        if nth > 2:
            hang.wait(30)
        return "农田。"

    stub.answer = answer
    argv = evaluation(rows, tmp_path, "--api", stub.url, "--model", "m")
    command = [sys.executable, PROJECT / "evaluate_RemoteGLM.py", *argv]
    process = fork_server.Popen(command)
    wait_for(lambda: len(stub.asked) > 2, 60)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    error_text = process.communicate()[1]
    hang.set()
    assert process.returncode == 130 and time.monotonic() - begun < 10
    assert "Traceback" not in error_text
    assert len(lines_of(tmp_path / "predictions.jsonl")) == 2


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--api", "http://a"], "--api and --model go together"),
        (["--model", "a"], "--api and --model go together"),
        ([], "give either --from_pretrained or --predictions, or --api"),
        (
            ["--api", "http://a", "--model", "m", "--base", "x"],
            "--base with a value loads a checkpoint",
        ),
        (["--api", "http://a", "--model", "m", "--api-key", "k k"], "expected a key in ASCII"),
        (
            ["--api", "http://a", "--model", "m", "--extra-body", '{"model": "x"}'],
            "model is set by --model",
        ),
        (["--api", "http://a", "--model", "m", "--rpm", "0"], "0 is not at least 0.01"),
    ],
)
def test_options_of_the_evaluation(argv, says, capsys):
    with pytest.raises(SystemExit):
        evaluate_RemoteGLM.main(["--data", "rows.json", *argv])
    text = capsys.readouterr().err
    assert says in text and text.count("\n") == 1


def test_the_folder_of_a_servers_results():
    argv = ["--data", "a/rows-val.json", "--api", "http://a", "--model", "Qwen/Qwen3-VL:4B"]
    args = evaluate_RemoteGLM.parse("", argv)
    expected = PROJECT / "checkpoints/eval-Qwen-Qwen3-VL-4B-rows-val"
    assert evaluate_RemoteGLM.output_folder(args) == expected
    assert "api_key" not in evaluate_RemoteGLM.recorded(SimpleNamespace(api_key="x", a=1))
