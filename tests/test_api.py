"""OpenAI's protocol: through the openai client, and as lines on the wire."""

import asyncio
import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import openai
import pytest
from conftest import PROJECT, write_random
from PIL import Image
from test_images import png
from test_web import free_port

import web_demo
from model import Sampling, UserError, load_assistant
from model.rows import Sample
from serving.api import Api, create_app
from serving.guard import Guard
from serving.metrics import Metrics
from serving.scheduler import Scheduler
from serving.served import Served
from serving.server import Server, listen
from serving.turns import LARGE, SMALL_AT_A_TIME

KEY = "sk-测试"
ASK = [{"role": "user", "content": "你好"}]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory, config_file, vocabulary):
    folder = tmp_path_factory.mktemp("api") / "base"
    write_random(folder, config_file, vocabulary, talkative=True)
    return load_assistant(folder, device="cpu")


@contextmanager
def running(assistant, *, key=None, trusted=(), **options):
    """(Server, Api) with a scheduler of an assistant; None: still loading."""
    api = Api("demo", key=key)
    scheduler = None
    if assistant is not None:
        scheduler = Scheduler(assistant, **options)
        api.served = Served(assistant, scheduler)
    listener = listen("127.0.0.1", 0)
    server = Server(Guard(create_app(api), trusted), listener).start()
    try:
        yield server, api
    finally:
        server.close()
        listener.close()
        if scheduler:
            scheduler.close()


@pytest.fixture(scope="module")
def served(assistant):
    with running(assistant, rows=3, waiting=4) as both:
        yield both


@pytest.fixture
def client(served):
    return connect(served[0])


def connect(server, key="any"):
    import httpx

    return openai.OpenAI(
        base_url=f"{server.local_url}v1",
        api_key=key,
        max_retries=0,
        timeout=60,
        http_client=httpx.Client(trust_env=False),
    )


