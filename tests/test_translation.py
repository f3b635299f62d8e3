"""Translation against a stub server on this machine, which counts requests and fails on demand."""

import email.utils
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
from stages import DATA, call, english, limited, load, save
from stub_endpoint import KEY, chinese, completion, error

from data import endpoint, existing, texts, translation_en2zh

pytestmark = pytest.mark.usefixtures("no_key")


def translate(source, target, *options):
    return call(
        translation_en2zh, "--input", source, "--output", target, "--backoff", "0.01", *options
    )


def journal_of(output):
    return output.with_name(output.name + ".journal.jsonl")


def rejected_of(output):
    return output.with_name(f"{output.stem}-rejected{output.suffix}")


# ---- what is asked and what is kept


def test_identical_captions_are_asked_once_and_other_keys_pass_through(tmp_path, stub, capsys):
    rows = [
        {"imged_id": f"{i}.tif", "caption": caption, "split": "val", "extra": i}
        for i, caption in enumerate(["Lake 1 .  ", "Lake 2 .  ", "Lake 1 .  ", "Lake  1 . "])
    ]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    assert translate(source, output, "--model", "qwen-x", "--base-url", stub.url + "/") == 0
    assert sorted(stub.asked) == ["Lake 1 .  ", "Lake 2 .  "]
    assert load(output) == [
        {**row, "caption": f"图中有{n}个湖泊。"} for row, n in zip(rows, (1, 2, 1, 1))
    ]
    entries = sorted(load(journal_of(output)), key=lambda entry: entry["source"])
    assert entries[0].pop("verdict")["problems"] == []
    assert (
        entries[0]
        == {
            "source": "Lake 1 .  ",
            "target": "图中有1个湖泊。",
            "model": "qwen-x",
            "style": "detailed",
            "tokens": [50, 10],
        }
        and len(entries) == 2
    )
    path, authorization, body = stub.bodies[0]
    assert (path, authorization, body["model"]) == (
        "/v1/chat/completions",
        f"Bearer {KEY}",
        "qwen-x",
    )
    assert "遥感" in body["messages"][0]["content"] and "不得添加" in body["messages"][0]["content"]
    printed = capsys.readouterr().out
    assert "2 requests (0 of them retries), 100 tokens in, 20 out" in printed
    output.unlink()
    assert translate(source, output) == 0 and len(stub.asked) == 2 and len(load(output)) == 4
    printed = capsys.readouterr()
    assert (
        KEY not in printed.out + printed.err
        and "4 records, 2 distinct captions, 2 known, 0 to ask" in printed.out
    )


def test_a_full_disk_names_the_journal_and_loses_no_answer(tmp_path, stub):
    source, output = save(tmp_path / "en.json", english(40)), tmp_path / "zh.json"
    options = ("--input", source, "--output", output)
    status, message = limited(2000, "translation_en2zh.py", *options)
    assert status == 1 and message.splitlines()[-1] == (
        f"translation_en2zh.py: error: {journal_of(output)} cannot be written: File too large; "
        "make room, the same command continues from what is saved"
    )
    kept = journal_of(output).read_bytes().count(b"\n")
    asked = len(stub.asked)
    assert kept and translate(source, output) == 0
    assert len(stub.asked) - asked == 40 - kept and len(load(output)) == 40


