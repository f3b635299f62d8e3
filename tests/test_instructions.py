"""Questions made from captions and lexicon, against what a person reads in the captions."""

import json
import random
import re
from collections import Counter

import pytest
from stages import call

from data import generate_prompt, instructions

# file name: (Chinese, English sentences)
SET = {
    "1.tif": (
        "机场的停机坪上停着两架白色飞机，旁边有一条跑道。",
        (
            "There are two white planes at the airport .",
            "Two planes are parked at the airport beside a runway .",
            "It is an airport with two planes .",
            "There is a small pool near the airport .",
            "Two planes and a runway at the airport .",
        ),
    ),
    "2.tif": (
        "住宅区里有许多红色屋顶的房屋，没有游泳池。",
        (
            "There are many houses with red roofs in the residential area .",
            "A residential area with many houses .",
            "Lots of houses with red roofs .",
            "This is a residential area .",
            "Many houses are in the residential area .",
        ),
    ),
    "3.tif": (
        "海滩边有海浪，沙滩上没有人。",
        (
            "It is a beach with waves .",
            "Waves beat the beach .",
            "A beach beside the sea .",
            "There is a beach .",
            "The sea and the beach .",
        ),
    ),
    "4.tif": (
        "一条河流穿过森林，河上有三艘船。",
        (
            "A river goes through the forest with three boats .",
            "There are three boats on the river .",
            "Three boats on a river .",
            "There are four boats on the river .",
            "A river in the forest .",
        ),
    ),
    "5.tif": ("停车场里停着许多汽车。", ("Many cars in the parking lot .",) * 5),
}
EXISTENCE = re.compile(r"(?:图中有没有|图中有|能看到|是否有)(?!哪些|几)(.+?)[吗？]")


def facts_of(name, sentences=True):
    return instructions.facts(SET[name][0], SET[name][1] if sentences else ())


def statistics_of(names=SET):
    statistics = instructions.Statistics()
    for name in names:
        statistics.add(facts_of(name).present)
    return statistics


