"""The quality gate: for each reason sentences that it must flag and sentences that it must pass."""

import json
import random

import pytest

from data import quality
from data.synthetic import demo_scenes
from model.errors import UserError

ENGLISH = (
    "Two white airplanes are parked at the airport .  "
    "There are two planes and some cars beside a building .  "
    "Many trees are around the airport .  "
)


def reasons(target, source=ENGLISH, **options):
    return {reason for reason, _ in quality.problems(target, source, **options)}


@pytest.mark.parametrize(
    "target",
    (
        "机场上停着两架白色飞机，旁边有一些汽车和一座建筑物。",
        "这是一个机场，周围有许多树木，停着2架飞机。",
        "两架白色的飞机停在建筑旁，附近停着几辆车。",
        "机场里没有船。",
        "树木环绕着机场，机场内停有两架飞机。",
    ),
)
def test_faithful_descriptions_pass(target):
    assert quality.problems(target, ENGLISH) == []


@pytest.mark.parametrize(
    "target, reason",
    (
        ("Two airplanes 停在 the airport 旁边。", "chinese"),
        ("飞机", "length"),
        ("机场上停着两架白色飞机，旁边有一些汽车。" * 6, "length"),
        ("抱歉，我无法提供图像的描述。", "refusal"),
        ("作为人工智能，我看不到图像里的飞机。", "refusal"),
        ("两架白色飞机停在airport里，旁边有汽车。", "latin"),
        ("以下是翻译：两架飞机停在机场。", "echo"),
        ("根据这些英文句子，机场里有飞机。", "echo"),
        ("机场里有两架飞机，给人繁忙的感觉。", "subjective"),
        ("机场里有飞机，环境宁静。", "subjective"),
        ("飞机停在机场，充满生机。", "subjective"),
        ("这是北京的一个机场，停着飞机。", "unseen"),
        ("照片拍摄于2015年，机场里有飞机。", "unseen"),
        ("机场占地约三平方公里，停着飞机。", "unseen"),
        ("机场里有飞机，可能在等待起飞。", "unseen"),
        ("机场里停着飞机，方便人们出行。", "unseen"),
        ("机场绿意盎然。", "subjective"),
        ("机场天气晴好。", "unseen"),
        ("机场里有两架巨大的飞机。", "attribute"),
        ("两架飞机停在机场左侧。", "position"),
        ("两架飞机停在机场的北部。", "position"),
        ("机场里有飞机，旁边是一条河。", "object"),
        ("住宅区旁停着两架飞机。", "scene"),
        ("机场里有两架红色的飞机。", "colour"),
        ("机场里停着三架飞机。", "count"),
        ("机场里有飞机和四辆汽车。", "count"),
    ),
)
def test_each_reason(target, reason):
    assert reason in reasons(target)


@pytest.mark.parametrize(
    "target, source",
    (
        ("住宅区里有一些建筑物。", "There are houses in a residential area ."),
        ("海滩上有沙子和海浪。", "Waves come to the beach ."),
        ("一条繁忙的道路，路上有许多车辆。", "A busy road with many cars ."),
        ("宁静的海滩上没有人。", "A peaceful beach ."),
        ("两条道路交叉，四个角落都有房屋。", "An intersection with houses at the corners ."),
        ("一条道路跨过另一条，共有两条道路。", "A road across another ."),
        ("河流左侧是绿色的草地。", "Green grass is on the left of the river ."),
        ("图中有一个T型路口。", "There is a T-junction ."),
        ("两排绿色的树木沿路排列。", "Two rows of green trees along the road ."),
        ("弯曲的河流穿过森林。", "A curved river goes through a forest ."),
    ),
)
def test_what_the_english_supports_passes(target, source):
    assert quality.problems(target, source) == []


def test_objects_are_granted_one_way_only():
    assert reasons("图中有一些房屋。", "There are some buildings .") == {"object"}
    assert reasons("图中有一些建筑。", "There are some houses .") == set()


def test_a_number_that_the_english_has_for_something_else_is_a_wrong_count():
    assert reasons("两座房屋旁停着三辆车。", "Three houses and two cars .") == {"count"}
    assert reasons("三座房屋旁停着两辆车。", "Three houses and two cars .") == set()


def test_an_echo_of_the_instruction_and_the_allowance_of_a_style():
    instruction = "请把它们合并成一段忠实通顺的中文描述，不得添加内容"
    assert "echo" in reasons(
        "机场。请把它们合并成一段忠实通顺的中文描述。", instruction=instruction
    )
    long = "机场上停着两架白色飞机，旁边有一些汽车。" * 5
    assert "length" in reasons(long) and "length" not in reasons(long, allowance=2)


