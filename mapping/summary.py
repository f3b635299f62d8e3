"""summary.json and summary.txt: what follows from the tiles, in numbers and in words."""

from collections import Counter
from collections.abc import Sequence

from mapping.changes import changes_in_words
from mapping.grid import Grid
from mapping.naming import object_word, scene_word, window_of
from mapping.places import Places
from mapping.regions import Region, answered, sure_scene

COMPASS = (("西北", "北", "东北"), ("西", "中", "东"), ("西南", "南", "东南"))
COMPASS_EN = (
    ("north-west", "north", "north-east"),
    ("west", "centre", "east"),
    ("south-west", "south", "south-east"),
)
SIDES = (("左上", "上", "右上"), ("左", "中", "右"), ("左下", "下", "右下"))
SIDES_EN = (
    ("upper left", "top", "upper right"),
    ("left", "centre", "right"),
    ("lower left", "bottom", "lower right"),
)
WORDS = {
    False: {
        "tiles": "共 {total} 块，回答 {answered} 块，无数据 {nodata} 块，读取失败 {failed} 块，"
        "未说出场景或把握不足 {unsure} 块。",
        "place": "坐标系：{}。",
        "pixels": "图像没有地理参考，坐标与面积以像素计。",
        "area": "各场景面积（共 {}）：",
        "scene": "{}：{}，占 {:.1f}%，{} 块",
        "objects": "地物（说到它的块数，及在图中的位置）：",
        "object": "{}：{} 块（{}）",
        "where": "{}部 {}",
        "and": "，",
    },
    True: {
        "tiles": "{total} tiles, {answered} answered, {nodata} without data, {failed} unreadable, "
        "{unsure} without a scene or not sure enough.",
        "place": "Coordinate system: {}.",
        "pixels": "The scene has no georeference: coordinates and areas are in pixels.",
        "area": "Area by scene ({} in all):",
        "scene": "{}: {}, {:.1f} %, {} tiles",
        "objects": "Objects (tiles that name them, and where those are):",
        "object": "{}: {} tiles ({})",
        "where": "{} {}",
        "and": ", ",
    },
}


def summarize(
    grid: Grid,
    lines: Sequence[dict],
    regions: Sequence[Region],
    places: Places,
    min_confidence: float,
) -> dict:
    """The content of summary.json but for what was asked, of what."""
    asked = answered(lines)
    named = Counter(sure_scene(line, min_confidence) for line in asked)
    errors = [line["error"] for line in lines if "error" in line]

    areas: dict[str | None, float] = {}
    for region in regions:
        areas[region.scene] = areas.get(region.scene, 0.0) + places.area(region.rings)
    mapped = sum(areas.values())
    scenes = []
    for name, area in sorted(areas.items(), key=lambda item: -item[1]):
        scenes.append(
            {
                "scene": name,
                "zh": scene_word(name, english=False),
                "area": round(area, 2),
                "share": round(area / mapped, 6),
                "tiles": named[name],
            }
        )
    summary: dict = {"first_error": errors[0]} if errors else {}
    return summary | {
        "tiles": {
            "total": len(lines),
            "answered": len(asked),
            "nodata": len(lines) - len(asked) - len(errors),
            "failed": len(errors),
            "unsure": named[None],
        },
        "crs": places.crs,
        "area": {"unit": places.unit, "mapped": round(mapped, 2), "scenes": scenes},
        "objects": _objects(grid, asked, places),
    }


def _objects(grid, asked, places):
    """Each object: the tiles whose answers name it, and in which part of the scene they are."""
    where: dict[str, Counter] = {}
    for line in asked:
        for name in line["objects"]:
            where.setdefault(name, Counter())[_ninth(grid, line)] += 1

    table = COMPASS_EN if places.is_north_up else SIDES_EN
    found = []
    for name, counts in sorted(where.items(), key=lambda item: (-item[1].total(), item[0])):
        parts = []
        for (row, column), count in counts.most_common():
            parts.append({"part": table[row][column], "tiles": count})
        entry = {"object": name, "zh": object_word(name, english=False)}
        found.append(entry | {"tiles": counts.total(), "where": parts})
    return found


def _ninth(grid, line):
    """(row, column) of the third of the scene's height and width that a tile's centre lies in."""
    left, top, width, height = window_of(line)
    part = grid.part
    column = int(3 * (left + width / 2 - part.left) / part.width)
    row = int(3 * (top + height / 2 - part.top) / part.height)
    return min(max(row, 0), 2), min(max(column, 0), 2)


def in_words(summary: dict, english: bool) -> list[str]:
    """The lines of summary.txt, nothing in them that summary.json does not have."""
    words = WORDS[english]
    unit = summary["area"]["unit"]
    lines = [words["tiles"].format(**summary["tiles"])]
    if unit == "pixels":
        lines.append(words["pixels"])
    else:
        lines.append(words["place"].format(summary["crs"].partition("[")[0]))

    lines.append(words["area"].format(amount(summary["area"]["mapped"], unit, english)))
    for entry in summary["area"]["scenes"]:
        area = amount(entry["area"], unit, english)
        name = scene_word(entry["scene"], english)
        lines.append("  " + words["scene"].format(name, area, 100 * entry["share"], entry["tiles"]))

    if summary["objects"]:
        lines.append(words["objects"])
    for entry in summary["objects"]:
        parts = []
        for place in entry["where"]:
            name = place["part"] if english else _in_chinese(place["part"])
            parts.append(words["where"].format(name, place["tiles"]))
        name = object_word(entry["object"], english)
        where = words["and"].join(parts)
        lines.append("  " + words["object"].format(name, entry["tiles"], where))
    if "changes" in summary:
        lines += changes_in_words(summary["changes"], english)
    return lines


def _in_chinese(part):
    for english, chinese in ((COMPASS_EN, COMPASS), (SIDES_EN, SIDES)):
        for row, names in enumerate(english):
            if part in names:
                return chinese[row][names.index(part)]
    raise KeyError(part)


def amount(area: float, unit: str, english: bool) -> str:
    """An area with its unit: m2 from a million on in km2."""
    if unit == "pixels":
        return f"{area:,.0f} " + ("pixels" if english else "像素")
    if area >= 1e6:
        return f"{area / 1e6:,.2f} " + ("km2" if english else "平方千米")
    return f"{area:,.0f} " + ("m2" if english else "平方米")
