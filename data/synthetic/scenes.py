"""The twelve aerial scenes: facts -> drawing. Seen from straight above.

Each function draws on a Sheet that is covered by `ground`; f: the facts, see captions.py.
"""

import math

from PIL import ImageDraw, ImageEnhance

from data.synthetic.captions import DIRECTIONS, SIDES, facts
from data.synthetic.sheet import (
    HALF,
    LINE,
    PAINT,
    Sheet,
    finish,
    jitter,
    relit,
    shade,
    texture,
    wave,
)

CROP = {
    "green": (112, 150, 62),
    "dark green": (52, 92, 50),
    "yellow": (212, 186, 96),
    "brown": (140, 106, 74),
}
COURT = {
    "green": (72, 126, 84),
    "blue": (56, 100, 164),
    "red": (180, 84, 66),
    "gray": (140, 142, 142),
}
WATER = {
    "blue": (48, 98, 148),
    "green": (62, 108, 94),
    "brown": (128, 112, 78),
    "gray": (96, 112, 124),
}
GRASS, BARE, CONCRETE = (108, 138, 74), (168, 144, 108), (176, 174, 166)
UNDERGROWTH = (56, 76, 40)
WOOD = {
    "green": ((82, 122, 54),),
    "dark green": ((42, 78, 46),),
    "yellow and green": ((80, 116, 54), (176, 144, 62), (152, 126, 60)),
}
ROOFS = ((168, 160, 150), (190, 186, 180), (150, 124, 108))
ASPHALT, FOAM = (96, 98, 102), (240, 244, 242, 235)


# (enhancer, least, greatest)
EVEN_LIGHT = (
    (ImageEnhance.Brightness, 0.88, 1.14),
    (ImageEnhance.Contrast, 0.92, 1.14),
    (ImageEnhance.Color, 0.85, 1.15),
)


def render(scene, rng, plain=False):
    """An image of the scene (RGB, SIZE x SIZE) and its facts, both drawn from rng.

    plain: in even light, instead of that of many days and cameras.
    """
    f = facts(scene, rng)
    sheet = Sheet(rng, texture(rng, jitter(rng, ground(f))))
    DRAW[scene](sheet, rng, f)

    image = finish(rng, sheet.image, 0.45)
    if not plain:
        return relit(rng, image), f
    for kind, low, high in EVEN_LIGHT:
        image = kind(image).enhance(rng.uniform(low, high))
    return image, f


def ground(f):
    """The colour under a scene."""
    scene = f["scene"]
    if scene == "harbour":
        return WATER[f["water"]]
    if scene == "forest":
        return UNDERGROWTH
    if scene == "beach":
        return BARE
    if scene == "tanks":
        colours = {"green grass": GRASS, "bare ground": BARE, "concrete ground": CONCRETE}
        return colours[f["ground"]]
    if scene == "intersection" and f["corner"] == "buildings":
        return CONCRETE
    if "bare ground" in (f.get("ground"), f.get("bank")):
        return BARE
    return GRASS


def aligned(rng, tilt):
    """An angle near the horizontal or the vertical, at most `tilt` radians away."""
    return rng.uniform(-tilt, tilt) + rng.choice((0, 0.5)) * math.pi


def heading(rng, direction):
    """An angle for one of DIRECTIONS, a little off."""
    return rng.choice(DIRECTIONS[direction]) * math.pi + rng.uniform(-0.1, 0.1)


