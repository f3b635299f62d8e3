"""The bilingual lexicon: each rule of matching on made sentences, the data against itself."""

import pytest

from data import lexicon
from data.lexicon import SOME, closure, colours, find, language, named, numbers


def objects(text):
    return named(find(text, language(text)))


@pytest.mark.parametrize(
    "text, expected",
    (
        ("停车场", set()),
        ("停车场旁有车", {"car"}),
        ("机场上空", set()),
        ("飞机场边是一架飞机", {"airplane"}),
        ("居民区里有人行道", {"path"}),
        ("移动房屋公园里的移动房屋", {"mobile home"}),
        ("水平的跑道", {"runway"}),
        ("水泥路面", {"road"}),
        ("大片绿意", set()),
        ("黄土地上散布着灌木丛", {"bare ground"}),
        ("桥下的船", {"bridge", "boat"}),
        ("蓝天白云", {"sky"}),
        ("The cars park in a parking lot .", {"car"}),
        ("an airport with planes", {"airplane"}),
        ("carpets and scar", set()),
        ("bushes , buses and ferries", {"bush", "bus", "boat"}),
        ("Storage-tanks", {"storage tanks"}),
        ("a mobile home", {"mobile home"}),
        ("Six umbrellas stand there", {"umbrella"}),
        ("traffic lights", set()),
    ),
)
def test_the_longest_word_wins_and_is_used_up(text, expected):
    assert objects(text) == expected


def test_a_word_may_be_scene_and_object():
    found = find("两个网球场", "zh")
    assert [(m.kind, m.name, m.start, m.end, m.count) for m in found] == [
        ("object", "tennis court", 2, 5, 2),
        ("scene", "tennis court", 2, 5, 2),
    ]
    assert named(find("停车场边是住宅区", "zh"), "scene") == {"parking lot", "residential area"}


@pytest.mark.parametrize(
    "text, there",
    (
        ("没有飞机", set()),
        ("没有树木和房屋，旁边是道路", {"road"}),
        ("没有树木的草地", {"grass"}),
        ("没有明显的建筑物", set()),
        ("无数房屋", {"house"}),
        ("图中无车辆", set()),
        ("有没有船", {"boat"}),
        ("看不到船，只有海浪", {"wave"}),
        ("没有车而有树", {"tree"}),
        ("被淹没的汽车", {"car"}),
        ("There are no airplanes or cars on the runway .", {"runway"}),
        ("A river without bridges", {"river"}),
        ("no trees , some grass", {"grass"}),
        ("no cars but many boats", {"boat"}),
        ("There aren't any ships", set()),
        ("There is not a tree near the pond", {"pond"}),
        ("nothing", set()),
        ("船一艘也没有", set()),
        ("道路旁的飞机都没有", {"road"}),
        ("图中飞机不可见", set()),
        ("未显示飞机", set()),
        ("看不出有船", set()),
        ("无法看到桥", set()),
        ("没有人类活动的痕迹，如道路、建筑物等", set()),
        ("没有房屋，有道路", {"road"}),
        ("飞机跑道", {"runway"}),
        ("由飞机拍摄", set()),
        ("I cannot see any airplanes , only cars", {"car"}),
    ),
)
def test_negation(text, there):
    assert objects(text) == there


@pytest.mark.parametrize(
    "text, counts",
    (
        ("两架飞机", {"airplane": 2}),
        ("12个储罐", {"storage tanks": 12}),
        ("二十一艘白色的船", {"boat": 21}),
        ("三个整齐排列的网球场", {"tennis court": 3}),
        ("一些树", {"tree": SOME}),
        ("几辆车", {"car": SOME}),
        ("十几艘船", {"boat": SOME}),
        ("数十辆汽车", {"car": SOME}),
        ("无数房屋", {"house": SOME}),
        ("两排树", {"tree": SOME}),
        ("一排排房屋", {"house": SOME}),
        ("一座座房屋", {"house": SOME}),
        ("第二座桥", {"bridge": None}),
        ("一张图像显示了飞机", {"airplane": None}),
        ("两座房屋之间有道路", {"house": 2, "road": None}),
        ("道路两边有树", {"road": None, "tree": None}),
        ("两架停在跑道上的飞机", {"runway": None, "airplane": None}),
        ("树", {"tree": None}),
        ("two airplanes and a truck", {"airplane": 2, "truck": 1}),
        ("14 long piers", {"pier": 14}),
        ("several boats", {"boat": SOME}),
        ("a lot of cars", {"car": SOME}),
        ("two rows of trees", {"tree": SOME}),
        ("a pair of boats", {"boat": 2}),
        ("houses", {"house": None}),
        ("one house with trees", {"house": 1, "tree": None}),
        ("a piece of lawn", {"grass": 1}),
        ("a group of tanks", {"storage tanks": SOME}),
    ),
)
def test_counts(text, counts):
    assert {m.name: m.count for m in find(text, language(text)) if m.kind == "object"} == counts


