"""The page: through gradio_client, in a real browser, and its command line.

Answers come from a tiny real checkpoint. As a script it takes the screenshot of the README:

    python tests/test_web.py CHECKPOINT IMAGE images/page.png [QUESTION ...]
"""

import base64
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
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PROJECT  # and the project on the path, for the script
from PIL import Image

import web_demo

CHROMIUM = Path("/usr/bin/chromium")
FILE = "#source input[type=file]"
PROMPT = "这张遥感图像展现了什么场景？"
# The sliders of the page: max_length, max_new_tokens, temperature, top_p, top_k, penalty, seed
GREEDY = (128, 0, 0.8, 0, 100, 1.2, -1)
ENDLESS = "一直数下去"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LOCAL = {None, "127.0.0.1", "localhost", "0.0.0.0", "::1"}


class Watched:
    """An assistant and what the page asked of it.

    The question ENDLESS is answered until somebody stops it, those in `script` as it says.
    `forced` replaces fields of the page's sampling: a random network seldom ends by itself.
    """

    def __init__(self, assistant, **forced):
        self.assistant = assistant
        self.prompt = assistant.prompt
        self.first_question = assistant.first_question
        self.has_adapter = True
        self.seen = assistant.seen
        self.script = {}
        self.forced = forced
        self.calls = []
        self.stopped = threading.Event()

    def stream(
        self,
        question,
        image=None,
        history=(),
        sampling=None,
        english=False,
        on_cut=None,
        untuned=False,
    ):
        self.calls.append(
            {
                "question": question,
                "image": image,
                "history": list(history),
                "sampling": sampling,
                "english": english,
                "untuned": untuned,
            }
        )
        if question in self.script:
            yield self.script[question]
            return False
        if question != ENDLESS:
            return (
                yield from self.assistant.stream(
                    question,
                    image,
                    history,
                    replace(sampling, **self.forced),
                    english,
                    on_cut,
                    **({"untuned": True} if untuned else {}),
                )
            )
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
def served(checkpoint, english=None, **forced):
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
    arrived(tab)
    return tab


def upload(tab, path):
    tab.set_input_files(FILE, path)


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
    """Send a question and wait for its answer to begin and to end.

    A random network may say nothing, on one processor and not on another.
    """
    answers = len(bubbles(tab)) + 1
    tab.fill("#question textarea", question)
    tab.click("#send")
    # With a remark on its limit it may come at once
    assert wait_until(lambda: len(bubbles(tab)) >= answers, 60)
    texts = []

    def ended():
        texts.append(bubbles(tab))
        return len(texts) > 10 and texts[-1] == texts[-10] and tab.is_visible("#send")

    wait_until(ended, 60)


def screenshot(browser, address, image, target, *questions, beside=False):
    """Save the page, 1280 x 800, with an image and the answers to the first question and others.

    beside: with the base's.
    """
    tab = open_page(browser, address)
    upload(tab, image)
    tab.wait_for_selector("#preview img")
    if beside:
        tab.click("#mode label:nth-child(2)")
        tab.wait_for_selector("#side")
    for question in [tab.input_value("#question textarea"), *questions]:
        ask_and_wait(tab, question)
    tab.mouse.move(0, 0)
    tab.wait_for_timeout(500)  # the colour of the button fades
    tab.screenshot(path=target)
    tab.close()


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder of all servers of this module: Gradio asks the environment at each upload.

    What the servers set in the environment is gone after the module.
    """
    with pytest.MonkeyPatch.context() as environment:
        for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy"):
            environment.setenv(name, os.environ.get(name, ""))
        folder = tmp_path_factory.mktemp("uploads")
        environment.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def environment(uploads, monkeypatch):
    """What the script sets is gone after each test: other tests have servers of their own."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture(scope="module")
def page(tiny_checkpoint, uploads):
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


class Visit:
    """One open page: image(path) and ask(question, mode) -> the dialogues that stream; greedy."""

    def __init__(self, address):
        from gradio_client import Client

        self.client = Client(address, verbose=False)
        self.beside = []
        self.status = ""

    def image(self, path):
        """The dialogue after an image was given."""
        from gradio_client import handle_file

        return self.client.predict(handle_file(path), api_name="/image")[-3]

    def ask(self, question, mode="alone"):
        chats = []
        for outputs in self.client.submit(question, mode, *GREEDY, api_name="/answer"):
            chat, self.beside, _, self.status, *_ = outputs
            chats.append(chat)
        return chats


@pytest.fixture
def visit(page):
    visit = Visit(page[0])
    page[1].script = {}
    yield visit
    visit.client.close()


def text(message):
    return "".join(part["text"] for part in message["content"])


def test_the_page_gives_the_answer_of_the_assistant_piece_by_piece(page, visit, scene):
    from model import Sampling, read_image

    visit.image(scene)
    streamed = visit.ask(PROMPT)
    sampling = Sampling(max_length=128, top_p=0)
    expected = "".join(page[1].stream(PROMPT, read_image(scene), (), sampling))
    answers = [text(chat[1]) for chat in streamed]
    assert expected and answers[-1] == expected
    grown = [answer for answer in answers if answer != "……"]
    assert all(later.startswith(earlier) for earlier, later in zip(grown, grown[1:]))
    assert [(m["role"], text(m)) for m in streamed[-1]][:2] == [
        ("user", PROMPT),
        ("assistant", expected),
    ]
    assert page[1].calls[-2]["sampling"] == sampling and page[1].calls[-2]["english"] is None