def run(folder, tasks, *options, names=None, sentences=True):
    """Rows of the set by file name, as the trainer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names or SET)
    (folder / "zh.json").write_text(
        json.dumps([{"imged_id": name, "caption": SET[name][0]} for name in names])
    )
    captions = [
        {"filename": name, "split": "train", "sentences": [{"raw": raw} for raw in SET[name][1]]}
        for name in names
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": captions}))
    options = [*options, *(("--captions", str(folder / "dataset.json")) if sentences else ())]
    status = call(
        generate_prompt,
        "--input",
        folder / "zh.json",
        "--output",
        folder / "rows.json",
        "--no-image-check",
        "--tasks",
        *tasks,
        *options,
    )
    assert status == 0
    rows = {name: [] for name in names}
    for row in json.loads((folder / "rows.json").read_text(encoding="utf-8")):
        rows[row["img"].removeprefix("images/")].append(row)
    return rows


def asked(rows):
    """{(object word, "有" or "没有")} of all yes / no questions."""
    found = Counter()
    for row in rows:
        match = EXISTENCE.search(row["prompt"])
        if match:
            found[match[1], "没有" if row["label"].startswith("没有") else "有"] += 1
    return found


def test_scene_objects_and_counts_are_what_the_sentences_agree_on(tmp_path):
    rows = run(tmp_path, ["scene", "objects", "counting=9"])
    answers = {name: [row["label"] for row in part] for name, part in rows.items()}
    assert answers["1.tif"][:2] == ["机场。", "图中有飞机和跑道。"]
    # two sentences have a runway, four two planes
    assert sorted(answers["1.tif"][2:]) == ["一条。", "两架。"]
    assert answers["2.tif"] == ["住宅区。", "图中有屋顶和房屋。"]  # many is no number
    assert answers["3.tif"] == ["海滩。", "图中有海浪和海。"]
    assert not any("艘" in text for text in answers["4.tif"])  # three and four: nobody knows
    assert answers["5.tif"] == ["停车场。", "图中有汽车。"]
    for part in rows.values():
        for row in part:
            if row["label"] in ("两架。", "一条。"):
                assert re.search("几|多少", row["prompt"]) and ("飞机" in row["prompt"]) == (
                    row["label"] == "两架。"
                )


@pytest.mark.parametrize(
    "description, sentences, scene",
    (
        # one, and the description
        (
            "灌木丛里有许多植物。",
            ("This is a chaparral .", "Many plants are on the ground ."),
            "chaparral",
        ),
        ("地上有许多植物。", ("This is a chaparral .", "Many plants are on the ground ."), None),
        (
            "房屋周围有农田。",
            (
                "A residential area .",
                "A residential area .",
                "There is farmland .",
                "Many houses .",
            ),
            "residential area",
        ),
        # as many for the one as for the other
        ("河流旁是海滩。", ("A beach .", "A river ."), None),
        ("移动房屋公园。", ("A mobile home park .", "Many mobile homes ."), "mobile home park"),
    ),
)
def test_the_scene_is_what_most_sentences_name(description, sentences, scene):
    assert instructions.facts(description, sentences).scene == scene


def test_yes_and_no_are_balanced_and_no_is_honest(tmp_path):
    """Over many seeds: as many 有 as 没有 for each image.

    Nothing is denied that a text names, implies or makes likely.
    """
    seen = {name: Counter() for name in SET}
    for seed in range(40):
        for name, part in run(tmp_path, ["existence=2"], "--seed", str(seed)).items():
            answers = Counter(answer for _, answer in asked(part).elements())
            assert answers["有"] == answers["没有"] > 0
            seen[name].update(asked(part))
    yes, no = (
        {name: {word for word, answer in found if answer == which} for name, found in seen.items()}
        for which in ("有", "没有")
    )
    assert yes == {
        "1.tif": {"飞机", "跑道"},
        "2.tif": {"房屋", "屋顶"},
        "3.tif": {"海浪", "海"},
        "4.tif": {"河流", "船", "森林"},
        "5.tif": {"汽车"},
    }
    assert not no["1.tif"] & {
        "飞机",
        "跑道",
        "道路",
        "汽车",
        "建筑物",
        "航站楼",
        "草坪",
        "游泳池",
        "水面",
        "湖",
        "河流",
    }
    assert "游泳池" in no["2.tif"]  # the description says so
    assert not no["2.tif"] & {
        "房屋",
        "屋顶",
        "建筑物",
        "工厂",
        "道路",
        "汽车",
        "树木",
        "草坪",
        "移动房屋",
    }
    assert not no["3.tif"] & {"海", "海浪", "沙子", "水面", "湖", "河流", "船", "遮阳伞", "行人"}
    assert not no["4.tif"] & {"河流", "船", "森林", "树木", "草坪", "灌木", "水面", "湖", "桥梁"}
    assert not no["5.tif"] & {"汽车", "卡车", "公交车", "道路", "停车位", "建筑物", "树木"}
    assert all(len(words) > 5 for words in no.values())


def test_without_sentences_the_description_is_believed(tmp_path):
    assert set(facts_of("4.tif", sentences=False).counts.items()) >= {("boat", 3)}
    assert facts_of("4.tif", sentences=True).counts.keys() <= {"river"}
    rows = run(tmp_path, ["counting=5"], sentences=False)
    assert "三艘。" in [row["label"] for row in rows["4.tif"]]


def test_rows_hang_on_seed_and_file_name_not_on_the_order(tmp_path):
    tasks = ["description=2", "scene=0.5", "objects", "existence=2", "counting", "dialogue=2"]
    rows = run(tmp_path / "a", tasks, "--seed", "3")
    assert run(tmp_path / "b", tasks, "--seed", "3", names=list(SET)[::-1]) == rows
    assert run(tmp_path / "c", tasks, "--seed", "4") != rows
    for name, part in rows.items():
        prompts = [row["prompt"] for row in part if row.get("label") == SET[name][0]]
        assert len(set(prompts)) == 2  # two phrasings, not one twice


def test_phrasings_vary_and_shares_are_kept(tmp_path):
    captions = [{"imged_id": f"{i}.tif", "caption": "湖边停着一辆汽车。"} for i in range(400)]
    (tmp_path / "zh.json").write_text(json.dumps(captions))
    assert (
        call(
            generate_prompt,
            "--input",
            tmp_path / "zh.json",
            "--output",
            tmp_path / "rows.json",
            "--no-image-check",
            "--tasks",
            "description=0.5",
            "existence=1.25",
        )
        == 0
    )
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    descriptions = [row for row in rows if row["label"] == captions[0]["caption"]]
    assert 160 <= len(descriptions) <= 240 and {row["prompt"] for row in descriptions} == set(
        instructions.QUESTIONS["description"]
    )
    assert 2 * 400 * 1.15 <= len(rows) - len(descriptions) <= 2 * 400 * 1.35
    styles = {
        re.sub("湖泊|湖|汽车", "X", row["prompt"])
        for row in rows
        if row not in descriptions and re.search("湖|汽车", row["prompt"])
    }
    assert len(styles) == len(instructions.QUESTIONS["existence"])
    for row in rows:
        if "只回答" in row["prompt"]:
            assert row["label"] in ("有。", "没有。")


def test_dialogues_are_what_the_trainer_reads(tmp_path):
    from model.row_forms import read_form

    lengths = Counter()
    for seed in range(20):
        for name, part in run(tmp_path, ["dialogue"], "--seed", str(seed)).items():
            for row in part:
                assert list(row) == ["img", "conversations"]
                rounds = read_form(row).rounds
                lengths[len(rounds)] += 1
                scene = {
                    "1.tif": "机场。",
                    "2.tif": "住宅区。",
                    "3.tif": "海滩。",
                    "4.tif": "河流。",
                    "5.tif": "停车场。",
                }
                assert rounds[0][1] in (SET[name][0], scene[name])
                assert len({question for question, _ in rounds}) == len(rounds)
    assert set(lengths) == {2, 3, 4}


def test_negatives_by_strategy():
    """popular: the most frequent first; adversarial: by how often together; balanced: as often."""
    statistics = instructions.Statistics()
    for names in (
        ("boat", "river"),
        ("boat", "river", "airplane"),
        ("airplane", "tennis court"),
        ("airplane", "boat"),
        ("airplane", "tennis court"),
        ("airplane",),
    ):
        statistics.add(names)
    facts = instructions.Facts(
        "", None, ("tennis court",), ("boat", "river", "airplane", "bridge"), {}
    )
    first = {
        how: instructions.absent_objects(facts, statistics, random.Random(0), 4, how)
        for how in instructions.NEGATIVES
    }
    assert first["popular"] == ["airplane", "boat", "river", "bridge"]
    lake = instructions.Facts(
        "", None, ("river",), ("boat", "airplane", "tennis court", "bridge"), {}
    )
    assert instructions.absent_objects(lake, statistics, random.Random(0), 4, "adversarial") == [
        "boat",
        "airplane",
        "tennis court",
        "bridge",
    ]
    for how in ("random", "balanced"):
        assert sorted(first[how]) == sorted(facts.absent)
        drawn = Counter(
            instructions.absent_objects(facts, statistics, random.Random(seed), 1, how)[0]
            for seed in range(900)
        )
        share = {name: drawn[name] / 900 for name in facts.absent}
        expected = (
            {"airplane": 0.5, "boat": 0.3, "river": 0.2, "bridge": 0}
            if how == "balanced"
            else dict.fromkeys(facts.absent, 0.25)
        )
        assert all(abs(share[name] - expected[name]) < 0.06 for name in facts.absent)
    asked_ = instructions.existence_questions(
        lake, statistics, random.Random(1), pairs=3, negatives="popular"
    )
    # one is there, so one negative
    assert sorted(asked_) == [("airplane", False), ("river", True)]


@pytest.mark.parametrize("negatives", instructions.NEGATIVES)
def test_negatives_option_reaches_the_rows(tmp_path, negatives):
    rows = run(tmp_path, ["existence"], "--negatives", negatives)
    words = {word for part in rows.values() for word, answer in asked(part) if answer == "没有"}
    assert words
    if negatives == "popular":
        best = {
            name: min((-statistics_of().count[item], item) for item in facts_of(name).absent)
            for name in SET
        }
        assert len(words) <= len(set(best.values()))


@pytest.mark.parametrize(
    "options, words",
    (
        (["--tasks", "poem"], "poem: expected one of description"),
        (["--tasks", "scene=x"], "scene=x: expected a number"),
        (["--tasks", "scene=0"], "more than 0"),
        (["--tasks", "scene=nan"], "more than 0"),
        (["--tasks", "scene", "--prompt", "什么？"], "leave one of them out"),
    ),
)
def test_tasks_that_make_no_sense_are_refused_at_parse_time(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        generate_prompt.main(options)
    assert words in capsys.readouterr().err


def test_captions_that_say_nothing_give_no_rows(tmp_path, capsys):
    (tmp_path / "zh.json").write_text(json.dumps([{"imged_id": "1.tif", "caption": "看不清楚。"}]))
    assert (
        call(
            generate_prompt,
            "--input",
            tmp_path / "zh.json",
            "--output",
            tmp_path / "rows.json",
            "--no-image-check",
            "--tasks",
            "counting",
        )
        == 1
    )
    assert "no rows: the captions say too little" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zh.json"]


def test_numerals():
    assert [instructions.numeral(n) for n in (1, 2, 9, 10, 12, 20)] == [
        "一",
        "两",
        "九",
        "十",
        "十二",
        "二十",
    ]