def test_memory_in_needs_neither_network_nor_key_nor_client_and_leaves_no_journal(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openai", None)  # an import of it raises
    source, output = save(tmp_path / "en.jsonl", english(3)), tmp_path / "zh.jsonl"
    first = save(
        tmp_path / "a.json", [{"source": f" Lake {i} .", "target": f"湖{i}"} for i in range(3)]
    )
    second = save(tmp_path / "b.jsonl", [{"source": "Lake 1 .", "target": "改"}] * 2)
    assert translate(source, output, "--memory", first, "--memory", second) == 0
    assert [row["caption"] for row in load(output)] == ["湖0", "改", "湖2"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "en.jsonl",
        "zh.jsonl",
        "a.json",
        "b.jsonl",
    }
    save(journal_of(output), [{"source": "Lake 1 .", "target": "图中有1个旧湖。", "model": "m"}])
    # a correction by hand wins over an answer
    assert translate(source, output, "--memory", first) == 0
    assert [row["caption"] for row in load(output)] == ["湖0", "湖1", "湖2"]


def test_memory_out_serves_another_file_without_asking(tmp_path, stub):
    memory, output = tmp_path / "memory.jsonl", tmp_path / "zh.json"
    assert translate(save(tmp_path / "en.json", english(3)), output, "--memory-out", memory) == 0
    assert load(memory) == [
        {"source": f"Lake {i} .", "target": f"图中有{i}个湖泊。"} for i in range(3)
    ]
    stub.asked.clear()
    assert (
        translate(
            save(tmp_path / "other.json", english(3)[::-1]), tmp_path / "o.json", "--memory", memory
        )
        == 0
    )
    assert stub.asked == [] and [row["caption"] for row in load(tmp_path / "o.json")] == [
        f"图中有{i}个湖泊。" for i in (2, 1, 0)
    ]


@pytest.mark.parametrize(
    "style, word",
    (
        ("concise", "四十字"),
        ("detailed", "相同的内容只说一次"),
        ("expanded", "扩写"),
        ("rewritten", "改写"),
    ),
)
def test_each_style_has_its_instruction_and_its_own_answers(tmp_path, stub, style, word):
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output, "--style", style) == 0
    assert (
        word in stub.bodies[0][2]["messages"][0]["content"]
        and "不得添加" in stub.bodies[0][2]["messages"][0]["content"]
    )
    assert translate(source, output, "--style", style) == 0 and len(stub.asked) == 1
    assert (
        translate(source, output, "--style", "concise" if style != "concise" else "expanded") == 0
        and len(stub.asked) == 2
    )


def test_limit_and_concurrency(tmp_path, stub):
    running, peak = [], []

    def slow(text, nth):
        running.append(text)
        peak.append(len(running))
        time.sleep(0.03)
        running.remove(text)
        return "<think>湖？</think>\n图中有湖泊。"

    stub.answer = slow
    source, output = save(tmp_path / "en.json", english(9)), tmp_path / "zh.json"
    assert translate(source, output, "--limit", 6, "--concurrency", 3) == 0
    assert len(stub.asked) == 6 and 2 <= max(peak) <= 3
    assert [row["caption"] for row in load(output)] == ["图中有湖泊。"] * 6
    assert (
        translate(source, output, "--concurrency", 1) == 0
        and len(stub.asked) == 9
        and len(load(output)) == 9
    )


# ---- the gate


def test_stored_answers_are_judged_once_by_the_same_rules(tmp_path, stub, monkeypatch):
    judged, judge = [], texts.quality.problems
    monkeypatch.setattr(
        texts.quality, "problems", lambda text, *rest: judged.append(text) or judge(text, *rest)
    )
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    assert translate(source, output) == 0 and len(judged) == 3

    output.unlink()
    assert translate(source, output) == 0 and len(judged) == 3 and len(load(output)) == 3
    monkeypatch.setattr(texts.quality, "fingerprint", lambda: "of other rules")
    output.unlink()
    assert translate(source, output) == 0 and len(judged) == 6
    assert len(stub.asked) == 3


def test_a_bad_answer_is_asked_again_with_the_complaint(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: (
        "湖边停着三辆汽车，给人宁静的感觉。" if nth == 1 else chinese(text)
    )
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output) == 0 and load(output)[0]["caption"] == "图中有0个湖泊。"
    first, second = (body["messages"] for _, _, body in stub.bodies)
    assert second[:2] == first and [m["role"] for m in second] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert (
        second[2]["content"].startswith("湖边")
        and "汽车" in second[3]["content"]
        and "宁静" in second[3]["content"]
    )
    assert len(load(journal_of(output))) == 2 and not rejected_of(output).exists()
    assert "1 rows, 1 passed, 0 rejected" in capsys.readouterr().out


