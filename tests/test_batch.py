"""Captions that need no request, and requests in OpenAI's batch form."""

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from stages import PROJECT, english, load, save
from stub_batches import BatchStub, result
from stub_endpoint import KEY, chinese
from test_translation import journal_of, rejected_of, translate

from data import translation_en2zh
from data.journal import Journal, held
from model import files

pytestmark = pytest.mark.usefixtures("no_key")


def test_chinese_captions_are_judged_and_not_asked(tmp_path, stub, capsys):
    rows = english(2)
    rows.append({"imged_id": "a.png", "caption": "湖边有两座房屋  湖边有树。  湖边有两座房屋  "})
    rows.append({"imged_id": "b.png", "caption": "这个湖给人宁静美好的感觉。  湖中有一艘船。  "})
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    assert translate(source, output) == 0
    assert sorted(stub.asked) == ["Lake 0 .", "Lake 1 ."]
    assert "1 Chinese already" not in (printed := capsys.readouterr().out)
    assert "2 Chinese already, 1 known, 1 rejected, 2 to ask" in printed
    assert [row["caption"] for row in load(output)][2:] == ["湖边有两座房屋。湖边有树。"]
    [bad] = load(rejected_of(output))
    assert bad["imged_id"] == "b.png" and bad["problems"][0][0] == "subjective"
    # its good sentence is kept, and nothing is asked again
    assert translate(source, output, "--trim") == 0 and len(stub.asked) == 2
    assert load(output)[3]["caption"] == "湖中有一艘船。"
    assert translate(source, output, "--no-gate") == 0
    assert load(output)[3]["caption"].startswith("这个湖给人宁静")


def test_a_chinese_set_needs_neither_network_nor_key(tmp_path, capsys):
    rows = [{"imged_id": f"{n}.png", "caption": f"图中有{n}个湖泊  "} for n in range(30)]
    rows[3]["caption"] = "A lake。"
    source = save(tmp_path / "en.json", rows[:3] + rows[4:])
    assert translate(source, tmp_path / "zh.json") == 0
    assert len(load(tmp_path / "zh.json")) == 29
    rows[3]["caption"], rows[7]["caption"] = "Озеро и лес", "湖のそばにたくさんのいえがある"
    source = save(tmp_path / "en.json", rows)
    assert translate(source, tmp_path / "zh.json") == 1
    message = capsys.readouterr().err
    assert "2 of 30 captions are neither English nor Chinese: record 3 (3.png: 'Озеро" in message


# ---- files of requests and results


def answered(requests, answer=lambda text: chinese(text)):
    """Results in another order than the requests."""
    texts = [request["body"]["messages"][1]["content"] for request in requests]
    lines = [result(request, answer(text)) for request, text in zip(requests, texts)]
    return lines[::-1]


def test_requests_out_and_answers_back(tmp_path, stub, capsys):
    rows = [*english(4), {"imged_id": "x.png", "caption": "Lake 1 ."}]
    source, output = save(tmp_path / "en.json", rows), tmp_path / "zh.json"
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    options = ("--extra-body", '{"max_tokens": 99}', "--model", "qwen-x")
    assert translate(source, output, "--export-batch", requests, *options) == 0
    lines = load(requests)
    assert len(lines) == len({line["custom_id"] for line in lines}) == 4
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    body = lines[0]["body"]
    assert body["model"] == "qwen-x" and body["max_tokens"] == 99
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    # they are out: neither a second file nor a run asks for them again
    assert translate(source, output, "--export-batch", tmp_path / "again.jsonl") == 0
    assert not (tmp_path / "again.jsonl").exists()
    assert translate(source, output) == 1 and not stub.asked
    assert "4 captions are out in files of requests" in capsys.readouterr().err

    def answer(text):
        if text == "Lake 1 .":
            return "图中有1个宁静的湖泊。"
        return (500, {"error": {"message": "overloaded"}}) if text == "Lake 2 ." else chinese(text)

    save(results, answered(lines, answer))
    assert translate(source, output, "--import-batch", results) == 0
    printed = capsys.readouterr().out
    assert "3 answers, 150 tokens in, 30 out; 1 requests failed with overloaded" in printed
    [following] = tmp_path.glob("zh-requests-*.jsonl")
    again = load(following)
    asked = {line["body"]["messages"][1]["content"]: line["body"]["messages"] for line in again}
    assert set(asked) == {"Lake 1 .", "Lake 2 ."} and len(asked["Lake 2 ."]) == 2
    assert asked["Lake 1 ."][2]["content"] == "图中有1个宁静的湖泊。"
    assert "主观" in asked["Lake 1 ."][3]["content"] and not output.exists()

    # the old results once more, before the new ones: nothing is stored or asked twice
    before = journal_of(output).read_bytes()
    assert translate(source, output, "--import-batch", results) == 0
    assert journal_of(output).read_bytes() == before
    save(tmp_path / "more.jsonl", answered(again))
    assert translate(source, output, "--import-batch", results, tmp_path / "more.jsonl") == 0
    assert [row["caption"] for row in load(output)] == [
        f"图中有{n}个湖泊。" for n in (0, 1, 2, 3, 1)
    ]
    output.unlink()
    assert translate(source, output) == 0 and output.exists() and not stub.asked