def farmland(sheet, rng, f):
    # drawn for any number of fields, so that the later draws are the same
    four = rng.choice(((2, 2), (1, 4)))
    rows, cols = {3: (1, 3), 4: four, 5: (1, 5), 6: (2, 3)}[f["fields"]]
    sheet.angle = aligned(rng, 0.5)
    xs, ys = borders(rng, cols), borders(rng, rows)
    for i in range(cols):
        for j in range(rows):
            colour = (f["colour"], f["other"])[(i + j) % 2]
            x, y, u, v = xs[i], ys[j], xs[i + 1], ys[j + 1]
            field = furrowed(sheet, rng, jitter(rng, CROP[colour], 8))
            sheet.poly([(x, y), (u, y), (u, v), (x, v)], field)

    road = f["border"] == "a dirt road"
    ridge = (92, 104, 58) if road else (196, 180, 132)
    for x in xs[1:-1]:
        sheet.line([(x, -250), (x, 250)], ridge, 4)
    for y in ys[1:-1]:
        sheet.line([(-250, y), (250, y)], ridge, 4)
    if road:
        x = xs[1 + (cols - 1) // 2]
        sheet.box(x, 0, 15, 500, texture(rng, (206, 184, 142), 0.1))
        sheet.line([(x, -250), (x, 250)], (178, 156, 116), 3)


def borders(rng, n):
    """Where n fields side by side begin and end."""
    inner = [(k - n / 2 + rng.uniform(-0.1, 0.1)) * 225 / n for k in range(1, n)]
    return [-250, *inner, 250]


def furrowed(sheet, rng, base):
    """A texture with furrows along one axis of the sheet."""
    field = texture(rng, base, 0.14)
    furrow, along = shade(base, rng.choice((0.74, 1.2))), rng.random() < 0.6
    pen, step = ImageDraw.Draw(field), rng.choice((8, 10, 12))
    for t in range(-250, 250, step):
        ends = ((t, -250), (t, 250)) if along else ((-250, t), (250, t))
        pen.line([sheet.at(*end) for end in ends], fill=furrow, width=2)
    return field


def beach(sheet, rng, f):
    # as if the sea lay at the top
    sheet.angle = SIDES[f["sea"]] * math.pi + rng.uniform(-0.16, 0.16)
    shore, coast = wave(rng, 16), rng.uniform(-30, 5)

    def land(offset, fill, share=1.0):
        sheet.band(lambda t: coast + offset + share * shore(t), lambda t: 260, fill)

    sheet.image.paste(texture(rng, jitter(rng, (34, 98, 140), 10), 0.1, (64, 24, 6)))
    # shallower and lighter towards the shore
    for k in range(8):
        land(-64 + 8 * k, (70 + 9 * k, 160 + 6 * k, 176 + 2 * k, 70))
    sand = {"yellow": (222, 194, 132), "white": (234, 226, 206)}[f["sand"]]
    land(0, texture(rng, shade(sand, 0.82), 0.05))
    land(12, texture(rng, jitter(rng, sand, 6), 0.08, (32, 8, 2)))
    draw_foam(sheet, rng, coast, shore)

    edge = coast + 88
    backs = {"green trees": (70, 104, 52), "a road": (150, 150, 112), "green grass": (112, 142, 76)}
    land(88, texture(rng, backs[f["back"]]), 0.5)
    if f["back"] == "a road":
        sheet.box(0, edge + 30, 420, 26, ASPHALT)
        sheet.dashes(edge + 30)
    if f["back"] == "green trees":
        sheet.trees(110, lambda x, y: y > edge + 6 + shore(x) / 2)

    places = [(i, j) for i in range(-4, 5) for j in (0, 1)]
    for i, j in rng.sample(places, f["umbrellas"]):
        x, y = 24 * i + rng.uniform(-4, 4), coast + 38 + 26 * j + rng.uniform(-4, 4)
        draw_umbrella(sheet, x, y, f["umbrella"])


def draw_foam(sheet, rng, coast, shore):
    """Whole along the shore, in pieces further out."""
    for offset, width in ((-2, 6), (-18, 3), (-34, 2)):
        start = -190
        while start < 190:
            length = 400 if offset == -2 else rng.randint(20, 70)
            crest = []
            for t in range(start, start + length, 4):
                crest.append((t, coast + offset + shore(t) + 2 * math.sin(t / 5)))
            sheet.line(crest, FOAM, width)
            start += length + rng.randint(10, 60)


def draw_umbrella(sheet, x, y, colour):
    inner = 0.86 if colour == "white" else 1.25
    for r, light, lift in ((8.5, 1, 6), (4.5, inner, 0), (1.5, 2, 0)):
        sheet.disc(x, y, r, shade(PAINT[colour], light), lift)


def residential(sheet, rng, f):
    sheet.angle = aligned(rng, 0.3)
    sheet.box(0, 0, 420, 34, (172, 168, 158))
    sheet.box(0, 0, 420, 26, texture(rng, jitter(rng, ASPHALT), 0.08))
    sheet.dashes(0)

    houses, upper = [], f["houses"] // 2
    for side, count in ((-1, upper), (1, f["houses"] - upper)):
        step = 215 / max(count, 3)
        size = min(46, step * 0.72)
        for k in range(count):
            x = (k - (count - 1) / 2) * step + rng.uniform(-3, 3)
            driveway = (190, 186, 176)
            sheet.box(x + size * 0.3, side * 26, 8, 30, driveway)
            houses.append((x, side * (26 + size * 0.62 + rng.uniform(2, 9)), size))

    def free(x, y):
        far = all(math.hypot(x - a, y - b) > size * 0.72 + 8 for a, b, size in houses)
        return abs(y) > 30 and far

    if "trees" in f["around"]:
        sheet.trees(46, free, (7, 12))
    for x, y, size in houses:
        draw_house(sheet, rng, x, y, size, PAINT[f["roof"]])


def draw_house(sheet, rng, x, y, size, paint):
    roof, h = jitter(rng, paint, 10), size * rng.uniform(0.66, 0.8)
    turn = rng.choice((0, 0, math.pi / 2))
    c, s = math.cos(turn), math.sin(turn)
    sheet.box(x, y, size, h, shade(roof, 0.8), 9, turn)
    # the slope in the sun, the ridge, the chimney
    sheet.box(x - s * h / 4, y - c * h / 4, size, h / 2, shade(roof, 1.12), 0, turn)
    ridge = [(x - c * size / 2, y - s * size / 2), (x + c * size / 2, y + s * size / 2)]
    sheet.line(ridge, shade(roof, 1.4), 2)
    sheet.box(x + size * 0.2, y - size * 0.16, 5, 5, (210, 204, 196), 3)


def runway(sheet, rng, f):
    sheet.angle = heading(rng, f["direction"])
    width = rng.uniform(56, 74)
    start = (-122 if f["direction"] == "diagonal" else -98) + rng.uniform(-8, 24)
    sheet.origin = (-math.sin(sheet.angle) * 14, math.cos(sheet.angle) * 14)
    tarmac = jitter(rng, (112, 114, 118), 12)

    # taxiway, its link, its yellow line
    sheet.box(60, -width / 2 - 34, 500, 20, texture(rng, shade(tarmac, 1.12), 0.06))
    sheet.box(rng.uniform(-10, 50), -width / 2 - 14, 22, 44, shade(tarmac, 1.12))
    sheet.box(60, -width / 2 - 34, 500, 2, (206, 178, 70))

    sheet.box(start + 200, 0, 430, width + 8, shade(tarmac, 1.25))
    sheet.box(start + 200, 0, 430, width, texture(rng, tarmac, 0.1, (64, 32, 4)))
    for side in (-1, 1):
        sheet.box(start + 205, side * (width / 2 - 4), 420, 2, LINE)
        # threshold bars, touchdown marks
        for k in range(3):
            sheet.box(start + 24, side * (7 + k * (width / 2 - 15) / 2), 32, 4, LINE)
        sheet.dashes(side * width * 0.22, start + 96, start + 170, 44, 22, 5)
    sheet.dashes(0, start + 66, 260, 34, 18, 3)
    # traces of tyres
    for _ in range(5):
        x, y = start + 120 + rng.uniform(-20, 20), rng.uniform(-7, 7)
        sheet.box(x, y, rng.uniform(50, 110), 2, (40, 40, 44, 70))
    if f["plane"] != "no plane":
        draw_plane(sheet, rng.uniform(20, 50))


def draw_plane(sheet, x):
    wings = [(4, 0), (-14, -34), (-22, -34), (-12, 0), (-22, 34), (-14, 34)]
    tail = [(-30, 0), (-40, -14), (-45, -14), (-40, 0), (-45, 14), (-40, 14)]
    body = [(36, 0), (30, -5), (-42, -4), (-46, 0), (-42, 4), (30, 5)]
    for part in (wings, tail, body):
        sheet.poly([(x + i, j) for i, j in part], (240, 240, 242), 6)
    sheet.line([(x - 44, 0), (x - 34, 0)], (60, 90, 150), 3)


def parking(sheet, rng, f):
    sheet.angle = aligned(rng, 0.35)
    ys = {2: (-39, 39), 3: (-70, 0, 38), 4: (-84, -18, 18, 84)}[f["rows"]]
    top, bottom = ys[0] - 26, ys[-1] + 26
    stalls, stall = rng.choice((10, 11, 12)), 19
    middle, width, height = (top + bottom) / 2, stalls * stall + 30, bottom - top
    sheet.box(0, middle, width, height, texture(rng, jitter(rng, ASPHALT), 0.08))
    sheet.frame(0, middle, width, height, 4, (188, 184, 174))

    share = {"full of cars": 0.94, "half full": 0.5, "almost empty": 0.16}[f["fill"]]
    for y in ys:
        for k in range(stalls + 1):
            sheet.box((k - stalls / 2) * stall, y, 2, 36, LINE)
        for k in rng.sample(range(stalls), max(1, round(share * stalls))):
            x = (k + 0.5 - stalls / 2) * stall
            v = y + rng.uniform(-2, 2)
            sheet.car(x, v, rng.choice((1, -1)) * math.pi / 2, 1.12)

    far = stalls * stall / 2 + 24
    if "trees" in f["beside"]:
        sheet.trees(70, lambda x, y: abs(x) > far or y < top - 9 or y > bottom + 9)


def tanks(sheet, rng, f):
    sheet.angle = aligned(rng, 0.3)
    spots = tank_spots(rng, f["tanks"], f["layout"])
    # walls around, pipes between
    for (x, y, r), (u, v, _) in zip(spots, spots[1:] + spots[-1:]):
        sheet.frame(x, y, 2.7 * r, 2.7 * r, 3, (131, 112, 84, 200))
        sheet.line([(x, y), (u, y), (u, v)], (120, 116, 112), 2)
    for x, y, r in spots:
        draw_tank(sheet, x, y, r, jitter(rng, PAINT[f["colour"]], 6))


def tank_spots(rng, n, layout):
    """[(x, y, radius), ...]"""
    if layout == "scattered":
        cells = rng.sample([(i, j) for i in (-78, 0, 78) for j in (-78, 0, 78)], n)
        spots = []
        for x, y in cells:
            u, v = x + rng.uniform(-9, 9), y + rng.uniform(-9, 9)
            spots.append((u, v, rng.uniform(19, 30)))
        return spots

    rows = 1 if layout == "in a row" else {4: 2, 6: 2, 9: 3}[n]
    cols = n // rows
    step = min(96, 222 / max(cols, rows))
    spots = []
    for i in range(cols):
        for j in range(rows):
            spots.append(((i - (cols - 1) / 2) * step, (j - (rows - 1) / 2) * step, step * 0.36))
    return spots


def draw_tank(sheet, x, y, r, paint):
    # its long shadow, its wall, its roof
    for k in range(1, 7):
        sheet.disc(x, y, r, (20, 22, 26, 34), k * r * 0.1)
    sheet.disc(x, y, r, shade(paint, 0.7))
    sheet.disc(x, y, r * 0.92, paint)
    a, b = sheet.at(x, y)
    for q, light in ((r * 0.92, 0.9), (r * 0.6, 1.06)):
        sheet.pen.pieslice((a - q, b - q, a + q, b + q), 20, 110, fill=shade(paint, light))
    sheet.disc(x, y, r * 0.5, shade(paint, 0.97))
    # seams
    for k in range(8):
        t = k * math.pi / 4 + 0.3
        end = (x + r * 0.9 * math.cos(t), y + r * 0.9 * math.sin(t))
        sheet.line([(x, y), end], (*shade(paint, 0.8), 150), 1)
    sheet.disc(x, y, r * 0.12, shade(paint, 0.6))


def tennis(sheet, rng, f):
    sheet.angle = aligned(rng, 0.3)
    n = f["courts"]
    step = {1: 96, 2: 84, 3: 66, 4: 52}[n] * rng.uniform(0.92, 1.04)
    w, h = step * 0.7, step * 1.47
    paint, around = (jitter(rng, COURT[f[key]], 7) for key in ("colour", "around"))
    width, height = n * step + 10, h + 46
    sheet.box(0, 0, width, height, texture(rng, around, 0.06))
    sheet.frame(0, 0, width, height, 2, (70, 74, 70))
    for k in range(n):
        x = (k - (n - 1) / 2) * step
        sheet.box(x, 0, w, h, paint)
        for a, b in ((w, h), (w * 0.74, h), (w * 0.74, h * 0.54)):
            sheet.frame(x, 0, a, b)
        sheet.line([(x, -h * 0.27), (x, h * 0.27)], LINE, 2)
        # net
        sheet.box(x, 0, w + 10, 2, (40, 44, 46), 4)
        sheet.box(x, -1, w + 10, 1, (220, 220, 220))
    if "trees" in f["beside"]:
        sheet.trees(64, lambda x, y: abs(x) > width / 2 + 9 or abs(y) > height / 2 + 9)


def baseball(sheet, rng, f):
    n, first = f["diamonds"], rng.uniform(0, 2 * math.pi)
    turf = jitter(rng, (94, 146, 64), 8)
    clay = jitter(rng, {"brown": (188, 140, 96), "red": (192, 104, 74)}[f["clay"]], 8)
    taken = []
    for k in range(n):
        # home plate is the origin, the field opens along x
        sheet.angle = first + k * math.pi
        size = (168 if n == 1 else 122) * rng.uniform(0.92, 1.05)
        back = -size * (0.52 if n == 1 else 0.98)
        sheet.origin = (back * math.cos(sheet.angle), back * math.sin(sheet.angle))
        for t, r in ((0, 0.12), (0.25, 0.28), (0.6, 0.56), (0.66, 0.6)):
            taken.append((*sheet.at(size * t, 0), size * r))
        draw_diamond(sheet, rng, size, turf, clay)

    sheet.angle, sheet.origin = 0.0, (0.0, 0.0)

    def free(x, y):
        return all(math.hypot(x + HALF - a, y + HALF - b) > r + 9 for a, b, r in taken)

    if "trees" in f["beside"]:
        sheet.trees(80, free)


def draw_diamond(sheet, rng, size, turf, clay):
    lawn = texture(rng, turf, 0.08)
    pen = ImageDraw.Draw(lawn, "RGBA")
    # mown stripes
    for t in range(-300, 300, 24):
        stripe = ((t, -300), (t + 12, -300), (t + 12, 300), (t, 300))
        pen.polygon([sheet.at(*corner) for corner in stripe], fill=(255, 255, 220, 26))

    # warning track, outfield, infield, diamond
    sheet.poly(fan(size * 1.06, 47, -6), shade(clay, 0.95))
    sheet.poly(fan(size * 0.97, 44), lawn)
    sheet.poly(fan(size * 0.58, 48, -8), texture(rng, clay, 0.07))
    d = size * 0.25
    sheet.poly([(9, 0), (d, 9 - d), (2 * d - 9, 0), (d, d - 9)], lawn)
    for x, r in ((0, 0.085), (d, 0.05)):
        sheet.disc(x, 0, size * r, clay)
    for x, y in ((0, 0), (d, d), (d, -d), (2 * d, 0)):
        sheet.box(x, y, 6, 6, LINE, turn=math.pi / 4)
    for side in (1, -1):
        sheet.line([(0, 0), (size * 0.7, side * size * 0.7)], LINE, 2)


def fan(r, half, x=0.0):
    """A sector of radius r from (x, 0), `half` degrees to both sides of the x axis."""
    points = [(x, 0)]
    for t in range(-half, half + 1, 3):
        points.append((x + r * math.cos(math.radians(t)), r * math.sin(math.radians(t))))
    return points


def forest(sheet, rng, f):
    bend, shift, opening = wave(rng, 26), rng.uniform(-40, 40), f["opening"]
    sheet.angle = rng.uniform(0, 2 * math.pi)
    if opening == "a narrow path":
        path = texture(rng, (188, 160, 118), 0.1)
        sheet.band(lambda t: shift + bend(t) - 7, lambda t: shift + bend(t) + 7, path)
    if opening == "a small clearing":
        edge = [(k * 0.3, rng.uniform(40, 50)) for k in range(21)]
        points = [(shift + r * math.cos(a), shift + r * math.sin(a)) for a, r in edge]
        sheet.poly(points, texture(rng, (170, 156, 102)))

    def free(x, y):
        if opening == "a narrow path":
            return abs(y - shift - bend(x)) > 13
        if opening == "a small clearing":
            return math.hypot(x - shift, y - shift) > 44
        return True

    for r in ((11, 15), (9, 13), (6, 11)):
        sheet.trees(170, free, r, WOOD[f["colour"]])


def river(sheet, rng, f):
    sheet.angle = heading(rng, f["direction"])
    bend, swell = wave(rng, 30), wave(rng, 7)
    half, x = rng.uniform(24, 40), rng.uniform(-50, 50)
    water = jitter(rng, WATER[f["water"]], 8)

    def stream(extra, fill):
        sheet.band(
            lambda t: bend(t) - half - extra - swell(t),
            lambda t: bend(t) + half + extra + swell(t),
            fill,
        )

    for extra, colour in ((9, (190, 172, 130)), (0, shade(water, 1.1)), (-9, water)):
        stream(extra, texture(rng, colour, 0.1, (64, 20, 5)))
    # glints along the stream
    for _ in range(26):
        t, k = rng.uniform(-180, 180), rng.uniform(-0.7, 0.7) * half
        glint = [(t + d, bend(t + d) + k) for d in range(0, 26, 5)]
        sheet.line(glint, (*shade(water, 1.45), 120), 1)

    bridge = f["bridge"] == "a bridge"

    def free(u, v):
        on_bank = abs(v - bend(u)) > half + swell(u) + 20
        return on_bank and not (bridge and abs(u - x) < 24)

    sheet.trees(150 if f["bank"] == "green trees" else 6, free)
    if bridge:
        sheet.box(x, 0, 22, 520, ASPHALT)
        sheet.box(x, bend(x), 30, 2 * half + 30, (186, 182, 174), 10)
        sheet.box(x, bend(x), 22, 2 * half + 32, ASPHALT)
        for t in range(-250, 250, 22):
            sheet.box(x, t, 2, 11, LINE)


def intersection(sheet, rng, f):
    turn, width = rng.uniform(0, math.pi), rng.uniform(50, 62)
    sheet.origin = (rng.uniform(-16, 16), rng.uniform(-16, 16))
    arms = [turn + arm * math.pi / 2 for arm in range(4)]

    # each road reaches across, so both are drawn before any of their markings: kerbs, then asphalt
    for arm, angle in enumerate(arms):
        sheet.angle = angle
        if arm < 2:
            sheet.box(0, 0, 600, width + 10, (186, 182, 172))
        else:
            sheet.box(0, 0, 600, width, texture(rng, ASPHALT, 0.06))
    for angle in arms:
        sheet.angle = angle
        sheet.box(width / 2 + 162, 0, 270, 3, (226, 186, 62))
        # zebra crossing
        for t in range(round(-width / 2) + 6, round(width / 2) - 2, 8):
            sheet.box(width / 2 + 13, t, 15, 4, LINE)
        for lane in (-1, 1):
            sheet.dashes(lane * width / 4, width / 2 + 30, 210, 18, 9, 1)

    slots = [(angle, lane, d) for angle in arms for lane in (-1, 1) for d in (0, 34)]
    for angle, lane, d in rng.sample(slots, f["cars"]):
        sheet.angle = angle
        y = lane * width * (0.13 if d else 0.37)
        sheet.car(width / 2 + 40 + d, y, 0 if lane > 0 else math.pi)

    sheet.angle = turn
    if f["corner"] == "buildings":
        draw_blocks(sheet, rng)
    if "trees" in f["corner"]:
        sheet.trees(90, lambda x, y: min(abs(x), abs(y)) > width / 2 + 17)


def draw_blocks(sheet, rng):
    """Buildings at the four corners of an intersection."""
    for i in (-150, -78, 78, 150):
        for j in (-150, -78, 78, 150):
            roof = jitter(rng, rng.choice(ROOFS), 10)
            w, h = rng.uniform(46, 58), rng.uniform(46, 58)
            sheet.box(i, j, w, h, shade(roof, 0.8), 13)
            sheet.box(i, j, w - 6, h - 6, roof)
            x, y = i + rng.uniform(-9, 9), j + rng.uniform(-9, 9)
            sheet.box(x, y, 12, 9, shade(roof, 1.2), 4)


def harbour(sheet, rng, f):
    # as if the land lay at the left
    sheet.angle = (SIDES[f["land"]] + 0.5) * math.pi + rng.uniform(-0.08, 0.08)
    quay, reach = -78, rng.uniform(130, 165)
    sheet.box(quay - 110, 0, 220, 500, texture(rng, jitter(rng, CONCRETE), 0.08))
    sheet.box(quay, 0, 6, 500, (112, 110, 106), 5)
    # sheds on the quay
    for k in range(-2, 3):
        roof = jitter(rng, PAINT[rng.choice(("gray", "blue", "red", "white"))])
        sheet.box(-110, k * 56, 30, 40, shade(roof, 0.85), 8)
        sheet.box(-118, k * 56, 14, 40, roof)

    slots, piers = [], f["piers"]
    for k in range(piers):
        y = (k - (piers - 1) / 2) * {1: 0, 2: 104, 3: 76}[piers]
        if piers == 1:
            y += rng.uniform(-30, 30)
        sheet.box(quay + reach / 2, y, reach, 13, texture(rng, (186, 168, 138), 0.1), 6)
        for x in range(12, int(reach), 12):
            sheet.line([(quay + x, y - 6), (quay + x, y + 6)], (146, 128, 102), 1)
        for side in (-1, 1):
            slots += [(quay + 24 + d * 31, y + side * 22, side) for d in range(4)]
    for x, y, side in rng.sample(slots, f["boats"]):
        sheet.boat(x, y, side * math.pi / 2 + rng.uniform(-0.06, 0.06))


DRAW = {
    "farmland": farmland,
    "beach": beach,
    "residential": residential,
    "runway": runway,
    "parking": parking,
    "tanks": tanks,
    "tennis": tennis,
    "baseball": baseball,
    "forest": forest,
    "river": river,
    "intersection": intersection,
    "harbour": harbour,
}
