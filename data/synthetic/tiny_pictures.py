"""Draw and write what a tiny base model learns from before it meets any aerial picture: shapes, ground views, and Chinese text.

    python data/synthetic/tiny_pictures.py --output DIR [--pictures 12000] [--seed 1]

Source: drawn and written by this project, nothing is downloaded; licence: that of this repository. 128x128 RGB JPEG, quality 90:
four of five are abstract (colours, textures, regions, bands, counted shapes), one of five is a ground view (house, car, fish, ...).
None is an aerial scene, so a demo that fine-tunes the model on those shows something new. It writes

    pictures/000000.jpg ...
    base-train.json, base-val.json   rows {"img", "prompt", "label"}, 2 % for validation, no picture in both; about 3 rows a picture
                                     and 15 % rows of text alone, which have no "img"
    vocabulary.txt                   every text of the rows and of the demo scenes, words, characters: one a line, to train a tokenizer

Every picture has a random generator of its own, seeded by (seed, index): fewer pictures are a subset, byte for byte. A second run
draws the same files again.
"""

import argparse
import itertools
import math
import multiprocessing
import random
import sys
from pathlib import Path

from PIL import Image, ImageFilter
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.records import write_records
from data.stage import run_stage
from data.synthetic import demo_scenes as demo
from data.synthetic.demo_scenes import SIZE, H, S, Sheet, ZhCount, jitter, shade, texture, wave

COLOURS = {
    "红色": (200, 54, 48),
    "橙色": (232, 140, 52),
    "黄色": (230, 206, 84),
    "绿色": (100, 164, 82),
    "深绿色": (42, 84, 48),
    "蓝色": (84, 142, 204),
    "深蓝色": (32, 56, 116),
    "紫色": (138, 82, 160),
    "白色": (238, 238, 236),
    "灰色": (142, 142, 144),
    "黑色": (34, 34, 38),
    "棕色": (128, 88, 58),
    "米色": (218, 200, 162),
}
TEXTURES = (
    "纯色 细颗粒 粗颗粒 横条纹 竖条纹 斜条纹 网格 点状 短划线 棋盘格 波浪纹 渐变 团块".split()
)
SHAPES = "圆 圆环 正方形 长方形 三角形 菱形 星形 十字 小点 扇形 椭圆".split()
SIDES = (
    ("上边", "下边", 0.0),
    ("左边", "右边", -0.5),
    ("左上", "右下", -0.25),
    ("右上", "左下", 0.25),
)  # turns, in units of pi
WAYS = {"横向": 0.0, "竖向": 0.5, "斜向": 0.25}
ASK = {
    "describe": (
        "描述这张图片。",
        "请描述这张图片。",
        "图片里有什么？",
        "这张图画了什么？",
        "说说你看到的内容。",
    ),
    "colour": ("背景是什么颜色？", "图片的底色是什么？", "背景颜色是哪一种？"),
    "texture": ("背景是什么纹理？", "背景的纹理是怎样的？", "底面是什么样的纹理？"),
    "count": ("图中有几个{}？", "有多少个{}？", "数一数{}有几个？"),
    "shape colour": ("{}是什么颜色？", "图中的{}是什么颜色的？"),
    "shape": ("图中是什么图形？", "图片里画的是哪种图形？"),
    "arrange": ("{}怎样排列？", "{}是如何摆放的？"),
    "side colour": ("{}是什么颜色？", "画面{}的颜色是什么？"),
    "side texture": ("{}是什么纹理？", "画面{}的纹理是怎样的？"),
    "edge": ("两部分的边界是直的吗？", "边界是什么形状？"),
    "way": ("带子的方向是什么？", "带子朝哪个方向？"),
    "bend": ("带子是直的还是弯的？", "带子弯不弯？"),
    "band colour": ("带子是什么颜色？", "穿过画面的带子是什么颜色？"),
    "bands": ("图中有几条带子？", "有多少条带子穿过画面？"),
    "is there": ("图中有{}吗？", "画面里有没有{}？"),
    "what": ("这是什么？", "图中的主要物体是什么？"),
    "how many": ("图中有几{}{}？", "有多少{}{}？"),
    "its colour": ("{}是什么颜色？", "图中{}的颜色是什么？"),
}


def zh(count, measure):
    return format(ZhCount(count), measure)


def pick(rng, *avoid):
    """A colour by name and value, unlike each of the values to avoid."""
    while True:
        word = rng.choice(list(COLOURS))
        if all(sum(abs(a - b) for a, b in zip(COLOURS[word], other)) > 110 for other in avoid):
            return word, jitter(rng, COLOURS[word])


