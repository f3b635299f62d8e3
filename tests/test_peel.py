"""What models put around a description, and what is left of it."""

import json
import random
import time

import pytest

from data.peel import peel, without_thoughts

TEXT = "图中有一个湖泊，湖边有两座房屋。"
# TEXT stands for @
THOUGHTS = (
    "<think>x</think>@",
    "x</think>\n\n@",
    "<THINK>x</THINK>@",
    "＜think＞x＜/think＞@",
    "&lt;think&gt;x&lt;/think&gt;@",
    "<think>a<think>b</think>c</think>@",
    "@<think>x</think>",
    "<thinking>x</thinking>@",
    "<thought>x</thought>@",
    '<reasoning effort="1">x</reasoning>@',
    "<seed:think>x</seed:think>@",
    "◁think▷x◁/think▷@",
    "[THINK]x[/THINK]@",
    "【思考】x【/思考】@",
    "<|START_THINKING|>x<|END_THINKING|>@",
    "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>@",
    "analysisWe need to merge.assistantfinal@",
    '<details type="reasoning" done="true"><summary>3 s</summary>x</details>@',
    "<think>\n\n</think>\n<answer>\n@\n</answer>",
)
WRAPPERS = (
    '```json\n{"description": "@"}\n```',
    "```\n@\n```",
    "```text\n@",
    '{"描述": "@"}',
    "{'描述': '@'}",
    '["@"]',
    '{"thought": "先想一想。", "description": "@"}',
    '{"result": {"caption": "@"}}',
    '```json\n{"描述": "@"}\n```\n希望对您有帮助！',
    "<answer>@</answer>",
    "<p>@</p>",
    "\\boxed{@}",
    "<|begin_of_box|>@<|end_of_box|>",
    "@<|im_end|>",
    "@</s>",
)
LABELS = (
    "描述：@",
    "译文：@",
    "翻译：@",
    "答：@",
    "A: @",
    "【描述】@",
    "**描述**：@",
    "**描述：** @",
    "中文描述（简体）：@",
    "Translation: @",
    "assistant: @",
    "Sure! Here is the Chinese description:\n\n@",
    "好的，以下是合并后的中文描述：\n\n@",
    "好的，@",
    "## 遥感图像描述\n\n@",
    "English: A lake.\n中文：@",
    "A lake with two houses.\n@",
    "@\nA lake with two houses.",
    "思考过程：先看湖泊。\n\n最终答案：@",
    "问：图里有什么？\n答：@",
)
SIGNS = (
    "“@”",
    '"@"',
    "「@」",
    "《@》",
    "**@**",
    "*@*",
    "# @",
    "> @",
    "1. @",
    "(1) @",
    "①@",
    "一、@",
    "- @",
    "___\n@\n---",
    "&ldquo;@&rdquo;",
    "\ufeff@\u200b",
    "\x00@",
    "@@",
    "@\n@",
    "@\n\n（注：根据英文合并。）",
    "@（注：略）",
    "@\n\n**注**：合并了句子。",
    "@\nNote: I merged the sentences.",
    "@（共16字）",
    "@\n希望对您有帮助！",
    "@如需修改请告诉我。",
)


@pytest.mark.parametrize("answer", (*THOUGHTS, *WRAPPERS, *LABELS, *SIGNS, "@"))
def test_a_wrapper_goes_and_the_text_stays(answer):
    found = peel(answer.replace("@", TEXT))
    assert found == TEXT and peel(found) == found


@pytest.mark.parametrize(
    "answer", ("<think>" + TEXT, "<think>x</think>", "[THINK]" + TEXT, "◁think▷" + TEXT)
)
def test_nothing_but_thoughts_is_no_text(answer):
    assert peel(answer) == "" and without_thoughts(answer) == ""


@pytest.mark.parametrize(
    "answer, text",
    (
        ("“图中有一个湖泊”。", "图中有一个湖泊。"),
        ("1. 图中有湖泊。\n2. 湖边有房屋。", "图中有湖泊。湖边有房屋。"),
        ("图中有&#19968;个湖泊。", "图中有一个湖泊。"),
        ("**图中**有`一个`湖泊。", "图中有一个湖泊。"),
        (json.dumps(json.dumps("图中有湖泊。")), "图中有湖泊。"),
        ("图中有２个湖泊。", "图中有2个湖泊。"),
    ),
)
def test_what_is_inside_a_text(answer, text):
    assert peel(answer) == text


@pytest.mark.parametrize(
    "text",
    (
        "“大”字形的湖泊和“一”字形的道路。",
        "三、四座房屋排成一行。",
        "3.5米宽的道路穿过草地。",
        "湖泊、房屋（两座）和树木。",
        "左边有湖泊，右边有湖泊。左边有房屋。",
        # damage is left to the gate
        "图中有\ufffd湖泊。",
        '{"描述": "图中有',
        "图中有湖泊😀。",
    ),
)
def test_what_is_no_wrapper_stays(text):
    assert peel(text) == text


def test_no_pile_of_marks_hangs_it():
    """2,000 random piles, some of a mark 300 times, and marks by the hundred thousand."""
    marks = ["<think>", "</think>", "```json\n", '{"描述":"', '"}', "描述：", "“", "**", "1. "]
    marks += ["（注：", "）", "\n", "&lt;", "\u200b", "\ufffd", TEXT, "A lake. ", "[", "'", "A:"]
    rng = random.Random(0)
    for _ in range(2000):
        count = rng.choice((1, 1, 1, 1, 300))
        text = "".join(rng.choice(marks) * count for _ in range(rng.randint(1, 10)))
        start = time.monotonic()
        assert isinstance(peel(text), str)
        assert time.monotonic() - start < 5
    for mark in (*marks, "*", "<", " "):
        start = time.monotonic()
        peel(mark * 100_000 + TEXT)
        assert time.monotonic() - start < 5