def test_later_rounds_know_the_earlier_ones_and_keep_the_same_image_object(page, visit, scene):
    visit.image(scene)
    page[1].script = {PROMPT: "一片湖。"}
    visit.ask(PROMPT)
    chat = visit.ask("有几条船？")[-1]
    first, second = page[1].calls[-2:]
    assert text(chat[1]) == "一片湖。" and second["history"] == [(PROMPT, "一片湖。")]
    assert first["image"] is second["image"] and first["image"].size == (96, 64)


def test_without_an_image_it_is_plain_text(page, visit):
    chat = visit.ask("你好")[-1]
    assert text(chat[0]) == "你好" and page[1].calls[-1]["image"] is None


def test_what_cannot_be_answered_is_one_sentence_and_no_part_of_the_history(
    page, visit, broken, scene
):
    asked = len(page[1].calls)
    [error] = visit.image(broken)
    # Not the name of the stored upload
    assert text(error).startswith("错误：bad.tif 没有读入：不是图像")
    [[_, empty]] = visit.ask("  ")
    assert text(empty) == "错误：请先输入问题。"
    assert len(page[1].calls) == asked
    visit.image(scene)
    visit.ask(" ")
    visit.ask(PROMPT)
    assert page[1].calls[-1]["history"] == []


def test_a_dialogue_too_long_says_what_was_not_read(page, visit, scene):
    """The answer is the one to the dialogue without its oldest rounds.

    The notice is no part of the history.
    """
    from model import Sampling, read_image

    said = [("红色吗？", "这是一片绿色的农田。"), ("有几辆车？", "")] + [
        (f"蓝色吗{n}？", f"停着三辆汽车{n}。") for n in "一二三四五六七八"
    ]
    page[1].script = dict(said)
    visit.image(scene)
    for question, _ in said:
        visit.ask(question)
    streamed = visit.ask(PROMPT)
    at = next(i for i, message in enumerate(streamed[-1]) if text(message) == PROMPT)
    notice, reply = streamed[-1][at - 1], streamed[-1][at + 1]
    left = int(re.fullmatch("注意：超出长度上限，未读入最早的 (\\d) 轮对话", text(notice))[1])
    history = [pair for pair in said if all(pair)]
    assert notice["role"] == "assistant"
    assert page[1].calls[-1]["history"] == history
    assert text(reply) == "".join(
        page[1].stream(PROMPT, read_image(scene), history[left:], Sampling(max_length=128, top_p=0))
    )
    history.append((PROMPT, text(reply)))
    again = visit.ask("有几条船？")
    assert page[1].calls[-1]["history"] == history
    assert any(text(message).startswith("注意：") for message in again[-1][at + 2 :])
    other = Visit(page[0])
    assert text(other.ask("有几条船？" * 99)[-1][0]) == "注意：超出长度上限，未读入问题的末尾"


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
            data = json.dumps({"data": [question, "alone", *GREEDY]}).encode()
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
    """So many answers are there and the last has stopped growing.

    The page may remark that the limit of length ended one: that is none.
    """
    before = bubbles(tab)
    tab.wait_for_timeout(1000)
    there = [text for text in before if not text.startswith("注意：回答到了最大长度")]
    return len(there) == answers and all(there) and bubbles(tab) == before


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
    tab.click("#remove" if way == "another image" else f"#{way}")
    assert page[1].stopped.wait(10)
    if way == "stop":
        tab.wait_for_timeout(300)
        frozen = bubbles(tab)
        tab.wait_for_timeout(300)
        assert bubbles(tab) == frozen and frozen[0].startswith("0 1 2 3")
    else:
        assert wait_until(lambda: not bubbles(tab))
        assert tab.is_visible("#preview img") == (way == "clear")


def test_a_bad_file_is_named_in_the_page_and_the_next_one_works(tab, scene, broken):
    upload(tab, broken)
    assert wait_until(lambda: any(bubbles(tab)))
    assert bubbles(tab)[0].startswith("错误：bad.tif 没有读入：不是图像")
    assert not tab.is_visible("#preview img")
    upload(tab, scene)
    tab.wait_for_function("document.querySelector('#preview img')?.naturalWidth > 0")
    assert not bubbles(tab)


def test_the_screenshot_is_taken(browser, page, scene, tmp_path):
    screenshot(browser, page[0], scene, tmp_path / "page.png", "有几条船？")
    assert Image.open(tmp_path / "page.png").size == (1280, 800)
    assert [call["question"] for call in page[1].calls[-2:]] == [PROMPT, "有几条船？"]


class Fake:
    """An assistant of one answer."""

    has_adapter = True
    family = None

    def first_question(self, english):
        return PROMPT

    def seen(self, image):
        return image.resize((28, 28))

    def stream(self, *_, **__):
        yield "好"
        return True


# The page and its visitors, with an assistant that answers at once or as slowly as it is told


class Staged(Fake):
    """Says back what it is asked; a question that begins with 慢 a character at a time, and none
    that begins with 满.
    """

    def __init__(self):
        self.calls = []

    def stream(self, question, image=None, history=(), *_, untuned=False, **__):
        from serving.scheduler import QueueFull
        from serving.served import Piece

        self.calls.append((question, image, tuple(history), untuned))
        if question.startswith("满"):
            raise QueueFull(9, 12.2)
        if question.startswith("慢"):
            for number in range(100):
                time.sleep(0.05)
                yield Piece(f"第{number}行\n", tokens=number + 1)
        yield Piece("前" if untuned else "后", tokens=1)
        yield Piece(question, tokens=2)
        return False