def test_files_keep_the_limits_of_the_api(tmp_path, monkeypatch):
    monkeypatch.setattr("data.batch.MOST_REQUESTS", 3)
    source, output = save(tmp_path / "en.json", english(7)), tmp_path / "zh.json"
    assert translate(source, output, "--export-batch", tmp_path / "r.jsonl") == 0
    files = [tmp_path / name for name in ("r.jsonl", "r-2.jsonl", "r-3.jsonl")]
    assert [len(load(file)) for file in files] == [3, 3, 1]
    monkeypatch.setattr("data.batch.MOST_BYTES", 2 * files[2].stat().st_size + 9)
    other = tmp_path / "other.json"
    assert translate(source, other, "--export-batch", tmp_path / "s.jsonl") == 0
    sizes = [path.stat().st_size for path in tmp_path.glob("s*.jsonl")]
    assert len(sizes) == 4 and max(sizes) <= 2 * files[2].stat().st_size + 9


def test_lost_requests_are_written_again_and_failed_ones_get_new_ids(tmp_path):
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    for name, more in (("a", ()), ("b", ("--lost-batch",))):
        assert translate(source, output, "--export-batch", tmp_path / f"{name}.jsonl", *more) == 0
    ids = [{line["custom_id"] for line in load(tmp_path / f"{name}.jsonl")} for name in "ab"]
    assert len(ids[0] | ids[1]) == 4
    # what was taken for lost came after all: it does not count as the failure of the new ones
    save(tmp_path / "late.jsonl", answered(load(tmp_path / "a.jsonl"), lambda text: (500, {})))
    assert translate(source, output, "--import-batch", tmp_path / "late.jsonl") == 0
    assert not list(tmp_path.glob("zh-requests-*"))
    save(tmp_path / "results.jsonl", answered(load(tmp_path / "b.jsonl")))
    assert translate(source, output, "--import-batch", tmp_path / "results.jsonl") == 0
    assert len(load(output)) == 2


def test_results_that_are_none_are_listed_and_nothing_is_stored(tmp_path, capsys):
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    assert translate(source, output, "--export-batch", tmp_path / "r.jsonl") == 0
    results = answered(load(tmp_path / "r.jsonl"))
    other = {**results[0], "custom_id": "request-1"}
    path = save(tmp_path / "x.jsonl", [results[0], other, {"custom_id": results[1]["custom_id"]}])
    with open(path, "a") as file:
        file.write("{torn\n5\n")
    before = journal_of(output).read_bytes()
    assert translate(source, output, "--import-batch", path) == 1
    message = capsys.readouterr().err
    for words in (
        "4 bad records",
        "line 2 ('request-1'): answers no request of zh.json.journal.jsonl: results of another run",
        "expected a result with 'response' or 'error', got ['custom_id']",
        "line 4: not JSON",
        "line 5: expected an object, got int",
    ):
        assert words in message
    assert journal_of(output).read_bytes() == before
    assert translate(source, output, "--import-batch", tmp_path / "no.jsonl") == 1
    assert "cannot read" in capsys.readouterr().err


