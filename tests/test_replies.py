"""What endpoints send, whatever its shape, end or form; against a server that misbehaves."""

import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from stages import DATA, english, load, save
from stub_endpoint import chinese, completion, error
from test_translation import journal_of, rejected_of, translate

from data import quality, translation_en2zh
from data.peel import peel
from data.replies import Reply, UnusableReply, parse

TEXT = "图中有一个湖泊，湖边有两座红色的房屋。"

THOUGHTS = [
    "<think>湖？</think>{}",
    "先看看。\n</think>\n\n{}",
    "<THINKING>a\nb</THINKING>\n{}",
    "<think>a</think><think>b</think>{}",
    "◁think▷x◁/think▷{}",
    "[THINK]x[/THINK]{}",
    "<seed:think>x</seed:think>{}",
    "<reasoning>x</reasoning>\n{}",
    "<|begin_of_thought|>x<|end_of_thought|>{}",
    "<|channel|>analysis<|message|>x<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "Thinking...\nx\n...done thinking.\n\n{}",
    "＜think＞x＜/think＞{}",
    "{}<think>once more</think>",
]
WRAPPERS = [
    '```json\n{{"description": "{}"}}\n```',
    "```\n{}\n```",
    "```{}```",
    "输出：\n```text\n{}\n```",
    '{{"描述": "{}"}}',
    '["{}"]',
    '{{"描述": "{}", "置信度": 0.9}}',
    '{{"result": {{"text": "{}"}}}}',
    "“{}”",
    '"{}"',
    "「{}」",
    "描述：{}",
    "**描述**：{}",
    "**描述：**{}",
    "## 描述\n{}",
    "### 中文描述：\n\n{}",
    "【描述】{}",
    "[描述]：{}",
    "描述：“{}”",
    "答：{}",
    "译文: {}",
    "好的，{}",
    "好的，以下是描述：\n{}",
    "以下是合并后的中文描述：\n\n{}",
    "根据您提供的英文描述，合并如下：\n{}",
    "Here is the translation:\n\n{}",
    "Sure! Here's the description: {}",
    "1. {}",
    "- {}",
    "• {}",
    "> {}",
    "# {}",
    "*{}*",
    "<answer>{}</answer>",
    "<p>{}</p>",
    "\\boxed{{{}}}",
    "{}\n\n（注：根据英文整理）",
    "{}（注：根据英文整理）",
    "{}\n注：已合并。",
    "{}\nNote: merged.",
    "{0}{0}",
    "{0}\n\n{0}",
    "{}<|im_end|>",
    "{}</s>",
    "&nbsp;{}",
    "\ufeff{}\u200b\0",
    "\n\n{}  ",
    '{{"translation": "{}"',
    '{{"译文": "{}',
]
PLAIN = [
    TEXT,
    "根据屋顶颜色，房屋分为两类：红色和灰色。",
    "图中有2.5米宽的路，路边有“停车”字样。",
    "1个湖泊旁有3.5公里长的路。",
    "[左侧]是湖泊。",
]