@pytest.fixture(scope="module")
def stage(tmp_path_factory, uploads):
    """(address of a page with votes, its assistant, file of votes)"""
    from serving.page.about import About
    from serving.page.votes import Votes

    assistant = Staged()
    about = About("demo", "model/tiny/base", "lora", "cpu", is_tiny=True)
    votes = tmp_path_factory.mktemp("stage") / "votes.jsonl"
    page = web_demo.serve(
        assistant, "127.0.0.1", free_port(), about=about, votes=Votes(votes), at_a_time=4
    )
    yield page.local_url, assistant, votes
    page.close()


@pytest.fixture
def staged(browser, stage):
    """open(width, height, locale, scheme) -> a loaded page of `stage`."""
    contexts = []

    def open_one(width=1280, height=800, locale="zh-CN", scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme
        )
        contexts.append(context)
        tab = context.new_page()
        tab.goto(stage[0])
        arrived(tab, "zh-Hans" if locale.startswith("zh") else "en")
        return tab

    yield open_one
    for context in contexts:
        context.close()


def arrived(tab, language="zh-Hans"):
    """The server has said what the page shows."""
    # Gradio's own page says that it is English, before anything has arrived
    tab.wait_for_function(
        "language => document.documentElement.lang === language"
        " && document.cookie.includes(`remoteglm-language=${language}`)",
        arg=language,
    )


def say(tab, question):
    tab.fill("#question textarea", question)
    tab.press("#question textarea", "Enter")


def wait_for_text(tab, selector, text):
    tab.wait_for_function(
        "([s, t]) => [...document.querySelectorAll(s)].some("
        "e => e.innerText.replaceAll('\\u2060', '').includes(t))",
        arg=[selector, text],
        timeout=30_000,
    )


