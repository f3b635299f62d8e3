"""Abstract images for the tiny base: textures, regions, bands and counted shapes.

`abstract` draws one and says what is in it; the order of its random draws is fixed.
"""

import itertools
import math

from PIL import Image

from data.synthetic.sheet import HALF, SHEET, Sheet, flat, jitter, shade, texture, wave
from data.synthetic.wording import COLOURS, Answers, pick, zh

TEXTURES = (
    "纯色 细颗粒 粗颗粒 横条纹 竖条纹 斜条纹 网格 点状 短划线 棋盘格 波浪纹 渐变 团块".split()
)
SHAPES = "圆 圆环 正方形 长方形 三角形 菱形 星形 十字 小点 扇形 椭圆".split()
# one side, the other, and how far they are rotated, in units of pi
SIDES = (
    ("上边", "下边", 0.0),
    ("左边", "右边", -0.5),
    ("左上", "右下", -0.25),
    ("右上", "左下", 0.25),
)
# in units of pi
WAYS = {"横向": 0.0, "竖向": 0.5, "斜向": 0.25}
SCATTERED = "随意分布"
SHADOW = (16, 20, 28, 110)


class Composition:
    """An image under way: its sheet, what is said of it, and the colours that it uses."""

    def __init__(self, rng, sheet, colour):
        self.rng, self.sheet = rng, sheet
        self.answers = Answers(rng)
        self.sentences = []
        self.colours = [colour]


def abstract(rng):
    """An abstract image: (sheet image, description, [(question, answer), ...])."""
    word, colour = pick(rng)
    kind = rng.choice(TEXTURES)
    layout = rng.choice(("plain", "plain", "split", "split", "band", "band", "crossing"))
    sheet = Sheet(rng, surface(rng, colour, kind))
    drawing = Composition(rng, sheet, colour)

    if layout == "split":
        draw_second_half(drawing, word, kind)
    else:
        drawing.sentences.append(f"背景是{word}的{kind}。")
        drawing.answers.add("colour", word + "。", f"背景是{word}的。")
        drawing.answers.add("texture", kind + "。", f"背景的纹理是{kind}。")
    if layout in ("band", "crossing"):
        draw_bands(drawing, layout)
    if rng.random() < 0.3:
        drawing.answers.there("交叉的带子", layout == "crossing")
    sheet.angle = 0.0
    draw_shapes(drawing)
    return sheet.image, "".join(drawing.sentences), drawing.answers.rows


def draw_second_half(drawing, word, kind):
    """word, kind: colour and texture of the first half."""
    rng, sheet, say = drawing.rng, drawing.sheet, drawing.answers
    one, two, angle = rng.choice(SIDES)
    word2, colour2 = pick(rng, *drawing.colours)
    kind2, wavy, cut = rng.choice(TEXTURES), rng.random() < 0.5, rng.uniform(-40, 40)
    drawing.colours.append(colour2)
    edge = wave(rng, 22) if wavy else flat
    sheet.angle = angle * math.pi
    sheet.band(lambda t: cut + edge(t), lambda t: 300, surface(rng, colour2, kind2))

    shape = "波浪形" if wavy else "直"
    drawing.sentences.append(
        f"画面{one}是{word}的{kind}，{two}是{word2}的{kind2}，边界是{shape}的。"
    )
    for side, w, k in ((one, word, kind), (two, word2, kind2)):
        say.add("side colour", w + "。", f"画面{side}是{w}的。", side)
        say.add("side texture", k + "。", f"画面{side}的纹理是{k}。", side)
    say.add("edge", shape + "的。", f"两部分的边界是{shape}的。")


def draw_bands(drawing, layout):
    """One band across the image, or two that cross."""
    rng, say = drawing.rng, drawing.answers
    word, colour = pick(rng, *drawing.colours)
    drawing.colours.append(colour)
    way, curved, half = rng.choice(list(WAYS)), rng.random() < 0.5, rng.uniform(10, 34)
    angles = [WAYS[way] * rng.choice((1, -1)) * math.pi + rng.uniform(-0.12, 0.12)]
    if layout == "crossing":
        angles.append(angles[0] + math.pi / 2)
    skin = surface(rng, colour, rng.choice(("纯色", "纯色", "细颗粒", "粗颗粒")))
    for angle in angles:
        drawing.sheet.angle = angle
        draw_band(drawing, curved, half, colour, skin)

    bent = "弯曲" if curved else "笔直"
    if layout == "crossing":
        drawing.sentences.append(f"两条{bent}的{word}带子在画面中交叉。")
    else:
        drawing.sentences.append(f"一条{bent}的{word}带子{way}穿过画面。")
        say.add("way", way + "。", f"带子是{way}的。")
    number = zh(len(angles), "条")
    say.add("bend", bent + "的。", f"带子是{bent}的。")
    say.add("band colour", word + "。", f"带子是{word}的。")
    say.add("bands", number + "。", f"图中有{number}带子。")


