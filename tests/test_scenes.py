"""The drawn sets: same seed, same bytes; captions state the facts; nothing leaks between splits."""

import hashlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from stages import call

from data import transform
from data.synthetic import demo_scenes, tiny_pictures

DATA = Path(__file__).resolve().parents[1] / "data"

QUESTION = "这张遥感图像展现了什么场景？"
# Written out again, so that a slip in the tables of demo_scenes.py shows.
SCENES = {
    "farmland": ("farmland", "农田"),
    "beach": ("beach", "海滩"),
    "residential": ("residential area", "住宅区"),
    "runway": ("runway", "跑道"),
    "parking": ("parking lot", "停车场"),
    "tanks": ("storage tank", "储罐"),
    "tennis": ("tennis court", "网球场"),
    "baseball": ("baseball diamond", "棒球场"),
    "forest": ("forest", "森林"),
    "river": ("river", "河流"),
    "intersection": ("intersection", "十字路口"),
    "harbour": ("harbour", "港口"),
}
NUMBERS = {
    1: ("one", "一"),
    2: ("two", "两"),
    3: ("three", "三"),
    4: ("four", "四"),
    5: ("five", "五"),
    6: ("six", "六"),
    7: ("seven", "七"),
    8: ("eight", "八"),
    9: ("nine", "九"),
    10: ("ten", "十"),
}
COLOURS = {
    "white": "白色",
    "red": "红色",
    "gray": "灰色",
    "blue": "蓝色",
    "green": "绿色",
    "brown": "棕色",
    "yellow": "黄色",
    "dark green": "深绿色",
}
COUNTED = {
    "fields": "块",
    "umbrellas": "把",
    "houses": "栋",
    "rows": "排",
    "tanks": "个",
    "courts": "个",
    "diamonds": "个",
    "cars": "辆",
    "piers": "座",
    "boats": "艘",
}
SIDES = {
    "left": ("左侧", (0, 48, 8, 80)),
    "right": ("右侧", (120, 48, 128, 80)),
    "top": ("上方", (48, 0, 80, 8)),
    "bottom": ("下方", (48, 120, 80, 128)),
}


