"""The page: through gradio_client, in a real browser, and its command line.

Answers come from a tiny real checkpoint. As a script it takes the screenshot of the README:

    python tests/test_web.py CHECKPOINT IMAGE images/web_demo.png [QUESTION ...]
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROJECT  # and the project on the path, for the script
from PIL import Image

import web_demo

CHROMIUM = Path("/usr/bin/chromium")
PROMPT = "这张遥感图像展现了什么场景？"
ENDLESS = "一直数下去"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LOCAL = {None, "127.0.0.1", "localhost", "0.0.0.0", "::1"}


class Watched:
    """An assistant and what the page asked of it.

    The question ENDLESS is answered until somebody stops it.
    `forced` replaces fields of the page's sampling: a random network seldom ends by itself.
    """

    def __init__(self, assistant, **forced):
        self.assistant = assistant
        self.prompt = assistant.prompt
        self.first_question = assistant.first_question
        self.forced = forced
        self.calls = []
        self.stopped = threading.Event()

    def stream(self, question, image=None, history=(), sampling=None, english=False, on_cut=None):
        self.calls.append(
            {
                "question": question,
                "image": image,
                "history": list(history),
                "sampling": sampling,
                "english": english,
            }
        )
        if question != ENDLESS:
            yield from self.assistant.stream(
                question, image, history, replace(sampling, **self.forced), english, on_cut
            )
            return
        try:
            for number in itertools.count():
                yield f"{number} "
                time.sleep(0.02)
        finally:
            self.stopped.set()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def served(checkpoint, english=False, **forced):
    """(address of the page, its Watched assistant)."""
    from model import load_assistant

    assistant = Watched(load_assistant(checkpoint, device="cpu"), **forced)
    page = web_demo.serve(assistant, "127.0.0.1", free_port(), english)
    try:
        yield page.local_url, assistant
    finally:
        page.close(verbose=False)


@contextmanager
def chromium():
    """A browser driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def open_page(browser, address):
    """The page at the size of the screenshot, in Chinese.

    `asked_for` lists the addresses it requested.
    """
    tab = browser.new_page(viewport={"width": 1280, "height": 800}, locale="zh-CN")
    tab.asked_for = []
    tab.on("request", lambda request: tab.asked_for.append(request.url))
    tab.goto(address)
    tab.wait_for_selector("#send")
    return tab


def upload(tab, path):
    tab.set_input_files("#file input[type=file]", path)