class TestPeel:
    @pytest.mark.parametrize("wrapper", THOUGHTS + WRAPPERS)
    def test_wrappers(self, wrapper):
        assert peel(wrapper.format(TEXT)) == TEXT

    @pytest.mark.parametrize("wrapper", THOUGHTS)
    @pytest.mark.parametrize(
        "inner", ['```json\n{{"译文": "{}"}}\n```', "**描述**：“{}”\n（注：无）"]
    )
    def test_wrappers_in_wrappers(self, wrapper, inner):
        assert peel(wrapper.format(inner.format(TEXT))) == TEXT

    @pytest.mark.parametrize("text", PLAIN)
    def test_what_is_no_wrapper_stays(self, text):
        assert peel(text) == text

    def test_lists_become_a_paragraph(self):
        text = "## 概括\n1. 图中有一个湖泊，\n2、湖边有**两座**`红色`的房屋。"
        assert peel(text) == TEXT

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "<think>湖？",
            "<|channel|>analysis<|message|>x",
            "<think>a</think>",
            "Thinking...\nx",
        ],
    )
    def test_thoughts_alone_are_no_answer(self, text):
        assert peel(text) == ""

    def test_long_replies_take_no_time(self):
        pieces = ("<think>", "**", "{", "（注：", "```", "“", "<answer>", "* a", "`a", "\n- ", TEXT)
        for piece in pieces:
            begun = time.monotonic()
            peel(piece * 30_000)
            assert time.monotonic() - begun < 3, piece

    @pytest.mark.parametrize(
        "text, reason",
        [
            ("图中有一个湖泊，湖边有两座", "cut"),
            ("图中有一个湖泊；", "cut"),
            ("图中有一个湖泊🏠。", "marks"),
            ("图中有一个湖\ufffd泊。", "marks"),
            ("图中有一个*湖泊。", "marks"),
            ("<x>图中</x>有一个湖泊。", "marks"),
            ("图中有一个湖泊&foo;。", "marks"),
            ("{图中有一个湖泊。", "marks"),
        ],
    )
    def test_the_gate_complains_about_the_rest(self, text, reason):
        source = "There is a lake with two red houses ."
        assert reason in dict(quality.problems(peel(text), source))
        assert quality.problems(TEXT, source) == []

    def test_a_cut_sentence_is_trimmed_away(self):
        source = "There is a lake with two red houses ."
        assert quality.trimmed("图中有一个湖泊。湖边有两座红色的", source) == "图中有一个湖泊。"


def events(*pieces, done=True):
    """A stream of deltas; each piece a text, or the choice itself."""
    lines = []
    for piece in pieces:
        choice = piece if isinstance(piece, dict) else {"delta": {"content": piece}}
        lines.append("data: " + json.dumps({"choices": [choice]}))
    lines += ["data: [DONE]"] if done else []
    return "\n\n".join(lines) + "\n\n"


class TestParse:
    @pytest.mark.parametrize(
        "content, text",
        [
            (TEXT, TEXT),
            ([{"type": "text", "text": "图中"}, {"type": "text", "text": "有湖。"}], "图中有湖。"),
            (["图中", "有湖。"], "图中有湖。"),
            ({"type": "text", "text": TEXT}, TEXT),
            ([{"type": "output_text", "text": TEXT}], TEXT),
            ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": TEXT}], TEXT),
            ([{"type": "image_url"}, None, 3], ""),
            ([{"type": "text", "text": None}], ""),
            (None, ""),
            (7, ""),
            (True, ""),
        ],
    )
    def test_contents(self, content, text):
        body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        assert parse(json.dumps(body)) == Reply(text, "stop", None)

    def test_a_legacy_completion(self):
        assert parse(json.dumps({"choices": [{"text": TEXT}]})).text == TEXT
        assert parse("\ufeff" + json.dumps(completion(TEXT))).text == TEXT

    @pytest.mark.parametrize(
        "body, words",
        [
            ({"choices": [None]}, "no choices"),
            ({"choices": []}, "no choices"),
            ({"choices": None}, "no choices"),
            ({"choices": {"0": {}}}, "no choices"),
            ({}, "no choices"),
            ([], "not a chat completion but list"),
            ("ok", "not a chat completion but str"),
            (None, "not a chat completion but NoneType"),
            ({"error": {"code": 1214, "message": "bad\nmodel"}}, "1214 bad"),
            ({"error": "overloaded"}, "overloaded"),
            ({"code": "Throttling", "message": "slow down"}, "Throttling slow down"),
            ({"error_code": 17, "error_msg": "daily limit"}, "17 daily limit"),
            ({"base_resp": {"status_code": 1008, "status_msg": "no balance"}}, "1008 no balance"),
            ({"Response": {"Error": {"Code": "Auth", "Message": "no"}}}, "Auth no"),
            ({"detail": "not found"}, "not found"),
            ([{"error": {"message": "invalid"}}], "invalid"),
            ({"choices": [{"error": {"code": 502, "message": "provider"}}]}, "502 provider"),
        ],
    )
    def test_what_is_no_completion(self, body, words):
        with pytest.raises(UnusableReply, match=words):
            parse(json.dumps(body))

    @pytest.mark.parametrize(
        "body, words",
        [
            (
                "<!DOCTYPE html><title>Log\nin</title>",
                'a web page \\("Log in"\\); does the base URL',
            ),
            ("<html>", "a web page"),
            ("{broken", "not JSON"),
            ("", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("data: {broken", "not JSON"),
            ('data: {"error": {"message": "overloaded"}}', "overloaded"),
        ],
    )
    def test_what_is_no_json(self, body, words):
        with pytest.raises(UnusableReply, match=words):
            parse(body)

    def test_thoughts_in_a_field_of_their_own_are_no_answer(self):
        message = {"content": "", "reasoning_content": "Let me see"}
        reply = parse(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))
        assert reply.text.strip() and peel(reply.text) == ""

    def test_streams(self):
        odd = 'data: null\n\ndata: {"choices": [{"message": {"content": "图"}}]}\n\n'
        assert parse(odd + events("中")).text == "图中"
        last = {"delta": {}, "finish_reason": "stop"}
        body = ": hello\n\n" + events(
            "图中有", "一个", {"delta": {"content": None}}, "湖泊。", last
        )
        assert parse(body) == Reply("图中有一个湖泊。", "stop", None)
        body += 'data: {"choices": [], "usage": {"prompt_tokens": 5}}\n\n'
        assert parse(body.replace("\n", "\r\n")).usage == {"prompt_tokens": 5}

    @pytest.mark.parametrize("ending", ["stop", "eos", "end_turn", "stop_sequence", "STOP"])
    def test_whole(self, ending):
        assert parse(json.dumps(completion("湖", ending))).is_whole

    @pytest.mark.parametrize(
        "ending", ["length", "max_tokens", "network_error", "error", "abort", "tool_calls"]
    )
    def test_broken_off(self, ending):
        reply = parse(json.dumps(completion(TEXT, ending)))
        assert not reply.is_whole and not reply.is_filtered

    @pytest.mark.parametrize("ending", ["content_filter", "sensitive", "SAFETY", "blocked"])
    def test_filtered(self, ending):
        assert parse(json.dumps(completion(TEXT, ending))).is_filtered

    def test_a_refusal_in_a_field_of_its_own(self):
        message = {"content": None, "refusal": "I cannot."}
        body = {"choices": [{"message": message, "finish_reason": "stop"}]}
        assert parse(json.dumps(body)).is_filtered

    @pytest.mark.parametrize("ending", [None, "", 3])
    def test_without_an_ending_the_text_tells(self, ending):
        assert parse(json.dumps(completion(TEXT, ending))).is_whole
        assert not parse(json.dumps(completion("图中有一个湖泊，", ending))).is_whole