def surface(rng, colour, kind):
    """A sheet of a colour with a texture."""
    grain = {"细颗粒": (0.3, (3, 2)), "粗颗粒": (0.34, (28, 14))}.get(kind, (0.05, (64, 16, 4)))
    sheet = Sheet(rng, texture(rng, colour, *grain))
    tone = (
        shade(colour, rng.choice((0.66, 0.76)))
        if sum(colour) > 180
        else shade([c + 40 for c in colour], 1.3)
    )
    step, r = rng.choice((12, 16, 24, 36)), range(-200, 201)
    if "条纹" in kind:
        sheet.angle = (
            math.pi * {"横": 0.0, "竖": 0.5, "斜": rng.choice((0.25, -0.25, 0.17, 0.33))}[kind[0]]
        )
        for t in r[::step]:
            sheet.box(0, t, 400, step * rng.choice((0.5, 0.3)), tone)
    elif kind == "网格":
        sheet.angle = rng.choice((0, 0, 0.6))
        for t in r[:: max(16, step)]:
            sheet.box(0, t, 400, 4, tone)
            sheet.box(t, 0, 4, 400, tone)
    elif kind == "波浪纹":
        sheet.angle, width = rng.uniform(0, 3.1), step * 0.35
        for t in r[::step]:
            sheet.line(
                [(x, t + step * 0.4 * math.sin(x / step * 1.6)) for x in r[::4]],
                tone,
                max(2, round(width)),
            )
    elif kind in ("点状", "短划线", "棋盘格"):
        step, sheet.angle = max(16, step), rng.choice((0, 0, 0.4))
        for i, j in itertools.product(range(-11, 12), repeat=2):
            if kind == "短划线":
                sheet.box(i * step, j * step * 1.6, step * 0.45, step, tone)
            elif kind == "点状":
                sheet.disc(i * step + (j % 2) * step / 2, j * step, step * 0.22, tone)
            elif (i + j) % 2:
                sheet.box(i * step, j * step, step, step, tone)
    elif kind == "渐变":
        ramp = Image.linear_gradient("L").resize((S, S)).rotate(rng.choice((0, 90, 180, 270)))
        sheet.image.paste(Image.new("RGB", (S, S), tone), mask=ramp)
    elif kind == "团块":
        for _ in range(170):
            sheet.tree(rng.uniform(-H, H), rng.uniform(-H, H), rng.uniform(8, 15), colour)
    return sheet.image


def draw_shape(sheet, shape, x, y, r, colour, turn, lines):
    """One shape of about radius r; `lines` adds an inner drawing."""
    tone = shade(colour, 0.6) if sum(colour) > 240 else (220, 220, 216)

    def star(n, inner):
        radii = [r if k % 2 == 0 else r * inner for k in range(2 * n)]
        return [
            (x + q * math.cos(turn + k * math.pi / n), y + q * math.sin(turn + k * math.pi / n))
            for k, q in enumerate(radii)
        ]

    if shape in ("圆", "小点", "椭圆"):
        sheet.disc(
            x,
            y,
            r * (0.3 if shape == "小点" else 1),
            colour,
            stretch=0.58 if shape == "椭圆" else 1,
        )
    elif shape == "圆环":
        a, b = sheet.at(x, y)
        sheet.pen.ellipse((a - r, b - r, a + r, b + r), outline=colour, width=round(r * 0.4))
    elif shape == "扇形":
        arc = [turn + t * math.pi / 24 for t in range(-6, 7)]
        sheet.poly(
            [(x, y)] + [(x + 1.3 * r * math.cos(t), y + 1.3 * r * math.sin(t)) for t in arc], colour
        )
    elif shape == "十字":
        sheet.box(x, y, 2 * r, r * 0.6, colour, turn=turn)
        sheet.box(x, y, r * 0.6, 2 * r, colour, turn=turn)
    elif shape == "长方形":
        sheet.box(x, y, 2 * r, r, colour, turn=turn)
    elif shape == "正方形":
        sheet.box(x, y, 1.6 * r, 1.6 * r, colour, turn=turn)
    elif shape == "菱形":
        turn = 0.0
        sheet.poly([(x + r * 0.62, y), (x, y + r), (x - r * 0.62, y), (x, y - r)], colour)
    else:
        sheet.poly(star(5, 0.42) if shape == "星形" else star(3, 0.5)[::2], colour)
    if lines:
        c, s = math.cos(turn) * r * 0.7, math.sin(turn) * r * 0.7
        sheet.line([(x - c, y - s), (x + c, y + s)], tone, 3)
        sheet.line([(x + s * 0.5, y - c * 0.5), (x - s * 0.5, y + c * 0.5)], tone, 3)


def spots(rng, arrangement, count):
    """Where `count` shapes lie and how large they may be."""
    if arrangement == "排成一行":
        step, slope = 230 / count, rng.choice((0, 0, math.pi / 2, 0.5))
        way = [(k - (count - 1) / 2) * step for k in range(count)]
        return [(t * math.cos(slope), t * math.sin(slope)) for t in way], min(34, step * 0.42)
    if arrangement in ("排成方阵", "排成两行"):
        cols = count // 2 if arrangement == "排成两行" else {4: 2, 6: 3, 9: 3, 12: 4}[count]
        rows, step = count // cols, 220 / max(cols, 3)
        gap = 140 if arrangement == "排成两行" else step
        grid = [
            ((i - (cols - 1) / 2) * step, (j - (rows - 1) / 2) * gap)
            for i in range(cols)
            for j in range(rows)
        ]
        return ([(y, x) for x, y in grid] if rng.random() < 0.5 else grid), step * 0.4
    if arrangement == "围在四周":
        turn = rng.uniform(0, 6)
        angles = [turn + 2 * math.pi * k / count for k in range(count)]
        return [(96 * math.cos(a), 96 * math.sin(a)) for a in angles], min(26, 230 / count)
    cells = rng.sample([(i, j) for i in range(4) for j in range(4)], count)
    return [
        (i * 62 - 93 + rng.uniform(-6, 6), j * 62 - 93 + rng.uniform(-6, 6)) for i, j in cells
    ], 26


class Answers:
    """Rows about one picture: each question has a short answer, and a sentence that is given when asked for."""

    def __init__(self, rng):
        self.rng, self.rows = rng, []

    def add(self, kind, short, full, *words):
        question = self.rng.choice(ASK[kind]).format(*words)
        if self.rng.random() < 0.3:
            self.rows.append((question + "请用一句话回答。", full))
        else:
            self.rows.append((question, short))

    def there(self, word, found):
        self.add(
            "is there",
            "有。" if found else "没有。",
            f"图中{'有' if found else '没有'}{word}。",
            word,
        )