def wait_until(condition, seconds=20):
    """True as soon as the condition holds, False when it has not for that long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def bubbles(tab, role="bot"):
    """The texts of the dialogue by "bot" or "user"."""
    return [
        bubble.inner_text().strip()
        for bubble in tab.query_selector_all(f"#chat [data-testid={role}]")
    ]


def ask_and_wait(tab, question):
    """Send a question and wait for its answer to begin and to end."""
    answers = len(bubbles(tab)) + 1
    tab.fill("#question textarea", question)
    tab.click("#send")
    assert wait_until(lambda: len(bubbles(tab)) == answers and bubbles(tab)[-1], 60)
    texts = []

    def ended():
        texts.append(bubbles(tab))
        return len(texts) > 10 and texts[-1] == texts[-10]

    wait_until(ended, 60)


def screenshot(browser, address, image, target, *questions):
    """Save the page, 1280 x 800, with an image and the answers to the first question and others."""
    tab = open_page(browser, address)
    upload(tab, image)
    tab.wait_for_selector("#preview img")
    for question in [tab.input_value("#question textarea"), *questions]:
        ask_and_wait(tab, question)
    tab.mouse.move(0, 0)
    tab.wait_for_timeout(500)  # the colour of the button fades
    tab.screenshot(path=target)
    tab.close()


@pytest.fixture(scope="module")
def page(tiny_checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        # serve() sets them: they are gone afterwards.
        for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy"):
            environment.setenv(name, "")
        with served(tiny_checkpoint, max_new_tokens=20) as running:
            yield running


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip(
        "playwright", reason="the browser tests need playwright: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"the browser tests need {CHROMIUM}: apt-get install chromium")
    with chromium() as running:
        yield running


@pytest.fixture
def tab(browser, page):
    tab = open_page(browser, page[0])
    yield tab
    tab.close()


@pytest.fixture
def scene(tmp_path):
    """A TIFF, which no browser shows by itself."""
    image = Image.new("RGB", (96, 64), (60, 130, 70))
    image.paste((40, 90, 200), (20, 10, 60, 50))
    image.save(tmp_path / "湖泊 1.tif")
    return tmp_path / "湖泊 1.tif"


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "bad.tif").write_text("no <b>picture</b>")
    return tmp_path / "bad.tif"


# Through gradio_client


@pytest.fixture(scope="module")
def ask(page):
    """ask(image path, question, dialogue) -> the dialogues that /answer streams; greedy."""
    from gradio_client import Client, handle_file

    client = Client(page[0], verbose=False)

    def ask(path, question, chat=()):
        job = client.submit(
            handle_file(path) if path else None,
            question,
            list(chat),
            128,
            0,
            0.8,
            api_name="/answer",
        )
        return [chat for chat, _ in job]

    return ask


def text(message):
    return "".join(part["text"] for part in message["content"])


def test_the_page_gives_the_answer_of_the_assistant_piece_by_piece(page, ask, scene):
    from model import Sampling, read_image

    streamed = ask(scene, PROMPT)
    sampling = Sampling(max_length=128, top_p=0)
    expected = "".join(page[1].stream(PROMPT, read_image(scene), (), sampling))
    answers = [text(chat[1]) for chat in streamed]
    assert expected and answers[-1] == expected
    assert all(later.startswith(earlier) for earlier, later in zip(answers, answers[1:]))
    assert [(m["role"], text(m)) for m in streamed[-1]] == [
        ("user", PROMPT),
        ("assistant", expected),
    ]
    assert page[1].calls[-2]["sampling"] == sampling and page[1].calls[-2]["english"] is False


def test_later_rounds_know_the_earlier_ones_and_keep_the_same_image_object(page, ask, scene):
    chat = ask(scene, PROMPT)[-1]
    chat = ask(scene, "有几条船？", chat)[-1]
    first, second = page[1].calls[-2:]
    assert len(chat) == 4 and second["history"] == [(PROMPT, text(chat[1]))]
    assert first["image"] is second["image"] and first["image"].size == (96, 64)


def test_without_an_image_it_is_plain_text(page, ask):
    chat = ask(None, "你好")[-1]
    assert len(chat) == 2 and page[1].calls[-1]["image"] is None


def test_what_cannot_be_answered_is_one_sentence_and_no_part_of_the_history(
    page, ask, broken, scene
):
    asked = len(page[1].calls)
    [[error]] = ask(broken, PROMPT)
    # Not the name of the stored upload
    assert text(error).startswith("错误：image bad.tif: not an image")
    [[_, empty]] = ask(None, "  ", [error])
    assert text(empty) == "错误：请先输入问题。"
    assert len(page[1].calls) == asked
    ask(scene, PROMPT, [error, empty])
    assert page[1].calls[-1]["history"] == []


def test_a_dialogue_too_long_says_what_was_not_read(page, ask, scene):
    """The answer is the one to the dialogue without its oldest rounds.

    The notice is no part of the history.
    """
    from model import Sampling, read_image

    said = [("红色吗？", "这是一片绿色的农田。"), ("", ""), ("有几条船？", "")] + [
        ("蓝色吗？", f"停着三辆汽车{n}。") for n in "一二三四五六七八"
    ]
    chat = [
        {"role": role, "content": [{"type": "text", "text": words}]}
        for pair in said
        for role, words in zip(("user", "assistant"), pair)
    ]
    streamed = ask(scene, PROMPT, chat)
    notice, question, reply = streamed[-1][-3:]
    left = int(re.fullmatch("注意：超出长度上限，未读入最早的 (\\d) 轮对话", text(notice))[1])
    history = [pair for pair in said if all(pair)]
    assert notice["role"] == "assistant" and text(question) == PROMPT
    assert page[1].calls[-1]["history"] == history
    assert text(reply) == "".join(
        page[1].stream(PROMPT, read_image(scene), history[left:], Sampling(max_length=128, top_p=0))
    )
    history.append((PROMPT, text(reply)))
    again = ask(scene, "有几条船？", streamed[-1])
    assert page[1].calls[-1]["history"] == history and text(again[-1][-3]).startswith("注意：")
    assert text(ask(None, "有几条船？" * 99)[-1][0]) == "注意：超出长度上限，未读入问题的末尾"


def test_in_english_over_plain_http_and_without_a_word_to_another_machine(tiny_checkpoint):
    # Without gradio_client: its huggingface_hub asks huggingface.co who is calling.
    hosts, watching = set(), True

    def hook(event, arguments):  # an audit hook cannot be removed, only silenced
        if watching and event == "socket.getaddrinfo":
            hosts.add(arguments[0])
        elif watching and event == "socket.connect" and isinstance(arguments[1], tuple):
            hosts.add(arguments[1][0])

    def fetch(address, data=None):
        with DIRECT.open(
            urllib.request.Request(address, data, {"Content-Type": "application/json"}), timeout=20
        ) as reply:
            return reply.read().decode()

    sys.addaudithook(hook)
    with served(tiny_checkpoint, english=True, max_new_tokens=5) as (address, assistant):
        assert "Talk with aerial images" in fetch(address)
        for question in ("What is this?", ""):
            data = json.dumps({"data": [None, question, [], 128, 0, 0.8]}).encode()
            event = json.loads(fetch(f"{address}gradio_api/call/answer", data))["event_id"]
            stream = fetch(f"{address}gradio_api/call/answer/{event}")
    watching = False
    assert "error: please type a question first" in stream and "event: complete" in stream
    assert [(call["question"], call["english"]) for call in assistant.calls] == [
        ("What is this?", True)
    ]
    assert hosts and {host.decode() if isinstance(host, bytes) else host for host in hosts} <= LOCAL


# In the browser


def finished(tab, answers):
    """So many answers are there and the last has stopped growing."""
    before = bubbles(tab)
    tab.wait_for_timeout(1000)
    return len(before) == answers and all(before) and bubbles(tab) == before


def test_a_dialogue_in_the_browser(tab, page, scene):
    assert tab.input_value("#question textarea") == PROMPT
    upload(tab, scene)
    tab.wait_for_function("document.querySelector('#preview img')?.naturalWidth > 0")
    size = "(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#preview img'))"
    assert tab.evaluate(size) == [96, 64]
    tab.click("#send")
    # A question sent while an answer comes is not taken.
    assert wait_until(lambda: finished(tab, 1), 90)
    assert bubbles(tab, "user") == [PROMPT] and tab.input_value("#question textarea") == ""
    tab.fill("#question textarea", "有几条船？")
    tab.press("#question textarea", "Enter")
    assert wait_until(lambda: finished(tab, 2), 90)
    assert bubbles(tab, "user") == [PROMPT, "有几条船？"]
    tab.click("#clear")
    assert wait_until(lambda: not bubbles(tab) and not bubbles(tab, "user"))
    assert tab.input_value("#question textarea") == PROMPT
    assert tab.is_visible("#preview img")  # the dialogue is cleared, not the image
    assert page[1].calls[-1]["image"] is page[1].calls[-2]["image"]
    assert not tab.is_visible("#sampling input[type=range]")
    tab.click("#sampling button")
    tab.wait_for_selector("#sampling input[type=range]")
    assert len(tab.asked_for) > 5
    assert [url for url in tab.asked_for if not url.startswith((page[0], "data:", "blob:"))] == []


@pytest.mark.parametrize("way", ["stop", "clear", "another image"])
def test_a_running_answer_grows_until_it_is_stopped(tab, page, scene, way):
    page[1].stopped.clear()
    upload(tab, scene)
    tab.wait_for_selector("#preview img")
    tab.fill("#question textarea", ENDLESS)
    tab.click("#send")
    assert wait_until(lambda: any(bubbles(tab)))
    begun = len(bubbles(tab)[0])
    assert wait_until(lambda: len(bubbles(tab)[0]) > begun + 10)
    tab.click("#file button[title]" if way == "another image" else f"#{way}")
    assert page[1].stopped.wait(10)
    if way == "stop":
        tab.wait_for_timeout(300)
        frozen = bubbles(tab)
        tab.wait_for_timeout(300)
        assert bubbles(tab) == frozen and frozen[0].startswith("0 1 2 3")
    else:
        assert wait_until(lambda: not bubbles(tab))
        assert tab.is_visible("#preview") == (way == "clear")


def test_a_bad_file_is_named_in_the_page_and_the_next_one_works(tab, scene, broken):
    upload(tab, broken)
    assert wait_until(lambda: any(bubbles(tab)))
    assert bubbles(tab)[0].startswith("错误：image bad.tif: not an image")
    assert not tab.is_visible("#preview")
    upload(tab, scene)
    tab.wait_for_function("document.querySelector('#preview img')?.naturalWidth > 0")
    assert not bubbles(tab)


def test_the_screenshot_is_taken(browser, page, scene, tmp_path):
    screenshot(browser, page[0], scene, tmp_path / "page.png", "有几条船？")
    assert Image.open(tmp_path / "page.png").size == (1280, 800)
    assert [call["question"] for call in page[1].calls[-2:]] == [PROMPT, "有几条船？"]


# The command line


def test_help_and_wrong_options_need_neither_torch_nor_gradio():
    code = (
        "import sys, web_demo\n"
        "try: web_demo.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    sys.exit(9 if {'torch', 'gradio'} & set(sys.modules) else end.code)"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code, *options], cwd=PROJECT, capture_output=True, text=True
        )
        for options in (["--help"], ["--port", "70000"], ["--dtype", "int8"])
    ]
    assert [r.returncode for r in run] == [0, 2, 2]
    for option in "from_pretrained base_path tokenizer device dtype host port english".split():
        assert f"--{option}" in run[0].stdout
    assert "--port 70000: must be at least 1 and at most 65535" in run[1].stderr
    assert "float32" in run[2].stderr


def test_a_taken_port_is_one_line_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SystemExit,
            match=rf"^web_demo.py: error: cannot listen on 127.0.0.1 port {port} .*--port$",
        ):
            web_demo.main(["--port", str(port), "--from_pretrained", "nowhere"])


def test_a_port_that_was_taken_meanwhile_is_one_line(monkeypatch):
    """The port was free before the weights were read, minutes ago."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(web_demo, "check_port", lambda *_: None)
        monkeypatch.setattr("model.load_assistant", lambda *_, **__: Fake())
        for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy", "GRADIO_TEMP_DIR"):
            monkeypatch.setenv(name, "")
        with pytest.raises(SystemExit, match=rf"port {port} \(taken while .*--port$"):
            web_demo.main(["--port", str(port), "--from_pretrained", "x"])


