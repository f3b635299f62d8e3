"""map.png: the scene with its coloured regions, and a legend beside it."""

import sys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mapping.antimeridian import signed_area
from mapping.changes import Change
from mapping.colors import color_of
from mapping.naming import scene_word
from mapping.regions import Region
from model.images.tiles import Scene

OPACITY = 110  # of 255
CHANGED = (220, 0, 0)  # frame of a tile whose scene is not that of before
LINE = 26  # pixels of the legend
EDGE = (120, 120, 120)  # around a colour of the legend, which may be near white
# Chinese fonts by file name, as Linux distributions, Windows and macOS ship them
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "STHeiti Light.ttc",
)


def draw_map(
    scene: Scene,
    regions: Sequence[Region],
    compared: Sequence[Change],
    summary: dict,
    english: bool,
) -> Image.Image:
    """PIL RGB: the overview with the regions over it; the legend gives each scene's share.

    compared: of two dates; tiles whose scene changed have a frame.
    """
    base = scene.overview
    across, down = base.width / scene.width, base.height / scene.height
    colored = Image.new("RGBA", base.size)
    drawing = ImageDraw.Draw(colored)
    # From large to small: what lies in a hole comes after the region around it
    for region in sorted(regions, key=lambda region: -abs(signed_area(region.rings[0]))):
        outer, *holes = [[(x * across, y * down) for x, y in ring] for ring in region.rings]
        color = color_of(region.scene)
        drawing.polygon(outer, (*color, OPACITY))
        for hole in holes:
            drawing.polygon(hole, (0, 0, 0, 0))
        for ring in (outer, *holes):
            drawing.line(ring, (*color, 255), 2)
    for change in compared:
        if change.scene_changed:
            left, top, width, height = change.line["window"]
            right, bottom = left + width, top + height
            corners = (left * across, top * down, right * across - 1, bottom * down - 1)
            drawing.rectangle(corners, outline=(*CHANGED, 255), width=3)
    shown = Image.alpha_composite(base.convert("RGBA"), colored).convert("RGB")
    return _beside(shown, _legend(summary, english))


def _legend(summary, english):
    font, english = _font(english)
    rows = []
    for entry in summary["area"]["scenes"]:
        text = f"{scene_word(entry['scene'], english)}  {100 * entry['share']:.1f}%"
        rows.append((color_of(entry["scene"]), text))
    if "changes" in summary:
        word = "scene changed" if english else "场景有变化"
        rows.append((CHANGED, f"{word}  {summary['changes']['scene']}"))
    width = max(int(font.getlength(text)) for _, text in rows) if rows else 0
    legend = Image.new("RGB", (width + 3 * LINE, LINE * (len(rows) + 1)), "white")
    drawing = ImageDraw.Draw(legend)
    for index, (color, text) in enumerate(rows):
        top = LINE // 2 + index * LINE
        drawing.rectangle((LINE // 2, top + 4, LINE // 2 + 18, top + 20), color, EDGE)
        drawing.text((LINE // 2 + 28, top + 2), text, "black", font)
    return legend


def _font(english):
    """(a font, whether the legend is in English: where no Chinese font is found, said so)"""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 18), english
        except OSError:
            continue
    if not english:
        print("no Chinese font found: the legend of map.png is in English", file=sys.stderr)
    return ImageFont.load_default(18), True


def _beside(left, right):
    height = max(left.height, right.height)
    both = Image.new("RGB", (left.width + right.width, height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both