@pytest.mark.parametrize("how", ["asked", "sent anyway"])
def test_an_endpoint_that_streams(tmp_path, stub, how):
    def answer(text, nth):
        body = events(
            "图中有", f"{re.search('[0-9]+', text)[0]}个湖泊。", {"finish_reason": "stop"}
        )
        return 200, {"Content-Type": "text/event-stream"}, body.encode()

    stub.answer = answer
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    options = ["--stream", "--extra-body", '{"enable_thinking": false, "temperature": 0.3}']
    assert translate(source, output, *(options if how == "asked" else [])) == 0
    assert [row["caption"] for row in load(output)] == [f"图中有{i}个湖泊。" for i in range(3)]
    body = stub.bodies[0][2]
    sent = {name: body.get(name) for name in ("stream", "enable_thinking", "temperature")}
    expected = {"stream": True, "enable_thinking": False, "temperature": 0.3}
    assert sent == (expected if how == "asked" else dict.fromkeys(sent))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{broken", "is not JSON"),
        ("[1]", "expected an object"),
        ('{"messages": []}', "messages is set by --input"),
        ('{"stream": true}', "stream is set by --stream"),
    ],
)
def test_wrong_extra_bodies(capsys, text, words):
    with pytest.raises(SystemExit, match="2"):
        translation_en2zh.main(["--extra-body", text])
    assert words in capsys.readouterr().err