class Fake:
    """An assistant of one answer."""

    def first_question(self, english):
        return PROMPT

    def stream(self, *_):
        yield "好"
        return True


def test_an_answer_that_the_limit_ended_is_told_in_the_page():
    page = web_demo.Page(Fake(), english=None)
    with pytest.warns(UserWarning, match="回答到了最大长度就停下了"):
        *_, (chat, _) = page.answer(None, "问", [], 64, 0, 1)
    assert [message["content"] for message in chat] == ["问", "好"]
    *_, ([message], _) = page.answer(None, "问", [], 64, 0, float("nan"))
    assert message["content"].startswith("错误：temperature nan: must be")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_on_ipv6_and_behind_a_path(host, monkeypatch):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 here")
    for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "")
    argv = ["--host", host, "--port", str(port), "--root-path", "/remote"]
    args = web_demo.parse(argv)
    web_demo.check_port(args.host, args.port)
    page = web_demo.serve(Fake(), args.host, args.port, root_path=args.root_path)
    try:
        assert page.local_url == f"http://[::1]:{port}/"
        with DIRECT.open(page.local_url, timeout=10) as reply:
            shown = reply.read().decode()
        assert '"root":"http://[::1]' in shown and "/remote" in shown
    finally:
        page.close(verbose=False)