def raw(server, method, path, body=None, **headers):
    """(status, headers, text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, reply.headers, text


def chat(server, **fields):
    """(status, headers, parsed body)"""
    body = {"model": "demo", "messages": ASK, "max_tokens": 3} | fields
    status, headers, text = raw(server, "POST", "/v1/chat/completions", body)
    return status, headers, json.loads(text)


def data_uri(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


RED = Image.new("RGB", (40, 30), "red")


def about(text, *images):
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


GREEDY = {"temperature": 0, "max_tokens": 8}


def alone(assistant, question, image=None, history=(), **sampling):
    sampling = {"temperature": 0, "max_new_tokens": 8} | sampling
    return "".join(assistant.stream(question, image, history, Sampling(**sampling)))


# Answers


def test_a_whole_answer(client, assistant):
    reply = client.chat.completions.create(model="demo", messages=ASK, **GREEDY)
    (choice,) = reply.choices
    assert choice.message.content == alone(assistant, "你好") and choice.message.content
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert reply.object == "chat.completion" and reply.model == "demo"
    assert reply.usage.completion_tokens == 8 and reply.usage.prompt_tokens > 4
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 8


def test_several_rounds_about_an_image(client, assistant):
    messages = [
        {"role": "system", "content": "简短。"},
        about("有什么？", data_uri(RED)),
        {"role": "assistant", "content": "红色的屋顶。"},
        about("有几个？", data_uri(RED)),
    ]
    reply = client.chat.completions.create(model="demo", messages=messages, **GREEDY)
    history = [("简短。\n有什么？", "红色的屋顶。")]
    assert reply.choices[0].message.content == alone(assistant, "有几个？", RED, history)
    sample = Sample(None, "有几个？", None, tuple(history))
    prompt = assistant.family.render_question(sample, True, Sampling(), False)
    assert reply.usage.prompt_tokens == prompt.length


def test_an_image_alone_gets_the_question_of_the_training(client, assistant):
    reply = client.chat.completions.create(
        model="demo", messages=[about("", data_uri(RED))], **GREEDY
    )
    expected = alone(assistant, assistant.first_question(), RED)
    assert reply.choices[0].message.content == expected


def test_openais_own_streaming_example(client, assistant):
    stream = client.chat.completions.create(
        model="demo", messages=ASK, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone(assistant, "你好") and len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 8 and len({c.id for c in chunks}) == 1


def test_settings_reach_the_sampling(client, assistant):
    settings = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
    more = {"top_k": 40, "repetition_penalty": 1.1}
    replies = [
        client.chat.completions.create(
            model="demo", messages=ASK, max_completion_tokens=12, extra_body=more, **settings
        )
        for _ in range(2)
    ]
    expected = alone(assistant, "你好", max_new_tokens=12, **settings, **more)
    assert [reply.choices[0].message.content for reply in replies] == [expected, expected]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(client, assistant, stream):
    whole = alone(assistant, "你好")
    stop = whole[3:5]
    reply = client.chat.completions.create(
        model="demo", messages=ASK, stop=["没有", stop], stream=stream, **GREEDY
    )
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        text, reason = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_the_wire(served):
    body = {"model": "demo", "messages": ASK, "stream": True, **GREEDY}
    status, headers, text = raw(served[0], "POST", "/v1/chat/completions", body)
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    assert headers["Cache-Control"] == "no-cache"
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    last = json.loads(events[-3][6:])
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_too_long_is_said(served, assistant, stream):
    rounds, cuts = [("很长" * 600, "好"), ("短", "好")], []

    def noted(*cut):
        cuts.append(cut)

    list(assistant.stream("你好" * 300, None, rounds, Sampling(max_new_tokens=1), None, noted))
    messages = []
    for question, answer in rounds:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    asked = {"messages": [*messages, {"role": "user", "content": "你好" * 300}]}
    if stream:
        body = {"model": "demo", "max_tokens": 1, "stream": True, **asked}
        text = raw(served[0], "POST", "/v1/chat/completions", body)[2]
        body = json.loads(text.split("\n\n")[-3][6:])
    else:
        body = chat(served[0], **asked)[2]
    assert [(body["cut"]["rounds"], body["cut"]["question_tokens"])] == cuts


def test_a_client_that_leaves_is_dropped(served):
    server, api = served
    scheduler = api.served.scheduler
    endless = {"model": "demo", "messages": ASK, "max_tokens": 1500}
    for stream in (True, False):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        body = json.dumps(endless | {"stream": stream}).encode()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        if stream:
            connection.getresponse().read(10)
        wait_for(lambda: scheduler.load[0] == 1)
        cancelled = scheduler.metrics._ends["cancelled"]
        connection.sock.close() if connection.sock else None
        connection.close()
        wait_for(lambda: scheduler.load == (0, 0))
        if not stream:
            assert scheduler.metrics._ends["cancelled"] == cancelled + 1


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Many at once


def streamed(server, messages, tokens):
    body = {"model": "demo", "messages": messages, "max_tokens": tokens, "temperature": 0}
    text = raw(server, "POST", "/v1/chat/completions", body | {"stream": True})[2]
    assert text.endswith("data: [DONE]\n\n")
    pieces = []
    for event in text.split("\n\n"):
        if event.startswith("data: {"):
            (choice,) = json.loads(event[6:])["choices"]
            pieces.append(choice["delta"].get("content", ""))
    return "".join(pieces)


def test_sixteen_clients_stream_and_none_gets_anothers_answer(assistant):
    colors = ("red", "green", "blue", "white")
    asked = []
    for index in range(16):
        text = "有什么？" * (1 + index % 3)
        image = None if index % 5 == 4 else Image.new("RGB", (30, 30 + index), colors[index % 4])
        tokens = 10 + 7 * (index % 4)
        expected = alone(assistant, text, image, max_new_tokens=tokens)
        message = about(text, data_uri(image)) if image else {"role": "user", "content": text}
        asked.append(([message], tokens, expected))
    assert len({expected for _, _, expected in asked}) > 8
    with running(assistant, rows=8) as (server, _), ThreadPoolExecutor(16) as pool:
        rounds = asked + asked[::-1]
        answers = pool.map(lambda one: streamed(server, *one[:2]), rounds)
        assert list(answers) == [expected for _, _, expected in rounds]


def test_three_who_never_listen_cost_the_next_one_little(assistant):
    endless = {"model": "demo", "messages": ASK, "max_tokens": 1500, "stream": True}
    body = json.dumps(endless).encode()
    head = BEGINNING + f"Content-Length: {len(body)}\r\n\r\n".encode()
    with running(assistant, rows=8) as (server, api), ExitStack() as deaf:
        start = time.monotonic()
        chat(server, max_tokens=20)
        undisturbed = time.monotonic() - start
        for _ in range(3):
            connection = deaf.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(head + body)
        wait_for(lambda: api.served.scheduler.load[0] == 3)
        start = time.monotonic()
        assert chat(server, max_tokens=20)[0] == 200
        assert time.monotonic() - start < undisturbed + 1
        assert api.served.scheduler.load[0] == 3


# Models, health, metrics


def test_models(client):
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").owned_by == "remoteglm"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here; there is demo"):
        client.models.retrieve("gpt-4")


def test_the_untuned_base_has_a_name(assistant, monkeypatch):
    asked = []
    with running(assistant) as (server, api):
        api.served.has_adapter = True
        real = api.served.scheduler.submit

        def noted(question, *arguments, **options):
            asked.append(question.untuned)
            return real(question, *arguments, **options)

        monkeypatch.setattr(api.served.scheduler, "submit", noted)
        client = connect(server)
        assert [model.id for model in client.models.list()] == ["demo", "demo:base"]
        for name in ("demo", "demo:base"):
            client.chat.completions.create(model=name, messages=ASK, **GREEDY)
    assert asked == [False, True]


def test_health_and_metrics(served):
    chat(served[0])
    status, _, text = raw(served[0], "GET", "/health")
    assert status == 200 and json.loads(text) == {
        "status": "ok",
        "model": "demo",
        "running": 0,
        "waiting": 0,
    }
    status, headers, text = raw(served[0], "GET", "/metrics")
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(values['remoteglm_requests_total{end="length"}']) >= 1
    assert int(values["remoteglm_generated_tokens_total"]) >= 3
    assert int(values["remoteglm_prompt_tokens_total"]) > 3
    buckets = [int(v) for k, v in values.items() if "seconds_bucket" in k]
    count = int(values["remoteglm_time_to_first_token_seconds_count"])
    assert buckets == sorted(buckets) and buckets[-1] == count >= 1
    assert values["remoteglm_running"] == values["remoteglm_waiting"] == "0"


def test_a_histogram_counts_to_its_limits():
    metrics = Metrics()
    for seconds in (0.1, 0.2, 500):
        metrics.first_piece(seconds)
    text = metrics.text(1, 2)
    assert 'bucket{le="0.1"} 1\n' in text and 'bucket{le="0.25"} 2\n' in text
    assert 'bucket{le="120"} 2\n' in text and 'bucket{le="+Inf"} 3\n' in text
    assert "_sum 500.300" in text and "remoteglm_waiting 2" in text


# Errors


def error_of(answer, status):
    got, headers, body = answer
    assert got == status, body
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    return body["error"]["message"]


def test_a_client_that_leaves_while_it_sends_is_no_traceback(served, caplog):
    server, _ = served
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port)) as left:
            left.sendall(head.encode() + b'{"model": ')
            time.sleep(0.2)
    time.sleep(0.5)
    assert chat(server)[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def until_closed(connection, seconds=10):
    """What a server sends until it closes."""
    connection.settimeout(seconds)
    received = b""
    while piece := connection.recv(4096):
        received += piece
    return received


BEGINNING = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
)


@pytest.mark.parametrize("length", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
def test_a_body_that_never_ends_is_not_waited_for(served, monkeypatch, length):
    monkeypatch.setattr("serving.server.BODY_SECONDS", 0.4)
    with socket.create_connection(("127.0.0.1", served[0].port)) as slow:
        slow.sendall(BEGINNING + length + b"\r\n\r\n")
        if b"Length" in length:
            slow.sendall(b'{"model": ')
        received = until_closed(slow)
    assert received.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.4 s" in received
    assert chat(served[0])[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        BEGINNING,
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /he",
        # refused at once, and its body never comes
        BEGINNING + b"Content-Length: 999999999\r\n\r\n{",
    ],
)
def test_a_head_that_never_ends_is_not_waited_for(served, monkeypatch, sent):
    monkeypatch.setattr("serving.server.HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", served[0].port)) as slow:
        slow.sendall(sent)
        until_closed(slow, seconds=4)  # below the 5 s of uvicorn's idle connections
    assert chat(served[0])[0] == 200


def test_a_long_answer_is_no_idle_connection(served, monkeypatch):
    monkeypatch.setattr("serving.server.HEAD_SECONDS", 0.02)
    body = {"model": "demo", "messages": ASK, "stream": True, "max_tokens": 100}
    connection = http.client.HTTPConnection("127.0.0.1", served[0].port, timeout=60)
    headers = {"Content-Type": "application/json"}
    for _ in range(2):
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        start = time.monotonic()
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        assert time.monotonic() - start > 0.05
    connection.close()


def of_parts(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"model": None}, "model: Input should be a valid string, got None"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": None}, "messages: "),
        ({"messages": [{"role": "tool", "content": "1"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": " "}]}, "neither text nor an image"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "follows no user's"),
        ({"messages": [*ASK, {"role": "assistant", "content": "a"}]}, "must be a user's"),
        ({"messages": [{"role": "system", "content": "a"}]}, "must be a user's"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a surrogate pair"),
        ({"stop": "\udfff"}, "half of a surrogate pair"),
        ({"messages": [about("看", "data:,\ud800")]}, "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "长" * 100_001}]}, "100001 characters"),
        ({"messages": [about("看", "file:///etc/passwd")]}, "expected a data:, http://"),
        ({"messages": [about("看", "/etc/passwd")]}, "expected a data:, http://"),
        ({"messages": [about("看", "http://a/1", "http://a/2")]}, "2 images in one dialogue"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, got 3"),
        ({"temperature": float("nan")}, "temperature: "),
        ({"top_p": -1}, "top_p: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"seed": 2**63}, "seed: "),
        ({"stop": ["a"] * 17}, "stop: List should have at most 16 items"),
        ({"messages": [of_parts({"type": "image_url"})]}, "image_url without image_url"),
        ({"messages": [of_parts({"type": "text"})]}, "type text has the field text"),
        ({"messages": [of_parts({"type": "image_url", "image_url": "data:"})]}, "content.0.image"),
        ({"n": 2}, "n is not supported here"),
        ({"logprobs": True}, "logprobs is not supported here"),
        ({"tools": [{"type": "function"}]}, "tools is not supported here"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported here"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"n": True}, "n is not supported here"),
        ({"n": "1"}, "n is not supported here"),
        ({"tool_choice": "required"}, "tool_choice is not supported here"),
        ({"function_call": {"name": "f"}}, "function_call is not supported here"),
        ({"min_tokens": 5}, "min_tokens is not supported here"),
        ({"best_of": 2}, "best_of is not supported here"),
        ({"guided_json": {}}, "guided_json is not supported here"),
        ({"temperature": "0.5"}, "temperature: Input should be a valid number, got '0.5'"),
        ({"temperature": True}, "temperature: Input should be a valid number, got True"),
        ({"max_tokens": "5"}, "max_tokens: Input should be a valid integer, got '5'"),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"seed": False}, "seed: Input should be a valid integer"),
        ({"stream": "yes"}, "stream: Input should be a valid boolean, got 'yes'"),
        ({"stream_options": {"include_usage": "no"}}, "include_usage: Input should be a valid"),
        ({"stop": 3}, "stop: "),
    ],
)
def test_a_request_that_cannot_be_answered(served, fields, says):
    assert says in error_of(chat(served[0], **fields), 400)


def test_fields_that_change_nothing_are_taken(served):
    harmless = {"n": 1, "logprobs": False, "presence_penalty": 0, "user": "a", "store": True}
    assert chat(served[0], **harmless, tools=None, response_format={"type": "text"})[0] == 200
    for more in (
        {
            "top_logprobs": None,
            "logit_bias": {},
            "frequency_penalty": 0.0,
            "stop": [],
            "seed": None,
        },
        {"max_tokens": None, "max_completion_tokens": 3, "stream_options": None, "top_k": -1},
        {"chat_template_kwargs": {"enable_thinking": False}, "metadata": {}, "tool_choice": "none"},
    ):
        assert chat(served[0], **more)[0] == 200, more


def test_no_limit_of_candidates_is_written_in_two_ways(served):
    warm = {"temperature": 1.5, "seed": 3, "top_p": 1, "max_tokens": 12}
    answers = [chat(served[0], **warm, top_k=top_k)[2]["choices"] for top_k in (0, -1)]
    assert answers[0] == answers[1] != chat(served[0], **warm, top_k=1)[2]["choices"]


def test_what_an_evaluation_toolkit_sends(served, assistant):
    """lmms-eval's openai model: a system's message in parts, images as PNG, all settings."""
    system = {"role": "system", "content": [{"type": "text", "text": "简短。"}]}
    settings = {"top_p": 1.0, "seed": 0, "n": 1, "presence_penalty": 0, "frequency_penalty": 0}
    messages = [system, about("有什么？", data_uri(RED))]
    _, _, body = chat(served[0], messages=messages, **GREEDY, **settings)
    answer = body["choices"][0]["message"]["content"]
    assert answer == alone(assistant, "简短。\n有什么？", RED) and body["usage"]


@pytest.mark.parametrize(
    "body, says",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "JSON list, expected an object"),
    ],
)
def test_a_body_that_is_no_request(served, body, says):
    status, headers, text = raw(
        served[0], "POST", "/v1/chat/completions", body, **{"Content-Type": "application/json"}
    )
    assert says in error_of((status, headers, json.loads(text)), 400)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}] * 300_000,
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 300_000}],
    ],
)
def test_very_many_messages_are_not_looked_at_one_by_one(served, messages):
    body = json.dumps({"model": "demo", "messages": messages}).encode()
    with ThreadPoolExecutor() as threads:
        json_type = {"Content-Type": "application/json"}
        asked = threads.submit(raw, served[0], "POST", "/v1/chat/completions", body, **json_type)
        longest = 0.0
        while not asked.done():
            began = time.monotonic()
            assert raw(served[0], "GET", "/health")[0] == 200
            longest = max(longest, time.monotonic() - began)
    status, headers, text = asked.result()
    assert "at most 10000 are read" in error_of((status, headers, json.loads(text)), 400)
    assert longest < 1.5


def test_statuses_of_the_protocol(served, client):
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        client.chat.completions.create(model="other", messages=ASK)
    unknown = (("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/v1"))
    for method, path in (*unknown, ("OPTIONS", "/v1/chat/completions")):
        status, headers, text = raw(served[0], method, path, {})
        assert "no such endpoint" in error_of((status, headers, json.loads(text)), 404)
    assert raw(served[0], "HEAD", "/health")[0] == 200
    status, headers, text = raw(served[0], "POST", "/v1/chat/completions", b"{}")
    assert "Content-Type" in error_of((status, headers, json.loads(text)), 415)


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/nothing", 404),
        ("GET", "//v1/models", 404),
        ("POST", "/", 405),
        ("POST", "/health", 404),
        ("DELETE", "/metrics", 404),
        ("TRACE", "/v1/models", 405),
    ],
)
def test_every_path_answers_in_one_form(served, method, path, status):
    no_such_endpoint(served[0], method, path, status)


def no_such_endpoint(server, method, path, status):
    reply, headers, text = raw(server, method, path)
    said = error_of((reply, headers, json.loads(text)), status)
    assert said == f"no such endpoint: {method} {path}"
    assert ("Allow" in headers) == (status == 405)


def test_an_unforeseen_error_is_told_in_the_same_form(served, monkeypatch):
    def fail(self):
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(Api, "models", property(fail))
    status, headers, text = raw(served[0], "GET", "/v1/models")
    said = error_of((status, headers, json.loads(text)), 500)
    assert said == "internal error: a bug in two lines"


def test_a_body_beyond_the_limit(served, monkeypatch):
    monkeypatch.setattr("serving.api.MAX_BODY", 2**20)
    big = {"messages": [about("看", "data:image/png;base64," + "A" * 2**20)]}
    assert "more than 1 MB" in error_of(chat(served[0], **big), 413)


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_that_are_too_much_together(assistant, monkeypatch, announced):
    monkeypatch.setattr("serving.api.MAX_BODY", 2**20)
    monkeypatch.setattr("serving.api.MAX_BODIES", 2**20)
    image = data_uri(Image.effect_noise((700, 700), 90))
    body = {"model": "demo", "messages": [about("看", image)], "max_tokens": 3}
    whole = json.dumps(body).encode()
    assert 2**19 < len(whole) < 2**20

    def post(server):
        content = whole
        if not announced:
            content = (whole[start : start + 2**16] for start in range(0, len(whole), 2**16))
        how = {"Content-Type": "application/json"}
        status, headers, text = raw(server, "POST", "/v1/chat/completions", content, **how)
        return status, headers, json.loads(text)

    with running(assistant) as (server, api):
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(BEGINNING + b"Content-Length: 1000000\r\n\r\n" + bytes(2**19))
            wait_for(lambda: api.bodies == 2**19)
            refused = post(server)
            assert "of all requests have more than 1 MB" in error_of(refused, 429)
            assert int(refused[1]["Retry-After"]) >= 1
            assert chat(server)[0] == 200
        wait_for(lambda: api.bodies == 0)
        assert post(server)[0] == 200
        # What is answered no longer counts, nor what was refused
        endless = {"model": "demo", "messages": [about("看", image)], "max_tokens": 1500}
        first = connect(server).chat.completions.create(**endless, stream=True)
        next(iter(first))
        assert api.bodies == 0 and post(server)[0] == 200
        first.close()


@pytest.mark.parametrize(
    "uri, status, says",
    [
        ("data:image/png;base64,AAAA", 422, "image data:image/png;base64,AAAA: "),
        ("data:image/png;base64," + "A" * 4000, 422, "image data:image/png;base64,AAAAAAAA...: "),
        ("data:image/png;base64,A", 422, "not valid base64"),
        ("data:image/png", 422, "without a comma"),
        ("http://127.0.0.1:9/a.png", 422, "not on the public network"),
        ("http://localhost/a.png", 422, "not on the public network"),
        ("http://[::ffff:10.0.0.1]/a.png", 422, "not on the public network"),
    ],
)
def test_an_image_that_cannot_be_read(served, uri, status, says):
    assert says in error_of(chat(served[0], messages=[about("看", uri)]), status)


BOMB = png(60_000, 60_000, [])  # its header: 3,600 million pixels are in 437 KB of black PNG


def test_an_image_of_too_many_pixels_is_refused_by_its_header(served):
    uri = "data:image/png;base64," + base64.b64encode(BOMB).decode()
    said = error_of(chat(served[0], messages=[about("看", uri)]), 413)
    assert said.startswith("image data:image/png;base64,iVBORw0K...: 60000 x 60000 pixels, at most")
    assert "1000000000" in said and "--max-image-pixels" in said
    assert "crop it" in said and "page" not in said and "tab" not in said


def test_large_images_keep_no_small_one_waiting(assistant):
    large = data_uri(Image.new("L", (5000, 5000)))
    with running(assistant) as (server, api), ThreadPoolExecutor() as threads:
        with api.turns.take((5000, 5000, LARGE + 1)), api.turns.take((5000, 5000, LARGE + 1)):
            waiting = [
                threads.submit(chat, server, messages=[about("看", large)])
                for _ in range(2 * SMALL_AT_A_TIME)
            ]
            time.sleep(0.3)
            assert chat(server, messages=[about("看", data_uri(RED))])[0] == 200
            assert not any(future.done() for future in waiting)
        assert {future.result()[0] for future in waiting} == {200}


def test_slow_addresses_keep_no_sent_image_waiting(assistant, monkeypatch):
    come = threading.Event()

    def fetch(url, public_only):
        come.wait(30)
        raise UserError("too late")

    monkeypatch.setattr("model.images.reading.fetch", fetch)
    with running(assistant) as (server, _), ThreadPoolExecutor(60) as threads:
        for _ in range(60):
            threads.submit(chat, server, messages=[about("看", "https://example.org/a.png")])
        time.sleep(0.5)
        status = chat(server, messages=[about("看", data_uri(RED))])[0]
        come.set()
    assert status == 200


def test_a_data_uri_in_lines_without_padding_or_in_capitals(served):
    whole = data_uri(Image.effect_noise((65, 64), 90).convert("RGB"))
    head, content = whole.split(",")
    lines = "\n".join(content[i : i + 76] for i in range(0, len(content), 76))
    safe = content.translate(str.maketrans("+/", "-_"))
    for uri in (f"{head},{lines}", whole.rstrip("="), f"{head},{safe}", f"DATA{whole[4:]}"):
        assert chat(served[0], messages=[about("看", uri)])[0] == 200


def test_a_data_uri_without_base64_and_one_cut_short(client, served):
    file = io.BytesIO()
    RED.save(file, "PNG")
    plain = "data:image/png," + "".join(f"%{byte:02x}" for byte in file.getvalue())
    cut = data_uri(Image.effect_noise((64, 64), 90))[:-400]
    assert chat(served[0], messages=[about("看", plain)])[0] == 200
    error_of(chat(served[0], messages=[about("看", cut)]), 422)


def test_an_address_of_the_public_network(served, monkeypatch, assistant):
    file = io.BytesIO()
    RED.save(file, "PNG")
    asked = []

    def fetch(url, public_only):
        asked.append((url, public_only))
        return file.getvalue()

    monkeypatch.setattr("model.images.reading.fetch", fetch)
    messages = [about("有什么？", "https://example.org/红.png")]
    _, _, body = chat(served[0], messages=messages, **GREEDY)
    assert body["choices"][0]["message"]["content"] == alone(assistant, "有什么？", RED)
    assert asked == [("https://example.org/红.png", True)]


def test_a_full_queue_says_when_to_come_again(assistant):
    with running(assistant, rows=1, waiting=1) as (server, _):
        client = connect(server)
        endless = {"model": "demo", "messages": ASK, "max_tokens": 1500, "stream": True}
        first = client.chat.completions.create(**endless)
        next(iter(first))  # says who speaks, which is known before its turn comes
        wait_for(lambda: json.loads(raw(server, "GET", "/health")[2])["waiting"] == 0)
        second = client.chat.completions.create(**endless)
        wait_for(lambda: json.loads(raw(server, "GET", "/health")[2])["waiting"] == 1)
        with pytest.raises(openai.RateLimitError, match="1 questions are waiting") as full:
            client.chat.completions.create(model="demo", messages=ASK)
        assert int(full.value.response.headers["Retry-After"]) >= 1
        first.close(), second.close()


def test_limits_of_the_server(assistant):
    with running(assistant, seconds=0.3, max_tokens=40) as (server, _):
        status, _, body = chat(server, max_tokens=1500)
    assert status == 200 and body["choices"][0]["finish_reason"] == "length"
    assert 0 < body["usage"]["completion_tokens"] <= 40


def test_while_it_loads(assistant):
    with running(None) as (server, api):
        status, headers, body = chat(server)
        assert "being loaded" in error_of((status, headers, body), 503)
        assert headers["Retry-After"] and raw(server, "GET", "/health")[0] == 503
        status, headers, _ = raw(server, "GET", "/")
        assert status == 503 and headers["Refresh"]
        scheduler = Scheduler(assistant)
        api.served = Served(assistant, scheduler)
        assert chat(server)[0] == raw(server, "GET", "/")[0] == 200
        scheduler.close()
        assert "shutting down" in error_of(chat(server), 503)


class Slow:
    """An app that takes a while to start, and says its name."""

    def __init__(self, name, seconds=0.0):
        self.name = name.encode()
        self.seconds = seconds
        self.has_ended = False

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await asyncio.sleep(self.seconds)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.has_ended = True
            await send({"type": "lifespan.shutdown.complete"})
            return
        head = [(b"content-length", b"%d" % len(self.name))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": self.name})


def test_no_request_is_lost_while_one_app_takes_the_place_of_another():
    first, second = Slow("first"), Slow("second", 0.5)
    with listen("127.0.0.1", 0) as listener:
        server = Server(first, listener).start()
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        said = []

        def ask_on():
            while not said or said[-1] != "second" or len(said) < 10:
                said.append(raw(server, "GET", "/")[2])

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask_on) for _ in range(2)]
            server.show(second)
            for one in asking:
                one.result(20)
        for _ in range(2):
            kept.request("GET", "/")
            assert kept.getresponse().read() == b"second"
        kept.close()
        server.close()
    assert said == sorted(said) and {"first", "second"} == set(said)
    assert first.has_ended and second.has_ended


def test_a_copy_of_the_listening_socket_stops_no_server():
    """Each makes one, and copies share what makes them wait."""
    with listen("127.0.0.1", 0) as listener:
        server = Server(Slow("first"), listener).start()
        Server(Slow("second"), listener)
        assert raw(server, "GET", "/")[2] == "first"
        server.close()


def test_an_app_that_does_not_start_leaves_the_one_before():
    async def broken(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with listen("127.0.0.1", 0) as listener:
        server = Server(Slow("first"), listener).start()
        with pytest.raises(RuntimeError, match="did not start"):
            server.show(broken)
        assert raw(server, "GET", "/")[2] == "first"
        server.close()


# The page on the same port


def test_a_queue_is_told_and_leaving_drops_the_answer(assistant):
    scheduler = Scheduler(assistant, rows=1, waiting=1)
    served = Served(assistant, scheduler)
    try:
        endless = served.stream("你好", None, (), Sampling(top_k=1))
        begun = "".join(next(endless) for _ in range(5))
        later = served.stream("有什么？", RED, (), Sampling(top_k=1, max_new_tokens=8))
        silence = next(later)
        ahead, seconds = silence.place
        assert (silence, ahead) == ("", 0) and seconds > 0
        with pytest.raises(UserError, match="1 questions are waiting"):
            next(served.stream("你好"))
        endless.close()
        assert "".join(later) == alone(assistant, "有什么？", RED)
        assert begun and alone(assistant, "你好", max_new_tokens=60).startswith(begun[:8])
    finally:
        scheduler.close()


@pytest.fixture
def both(assistant, monkeypatch, tmp_path):
    """start(**options) -> Server of page and API."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    with ExitStack() as ends:

        def start(**options):
            scheduler = Scheduler(assistant, rows=2)
            ends.callback(scheduler.close)
            api = Api("demo", served=Served(assistant, scheduler), key=KEY)
            listener = ends.enter_context(listen("127.0.0.1", 0))
            server = web_demo.serve_app(
                create_app(api, with_page=True), listener, api.served, at_a_time=4, **options
            )
            ends.callback(server.close)
            return server

        yield start