def test_shapes_of_one_reply_never_lose_the_others(tmp_path, stub, capsys):
    """Eight in flight: those that are answered are in the journal, whatever the others get."""
    odd = [
        {"choices": [{"message": None}]},
        {"choices": [None]},
        {"choices": [{"message": {"content": {"a": 1}}}]},
        {"choices": 3},
        {"choices": [{"finish_reason": ["stop"], "message": "text"}]},
    ]

    def answer(text, nth):
        number = int(re.search("[0-9]+", text)[0])
        time.sleep(0.02 * (number % 3))
        return (200, {}, odd[number]) if number < len(odd) else chinese(text)

    stub.answer = answer
    source, output = save(tmp_path / "en.json", english(20)), tmp_path / "zh.json"
    assert translate(source, output, "--max-retries", 0, "--concurrency", 8) == 1
    message = capsys.readouterr().err
    assert "5 of 20 captions failed" in message and message.count("\n") == 1
    assert len(load(journal_of(output))) == 15


def test_a_full_disk_awaits_what_is_under_way(tmp_path, stub, capsys, monkeypatch):
    write, lost = translation_en2zh.Journal._write, []

    def full_once(self, lines):
        if len(stub.asked) >= 6 and not lost:
            lost.extend(lines)
            raise OSError(28, "No space left on device")
        write(self, lines)

    monkeypatch.setattr(translation_en2zh.Journal, "_write", full_once)
    stub.answer = lambda text, nth: time.sleep(0.05) or chinese(text)
    source, output = save(tmp_path / "en.json", english(40)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 4) == 1
    message = capsys.readouterr().err
    assert "No space left" in message and message.count("\n") == 1
    assert len(stub.asked) < 40
    assert len(load(journal_of(output))) == len(stub.asked) - len(lost)


@pytest.mark.parametrize("ending", ["content_filter", "sensitive"])
def test_what_a_filter_refuses_holds_back_nothing(tmp_path, stub, ending):
    stub.answer = lambda text, nth: (
        (200, {}, completion("图中", ending)) if text == "Lake 1 ." else chinese(text)
    )
    source, output = save(tmp_path / "en.json", english(4)), tmp_path / "zh.json"
    for no_gate in ((), ("--no-gate",)):
        assert translate(source, output, "--reask", 1, *no_gate) == 0
        assert [row["imged_id"] for row in load(output)] == ["0.png", "2.png", "3.png"]
        (row,) = load(rejected_of(output))
        assert row["imged_id"] == "1.png" and row["problems"] == [
            ["filter", f"finish_reason {ending}"]
        ]
    # the same request would be refused again: asked once, whatever --reask says
    assert Counter(stub.asked)["Lake 1 ."] == 1 and len(stub.asked) == 4
    assert translate(source, output, "--reask", 2) == 0 and len(stub.asked) == 4
    # another model may answer it
    assert translate(source, output, "--model", "other") == 0 and len(stub.asked) == 5


def test_a_refusal_of_the_complaint_is_final_too(tmp_path, stub):
    answers = iter(["图中有0个宁静的湖泊。", error(400, "flagged", code="content_filter")])
    stub.answer = lambda text, nth: next(answers, chinese(text))
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 9) == 1 and len(stub.asked) == 2
    assert load(rejected_of(output))[0]["problems"][0][0] == "filter"


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "input data may contain inappropriate content", code="data_inspection_failed"),
        error(400, "Content Exists Risk"),
        error(400, "flagged", code="content_filter"),
        (
            400,
            {},
            {
                "error": {
                    "code": "1301",
                    "message": "系统检测到输入或生成内容可能包含不安全或敏感内容",
                }
            },
        ),
        (200, {}, {"code": "DataInspectionFailed", "message": "no"}),
    ],
)
def test_filters_that_answer_with_an_error(tmp_path, stub, reply):
    stub.answer = lambda text, nth: reply if text == "Lake 1 ." else chinese(text)
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 0) == 0
    assert len(load(output)) == 2 and load(rejected_of(output))[0]["problems"][0][0] == "filter"
    assert Counter(stub.asked)["Lake 1 ."] == 1