def abstract(rng):
    """An abstract picture; its description and rows."""
    say, parts = Answers(rng), []
    word, colour = pick(rng)
    kind, layout = (
        rng.choice(TEXTURES),
        rng.choice(("plain", "plain", "split", "split", "band", "band", "crossing")),
    )
    sheet, back = Sheet(rng, surface(rng, colour, kind)), [colour]
    if layout == "split":
        one, two, angle = rng.choice(SIDES)
        word2, colour2 = pick(rng, colour)
        kind2, wavy, cut = rng.choice(TEXTURES), rng.random() < 0.5, rng.uniform(-40, 40)
        back.append(colour2)
        edge = wave(rng, 22) if wavy else lambda t: 0
        sheet.angle = angle * math.pi
        sheet.band(lambda t: cut + edge(t), lambda t: 300, surface(rng, colour2, kind2))
        shape = "波浪形" if wavy else "直"
        parts.append(f"画面{one}是{word}的{kind}，{two}是{word2}的{kind2}，边界是{shape}的。")
        for side, w, k in ((one, word, kind), (two, word2, kind2)):
            say.add("side colour", w + "。", f"画面{side}是{w}的。", side)
            say.add("side texture", k + "。", f"画面{side}的纹理是{k}。", side)
        say.add("edge", shape + "的。", f"两部分的边界是{shape}的。")
    else:
        parts.append(f"背景是{word}的{kind}。")
        say.add("colour", word + "。", f"背景是{word}的。")
        say.add("texture", kind + "。", f"背景的纹理是{kind}。")
    if layout in ("band", "crossing"):
        word2, colour2 = pick(rng, colour)
        back.append(colour2)
        way, curved, half = rng.choice(list(WAYS)), rng.random() < 0.5, rng.uniform(10, 34)
        turns = [WAYS[way] * rng.choice((1, -1)) * math.pi + rng.uniform(-0.12, 0.12)]
        turns += [turns[0] + math.pi / 2] if layout == "crossing" else []
        skin = surface(rng, colour2, rng.choice(("纯色", "纯色", "细颗粒", "粗颗粒")))
        for sheet.angle in turns:
            bend, shift = wave(rng, 30) if curved else lambda t: 0, rng.uniform(-30, 30)
            sheet.band(lambda t: shift + bend(t) - half, lambda t: shift + bend(t) + half, skin)
            if rng.random() < 0.4:
                mark = COLOURS["白色" if sum(colour2) < 500 else "黑色"]
                for t in range(-200, 201, 26):
                    sheet.line([(t, shift + bend(t)), (t + 13, shift + bend(t + 13))], mark, 3)
        bent = "弯曲" if curved else "笔直"
        if layout == "crossing":
            parts.append(f"两条{bent}的{word2}带子在画面中交叉。")
        else:
            parts.append(f"一条{bent}的{word2}带子{way}穿过画面。")
            say.add("way", way + "。", f"带子是{way}的。")
        say.add("bend", bent + "的。", f"带子是{bent}的。")
        say.add("band colour", word2 + "。", f"带子是{word2}的。")
        say.add("bands", zh(len(turns), "条") + "。", f"图中有{zh(len(turns), '条')}带子。")
    if rng.random() < 0.3:
        say.there("交叉的带子", layout == "crossing")
    sheet.angle, present = 0.0, rng.sample(SHAPES, rng.choice((0, 1, 1, 1, 1, 2)))
    cells = spots(rng, "随意分布", 16)[
        0
    ]  # two kinds of shape share them and do not cover each other
    for shape in present:
        word, colour = pick(rng, *back)
        back.append(colour)
        count = rng.randint(1, 12 if len(present) == 1 else 6)
        ways = (
            ["随意分布"]
            + ["排成一行"] * (2 < count < 8)
            + ["围在四周"] * (count > 4)
            + ["排成方阵"] * 2 * (count in (4, 6, 9, 12))
        )
        arrangement = (
            rng.choice(ways + ["排成两行"] * (count in (4, 6, 8, 10)))
            if len(present) == 1
            else "随意分布"
        )
        places, room = (
            (cells[:count], 26) if arrangement == "随意分布" else spots(rng, arrangement, count)
        )
        cells = cells[count:]
        r, turn = room * rng.uniform(0.65, 1), rng.choice((0, rng.uniform(0, 3)))
        lines, shadow = (
            shape in ("圆", "正方形", "长方形", "扇形") and rng.random() < 0.4,
            rng.random() < 0.4,
        )
        for x, y in places:
            if shadow and shape not in ("小点", "圆环"):
                draw_shape(sheet, shape, x + 4, y + 4, r, (16, 20, 28, 110), turn, False)
            draw_shape(sheet, shape, x, y, r, jitter(rng, colour, 4), turn, lines)
        where = f"，{arrangement}" if count > 1 else ""
        parts.append(
            f"上面有{zh(count, '个')}{word}的{shape}{where}{'，里面有线条' if lines else ''}。"
        )
        say.add("count", zh(count, "个") + "。", f"图中有{zh(count, '个')}{shape}。", shape)
        say.add("shape colour", word + "。", f"图中的{shape}是{word}的。", shape)
        if len(present) == 1:
            say.add("shape", shape + "。", f"图中的图形是{shape}。")
        if count > 1:
            say.add("arrange", arrangement + "。", f"{shape}{arrangement}。", shape)
    if not present:
        parts.append("没有图形。")
    found = rng.random() < 0.5 and present
    say.there(
        rng.choice(present if found else [shape for shape in SHAPES if shape not in present]), found
    )
    return sheet.image, "".join(parts), say.rows