def test_what_stays_bad_is_rejected_paid_once_and_asked_again_only_by_a_larger_reask(
    tmp_path, stub, capsys
):
    stub.answer = lambda text, nth: "抱歉，我无法翻译。" if text == "Lake 1 ." else chinese(text)
    rows = [*english(2), {"imged_id": "again.png", "caption": "Lake 1 ."}]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 1) == 0
    assert Counter(stub.asked) == {"Lake 0 .": 1, "Lake 1 .": 2}
    assert [row["imged_id"] for row in load(output)] == ["0.png"]
    assert [
        (row["imged_id"], row["caption"], row["answer"]) for row in load(rejected_of(output))
    ] == [
        ("1.png", "Lake 1 .", "抱歉，我无法翻译。"),
        ("again.png", "Lake 1 .", "抱歉，我无法翻译。"),
    ]
    assert load(rejected_of(output))[0]["problems"][0][0] == "refusal"
    report = load(tmp_path / "zh-report.json")
    assert (
        report["rows"],
        report["passed"],
        report["rejected"],
        report["reasons"]["refusal"]["rows"],
    ) == (3, 1, 2, 2)
    printed = capsys.readouterr().out
    assert "3 rows, 1 passed, 2 rejected" in printed and "refusal" in printed and "1.png" in printed

    # a known rejection costs nothing
    assert translate(source, output, "--reask", 1) == 0 and len(stub.asked) == 3
    assert "2 distinct captions, 1 known, 1 rejected, 0 to ask" in capsys.readouterr().out
    assert translate(source, output, "--reask", 2) == 0 and stub.asked[3:] == ["Lake 1 ."]
    assert (
        translate(source, output, "--no-gate") == 0
        and len(load(output)) == 3
        and not rejected_of(output).exists()
    )
    memory = save(tmp_path / "fixed.json", [{"source": "Lake 1 .", "target": "一个湖泊。"}])
    assert translate(source, output, "--memory", memory) == 0 and len(stub.asked) == 4
    assert [row["caption"] for row in load(output)] == [
        "图中有0个湖泊。",
        "一个湖泊。",
        "一个湖泊。",
    ]


def test_check_runs_the_gate_on_an_existing_file(tmp_path, capsys):
    rows = [
        {"imged_id": "0.png", "caption": "图中有一个湖泊。", "split": "val"},
        {"imged_id": "1.png", "caption": "湖边有红色的房屋。"},
    ]
    file = save(tmp_path / "old.json", rows)
    images = [
        {
            "filename": f"{i}.png",
            "sentences": [{"raw": "There is a lake ."}, {"raw": "A blue lake ."}],
        }
        for i in range(2)
    ]
    for captions in (
        save(tmp_path / "dataset.json", {"images": images}),
        save(tmp_path / "en.json", english(2)),
    ):
        assert call(translation_en2zh, "--check", file, "--input", captions) == 0
        assert load(tmp_path / "old-checked.json") == rows[:1]
        assert load(tmp_path / "old-checked-rejected.json")[0]["problems"] == [
            ["object", "house"],
            ["colour", "red"],
        ]
        assert load(tmp_path / "old-checked-report.json")["reasons"]["colour"]["examples"][0][
            "words"
        ] == ["red"]
        assert "2 rows, 1 passed, 1 rejected" in capsys.readouterr().out
    assert load(file) == rows
    unknown = save(tmp_path / "x.json", [{"imged_id": "9.png", "caption": "湖"}])
    assert call(translation_en2zh, "--check", unknown, "--input", captions) == 1
    assert "1 images of" in (message := capsys.readouterr().err) and "9.png" in message
    assert (
        call(translation_en2zh, "--check", file, "--input", file) == 1
        and "is Chinese: --input takes" in capsys.readouterr().err
    )
    before = unknown.read_bytes()
    assert (
        call(translation_en2zh, "--check", unknown, "--input", captions, "--output", unknown) == 1
    )
    assert (
        unknown.read_bytes() == before
        and "is the file that is checked: name another" in capsys.readouterr().err
    )


