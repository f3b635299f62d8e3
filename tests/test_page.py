"""What the page is made of, without a browser and without a network."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from test_images import png

from model import UserError, read_image
from model.images.facts import facts_of
from model.images.part import Box, read_part
from serving.page.answers import ALONE, AS_TEXT, NOT_SENT, OTHER, SIDE, Answers
from serving.page.dialogue import Dialogue
from serving.page.examples import EXAMPLES, QUESTIONS
from serving.page.images import OUTPUTS, Images
from serving.page.layout import Layout, said
from serving.page.question import SETTINGS, checked, defaults, sampling_of
from serving.page.service import Service
from serving.page.sessions import Session, Sessions
from serving.page.talk import Stream, together
from serving.page.view import View, box_of, parse_box
from serving.page.votes import Votes
from serving.page.whole_page import WholePage
from serving.page.words import TABLE, WORDS, Word, WordedError
from serving.scheduler import QueueFull
from serving.served import Piece
from serving.space import Space
from serving.turns import Turns

CHINESE = WORDS[False]
PROMPT = "这张遥感图像展现了什么场景？"


@pytest.fixture(autouse=True)
def every_piece(monkeypatch):
    """The page shows each piece, however fast they come."""
    monkeypatch.setattr("serving.page.talk.PERIOD", 0)


class Scripted:
    """An assistant that says what it is asked, whose and in what way."""

    family = None

    def __init__(self, has_adapter=True):
        self.has_adapter = has_adapter
        self.calls = []
        self.error = None

    def first_question(self, english):
        return PROMPT

    def seen(self, image):
        return image.resize((28, 28))

    def stream(self, question, image, history, sampling, english, on_cut, untuned=False):
        self.calls.append((question, image, tuple(history), untuned))
        yield Piece("", place=(2, 7.4))
        if self.error:
            raise self.error
        yield Piece(f"{'前' if untuned else '后'}：", tokens=1)
        yield Piece(question, tokens=2)
        return False


@pytest.fixture
def assistant():
    return Scripted()


@pytest.fixture
def service(assistant):
    return Service(assistant)


@pytest.fixture
def answers(service):
    return Answers(service)


@pytest.fixture
def images(service):
    return Images(service)


def me(key="me"):
    return SimpleNamespace(session_hash=key)


def event(**data):
    return SimpleNamespace(_data=data)


def ask(answers, question, mode=ALONE, key="me"):
    """(the last outputs, all statuses)"""
    outputs = list(answers.answer(me(key), question, mode))
    return outputs[-1], [one[3] for one in outputs]


def texts(chat):
    return [(message["role"], message["content"]) for message in chat]


@pytest.fixture
def multiband(tmp_path):
    """uint16, 4 bands, on a 10 m grid in UTM 50 N, without data in a corner."""
    rasterio = pytest.importorskip("rasterio")
    pixels = np.arange(4 * 40 * 60, dtype=np.uint16).reshape(4, 40, 60) + 1
    pixels[:, :5, :5] = 0
    path = tmp_path / "multi.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=60,
        height=40,
        count=4,
        dtype="uint16",
        nodata=0,
        crs="EPSG:32650",
        transform=rasterio.transform.from_origin(5e5, 3e6, 10, 10),
    ) as file:
        file.write(pixels)
        file.descriptions = ("blue", "green", "red", "nir")
    return path


# What is asked


@pytest.mark.parametrize(
    "question, says",
    [
        (None, "请先输入问题"),
        ("  \n", "请先输入问题"),
        (["x"], "必须是文字"),
        ({"text": "x"}, "必须是文字"),
        ("a\ud800b", "半个字符"),
        ("图" * 1_000_000, "问题有 1000000 个字符，最多 100000 个"),
    ],
)
def test_what_is_no_question_is_one_line(answers, assistant, question, says):
    chat, _, box, *_ = ask(answers, question)[0]
    ((role, text),) = texts(chat)
    assert role == "assistant" and text.startswith("错误：") and says in text
    assert len(text) < 100 and not assistant.calls
    json.dumps([chat, box], ensure_ascii=False).encode()


def test_settings_become_the_sampling():
    assert dict(zip(SETTINGS, defaults())) == {
        "max_length": 2048,
        "max_new_tokens": 0,
        "temperature": 0.8,
        "top_p": 0.4,
        "top_k": 100,
        "repetition_penalty": 1.2,
        "seed": -1,
    }
    usual = sampling_of(defaults(), CHINESE)
    assert usual.max_new_tokens is None and usual.seed is None
    given = sampling_of([64, 7, 0.0, 1.0, 5, 1.0, 3.0], CHINESE)
    assert (given.max_new_tokens, given.seed, given.top_k) == (7, 3, 5)
    for wrong in (None, "x", [], True, float("nan"), float("inf")):
        with pytest.raises(UserError, match="max_length 的值|max_length nan|max_length inf"):
            sampling_of([wrong], CHINESE)


# A dialogue


def test_remarks_are_no_history_and_are_cut_with_their_question():
    dialogue = Dialogue()
    dialogue.remark("错误")
    dialogue.ask("一").text = "1"
    answer = dialogue.ask("二")
    dialogue.remark_before(answer, "注意")
    dialogue.remark("没有回答")
    dialogue.ask("三").text = "3"
    assert dialogue.history == [("一", "1"), ("三", "3")]
    assert [message["content"] for message in dialogue.shown()][3:5] == ["注意", "二"]
    dialogue.cut(1)
    assert [message.text for message in dialogue.messages] == ["错误", "一", "1"]
    dialogue.cut(0)
    assert not dialogue.messages


def test_markup_is_text_and_an_edited_question_comes_back_as_it_was():
    from serving.page.dialogue import JOINER, as_text

    for text in ("<b>x</b>", "<!-- x -->", "&lt;", "&#60;", "<img src=x>", "</p>"):
        shown = as_text(text)
        assert not re.search("[<&][A-Za-z!/?#]", shown) and shown.replace(JOINER, "") == text
        assert checked(shown, CHINESE) == text
    assert as_text("1 < 2 & 3 <3") == "1 < 2 & 3 <3"


# Answers


def test_an_answer_comes_with_its_place_its_sign_and_its_speed(answers):
    outputs = list(answers.answer(me(), "你好", ALONE))
    signs = [chat[1]["content"] for chat, *_ in outputs]
    assert signs[0] == "……" and signs[1] == "排队中：前面 2 人，约 7 秒" and signs[-1] == "后：你好"
    assert outputs[1][3] == signs[1] and outputs[-1][3].startswith("2 词元 · ")
    # Send gives its place to stop, and takes it back
    assert [one[4]["visible"] for one in outputs] == [False] * (len(outputs) - 1) + [True]
    assert all(one[4]["visible"] != one[5]["visible"] for one in outputs)
    # The box is emptied once: what is typed meanwhile stays
    assert [one[2].get("value") for one in outputs] == ["", *[None] * (len(outputs) - 1)]


def test_an_image_question_without_an_image_offers_examples(answers, images, assistant):
    outputs = ask(answers, PROMPT)[0]
    (remark,) = outputs[0]
    assert remark["content"].startswith("错误：还没有图像") and not assistant.calls
    assert outputs[2]["value"] == PROMPT
    labels = [option["label"] for option in remark["options"]]
    assert labels == [example.name[0] for example in EXAMPLES.values()]
    assert len(images.option(me(), event(value=remark["options"][0]["value"]))) == OUTPUTS
    chat = ask(answers, PROMPT)[0][0]
    assert texts(chat) == [("user", PROMPT), ("assistant", f"后：{PROMPT}")]
    assert assistant.calls[0][1].size == (128, 128)


@pytest.mark.parametrize("value", [AS_TEXT, NOT_SENT, "example:nothing", None, 3])
def test_a_refused_image_keeps_its_place_and_sending_asks(
    answers, images, assistant, tmp_path, value
):
    (tmp_path / "bad.tif").write_text("no <b>image</b>")
    shown = images.upload(me(), {"path": str(tmp_path / "bad.tif"), "orig_name": "坏<b>.tif"})
    assert "坏&lt;b&gt;.tif 没有读入" in shown[0] and "请换成 PNG" in shown[0]
    assert not (tmp_path / "bad.tif").exists()
    outputs = ask(answers, "有几条船？")[0]
    remark = outputs[0][-1]
    assert "按纯文本" in remark["content"] and not assistant.calls
    assert [option["value"] for option in remark["options"]] == [AS_TEXT, NOT_SENT]

    *_, last = answers.option(me(), event(value=value), ALONE)
    if value == AS_TEXT:
        assert texts(last[0])[1:] == [("user", "有几条船？"), ("assistant", "后：有几条船？")]
        assert assistant.calls[0][1] is None
    elif value == NOT_SENT:
        assert last[2]["value"] == "有几条船？" and not assistant.calls
    else:
        assert answers.service.session(me()).pending == "有几条船？" and not assistant.calls


def test_a_question_that_waits_for_a_yes_stays_in_its_box(answers, images, tmp_path):
    (tmp_path / "bad.tif").write_text("no image")
    images.upload(me(), {"path": str(tmp_path / "bad.tif")})
    assert ask(answers, "有几条船？")[0][2]["value"] == "有几条船？"
    images.example(me(), "harbour")
    assert texts(ask(answers, "有几条船？")[0][0])[-1] == ("assistant", "后：有几条船？")


@pytest.mark.parametrize("value", [AS_TEXT, NOT_SENT])
def test_a_ready_question_that_waits_for_a_yes_leaves_the_box_alone(
    answers, images, tmp_path, value
):
    (tmp_path / "bad.tif").write_text("no image")
    images.upload(me(), {"path": str(tmp_path / "bad.tif")})
    shown = list(answers.ready(me(), 0, ALONE))
    assert "按纯文本" in shown[-1][0][-1]["content"]
    shown += answers.option(me(), event(value=value), ALONE)
    assert not any("value" in outputs[2] for outputs in shown)


@pytest.mark.parametrize("english", [False, True])
@pytest.mark.parametrize("kind", ["no image", "cut", "address"])
def test_the_place_says_in_its_own_language_why_there_is_no_image(
    answers, images, multiband, kind, english
):
    answers.service.session(me()).english = english
    if kind == "address":
        shown = images.fetch(me(), "http://127.0.0.1:1/a.png")
    else:
        whole = multiband.read_bytes()
        multiband.write_bytes(whole[: len(whole) // 2] if kind == "cut" else b"no image")
        shown = images.upload(me(), {"path": str(multiband), "orig_name": "图.tif"})
    reason = re.search("<span>(.*)</span>", shown[0])[1]
    chinese = {"no image": "请换成 PNG", "cut": "请重新复制或下载", "address": "取不到图像"}[kind]
    assert (chinese in reason) != english
    remark = answers.service.session(me()).main.messages[-1].text
    assert (chinese in remark) != english and "--" not in remark
    file = "http://127.0.0.1:1/a.png" if kind == "address" else "图.tif"
    assert english or remark == f"错误：{file} 没有读入：{reason}"
    words = re.findall("[A-Za-z]{2,}", reason)
    assert english or set(words) <= {"PNG", "JPEG", "TIFF", "http", "MB"}, reason


def test_base_and_tuned_side_by_side_each_with_its_own_history(answers, images, assistant):
    images.example(me(), "harbour")
    ask(answers, "一", SIDE)
    main, side = ask(answers, "二", SIDE)[0][:2]
    assert texts(main)[1::2] == [("assistant", "后：一"), ("assistant", "后：二")]
    assert texts(side)[1::2] == [("assistant", "前：一"), ("assistant", "前：二")]
    assert [call[2:] for call in assistant.calls[2:]] == [
        ((("一", "后：一"),), False),
        ((("一", "前：一"),), True),
    ]
    assert assistant.calls[2][1] is assistant.calls[3][1]
    *_, again = answers.retry(me(), SIDE)
    assert texts(again[0]) == texts(main) and texts(again[1]) == texts(side)
    undone = answers.undo(me())
    assert len(undone[0]) == len(undone[1]) == 2 and undone[2]["value"] == "二"


def test_a_comparison_that_begins_later_is_after_the_same_dialogue(answers, images, assistant):
    images.example(me(), "harbour")
    ask(answers, "一")
    side = ask(answers, "二", SIDE)[0][1]
    assert "前面 1 轮（微调后的回答）基座也读到了" in side[0]["content"] and len(side) == 3
    assert [call[2] for call in assistant.calls[1:]] == [(("一", "后：一"),)] * 2
    ask(answers, "三", SIDE)
    assert assistant.calls[-1][2] == (("一", "后：一"), ("二", "前：二"))
    *_, again = answers.retry(me(), SIDE)
    assert assistant.calls[-1][2] == (("一", "后：一"), ("二", "前：二"))
    answers.undo(me())
    assert answers.undo(me())[1] == []
    ask(answers, "四", SIDE)
    assert [call[2] for call in assistant.calls[-2:]] == [(("一", "后：一"),)] * 2
    answers.clear(me())
    ask(answers, "五", SIDE)
    assert [call[2] for call in assistant.calls[-2:]] == [(), ()]


def test_another_image_that_comes_later_says_that_it_does_not_know_the_dialogue(
    answers, images, assistant
):
    images.example(me(), "harbour")
    ask(answers, "一")
    side = ask(answers, "二", OTHER)[0][1]
    assert "前面 1 轮没有问过这张图像" in side[0]["content"]
    assert [call[2] for call in assistant.calls[-2:]] == [(("一", "后：一"),), ()]


def test_another_image_without_a_first_one_offers_examples(answers, assistant):
    ask(answers, "你好")
    outputs = ask(answers, "你好吗", OTHER)[0]
    assert len(outputs[0][-1]["options"]) == len(EXAMPLES)
    assert "还没有图像" in outputs[0][-1]["content"] and outputs[2]["value"] == "你好吗"
    *_, again = answers.retry(me(), OTHER)
    assert texts(again[0]) == texts(outputs[0])
    assert len(assistant.calls) == 1


@pytest.mark.parametrize("english", [False, True])
def test_ready_questions_are_about_an_image(answers, assistant, english):
    answers.service.session(me()).english = english
    for index in range(len(QUESTIONS)):
        *_, last = answers.ready(me(), index, ALONE)
        assert len(last[0][-1]["options"]) == len(EXAMPLES)
    assert not assistant.calls


def test_a_refused_file_is_no_text_where_another_image_is_asked_about(answers, images, tmp_path):
    (tmp_path / "bad.tif").write_text("no image")
    images.upload(me(), {"path": str(tmp_path / "bad.tif")})
    shown = ask(answers, "你好", OTHER)[0][0]
    assert "还没有图像" in shown[-1]["content"] and len(shown[-1]["options"]) == len(EXAMPLES)


def test_the_same_question_about_another_image(answers, images, assistant, tmp_path):
    images.example(me(), "harbour")
    ask(answers, "一", OTHER)
    mine, other = (call[1] for call in assistant.calls)
    assert mine is not other and np.abs(np.asarray(mine, int) - np.asarray(other, int)).max() > 50
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    images.upload_other(me(), {"path": str(tmp_path / "red.png")})
    ask(answers, "二", OTHER)
    assert assistant.calls[-1][1].getpixel((0, 0)) == (255, 0, 0)
    assert "没有可以关掉的适配器" in str(
        texts(ask(Answers(Service(Scripted(has_adapter=False))), "一", SIDE)[0][0])
    )


def test_edit_and_resend_drops_what_followed(answers):
    for question in "一二三":
        ask(answers, question)
    *_, edited = answers.edit(me(), event(index=2, value="两"), ALONE)
    assert texts(edited[0]) == [
        ("user", "一"),
        ("assistant", "后：一"),
        ("user", "两"),
        ("assistant", "后：两"),
    ]
    for index in (1, 99, -1, None, "x", [], {}):
        *_, same = answers.edit(me(), event(index=index, value="坏"), ALONE)
        assert texts(same[0]) == texts(edited[0])
    *_, wrong = answers.edit(me(), event(index=0, value=" "), ALONE)
    assert texts(wrong[0])[:-1] == texts(edited[0])


def test_an_error_while_it_answers_stays_with_its_question(answers, assistant):
    ask(answers, "一")
    assistant.error = QueueFull(9, 12.2)
    outputs = ask(answers, "二")[0]
    assert texts(outputs[0])[-2] == ("user", "二")
    assert texts(outputs[0])[-1][1] == "错误：排队的人太多，问题没有发出，约 12 秒后再试。"
    assistant.error = None
    ask(answers, "三")
    assert assistant.calls[-1][2] == (("一", "后：一"),)


class Full(Scripted):
    """An assistant without a place for questions, as long as `full`."""

    full = True

    def stream(self, *asked, **options):
        if self.full:
            raise QueueFull(9, 12.2)
        return (yield from super().stream(*asked, **options))


def test_what_was_not_taken_leaves_the_dialogue_as_it_was(images):
    answers = Answers(Service(Full()))
    answers.service.assistant.full = False
    for question in ("一", "二"):
        ask(answers, question, SIDE)
    before = answers.service.session(me()).main.shown()
    answers.service.assistant.full = True
    full = "错误：排队的人太多，问题没有发出，约 12 秒后再试。"
    for running, box in (
        (answers.answer(me(), "三", SIDE), "三"),
        (answers.retry(me(), ALONE), "三"),
        (answers.edit(me(), event(index=0, value="两"), SIDE), "两"),
    ):
        *_, last = running
        assert texts(last[0])[-1] == ("assistant", full)
        assert last[0][:4] == before and len(last[1]) == 4
        assert last[2]["value"] == box and last[3] == "" and last[4]["visible"]
    answers.undo(me())
    *_, last = answers.retry(me(), ALONE)  # its own question
    assert "value" not in last[2] and texts(last[0])[:2] == texts(before)[:2]
    answers.service.assistant.full = False
    *_, last = answers.ready(me(), 0, ALONE)
    assert "还没有图像" in texts(last[0])[-1][1]
    answers.clear(me())
    answers.service.assistant.full = True
    ask(answers, "四")
    answers.service.assistant.full = False
    *_, last = answers.retry(me(), ALONE)
    assert texts(last[0]) == [("user", "四"), ("assistant", "后：四")]


def test_a_stopped_answer_keeps_what_it_said(answers):
    running = begun(answers)
    with ThreadPoolExecutor() as pool:
        stopped = pool.submit(answers.stop, me())
        assert answers.service.session(me()).stopping.wait(5)
        *_, outputs = running
        stopped.result(5)
    assert texts(outputs[0])[-1][1] == "后：" and outputs[3].startswith("已停止")
    assert outputs[4]["visible"] and not outputs[5]["visible"]
    assert texts(ask(answers, "二")[0][0])[-1] == ("assistant", "后：二")


@pytest.mark.parametrize("way", ["stop", "close"])
def test_a_question_stopped_in_the_queue_says_so_in_place_of_an_answer(answers, assistant, way):
    running = answers.answer(me(), "一", SIDE)
    next(running)
    assert "排队中" in next(running)[0][-1]["content"]
    if way == "close":  # or the page is loaded again
        running.close()
    else:
        with ThreadPoolExecutor() as pool:
            stopped = pool.submit(answers.stop, me())
            assert answers.service.session(me()).stopping.wait(5)
            assert "注意：还没有回答就停止了" in list(running)[-1][0][-1]["content"]
            stopped.result(5)
    session = answers.service.session(me())
    for dialogue in (session.main, session.side):
        assert texts(dialogue.shown()) == [
            ("user", "一"),
            ("assistant", "注意：还没有回答就停止了。"),
        ]
    assert session.main.history == []
    *_, again = answers.retry(me(), SIDE)
    assert texts(again[0]) == [("user", "一"), ("assistant", "后：一")]


@pytest.mark.parametrize("action", ["clear", "undo"])
def test_what_empties_a_dialogue_comes_after_the_last_piece(answers, action):
    running = begun(answers)
    with ThreadPoolExecutor() as pool:
        emptied = pool.submit(getattr(answers, action), me())
        assert answers.service.session(me()).stopping.wait(5)
        last = next(running)
        assert texts(last[0])[-1][1] == "后：" and not emptied.done()
        assert list(running) == []
        assert texts(emptied.result(5)[0]) == []


def test_while_an_answer_is_under_way_nothing_else_is_asked(answers, assistant):
    ask(answers, "一")
    running = begun(answers)
    before = texts(answers.service.session(me()).main.shown())
    asked = len(assistant.calls)
    for others in (
        answers.answer(me(), "二", ALONE),
        answers.ready(me(), 0, ALONE),
        answers.retry(me(), ALONE),
        answers.edit(me(), event(index=0, value="三"), ALONE),
        answers.option(me(), event(value=AS_TEXT), ALONE),
    ):
        ((*outputs,),) = others
        assert not any("value" in output for output in outputs)
    assert len(assistant.calls) == asked
    assert texts(answers.service.session(me()).main.shown()) == before
    list(running)
    assert texts(ask(answers, "二")[0][0])[-1] == ("assistant", "后：二")


def test_a_question_waits_for_the_last_of_an_answer_to_be_shown(answers, assistant):
    first = answers.answer(me(), "一", ALONE)
    while not next(first)[4]["visible"]:
        pass
    with ThreadPoolExecutor() as pool:
        second = pool.submit(ask, answers, "二")
        time.sleep(0.1)
        assert len(assistant.calls) == 1 and not second.done()
        first.close()
        assert texts(second.result(5)[0][0])[-1] == ("assistant", "后：二")


def test_a_closed_page_stops_its_answer(answers):
    running = begun(answers)
    running.close()
    session = answers.service.session(me())
    assert session.idle.is_set() and answers.service.status(session).startswith("已停止")


def begun(answers):
    """An answer after its first pieces."""
    running = answers.answer(me(), "一", ALONE)
    for _ in range(3):
        next(running)
    return running


def test_a_quick_answer_is_shown_once_after_its_beginning(monkeypatch):
    """The view that empties the box is not overtaken by another at once."""
    monkeypatch.setattr("serving.page.talk.PERIOD", 60)
    dialogue = Dialogue()
    stream = Stream(dialogue, dialogue.ask("x"), (piece for piece in "湖泊。"))
    assert list(together([stream], threading.Event())) == []
    assert stream.answer.text == "湖泊。" and stream.ended is not None


def test_a_remark_takes_the_status_of_the_answer_before_away(answers):
    assert "词元" in ask(answers, "你好")[0][3]
    assert ask(answers, "图中有什么？")[0][3] == ""


def test_two_streams_advance_together_and_end_each_by_itself():
    def count(number):
        yield from map(str, range(number))

    streams = []
    for number in (2, 5):
        dialogue = Dialogue()
        streams.append(Stream(dialogue, dialogue.ask("x"), count(number)))
    steps = [
        [stream.answer.text for stream in streams] for _ in together(streams, threading.Event())
    ]
    assert steps[:3] == [["0", "0"], ["01", "01"], ["01", "012"]] and steps[-1] == ["01", "01234"]
    assert not any(stream.was_stopped for stream in streams)


# The image


def test_facts_of_a_geotiff(multiband, tmp_path):
    facts = facts_of(multiband)
    assert (facts.width, facts.height, facts.bands, facts.dtype) == (60, 40, 4, "uint16")
    assert (facts.crs, facts.resolution, facts.unit) == ("EPSG:32650", (10.0, 10.0), "metre")
    assert facts.nodata == 0 and facts.can_be_stretched and facts.names[3] == "nir"
    Image.new("I;16", (7, 5)).save(tmp_path / "deep.png")
    deep = facts_of(tmp_path / "deep.png")
    assert (deep.width, deep.bands, deep.dtype, deep.crs) == (7, 1, "uint16", None)
    assert not deep.can_be_stretched


def test_facts_stand_beside_the_image_and_the_menus_follow(images, multiband):
    shown = images.upload(me(), {"path": str(multiband), "orig_name": "场景.tif"})
    facts = "场景.tif 60×40 像素 · 4 个波段 · uint16 · EPSG:32650 · 10 米/像素 · nodata 0"
    assert re.sub("<.*?>", "", shown[1]) == facts
    assert [menu["value"] for menu in shown[5:8]] == [3, 2, 1]  # blue, green, red, nir
    assert shown[5]["choices"][3] == ("4 nir", 4) and shown[8]["visible"]
    session = images.service.session(me())
    before = np.asarray(session.view.image)
    images.bands(me(), 4, 3, 2, "0-100 %")
    expected = read_part(multiband, (4, 3, 2), None, (0.0, 100.0))
    assert np.array_equal(session.view.image, expected)
    assert not np.array_equal(session.view.image, before)
    seen = images.choose(me(), "seen")
    assert "模型所见：28×28 像素" in seen[0]


def test_the_stretch_is_of_the_percentiles(multiband):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(multiband) as file:
        band = file.read(1).astype(float)
    valid = band > 0
    low, high = np.percentile(band[valid], (0.5, 99.5))
    expected = np.clip((band - low) * 255 / (high - low), 0, 255).astype(np.uint8)
    shown = np.asarray(read_part(multiband, (1, 1, 1), None, (0.5, 99.5)))[..., 0]
    assert np.array_equal(shown[valid], expected[valid]) and (shown[~valid] == 255).all()


def test_a_part_is_cut_from_the_whole(multiband, tmp_path):
    box = Box(10, 20, 30, 15)
    whole = np.asarray(read_image(multiband))
    part = read_part(multiband, None, box)
    assert np.array_equal(part, whole[20:35, 10:40])
    # A large image is shrunk, its parts are not
    pixels = np.random.default_rng(0).integers(0, 255, (100, 5000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "long.tif")
    assert read_image(tmp_path / "long.tif").size == (2500, 50)
    fine = read_part(tmp_path / "long.tif", None, Box(4000, 10, 200, 50))
    assert np.array_equal(fine, pixels[10:60, 4000:4200])
    # A photograph that lies on its side is cut as it is seen
    sideways = Image.fromarray(pixels[:, :300])
    exif = sideways.getexif()
    exif[274] = 6
    sideways.save(tmp_path / "phone.png", exif=exif)
    upright = read_image(tmp_path / "phone.png")
    cut = read_part(tmp_path / "phone.png", None, Box(10, 200, 50, 60))
    assert upright.size == (100, 300)
    assert np.array_equal(cut, np.asarray(upright)[200:260, 10:60])


def test_a_box_is_dragged_or_typed_and_asked_about(answers, images, assistant, multiband):
    images.upload(me(), {"path": str(multiband), "orig_name": "a.tif"})
    shown = images.drag(me(), event(box=[0.5, 0.5, 0.1, 1.7]))
    assert shown[9]["value"] == "6 20 24 20" and "提问的范围：24×20 像素" in shown[0]
    ask(answers, "一")
    assert assistant.calls[-1][1].size == (24, 20)
    images.type_box(me(), "0, 0, 10 12")
    ask(answers, "二")
    assert assistant.calls[-1][1].size == (10, 12)
    images.type_box(me(), "0，0、11，12")
    assert images.service.session(me()).view.box == (0, 0, 11, 12)
    for wrong in ("1 2 3", "a b c d", "-1 0 5 5", "0 0 61 5", "0 0 0 5"):
        with pytest.warns(UserWarning, match="裁剪框"):
            images.type_box(me(), wrong)
    for nothing in ({}, {"box": None}, {"box": [1]}, {"box": ["nan"] * 4}, {"box": [0.5] * 4}):
        images.drag(me(), event(**nothing))
    images.uncrop(me())
    ask(answers, "三")
    assert assistant.calls[-1][1].size == (60, 40)
    assert parse_box("0 0 60 40", (60, 40)) is None and box_of([0, 0, 1, 1], (3, 3)) == (0, 0, 3, 3)


def test_an_address_is_checked_before_it_is_fetched(images, monkeypatch):
    for address in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "a\0b"):
        shown = images.fetch(me(), address)
        assert "没有读入" in shown[0], address
    session = images.service.session(me())
    assert session.view is None and not session.uploads
    assert images.fetch(me(), " ")[0] == shown[0]


def test_an_address_gives_an_image(images, monkeypatch, tmp_path):
    content = (PROJECT / "images/examples/harbour.png").read_bytes()
    monkeypatch.setattr("model.images.reading.fetch", lambda url, public_only: content)
    images.service.space = Space(tmp_path)
    shown = images.fetch(me(), "https://example.org/a/%E6%B8%AF.png?x=1")
    assert "港.png" in shown[1] and len(list(tmp_path.glob("*/image"))) == 1
    images.remove(me())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "english, says",
    [
        (False, "60000×60000 像素，这里一次最多读 1000000000 像素：请先裁剪，或到“整景制图”"),
        (True, "60000 x 60000 pixels, at most 1000000000 are read here in one piece: crop it"),
    ],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(images, tmp_path, english, says):
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000, []))
    session = images.service.session(me())
    session.english = english
    images.upload(me(), {"path": str(tmp_path / "a.png"), "orig_name": "大.png"})
    said = session.main.messages[-1].text
    assert says in said and "--max-image-pixels" in said
    assert session.view is None and session.refused.name == "大.png"


def test_the_limit_of_pixels_holds_for_every_image_of_a_page(images, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    images.service.turns = Turns(60 * 40)
    assert "没有读入" not in images.upload(me(), {"path": str(tmp_path / "a.png")})[0]
    images.service.turns = Turns(60 * 40 - 1)
    images.upload_other(me(), {"path": str(tmp_path / "a.png")})
    session = images.service.session(me())
    assert session.other is None and "2399" in session.main.messages[-1].text


# Sessions


def upload(tmp_path, session, name="a.png"):
    path = tmp_path / name / "x.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    session.uploads |= {path}
    session.view = View(path, "x")
    return path


def test_a_page_loaded_again_finds_its_dialogue_and_a_closed_one_leaves_no_file(tmp_path):
    sessions = Sessions(grace=0.1)
    session = sessions.of("one")
    path = upload(tmp_path, session)
    session.main.ask("x").text = "y"
    sessions.leave("one")
    sessions.take_over("two", "one")
    time.sleep(0.3)
    assert path.exists() and sessions.of("two") is session is not sessions.of("one")
    sessions.leave("two")
    sessions.leave("nobody")
    for _ in range(50):
        if not path.parent.exists():
            break
        time.sleep(0.05)
    assert not path.parent.exists() and sessions.of("two") is not session


def test_a_page_that_lost_its_connection_and_goes_on_keeps_its_session():
    """Gradio tells of it as of a page that was closed."""
    sessions = Sessions(grace=0.6)
    session = sessions.of("one")
    sessions.leave("one")
    for _ in range(4):
        time.sleep(0.3)
        assert sessions.of("one") is session
    time.sleep(1)
    assert sessions.of("one") is not session


def test_a_file_that_two_sessions_show_stays_for_the_other(tmp_path):
    sessions = Sessions(most=2)
    first, second = sessions.of("one"), sessions.of("two")
    path = upload(tmp_path, first)
    upload(tmp_path, second)
    first.view = None
    sessions.release(first)
    assert path.exists() and not first.uploads
    sessions.of("three")
    sessions.of("four")  # more than there may be: `two` goes
    assert not path.exists()


# The disk


def stored(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_what_is_needed_least_goes_first_and_a_full_disk_is_said(tmp_path):
    things = {name: stored(tmp_path / name, 100) for name in ("a", "b", "c")}

    def remover(name):
        def remove():
            there = things[name].exists()
            things[name].unlink(missing_ok=True)
            return there

        return remove

    space = Space(tmp_path, 400, [remover("b"), remover("a")])
    space.take(100)
    assert all(path.exists() for path in things.values())
    space.take(100)
    assert not things["b"].exists() and things["a"].exists()
    space.give_back(100)
    with pytest.raises(WordedError) as full:
        space.take(301)
    assert not things["a"].exists() and things["c"].exists()
    assert full.value.said(CHINESE) == "服务器放图像的空间（4e-07 GB）满了，请过一会儿再试。"
    assert "is full; try again" in full.value.said(WORDS[True])
    assert WordedError("size", Word("red"), 3).said(CHINESE) == "红×3 像素"


def test_a_disk_that_others_have_filled_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=50))
    space = Space(tmp_path)
    space.take(50)
    with pytest.raises(WordedError):
        space.take(1)


def test_closed_pages_go_in_the_order_in_which_they_were_closed(tmp_path):
    sessions = Sessions()
    paths = {key: upload(tmp_path, sessions.of(key), key) for key in "abc"}
    sessions.leave("b")
    sessions.leave("a")
    assert sessions.end_oldest() and not paths["b"].exists() and paths["a"].exists()
    assert sessions.end_oldest() and not paths["a"].exists()
    assert not sessions.end_oldest() and paths["c"].exists()


def test_of_uploads_that_no_page_shows_the_oldest_goes_first(tmp_path, monkeypatch):
    sessions = Sessions()
    shown = upload(tmp_path, sessions.of("one"), "shown")
    left = [stored(tmp_path / name / "x.png", 5) for name in ("first", "second")]
    uploaded = {str(path) for path in (shown, *left, tmp_path / "gone")}
    assert not sessions.remove_unclaimed(uploaded)  # they have just come
    later = time.time() + 100
    monkeypatch.setattr("serving.page.sessions.time.time", lambda: later)
    assert sessions.remove_unclaimed(uploaded)
    assert not left[0].parent.exists() and left[1].exists()
    assert sessions.remove_unclaimed(uploaded) and not sessions.remove_unclaimed(uploaded)
    assert shown.exists()


def test_a_page_with_too_much_is_told_so_in_its_language(images, tmp_path):
    images.service.space = Space(tmp_path, 4000)
    small = stored(tmp_path / "a" / "a.png", 600)
    session = images.service.session(me())
    session.scenes = session.uploads = {small}
    big = stored(tmp_path / "b" / "b.png", 900)
    shown = images.upload(me(), {"path": str(big), "orig_name": "b.png"})
    assert "这个页面的图像共 1.5e-06 GB，最多 1e-06 GB" in shown[0] and not big.exists()
    session.english = True
    big = stored(tmp_path / "b" / "b.png", 1100)
    images.upload_other(me(), {"path": str(big), "orig_name": "b.png"})
    remark = session.main.messages[-1].text
    assert "images of this page take 1.7e-06 GB" in remark and not big.exists()
    assert session.other is None


def test_sessions_do_not_mix(answers, assistant):
    threads = [
        threading.Thread(target=lambda k=k: [ask(answers, f"{k}-{n}", key=k) for n in range(5)])
        for k in "abcdef"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in "abcdef":
        history = answers.service.session(me(key)).main.history
        assert history == [(f"{key}-{n}", f"后：{key}-{n}") for n in range(5)]


# The page as a whole


@pytest.fixture
def page(service, images, answers):
    import gradio as gr

    with gr.Blocks():
        layout = Layout(service)
    return WholePage(service, images, answers, layout.worded)


@pytest.mark.parametrize(
    "option, language, english",
    [
        (None, "zh-CN", False),
        (None, "en-GB", True),
        (None, "de", True),
        (None, None, False),
        (False, "en", False),
        (True, "zh", True),
    ],
)
def test_the_language_is_the_browsers_unless_an_option_says_otherwise(
    page, option, language, english
):
    page.service.english = option
    page.arrive(me(), json.dumps({"language": language}))
    session = page.service.session(me())
    assert page.service.is_english(session) == english
    page.switch(me())
    assert page.service.is_english(session) != english


def switched(page):
    """(the image's place, its facts, the state of the answer) in the other language."""
    place, facts, *_, state = page.switch(me())[-OUTPUTS:]
    return place, facts, state


@pytest.mark.parametrize("kind", ["no image", "too many pixels", "no room"])
def test_the_reason_in_the_place_follows_the_language(page, images, tmp_path, kind):
    says = {
        "no image": ("请换成 PNG", "not an image Pillow can read"),
        "too many pixels": ("请先裁剪", "crop it"),
        "no room": ("个页面的图像共", "images of this page take"),
    }[kind]
    content = png(60_000, 60_000, []) if kind == "too many pixels" else b"no image"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").write_bytes(content)
    images.service.space = Space(tmp_path, 4 if kind == "no room" else 10**9)
    images.upload(me(), {"path": str(tmp_path / "a" / "a.png"), "orig_name": "图.png"})
    error = images.service.session(me()).refused.error
    assert error.__traceback__ is error.__context__ is None  # they hold what was read
    for english in (True, False):
        place = switched(page)[0]
        assert says[english] in place and says[not english] not in place
        assert "图.png" in place and str(tmp_path) not in place


def test_state_and_name_of_an_example_follow_the_language(page, images, answers):
    images.example(me(), "harbour")
    answers.service.session(me()).mode = OTHER
    ask(answers, "一", OTHER)
    place, facts, state = switched(page)
    assert "Harbour (4 bands)" in facts and "Harbour (4 bands)" in place and "2 tokens" in state
    assert "Parking" in page.compare(me(), OTHER)[-1]
    place, facts, state = switched(page)
    assert "港口（4 波段）" in facts and "2 词元" in state
    running = begun(answers)
    assert switched(page)[2] == "answering..."
    running.close()
    assert answers.service.status(answers.service.session(me())).startswith("stopped")


@pytest.mark.parametrize("told", [None, "", "x", "[]", "{}", '{"before": 3, "draft": []}', 5])
def test_an_arrival_that_tells_nothing_is_a_new_page(page, told):
    outputs = page.arrive(me(), told)
    assert outputs[-1]["value"] == PROMPT


def test_dialogue_and_draft_survive_a_reload(page, answers):
    ask(answers, "你好")
    page.service.leave(me())
    told = {"language": "zh", "before": "me", "draft": "还有什么"}
    outputs = page.arrive(me("again"), json.dumps(told))
    assert outputs[-1]["value"] == "还有什么"
    assert answers.service.session(me("again")).main.history == [("你好", "后：你好")]
    told = {"before": "again", "draft": ""}  # all was sent
    assert page.arrive(me("third"), json.dumps(told))[-1]["value"] == ""
    told = {"before": "gone", "draft": " "}
    assert page.arrive(me("fourth"), json.dumps(told))[-1]["value"] == PROMPT


def test_every_text_is_there_in_both_languages():
    for key, pair in TABLE.items():
        assert len(pair) == 2 and all(pair), key
        assert pair[0].count("{}") == pair[1].count("{}"), key
    assert said("send", True) == "Send" and said([("side", 1)], False) == [("并排", 1)]


def test_the_dialogue_as_a_file(page, images, answers):
    images.example(me(), "harbour")
    ask(answers, "一", SIDE)
    ask(answers, " ", SIDE)
    session = page.service.session(me())
    session.mode = SIDE
    saved = json.loads(page.as_json(me())["text"])
    assert saved["image"] == {
        "name": "港口（4 波段）",
        "width": 128,
        "height": 128,
        "bands": None,
        "box": None,
    }
    assert saved["dialogue"] == [
        {"role": "user", "content": "一"},
        {"role": "assistant", "content": "后：一"},
    ]
    assert saved["beside"]["dialogue"][1]["content"] == "前：一"
    text = page.as_markdown(me())["text"]
    assert "**问**: 一\n\n**答**: 后：一" in text and "## 微调前（基座）" in text
    assert "错误" not in text


def test_votes_go_to_a_file_where_there_is_one(page, answers, tmp_path):
    ask(answers, "一")
    page.vote(me(), SimpleNamespace(index=1, liked=True))
    page.service.votes = Votes(tmp_path / "a" / "votes.jsonl")
    page.vote(me(), SimpleNamespace(index=1, liked=False))
    for index in (0, 99, None, "x", -1):
        page.vote(me(), SimpleNamespace(index=index, liked=True))
    (vote,) = map(json.loads, (tmp_path / "a" / "votes.jsonl").read_text("utf-8").splitlines())
    assert (vote["question"], vote["answer"], vote["liked"]) == ("一", "后：一", False)
    with pytest.raises(UserError, match="--votes .*cannot be written"):
        Votes(tmp_path)


def test_the_examples_are_those_that_their_script_draws(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "images")
    import examples

    for name in examples.PLAIN:
        drawn = np.asarray(examples.scene(name))
        kept = np.asarray(Image.open(examples.FOLDER / f"{name}.png"))
        assert np.array_equal(drawn, kept), name
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(examples.FOLDER / f"{examples.MULTISPECTRAL}.tif") as file:
        expected = examples.multispectral(examples.scene(examples.MULTISPECTRAL))
        assert np.array_equal(file.read(), expected)


def test_checked_strips():
    assert checked(" 你好\n", CHINESE) == "你好" and Session().idle.is_set()