def draw(folder, *options):
    assert call(demo_scenes, "--output", folder, *options) == 0
    return json.loads((folder / "dataset.json").read_text("utf-8"))


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    draw(folder, "--train", 2, "--val", 1, "--test", 1)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    assert call(tiny_pictures, "--output", folder, "--pictures", "120") == 0
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups")
@pytest.mark.parametrize(
    "words, pattern",
    [
        ("demo_scenes.py --train 2000", "images/*.tif"),
        ("tiny_pictures.py --pictures 20000", "pictures/*.jpg"),
    ],
    ids=["demo_scenes", "tiny_pictures"],
)
def test_ctrl_c_ends_all_processes_in_one_line(words, pattern, tmp_path):
    """In a terminal it comes to each process that draws as well."""
    script, *options = words.split()
    process = subprocess.Popen(
        [sys.executable, DATA / "synthetic" / script, "--output", tmp_path, *options],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    while process.poll() is None and not any(tmp_path.glob(pattern)):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    line = f"{script}: interrupted; the same command continues from what is saved\n"
    assert (process.communicate()[1], process.returncode) == (line, 130)


def tiny_rows(folder):
    return {
        split: json.loads((folder / f"base-{split}.json").read_text("utf-8"))
        for split in ("train", "val")
    }


def random_facts(scene, count=80):
    return [demo_scenes.facts(scene, random.Random(f"check/{scene}/{k}")) for k in range(count)]


def test_layout_of_the_set(small):
    data = json.loads((small / "dataset.json").read_text("utf-8"))
    assert data["dataset"] == "demo" and len(data["images"]) == 12 * 4
    assert {image["filename"] for image in data["images"]} == set(files(small))
    for image in data["images"]:
        assert len(image["sentences"]) == 5 and all(
            s["raw"].endswith(" .") for s in image["sentences"]
        )
        with Image.open(small / "images" / image["filename"]) as drawn:
            assert (drawn.format, drawn.size, drawn.mode) == ("TIFF", (128, 128), "RGB")


def test_same_seed_same_bytes_whatever_the_numbers_and_processes(small, tmp_path):
    # above 100 images: drawn by several processes
    draw(tmp_path / "more", "--train", 9, "--val", 1, "--test", 0)
    some, more = files(small), files(tmp_path / "more")
    shared = set(some) & set(more)
    assert len(shared) == 12 * 3 and all(some[name] == more[name] for name in shared)
    draw(tmp_path / "other", "--train", 1, "--val", 0, "--test", 0, "--seed", 2)
    assert not set(files(tmp_path / "other").values()) & set(some.values())


def test_no_image_twice(small):
    hashes = [
        hashlib.sha256(Image.open(path).tobytes()).digest() for path in (small / "images").iterdir()
    ]
    assert len(set(hashes)) == len(hashes)


def test_second_run_does_nothing_and_a_lost_image_comes_back(small, capsys):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    draw(small, "--train", 2, "--val", 1, "--test", 1)
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    lost = small / "images" / "river_train_001.tif"
    content = lost.read_bytes()
    lost.unlink()
    draw(small, "--train", 2, "--val", 1, "--test", 1)
    assert "1 images drawn" in capsys.readouterr().out and lost.read_bytes() == content


def test_other_settings_draw_again(tmp_path):
    draw(tmp_path, "--train", 1, "--val", 0, "--test", 0)
    first = files(tmp_path)
    assert len(draw(tmp_path, "--train", 1, "--val", 0, "--test", 0, "--seed", 3)["images"]) == 12
    assert all(first[name] != content for name, content in files(tmp_path).items())


def test_memory_translates_what_transform_writes(small, tmp_path):
    assert call(transform, "--input", small / "dataset.json", "--output", tmp_path / "en.json") in (
        0,
        None,
    )
    captions = {row["caption"] for row in json.loads((tmp_path / "en.json").read_text("utf-8"))}
    memory = [json.loads(line) for line in (small / "memory.jsonl").read_text("utf-8").splitlines()]
    assert {record["source"] for record in memory} == captions and len(memory) == len(captions)


@pytest.mark.parametrize("scene", SCENES)
def test_captions_say_what_the_facts_say(scene):
    targets = {}
    for f in random_facts(scene):
        english, chinese = demo_scenes.describe_en(f), demo_scenes.describe_zh(f)
        assert len(set(english)) == 5 and all(
            re.fullmatch(r"[A-Z][a-z, ]+ \.", sentence) for sentence in english
        )
        assert all(SCENES[scene][0] in sentence.lower() for sentence in english)
        assert SCENES[scene][1] in chinese and 15 <= len(chinese) <= 40
        for other, (name, word) in SCENES.items():
            if other != scene:
                assert word not in chinese and not any(
                    name in sentence.lower() for sentence in english
                )
        counts = {COUNTED[key]: NUMBERS[value] for key, value in f.items() if key in COUNTED}
        for number, measure in re.findall("([一二两三四五六七八九十]+)(.)", chinese):
            assert measure not in counts or counts[measure][1] == number
        roads = {"two"} if scene == "intersection" else set()
        said = set(" ".join(english).lower().split()) & {
            english_word for english_word, _ in NUMBERS.values()
        }
        assert said <= roads | {english_word for english_word, _ in counts.values()}
        known = {COLOURS[v] for v in f.values() if v in COLOURS}
        stated = set(re.findall("深绿色|[白红灰蓝绿棕黄]色", chinese))
        # what every image of the scene shows
        constant = {
            "beach": {"蓝色"},
            "runway": {"灰色", "白色"},
            "parking": {"灰色", "白色"},
            "tennis": {"白色"},
            "baseball": {"绿色"},
            "harbour": {"白色"},
        }.get(scene, set())
        loose = {"棕色", "绿色"} if "green" in str(f.get("ground")) else set()
        assert stated <= known | constant | loose
        for side in SIDES:
            if side in (f.get("sea"), f.get("land")):
                assert not any(SIDES[s][0] in chinese for s in SIDES if s != side)
        # a source has one translation
        assert targets.setdefault("".join(english), chinese) == chinese


@pytest.mark.parametrize(
    "scene, colour, count",
    [
        ("farmland", "colour", "fields"),
        ("tanks", "colour", "tanks"),
        ("residential", "roof", "houses"),
    ],
)
def test_each_count_and_colour_is_said_somewhere(scene, colour, count):
    for f in random_facts(scene):
        text = " ".join(demo_scenes.describe_en(f)).lower()
        assert f[colour] in text and NUMBERS[f[count]][0] in text
        assert COLOURS[f[colour]] in demo_scenes.describe_zh(f) or f["style"] % 4 == 1


def test_the_sea_lies_where_the_captions_say():
    for k in range(12):
        image, f = demo_scenes.render("beach", random.Random(k))
        blueness = {}
        for side, (_, box) in SIDES.items():
            mean = image.crop(box).resize((1, 1), Image.Resampling.BOX)
            red, _, blue = mean.getpixel((0, 0))
            blueness[side] = blue - red
        assert max(blueness, key=blueness.get) == f["sea"]


def test_render_repeats_itself_and_keeps_the_facts():
    for scene in SCENES:
        (one, f), (two, g) = (demo_scenes.render(scene, random.Random(5)) for _ in range(2))
        assert one.tobytes() == two.tobytes() and f == g == demo_scenes.facts(
            scene, random.Random(5)
        )


def test_light_differs_from_image_to_image_but_not_in_the_plain_set():
    deviation = {}
    for plain in (False, True):
        means = []
        for k in range(12):
            image, _ = demo_scenes.render("runway", random.Random(k), plain)
            means.append(statistics.mean(image.convert("L").tobytes()))
        deviation[plain] = statistics.stdev(means)
    assert deviation[False] > 1.5 * deviation[True]


def test_plain_leaves_facts_out(tmp_path):
    """Each description without --plain is the plain one with something put in."""
    for name, options in (("varied", ()), ("plain", ("--plain",))):
        draw(tmp_path / name, "--train", 2, "--val", 0, "--test", 0, *options)
    captions = {}
    for name in ("varied", "plain"):
        lines = (tmp_path / name / "memory.jsonl").read_text("utf-8").splitlines()
        captions[name] = {r["source"]: r["target"] for r in map(json.loads, lines)}
    assert captions["varied"].keys() == captions["plain"].keys()
    for source, plain in captions["plain"].items():
        letters = iter(captions["varied"][source])
        assert all(letter in letters for letter in plain)
    assert captions["varied"] != captions["plain"]

    # and a set of the other kind in the same folder is drawn again
    draw(tmp_path / "varied", "--train", 2, "--val", 0, "--test", 0, "--plain")
    assert files(tmp_path / "varied") == files(tmp_path / "plain")


def test_the_plain_set_is_the_one_of_the_measured_effect():
    """README's table on real images begins with these scenes: they may not change."""
    digest = hashlib.sha256()
    for scene in SCENES:
        for k in range(8):
            f = demo_scenes.facts(scene, random.Random(f"{scene}{k}"))
            digest.update(demo_scenes.describe_zh(f, plain=True).encode())
            digest.update("".join(demo_scenes.describe_en(f)).encode())
    assert digest.hexdigest()[:16] == "e5185ff113f47fb3"


def test_every_description_tells_every_fact():
    """Descriptions of one scene are the same only where the facts are."""
    for scene in SCENES:
        told = {}
        for f in random_facts(scene, 400):
            key = demo_scenes.describe_zh(f)
            shown = {name: value for name, value in f.items() if name != "style"}
            assert told.setdefault(key, shown) == shown


@pytest.mark.parametrize(
    "options", [("--train", "-1"), ("--train", "0", "--val", "0", "--test", "0")]
)
def test_impossible_numbers_are_refused(tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        call(demo_scenes, "--output", tmp_path, *options)
    assert "expected numbers of images" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(demo_scenes, "--output", tmp_path / "file", "--train", "1") == 1
    assert call(tiny_pictures, "--output", tmp_path / "file", "--pictures", "1") == 1
    assert all("error:" in line for line in capsys.readouterr().err.splitlines())


def test_default_output_is_where_the_next_stage_looks(monkeypatch):
    seen = []
    monkeypatch.setattr(demo_scenes, "draw_set", seen.append)
    call(demo_scenes)
    assert seen[0].output == DATA / "demo" and (seen[0].train, seen[0].val, seen[0].test) == (
        48,
        8,
        8,
    )


def test_tiny_rows_are_well_formed(tiny):
    rows = tiny_rows(tiny)
    every = rows["train"] + rows["val"]
    assert all(
        set(row) - {"img"} == {"prompt", "label"} and row["prompt"] and row["label"]
        for row in every
    )
    assert not any(
        "\n" in row["prompt"] + row["label"] or "{" in row["prompt"] + row["label"] for row in every
    )
    named = {row["img"] for row in every if "img" in row}
    assert named == {f"pictures/{k:06d}.jpg" for k in range(120)}
    for name in sorted(named)[:20]:
        with Image.open(tiny / name) as drawn:
            assert (drawn.format, drawn.size, drawn.mode) == ("JPEG", (128, 128), "RGB")
    assert not {row.get("img", 0) for row in rows["train"] if "img" in row} & {
        row.get("img", 0) for row in rows["val"]
    }
    assert 0.1 < sum("img" not in row for row in every) / len(every) < 0.2
    assert 2 < sum("img" in row for row in every) / 120 < 4


def test_tiny_rows_show_no_aerial_scene(tiny):
    for row in sum(tiny_rows(tiny).values(), []):
        if "img" in row:
            text = row["prompt"] + row["label"]
            assert (
                QUESTION not in text
                and "遥感" not in text
                and not any(word in text for _, word in SCENES.values())
            )
        elif QUESTION in row["prompt"]:
            assert "无法判断" in row["label"]


def test_tiny_pictures_are_a_subset_byte_for_byte(tiny, tmp_path):
    for seed, same in ((1, True), (2, False)):
        folder = tmp_path / str(seed)
        assert call(tiny_pictures, "--output", folder, "--pictures", "12", "--seed", seed) == 0
        drawn = sorted((folder / "pictures").iterdir())
        assert len(drawn) == 12
        assert all(
            (path.read_bytes() == (tiny / "pictures" / path.name).read_bytes()) is same
            for path in drawn
        )


def test_tiny_answers_agree_with_descriptions(tiny):
    """Short answers about an image occur in its description."""
    described, short = {}, []
    for row in sum(tiny_rows(tiny).values(), []):
        if "img" in row and row["prompt"] in tiny_pictures.ASK["describe"]:
            described[row["img"]] = row["label"]
        elif "img" in row and not row["prompt"].endswith("请用一句话回答。"):
            short.append(row)
    checked = 0
    for row in short:
        text, answer = described.get(row["img"]), row["label"].rstrip("。")
        asked = re.fullmatch("(?:图中有|画面里有没有)(.+?)(?:吗)?？", row["prompt"])
        if text and answer in ("有", "没有"):
            word = "交叉" if asked[1] == "交叉的带子" else asked[1]
            said = (
                re.search(f"的{word}[，。]|{word}", text)
                if word not in ("圆", "树")
                else re.search(rf"(的|[一两三四五六七八九十].){word}(?!环)", text)
            )
            assert bool(said) is (answer == "有"), (row, text)
            checked += 1
        elif text and row["prompt"] not in tiny_pictures.ASK["what"]:
            core = (
                answer.rstrip("的")
                if answer in ("笔直的", "弯曲的", "直的", "波浪形的")
                else answer
            )
            if (
                "几条带子" not in row["prompt"]
                and "多少条带子" not in row["prompt"]
                and "交叉" not in text
            ):
                assert core in text, (row, text)
                checked += 1
    assert checked > 80


def test_vocabulary_holds_every_text(tiny):
    lines = (tiny / "vocabulary.txt").read_text("utf-8").splitlines()
    assert len(set(lines)) == len(lines) > 3000
    have = set(lines)
    assert all(
        text in have
        for row in sum(tiny_rows(tiny).values(), [])
        for text in (row["prompt"], row["label"])
    )
    for scene in SCENES:
        for f in random_facts(scene, 30):
            assert demo_scenes.describe_zh(f) in have and set(demo_scenes.describe_en(f)) <= have


def test_tiny_refuses_no_images(tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(tiny_pictures, "--output", tmp_path, "--pictures", "0")
    assert "1 or more" in capsys.readouterr().err