def page_answers(server, *data):
    """The last dialogue that the page's endpoint streams."""
    asked = raw(server, "POST", "/gradio_api/call/answer", {"data": list(data)})
    assert asked[0] == 200, asked
    text = raw(server, "GET", f"/gradio_api/call/answer/{json.loads(asked[2])['event_id']}")[2]
    assert "event: complete" in text
    return json.loads(text[text.rindex("data: ") + 6 :])[0]


def test_page_and_api_on_one_port(both, assistant):
    server = both()
    assert "RemoteGLM" in raw(server, "GET", "/")[2]
    dialogue = page_answers(server, "你好", "alone", 64, 0, 0.8, 0, 100, 1.2, -1)
    expected = alone(assistant, "你好", max_new_tokens=None, max_length=64)
    assert dialogue[1]["content"][0]["text"] == expected
    (notice,) = page_answers(server, "这张图像里有什么？", "alone", 64, 0, 0.8, 0, 100, 1.2, -1)
    assert notice["content"][0]["text"].startswith("错误：还没有图像")
    assert raw(server, "POST", "/v1/chat/completions", {})[0] == 401
    assert "no such endpoint" in raw(server, "POST", "/health")[2]
    assert raw(server, "GET", "/gradio_api/nothing")[2] == '{"detail":"Not Found"}'  # Gradio's own
    for method in ("TRACE", "PURGE"):
        for path in ("/v1", "/v1/models", "/v1/chat/completions", "/metrics", "/health"):
            no_such_endpoint(server, method, path, 405)
    foreign = {"Origin": "http://evil.example"}
    assert raw(server, "POST", "/gradio_api/call/answer", {"data": []}, **foreign)[0] == 403