def test_a_translation_by_hand_wins_over_an_imported_answer(tmp_path):
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    assert translate(source, output, "--export-batch", tmp_path / "r.jsonl") == 0
    results = save(tmp_path / "results.jsonl", answered(load(tmp_path / "r.jsonl")))
    memory = save(tmp_path / "memory.json", [{"source": "Lake 0 .", "target": "一个湖。"}])
    assert translate(source, output, "--import-batch", results, "--memory", memory) == 0
    assert load(output)[0]["caption"] == "一个湖。"


def test_a_refusal_of_a_filter_in_a_file_is_final_as_it_is_in_a_run(tmp_path):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    options = ("--reask", "0", "--import-batch", tmp_path / "results.jsonl")
    assert translate(source, output, "--export-batch", tmp_path / "r.jsonl") == 0
    refusal = (400, {"error": {"code": "content_filter", "message": "content policy"}})
    lines = answered(
        load(tmp_path / "r.jsonl"), lambda text: refusal if "1" in text else chinese(text)
    )
    lines[0]["response"], lines[0]["error"] = None, {"message": "data_inspection_failed"}
    save(tmp_path / "results.jsonl", lines)
    assert translate(source, output, *options) == 0
    assert [row["imged_id"] for row in load(output)] == ["0.png"]
    reasons = {row["imged_id"]: row["problems"][0][0] for row in load(rejected_of(output))}
    assert reasons == {"1.png": "filter", "2.png": "filter"}


def test_an_import_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("data.batch.STORED_AT_ONCE", 7)
    source, output = save(tmp_path / "en.json", english(50)), tmp_path / "zh.json"
    assert translate(source, output, "--export-batch", tmp_path / "r.jsonl") == 0
    save(tmp_path / "results.jsonl", answered(load(tmp_path / "r.jsonl")))
    code = (
        "import os, sys; sys.path[:0] = ['.', 'tests']; from data import batch, journal; "
        "batch.STORED_AT_ONCE = 7; write, n = journal.Journal._write, []; "
        "journal.Journal._write = lambda self, lines: (n.append(1), write(self, lines), "
        "os.kill(os.getpid(), 9) if len(n) == 3 else None); "
        "from data import translation_en2zh; translation_en2zh.main(sys.argv[1:])"
    )
    argv = ["--input", source, "--output", output, "--import-batch", tmp_path / "results.jsonl"]
    killed = subprocess.run([sys.executable, "-c", code, *map(str, argv)], cwd=PROJECT)
    assert killed.returncode == -9
    with open(journal_of(output), "a") as file:
        file.write('{"source": "Lake 1 ."')
    assert translate(source, output, "--import-batch", tmp_path / "results.jsonl") == 0
    stored = [
        json.loads(line)["id"]
        for line in journal_of(output).read_text().splitlines()
        if '"target"' in line
    ]
    assert len(stored) == len(set(stored)) == 50 == len(load(output))


def export_to(path, source, output, *options):
    """The requests that --export-batch writes."""
    assert translate(source, output, "--export-batch", path, *options) == 0
    return load(path)


def captions_of(requests):
    return sorted(request["body"]["messages"][1]["content"] for request in requests)


def test_what_is_imported_is_not_lost(tmp_path):
    source, output = save(tmp_path / "en.json", english(4)), tmp_path / "zh.json"
    sent = export_to(tmp_path / "a.jsonl", source, output)
    results = save(tmp_path / "results.jsonl", answered(sent[:3]))
    assert translate(source, output, "--import-batch", results, "--lost-batch") == 0
    [again] = tmp_path.glob("zh-requests-*.jsonl")
    assert captions_of(load(again)) == ["Lake 3 ."]
    save(results, answered(load(again)))
    assert translate(source, output, "--import-batch", results) == 0 and len(load(output)) == 4


def test_an_answer_counts_that_comes_after_its_request_was_given_up(tmp_path, stub):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    first = export_to(tmp_path / "a.jsonl", source, output)
    second = export_to(tmp_path / "b.jsonl", source, output, "--lost-batch")
    late = save(tmp_path / "late.jsonl", answered(first))
    [request] = [request for request in second if captions_of([request]) == ["Lake 2 ."]]
    good = save(tmp_path / "good.jsonl", [result(request, "这里有2个湖泊。")])
    assert translate(source, output, "--import-batch", good, late) == 0 and not stub.asked
    assert [row["caption"] for row in load(output)] == [
        "图中有0个湖泊。",
        "图中有1个湖泊。",
        # a good answer stood already
        "这里有2个湖泊。",
    ]
    before = journal_of(output).read_bytes()
    assert translate(source, output, "--import-batch", late) == 0
    assert journal_of(output).read_bytes() == before