def draw_band(drawing, curved, half, colour, skin):
    """half: of its width; skin: its texture."""
    rng, sheet = drawing.rng, drawing.sheet
    bend, shift = wave(rng, 30) if curved else flat, rng.uniform(-30, 30)
    sheet.band(lambda t: shift + bend(t) - half, lambda t: shift + bend(t) + half, skin)
    if rng.random() < 0.4:
        mark = COLOURS["白色" if sum(colour) < 500 else "黑色"]
        for t in range(-200, 201, 26):
            ends = [(t, shift + bend(t)), (t + 13, shift + bend(t + 13))]
            sheet.line(ends, mark, 3)


def draw_shapes(drawing):
    """Up to two kinds of shape, and a question about one that is there or not."""
    rng = drawing.rng
    present = rng.sample(SHAPES, rng.choice((0, 1, 1, 1, 1, 2)))
    # two kinds of shape share these cells and do not cover each other
    cells, _ = places_of(rng, SCATTERED, 16)
    for shape in present:
        count = draw_shape_group(drawing, shape, cells, alone=len(present) == 1)
        cells = cells[count:]
    if not present:
        drawing.sentences.append("没有图形。")

    found = rng.random() < 0.5 and bool(present)
    candidates = present
    if not found:
        candidates = [shape for shape in SHAPES if shape not in present]
    drawing.answers.there(rng.choice(candidates), found)


def draw_shape_group(drawing, shape, cells, alone):
    """Several of one shape; returns how many. cells: free places; alone: no other kind is there."""
    rng, say = drawing.rng, drawing.answers
    word, colour = pick(rng, *drawing.colours)
    drawing.colours.append(colour)
    count = rng.randint(1, 12 if alone else 6)
    arrangement = rng.choice(arrangements(count)) if alone else SCATTERED
    if arrangement == SCATTERED:
        places, largest = cells[:count], 26
    else:
        places, largest = places_of(rng, arrangement, count)
    r, turn = largest * rng.uniform(0.65, 1), rng.choice((0, rng.uniform(0, 3)))
    lines = shape in ("圆", "正方形", "长方形", "扇形") and rng.random() < 0.4
    shadow = rng.random() < 0.4 and shape not in ("小点", "圆环")
    for x, y in places:
        if shadow:
            draw_shape(drawing.sheet, shape, x + 4, y + 4, r, SHADOW, turn, False)
        draw_shape(drawing.sheet, shape, x, y, r, jitter(rng, colour, 4), turn, lines)

    number = zh(count, "个")
    where = f"，{arrangement}" if count > 1 else ""
    inside = "，里面有线条" if lines else ""
    drawing.sentences.append(f"上面有{number}{word}的{shape}{where}{inside}。")
    say.add("count", number + "。", f"图中有{number}{shape}。", shape)
    say.add("shape colour", word + "。", f"图中的{shape}是{word}的。", shape)
    if alone:
        say.add("shape", shape + "。", f"图中的图形是{shape}。")
    if count > 1:
        say.add("arrange", arrangement + "。", f"{shape}{arrangement}。", shape)
    return count


def arrangements(count):
    """How so many shapes may lie; one that stands twice is drawn twice as often."""
    ways = [SCATTERED]
    if 2 < count < 8:
        ways.append("排成一行")
    if count > 4:
        ways.append("围在四周")
    if count in (4, 6, 9, 12):
        ways += ["排成方阵", "排成方阵"]
    if count in (4, 6, 8, 10):
        ways.append("排成两行")
    return ways


def places_of(rng, arrangement, count):
    """([(x, y), ...] of `count` shapes, how large they may be)."""
    if arrangement == "排成一行":
        step, slope = 230 / count, rng.choice((0, 0, math.pi / 2, 0.5))
        along = [(k - (count - 1) / 2) * step for k in range(count)]
        return [(t * math.cos(slope), t * math.sin(slope)) for t in along], min(34, step * 0.42)

    if arrangement in ("排成方阵", "排成两行"):
        two_rows = arrangement == "排成两行"
        cols = count // 2 if two_rows else {4: 2, 6: 3, 9: 3, 12: 4}[count]
        rows, step = count // cols, 220 / max(cols, 3)
        gap = 140 if two_rows else step
        grid = []
        for i in range(cols):
            for j in range(rows):
                grid.append(((i - (cols - 1) / 2) * step, (j - (rows - 1) / 2) * gap))
        if rng.random() < 0.5:
            grid = [(y, x) for x, y in grid]
        return grid, step * 0.4

    if arrangement == "围在四周":
        turn = rng.uniform(0, 6)
        angles = [turn + 2 * math.pi * k / count for k in range(count)]
        return [(96 * math.cos(a), 96 * math.sin(a)) for a in angles], min(26, 230 / count)

    cells = rng.sample([(i, j) for i in range(4) for j in range(4)], count)
    places = []
    for i, j in cells:
        places.append((i * 62 - 93 + rng.uniform(-6, 6), j * 62 - 93 + rng.uniform(-6, 6)))
    return places, 26