def sky(sheet, horizon, top, low):
    sheet.image.paste(texture(sheet.rng, jitter(sheet.rng, top), 0.05))
    sheet.poly(
        [(-H, horizon), (H, horizon), (H, H), (-H, H)],
        texture(sheet.rng, jitter(sheet.rng, low), 0.1),
    )


BLUE, LAWN, STREET, SEA, WALL = (
    (160, 206, 236),
    (110, 168, 84),
    (128, 128, 132),
    (64, 124, 172),
    (226, 206, 178),
)


def view_house(sheet, rng, n, colour):
    sky(sheet, 40, BLUE, LAWN)
    for x, r in columns(n, rng):
        sheet.box(x, 30, r * 1.5, r * 1.3, jitter(rng, WALL))
        sheet.poly([(x - r, 32 - r * 0.65), (x, 30 - r * 1.4), (x + r, 32 - r * 0.65)], colour)
        sheet.box(x, 30 + r * 0.35, r * 0.35, r * 0.6, (120, 80, 50))
        for side in (-1, 1):
            sheet.box(x + side * r * 0.48, 26, r * 0.34, r * 0.34, (110, 160, 196))


def view_car(sheet, rng, n, colour):
    sky(sheet, 20, BLUE, STREET)
    for x, r in columns(n, rng):
        sheet.poly(
            [
                (x - r * 0.6, 30),
                (x - r * 0.4, 30 - r * 0.5),
                (x + r * 0.35, 30 - r * 0.5),
                (x + r * 0.6, 30),
            ],
            (150, 190, 214),
        )
        sheet.box(x, 30 + r * 0.2, r * 2, r * 0.5, colour)
        for side in (-1, 1):
            sheet.disc(x + side * r * 0.55, 30 + r * 0.45, r * 0.26, (30, 30, 34))
            sheet.disc(x + side * r * 0.55, 30 + r * 0.45, r * 0.11, (190, 190, 194))


def view_tree(sheet, rng, n, colour):
    sky(sheet, 50, BLUE, LAWN)
    pine = rng.random() < 0.4
    for x, r in columns(n, rng):
        sheet.box(x, 50, r * 0.3, r * 1.2, (112, 78, 50))
        for k in range(3):
            if pine:
                y = 40 - k * r * 0.6
                sheet.poly(
                    [(x - r * (1 - 0.2 * k), y), (x, y - r), (x + r * (1 - 0.2 * k), y)],
                    shade(colour, 0.85 + 0.1 * k),
                )
            else:
                sheet.disc(
                    x + (k - 1) * r * 0.5,
                    10 - (k % 2) * r * 0.5,
                    r * 0.7,
                    shade(colour, 0.9 + 0.08 * k),
                )


def view_mountain(sheet, rng, n, colour):
    sky(sheet, 60, BLUE, LAWN)
    sheet.disc(rng.choice((-80, 80)), -84, 20, (250, 214, 90))
    for x, r in columns(n, rng):
        sheet.poly(
            [(x - r * 1.6, 62), (x, 40 - r * 2), (x + r * 1.6, 62)],
            shade(colour, rng.uniform(0.85, 1.1)),
        )
        sheet.poly(
            [(x - r * 0.4, 46 - r * 1.5), (x, 40 - r * 2), (x + r * 0.4, 46 - r * 1.5)],
            (246, 248, 250),
        )


def view_flower(sheet, rng, n, colour):
    sky(sheet, 70, (206, 226, 240), LAWN)
    for x, r in columns(n, rng):
        sheet.box(x, 50, 6, 110, (60, 124, 60))
        for k in range(7):
            sheet.disc(
                x + r * 0.6 * math.cos(k * 0.9), -20 + r * 0.6 * math.sin(k * 0.9), r * 0.42, colour
            )
        sheet.disc(x, -20, r * 0.35, (246, 200, 70) if sum(colour) < 480 else (150, 90, 50))


def view_sail(sheet, rng, n, colour):
    sky(sheet, 20, BLUE, SEA)
    for x, r in columns(n, rng):
        sheet.poly(
            [(x - r, 30), (x + r, 30), (x + r * 0.6, 30 + r * 0.5), (x - r * 0.6, 30 + r * 0.5)],
            (124, 84, 56),
        )
        sheet.poly([(x + 4, 24), (x + 4, 24 - r * 1.9), (x + r * 0.9, 24)], colour)
        sheet.poly([(x - 4, 24), (x - 4, 24 - r * 1.5), (x - r * 0.7, 24)], shade(colour, 0.86))


def view_fruit(sheet, rng, n, colour):
    sky(sheet, 30, (228, 218, 204), (156, 108, 70))
    for x, r in columns(n, rng):
        sheet.disc(x, 30, r * 0.8, colour)
        sheet.disc(x - r * 0.25, 30 - r * 0.25, r * 0.2, shade(colour, 1.35))
        sheet.line([(x, 30 - r * 0.7), (x + 5, 30 - r * 1.15)], (84, 60, 40), 4)


def view_face(sheet, rng, n, colour):
    sky(sheet, 140, (220, 220, 230), WALL)
    for x, r in columns(n, rng):
        sheet.disc(x, -r * 0.2, r * 1.08, colour)
        sheet.disc(x, 0, r, (240, 204, 172))
        for side in (-1, 1):
            sheet.disc(x + side * r * 0.38, -r * 0.1, r * 0.12, (40, 36, 40))
        sheet.line(
            [(x + t * r * 0.1, r * 0.5 - (t * t - 16) * r * -0.012) for t in range(-4, 5)],
            (180, 60, 60),
            4,
        )