def test_a_late_answer_that_is_bad_is_asked_again_after_a_refusal(tmp_path):
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    [first] = export_to(tmp_path / "a.jsonl", source, output)
    [second] = export_to(tmp_path / "b.jsonl", source, output, "--lost-batch")
    refusal = (400, {"error": {"code": "content_filter", "message": "content policy"}})
    results = save(tmp_path / "r.jsonl", [result(second, refusal)])
    # nothing passes: the refusal is final
    assert translate(source, output, "--import-batch", results) == 1
    late = save(tmp_path / "late.jsonl", [result(first, "图中有0个宁静的湖泊。")])
    assert translate(source, output, "--import-batch", late) == 0
    [again] = tmp_path.glob("zh-requests-*.jsonl")
    assert len(load(again)[0]["body"]["messages"]) == 4


def content_of(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "options",
    (
        ("--lost-batch",),
        ("--import-batch", "results.jsonl", "--lost-batch"),
        ("--export-batch", "x.jsonl"),
        ("--batch-api", "--lost-batch"),
        ("--memory-out", "memory.jsonl"),
        ("--output", "new/folder/zh.json"),
    ),
)
def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    source, output = save(tmp_path / "en.json", english(4)), tmp_path / "zh.json"
    sent = export_to(tmp_path / "a.jsonl", source, output)
    save(tmp_path / "results.jsonl", answered(sent[:3]))
    before = content_of(tmp_path)
    assert translate(source, output, "--dry-run", *options) == 0
    assert content_of(tmp_path) == before
    printed = capsys.readouterr().out
    if "--import-batch" in options:
        assert "3 answers" in printed and "not stored in a dry run" in printed
        assert "3 known, 1 to ask" in printed


def test_a_second_run_on_an_output_stops(tmp_path, stub, capsys, monkeypatch):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    with held(journal_of(output)):
        for options in ((), ("--export-batch", tmp_path / "x.jsonl"), ("--batch-api",)):
            assert translate(source, output, *options) == 1
            message = capsys.readouterr().err
            assert "another run is working on this output" in message and message.count("\n") == 1
        # it asks nothing and writes nothing
        assert translate(source, output, "--dry-run") == 0
    assert not stub.asked and sorted(path.name for path in tmp_path.iterdir()) == ["en.json"]

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    assert translate(source, output) == 0 and len(load(output)) == 3
    assert "the file system has no locks" in capsys.readouterr().out


def test_an_answer_that_stands_twice_in_the_journal_counts_once(tmp_path, stub):
    source, output = save(tmp_path / "en.json", english(1)), tmp_path / "zh.json"
    sent = export_to(tmp_path / "a.jsonl", source, output)
    results = answered(sent, lambda text: "图中有0个宁静的湖泊。")
    # rejected at once, then two more tries are wanted
    options = ("--reask", "0", "--import-batch", save(tmp_path / "r.jsonl", results))
    assert translate(source, output, *options) == 1
    lines = journal_of(output).read_text().splitlines()
    journal_of(output).write_text("\n".join([*lines, lines[-1], lines[-1], ""]))
    stub.answer = lambda text, nth: "图中有0个宁静的湖泊。" if nth == 1 else chinese(text)
    assert translate(source, output, "--reask", "2") == 0 and len(stub.asked) == 2