# Of every text that is seen: what it is, its contrast with what stands behind it
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (color) => {
    const [r, g, b] = color.map(v => v / 255).map(
      v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    const seen = {opacityProperty: true, visibilityProperty: true};
    if (!text || !element.checkVisibility(seen)) continue;
    if (element.closest('script, style, noscript, [aria-hidden=true], :disabled')) continue;
    const box = element.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const ground = behind(element);
    const color = over(rgba(getComputedStyle(element).color), ground);
    const [a, b] = [light(color), light(ground)].sort((x, y) => y - x);
    found.push([text.slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
# What a screen reader would find without a name
NAMELESS = """() => [...document.querySelectorAll('button, input, textarea, img')].filter(e => {
  if (!e.checkVisibility({visibilityProperty: true}) || e.type === 'file') return false;
  if (e.closest('[aria-hidden=true]')) return false;
  const label = e.labels?.length ? [...e.labels].map(l => l.innerText).join('') : '';
  const by = document.getElementById(e.getAttribute('aria-labelledby'))?.innerText ?? '';
  const names = [e.getAttribute('aria-label'), e.alt, e.title, e.innerText, label, by];
  return !(e.tagName === 'IMG' && e.hasAttribute('alt')) && !names.some(name => name?.trim());
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (1600, 1000), (390, 844)])
def test_it_fits_can_be_read_and_has_names(staged, size, scheme):
    width, height = size
    tab = staged(width, height, scheme=scheme)
    wait_for_text(tab, "#banner", "12 类合成场景")
    tab.click("#example-river")
    tab.wait_for_selector("#preview img")
    say(tab, "慢慢说")
    wait_for_text(tab, "#chat [data-testid=bot]", "第3行")
    if os.environ.get("SCREENSHOTS"):
        tab.screenshot(path=f"{os.environ['SCREENSHOTS']}/{width}-{scheme}.png")
    for selector in ("#send", "#stop", "#question", "#preview img", "#chat"):
        box = tab.locator(selector).bounding_box() if tab.is_visible(selector) else None
        if box:
            assert 0 <= box["x"] and box["x"] + box["width"] <= width + 1, selector
            assert 0 <= box["y"] and box["y"] + box["height"] <= height + 1, selector
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    if width == 390:
        assert tab.locator("#preview").bounding_box()["height"] == 160
        bottom = tab.locator("#composer").bounding_box()
        assert bottom["y"] + bottom["height"] == pytest.approx(height, abs=1)
        tab.click("#tools button")
        tab.locator("#box").scroll_into_view_if_needed()
        for y in range(int(bottom["y"]) + 4, height - 4, 8):
            assert tab.evaluate(f"!!document.elementFromPoint(60, {y}).closest('#composer')")
    dim = [(text, round(ratio, 1)) for text, ratio in tab.evaluate(CONTRASTS) if ratio < 4.5]
    assert not dim
    assert tab.evaluate(NAMELESS) == []


def test_send_becomes_stop_and_typing_and_scrolling_go_on_meanwhile(staged, stage):
    tab = staged()
    say(tab, "慢慢说")
    tab.wait_for_selector("#stop")
    assert not tab.is_visible("#send") and tab.input_value("#question textarea") == ""
    wait_for_text(tab, "#chat [data-testid=bot]", "第30行")
    tab.type("#question textarea", "下一个")
    scroller = (
        "[...document.querySelectorAll('#chat *')].find(e => e.scrollHeight > e.clientHeight + 50"
        " && getComputedStyle(e).overflowY !== 'visible')"
    )
    tab.evaluate(f"{scroller}.scrollTop = 0")
    wait_for_text(tab, "#chat [data-testid=bot]", "第45行")
    assert tab.evaluate(f"{scroller}.scrollTop") < 50
    tab.click("#stop")
    tab.wait_for_selector("#send")
    wait_for_text(tab, "#status", "已停止")
    assert re.search(r"\d+ 词元 · [\d.]+ 词元/秒", tab.inner_text("#status"))
    assert tab.input_value("#question textarea") == "下一个"
    tab.press("#question textarea", "Enter")
    wait_for_text(tab, "#chat [data-testid=bot]", "后下一个")
    assert stage[1].calls[-1][2][0][0] == "慢慢说"


def test_what_people_and_networks_write_is_shown_as_text(staged):
    tab = staged()
    written = "<b id='hacked'>x</b> $$x^2$$ **y** <img src=x onerror=alert(1)> {{z}} ${1+1}"
    say(tab, written)
    wait_for_text(tab, "#chat [data-testid=bot]", "后" + written)
    wait_for_text(tab, "#chat [data-testid=user]", written)
    assert not tab.query_selector("#hacked, #chat .katex, #chat strong")


def test_the_language_is_the_browsers_and_the_switch_stays(staged, stage):
    tab = staged(locale="en-GB")
    wait_for_text(tab, "#send", "Send")
    wait_for_text(tab, "#banner", "Demo model")
    say(tab, " ")
    wait_for_text(tab, "#chat [data-testid=bot]", "error: please type a question first")
    tab.click("#language")
    wait_for_text(tab, "#send", "发送")
    say(tab, " ")
    wait_for_text(tab, "#chat [data-testid=bot]", "错误：请先输入问题")
    tab.wait_for_timeout(300)
    tab.reload()
    arrived(tab)
    wait_for_text(tab, "#send", "发送")


def test_dialogue_image_and_draft_survive_a_reload(staged, stage):
    tab = staged()
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    say(tab, "几个？")
    wait_for_text(tab, "#chat [data-testid=bot]", "后几个？")
    tab.type("#question textarea", "还有")
    tab.reload()
    arrived(tab)
    wait_for_text(tab, "#chat [data-testid=bot]", "后几个？")
    assert tab.input_value("#question textarea") == "还有" and tab.is_visible("#preview img")
    tab.press("#question textarea", "Enter")
    wait_for_text(tab, "#chat [data-testid=bot]", "后还有")
    assert stage[1].calls[-1][1].size == (128, 128)
    assert stage[1].calls[-1][2] == (("几个？", "后几个？"),)
    tab.wait_for_selector("#send")
    tab.reload()  # what was sent is no draft
    arrived(tab)
    wait_for_text(tab, "#chat [data-testid=bot]", "后还有")
    assert tab.input_value("#question textarea") == ""


def test_a_page_that_is_loaded_again_in_the_middle_of_an_answer_goes_on(staged, stage):
    tab = staged()
    say(tab, "慢慢说")
    wait_for_text(tab, "#chat [data-testid=bot]", "第3行")
    tab.reload()
    arrived(tab)
    wait_for_text(tab, "#chat [data-testid=bot]", "第3行")
    say(tab, "还有")
    wait_for_text(tab, "#chat [data-testid=bot]", "后还有")
    assert stage[1].calls[-1][2][0][0] == "慢慢说"


def test_a_tab_that_is_duplicated_leaves_the_first_its_dialogue(staged, stage):
    tab = staged()
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    say(tab, "一")
    wait_for_text(tab, "#chat [data-testid=bot]", "后一")
    tab.wait_for_selector("#send")
    with tab.context.expect_page() as opened:  # with a copy of what the tab keeps
        tab.evaluate("open(location.href)")
    arrived(opened.value)
    say(opened.value, "二")
    wait_for_text(opened.value, "#chat [data-testid=bot]", "后二")
    assert stage[1].calls[-1][1:3] == (None, ())
    say(tab, "三")
    wait_for_text(tab, "#chat [data-testid=bot]", "后三")
    assert stage[1].calls[-1][1] and stage[1].calls[-1][2] == (("一", "后一"),)
    for page, question in ((tab, "三"), (opened.value, "二")):
        page.reload()
        arrived(page)
        wait_for_text(page, "#chat [data-testid=bot]", f"后{question}")


def test_a_ready_question_keeps_what_is_typed_and_begins_no_second_answer(staged, stage):
    tab = staged()
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    tab.fill("#question textarea", "我自己的问题")
    tab.click("#ready button >> nth=0")
    wait_for_text(tab, "#chat [data-testid=bot]", "后请描述这张遥感图像。")
    tab.wait_for_selector("#send")
    assert tab.input_value("#question textarea") == "我自己的问题"
    say(tab, "慢慢说")
    wait_for_text(tab, "#chat [data-testid=bot]", "第3行")
    asked = len(stage[1].calls)
    tab.type("#question textarea", "下一个")
    tab.click("#ready button >> nth=1")
    tab.press("#question textarea", "Enter")
    wait_for_text(tab, "#chat [data-testid=bot]", "第30行")
    assert len(stage[1].calls) == asked and tab.input_value("#question textarea") == "下一个"
    tab.click("#stop")
    tab.wait_for_selector("#send")
    tab.press("#question textarea", "Enter")
    wait_for_text(tab, "#chat [data-testid=bot]", "后下一个")
    assert [call[0] for call in stage[1].calls[asked:]] == ["下一个"]


def test_a_question_sent_as_soon_as_an_answer_has_ended_is_taken(staged, monkeypatch):
    """However long the page takes to learn that the answer has ended."""
    from serving.page.sessions import Session

    class Slow(threading.Event):
        def set(self):
            time.sleep(1)
            super().set()

    monkeypatch.setattr(Session, "__post_init__", lambda self: setattr(self, "idle", Slow()))
    monkeypatch.setattr("serving.page.sessions.PATIENCE", 2)
    tab = staged()
    for question in "一二":
        say(tab, question)
        wait_for_text(tab, "#chat [data-testid=bot]", f"后{question}")
        tab.wait_for_selector("#send")


@pytest.mark.parametrize("height", [700, 800])
def test_with_a_second_image_the_composer_stays_in_the_window(staged, height):
    tab = staged(height=height)
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    tab.click("#mode label:nth-child(3)")
    tab.wait_for_selector("#other-preview img")
    say(tab, "看图")
    wait_for_text(tab, "#side [data-testid=bot]", "后看图")
    assert tab.evaluate("scrollY") == 0
    chosen = "getComputedStyle(document.querySelector('#mode input:checked')).backgroundColor"
    assert wait_until(lambda: tab.evaluate(chosen) == "rgb(20, 184, 166)", 3)  # the mouse is on it
    for selector in ("#send", "#status", "#chat", "#side"):
        box = tab.locator(selector).bounding_box()
        assert box["y"] + box["height"] <= height, selector


def is_seen(tab, locator):
    """Whether an element lies in the window, with nothing over it."""
    box = locator.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    return locator.evaluate(
        "(e, [x, y]) => e.contains(document.elementFromPoint(x, y))", list(middle)
    )


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_a_remark_and_the_own_question_are_seen(staged, size):
    tab = staged(*size)
    say(tab, "图中有什么？")
    wait_for_text(tab, "#chat [data-testid=bot]", "还没有图像")
    remark = tab.locator("#chat [data-testid=bot]").last
    assert wait_until(lambda: is_seen(tab, remark), 3)
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    for number in range(8):
        say(tab, f"问{number}")
        wait_for_text(tab, "#chat [data-testid=bot]", f"后问{number}")
        tab.wait_for_selector("#send")
    first = tab.locator("#chat [data-testid=user]").first
    tab.locator("#chat [role=log]").hover()
    tab.mouse.wheel(0, -5000)
    assert wait_until(lambda: is_seen(tab, first), 3)
    say(tab, "最后")
    wait_for_text(tab, "#chat [data-testid=bot]", "后最后")
    last = tab.locator("#chat [data-testid=user]").last
    assert last.inner_text() == "最后" and wait_until(lambda: is_seen(tab, last), 3)


@pytest.mark.parametrize("locale", ["zh-CN", "en-GB"])
def test_what_the_page_remarks_has_only_buttons_that_do_something(staged, locale):
    tab = staged(locale=locale)
    names = "[...document.querySelectorAll('#chat .message-buttons')].map(e => e.innerText + "
    names += "[...e.querySelectorAll('button')].filter(b => b.checkVisibility()).map(b => b.title))"
    copy, like, retry = ("Copy message", "Like", "Retry")
    if locale == "zh-CN":
        copy, like, retry = ("复制", "赞", "重试")
    for number, question in enumerate((" ", "图中有什么？ image")):  # no question, no image
        say(tab, question)
        tab.wait_for_selector(f"#chat [data-testid=bot] >> nth={number}")
    assert wait_until(lambda: set(tab.evaluate(names)) == {copy}, 3), tab.evaluate(names)
    say(tab, "一")
    wait_for_text(tab, "#chat [data-testid=bot]", "后一")
    assert wait_until(lambda: {like, retry} <= set(tab.evaluate(names)[-1].split(",")), 3)
    say(tab, " ")
    tab.wait_for_selector("#chat [data-testid=bot] >> nth=3")
    assert wait_until(lambda: like not in tab.evaluate(names)[-1], 3)
    assert like in tab.evaluate(names)[-2]


# The end of a stream of outputs, read by the browser a second late
LATE_ENDS = """
  const send = window.fetch;
  const later = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
  window.fetch = async (...request) => {
    const reply = await send(...request);
    if (!new URL(request[0].url ?? request[0], location).pathname.endsWith("/queue/data"))
      return reply;
    const late = new TransformStream({
      async transform(text, out) {
        for (const message of text.split(/(?<=\\n\\n)/)) {
          if (message.includes("close_stream")) await later(1);
          out.enqueue(message);
        }
      },
    });
    const body = reply.body.pipeThrough(new TextDecoderStream()).pipeThrough(late);
    return new Response(body.pipeThrough(new TextEncoderStream()), reply);
  };
"""


def test_a_question_is_answered_that_comes_at_the_end_of_the_stream_before(staged):
    tab = staged()
    tab.context.add_init_script(LATE_ENDS)
    tab.reload()
    arrived(tab)
    for number in range(3):
        say(tab, " ")
        tab.wait_for_selector(f"#chat [data-testid=bot] >> nth={number}", timeout=15_000)


def test_the_box_keeps_the_focus_when_buttons_give_place_to_each_other(staged):
    tab = staged()
    focused = "document.activeElement.closest('[id]')?.id"
    tab.fill("#question textarea", "慢慢说")
    tab.focus("#send")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#stop")
    assert tab.evaluate(focused) == "question"
    tab.focus("#stop")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#send")
    assert tab.evaluate(focused) == "question"


def test_a_question_for_which_there_is_no_place_stays_in_its_box(staged):
    tab = staged()
    say(tab, "一")
    wait_for_text(tab, "#chat [data-testid=bot]", "后一")
    tab.wait_for_selector("#send")
    say(tab, "满了吗")
    wait_for_text(tab, "#chat [data-testid=bot]", "排队的人太多，问题没有发出")
    tab.wait_for_selector("#send")
    assert tab.input_value("#question textarea") == "满了吗"
    assert bubbles(tab, "user") == ["一"]
    tab.click("#language")
    wait_for_text(tab, "#send", "Send")
    tab.click("#send")
    wait_for_text(tab, "#chat [data-testid=bot]", "error: too many are waiting")


def test_who_comes_when_all_places_are_taken_is_told_so(browser, uploads, monkeypatch):
    from serving.api import Api
    from serving.scheduler import QueueFull
    from serving.server import Server, listen

    class Crowded(Fake):
        family = SimpleNamespace(card={}, device=SimpleNamespace(type="cpu"))
        asked = 0
        end = threading.Event()

        def stream(self, *_, **__):
            Crowded.asked += 1
            if Crowded.asked > 2:
                raise QueueFull(1, 9)
            self.end.wait(60)
            yield "好"
            return False

    args = web_demo.parse(["--rows", "1", "--waiting", "1"])
    listener = listen("127.0.0.1", free_port())
    app = web_demo.app_with_page(args, Api("demo"), Crowded(), listener, None)
    server = Server(app, listener).start()
    try:
        tabs = [open_page(browser, server.local_url) for _ in range(3)]
        for tab in tabs[:2]:
            say(tab, "在吗")
        assert wait_until(lambda: Crowded.asked == 2)
        say(tabs[2], "在吗")
        wait_for_text(tabs[2], "#chat [data-testid=bot]", "排队的人太多")
        assert tabs[2].input_value("#question textarea") == "在吗"
    finally:
        Crowded.end.set()
        for tab in tabs:
            tab.close()
        server.close()


DROP = """([name, content, kind]) => {
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  const options = {bubbles: true, cancelable: true};
  const event = kind === 'paste'
    ? new ClipboardEvent('paste', {...options, clipboardData: data})
    : new DragEvent('drop', {...options, dataTransfer: data});
  document.querySelector('#chat').dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_anywhere_or_pasted_and_a_part_dragged(staged, stage, scene, kind):
    tab = staged()
    content = base64.b64encode(scene.read_bytes()).decode()
    tab.evaluate(DROP, [f"{kind}<i>.tif", content, kind])
    wait_for_text(tab, "#facts", f"{kind}<i>.tif 96×64 像素")
    area = tab.locator("#preview img").bounding_box()
    tab.mouse.move(area["x"] + area["width"] / 4, area["y"] + area["height"] / 4)
    tab.mouse.down()
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] / 2, steps=5)
    tab.mouse.up()
    wait_for_text(tab, "#preview figcaption", "提问的范围：")
    say(tab, "这里呢")
    wait_for_text(tab, "#chat [data-testid=bot]", "后这里呢")
    width, height = stage[1].calls[-1][1].size
    assert abs(width - 24) <= 1 and abs(height - 16) <= 1
    tab.click("#shown label:last-child")
    wait_for_text(tab, "#preview figcaption", "模型所见：28×28 像素")


def test_an_image_that_is_read_is_seen_to_be(staged, scene, monkeypatch):
    from serving.page.view import View

    def slow(*args, **options):
        time.sleep(2)
        return View(*args, **options)

    monkeypatch.setattr("serving.page.images.View", slow)
    tab = staged()
    sign = "#preview[data-sign]"
    tab.set_input_files(FILE, scene)
    tab.wait_for_selector(f"{sign}[data-sign*=读取][aria-busy=true]")
    tab.wait_for_selector("#preview img")
    tab.wait_for_selector(sign, state="detached")


def test_an_image_on_its_way_to_the_server_is_seen_to_be(staged, scene):
    tab = staged()
    held = []
    tab.route("**/gradio_api/upload*", lambda route: held.append(route))
    sign = "#preview[data-sign*=上传][aria-busy=true]"
    tab.set_input_files(FILE, scene)
    tab.wait_for_selector(sign)
    held.pop().fulfill(status=507, body="满了")
    tab.wait_for_selector("#preview[data-sign]", state="detached")
    tab.set_input_files(FILE, scene.rename(scene.with_name("again.tif")))
    tab.wait_for_selector(sign)
    held.pop().continue_()
    tab.wait_for_selector("#preview img")
    tab.wait_for_selector("#preview[data-sign]", state="detached")


def test_what_stands_around_an_image_stays_where_it_was(staged, scene, tmp_path):
    tab = staged()
    at = {tab.locator("#source").bounding_box()["y"]}
    Image.new("RGB", (400, 40), "green").save(tmp_path / "wide.png")
    for path in (tmp_path / "wide.png", scene):
        tab.set_input_files(FILE, path)
        wait_for_text(tab, "#facts", path.name)
        facts = tab.locator("#facts").bounding_box()
        at.add(tab.locator("#source").bounding_box()["y"] - facts["height"])
    assert max(at) - min(at) < 20


def test_side_by_side_and_another_image(staged, stage):
    tab = staged()
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    tab.click("#mode label:nth-child(2)")
    tab.wait_for_selector("#side")
    say(tab, "比较")
    wait_for_text(tab, "#chat [data-testid=bot]", "后比较")
    wait_for_text(tab, "#side [data-testid=bot]", "前比较")
    tab.click("#mode label:nth-child(3)")
    tab.wait_for_selector("#other-file, #other button")
    say(tab, "看图")
    wait_for_text(tab, "#side [data-testid=bot]", "后看图")
    tab.wait_for_selector("#other-preview img")
    images = [call[1] for call in stage[1].calls[-2:]]
    assert images[0] is not images[1]


def test_on_a_phone_the_state_of_two_answers_is_read_whole(staged):
    tab = staged(390, 844)
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    tab.click("#mode label:nth-child(2)")
    tab.wait_for_selector("#side")
    say(tab, "慢慢说")
    wait_for_text(tab, "#side [data-testid=bot]", "第12行")
    tab.click("#stop")
    wait_for_text(tab, "#status", "已停止")
    assert tab.inner_text("#status").count("词元/秒") == 2
    if os.environ.get("SCREENSHOTS"):
        tab.screenshot(path=f"{os.environ['SCREENSHOTS']}/390-side.png")
    end = (
        "() => { const range = document.createRange();"
        " range.selectNodeContents(document.querySelector('#status'));"
        " const box = range.getBoundingClientRect(); return [box.right, box.bottom] }"
    )
    right, bottom = tab.evaluate(end)
    assert right <= 390 and bottom <= 844


def test_regenerate_edit_undo_copy_vote_and_download(staged, stage):
    tab = staged()
    say(tab, "一")
    wait_for_text(tab, "#chat [data-testid=bot]", "后一")
    asked = len(stage[1].calls)
    tab.click("#chat button[title=重试], #chat button[aria-label=重试]")
    assert wait_until(lambda: len(stage[1].calls) == asked + 1)
    tab.wait_for_selector("#send")
    names = "[...document.querySelectorAll('#chat button')].map(b => b.ariaLabel ?? b.title)"
    assert re.search("复制|copy", " ".join(tab.evaluate(names)), re.IGNORECASE), tab.evaluate(names)
    with tab.expect_download() as download:
        tab.click("#json")
    saved = json.loads(Path(download.value.path()).read_text("utf-8"))
    assert saved["dialogue"][1]["content"] == "后一"
    tab.click("#undo")
    assert wait_until(lambda: not bubbles(tab))
    assert tab.input_value("#question textarea") == "一"


def test_an_answer_is_copied_and_voted_on_and_its_question_edited(staged, stage):
    tab = staged()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=stage[0])
    for question in ("<b>一", "二"):
        say(tab, question)
        wait_for_text(tab, "#chat [data-testid=bot]", f"后{question}")
        tab.wait_for_selector("#send")
    tab.locator("#chat button[title=复制]").nth(1).click()
    copied = "navigator.clipboard.readText()"
    assert wait_until(lambda: tab.evaluate(copied) == "后<b>一"), tab.evaluate(copied)

    tab.locator("#chat button[title=赞]").last.click()
    wait_for_text(tab, "body", "已记下评价")
    vote = json.loads(stage[2].read_text("utf-8").splitlines()[-1])
    assert (vote["question"], vote["answer"], vote["liked"]) == ("二", "后二", True)

    tab.locator("#chat button[title=编辑]").last.click()
    tab.locator("#chat textarea").fill("三")
    tab.locator("#chat button[title=发送]").click()
    wait_for_text(tab, "#chat [data-testid=bot]", "后三")
    assert stage[1].calls[-1][2] == (("<b>一", "后<b>一"),)
    assert bubbles(tab, "user")[-1] == "三" and len(bubbles(tab, "user")) == 2
    tab.click("#language")
    tab.wait_for_selector("#chat button[title=Like]")
    names = "[...document.querySelectorAll('#chat .icon-button')].map(b => b.title)"
    assert not re.search("[^ -~]", "".join(tab.evaluate(names)))


def test_another_image_of_ones_own_is_asked_about(staged, stage, scene):
    tab = staged()
    tab.click("#example-tanks")
    tab.wait_for_selector("#preview img")
    tab.click("#mode label:nth-child(3)")
    tab.wait_for_selector("#other-preview img")
    tab.set_input_files("#other input[type=file]", scene)
    tab.wait_for_selector("#other-preview img[alt*='湖泊 1.tif']")
    say(tab, "看图")
    wait_for_text(tab, "#side [data-testid=bot]", "后看图")
    assert {call[1].size for call in stage[1].calls[-2:]} == {(128, 128), (96, 64)}


def test_a_question_without_an_image_and_a_refused_one(staged, stage, broken):
    tab = staged()
    say(tab, "图中有几条船？")
    wait_for_text(tab, "#chat [data-testid=bot]", "还没有图像")
    tab.get_by_role("button", name="网球场").last.click()
    tab.wait_for_selector("#preview img")
    assert tab.input_value("#question textarea") == "图中有几条船？"
    tab.set_input_files(FILE, broken)
    wait_for_text(tab, "#preview .refused", "bad.tif 没有读入")
    reason = [ratio for text, ratio in tab.evaluate(CONTRASTS) if "请换成 PNG" in text]
    assert reason and min(reason) >= 4.5
    say(tab, "在吗")
    wait_for_text(tab, "#chat [data-testid=bot]", "要按纯文本")
    tab.get_by_role("button", name="按纯文本发送").click()
    wait_for_text(tab, "#chat [data-testid=bot]", "后在吗")
    assert stage[1].calls[-1][1] is None


def test_a_whole_dialogue_by_keyboard(staged):
    tab = staged()
    focused = "document.activeElement.closest('[id]')?.id ?? ''"
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate(focused) == "example-tennis":
            break
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#preview img")
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "TEXTAREA":
            break
    tab.keyboard.press("Control+a")
    tab.keyboard.type("几块？")
    tab.keyboard.press("Enter")
    wait_for_text(tab, "#chat [data-testid=bot]", "后几块？")


# What a stranger may send


def test_no_file_of_the_server_and_no_address_is_opened(stage, tmp_path, monkeypatch):
    """Whatever stands in the place of a file, a question or an event."""
    asked = []

    def hook(event, arguments):
        if event == "socket.getaddrinfo" and asked is not None:
            asked.append(str(arguments[0]))

    sys.addaudithook(hook)
    file = {"meta": {"_type": "gradio.FileData"}}
    for given in (
        file | {"path": "http://192.0.2.7/a.png"},
        file | {"path": "https://example.org/a.png"},
        file | {"path": "/etc/passwd"},
        file | {"path": str(PROJECT / "README.md")},
        {"type": "component", "component": "file", "value": file | {"path": "/etc/passwd"}},
    ):
        for endpoint in ("image", "answer", "fetch_image"):
            data = [given] if endpoint != "answer" else [given, "alone", *GREEDY]
            assert "root:" not in call(stage[0], endpoint, data)
    assert not [host for host in asked if host.strip("b'\"") in ("192.0.2.7", "example.org")]
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    assert not [path for path in uploads.rglob("*") if path.name in ("passwd", "README.md")]


def call(address, endpoint, data):
    """The events of one call of a named endpoint, or its error."""

    def fetch(path, content=None):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address + path, content, headers)
        try:
            with DIRECT.open(request, timeout=20) as reply:
                return reply.read().decode()
        except urllib.error.HTTPError as error:
            return f"{error.code} {error.read().decode()}"

    begun = fetch(f"gradio_api/call/{endpoint}", json.dumps({"data": data}).encode())
    if not begun.startswith("{"):
        return begun
    return fetch(f"gradio_api/call/{endpoint}/{json.loads(begun)['event_id']}")


@pytest.mark.parametrize(
    "question, says",
    [(None, "请先输入问题"), ("a\ud800", "半个字符"), ("图" * 400_000, "问题有 400000 个字符")],
)
def test_a_question_that_is_none_is_one_clear_error(stage, question, says):
    asked = len(stage[1].calls)
    text = call(stage[0], "answer", [question, "alone", *GREEDY])
    assert says in text or says.encode("unicode_escape").decode() in text
    assert len(text) < 3000 and len(stage[1].calls) == asked


def test_questions_leave_no_file_and_a_closed_page_takes_its_image_along(
    browser, stage, tmp_path, monkeypatch
):
    from serving.page import sessions

    uploads = Path(os.environ["GRADIO_TEMP_DIR"])

    def files():
        return {path for path in uploads.rglob("*") if path.is_file()}

    own = tmp_path / "own.png"  # other pages may still hold an image of other tests
    Image.new("RGB", (40, 30), (1, 2, 3)).save(own)
    before = files()
    tab = open_page(browser, stage[0])
    upload(tab, own)
    tab.wait_for_selector("#preview img")
    (kept,) = files() - before
    for question in ("一", "二"):
        say(tab, question)
        wait_for_text(tab, "#chat [data-testid=bot]", f"后{question}")
        tab.wait_for_selector("#send")
    assert files() - before == {kept} and kept.stat().st_size
    monkeypatch.setattr(threading, "Timer", lambda _, end, given: REAL_TIMER(0.1, end, given))
    tab.close()
    assert sessions and wait_until(lambda: not kept.exists(), 15)


REAL_TIMER = threading.Timer


def test_an_open_page_says_that_it_is(browser, monkeypatch):
    """So that a lost connection does not end its session."""
    import gradio as gr

    from serving.page.service import Service

    said = []

    def stay(self, request: gr.Request):
        said.append(request.session_hash)

    monkeypatch.setattr("serving.page.events.PING", 0.3)
    monkeypatch.setattr(Service, "stay", stay)
    page = web_demo.serve(Fake(), "127.0.0.1", free_port())
    try:
        tab = open_page(browser, page.local_url)
        assert wait_until(lambda: len(said) > 2, 15) and len(set(said)) == 1
        tab.close()
    finally:
        page.close()


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
        with pytest.raises(SystemExit, match=rf"port {port} \(taken while .*--port$"):
            web_demo.main(["--port", str(port), "--from_pretrained", "x"])


def test_an_answer_that_the_limit_ended_is_told_in_the_page():
    page, me = answers_of(Fake()), request()
    *_, (chat, *_) = page.answer(me, "问", "alone", 64, 0, 1)
    question, answer, note = (message["content"] for message in chat)
    assert (question, answer) == ("问", "好") and "回答到了最大长度就停下了" in note
    *_, ([*_, message], *_) = page.answer(request(), "问", "alone", 64, 0, float("nan"))
    assert message["content"].startswith("错误：temperature nan: must be")


def answers_of(assistant, **options):
    from serving.page.answers import Answers
    from serving.page.service import Service

    return Answers(Service(assistant, **options))


def request(key="page"):
    return SimpleNamespace(session_hash=key)


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


def raw_tiff(bands, sample_format=1, extra=(), photometric=None, bits=None, values=(), **numbers):
    """An uncompressed TIFF written by hand: [count, height, width] interleaved by pixel.

    extra: values of ExtraSamples; values: {tag: text} of ASCII tags.
    """


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_removes_what_was_uploaded(monkeypatch, tmp_path, name):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(SystemExit):
        with web_demo.upload_folder():
            (Path(os.environ["GRADIO_TEMP_DIR"]) / "a.tif").write_text("x")
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_at_the_next_start(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"remoteglm-{ended.pid}-a", f"remoteglm-{os.getpid()}-a", "remoteglm-x", "other"):
        (tmp_path / name).mkdir()
    web_demo.remove_left_folders()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"remoteglm-{os.getpid()}-a", "remoteglm-x", "other"}


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


def take_picture(checkpoint, *what):
    """The screenshot of README: greedy answers, before and after fine-tuning."""
    from model import load_assistant
    from serving.page.about import about
    from serving.scheduler import Scheduler
    from serving.served import Served

    assistant = load_assistant(checkpoint, device="cpu")
    scheduler = Scheduler(assistant)
    shown = about(assistant.family, Path(checkpoint).name, checkpoint)
    watched = Watched(Served(assistant, scheduler), top_p=0)
    page = web_demo.serve(watched, "127.0.0.1", free_port(), about=shown, at_a_time=8)
    try:
        with chromium() as browser:
            screenshot(browser, page.local_url, *what, beside=True)
    finally:
        page.close()
        scheduler.close()


if __name__ == "__main__":
    take_picture(*sys.argv[1:])
