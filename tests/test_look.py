"""--look: what a vision-language model is shown, and how its answers are judged."""

import base64
from io import BytesIO

import pytest
from PIL import Image
from stages import call, load, save
from stub_batches import result
from stub_endpoint import error
from test_batch import api  # noqa: F401  (a fixture)
from test_translation import journal_of, rejected_of, translate

from data import generate_prompt, seen_questions, translation_en2zh
from model.rows import load_rows

pytestmark = pytest.mark.usefixtures("no_key")

SEEN = "A lake .\nA white boat on the lake ."
# by the caption alone the boat and its colour are invented
DESCRIPTION = "湖上有一艘白色的船。"


@pytest.fixture
def lakes(tmp_path):
    """Three records over two different images; one image is larger than what is sent."""
    (tmp_path / "images").mkdir()
    for name, color, size in (("a", "blue", 900), ("b", "navy", 60), ("c", "blue", 900)):
        Image.new("RGB", (size, size // 3), color).save(tmp_path / "images" / f"{name}.png")
    rows = [{"imged_id": f"{n}.png", "caption": "A lake .", "split": "val"} for n in "abc"]
    return save(tmp_path / "en.json", rows)


def shown(content):
    """(the image, the text or None) of a message."""
    url = content[0]["image_url"]["url"]
    head, _, data = url.partition(",")
    assert content[0]["type"] == "image_url" and head == "data:image/jpeg;base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    return image, content[1]["text"] if len(content) > 1 else None


def saying(answer=DESCRIPTION, seen=SEEN):
    return lambda content, nth: answer if shown(content)[1] else seen


def look(lakes, *options):
    return translate(lakes, lakes.parent / "zh.json", "--look", lakes.parent / "images", *options)


def test_each_image_is_seen_once_and_judged_by_both(lakes, stub, capsys):
    stub.answer = saying()
    assert look(lakes) == 0
    assert [row["caption"] for row in load(lakes.parent / "zh.json")] == [DESCRIPTION] * 3
    # of two images by their bytes: two looks, two descriptions
    seen = [shown(content) for content in stub.asked]
    assert sorted(text or "" for _, text in seen) == [
        "",
        "",
        f"A lake .\n{SEEN}",
        f"A lake .\n{SEEN}",
    ]
    assert {image.size for image, _ in seen} == {(768, 256), (60, 20)}
    assert "以" not in stub.bodies[0][2]["messages"][0]["content"]
    assert "en.json: 2 distinct images, 0 known, 2 to ask" in (printed := capsys.readouterr().out)
    assert "en.json: 2 distinct images with captions" in printed
    # a second run asks nothing, and without --look nobody has seen the boat
    assert look(lakes) == 0 and len(stub.asked) == 4
    stub.answer = lambda text, nth: DESCRIPTION
    other = lakes.parent / "blind.json"
    assert translate(lakes, other) == 1
    assert {"object", "colour"} <= {reason for reason, _ in load(rejected_of(other))[0]["problems"]}


def test_what_neither_names_is_asked_again_with_the_image(lakes, stub):
    answers = iter(["湖边有一座机场。", *[DESCRIPTION] * 2])
    stub.answer = lambda content, nth: next(answers) if shown(content)[1] else SEEN
    assert look(lakes, "--concurrency", 1) == 0
    again = [body["messages"] for _, _, body in stub.bodies if len(body["messages"]) > 2]
    assert again and all(len(messages[1]["content"]) == 2 for messages in again)
    assert "没有提到的" in again[0][3]["content"]


def test_a_look_that_is_no_english_is_asked_again_and_then_left_out(lakes, stub):
    stub.answer = saying("图中有一个湖。", "一个湖泊。")
    assert look(lakes, "--reask", 1) == 0
    looks = [body for _, _, body in stub.bodies if len(body["messages"][1]["content"]) == 1]
    assert len(looks) == 4
    assert "Write it again, in English" in looks[-1]["messages"][3]["content"]
    texts = [shown(content)[1] for content in stub.asked if len(content) == 2]
    assert set(texts) == {"A lake ."}


PAIRS = "湖上有几艘船？一艘船。\n船是什么颜色的？白色的。\n湖边有机场吗？有一座机场。"
ABSENT = "图中有飞机吗？没有，图中是湖泊。\n图中有船吗？没有船。\n有桥吗？有一座桥。"


@pytest.mark.parametrize(
    "style, answer, kept",
    (
        ("questions", PAIRS, [("湖上有几艘船？", "一艘船。"), ("船是什么颜色的？", "白色的。")]),
        ("absent", ABSENT, [("图中有飞机吗？", "没有，图中是湖泊。")]),
    ),
)
def test_questions_become_rows_of_the_trainer(lakes, stub, style, answer, kept):
    stub.answer = saying(answer)
    assert look(lakes, "--style", style) == 0
    rows = load(lakes.parent / "zh.json")
    assert len(rows) == 3 and rows[0]["split"] == "val"
    turns = [turn["content"] for turn in rows[0]["conversations"]]
    assert list(zip(turns[::2], turns[1::2])) == kept
    output = lakes.parent / "rows.json"
    options = ("--image-root", lakes.parent / "images", "--keep-duplicates")
    assert call(generate_prompt, "--input", lakes.parent / "zh.json", "--output", output,
                *options) == 0  # fmt: skip
    samples = load_rows(output)
    assert [(sample.question, sample.answer) for sample in samples] == kept * 3


@pytest.mark.parametrize(
    "text, style, reasons",
    (
        ("湖上有一艘船。", "questions", {"form"}),
        ("湖边有机场吗？有一座机场。", "questions", {"object", "scene"}),
        ("这里美吗？风景优美，令人向往。", "questions", {"subjective"}),
        ("图中有什么？", "questions", {"form"}),
        ("图中有湖吗？没有。", "absent", {"present"}),
        ("图中有别的吗？没有。", "absent", {"present"}),
        ("图中有飞机吗？有。", "absent", {"denial"}),
        ("图中有飞机吗？没有，只有一座桥。", "absent", {"object", "scene", "count"}),
    ),
)
def test_pairs_that_do_not_pass(text, style, reasons):
    found = {reason for reason, _ in seen_questions.problems(text, f"A lake .  {SEEN}", style)}
    assert found and found <= reasons


def test_numbers_and_line_breaks_do_not_matter():
    text = "图中有几艘船？一艘。它是白色的。湖边有什么？树。"
    assert seen_questions.pairs_of(text) == [
        ("图中有几艘船？", "一艘。它是白色的。"),
        ("湖边有什么？", "树。"),
    ]


def test_in_files_the_looks_come_first(lakes, stub):
    folder, answer = lakes.parent, saying()
    assert look(lakes, "--export-batch", folder / "r.jsonl") == 0

    def answered(path):
        lines = [
            result(line, answer(line["body"]["messages"][1]["content"], 0)) for line in load(path)
        ]
        return save(path.with_name(f"{path.stem}-results.jsonl"), lines)

    first = answered(folder / "r.jsonl")
    assert look(lakes, "--import-batch", first) == 0
    [following] = folder.glob("zh-requests-*.jsonl")
    assert (
        len(load(following)) == 2 and shown(load(following)[0]["body"]["messages"][1]["content"])[1]
    )
    second = answered(following)
    assert look(lakes, "--import-batch", first, second) == 0
    assert [row["caption"] for row in load(folder / "zh.json")] == [DESCRIPTION] * 3
    assert not stub.asked and len(load(journal_of(folder / "zh.json"))) == 8


def test_in_batches_by_the_api(lakes, api):  # noqa: F811
    api.answer = saying()
    options = ("--batch-api", "--base-url", api.url, "--poll", "0.01")
    assert look(lakes, *options) == 0
    assert [len(made) for made in api.made] == [2, 2]
    assert [row["caption"] for row in load(lakes.parent / "zh.json")] == [DESCRIPTION] * 3


def broken_lakes(lakes):
    """Another two images that cannot be read."""
    rows = load(lakes)
    for name in ("d", "e"):
        whole = (lakes.parent / "images" / "b.png").read_bytes()
        (lakes.parent / "images" / f"{name}.png").write_bytes(whole[:60] + name.encode())
        rows.append({"imged_id": f"{name}.png", "caption": "A lake .", "split": "val"})
    return save(lakes, rows)


@pytest.mark.parametrize("way", ("online", "files", "batches"))
def test_images_that_cannot_be_shown_are_listed_and_the_rest_goes_on(
    lakes,
    stub,
    api,  # noqa: F811
    capsys,
    way,
):
    stub.answer = api.answer = saying()
    folder, source = lakes.parent, broken_lakes(lakes)

    def run(*options):
        assert look(source, *options) == 1
        printed = capsys.readouterr()
        assert printed.out.count("d.png (") == printed.out.count("e.png (") == 1
        assert "2 records have no image that can be read" in printed.err
        assert printed.err.count("\n") == 1 and "Traceback" not in printed.err

    if way == "online":
        run()
    elif way == "batches":
        run("--batch-api", "--base-url", api.url, "--poll", "0.01")
    else:
        run("--export-batch", folder / "r.jsonl")
        for requests in (folder / "r.jsonl", folder / "zh-requests-2.jsonl"):
            contents = [line["body"]["messages"][1]["content"] for line in load(requests)]
            assert len(contents) == 2
            lines = [
                result(line, saying()(content, 0))
                for line, content in zip(load(requests), contents)
            ]
            run("--import-batch", save(folder / "results.jsonl", lines))
    assert [row["imged_id"] for row in load(folder / "zh.json")] == ["a.png", "b.png", "c.png"]
    # fixed, it is the only one that is asked
    for name in "de":
        Image.new("RGB", (30, 30), "green").save(folder / "images" / f"{name}.png")
    stub.asked.clear()
    assert look(source) == 0 and len(stub.asked) == 2 and len(load(folder / "zh.json")) == 5


def test_a_missing_image_or_none_that_can_be_read_stops_before_anything_is_asked(
    lakes, stub, capsys
):
    images = lakes.parent / "images"
    for name in "abc":
        (images / f"{name}.png").write_bytes(b"no image")
    assert look(lakes) == 1
    assert "3 images of --look" in (message := capsys.readouterr().err) and "all there" in message
    (images / "b.png").unlink()
    assert look(lakes) == 1 and not stub.asked
    assert "1 images are not in --look" in capsys.readouterr().err


def test_what_was_seen_serves_the_other_outputs_beside_it(lakes, stub):
    stub.answer = saying()
    assert look(lakes) == 0
    stub.asked.clear()
    stub.answer = saying(PAIRS)
    other = lakes.parent / "questions.json"
    options = ("--look", lakes.parent / "images", "--style", "questions")
    assert translate(lakes, other, *options) == 0 and len(load(other)) == 3
    # no image is looked at a second time
    assert len(stub.asked) == 2 and all(shown(content)[1] for content in stub.asked)
    # and the first output may go
    for path in (lakes.parent / "zh.json", journal_of(lakes.parent / "zh.json"), other):
        path.unlink()
    assert translate(lakes, other, *options) == 0 and len(stub.asked) == 2 and len(load(other)) == 3


def test_other_journals_are_read_only_for_images_that_nobody_saw(lakes, stub, capsys):
    journal_of(lakes.parent / "other.json").write_text("torn\n")
    stub.answer = saying()
    said = []
    for _ in range(2):
        assert look(lakes) == 0
        said.append(capsys.readouterr().err)
    assert "skipped 1 unreadable lines" in said[0] and not said[1]


def test_chinese_captions_are_not_compared(tmp_path, lakes, stub, capsys):
    rows = [{"imged_id": "a.png", "caption": "一个湖泊。"}]
    assert look(save(lakes, rows)) == 1 and not stub.asked
    assert "1 captions are Chinese already (a.png)" in capsys.readouterr().err


def test_a_dry_run_counts_the_images(lakes, stub, capsys):
    assert look(lakes, "--dry-run") == 0 and not stub.asked
    tokens = int(capsys.readouterr().out.partition("dry run: about ")[2].split()[0])
    assert 2 * 800 < tokens < 2 * 1100


def test_an_endpoint_without_eyes_is_one_line(lakes, stub, capsys):
    stub.answer = lambda content, nth: error(400, "this model takes no image_url")
    assert look(lakes) == 1
    assert "takes no image_url" in (message := capsys.readouterr().err) and message.count("\n") == 1


@pytest.mark.parametrize(
    "options, words",
    (
        (("--style", "absent"), "--style absent is about images: name their folder by --look"),
        (("--style", "questions", "--look", ".", "--trim"), "keeps what the gate passes"),
        (("--look", ".", "--memory-out", "x.json"), "--look does not go with --check, --memory"),
        (("--look", "no-folder"), "--look no-folder: no such folder"),
    ),
)
def test_options_that_make_no_sense(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        translation_en2zh.main(list(options))
    assert words in capsys.readouterr().err


def test_a_bad_pair_is_named_in_the_request_to_write_it_again(lakes, stub):
    answers = iter(["湖上有一艘船。"] + [PAIRS] * 2)
    stub.answer = lambda content, nth: next(answers) if shown(content)[1] else SEEN
    assert look(lakes, "--style", "questions", "--concurrency", 1) == 0
    [again] = [body["messages"] for _, _, body in stub.bodies if len(body["messages"]) > 2]
    assert "应为一问一答" in again[3]["content"] and again[3]["content"].endswith("问答。")