def view_fish(sheet, rng, n, colour):
    sky(sheet, 100, (96, 168, 204), (206, 186, 140))
    for x, r in columns(n, rng):
        y = rng.uniform(-50, 40)
        sheet.poly(
            [(x + r * 0.6, y), (x + r * 1.15, y - r * 0.5), (x + r * 1.15, y + r * 0.5)],
            shade(colour, 0.8),
        )
        sheet.disc(x, y, r * 0.85, colour, stretch=0.55)
        sheet.disc(x - r * 0.5, y - r * 0.1, r * 0.1, (20, 20, 24))


def view_clock(sheet, rng, n, colour):
    sky(sheet, 140, (226, 222, 210), WALL)
    hour = rng.randrange(12)
    for x, r in columns(n, rng):
        sheet.disc(x, 0, r * 1.1, colour)
        sheet.disc(x, 0, r * 0.92, (250, 250, 248))
        for k in range(12):
            t = k * math.pi / 6
            sheet.disc(x + r * 0.78 * math.cos(t), r * 0.78 * math.sin(t), r * 0.06, (40, 40, 44))
        t = hour * math.pi / 6
        sheet.line([(x, 0), (x + r * 0.45 * math.sin(t), -r * 0.45 * math.cos(t))], (30, 30, 34), 6)
        sheet.line([(x, 0), (x, -r * 0.66)], (30, 30, 34), 4)


def view_light(sheet, rng, n, colour):
    sky(sheet, 90, BLUE, STREET)
    for x, r in columns(n, rng):
        sheet.box(x, 60, 8, 140, (90, 90, 94))
        sheet.box(x, -20, r * 0.9, r * 2.4, (40, 42, 46))
        for k in range(3):
            sheet.disc(x, -20 + (k - 1) * r * 0.75, r * 0.3, colour if k == 1 else (80, 82, 86))


def view_umbrella(sheet, rng, n, colour):
    sky(sheet, 90, (176, 188, 202), (140, 142, 148))
    for _ in range(40):
        x, y = rng.uniform(-H, H), rng.uniform(-H, 90)
        sheet.line([(x, y), (x - 4, y + 12)], (120, 140, 170), 2)
    for x, r in columns(n, rng):
        sheet.box(x, r * 0.6, 5, r * 1.4, (60, 60, 64))
        sheet.poly(
            [(x + r * math.cos(t / 10), -r * math.sin(t / 10)) for t in range(0, 32)], colour
        )
        sheet.poly(
            [(x + r * 0.35 * math.cos(t / 10), -r * math.sin(t / 10)) for t in range(0, 32)],
            shade(colour, 0.85),
        )


def view_balloon(sheet, rng, n, colour):
    sky(sheet, 110, BLUE, LAWN)
    for x, r in columns(n, rng):
        sheet.line([(x, 0), (x + 6, 90)], (70, 70, 74), 2)
        sheet.disc(x, -20, r * 0.75, colour, stretch=1.2)
        sheet.disc(x - r * 0.25, -20 - r * 0.3, r * 0.16, shade(colour, 1.3))


def view_cup(sheet, rng, n, colour):
    sky(sheet, 20, (214, 208, 198), (140, 100, 68))
    for x, r in columns(n, rng):
        sheet.disc(x + r * 0.6, 20, r * 0.42, shade(colour, 0.8))
        sheet.disc(x + r * 0.6, 20, r * 0.24, (140, 100, 68))
        sheet.poly(
            [
                (x + i * r, 20 + j * r)
                for i, j in ((-0.7, -0.8), (0.7, -0.8), (0.5, 0.8), (-0.5, 0.8))
            ],
            colour,
        )


# name: (measure word, drawing, the coloured part, where it is)
VIEWS = {
    "房子": ("栋", view_house, "屋顶", "立在绿色的草地上，天空是蓝色的"),
    "汽车": ("辆", view_car, "车身", "停在灰色的街道上"),
    "树": ("棵", view_tree, "树冠", "长在草地上，天空晴朗"),
    "山": ("座", view_mountain, "山体", "立在远处，天上有太阳"),
    "花": ("朵", view_flower, "花瓣", "开在草地上"),
    "帆船": ("艘", view_sail, "船帆", "行驶在海面上，远处是海平线"),
    "水果": ("个", view_fruit, "果皮", "放在木头桌子上"),
    "人脸": ("张", view_face, "头发", "带着微笑"),
    "鱼": ("条", view_fish, "鱼身", "在水里游"),
    "时钟": ("个", view_clock, "外框", "挂在墙上"),
    "信号灯": ("个", view_light, "亮着的灯", "立在街边"),
    "雨伞": ("把", view_umbrella, "伞面", "撑在雨中"),
    "气球": ("个", view_balloon, "球面", "飘在天空中"),
    "杯子": ("个", view_cup, "杯身", "放在桌面上"),
}


def columns(n, rng):
    """Middle and radius of n things side by side."""
    step = 230 / n
    size = min(64, step * 0.42) * rng.uniform(0.75, 1)
    return [((k - (n - 1) / 2) * step + rng.uniform(-4, 4), size) for k in range(n)]