# nothing passes, or too little
@pytest.mark.parametrize(
    "target, kept",
    (
        ("机场上停着两架白色飞机。整个画面给人宁静的感觉。", "机场上停着两架白色飞机。"),
        ("机场位于北京。两架飞机停在机场。", "两架飞机停在机场。"),
        # what linked it to the sentence before goes
        ("机场位于北京。此外，两架飞机停在机场。", "两架飞机停在机场。"),
        # "they" would be nobody
        ("机场位于北京。它们停在建筑旁。机场周围有许多树木。", "机场周围有许多树木。"),
        ("两架飞机停在机场。它们停在建筑旁。", "两架飞机停在机场。它们停在建筑旁。"),
        (
            "两架飞机停在机场。" + "机场周围有许多树木，旁边有一座建筑物和一些汽车。" * 6,
            "两架飞机停在机场。" + "机场周围有许多树木，旁边有一座建筑物和一些汽车。" * 3,
        ),
        ("机场里有飞机（给人宁静的感觉。）机场周围有许多树木。", "机场周围有许多树木。"),
        ("机场位于北京。周围还有许多树木。", ""),
        # in mid-thought
        ("机场旁停着飞机。周围还有许多树木。", "机场旁停着飞机。周围还有许多树木。"),
        ("这是一个宁静的机场。图中停着两架飞机。", ""),  # the scene would be lost
        ("机场位于北京。最后，两架飞机停在机场。", "两架飞机停在机场。"),
        ("机场位于北京，停着三架飞机。", ""),
        ("飞机。机场位于北京。", ""),
    ),
)
def test_trimming_keeps_the_sentences_that_pass(target, kept):
    assert quality.trimmed(target, ENGLISH) == kept
    assert not kept or quality.problems(kept, ENGLISH) == []


@pytest.mark.parametrize(
    "target, source, kept",
    (
        # a park is another scene
        (
            "移动房屋公园周围有飞机。公园内有道路穿过。",
            "mobile homes and a road in the mobile home park",
            "",
        ),
        (
            "移动房屋公园内有道路穿过。公园里有飞机。",
            "mobile homes and a road in the mobile home park",
            "移动房屋公园内有道路穿过。",
        ),
        # no more was named
        (
            "公园周围有飞机。公园内有道路穿过。",
            "mobile homes and a road in the mobile home park",
            "公园内有道路穿过。",
        ),
        (
            "住宅区里停着飞机。房屋被灌木丛环绕。",
            "a house surrounded by bushes in the residential area",
            "",
        ),
    ),
)
def test_trimming_does_not_replace_the_scene_by_what_it_implies(target, source, kept):
    assert quality.trimmed(target, source) == kept


def test_trimming_to_a_number_of_sentences():
    target = (
        "机场。机场里有飞机，环境宁静。机场上停着两架白色飞机。附近有汽车。机场周围有许多树木。"
    )
    # 机场 alone would be too short
    assert [quality.trimmed(target, ENGLISH, sentences=number) for number in (1, 2, 3)] == [
        "机场。机场上停着两架白色飞机。",
        "机场。机场上停着两架白色飞机。",
        "机场。机场上停着两架白色飞机。附近有汽车。",
    ]


def test_the_complaint_names_every_problem_in_chinese():
    said = quality.complaint(quality.problems("住宅区里宁静的河流旁有三架红色飞机。", ENGLISH))
    assert all(word in said for word in ("住宅区", "宁静", "河", "红色", "3", "只输出"))
    assert set(quality.COMPLAINTS) == {
        "chinese",
        "length",
        "latin",
        "object",
        "scene",
        "colour",
        "count",
        "cut",
        "marks",
        *(reason for reason, _, _ in quality.rules()),
    }


RULE = {"reason": "unseen", "chinese": ["北京"], "english": []}


@pytest.mark.parametrize(
    "entries, words",
    (
        ({}, "expected a JSON list"),
        ([RULE, "x"], "rule 1: expected the keys reason, chinese and english"),
        ([{**RULE, "reason": "mood"}], "rule 0: reason 'mood': expected one of chinese, length"),
        ([{**RULE, "chinese": "北京"}], "chinese: expected a list of patterns, got '北京'"),
        ([{**RULE, "chinese": []}], "chinese: expected at least one pattern"),
        ([{**RULE, "english": [1]}], "english: expected a list of patterns, got [1]"),
        ([{**RULE, "chinese": ["(北京"]}], "rule 0: missing ), unterminated subpattern"),
    ),
)
def test_a_broken_file_of_rules_is_one_line(tmp_path, entries, words):
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        quality.read_rules(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_are_read_once():
    assert quality.rules() is quality.rules() and len(quality.rules()) >= 40


def test_drawn_scenes_pass_where_the_description_says_what_the_captions_say():
    """Both come from the same facts: only facts that no caption names may be flagged."""
    flagged = [
        quality.problems(demo_scenes.describe_zh(facts), "  ".join(demo_scenes.describe_en(facts)))
        for scene in demo_scenes.SCENES
        for k in range(20)
        for facts in [demo_scenes.facts(scene, random.Random(f"gate/{scene}/{k}"))]
    ]
    known = {
        ("object", "zebra crossing"),
        ("scene", "airport"),
        ("object", "car"),
        ("attribute", "弯曲"),
    }
    assert {problem for problems in flagged for problem in problems} <= known
    assert sum(map(bool, flagged)) <= 0.1 * len(flagged)


def test_report_counts_rows_once_per_reason_and_keeps_a_few_examples():
    report = quality.Report()
    for k in range(8):
        report.add(
            f"{k}.tif",
            "文",
            [("object", "car"), ("object", "road"), ("colour", "red")] if k else [],
        )
    found = report.as_dict()
    assert (found["rows"], found["passed"], found["rejected"]) == (8, 1, 7)
    assert {
        reason: (entry["rows"], len(entry["examples"]))
        for reason, entry in found["reasons"].items()
    } == {"object": (7, 5), "colour": (7, 5)}
    assert found["reasons"]["object"]["examples"][0] == {
        "imged_id": "1.tif",
        "words": ["car", "road"],
        "text": "文",
    }
    assert str(report).splitlines()[
        0
    ] == "quality gate: 8 rows, 1 passed, 7 rejected" and "1.tif: car; road" in str(report)
