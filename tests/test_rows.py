"""Rows as other tools write them: what is read, what is named, what is refused."""

import json
import time
from contextlib import suppress

import pytest
from PIL import Image

from model.errors import UserError
from model.files import parse_line, read_rows
from model.row_forms import FormError, read_form
from model.rows import load_rows

QUESTION, ANSWER = "图中有什么？", "一条河流。"


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    return tmp_path


def load(folder, *rows, **options):
    """(samples, notes) of rows in a file of the folder."""
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    notes = []
    return load_rows(path, notes=notes, **options), notes


def turns(question=QUESTION, answer=ANSWER, names=("role", "content"), roles=("user", "assistant")):
    role, content = names
    return [{role: roles[0], content: question}, {role: roles[1], content: answer}]


LLAVA = {"names": ("from", "value"), "roles": ("human", "gpt")}
SAME = {
    "ours": {"img": "a.png", "prompt": QUESTION, "label": ANSWER},
    "image": {"image": "a.png", "prompt": QUESTION, "label": ANSWER},
    "ms-swift 2": {"images": ["a.png"], "query": QUESTION, "response": ANSWER},
    "VQA": {"image": "a.png", "question": QUESTION, "answer": ANSWER},
    "Alpaca": {"images": ["a.png"], "instruction": QUESTION, "input": "", "output": ANSWER},
    "LLaMA-Factory": {"images": ["a.png"], "messages": turns(f"<image>{QUESTION}")},
    "LLaVA": {"image": "a.png", "conversations": turns(f"<image>\n{QUESTION}", **LLAVA)},
    "after": {"image": "a.png", "conversations": turns(f"{QUESTION}\n<image>", **LLAVA)},
    "ms-swift 4": {"images": [{"path": "a.png", "bytes": None}], "messages": turns()},
    "parts": {"messages": turns([{"type": "image", "image": "a.png"}, {"text": QUESTION}])},
    "OpenAI": {
        "messages": turns(
            [
                {"type": "text", "text": QUESTION},
                {"type": "image_url", "image_url": {"url": "a.png"}},
            ]
        )
    },
    "Qwen": {
        "img": "a.png",
        "prompt": f"<|vision_start|><|image_pad|><|vision_end|>{QUESTION}",
        "label": ANSWER,
    },
    "InternLM": {
        "img": "a.png",
        "prompt": f"<img><ImageHere></img>{QUESTION}",
        "label": [{"type": "text", "text": ANSWER}],
    },
    "Qwen 2": {"messages": turns([{"image": "a.png"}, {"text": QUESTION}])},
    "Ollama": {"messages": [{**turns()[0], "images": ["a.png"]}, turns()[1]]},
    "Qwen-VL": {"image": "a.png", "prompt": f"Picture 1: <image>\n{QUESTION}", "label": ANSWER},
    "InternVL": {"image": "a.png", "prompt": f"Image-1: <image>\n{QUESTION}", "label": ANSWER},
    "capitals": {"image": "a.png", "messages": turns(roles=("USER", "ASSISTANT"))},
    "bot": {"image": "a.png", "conversation": turns(roles=("human", "bot"))},
    "Gemini": {"image": "a.png", "messages": turns(roles=("user", "model"))},
    "Responses": {
        "messages": turns(
            [
                {"type": "input_text", "text": QUESTION},
                {"type": "input_image", "image_url": "a.png"},
            ],
            [{"type": "output_text", "text": ANSWER}],
        )
    },
    "spreadsheet": {"Image": "a.png", "Question": QUESTION, "Answer": ANSWER},
    "Alpaca in capitals": {"img": "a.png", "Instruction": QUESTION, "Input": "", "Output": ANSWER},
    "LLaVA in capitals": {
        "image": "a.png",
        "conversations": turns(names=("From", "Value"), roles=("human", "gpt")),
    },
    "turns in capitals": {"image": "a.png", "messages": turns(names=("Role", "Content"))},
    "both spellings": {"img": "a.png", "image": "a.png", "prompt": QUESTION, "label": ANSWER},
    "file://": {"img": "file://a.png", "prompt": QUESTION, "label": ANSWER},
    "empty columns": {
        **{"img": "", "image": "a.png", "messages": [], "conversations": None},
        **{"prompt": "", "query": QUESTION, "label": ANSWER, "output": "", "history": []},
    },
}