def test_trim_keeps_the_sentences_that_pass_of_what_stays_bad(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: (
        {"Lake 0 .": "图中有一个湖泊。湖面宁静。", "Lake 1 .": "湖边有汽车。"}.get(text)
        or chinese(text)
    )
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    assert translate(source, output, "--reask", 0) == 0 and [
        row["imged_id"] for row in load(output)
    ] == ["2.png"]
    # what was paid for is trimmed, not asked again
    assert translate(source, output, "--reask", 0, "--trim") == 0 and len(stub.asked) == 3
    assert [(row["imged_id"], row["caption"]) for row in load(output)] == [
        ("0.png", "图中有一个湖泊。"),
        ("2.png", "图中有2个湖泊。"),
    ]
    assert [row["imged_id"] for row in load(rejected_of(output))] == ["1.png"]
    report = load(tmp_path / "zh-report.json")
    assert [report[key] for key in ("rows", "passed", "trimmed", "rejected")] == [3, 1, 1, 1]
    assert "3 rows, 1 passed, 1 trimmed, 1 rejected" in capsys.readouterr().out

    file = save(
        tmp_path / "old.json",
        [{"imged_id": "0.png", "caption": "湖面宁静。图中有一个湖泊。", "split": "val"}],
    )
    assert call(translation_en2zh, "--check", file, "--input", source, "--trim") == 0
    assert load(tmp_path / "old-checked.json") == [
        {"imged_id": "0.png", "caption": "图中有一个湖泊。", "split": "val"}
    ]
    assert not (tmp_path / "old-checked-rejected.json").exists()
    # passes as a whole
    save(file, [{"imged_id": "0.png", "caption": "图中有一个湖泊。湖边是水面。", "split": "val"}])
    for number, kept in ((1, "图中有一个湖泊。"), (2, "图中有一个湖泊。湖边是水面。")):
        capsys.readouterr()
        assert call(translation_en2zh, "--check", file, "--input", source, "--trim", number) == 0
        said = "old-checked.json: 1 records, 1 of them with sentences left out (--trim)"
        assert (said in capsys.readouterr().out) == (number == 1)
        assert load(tmp_path / "old-checked.json")[0]["caption"] == kept
        assert load(tmp_path / "old-checked-report.json")["passed"] == 1


def test_check_finds_the_captions_of_a_set_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(existing, "DATA", tmp_path)
    monkeypatch.setattr("data.stage.DATA", tmp_path)
    images = [{"filename": "0.png", "sentences": [{"raw": "There is a lake ."}]}]
    save(tmp_path / "UCM" / "dataset.json", {"images": images})
    file = save(
        tmp_path / "UCM" / "UCM-zh.json", [{"imged_id": "0.png", "caption": "图中有一个湖泊。"}]
    )
    assert (
        call(translation_en2zh, "--check", file) == 0
        and len(load(tmp_path / "UCM" / "UCM-zh-checked.json")) == 1
    )


# ---- cost


def test_memory_out_into_no_folder_is_refused_before_anything_is_asked(tmp_path, stub, capsys):
    source = save(tmp_path / "en.json", english(1))
    assert (
        translate(source, tmp_path / "zh.json", "--memory-out", tmp_path / "none" / "m.json") == 1
    )
    assert stub.asked == [] and "--memory-out" in capsys.readouterr().err


def test_dry_run_counts_and_prices_without_key_network_or_file(tmp_path, capsys):
    rows = [*english(3), {"imged_id": "again", "caption": "Lake 1 ."}]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    memory = save(tmp_path / "m.json", [{"source": "Lake 2 .", "target": "湖"}])
    assert (
        translate(
            source, output, "--dry-run", "--memory", memory, "--price-in", 2, "--price-out", 8
        )
        == 0
    )
    printed = capsys.readouterr().out
    tokens_in, tokens_out = map(
        int, re.search(r"about (\d+) tokens in and (\d+) out", printed).groups()
    )
    instruction = texts.STYLES["detailed"][0]
    assert "4 records, 3 distinct captions, 1 known, 2 to ask" in printed
    assert (
        2 * 0.5 * len(instruction) < tokens_in < 2 * (1.2 * len(instruction) + 20)
        and 20 < tokens_out < 200
    )
    assert f"about {(tokens_in * 2 + tokens_out * 8) / 1e6:.4f}" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"en.json", "m.json"}