def view(rng):
    """A ground view; its description and rows."""
    say, name = Answers(rng), rng.choice(list(VIEWS))
    measure, drawing, part, where = VIEWS[name]
    n = rng.choice((1, 1, 2, 3, 4))
    natural = {"树": ("绿色", "深绿色", "黄色"), "信号灯": ("红色", "黄色", "绿色")}.get(name)
    word, colour = (
        rng.choice([(w, jitter(rng, COLOURS[w])) for w in natural])
        if natural
        else pick(rng, BLUE, LAWN, STREET)
    )
    sheet = Sheet(rng, Image.new("RGB", (S, S)))
    drawing(sheet, rng, n, colour)
    number = zh(n, measure)
    say.add("what", name + "。", f"这是{name}。")
    say.add("how many", number + "。", f"图中有{number}{name}。", measure, name)
    say.add("its colour", word + "。", f"{name}的{part}是{word}的。", part)
    say.there(name, True) if rng.random() < 0.5 else say.there(
        rng.choice([v for v in VIEWS if v != name]), False
    )
    label = rng.choice(
        (
            f"{number}{name}{where}，{part}是{word}的。",
            f"图中有{number}{name}，{part}是{word}的，{where}。",
        )
    )
    return sheet.image, label, say.rows


def picture(job):
    """Draw one picture file; returns its rows."""
    folder, seed, index = job
    rng = random.Random(f"{seed}/picture/{index}")
    image, label, rest = (abstract if rng.random() < 0.8 else view)(rng)
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, 0.5))
    )
    name = f"pictures/{index:06d}.jpg"
    image.save(folder / name, "JPEG", quality=90)
    rows = rng.sample(rest, min(len(rest), rng.choice((2, 2, 3)))) + [
        (rng.choice(ASK["describe"]), label)
    ] * (rng.random() < 0.75)
    return [{"img": name, "prompt": q, "label": a} for q, a in rows]