@pytest.mark.parametrize("form", SAME)
def test_spellings_of_one_row(folder, form):
    """Every form trains as the same question about the same image; nothing goes unsaid."""
    (sample,), notes = load(folder, SAME[form])
    assert (sample.image, sample.question, sample.answer) == (folder / "a.png", QUESTION, ANSWER)
    assert not notes
    (asked,), _ = load(folder, SAME[form], questions=True)
    assert (asked.image, asked.question) == (folder / "a.png", QUESTION)


@pytest.mark.parametrize(
    "row, question, unused",
    [
        ({"text": QUESTION}, QUESTION, ""),
        ({"Prompt": QUESTION}, QUESTION, ""),
        ({"text": "Any ships? ", "prompt": ""}, "Any ships? ", ""),
        ({"text": QUESTION, "messages": []}, QUESTION, ""),
        ({"Text": QUESTION, "conversations": None}, QUESTION, ""),
        # a caption, or one key too many
        ({"text": ANSWER}, None, "text (1 rows)"),
        ({"text": "有船吗？", "prompt": QUESTION}, QUESTION, "text (1 rows)"),
        ({"Prompt": "有船吗？", "query": QUESTION}, QUESTION, "Prompt (1 rows)"),
        ({"text": "有船吗？", "messages": turns()[:1]}, QUESTION, "text (1 rows)"),
    ],
)
def test_other_keys_of_a_question(folder, row, question, unused):
    (sample,), notes = load(folder, {"img": "a.png"} | row, questions=True)
    assert sample.question == question
    said = [f"rows {folder / 'rows.json'}: not used: {unused}"] if unused else []
    assert notes == said


def test_a_text_is_no_question_to_train(folder):
    with pytest.raises(UserError, match="has keys img, text, label; prompt and label must be"):
        load(folder, {"img": "a.png", "text": QUESTION, "label": ANSWER})


def test_a_key_in_capitals_beside_its_like_is_not_read(folder):
    row = {"img": "a.png", "prompt": QUESTION, "response": ANSWER, "Label": 3}
    (sample,), notes = load(folder, row)
    assert sample.answer == ANSWER and "not used: Label (1 rows)" in notes[0]


def test_an_input_in_capitals_follows_its_instruction(folder):
    row = {"img": "a.png", "Instruction": "数一数。", "Input": "飞机", "Output": ANSWER}
    (sample,), notes = load(folder, row)
    assert (sample.question, notes) == ("数一数。\n飞机", [])


@pytest.mark.parametrize("empty", ["", None, []])
def test_an_empty_label_beside_an_answer_is_no_reference(folder, empty):
    row = {"img": "a.png", "prompt": QUESTION, "label": empty, "answer": ANSWER}
    (sample,), _ = load(folder, row, questions=True)
    assert sample.answer == ANSWER


def test_history_stands_before_the_question(folder):
    row = {"image": "a.png", "query": "再问", "response": "再答", "history": [["问", "答"]]}
    samples, _ = load(folder, row)
    assert [(s.question, s.answer, s.history) for s in samples] == [
        ("问", "答", ()),
        ("再问", "再答", (("问", "答"),)),
    ]