@pytest.mark.parametrize(
    "text, expected",
    (
        ("两排树和三栋房屋，一百二十辆车", {2, 3, 120}),
        ("第三条路，道路两旁，几十辆车", set()),
        ("two rows of trees, six houses", {2, 6}),
        ("some houses", set()),
    ),
)
def test_numbers_of_a_whole_text(text, expected):
    assert numbers(text, language(text)) == expected


@pytest.mark.parametrize(
    "text, attached, whole",
    (
        ("白色的飞机", {"airplane": {"white"}}, {"white"}),
        ("白色和灰色的屋顶", {"roof": {"white", "grey"}}, {"white", "grey"}),
        ("红屋顶", {"roof": {"red"}}, {"red"}),
        ("屋顶是灰色的，树木", {"roof": {"grey"}, "tree": set()}, {"grey"}),
        ("海水呈蔚蓝色", {"sea": {"blue"}}, {"blue"}),
        ("蓝绿色的河水", {"river": {"blue", "green"}}, {"blue", "green"}),
        ("储罐的颜色为白色", {"storage tanks": {"white"}}, {"white"}),
        ("绿色环绕着房屋", {"house": set()}, {"green"}),
        ("黄土上的绿化带和红绿灯", {"bare ground": set(), "plant": set()}, set()),
        ("white and grey roofs", {"roof": {"white", "grey"}}, {"white", "grey"}),
        ("The roofs are grey .", {"roof": {"grey"}}, {"grey"}),
        ("a red truck with cars", {"truck": {"red"}, "car": set()}, {"red"}),
        ("sky blue pools", {"pool": {"blue"}}, {"blue"}),
        ("a greenhouse", {"greenhouse": set()}, set()),
        ("white lines on a court", {"marking": {"white"}}, {"white"}),
    ),
)
def test_colours(text, attached, whole):
    assert {
        m.name: set(m.colours) for m in find(text, language(text)) if m.kind == "object"
    } == attached
    assert colours(text, language(text)) == whole


@pytest.mark.parametrize(
    "reference, granted, withheld",
    (
        ("some houses", {"house", "building"}, {"mobile home"}),
        ("buildings", {"building"}, {"house"}),
        ("a forest", {"forest", "tree", "plant"}, {"bush"}),
        ("an overpass", {"bridge", "road"}, {"river"}),
        ("a mobile home park", {"mobile home", "house", "building", "park"}, {"parking lot"}),
        ("no trucks", set(), {"truck", "car"}),
    ),
)
def test_what_is_implied_is_granted_one_way(reference, granted, withheld):
    found = closure(find(reference, "en"))
    assert granted <= found and not withheld & found


def test_a_word_of_several_meanings_is_supported_by_any_of_them():
    claims = find("码头没有集装箱，只有吊车", "zh")
    assert (
        lexicon.unsupported(claims, {"pier"})
        == lexicon.unsupported(claims, {"harbour"})
        == [("object", "crane")]
    )
    assert lexicon.unsupported(claims, set()) == [
        ("object", "pier"),
        ("scene", "harbour"),
        ("object", "crane"),
    ]


def test_the_data_hold_together():
    data = lexicon.load()
    assert len(data["objects"]) >= 30
    for name, entry in {**data["scenes"], **data["objects"]}.items():
        assert entry["zh"] and entry["en"], name
        assert set(entry.get("implies", [])) <= set(data["objects"]) | set(data["scenes"]), name
        assert len(set(entry["zh"])) == len(entry["zh"]) and len(set(entry["en"])) == len(
            entry["en"]
        ), name
    for name, entry in data["objects"].items():
        assert len(entry["counter"]) == 1, name
        # every word names its own object, whatever longer words the lexicon has
        for lang in ("zh", "en"):
            assert all(
                name in objects_of
                for objects_of in (named(find(word, lang)) for word in entry[lang])
            ), name
    assert numbers("一个十二位两千", "zh") == {1, 12}
