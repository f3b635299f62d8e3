"""map.html: one file with the scene, its regions and what was answered about each tile."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from mapping.changes import Change
from mapping.colors import hex_color
from mapping.naming import object_word, scene_word, window_of
from mapping.regions import Region, answered, sure_scene
from mapping.summary import in_words
from model.images import ImageError
from model.images.encoding import data_uri

TEMPLATE = Path(__file__).with_name("page.html")
# Pixels of a tile on the page, and tiles beyond which it shows them from the overview instead
THUMBNAIL, MOST_THUMBNAILS = 224, 1500

WORDS = {
    False: {
        "hint": "点一块看它的图像和回答。",
        "opacity": "颜色深浅",
        "zoom": "放大",
        "confidence": "把握",
        "objects": "地物",
        "unsure": "低于 --min-confidence，记为未定",
        "before": "之前",
        "comma": "、",
        "tasks": {"description": "描述", "scene": "场景", "objects": "地物"},
    },
    True: {
        "hint": "Click a tile to see it and what was answered.",
        "opacity": "opacity",
        "zoom": "zoom",
        "confidence": "confidence",
        "objects": "objects",
        "unsure": "below --min-confidence: undecided",
        "before": "before",
        "comma": ", ",
        "tasks": {"description": "description", "scene": "scene", "objects": "objects"},
    },
}


def html_page(
    job: Any,
    lines: Sequence[dict],
    regions: Sequence[Region],
    compared: Sequence[Change],
    summary: dict,
    english: bool,
) -> str:
    """The whole page; it asks no other host for anything. job: see Prepared in run.py."""
    scene, least = job.scene, job.options.min_confidence
    changes = {window_of(change.line): change for change in compared}
    asked = answered(lines)
    show = len(asked) <= MOST_THUMBNAILS
    tiles = []
    for line in asked:
        tile = _tile(line, least, english)
        tile["image"] = _thumbnail(scene, line) if show else None
        change = changes.get(window_of(line))
        if change:
            tile["changed"] = change.scene_changed
            tile["before"] = _tile(change.before, least, english)
            tile["before"]["image"] = _thumbnail(job.before, line) if show else None
        tiles.append(tile)
    data = {
        "width": scene.width,
        "height": scene.height,
        "overview": data_uri(scene.overview, "JPEG", quality=85),
        "tiles": tiles,
        "regions": [_region(region) for region in regions],
        "legend": _legend(summary, english),
        "words": WORDS[english],
    }
    # A "</script>" in an answer would end the script
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    page = TEMPLATE.read_text(encoding="utf-8")
    title = escape(f"RemoteGLM: {Path(scene.path).name}")
    page = page.replace("{language}", "en" if english else "zh").replace("{title}", title)
    page = page.replace("{summary}", escape("\n".join(in_words(summary, english))))
    return page.replace("{data}", text)


def _tile(line, min_confidence, english):
    scene = sure_scene(line, min_confidence)
    return {
        "window": line["window"],
        "scene": scene_word(line["scene"], english),
        "color": hex_color(scene),
        "sure": scene == line["scene"],
        "confidence": line["confidence"],
        "objects": [object_word(name, english) for name in line["objects"]],
        "answers": line["answers"],
    }


def _region(region):
    """As SVG's path: holes by the even-odd rule."""
    path = ""
    for ring in region.rings:
        path += "M" + "L".join(f"{x:g} {y:g}" for x, y in ring) + "Z"
    return {"path": path, "color": hex_color(region.scene)}


def _legend(summary, english):
    rows = []
    for entry in summary["area"]["scenes"]:
        name = scene_word(entry["scene"], english)
        share = f"{100 * entry['share']:.1f}%"
        rows.append({"name": name, "share": share, "color": hex_color(entry["scene"])})
    return rows


def _thumbnail(scene, line):
    """The tile as it was seen, reduced; None where it cannot be read any more."""
    try:
        image, _ = scene.read(window_of(line))
    except ImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(image, "JPEG", quality=80)