def post_file(server, size, **headers):
    """(status, text) of an upload of so many bytes."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + bytes(size) + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"} | headers
    status, _, text = raw(server, "POST", "/gradio_api/upload", body, **headers)
    return status, text


def test_uploads_beyond_the_space_are_refused_in_the_pages_language(both, tmp_path):
    server = both(upload_space=1e-3)  # a MB
    assert post_file(server, 600_000)[0] == 200
    status, text = post_file(server, 600_000, Cookie="remoteglm-language=zh-Hans")
    assert (status, "空间（0.001 GB）满了" in text) == (507, True)
    for language in ({"Cookie": "remoteglm-language=en"}, {"Accept-Language": "en-US,en"}):
        assert "space for images (0.001 GB) is full" in post_file(server, 600_000, **language)[1]
    assert post_file(server, 200_000)[0] == 200
    chunked = {"Transfer-Encoding": "chunked", "Content-Type": "multipart/form-data; boundary=x"}
    assert raw(server, "POST", "/gradio_api/upload", b"0\r\n\r\n", **chunked)[0] == 411
    for path in tmp_path.rglob("a.png"):
        path.unlink()
    assert post_file(server, 600_000)[0] == 200


def test_an_upload_of_what_is_no_file_is_not_kept_in_memory(both):
    server = both()
    body = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n0\r\n--x--\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=me"):
        status, _, text = raw(server, "POST", path, body, **form)
        assert (status, text) == (400, "an upload has files only")
    assert post_file(server, 600_000)[0] == 200


def test_calls_of_the_page_have_small_bodies(both):
    server = both()
    question = {"data": ["长" * 2**20, "alone"]}  # 3 MB: read, and refused by the page
    status, _, text = raw(server, "POST", "/gradio_api/call/answer", question)
    assert (status, "event_id" in text) == (200, True)
    for path in ("/gradio_api/call/answer", "/gradio_api/queue/join"):
        status, _, text = raw(server, "POST", path, {"data": ["长" * 2**22]})
        assert (status, text) == (413, "the body has more than 8 MB")
        assert raw(server, "POST", path, b"0\r\n\r\n", **{"Transfer-Encoding": "chunked"})[0] == 411


def test_a_stranger_at_the_page_s_login_sends_no_more_than_its_calls(both):
    server = both(auth=("lab", "word"))
    part = b'--x\r\nContent-Disposition: form-data; name="password"%b\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("/login", "/login/"):
        for name in (b"", b'; filename="a.png"'):
            body = part % name + bytes(9 * 2**20) + b"\r\n--x--\r\n"
            status, _, text = raw(server, "POST", path, body, **form)
            assert (status, text) == (413, "the body has more than 8 MB")
    typed = {"Content-Type": "application/x-www-form-urlencoded"}
    assert raw(server, "POST", "/login", b"username=lab&password=word", **typed)[0] == 200
    # A request without a body says nothing of its length
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert until_closed(one).startswith(b"HTTP/1.1 404 ")


UPLOAD = (
    b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 900000\r\n\r\n"
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
)


def test_an_upload_that_never_ends_is_not_waited_for_and_keeps_no_room(both, monkeypatch):
    server = both(upload_space=1e-3)
    monkeypatch.setattr("serving.server.BODY_SECONDS", 0.4)
    # The second one finds no room beside the first, and is slow all the same
    with ExitStack() as senders:
        for _ in range(2):
            slow = socket.create_connection(("127.0.0.1", server.port))
            senders.enter_context(slow).sendall(UPLOAD)
            senders.callback(lambda slow=slow: replies.append(until_closed(slow)))
            time.sleep(0.1)
        replies = []
    assert [reply[:13] for reply in replies] == [b"HTTP/1.1 408 "] * 2
    assert all(b"did not arrive within 0.4 s" in reply for reply in replies)
    monkeypatch.setattr("serving.server.BODY_SECONDS", 120)
    assert post_file(server, 600_000)[0] == 200


def test_a_body_that_comes_steadily_has_its_time(served, monkeypatch):
    monkeypatch.setattr("serving.server.BODY_SECONDS", 0.4)
    monkeypatch.setattr("serving.server.BODY_RATE", 10)
    body = json.dumps({"model": "demo", "messages": ASK, "max_tokens": 3}).encode()
    with socket.create_connection(("127.0.0.1", served[0].port)) as slow:
        slow.sendall(BEGINNING + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 10):
            slow.sendall(body[start : start + 10])
            time.sleep(0.1)
        assert until_closed(slow).startswith(b"HTTP/1.1 200 ")


def test_whoever_is_cut_off_at_the_end_leaves_no_traceback(both, monkeypatch, caplog, capfd):
    monkeypatch.setattr("serving.server.GRACE", 0.2)
    server = both()
    with ExitStack() as visitors:
        for head in (UPLOAD, b"GET /gradio_api/heartbeat/me HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
            visitor = socket.create_connection(("127.0.0.1", server.port))
            visitors.enter_context(visitor).sendall(head)
        with socket.create_connection(("127.0.0.1", server.port)) as left:
            left.sendall(UPLOAD)
        time.sleep(0.5)
        server.close()
    assert "Traceback" not in capfd.readouterr().err
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_page_with_a_password(both):
    server = both(auth=("lab", "词语"))
    assert raw(server, "POST", "/gradio_api/call/answer", {"data": []})[0] == 401
    good = {"Authorization": f"Bearer {KEY}".encode()}
    assert raw(server, "GET", "/v1/models", **good)[0] == 200


@pytest.mark.parametrize(
    "words, says",
    [
        ("--host 0.0.0.0", "add --api-key KEY and --auth USER:PASSWORD, or --open"),
        ("--host 192.168.1.5 --api-key k", "add --auth USER:PASSWORD, or --open"),
        ("--host :: --api-only", "add --api-key KEY, or --open"),
        ("--auth lab", "--auth lab: expected USER:PASSWORD"),
        ("--rows 0", "--rows 0: must be more than 0"),
        ("--kv-memory nan", "--kv-memory nan: must be more than 0"),
        ("--upload-space 0", "--upload-space 0.0: must be more than 0"),
        ("--max-image-pixels 0", "--max-image-pixels 0: must be more than 0"),
    ],
)
def test_options_that_are_refused(words, says, capsys):
    with pytest.raises(SystemExit):
        web_demo.parse(words.split())
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    ["--host 0.0.0.0 --open", "--host :: --api-key k --auth a:b", "--host ::1", "--host localhost"],
)
def test_options_that_are_taken(words):
    assert web_demo.parse(words.split()).host


def test_the_script_serves_the_api_alone(tmp_path, tiny_checkpoint):
    port = free_port()
    command = [sys.executable, PROJECT / "web_demo.py", "--from_pretrained", tiny_checkpoint]
    command += f"--device cpu --port {port} --api-only --api-key k".split()
    command += "--rows 2 --waiting 3 --answer-seconds 9 --answer-tokens 5 --kv-memory 1".split()
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            line = process.stdout.readline()
            assert line == f"OpenAI 兼容接口：http://127.0.0.1:{port}/v1，模型名 base\n"
            client = connect(SimpleNamespace(local_url=f"http://127.0.0.1:{port}/"), "k")
            reply = client.chat.completions.create(model="base", messages=ASK, max_tokens=50)
            assert reply.usage.completion_tokens <= 5
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.glob("remoteglm-*"))


# Who may ask


def test_a_key(assistant):
    with running(assistant, key=KEY) as (server, _):
        good = {"Authorization": f"Bearer {KEY}".encode()}
        assert raw(server, "GET", "/v1/models", **good)[0] == 200
        for headers in ({}, {"Authorization": "Bearer sk-no"}, {"Authorization": "Basic x"}):
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                status, sent, text = raw(server, "GET", path, **headers)
                assert "API key" in error_of((status, sent, json.loads(text)), 401)
        assert raw(server, "GET", "/health")[0] == 200
        with pytest.raises(openai.AuthenticationError):
            connect(server, "wrong").chat.completions.create(model="demo", messages=ASK)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "lab.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "10.1.1.1", "Origin": "http://10.1.1.1"}, 200),
        ({"Host": "10.1.1.1", "Origin": "https://LAB.example"}, 200),
        ({"Origin": "https://a.example", "X-Forwarded-Host": "a.example"}, 200),
    ],
)
def test_foreign_web_sites(assistant, headers, status, foreign):
    got, sent, text = raw(foreign, "GET", "/v1/models", **headers)
    assert got == status
    if status == 403:
        assert "start the server with --trusted-host" in error_of(
            (got, sent, json.loads(text)), 403
        )


@pytest.fixture(scope="module")
def foreign(assistant):
    with running(assistant, trusted=["lab.example"]) as (server, _):
        yield server
