"""Ground views for the tiny base: houses, cars, fish, ... side by side, seen from the ground.

`view` draws one and says what is in it; the order of its random draws is fixed. A drawing gets the
sheet, rng, how many, and the colour of the part that VIEWS names.
"""

import math

from PIL import Image

from data.synthetic.sheet import HALF, SHEET, Sheet, jitter, shade, texture
from data.synthetic.wording import COLOURS, Answers, pick, zh


def sky(sheet, horizon, top, low):
    sheet.image.paste(texture(sheet.rng, jitter(sheet.rng, top), 0.05))
    sheet.poly(
        [(-HALF, horizon), (HALF, horizon), (HALF, HALF), (-HALF, HALF)],
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
        x, y = rng.uniform(-HALF, HALF), rng.uniform(-HALF, 90)
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


# colours that a thing has by nature; the others have any
NATURAL = {"树": ("绿色", "深绿色", "黄色"), "信号灯": ("红色", "黄色", "绿色")}
# name: (counter, drawing, the coloured part, where it is)
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
    """A ground view: (sheet image, description, [(question, answer), ...])."""
    say, name = Answers(rng), rng.choice(list(VIEWS))
    counter, drawing, part, where = VIEWS[name]
    n = rng.choice((1, 1, 2, 3, 4))
    word, colour = colour_of(rng, name)
    sheet = Sheet(rng, Image.new("RGB", (SHEET, SHEET)))
    drawing(sheet, rng, n, colour)

    number = zh(n, counter)
    say.add("what", name + "。", f"这是{name}。")
    say.add("how many", number + "。", f"图中有{number}{name}。", counter, name)
    say.add("its colour", word + "。", f"{name}的{part}是{word}的。", part)
    if rng.random() < 0.5:
        say.there(name, True)
    else:
        say.there(rng.choice([other for other in VIEWS if other != name]), False)
    label = rng.choice(
        (
            f"{number}{name}{where}，{part}是{word}的。",
            f"图中有{number}{name}，{part}是{word}的，{where}。",
        )
    )
    return sheet.image, label, say.rows


def colour_of(rng, name):
    """A colour by name and value: a natural one where the thing has some, else unlike the rest."""
    if name not in NATURAL:
        return pick(rng, BLUE, LAWN, STREET)
    # all are drawn before one is chosen
    return rng.choice([(word, jitter(rng, COLOURS[word])) for word in NATURAL[name]])