def test_a_run_whose_first_captions_are_all_rejected_stops(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: "I see a lake."
    source, output = save(tmp_path / "en.json", english(300)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 4, "--reask", 1) == 1
    message = capsys.readouterr().err
    assert "the first 20 captions have no answer that passes" in message
    assert "I see a lake." in message and "--model" in message and message.count("\n") == 1
    assert len(stub.asked) <= 2 * (20 + 4)


def test_captions_that_stay_bad_do_not_stop_a_run_in_which_others_pass(tmp_path, stub):
    """Asked once more by a second run, they are rejected one and all; the run goes to its end."""
    stub.answer = lambda text, nth: chinese(text) if text == "Lake 0 ." else "抱歉。"
    source, output = save(tmp_path / "en.json", english(30)), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 0, "--concurrency", 1) == 0
    assert translate(source, output, "--reask", 1, "--concurrency", 1) == 0
    assert len(stub.asked) == 30 + 29 and len(load(rejected_of(output))) == 29


def test_thoughts_alone_stop_a_run_and_never_become_labels(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: "<think>Let me see"
    source, output = save(tmp_path / "en.json", english(100)), tmp_path / "zh.json"
    options = ("--max-retries", 0, "--concurrency", 2, "--no-gate")
    assert translate(source, output, *options) == 1 and not output.exists()
    assert "thoughts and no answer; --extra-body may turn thinking off" in capsys.readouterr().err
    assert len(stub.asked) <= 12


def test_an_output_without_a_row_is_no_success(tmp_path, stub, capsys):
    """And does not replace an earlier one."""
    stub.answer = lambda text, nth: "抱歉。"
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    output.write_text("old")
    assert translate(source, output, "--reask", 0) == 1
    assert "not one description passed" in capsys.readouterr().err
    assert output.read_text() == "old"
    assert len(load(rejected_of(output))) == 2


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_the_same_error_for_every_caption_opens_the_breaker(tmp_path, stub, capsys, status):
    stub.answer = lambda text, nth: error(status, "unknown parameter")
    source, output = save(tmp_path / "en.json", english(200)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 2) == 1
    assert len(stub.asked) <= 12
    assert "10 captions failed one after another" in capsys.readouterr().err


@pytest.mark.parametrize(
    "reply",
    [
        error(400, "Access denied, your account is in good standing: overdue", code="Arrearage"),
        error(429, "exceeded_current_quota_error"),
        (200, {}, {"error": {"code": "1113", "message": "您的账户已欠费"}}),
    ],
)
def test_an_empty_account_stops_at_once(tmp_path, stub, capsys, reply):
    stub.answer = lambda text, nth: reply
    source, output = save(tmp_path / "en.json", english(50)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 2) == 1
    message = capsys.readouterr().err
    assert len(stub.asked) <= 2 and "check the account" in message
    # there is nothing to keep
    assert "kept in" not in message and not journal_of(output).exists()


def test_usage_that_makes_no_sense_is_ignored(tmp_path, stub, capsys):
    odd = [(-5, 3), (10**12, 1), ("5", "3"), (True, True), (None, 4), ([], {})]

    def answer(text, nth):
        reply = completion(chinese(text))
        used = odd[int(re.search("[0-9]+", text)[0])]
        reply["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), used))
        return 200, {}, reply

    stub.answer = answer
    source = save(tmp_path / "en.json", english(len(odd)))
    assert translate(source, tmp_path / "zh.json") == 0
    counted = re.search(r"(\d+) tokens in, (\d+) out", capsys.readouterr().out)
    # the estimate of six requests
    assert 600 < int(counted[1]) < 3000 and 40 <= int(counted[2]) < 120


@pytest.mark.parametrize(
    "reply, words",
    [
        ((200, {}, {"error": {"message": "engine overloaded"}}), "engine overloaded"),
        ((200, {}, {"code": 500, "message": "no engine"}), "500 no engine"),
        ((200, {}, b"<html><title>Sign in</title></html>"), 'a web page ("Sign in")'),
        ((500, {}, b"<html><style>x{}</style><h1>502 Bad</h1></html>"), "502 Bad"),
        ((500, {}, {"detail": ["no engine"]}), '{"detail": ["no engine"]}'),
        (error(429, "slow"), "--rpm or --tpm keep the pace"),
    ],
)
def test_what_the_server_says_is_said(tmp_path, stub, capsys, reply, words):
    stub.answer = lambda text, nth: reply
    source = save(tmp_path / "en.json", english(1))
    assert translate(source, tmp_path / "zh.json", "--max-retries", 1) == 1
    message = capsys.readouterr().err
    assert words in message and "<" not in message and message.count("\n") == 1


class TestConnections:
    def failure(self, tmp_path, capsys, url):
        source = save(tmp_path / "en.json", english(1))
        options = ("--base-url", url, "--max-retries", 0)
        assert translate(source, tmp_path / "zh.json", *options) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "kept in" not in message
        return message

    def test_nobody_listens(self, tmp_path, stub, capsys):
        message = self.failure(tmp_path, capsys, "http://127.0.0.1:9/v1")
        assert "127.0.0.1:9: refused, nothing listens there" in message

    def test_an_unknown_host(self, tmp_path, stub, capsys):
        message = self.failure(tmp_path, capsys, "http://unknown.invalid/v1")
        assert "No connection to unknown.invalid: the host is not known here" in message

    def test_no_tls(self, tmp_path, stub, capsys):
        message = self.failure(tmp_path, capsys, stub.url.replace("http:", "https:"))
        assert "TLS: " in message

    def test_a_dead_proxy(self, tmp_path, stub, capsys, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://someone:word@127.0.0.1:9")
        message = self.failure(tmp_path, capsys, "http://api.invalid/v1")
        assert "through the proxy http://127.0.0.1:9: refused" in message
        assert "word" not in message


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("http_proxy", "sock://127.0.0.1:1", "http_proxy 'sock://127.0.0.1:1' does not start with"),
        ("ALL_PROXY", "ftp://127.0.0.1", "all_proxy 'ftp://127.0.0.1' does not start with http://"),
        ("https_proxy", "http://host:port", "is not an address"),
        ("SSL_CERT_FILE", "/no/such.pem", "SSL_CERT_FILE /no/such.pem does not exist"),
        ("OPENAI_API_KEY", "sk-a\nb", "set OPENAI_API_KEY to a key in ASCII"),
        ("OPENAI_ORG_ID", "组织", "OPENAI_ORG_ID: expected ASCII"),
        ("url", "http://127.0.0.1/\nv1", "spaces, line breaks"),
        ("url", "http://127.0.0.1:99999/v1", "is not an address"),
        ("url", "http://", "does not start with http:// or https:// and a host"),
    ],
)
def test_settings_are_checked_before_anything_is_asked(
    tmp_path,
    stub,
    capsys,
    monkeypatch,
    name,
    value,
    words,
):
    source, options = save(tmp_path / "en.json", english(2)), ()
    if name == "url":
        with pytest.raises(SystemExit, match="2"):
            translate(source, tmp_path / "zh.json", "--base-url", value)
    else:
        monkeypatch.setenv(name, value)
        assert translate(source, tmp_path / "zh.json", *options) == 1
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1 and stub.asked == []


def test_verdicts_are_kept_with_the_rules_that_gave_them(tmp_path, stub, monkeypatch):
    stub.answer = lambda text, nth: "湖边有红色的房屋。" if text == "Lake 1 ." else chinese(text)
    source, output = save(tmp_path / "en.json", english(5)), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 0) == 0
    before, judge, judged = load(rejected_of(output)), quality.problems, []

    def counted(*args, **options):
        judged.append(args[0])
        return judge(*args, **options)

    monkeypatch.setattr(quality, "problems", counted)
    assert translate(source, output, "--reask", 0) == 0
    assert judged == [] and load(rejected_of(output)) == before
    # other rules, or a journal of an earlier version: judged again
    monkeypatch.setattr(quality, "fingerprint", lambda: "other")
    assert translate(source, output, "--reask", 0) == 0 and len(judged) == 5