@pytest.mark.parametrize(
    "options",
    (
        ("--export-batch", "en.jsonl"),
        ("--export-batch", "zh.jsonl"),
        ("--export-batch", "zh.jsonl.journal.jsonl"),
        ("--export-batch", "memory.jsonl", "--memory", "memory.jsonl"),
        ("--export-batch", "results.jsonl", "--import-batch", "results.jsonl"),
        ("--export-batch", "new.jsonl", "--memory-out", "new-2.jsonl"),
        ("--export-batch", "q.jsonl"),
        ("--memory-out", "zh.jsonl.journal.jsonl"),
        ("--memory-out", "en.jsonl"),
        ("--memory-out", "zh.jsonl"),
        ("--output", "results.jsonl", "--import-batch", "results.jsonl"),
    ),
)
def test_no_file_takes_the_place_of_another(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    source, output = save(tmp_path / "en.jsonl", english(2)), tmp_path / "zh.jsonl"
    sent = export_to(tmp_path / "a.jsonl", source, output)
    save(tmp_path / "results.jsonl", answered(sent))
    save(tmp_path / "memory.jsonl", [{"source": "Lake 9 .", "target": "湖"}])
    # of a round of more requests
    save(tmp_path / "q-2.jsonl", sent)
    before = content_of(tmp_path)
    assert translate(source, output, *options) == 1
    message = capsys.readouterr().err
    assert "name another" in message and message.count("\n") == 1
    assert content_of(tmp_path) == before


def test_results_of_another_model_are_not_taken_for_those_of_this_one(tmp_path, capsys):
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    first = export_to(tmp_path / "a.jsonl", source, output, "--model", "m1")
    results = save(tmp_path / "results.jsonl", answered(first))
    journal_of(output).unlink()
    export_to(tmp_path / "b.jsonl", source, output, "--model", "m2")
    before = journal_of(output).read_bytes()
    assert translate(source, output, "--import-batch", results) == 1
    assert "results of another run" in capsys.readouterr().err
    assert journal_of(output).read_bytes() == before


def test_all_files_of_results_are_checked_before_any_is_stored(tmp_path, capsys):
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    sent = export_to(tmp_path / "a.jsonl", source, output)
    good = save(tmp_path / "good.jsonl", answered(sent))
    foreign = save(tmp_path / "foreign.jsonl", [{**answered(sent)[0], "custom_id": "x"}])
    before = journal_of(output).read_bytes()
    for second, words in ((foreign, "results of another run"), (tmp_path / "no.jsonl", "no.jsonl")):
        assert translate(source, output, "--import-batch", good, second) == 1
        assert words in capsys.readouterr().err
        assert journal_of(output).read_bytes() == before


def test_where_requests_cannot_go_and_what_a_kill_left_of_them(tmp_path, capsys):
    source, output = save(tmp_path / "en.json", english(2)), tmp_path / "zh.json"
    assert translate(source, output, "--export-batch", tmp_path / "no" / "r.jsonl") == 1
    message = capsys.readouterr().err
    assert "folder of --export-batch" in message and "does not exist" in message
    names = (".r.jsonl.77.tmp", ".r-2.jsonl.78.tmp", ".rest.jsonl.77.tmp", ".r.json.77.tmp")
    for name in names:
        (tmp_path / name).write_text("{")
    export_to(tmp_path / "r.jsonl", source, output)
    assert [name for name in names if (tmp_path / name).exists()] == list(names[2:])


# ---- the API


@pytest.fixture
def api(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    stub = BatchStub()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


def in_batches(api, source, output, *options):
    return translate(
        source, output, "--batch-api", "--base-url", api.url, "--poll", "0.01", *options
    )


def test_rounds_of_batches_by_the_api(tmp_path, api, monkeypatch, capsys):
    monkeypatch.setattr("data.batch.MOST_REQUESTS", 4)
    source, output = save(tmp_path / "en.json", english(6)), tmp_path / "zh.json"
    seen = Counter()

    def answer(text, nth):
        seen[text] += 1
        first = seen[text] == 1
        if text == "Lake 1 ." and first:
            return "图中有1个美丽的湖泊。"
        if text == "Lake 2 ." and first:
            return 500, {"error": {"message": "overloaded"}}
        # a batch may leave a request out
        return None if text == "Lake 3 ." and first else chinese(text)

    api.answer = answer
    assert in_batches(api, source, output) == 0
    assert [row["caption"] for row in load(output)] == [f"图中有{n}个湖泊。" for n in range(6)]
    assert sorted(len(requests) for requests in api.made[:2]) == [2, 4] and len(api.made[2]) == 3
    assert sum(seen.values()) == 9
    assert KEY not in (printed := capsys.readouterr().out)
    assert "handed in as batch batch-0" in printed and "batch batch-0: completed" in printed
    assert in_batches(api, source, output) == 0 and len(api.made) == 3


@pytest.mark.parametrize("when", ("made", "waiting"))
def test_a_batch_is_made_once_whenever_the_run_is_killed(tmp_path, api, monkeypatch, when):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if when == "made":
            # after the API has it, before the journal does
            patched.setattr("data.batch_rounds.print", killed, raising=False)
            store = Journal.store
            patched.setattr(
                Journal,
                "store",
                lambda self, entries: (
                    killed() if "batch" in (entries or [{}])[0] else store(self, entries)
                ),
            )
        else:
            patched.setattr("data.batch_api.time.sleep", killed)
        assert in_batches(api, source, output) == 130
    assert len(api.made) == 1 and not output.exists()
    assert in_batches(api, source, output) == 0
    assert len(api.made) == 1 and len(load(output)) == 3


def test_a_batch_that_fails_as_a_whole_is_one_line_and_asked_again(tmp_path, api, capsys):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    api.ending = "failed"
    assert in_batches(api, source, output) == 1
    printed = capsys.readouterr()
    assert "batch batch-0 failed: quota is used up" in printed.out
    assert "a whole round of batches brought no answer" in printed.err
    api.ending = "completed"
    assert in_batches(api, source, output) == 0 and len(api.made) == 2


def test_a_batch_whose_making_was_not_answered_is_not_made_twice(tmp_path, api, capsys):
    make = api.make

    def silent(options):
        batch = make(options)
        api.make = make
        time.sleep(1.5)
        return batch

    api.make = silent
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    assert in_batches(api, source, output, "--timeout", "0.5") == 1
    assert "the same command goes on" in capsys.readouterr().err
    assert in_batches(api, source, output) == 0 and len(api.made) == 1


def test_an_api_without_batches_is_one_line(tmp_path, stub, capsys):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    options = ("--batch-api", "--max-retries", "0")
    assert translate(source, output, *options, "--base-url", stub.url) == 1
    message = capsys.readouterr().err
    assert "the Batch API: " in message and message.count("\n") == 1 and KEY not in message


def test_files_that_were_removed_do_not_lend_their_names(tmp_path, api):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    assert in_batches(api, source, output) == 0
    for path in tmp_path.glob("zh-batch-*"):
        path.unlink()
    save(source, english(5))
    assert in_batches(api, source, output) == 0
    assert [len(made) for made in api.made] == [3, 2] and len(load(output)) == 5


@pytest.mark.parametrize("name", ("a-zh.json", "a-zh.jsonl"))
def test_files_of_requests_of_another_run_are_not_handed_in(tmp_path, api, name, capsys):
    """The journal of the first run is gone, or belongs to an output of the same stem."""
    source, first = save(tmp_path / "en.json", english(3)), tmp_path / "a-zh.json"
    assert in_batches(api, source, first, "--model", "m1") == 0
    output = tmp_path / name
    if output == first:
        first.unlink()
        journal_of(first).unlink()
    api.answer = lambda text, nth: chinese(text).replace("图中", "这里")
    capsys.readouterr()
    assert in_batches(api, source, output, "--model", "m2") == 0
    assert [row["caption"] for row in load(output)] == [f"这里有{n}个湖泊。" for n in range(3)]
    assert capsys.readouterr().out.count("handed in as batch") == 1
    models = [{request["body"]["model"] for request in made} for made in api.made]
    assert models == [{"m1"}, {"m2"}]


def test_requests_are_handed_in_once_after_a_kill_before_the_journal_knew_them(
    tmp_path, api, monkeypatch
):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "store", killed)
        assert in_batches(api, source, output) == 130
    assert (tmp_path / "zh-batch-1.jsonl").exists()
    # other bytes, or the API would find the first batch again
    assert in_batches(api, source, output, "--model", "m2") == 0
    assert [len(made) for made in api.made] == [3]


def test_requests_of_a_journal_that_does_not_name_their_files_are_handed_in(tmp_path, api):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    export_to(tmp_path / "zh-batch-1.jsonl", source, output)
    entries = load(journal_of(output))
    for entry in entries:
        del entry["requests"], entry["model"]
    journal_of(output).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert in_batches(api, source, output) == 0
    assert [len(made) for made in api.made] == [3] and len(load(output)) == 3


def test_an_output_with_brackets_in_its_name(tmp_path, api):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "a[1]-zh.json"
    assert in_batches(api, source, output) == 0
    assert [len(made) for made in api.made] == [3] and len(load(output)) == 3


def test_a_batch_is_fetched_whose_file_of_requests_was_removed(tmp_path, api, monkeypatch):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    api.answer = lambda text, nth: None if nth == 2 else chinese(text)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("data.batch_api.time.sleep", killed)
        assert in_batches(api, source, output) == 130
    for path in tmp_path.glob("zh-batch-*"):
        path.unlink()
    assert in_batches(api, source, output) == 0
    # what the first left out is asked again, and only that
    assert [len(made) for made in api.made] == [3, 1] and len(load(output)) == 3


PAGE = b"<html><head><style>b {}</style></head><body>Sign in</body></html>"
FOREIGN = (
    (PAGE, "text/html"),
    (PAGE, "application/json"),
    (b"null", "application/json"),
    (b"{}", "application/json"),
    (b'{"error": {"message": "Sign in"}}', "application/json"),
    (b"[5]", "application/json"),
    (b"", "application/json"),
)


@pytest.mark.parametrize("reply", (ConnectionError, *FOREIGN))
def test_a_wait_goes_on_over_outages(tmp_path, api, capsys, reply):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    looks, look = [], api.look

    def broken(number):
        looks.append(number)
        return reply if 1 < len(looks) < 5 else look(number)

    api.look = broken
    assert in_batches(api, source, output, "--max-retries", "0") == 0
    assert len(api.made) == 1 and len(load(output)) == 3
    printed = capsys.readouterr().out
    assert printed.count("the wait goes on") == 1 and "<" not in printed and "None" not in printed


def late_answers(api, how):
    """Let it count, and give no file of answers, or one without a byte, while `how` says so."""
    look, api.files["empty"] = api.look, b""

    def late(number):
        batch = {**look(number), "request_counts": {"completed": 3, "failed": 0, "total": 3}}
        if batch["status"] == "completed" and (gap := how()):
            batch["output_file_id"] = {"no file": None, "empty": "empty"}[gap]
        return batch

    api.look = late


@pytest.mark.parametrize("how", ("no file", "empty"))
def test_answers_that_come_after_their_batch_was_completed(tmp_path, api, capsys, how):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    states = iter([how, how])
    late_answers(api, lambda: next(states, ""))
    assert in_batches(api, source, output) == 0
    assert len(api.made) == 1 and len(load(output)) == 3
    printed = capsys.readouterr().out
    assert printed.count("its answers are not there yet") == printed.count("completed, 3 of 3") == 1


def test_answers_that_do_not_come_are_given_up_on_demand_only(tmp_path, api, monkeypatch, capsys):
    monkeypatch.setattr("data.batch_api.LONGEST_DELAY", 0.05)
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    late_answers(api, lambda: "no file" if len(api.made) == 1 else "")
    for _ in range(2):
        assert in_batches(api, source, output) == 1 and len(api.made) == 1
        message = capsys.readouterr().err
        assert "batch-0 is completed, but its answers" in message and message.count("\n") == 1
        assert "--lost-batch" in message
    assert in_batches(api, source, output, "--lost-batch") == 0
    assert len(api.made) == 2 and len(load(output)) == 3


@pytest.mark.parametrize(
    "status, counts",
    (
        ("completed", {"completed": 0, "failed": 3, "total": 3}),
        ("completed", {"completed": 0, "failed": 0, "total": 0}),
        ("expired", {"completed": 0, "failed": 0, "total": 3}),
        ("cancelled", None),
    ),
)
def test_a_batch_that_has_nothing_is_not_waited_for(tmp_path, api, capsys, status, counts):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    look = api.look
    api.answer, api.ending = lambda text, nth: None, status
    api.look = lambda number: {**look(number), "request_counts": counts}
    assert in_batches(api, source, output) == 1
    assert "a whole round of batches brought no answer" in capsys.readouterr().err


@pytest.mark.parametrize("reply", FOREIGN[:4])
def test_a_page_in_the_place_of_a_file_of_results(tmp_path, api, capsys, reply):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    replies, read = iter([reply, reply]), api.read
    api.read = lambda number: next(replies, None) or read(number)
    assert in_batches(api, source, output) == 0
    assert len(api.made) == 1 and len(load(output)) == 3
    assert capsys.readouterr().out.count("the wait goes on") == 1


@pytest.mark.parametrize("route", ("list", "upload", "make"))
@pytest.mark.parametrize("reply", FOREIGN)
def test_replies_that_are_no_batch_when_one_is_handed_in(tmp_path, api, capsys, route, reply):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    with_reply = getattr(api, route)

    def broken(*options):
        # it was made all the same
        with_reply(*options)
        return reply

    setattr(api, route, broken)
    assert in_batches(api, source, output) == 1
    message = capsys.readouterr().err
    assert "the same command goes on" in message and message.count("\n") == 1
    assert "foreign reply" in message and "attribute" not in message
    assert not any("batch" in entry for entry in load(journal_of(output)))
    setattr(api, route, with_reply)
    assert in_batches(api, source, output) == 0
    assert len(api.made) == 1 and len(load(output)) == 3


def test_counts_without_numbers(tmp_path, api):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    look = api.look
    api.look = lambda number: {**look(number), "request_counts": {"total": None}}
    assert in_batches(api, source, output) == 0 and len(load(output)) == 3


@pytest.mark.parametrize("is_there", (True, False))
def test_a_journal_in_which_a_batch_has_no_id(tmp_path, api, capsys, is_there):
    source, output = save(tmp_path / "en.json", english(3)), tmp_path / "zh.json"
    requests = tmp_path / "zh-batch-1.jsonl"
    export_to(requests, source, output)
    with open(journal_of(output), "a") as file:
        entry = {"style": "detailed", "batch": None, "requests": requests.name}
        file.write(json.dumps(entry) + "\n")
    if is_there:
        assert in_batches(api, source, output) == 0 and len(load(output)) == 3
        return
    requests.unlink()
    assert in_batches(api, source, output) == 1
    assert "--lost-batch asks for them again" in capsys.readouterr().err
    assert in_batches(api, source, output, "--lost-batch") == 0 and len(load(output)) == 3


def test_a_batch_that_the_api_does_not_know(tmp_path, api, monkeypatch, capsys):
    """The others are fetched, --lost-batch asks again for this one alone."""
    monkeypatch.setattr("data.batch.MOST_REQUESTS", 2)
    source, output = save(tmp_path / "en.json", english(4)), tmp_path / "zh.json"
    look, unknown = api.look, "batch-0"
    api.look = lambda number: None if number == unknown else look(number)
    assert in_batches(api, source, output) == 1
    message = capsys.readouterr().err
    assert "batch batch-0" in message and "is not known" in message and "--lost-batch" in message
    assert message.count("\n") == 1 and "same command" not in message
    assert in_batches(api, source, output, "--lost-batch") == 0
    assert [len(made) for made in api.made] == [2, 2, 2] and len(load(output)) == 4
    assert captions_of(api.made[2]) == captions_of(api.made[0])


@pytest.mark.parametrize(
    "options, words",
    (
        (("--batch-api", "--export-batch", "x.jsonl"), "--batch-api does all"),
        (("--export-batch", "x.json"), "expected a name ending in .jsonl"),
        (("--batch-api", "--stream"), "batches do not go with --check, --stream or --max-cost"),
        (("--batch-api", "--poll", "0"), "0 is not at least 0.01"),
    ),
)
def test_options_of_batches_that_make_no_sense(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        translation_en2zh.main(list(options))
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_answers_a_file_of_requests_with_ray(tmp_path, stub):
    pytest.importorskip("ray", reason="ray is not installed")
    source, output = save(tmp_path / "en.json", english(6)), tmp_path / "zh.json"
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    assert translate(source, output, "--export-batch", requests) == 0
    example = PROJECT / "data" / "examples" / "ray_batch.py"
    assert len(example.read_text().splitlines()) <= 40
    subprocess.run([sys.executable, example, requests, results, stub.url], check=True, timeout=500)
    assert len(stub.asked) == 6
    assert translate(source, output, "--import-batch", results) == 0
    assert [row["caption"] for row in load(output)] == [f"图中有{n}个湖泊。" for n in range(6)]