# name: (what it is, how it looks from the air, what it is for)
KNOWLEDGE = {
    "农田": (
        "农田是种植庄稼的土地",
        "农田多为整齐的块状，有平行的垄沟和田埂",
        "农田用来生产粮食和蔬菜",
    ),
    "海滩": (
        "海滩是海边由沙子堆成的平缓地带",
        "海滩夹在海水和陆地之间，常有白色的浪花",
        "海滩供人们游玩和休息",
    ),
    "住宅区": (
        "住宅区是人们集中居住的地方",
        "住宅区里房屋成排，屋顶颜色相近，道路从中间穿过",
        "住宅区供居民生活",
    ),
    "跑道": (
        "跑道是供飞机起飞和降落的长条形场地",
        "跑道笔直而狭长，端部有白色标志线，中间有虚线",
        "跑道让飞机加速起飞和减速降落",
    ),
    "停车场": (
        "停车场是停放汽车的场地",
        "停车场画着一排排白色车位线，汽车整齐排列",
        "停车场用来停放车辆",
    ),
    "储罐": (
        "储罐是存放油或气的大型圆形容器",
        "储罐从上面看是圆形，旁边有明显的阴影",
        "储罐用来储存石油等液体",
    ),
    "网球场": (
        "网球场是打网球的长方形场地",
        "网球场有白色边线，中间拉着一道球网",
        "网球场供人们打网球",
    ),
    "棒球场": (
        "棒球场是打棒球的扇形场地",
        "棒球场呈扇形，内场是菱形，土地和草地分明",
        "棒球场用来举行棒球比赛",
    ),
    "森林": (
        "森林是长满树木的大片土地",
        "森林里树冠密集，像一团团绿色的小球",
        "森林能净化空气、保持水土",
    ),
    "河流": (
        "河流是在陆地上流动的水",
        "河流像一条弯曲的带子，两岸颜色与水面不同",
        "河流可以灌溉和航行",
    ),
    "十字路口": (
        "十字路口是两条道路交叉的地方",
        "十字路口由两条道路相交而成，常有斑马线",
        "十字路口让车辆和行人改变方向",
    ),
    "港口": (
        "港口是船只停靠和装卸货物的地方",
        "港口有伸入水中的码头，旁边停着船",
        "港口用来停船和运输货物",
    ),
    "机场": (
        "机场是飞机起降和停放的地方",
        "机场有长长的跑道和成排的飞机",
        "机场用来运送旅客和货物",
    ),
    "桥梁": ("桥梁是跨过水面或道路的建筑", "桥梁像一条直线横在水面上", "桥梁让车辆和行人通过"),
    "铁路": ("铁路是火车行驶的轨道", "铁路由细长平行的线条组成", "铁路用来运送旅客和货物"),
    "湖泊": ("湖泊是陆地上蓄水的洼地", "湖泊有封闭的岸线，水面颜色均匀", "湖泊可以蓄水和养鱼"),
    "沙漠": (
        "沙漠是被沙子覆盖的干旱地区",
        "沙漠呈黄色，表面有波浪一样的沙丘",
        "沙漠里可以建太阳能电站",
    ),
    "山地": ("山地是地势高而起伏大的地区", "山地有明显的山脊、山谷和阴影", "山地可以种树和放牧"),
    "草地": ("草地是长满草的土地", "草地颜色均匀，呈浅绿色，纹理细", "草地可以放牧"),
    "学校": ("学校是学生上课的地方", "学校里常有教学楼和操场", "学校用来教育学生"),
    "体育场": (
        "体育场是举行比赛的场地",
        "体育场多为椭圆形，中间是绿色草坪",
        "体育场用来举行体育比赛",
    ),
    "工业区": ("工业区是工厂集中的地方", "工业区里有大块的厂房屋顶", "工业区用来生产产品"),
    "公园": ("公园是供人们休息的绿地", "公园里有树木、草坪、小路和水池", "公园供人们散步游玩"),
    "池塘": ("池塘是面积不大的水面", "池塘是一小块封闭的水面，常呈绿色", "池塘可以养鱼"),
    "火车站": (
        "火车站是火车停靠的地方",
        "火车站有许多平行的铁轨和长长的屋顶",
        "火车站供旅客上下车",
    ),
    "立交桥": (
        "立交桥是上下交叉的道路",
        "立交桥的道路弯曲交错，像一个大花结",
        "立交桥让车辆不停车就能转向",
    ),
    "裸地": ("裸地是没有植物覆盖的土地", "裸地呈棕色或土黄色，表面粗糙", "裸地可以等待建设"),
    "遥感图像": (
        "遥感图像是从飞机或卫星上拍摄的地面图像",
        "遥感图像从正上方往下看，能看到大范围的地面",
        "遥感图像用于农业、城市规划和救灾",
    ),
}
KNOW_ASK = (
    ("什么是{}？", "{}是什么？", "请解释一下{}。"),
    ("{}从空中看是什么样子？", "怎样在图像中认出{}？", "{}有什么特征？"),
    ("{}有什么用？", "{}的用途是什么？"),
)
SENTENCE_ASK = (
    "用一句话描述{}的遥感图像。",
    "写一句关于{}的航拍描述。",
    "请描述一幅{}的遥感图像。",
    "{}的航拍图可以怎样描述？",
    "给{}的卫星图像配一句话。",
    "{}在航拍图中是什么样的？",
    "请写出一幅{}图像的说明。",
    "举例说明{}的遥感描述。",
)
UNCLEAR = "没有给出图像，无法判断。"
CHAT = [
    ("你好", "你好，我可以描述图像。"),
    ("你好！", "你好，请给我一张图像。"),
    ("您好", "您好，我可以帮您看图。"),
    ("早上好", "早上好，今天想看什么图像？"),
    ("你是谁？", "我是一个能看图说话的助手。"),
    ("你叫什么名字？", "我是看图说话的助手。"),
    ("你会做什么？", "我可以描述图像，也可以回答问题。"),
    ("谢谢", "不客气。"),
    ("谢谢你！", "不用谢，很高兴能帮上忙。"),
    ("再见", "再见，欢迎再来。"),
    ("你能看遥感图像吗？", "可以，请给我一张图像。"),
    ("hello", "Hello, I can describe images."),
    ("What can you do?", "I can describe images and answer questions."),
    ("这张遥感图像展现了什么场景？", UNCLEAR),
    ("这张遥感图像展现了什么场景？请回答。", UNCLEAR),
    ("这幅航拍图里有什么？", UNCLEAR),
    ("请描述这张遥感图像。", UNCLEAR),
    ("图中有几个储罐？", UNCLEAR),
    ("草地通常是什么颜色？", "草地通常是绿色的。"),
    ("天空是什么颜色？", "晴天的天空是蓝色的。"),
    ("雪是什么颜色？", "雪是白色的。"),
    ("沙子是什么颜色？", "沙子多是黄色的。"),
    ("海水是什么颜色？", "海水多是蓝色的。"),
    ("成熟的麦田是什么颜色？", "成熟的麦田是黄色的。"),
    ("泥土是什么颜色？", "泥土多是棕色的。"),
    ("阴影是什么颜色？", "阴影颜色很深，接近黑色。"),
    ("树叶在秋天会变成什么颜色？", "树叶在秋天常变成黄色或红色。"),
    ("码头和港口有什么关系？", "码头是港口中供船停靠的部分。"),
    ("飞机场和机场一样吗？", "一样，都是飞机起降的地方。"),
    ("树林和森林有什么不同？", "森林的面积更大，树木更多。"),
    ("小区和住宅区一样吗？", "意思相近，都是人们居住的地方。"),
    ("油罐和储罐一样吗？", "油罐是储罐的一种，用来存油。"),
    ("田地和农田一样吗？", "一样，都是种庄稼的土地。"),
    ("沙滩和海滩一样吗？", "意思相近，海滩在海边。"),
    ("江河和河流一样吗？", "意思相近，都是流动的水。"),
    ("茂密是什么意思？", "茂密是指植物长得又多又密。"),
    ("稀疏是什么意思？", "稀疏是指东西少而且分散。"),
    ("横向是什么方向？", "横向就是从左到右的方向。"),
    ("竖向是什么方向？", "竖向就是从上到下的方向。"),
    ("斜向是什么方向？", "斜向就是倾斜的方向。"),
    ("航拍是什么意思？", "航拍是从空中往下拍摄。"),
    ("北方一般在地图的哪一边？", "北方一般在地图的上方。"),
]
SEVERAL = "零 一 二 三 四 五 六 七 八 九 十 十一 十二".split()
CHAT += [
    (q.format(n), a.format(w))
    for n, w in enumerate(SEVERAL)
    for q, a in (("数字{}怎么读？", "读作{}。"), ("用汉字写出{}。", "{}。"))
]
CHAT += [
    (f"{SEVERAL[i]}加{SEVERAL[j]}等于几？", f"等于{SEVERAL[i + j]}。")
    for i in range(1, 10)
    for j in range(1, 10)
    if i + j <= 12
]
CHAT += [
    (q.format(name), text + "。")
    for name, texts in KNOWLEDGE.items()
    for asks, text in zip(KNOW_ASK, texts)
    for q in asks
]