# what a misbehaving server answers to one caption before it behaves; the gate, the parser or the
# client find fault with each
FAULTS = {
    "null message": (200, {}, {"choices": [{"message": None}]}),
    "null choice": (200, {}, {"choices": [None]}),
    "dict": (200, {}, {"choices": [{"message": {"content": {"x": 1}}}]}),
    "error": (200, {}, {"error": {"message": "engine overloaded"}}),
    "code": (200, {}, {"code": "Busy", "message": "later"}),
    "page": (200, {}, b"<html><title>Sign in</title></html>"),
    "length": (200, {}, completion("图中有", "length")),
    "network": (200, {}, completion("图中有一个湖泊。", "network_error")),
    "no end": (200, {}, completion("图中有一个", None)),
    "thoughts": "<think>Let me",
    "json": '{"a": "x", "b": "y"}',
    "emoji": "图中有湖泊🌊。",
    "damage": "图中有湖\ufffd泊。",
    "429": error(429, "slow", {"Retry-After": "0.02"}),
    "500": (500, {}, b"<html>oops</html>"),
    "stream": (200, {}, events("图中有", done=False).encode()),
    "nested": (200, {}, b"[" * 50_000),
}


def test_200_captions_against_every_fault_killed_twice(tmp_path, stub):
    """Nothing in the journal is asked again, all good answers are in the output, the exit status
    tells the truth; wrapped answers are peeled, one caption is always refused."""
    lock, times = threading.Lock(), Counter()
    faults, wrappers = itertools.cycle(FAULTS), itertools.cycle(THOUGHTS + WRAPPERS)
    script = {f"Lake {i} .": (next(faults), next(wrappers)) for i in range(200)}

    def answer(text, nth):
        with lock:
            times[text] += 1
            number = times[text]
        time.sleep(0.005)
        if text == "Lake 7 .":
            return error(400, "no", code="content_filter")
        fault, wrapper = script[text]
        if number == 1:
            return FAULTS[fault]
        return wrapper.format(chinese(text))

    stub.answer = answer
    source, output = save(tmp_path / "en.json", english(200)), tmp_path / "zh.json"
    command = [sys.executable, DATA / "translation_en2zh.py", "--input", source]
    command += ["--output", output, "--concurrency", "8", "--backoff", "0.01"]
    for wanted in (100, 220):
        asked = len(stub.asked)
        known = {entry["source"] for entry in load(journal_of(output))} if asked else set()
        good = {text for text in known if not has_problems(output, text)}
        with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
            deadline = time.monotonic() + 60
            while len(stub.asked) < wanted and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
        assert not set(stub.asked[asked:]) & good and not output.exists()

    good = {text for text in times if not has_problems(output, text)}
    asked = len(stub.asked)
    assert translate(source, output, "--concurrency", 8) == 0
    assert not set(stub.asked[asked:]) & good
    expected = {f"{i}.png": f"图中有{i}个湖泊。" for i in range(200) if i != 7}
    assert {row["imged_id"]: row["caption"] for row in load(output)} == expected
    (refused,) = load(rejected_of(output))
    assert refused["imged_id"] == "7.png" and refused["problems"][0][0] == "filter"