PAIR = {"prompt": QUESTION, "label": ANSWER}
WRONG = {
    "empty image": ({"img": ""} | PAIR, "row 0: img is empty; name the image"),
    "two images": ({"images": ["a.png", "b.png"]} | PAIR, "images holds 2 images; a row has one"),
    "two keys": ({"img": "a.png", "image": "b.png"} | PAIR, "names 2 images; a row has one"),
    "two questions": (
        {"img": "a.png", "query": "别的"} | PAIR,
        "has both prompt and query, which differ; keep one of them",
    ),
    "question and dialogue": (
        {"img": "a.png", "prompt": "x", "messages": turns()},
        "has both prompt and messages; keep one",
    ),
    "place without image": (
        {"prompt": f"<image>{QUESTION}", "label": ANSWER},
        "has <image> in a text, but names no image under img",
    ),
    "two places": (
        {"img": "a.png", "prompt": f"<image><image>{QUESTION}", "label": ANSWER},
        "has 2 places of images",
    ),
    "path in the prompt": (
        {"img": "a.png", "prompt": f"<img>a.png</img>{QUESTION}", "label": ANSWER},
        "has <img>a.png</img> in a text, markup of another tool",
    ),
    "place in an answer": (
        {"img": "a.png", "prompt": QUESTION, "label": f"<image>{ANSWER}"},
        "has <image> in a text, markup of another tool",
    ),
    "end of a turn": (
        {"img": "a.png", "prompt": QUESTION, "label": f"{ANSWER}<|im_end|>"},
        r"has <\|im_end\|> in a text",
    ),
    "places of objects": (
        {"img": "a.png", "prompt": "找到<ref-object>，<bbox>", "label": ANSWER},
        "has <ref-object> in a text, markup",
    ),
    "coordinates": (
        {"img": "a.png", "prompt": QUESTION, "label": "一条河{<12><34><56><78>|<90>}"},
        r"has \{<12><34><56><78> in a text, markup",
    ),
    "reasoning": (
        {"img": "a.png", "prompt": QUESTION, "label": f"<think>嗯</think>{ANSWER}"},
        "has <think> in a text, markup",
    ),
    "ChatGLM's end": (
        {"img": "a.png", "prompt": f"{QUESTION}[gMASK]<sop>", "label": ANSWER},
        r"has \[gMASK\] in a text, markup",
    ),
    "an image of Markdown": (
        {"img": "a.png", "prompt": f"![](a.png){QUESTION}", "label": ANSWER},
        r"has !\[\]\(a.png\) in a text, markup",
    ),
    "an address": (
        {"img": "http://a.org/a.png"} | PAIR,
        "row 0: img is the address http://a.org/a.png; save the image to a file",
    ),
    "an image in the address": (
        {"img": f"data:image/png;base64,{'A' * 9999}"} | PAIR,
        "row 0: img is the address data:image/png;base64,A.*; save the image to a file",
    ),
    "several labels": (
        {"img": "a.png", "prompt": QUESTION, "label": ["一条河。", "河流。"]},
        "prompt and label must be non-empty texts, got .'一条河。', '河流。'",
    ),
    "half a character": ({"img": "\ud800.png"} | PAIR, "row 0: img must be a path, got .ud800.png"),
    "only a place": (
        {"img": "a.png", "prompt": "<image>", "label": ANSWER},
        "has no question beside <image>",
    ),
    "a number": ({"img": "a.png", "messages": turns(5)}, "expected user, got .*'content': 5"),
    "unknown parts": (
        {"img": "a.png", "messages": turns([{"type": "video", "video": "a.mp4"}])},
        "expected user, got",
    ),
    "a label that is a list": ({"img": "a.png", "prompt": QUESTION, "label": [1]}, "has keys img"),
    "no turns": ({"img": "a.png", "messages": []}, "list of user and assistant turns"),
    "odd history": ({"img": "a.png", "history": [["x"]]} | PAIR, "history must be pairs"),
    "a lost image": (
        {"picture": "a.png"} | PAIR,
        r"none of 1 rows has an image, though 1 seem to name one \(picture: a.png\)",
    ),
    "an image in the question": (
        {"prompt": "images/a.tif 图中有什么？", "label": ANSWER},
        r"seem to name one \(images/a.tif\): name it under img",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_refused(folder, case):
    row, words = WRONG[case]
    with pytest.raises(UserError, match=words) as caught:
        load(folder, row)
    assert "\n" not in str(caught.value)


PLACES = [
    *(
        "<image>Q",
        "Q\n<image>",
        "< image >Q",
        "＜image＞Q",
        "&lt;image&gt;Q",
        "<IMAGE>Q",
        "[image]Q",
    ),
    *("<image:0>Q", "<image_1>Q", "<image 1>Q", "<|image|>Q", "<|image_1|>\nQ", "<image_pad>Q"),
    *(
        "<IMAGE PLACEHOLDER>Q",
        "<__media__>Q",
        "<image_soft_token>Q",
        "<image_token>Q",
        "<image-placeholder>Q",
    ),
    *("<start_of_image>Q", "<start_of_image><image_soft_token><end_of_image>Q"),
    *("<im_start><image><im_end>\nQ", "<image_start><image><image_end>Q", "<boi><image><eoi>Q"),
    *("<|begin_of_image|><|image|><|end_of_image|>Q", "<img><ImageHere></img>Q"),
    *("[IMG]Q", "[IMG][IMG_END]Q", "[img][/img]Q", "<img></img>Q", "<image></image>Q"),
    *("Picture 1: <image>\nQ", "Picture 1: <img></img>\nQ", "Image-1: [IMG]\nQ"),
]
OTHER_MARKUP = [
    *("<img>a.png</img>", "[img]a.png[/img]", "<image>a.png</image>", "<img src='a 中.png'>"),
    *("<image_2>", "<image_start>", "<im_end>", "<boi>", "<eoa>", "<im_patch>", "<image_newline>"),
    *("<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "[IMG_BREAK]", "[video]"),
    *("<start_of_turn>", "<end_of_turn>", "<end_of_utterance>", "<|im_end|>", "<unused0>"),
    *(
        "<｜User｜>",
        "<｜begin▁of▁sentence｜>",
        "<s>",
        "</s>",
        "<0x0A>",
        "[INST]",
        "[/INST]",
        "[UNK]",
    ),
    *(
        "[grounding]",
        "[refer]",
        "[identify]",
        "[SEG]",
        "<grounding>",
        "<seg>",
        "<rbox>",
        "<p>",
        "</p>",
    ),
    *("<obj>", "<region>", "<polygon>", "<det>", "<loc_12>", "<12><34>", "＜box＞", "&lt;box&gt;"),
    *("<answer>", "</answer>", "<thinking>", "<thought>", "<tool_response>", "<function_call>"),
    *("[Round 1]", "[gMASK]", "<br/>", "<x:0>", "data:image/png;base64,AA/+="),
    *("![](a.png)", "<video src='a.mp4'/>"),
    *("[TOOL_CALLS]", "[|Human|]", "[UNUSED_TOKEN_145]", "[EOS]", "[BOS]", "[unused1]"),
    *("[image1]", "[Image 1]", "<IMG-2>", "<SEG1>", "<BOX>", "<image-2>", "<Image-2>", "{<12>"),
]
PLAIN = [
    *(
        "宽度<5米",
        "若a<b>c，则选",
        "<b>多少</b>？",
        "选项<A>和<B>",
        "x < y",
        "x < y > z",
        "a<=b",
        "1<2>0",
        "3<x>2",
    ),
    *(
        "length < width > height",
        "if x <y and z> 5",
        "面积 <5 公顷，宽 >3 米",
        "NDVI<0.3且NDWI>0.2",
    ),
    *(
        "[1]",
        "见文献[12]",
        "[0, 1]",
        "[图片]",
        "[Round]",
        "[a.png]",
        "【图】",
        "《河流》",
        "<河流>",
    ),
    *(
        "联系<a.b@c.org>",
        "<user@host>",
        "<https://a.org>",
        "<www.a.org>",
        "<->",
        "<--",
        "<3",
        ">=5",
    ),
    *("<12:30>", "＜5米", "&lt; 5 米", "R&amp;D", "data: 5", "a|b|c"),
    *("NDVI<NDWI>NDBI", "B8<B4>B3", "blue<green>red", "面积<1>km", "1<<2>>3", "选<1>"),
    *("坐标系<WGS84>下", "<EPSG:4326>", "<GF-2>影像", "<Sentinel-2A>", "<N39>", "<NaN>"),
    *("H<sub>2</sub>O", "10 m<sup>2</sup>", "一行<br>二行", "x < think > y"),
]


@pytest.mark.parametrize("text", PLACES)
def test_a_place_is_taken_out_whole(folder, text):
    row = {"img": "a.png", "prompt": text.replace("Q", QUESTION), "label": ANSWER}
    (sample,), _ = load(folder, row)
    assert sample.question == QUESTION


@pytest.mark.parametrize("mark", OTHER_MARKUP)
def test_other_markup_is_named(folder, mark):
    """Also in an answer and in what is only asked: it would be trained, or asked, as words."""
    question = {"img": "a.png", "prompt": f"{mark}{QUESTION}", "label": ANSWER}
    answer = {"img": "a.png", "prompt": QUESTION, "label": f"{ANSWER} {mark}"}
    for row, asked in ((question, False), (question, True), (answer, False)):
        with pytest.raises(UserError) as caught:
            load(folder, row, questions=asked)
        said = str(caught.value)
        assert f"row 0: has {mark} in a text, markup of another tool: remove it" in said
        assert "\n" not in said


@pytest.mark.parametrize(
    "text, signs",
    [
        ("### Human: {q}### Assistant: {a}", "### Human: and ### Assistant:"),
        ("###Human: {q}\n###Assistant: {a}", "###Human: and ###Assistant:"),
        ("USER: {q} ASSISTANT: {a}", "USER: and ASSISTANT:"),
        ("A chat with an assistant. USER: {q}ASSISTANT: {a}", "USER: and ASSISTANT:"),
        ("Human: {q}\n\nAssistant: {a}", "Human: and Assistant:"),
        ("user: {q}\nassistant: {a}", "user: and assistant:"),
        ("User：{q}\n Bot : {a}", "User： and Bot :"),
        ("**User**: {q}\n\n**Assistant**: {a}", "User**: and Assistant**:"),
        ("**User:** {q} **Assistant:** {a}", "User: and Assistant:"),
        ("\u3000user：{q}\n\tassistant：{a}", "user： and assistant："),
        ("USER  : {q}\nASSISTANT  : {a}", "USER  : and ASSISTANT  :"),
        ("Below is a task.\n\n### Instruction:\n{q}\n\n### Response:\n{a}", "### Instruction:"),
    ],
)
def test_turns_in_one_text_are_named(folder, text, signs):
    """In a question, in an answer, in what is only asked, and cut between the two."""
    whole = text.format(q=QUESTION, a=ANSWER)
    question, answer = (text.split("{q}")[0] + QUESTION, text.split("{q}")[1].format(a=ANSWER))
    pairs = [(whole, ANSWER), (QUESTION, whole), (question, answer)]
    rows = [{"img": "a.png", "prompt": one, "label": other} for one, other in pairs]
    for row, asked in (*((row, False) for row in rows), (rows[0], True)):
        with pytest.raises(UserError) as caught:
            load(folder, row, questions=asked)
        said = str(caught.value)
        assert f"row 0: has {signs}" in said and "\n" not in said
        assert "in a text, markup of another tool: make each turn one of conversations" in said


@pytest.mark.parametrize(
    "question, answer",
    [
        ("USER: the operator of the port", "有，ASSISTANTS 也有。"),
        ("### Human: {q}", ANSWER),
        (QUESTION, "Assistant: 一条河流。"),
        ("the user: red, the assistant: blue", "superuser: 1, GPT-4: 2"),
        ("Instruction: count.\nResponse: a number.", "3"),
        ("Human activity: none", "Bottom: a river; user-assistant: none"),
    ],
)
def test_one_role_alone_is_text(folder, question, answer):
    (sample,), notes = load(folder, {"img": "a.png", "prompt": question, "label": answer})
    assert (sample.question, sample.answer, notes) == (question, answer, [])


@pytest.mark.parametrize("mark, blanks", [("<think>", True), ("[INST]", False), ("<image>", False)])
def test_what_looks_like_a_tag_may_stand_between_blanks(folder, mark, blanks):
    with pytest.raises(UserError) as caught:
        load(folder, {"img": "a.png", "prompt": QUESTION, "label": mark})
    assert ("remove it, or put blanks around < and >; the image" in str(caught.value)) == blanks


@pytest.mark.parametrize("mark", ["<seg>", "<eos>", "<think>", "<loc12>", "<row_1>"])
def test_tags_of_models_are_no_comparisons(folder, mark):
    with pytest.raises(UserError, match=f"has {mark} in a text, markup of another tool"):
        load(folder, {"img": "a.png", "prompt": QUESTION, "label": f"x{mark}y"})


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts_are_no_markup(folder, text):
    (sample,), notes = load(folder, {"img": "a.png", "prompt": text, "label": text})
    assert (sample.question, sample.answer, notes) == (text, text, [])


@pytest.mark.parametrize(
    "text", [" " * 9999 + "<x", "<ab" + " " * 9999, "<image>" + "\n" * 9999 + "x", "<|" * 5000]
)
def test_odd_texts_are_read_at_once(folder, text):
    """Patterns that try every part of a run of blanks take hours for it."""
    begin = time.perf_counter()
    load(folder, {"img": "a.png", "prompt": QUESTION + text, "label": ANSWER})
    assert time.perf_counter() - begin < 5


LONG_RUNS = [
    *("农田、", "a", "a.", ".png1", "![", "![a](", "[", "<", "<|", "<|a", "<a", "<img"),
    *("<img =", "&lt;", "&lt;ab =", "&lt;img&gt;x", "＜", "data:", "data:image/", "[img]"),
    *("Image:", "[Round 1", "<1", "{<1", "<image", "x<b>y", "1<ab>2", "[IMG_", "<x_"),
    *("#", "### ", "### Human: ", "User:", "\nUSER", "\n ", "A", ": "),
]


@pytest.mark.parametrize("run", LONG_RUNS)
def test_long_texts_are_read_at_once(run):
    """Patterns that look at the rest of a text from every place in it take minutes for it."""
    text = run * (100_000 // len(run))
    begin = time.process_time()
    for row in (PAIR | {"prompt": text}, PAIR | {"label": text}, PAIR | {"note": text}):
        with suppress(FormError):
            read_form(row)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "place", ["<image>", "<start_of_image>", "[IMG]", "<image:0> 和 <image:1>"]
)
def test_two_places_are_two_images(folder, place):
    text = place if " " in place else f"{place}{place}"
    with pytest.raises(UserError, match="has 2 places of images in a text"):
        load(folder, {"img": "a.png", "prompt": f"{text}{QUESTION}", "label": ANSWER})


@pytest.mark.parametrize("content", [5, [1], None, {"text": "x"}])
def test_questions_that_are_no_text_are_not_asked(folder, content):
    for row in ({"img": "a.png", "messages": turns(content)}, {"prompt": content}):
        with pytest.raises(UserError, match="row 0: "):
            load(folder, row, questions=True)


@pytest.mark.parametrize("part", [{"img": "\ud800.png"}, {"label": "\ud800"}])
def test_what_no_file_of_answers_could_hold_is_not_asked(folder, part):
    with pytest.raises(UserError, match="row 0: .* got .ud800"):
        load(folder, {"img": "a.png"} | PAIR | part, questions=True)


@pytest.mark.parametrize("address", ["http://a.org/a.png", "data:image/png;base64,AA//"])
def test_an_address_may_be_asked_about(folder, address):
    (sample,), _ = load(folder, {"img": address, "prompt": QUESTION}, questions=True)
    assert sample.image == address


def test_keys_of_turns_that_are_not_read_are_named(folder):
    question, answer = turns()
    row = {"img": "a.png", "messages": [question, answer | {"loss": False, "name": ""}] * 2}
    _, notes = load(folder, row)
    assert notes == [f"rows {folder / 'rows.json'}: not used: loss of turns (1 rows)"]


def test_what_is_not_read_is_named(folder):
    row = SAME["ours"] | {"id": 1, "split": "train"}
    talk = {"image": "a.png", "messages": [{"role": "system", "content": "你是助手"}, *turns()]}
    plain = dict(PAIR)
    lost = PAIR | {"path": "b.png"}
    samples, notes = load(folder, row, row, talk, plain, lost)
    rows = f"rows {folder / 'rows.json'}: "
    assert len(samples) == 5 and notes == [
        rows + "not used: id (2 rows), split (2 rows), system (1 rows), path (1 rows)",
        rows + "2 of 5 rows have no image and are plain text",
        rows + "1 rows without an image seem to name one (path: b.png): name it under img",
    ]


@pytest.mark.parametrize("row", [{"img": None} | PAIR, {"images": []} | PAIR, PAIR])
def test_rows_without_an_image_say_so(folder, row):
    (sample,), notes = load(folder, row)
    assert sample.image is None and "1 of 1 rows have no image" in notes[0]


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "a.json",
            '{"img": "x"}\n{"img": "y"}\n',
            "one record a line needs a name ending in .jsonl",
        ),
        ("a.jsonl", '[\n{"img": "x"}\n]', "an array needs a name ending in .json"),
        ("a.jsonl", '{"img": "x"}\n{"img": \n', "line 2 column 9"),
        ("a.json", '[{"prompt": "图像"}]'.encode("gbk"), r"not UTF-8 \(at byte \d+\); save it as"),
        ("a.jsonl", '{"prompt": "图像"}'.encode("gbk"), r"not UTF-8 \(at byte \d+\); save it as"),
        ("a.json", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.json", "", "the file is empty; it has 0 bytes: make it again, or copy it whole$"),
        ("a.json", "\0" * 9, "the file is empty; it has 9 bytes: make it again, or copy it whole$"),
        ("a.json", '[{"img":"', "ends in the middle; it has 9 bytes: make it again, or copy it"),
        ("a.json", "<!DOCTYPE html>", "an HTML page of 15 bytes, not the file; perhaps that of a"),
        ("a.jsonl", '[{"img": "x"}]', "expected an object, got list; an array needs a name ending"),
        ("a.json", '[{"prompt": "图像'.encode()[:-1], "ends in the middle; it has 18 bytes"),
        ("a.jsonl", '{"prompt": "图像'.encode()[:-1], "ends in the middle; it has 17 bytes"),
        (
            "a.jsonl",
            '{"img": "x"}\n{"img": "',
            "line 2 column 9: .*: the file ends in the middle",
        ),
        ("a.jsonl", '{"img": "x"}\n{"img": 1,}', "line 2 column 11: [^:]*$"),
        ("a.json", b"PK\x03\x04\x14\x80\x81", ": an archive: unpack it$"),
        ("a.jsonl", b"\x1f\x8b\x08\x80\x81", ": an archive: unpack it$"),
        ("a.json", b"II*\0\x80\x81", ": an image, not a file that names images$"),
        ("a.json", b"\xff\xd8\xff\xe0", ": an image, not a file that names images$"),
    ],
)
def test_ones_own_file_is_not_to_be_fetched_again(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        read_rows(path, "rows")
    said = str(caught.value)
    assert "fetch it again" not in said and "address" not in said and "\n" not in said


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.parquet", b"PAR1\x15\x04\xff"),
        ("a.csv", b"image,caption\n"),
        ("a.md", b"# rows"),
        ("a.xlsx", b"PK\x03\x04"),
    ],
)
def test_rows_of_another_kind(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    words = "no JSON; expected .json .* or .jsonl .*becomes rows by data/transform.py"
    with pytest.raises(UserError, match=words):
        load_rows(path)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("rows.zip", b"PK\x03\x04\x14", "an archive: unpack it; expected .json"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08", "an archive: unpack it; expected .json"),
        ("a.tif", b"II*\0\x80", "an image, not a file that names images; expected .json"),
    ],
)
def test_archives_and_images_given_as_rows_are_told(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"rows {path}: {words}"):
        load_rows(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (
            '{"img": "x"}\n{"img": "图'.encode()[:-1],
            "line 2: not UTF-8 .*the file ends in",
        ),
        (b'{"img": "x"}\n{"img": "', "line 2 column 9: .*: the file ends in the middle; it has 22"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_that_are_read_one_by_one_say_the_same(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with open(path, "rb") as lines, pytest.raises(UserError, match=words):
        for number, line in enumerate(lines, 1):
            parse_line(path, "rows", number, line)


def test_json_lines_by_their_other_name(folder):
    path = folder / "rows.ndjson"
    path.write_text(json.dumps(SAME["ours"]) + "\n")
    (sample,) = load_rows(path)
    assert sample.answer == ANSWER