def test_max_cost_stops_before_it_is_exceeded_counting_what_is_under_way(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: (
        time.sleep(0.05) or (200, {}, completion(chinese(text), usage=(400, 100)))
    )
    source, output = save(tmp_path / "en.json", english(60)), tmp_path / "zh.json"
    prices = ("--price-in", 1000, "--price-out", 1000)  # 0.5 a request
    assert translate(source, output, *prices, "--max-cost", 5.2, "--concurrency", 8) == 1
    printed = capsys.readouterr()
    spent = 0.5 * len(stub.asked)
    assert spent <= 5.2 and len(stub.asked) >= 7 and f"{spent:.4f} spent" in printed.out
    assert "--max-cost 5.2" in printed.err and printed.err.count("\n") == 1 and not output.exists()
    assert len(load(journal_of(output))) == len(stub.asked)
    assert (
        translate(source, output, *prices, "--max-cost", 100) == 0
        and len(stub.asked) == 60
        and len(load(output)) == 60
    )


def test_what_may_have_been_charged_without_an_answer_counts(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: (
        (200, {}, b"{broken") if nth % 2 else time.sleep(0.3) or chinese(text)
    )
    source = save(tmp_path / "en.json", english(1))
    assert (
        translate(
            source, tmp_path / "zh.json", "--price-in", 1000, "--timeout", 0.1, "--max-retries", 1
        )
        == 1
    )
    printed = capsys.readouterr()
    assert (
        float(re.search(r"([0-9.]+) spent", printed.out)[1]) > 0.2 and "0 tokens in" in printed.out
    )


def test_tokens_are_estimated_where_the_server_counts_none(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: (200, {}, completion(chinese(text), usage=None))
    assert (
        translate(save(tmp_path / "en.json", english(2)), tmp_path / "zh.json", "--price-out", 1e6)
        == 0
    )
    tokens = int(re.search(r"(\d+) out", capsys.readouterr().out)[1])
    assert 10 <= tokens <= 30  # two answers of eight characters


# ---- pace and retries


def test_requests_and_tokens_per_minute(tmp_path, stub):
    source = save(tmp_path / "en.json", english(6))
    # 20 a second; 60 of 1200 tokens a second
    for options, least in ((("--rpm", 1200), 0.25), (("--tpm", 72000), 0.25)):
        starts = []

        def answer(text, nth, starts=starts):
            starts.append(time.monotonic())
            return chinese(text)

        stub.answer = answer
        assert translate(source, tmp_path / f"{options[0]}.json", *options, "--concurrency", 6) == 0
        assert least * 0.9 <= starts[-1] - starts[0] < 5


@pytest.mark.parametrize(
    "headers, seconds",
    (
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "20"}, 0.02),
        ({}, None),
        ({"Retry-After": "soon"}, None),
    ),
)
def test_the_pause_a_server_asks_for(headers, seconds):
    assert endpoint.asked_pause({name.lower(): value for name, value in headers.items()}) == seconds


def test_the_pause_a_server_asks_for_as_a_date():
    assert (
        28
        < endpoint.asked_pause(
            {"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)}
        )
        <= 30
    )


def test_retry_after_holds_all_workers_back(tmp_path, stub):
    times, refusal = [], error(429, "slow", {"Retry-After": "1"})
    stub.answer = lambda text, nth: (
        times.append(time.monotonic()) or (refusal if nth == 1 else chinese(text))
    )
    assert (
        translate(
            save(tmp_path / "en.json", english(4)),
            tmp_path / "zh.json",
            "--max-retries",
            1,
            "--concurrency",
            2,
        )
        == 0
    )
    assert len(stub.asked) == 5 and times[-1] - times[0] >= 1.0
    # the request refused and the one then under way
    assert sum(t < times[0] + 1 for t in times) <= 2


def test_backoff_doubles_with_jitter_and_ends_with_the_last_retry(tmp_path, stub, capsys):
    times = []
    stub.answer = lambda text, nth: times.append(time.monotonic()) or error(503)
    assert (
        translate(
            save(tmp_path / "en.json", english(1)),
            tmp_path / "zh.json",
            "--max-retries",
            3,
            "--backoff",
            0.1,
        )
        == 1
    )
    pauses = [b - a for a, b in zip(times, times[1:])]
    assert len(pauses) == 3 and all(
        0.5 * 0.1 * 2**k <= pause < 0.1 * 2**k + 0.5 for k, pause in enumerate(pauses)
    )
    assert "1 of 1 captions failed, first: InternalServerError" in capsys.readouterr().err


def test_a_wait_beyond_patience_stops_the_run(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: error(429, "tomorrow", {"Retry-After": "86400"})
    assert (
        translate(save(tmp_path / "en.json", english(5)), tmp_path / "zh.json", "--concurrency", 1)
        == 1
    )
    assert len(stub.asked) == 1 and "asks to wait 86400 s" in capsys.readouterr().err


def test_failures_keep_the_journal_and_the_old_output(tmp_path, stub, capsys):
    failing = {
        "Lake 1 .": error(500),
        "Lake 2 .": "  ",
        "Lake 3 .": (200, {}, completion("半", "length")),
        "Lake 4 .": (200, {"Content-Type": "text/html"}, b"<html>"),
        "Lake 5 .": (200, {}, b"{broken"),
        "Lake 6 .": (200, {}, {"choices": None}),
        "Lake 8 .": "\ud83d",
        "Lake 7 .": error(400, "a\nb"),
    }
    stub.answer = lambda text, nth: failing.get(text, chinese(text))
    source, output = save(tmp_path / "en.json", english(9)), tmp_path / "zh.json"
    output.write_text("old")
    assert translate(source, output, "--max-retries", 0, "--concurrency", 1) == 1
    message = capsys.readouterr().err
    assert len(stub.asked) == 9 and output.read_text() == "old" and message.count("\n") == 1
    assert (
        "8 of 9 captions failed, first: InternalServerError" in message
        and "for 'Lake 1 .'" in message
    )
    assert "Traceback" not in message
    assert [entry["source"] for entry in load(journal_of(output))] == ["Lake 0 ."]
    failing.clear()
    stub.asked.clear()
    assert translate(source, output) == 0
    assert sorted(stub.asked) == [f"Lake {i} ." for i in range(1, 9)] and len(load(output)) == 9


@pytest.mark.parametrize(
    "reply",
    (
        error(401, f"bad key {KEY}\nsecond line"),
        error(402, "balance"),
        error(403, "region"),
        error(404, "no such model"),
        error(429, "quota", {"retry-after-ms": "1"}, code="insufficient_quota"),
    ),
    ids=("401", "402", "403", "404", "quota"),
)
def test_non_retryable_errors_stop_at_once_with_one_line(tmp_path, stub, capsys, reply):
    stub.answer = lambda text, nth: chinese(text) if nth <= 2 else reply
    source, output = save(tmp_path / "en.json", english(40)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 2) == 1
    message = capsys.readouterr().err
    assert len(stub.asked) <= 4 and not output.exists() and len(load(journal_of(output))) == 2
    assert (
        message.count("\n") == 1
        and "stopped" in message
        and KEY not in message
        and "--model" in message
    )


def test_a_dead_endpoint_opens_the_breaker(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: chinese(text) if nth <= 3 else error(502)
    source, output = save(tmp_path / "en.json", english(100)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 2, "--max-retries", 1) == 1
    assert (
        len(stub.asked) <= 3 + 2 * 12
        and "10 captions failed one after another" in capsys.readouterr().err
    )
    assert len(load(journal_of(output))) == 3


def test_the_key_is_hidden_wherever_the_server_quotes_it(tmp_path, stub, capsys):
    replies = [error(500, f"Bearer {KEY}"), f"图中有湖泊，{KEY}。"]
    stub.answer = lambda text, nth: replies.pop(0) if replies else error(400, f"for {KEY}: no")
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 1, "--reask", 0) == 1
    printed = capsys.readouterr()
    assert KEY not in printed.out + printed.err and "for ***: no" in printed.err
    assert "***" in load(journal_of(output))[0]["target"]
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes(), path


def test_timeout_and_no_listener_are_failures(tmp_path, stub, capsys):
    stub.answer = lambda text, nth: time.sleep(0.5) or chinese(text)
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output, "--timeout", 0.1, "--max-retries", 0) == 1
    assert "no answer within 0.1 s" in capsys.readouterr().err and len(stub.asked) == 1
    assert translate(source, output, "--base-url", "http://127.0.0.1:9/v1", "--max-retries", 0) == 1
    assert "1 of 1 captions failed, first: APIConnectionError" in capsys.readouterr().err


# ---- many requests, faults and kills


def test_2000_records_with_every_fault_finish_complete_and_in_order(tmp_path, stub):
    """Each fault is scripted by caption and nth time; requests beyond one are the faults."""
    rng, lock, times, faults = random.Random(6), threading.Lock(), Counter(), Counter()
    kinds = ("429", "500", "hang", "reset", "torn", "short", "empty", "refusal", "cut")
    script = {
        f"Lake {i} .": rng.choices(kinds, k=rng.randint(1, 2)) + ["slow"]
        for i in rng.sample(range(1500), 150)
    }

    def answer(text, nth):
        with lock:
            times[text] += 1
            fault = (
                script[text][times[text] - 1] if times[text] <= len(script.get(text, ())) else None
            )
            faults[fault] += fault is not None and fault != "slow"
        if fault in ("slow", "hang"):
            time.sleep(0.1 if fault == "slow" else 4)
        return {
            "429": error(429, "slow down", {"Retry-After": "0.05"}),
            "500": error(500),
            "reset": None,
            "empty": "",
            "refusal": "抱歉，我无法完成这个请求。",
            "cut": (200, {}, completion("图中有", "length")),
            "short": (
                200,
                {"Content-Length": "900", "Connection": "close"},
                b'{"id": "1", "choices": [',
            ),
            "torn": (200, {}, json.dumps(completion("图中有湖泊。")).encode()[:60]),
        }.get(fault, chinese(text))

    stub.answer = answer
    rows = [
        {"imged_id": f"{k}.png", "caption": f"Lake {k % 1500} .", "split": "train"}
        for k in range(2000)
    ]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    assert translate(source, output, "--concurrency", 32, "--timeout", 2) == 0
    assert load(output) == [
        {**row, "caption": f"图中有{k % 1500}个湖泊。"} for k, row in enumerate(rows)
    ]
    assert len(times) == 1500 and sum(times.values()) == 1500 + sum(faults.values())
    expected = {text: 1 + sum(fault != "slow" for fault in script.get(text, ())) for text in times}
    assert {text: count for text, count in times.items() if count != expected[text]} == {}
    assert not rejected_of(output).exists()


def load_journal(path):
    """The whole lines of a journal that kills have torn."""
    return [
        json.loads(line)
        for line in path.read_text("utf-8", errors="replace").splitlines()
        if line.endswith("}")
    ]


def killed_runs(tmp_path, stub, kills, count, concurrency, sent=signal.SIGKILL):
    """Kill a run `kills` times at random moments, then let it finish.

    Returns how many requests were repeated. Checked for each kill: nothing journaled before it is
    asked after it, and no more is lost than was in flight.
    """
    rng, lock = random.Random(kills), threading.Lock()
    source, output = save(tmp_path / "en.json", english(count)), tmp_path / "zh.json"

    def answer(text, nth):
        with lock:
            pause = rng.uniform(0.005, 0.05)
        time.sleep(pause)
        return chinese(text)

    stub.answer = answer
    command = [
        sys.executable,
        DATA / "translation_en2zh.py",
        "--input",
        source,
        "--output",
        output,
        "--concurrency",
        str(concurrency),
    ]
    share = count / (kills + 1.5)
    for kill in range(kills):
        before = len(stub.asked)
        journaled = (
            {entry["source"] for entry in load_journal(journal_of(output))} if kill else set()
        )
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            wanted, deadline = before + rng.uniform(0.3, 1) * share, time.monotonic() + 30
            while len(stub.asked) < wanted and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(sent)
            _, message = process.communicate(timeout=15)
        if sent == signal.SIGINT:
            assert (
                process.returncode == 130
                and "continues" in message.splitlines()[-1]
                and "Traceback" not in message
            )
        time.sleep(0.2)  # handlers of the killed client end
        assert not output.exists() and not set(stub.asked[before:]) & journaled
        assert (
            len(stub.asked) - before - (len(load_journal(journal_of(output))) - len(journaled))
            <= concurrency
        )
        # a line torn in the middle of a character, as a full disk leaves it
        with open(journal_of(output), "ab") as file:
            file.write('{"source": "Lake 3 .", "target": "湖'.encode()[:-1] + b"\n" * (kill % 2))
    before = len(stub.asked)
    journaled = {entry["source"] for entry in load_journal(journal_of(output))}
    assert translate(source, output, "--concurrency", concurrency) == 0
    assert not set(stub.asked[before:]) & journaled
    assert [row["caption"] for row in load(output)] == [f"图中有{i}个湖泊。" for i in range(count)]
    again = len(stub.asked) - count
    assert (
        set(stub.asked) == {f"Lake {i} ." for i in range(count)}
        and 0 <= again <= kills * concurrency
    )
    asked = len(stub.asked)
    # the torn lines did not spoil those after them
    assert translate(source, output) == 0 and len(stub.asked) == asked
    return again


@pytest.mark.parametrize("sent", (signal.SIGKILL, signal.SIGINT), ids=("kill -9", "Ctrl-C"))
def test_killed_twice_asks_only_the_rest(tmp_path, stub, sent):
    killed_runs(tmp_path, stub, kills=2, count=120, concurrency=8, sent=sent)


@pytest.mark.slow
def test_killed_ten_times_asks_only_the_rest(tmp_path, stub):
    repeated = killed_runs(tmp_path, stub, kills=10, count=2000, concurrency=32)
    print(f"\n{repeated} requests repeated after 10 kills")


@pytest.mark.parametrize(
    "options, word",
    (
        (("--concurrency", "0"), "0 is not at least 1"),
        (("--timeout", "nan"), "--timeout"),
        (("--reask", "-1"), "--reask"),
        (("--max-cost", "1"), "--price-in"),
        (("--check", "x.json", "--dry-run"), "--check asks nothing"),
        (("--style", "poem"), "concise"),
        (("--trim", "--no-gate"), "--trim cuts"),
        (("--trim", "0"), "0 is not at least 1"),
        (("--rpm", "0"), "--rpm"),
        (("--price-in", "-1"), "--price-in"),
    ),
)
def test_options_that_make_no_sense_are_refused_at_parse_time(options, word, capsys):
    with pytest.raises(SystemExit, match="2"):
        translation_en2zh.main(list(options))
    assert word in capsys.readouterr().err