def has_problems(output, text):
    """Whether the journal, which a kill may have torn, has no good answer to a caption."""
    for line in journal_of(output).read_text("utf-8", errors="replace").splitlines():
        if line.endswith("}"):
            entry = json.loads(line)
            if entry["source"] == text and entry.get("verdict", {}).get("problems") == []:
                return False
    return True


@pytest.mark.slow
def test_2000_mutated_replies():
    """Of the body and of the text: an answer or UnusableReply, in no time."""
    rng = random.Random(0)
    bodies = [json.dumps(completion(wrapper.format(TEXT))) for wrapper in THOUGHTS + WRAPPERS]
    bodies += [events(*wrapper.format(TEXT)) for wrapper in WRAPPERS[:9]]
    for number in range(2000):
        body = rng.choice(bodies)
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(body))
            piece = body[place : place + rng.randint(1, 40)]
            way = rng.randrange(4)
            if way == 0:
                body = body[:place] + body[place + len(piece) :]
            elif way == 1:
                body = body[:place] + piece * rng.choice([2, 50, 500]) + body[place:]
            elif way == 2:
                body = (
                    body[:place]
                    + chr(rng.choice([0, 34, 123, 0xD83D, 0xFFFD, 9, 10]))
                    + body[place:]
                )
            else:
                body = body.replace('"stop"', rng.choice(["null", "7", '"x"', "[]"]))
        begun = time.monotonic()
        try:
            reply = parse(body)
        except UnusableReply as error_:
            assert str(error_)
        else:
            text = peel(reply.text)
            quality.problems(text, "There is a lake with two red houses .")
        assert time.monotonic() - begun < 5, number