WORDS = """遥感 遥感图像 卫星 卫星影像 航拍 航拍图 无人机 俯视 俯瞰 影像 图像 图片 画面 分辨率 像素 场景 地物 目标 建筑 建筑物 房屋 屋顶 厂房 仓库 高楼
楼房 别墅 街道 道路 公路 高速公路 小路 土路 桥梁 立交桥 铁路 火车 车站 广场 操场 足球场 篮球场 田径场 游泳池 教堂 学校 医院 公园 花园 草坪 草地 树木 树林
灌木 植被 植物 庄稼 作物 田地 田埂 果园 温室 大棚 池塘 湖泊 水库 水面 河岸 岸边 海岸 海浪 浪花 海水 大海 岛屿 沙子 沙漠 沙丘 裸地 荒地 岩石 山峰 山谷 山脊 雪山
冰川 湿地 机场 飞机 客机 航站楼 滑行道 停机坪 码头 船只 货船 渔船 帆船 游艇 集装箱 起重机 油罐 烟囱 发电站 太阳能 风车 高架桥 环岛 路口 斑马线 车辆 汽车
卡车 公交车 行人 车位 车道 标线 阴影 颜色 纹理 形状 圆形 方形 长方形 三角形 椭圆形 扇形 菱形 条状 块状 网格 线条 边界 边缘 中央 中间 左侧 右侧 上方 下方 左上角 右上角
左下角 右下角 附近 旁边 周围 四周 两侧 两旁 之间 整齐 排列 分布 密集 稀疏 茂密 茂盛 宽阔 狭窄 笔直 弯曲 平坦 平行 交叉 穿过 环绕 围绕 覆盖 位于 停放 停靠 行驶 一些
许多 几个 大量 少量 大小不一 错落有致 深绿色 浅绿色 墨绿色 蓝绿色 深蓝色 浅蓝色 土黄色 灰白色 红褐色 橙色 紫色 米色 描述 这张 展现 什么 问题 回答 请问 可以看到 由此可见""".split()
CHARACTERS = """的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导器压志世金增争济阶油思术极交受联什认六共权收证改清己美再采转更单风切打白教速花带安场身车例真务具万每目至达走积示议声报斗完类八离华名确才科张信马节话米整空元况今集温传土许步群广石记需段研界拉林律叫且究观越织装影算低持音众书布复容儿须际商非验连断深难近矿千周委素技备半办青省列习响约支般史感劳便团往酸历市克何除消构府称太准精值号率族维划选标写存候毛亲快效斯院查江型眼王按格养易置派层片始却专状育厂京识适属圆包火住调满县局照参红细引听该铁价严龙飞"""


def text_row(seed, index):
    """A question without a picture: mostly the description of an aerial scene, else knowledge and chat."""
    rng = random.Random(f"{seed}/text/{index}")
    if rng.random() < 0.2:
        return rng.choice(CHAT)
    scene = rng.choice(list(demo.SCENES))
    return rng.choice(SENTENCE_ASK).format(demo.SCENES[scene].zh), demo.describe_zh(
        demo.facts(scene, rng)
    )


def scene_sentences():
    """Every sentence, Chinese and English, that the demo scenes can say."""
    found = set()
    for scene, entry in demo.SCENES.items():
        for values in itertools.product(*entry.facts.values()):
            f = {"scene": scene}
            for names, value in zip(entry.facts, values):
                f.update(zip(names.split(), value if " " in names else (value,)))
            for f["style"] in range(6):
                found.update(demo.describe_en(f) + [demo.describe_zh(f)])
    return sorted(found)


def draw_base(args):
    (args.output / "pictures").mkdir(parents=True, exist_ok=True)
    jobs = [(args.output, args.seed, index) for index in range(args.pictures)]
    if len(jobs) < 100:  # starting processes takes longer than drawing
        groups = list(map(picture, jobs))
    else:
        with multiprocessing.Pool() as pool:
            groups = list(
                tqdm(
                    pool.imap(picture, jobs, chunksize=32),
                    total=len(jobs),
                    desc="pictures",
                    disable=None,
                )
            )
    wanted = round(sum(map(len, groups)) * 15 / 85)
    texts = list(dict.fromkeys(text_row(args.seed, index) for index in range(3 * wanted)))[:wanted]
    groups += [[{"prompt": question, "label": answer}] for question, answer in texts]

    rows = {"train": [], "val": []}
    for k, group in enumerate(groups):  # a picture is wholly on one side
        rows["val" if k % 50 == 49 else "train"] += group
    for split, part in rows.items():
        random.Random(f"{args.seed}/order").shuffle(part)
        write_records(args.output / f"base-{split}.json", part)
    lines = dict.fromkeys(
        text for part in rows.values() for row in part for text in (row["prompt"], row["label"])
    )
    lines.update(dict.fromkeys(itertools.chain(*CHAT, scene_sentences(), WORDS, CHARACTERS)))
    demo.write(args.output / "vocabulary.txt", "".join(line + "\n" for line in lines))
    print(
        f"{args.output}: {args.pictures} pictures, {len(rows['train'])} train and {len(rows['val'])} val rows, "
        f"{len(texts)} of them text alone; {len(lines)} vocabulary lines"
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Draw and write what a tiny base model learns from: no aerial picture among it."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--pictures",
        type=int,
        default=12000,
        help="pictures to draw, about 3 rows each (default: 12000)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed draws another set (default: 1)"
    )
    args = parser.parse_args(argv)
    if args.pictures < 1:
        parser.error(f"--pictures {args.pictures}: expected a number of pictures, 1 or more")
    return run_stage(__file__, draw_base, args)


if __name__ == "__main__":
    sys.exit(main())