def draw_shape(sheet, shape, x, y, r, colour, turn, lines):
    """One shape of about radius r; lines: an inner drawing."""
    if shape in ("圆", "小点", "椭圆"):
        radius = r * 0.3 if shape == "小点" else r
        sheet.disc(x, y, radius, colour, stretch=0.58 if shape == "椭圆" else 1)
    elif shape == "圆环":
        a, b = sheet.at(x, y)
        box = (a - r, b - r, a + r, b + r)
        sheet.pen.ellipse(box, outline=colour, width=round(r * 0.4))
    elif shape == "扇形":
        arc = [turn + t * math.pi / 24 for t in range(-6, 7)]
        rim = [(x + 1.3 * r * math.cos(t), y + 1.3 * r * math.sin(t)) for t in arc]
        sheet.poly([(x, y), *rim], colour)
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
    elif shape == "星形":
        sheet.poly(star(x, y, r, turn, 5, 0.42), colour)
    else:
        triangle = star(x, y, r, turn, 3, 0.5)[::2]
        sheet.poly(triangle, colour)

    if lines:
        tone = shade(colour, 0.6) if sum(colour) > 240 else (220, 220, 216)
        c, s = math.cos(turn) * r * 0.7, math.sin(turn) * r * 0.7
        sheet.line([(x - c, y - s), (x + c, y + s)], tone, 3)
        sheet.line([(x + s * 0.5, y - c * 0.5), (x - s * 0.5, y + c * 0.5)], tone, 3)


def star(x, y, r, turn, n, inner):
    """The corners of a star with n points; inner: radius of its inner corners, of r."""
    points = []
    for k in range(2 * n):
        q = r if k % 2 == 0 else r * inner
        angle = turn + k * math.pi / n
        points.append((x + q * math.cos(angle), y + q * math.sin(angle)))
    return points


def surface(rng, colour, kind):
    """A sheet of a colour with a texture, one of TEXTURES."""
    grain = {"细颗粒": (0.3, (3, 2)), "粗颗粒": (0.34, (28, 14))}.get(kind, (0.05, (64, 16, 4)))
    sheet = Sheet(rng, texture(rng, colour, *grain))
    if sum(colour) > 180:
        tone = shade(colour, rng.choice((0.66, 0.76)))
    else:
        tone = shade([c + 40 for c in colour], 1.3)
    step = rng.choice((12, 16, 24, 36))

    if "条纹" in kind:
        draw_stripes(sheet, rng, kind, step, tone)
    elif kind == "网格":
        draw_grid(sheet, rng, step, tone)
    elif kind == "波浪纹":
        draw_waves(sheet, rng, step, tone)
    elif kind in ("点状", "短划线", "棋盘格"):
        draw_pattern(sheet, rng, kind, max(16, step), tone)
    elif kind == "渐变":
        ramp = Image.linear_gradient("L").resize((SHEET, SHEET))
        ramp = ramp.rotate(rng.choice((0, 90, 180, 270)))
        sheet.image.paste(Image.new("RGB", (SHEET, SHEET), tone), mask=ramp)
    elif kind == "团块":
        for _ in range(170):
            x, y = rng.uniform(-HALF, HALF), rng.uniform(-HALF, HALF)
            sheet.tree(x, y, rng.uniform(8, 15), colour)
    return sheet.image


def draw_stripes(sheet, rng, kind, step, tone):
    # drawn for any direction, so that the later draws are the same
    slanted = rng.choice((0.25, -0.25, 0.17, 0.33))
    sheet.angle = math.pi * {"横": 0.0, "竖": 0.5, "斜": slanted}[kind[0]]
    for t in range(-200, 201, step):
        sheet.box(0, t, 400, step * rng.choice((0.5, 0.3)), tone)


def draw_grid(sheet, rng, step, tone):
    sheet.angle = rng.choice((0, 0, 0.6))
    for t in range(-200, 201, max(16, step)):
        sheet.box(0, t, 400, 4, tone)
        sheet.box(t, 0, 4, 400, tone)


def draw_waves(sheet, rng, step, tone):
    sheet.angle = rng.uniform(0, 3.1)
    width = max(2, round(step * 0.35))
    for t in range(-200, 201, step):
        crest = []
        for x in range(-200, 201, 4):
            crest.append((x, t + step * 0.4 * math.sin(x / step * 1.6)))
        sheet.line(crest, tone, width)


def draw_pattern(sheet, rng, kind, step, tone):
    sheet.angle = rng.choice((0, 0, 0.4))
    for i, j in itertools.product(range(-11, 12), repeat=2):
        if kind == "短划线":
            sheet.box(i * step, j * step * 1.6, step * 0.45, step, tone)
        elif kind == "点状":
            sheet.disc(i * step + (j % 2) * step / 2, j * step, step * 0.22, tone)
        elif (i + j) % 2:
            sheet.box(i * step, j * step, step, step, tone)