def test_a_root_path_is_a_path(capsys):
    with pytest.raises(SystemExit):
        web_demo.main(["--root-path", "remote"])
    assert "--root-path remote: must begin with / or http(s)://" in capsys.readouterr().err


def test_options_reach_the_loader(monkeypatch):
    import model

    def load(folder, **options):
        raise model.UserError(f"{folder} {options}")

    monkeypatch.setattr(model, "load_assistant", load)
    argv = "--from_pretrained a --base_path b --tokenizer c --device d --dtype bfloat16".split()
    with pytest.raises(SystemExit) as end:
        web_demo.main([*argv, "--port", str(free_port())])
    options = {
        "base": "b",
        "tokenizer": "c",
        "bits": None,
        "download": None,
        "device": "d",
        "dtype": "bfloat16",
        "pixels": (None, None),
    }
    assert end.value.code == f"web_demo.py: error: a {options}"


def test_an_unknown_checkpoint_is_one_line():
    with pytest.raises(
        SystemExit, match="^web_demo.py: error: checkpoint nowhere: no such folder.*$"
    ):
        web_demo.main(["--from_pretrained", "nowhere", "--port", str(free_port())])


def test_the_script_serves_behind_a_proxy_and_leaves_nothing_behind(tiny_checkpoint, tmp_path):
    port = free_port()
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONIOENCODING": "utf-8",
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    environment.pop("no_proxy", None)
    command = [sys.executable, PROJECT / "web_demo.py", "--from_pretrained", tiny_checkpoint]
    command += ["--english", "--device", "cpu", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            opened = f"Open http://127.0.0.1:{port}/ in a browser (Ctrl-C: leave)\n"
            assert process.stdout.readline() == opened
            with DIRECT.open(f"http://127.0.0.1:{port}/", timeout=10) as reply:
                assert "Talk with aerial images" in reply.read().decode()
            assert list(tmp_path.glob("remoteglm-*"))
        finally:
            process.send_signal(signal.SIGTERM)
    assert not list(tmp_path.glob("remoteglm-*"))


if __name__ == "__main__":
    with served(sys.argv[1], top_p=0) as (address, _), chromium() as browser:
        screenshot(browser, address, *sys.argv[2:])
