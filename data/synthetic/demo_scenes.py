"""Draw a small aerial caption set, so that every stage can be tried before any real data set is at hand.

    python data/synthetic/demo_scenes.py [--output data/demo] [--train 48] [--val 8] [--test 8] [--seed 1]

Source: drawn by this file, nothing is downloaded; licence: that of this repository. 12 scenes, 128x128 RGB TIFF seen from
straight above; per scene 48 train / 8 val / 8 test pictures (768 in all), 5 English captions each. It writes

    images/<scene>_<split>_<index>.tif
    dataset.json    {"images": [{"filename", "split", "sentences": [{"raw"} x 5]}], "dataset": "demo"}   (Karpathy form)
    memory.jsonl    {"source": the five captions as the transform stage joins them, "target": one Chinese description}

The facts of a picture are drawn first, then the picture from the facts; captions state nothing but facts. Every picture has a
random generator of its own, seeded by (seed, scene, split, index): a smaller set is a subset of a larger one, byte for byte.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
from collections import namedtuple
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.caption_sets import SPLITS
from data.stage import DATA, run_stage
from model.files import temporary_beside

SIZE = 128  # side of a picture, pixels
S = 2 * SIZE  # side of the sheet it is drawn on; halving it smooths the edges
H = S / 2  # scene coordinates run from -H to H around the middle of the sheet

PAINT = {
    "white": (232, 232, 228),
    "red": (190, 62, 50),
    "gray": (142, 144, 148),
    "blue": (66, 108, 168),
    "black": (46, 48, 54),
    "brown": (142, 98, 62),
}
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
GROUND = {"grass": (108, 138, 74), "bare": (168, 144, 108), "concrete": (176, 174, 166)}
WOOD = {
    "green": ((82, 122, 54),),
    "dark green": ((42, 78, 46),),
    "yellow and green": ((80, 116, 54), (176, 144, 62), (152, 126, 60)),
}
ROOFS = ((168, 160, 150), (190, 186, 180), (150, 124, 108))
CROWN, ASPHALT, LINE, FOAM, SHADOW = (
    (66, 106, 50),
    (96, 98, 102),
    (236, 236, 230),
    (240, 244, 242, 235),
    (16, 20, 28, 120),
)
ACROSS = range(-210, 211, 5)  # farther than a corner of the sheet
SIDES = {
    "top": 0.0,
    "right": 0.5,
    "bottom": 1.0,
    "left": 1.5,
}  # turns the top to this side, in units of pi
DIRECTIONS = {"horizontal": (0, 1), "vertical": (0.5, -0.5), "diagonal": (0.25, -0.25, 0.75, -0.75)}


def shade(colour, k):
    """The colour k times as bright."""
    return tuple(max(0, min(255, round(c * k))) for c in colour[:3])


def jitter(rng, colour, amount=9):
    """A colour near this one, its brightness up to `amount` away."""
    light = rng.uniform(-amount, amount)
    return tuple(
        max(0, min(255, round(c + light + rng.uniform(-amount, amount) / 2))) for c in colour
    )


def texture(rng, colour, contrast=0.22, cells=(64, 16, 4)):
    """A sheet of smoothed noise around a colour; `cells` are the sizes of its grains in sheet pixels, the first weighs most."""
    field = None
    for cell in cells:
        n = S // cell + 2
        noise = Image.frombytes("L", (n, n), rng.randbytes(n * n)).resize(
            (S, S), Image.Resampling.BICUBIC
        )
        field = noise if field is None else Image.blend(field, noise, 0.42)
    field = ImageOps.autocontrast(field, cutoff=1)
    return ImageOps.colorize(field, shade(colour, 1 - contrast), shade(colour, 1 + contrast))


def wave(rng, height):
    """A smooth random function of a coordinate, at most `height` from zero."""
    a, b, c = (rng.uniform(0, 6.3) for _ in range(3))
    return lambda t: (
        height
        * (0.6 * math.sin(t / 62 + a) + 0.28 * math.sin(t / 29 + b) + 0.12 * math.sin(t / 13 + c))
    )


class Sheet:
    """What a scene is drawn on. Coordinates are turned by `angle` around `origin`; shadows fall along `sun` whatever the angle."""

    def __init__(self, rng, image):
        self.rng, self.angle, self.origin = rng, 0.0, (0.0, 0.0)
        way = rng.uniform(0.3, 1.2)
        self.sun = (math.cos(way), math.sin(way))
        self.image, self.pen = image, ImageDraw.Draw(image, "RGBA")

    def at(self, x, y):
        c, s = math.cos(self.angle), math.sin(self.angle)
        return H + self.origin[0] + c * x - s * y, H + self.origin[1] + s * x + c * y

    def poly(self, points, fill, lift=0):
        """A polygon of a colour or a texture; `lift` is the length of its shadow in sheet pixels."""
        spots = [self.at(*p) for p in points]
        if lift:
            self.pen.polygon(
                [(x + lift * self.sun[0], y + lift * self.sun[1]) for x, y in spots], fill=SHADOW
            )
        if isinstance(fill, Image.Image):
            mask = Image.new("L", (S, S))
            ImageDraw.Draw(mask).polygon(spots, fill=255)
            self.image.paste(fill, mask=mask)
        else:
            self.pen.polygon(spots, fill=fill)

    def box(self, x, y, w, h, fill, lift=0, turn=0.0):
        c, s = math.cos(turn), math.sin(turn)
        corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
        self.poly([(x + c * i - s * j, y + s * i + c * j) for i, j in corners], fill, lift)

    def band(self, low, high, fill):
        """All that lies between two functions of x, right across the sheet."""
        self.poly([(t, low(t)) for t in ACROSS] + [(t, high(t)) for t in reversed(ACROSS)], fill)

    def disc(self, x, y, r, fill, lift=0, stretch=1.0):
        x, y = self.at(x, y)
        if lift:
            i, j = x + lift * self.sun[0], y + lift * self.sun[1]
            self.pen.ellipse((i - r, j - r, i + r, j + r), fill=SHADOW)
        self.pen.ellipse((x - r, y - r * stretch, x + r, y + r * stretch), fill=fill)

    def line(self, points, fill, width):
        self.pen.line([self.at(*p) for p in points], fill=fill, width=width, joint="curve")

    def frame(self, x, y, w, h, width=2, fill=LINE):
        """The outline of an upright box."""
        a, b = w / 2, h / 2
        self.line(
            [(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b), (x - a, y - b)],
            fill,
            width,
        )

    def dashes(self, y, start=-210, end=210, step=22, length=11, width=2, fill=LINE):
        """A dashed line along x."""
        for x in range(round(start), round(end), step):
            self.box(x + length / 2, y, length, width, fill)

    def tree(self, x, y, r, colour=CROWN):
        """A crown: a dark disc with its shadow, and lighter leaves towards the sun."""
        rng, base = self.rng, jitter(self.rng, colour, 12)
        self.disc(x, y, r, shade(base, 0.72), lift=r * 0.55)
        x, y = self.at(x, y)
        for k in range(6):
            a, d, q = rng.uniform(0, 6.3), rng.uniform(0, 0.55) * r, r * rng.uniform(0.3, 0.5)
            i, j = (
                x + d * math.cos(a) - 0.2 * r * self.sun[0],
                y + d * math.sin(a) - 0.2 * r * self.sun[1],
            )
            self.pen.ellipse((i - q, j - q, i + q, j + q), fill=shade(base, 0.86 + 0.08 * k))

    def trees(self, count, free, r=(6, 11), colours=(CROWN,)):
        """Up to `count` trees where free(x, y) holds."""
        spots = [
            (self.rng.uniform(-1.45, 1.45) * H, self.rng.uniform(-1.45, 1.45) * H)
            for _ in range(count * 4)
        ]
        for x, y in sorted([p for p in spots if free(*p)][:count], key=lambda p: p[1]):
            self.tree(x, y, self.rng.uniform(*r), self.rng.choice(colours))

    def car(self, x, y, turn=0.0, size=1.0):
        w, h, paint = (
            24 * size,
            11 * size,
            PAINT[self.rng.choice(("white", "white", "gray", "black", "red", "blue"))],
        )
        self.box(x, y, w, h, jitter(self.rng, paint), 4, turn)
        for along, width in ((0.16, 0.16), (-0.3, 0.12)):  # windscreen and rear window
            self.box(
                x + along * w * math.cos(turn),
                y + along * w * math.sin(turn),
                w * width,
                h * 0.8,
                (40, 48, 58),
                turn=turn,
            )

    def boat(self, x, y, turn):
        c, s = math.cos(turn), math.sin(turn)
        hull = [(-13, -5), (5, -5.5), (15, 0), (5, 5.5), (-13, 5)]
        self.poly(
            [(x + c * i - s * j, y + s * i + c * j) for i, j in hull],
            jitter(self.rng, (238, 238, 234), 6),
            3,
        )
        self.box(x - 3 * c, y - 3 * s, 10, 6, jitter(self.rng, (150, 158, 170), 20), turn=turn)


def farmland(sheet, rng, f):
    rows, cols = {3: (1, 3), 4: rng.choice(((2, 2), (1, 4))), 5: (1, 5), 6: (2, 3)}[f["fields"]]
    sheet.angle = rng.uniform(-0.5, 0.5) + rng.choice((0, math.pi / 2))
    xs, ys = (
        [-250] + [(k - n / 2 + rng.uniform(-0.1, 0.1)) * 225 / n for k in range(1, n)] + [250]
        for n in (cols, rows)
    )
    for i in range(cols):
        for j in range(rows):
            base = jitter(rng, CROP[(f["colour"], f["other"])[(i + j) % 2]], 8)
            field, furrow, along = (
                texture(rng, base, 0.14),
                shade(base, rng.choice((0.74, 1.2))),
                rng.random() < 0.6,
            )
            pen, step = ImageDraw.Draw(field), rng.choice((8, 10, 12))
            for t in range(-250, 250, step):
                pen.line(
                    [
                        sheet.at(*p)
                        for p in (((t, -250), (t, 250)) if along else ((-250, t), (250, t)))
                    ],
                    fill=furrow,
                    width=2,
                )
            x, y, u, v = xs[i], ys[j], xs[i + 1], ys[j + 1]
            sheet.poly([(x, y), (u, y), (u, v), (x, v)], field)
    ridge = (92, 104, 58) if f["border"] == "a dirt road" else (196, 180, 132)
    for line in [[(x, -250), (x, 250)] for x in xs[1:-1]] + [
        [(-250, y), (250, y)] for y in ys[1:-1]
    ]:
        sheet.line(line, ridge, 4)
    if f["border"] == "a dirt road":
        x = xs[1 + (cols - 1) // 2]
        sheet.box(x, 0, 15, 500, texture(rng, (206, 184, 142), 0.1))
        sheet.line([(x, -250), (x, 250)], (178, 156, 116), 3)


def beach(sheet, rng, f):  # as if the sea lay at the top
    sheet.angle = SIDES[f["sea"]] * math.pi + rng.uniform(-0.16, 0.16)
    shore, coast = wave(rng, 16), rng.uniform(-30, 5)

    def land(offset, fill, share=1.0):
        sheet.band(lambda t: coast + offset + share * shore(t), lambda t: 260, fill)

    sheet.image.paste(texture(rng, jitter(rng, (34, 98, 140), 10), 0.1, (64, 24, 6)))
    for k in range(8):  # shallower and lighter towards the shore
        land(-64 + 8 * k, (70 + 9 * k, 160 + 6 * k, 176 + 2 * k, 70))
    sand = {"yellow": (222, 194, 132), "white": (234, 226, 206)}[f["sand"]]
    land(0, texture(rng, shade(sand, 0.82), 0.05))
    land(12, texture(rng, jitter(rng, sand, 6), 0.08, (32, 8, 2)))
    for offset, width in (
        (-2, 6),
        (-18, 3),
        (-34, 2),
    ):  # foam: whole along the shore, in pieces further out
        start = -190
        while start < 190:
            length = 400 if offset == -2 else rng.randint(20, 70)
            crest = [
                (t, coast + offset + shore(t) + 2 * math.sin(t / 5))
                for t in range(start, start + length, 4)
            ]
            sheet.line(crest, FOAM, width)
            start += length + rng.randint(10, 60)
    edge = coast + 88
    land(
        88,
        texture(
            rng,
            {
                "green trees": (70, 104, 52),
                "a road": (150, 150, 112),
                "green grass": (112, 142, 76),
            }[f["back"]],
        ),
        0.5,
    )
    if f["back"] == "a road":
        sheet.box(0, edge + 30, 420, 26, ASPHALT)
        sheet.dashes(edge + 30)
    sheet.trees(110 * (f["back"] == "green trees"), lambda x, y: y > edge + 6 + shore(x) / 2)
    for i, j in rng.sample([(i, j) for i in range(-4, 5) for j in (0, 1)], f["umbrellas"]):
        x, y, paint = (
            24 * i + rng.uniform(-4, 4),
            coast + 38 + 26 * j + rng.uniform(-4, 4),
            PAINT[f["umbrella"]],
        )
        for r, light, lift in (
            (8.5, 1, 6),
            (4.5, 0.86 if f["umbrella"] == "white" else 1.25, 0),
            (1.5, 2, 0),
        ):
            sheet.disc(x, y, r, shade(paint, light), lift)


def residential(sheet, rng, f):
    sheet.angle = rng.uniform(-0.3, 0.3) + rng.choice((0, 0.5)) * math.pi
    sheet.box(0, 0, 420, 34, (172, 168, 158))
    sheet.box(0, 0, 420, 26, texture(rng, jitter(rng, ASPHALT), 0.08))
    sheet.dashes(0)
    houses = []
    for side, count in ((-1, f["houses"] // 2), (1, f["houses"] - f["houses"] // 2)):
        step = 215 / max(count, 3)
        size = min(46, step * 0.72)
        for k in range(count):
            x = (k - (count - 1) / 2) * step + rng.uniform(-3, 3)
            sheet.box(x + size * 0.3, side * 26, 8, 30, (190, 186, 176))  # driveway
            houses.append((x, side * (26 + size * 0.62 + rng.uniform(2, 9)), size))
    sheet.trees(
        46 * ("trees" in f["around"]),
        lambda x, y: (
            abs(y) > 30 and all(math.hypot(x - a, y - b) > size * 0.72 + 8 for a, b, size in houses)
        ),
        (7, 12),
    )
    for x, y, size in houses:
        roof, h, turn = (
            jitter(rng, PAINT[f["roof"]], 10),
            size * rng.uniform(0.66, 0.8),
            rng.choice((0, 0, math.pi / 2)),
        )
        c, s = math.cos(turn), math.sin(turn)
        sheet.box(x, y, size, h, shade(roof, 0.8), 9, turn)
        sheet.box(
            x - s * h / 4, y - c * h / 4, size, h / 2, shade(roof, 1.12), 0, turn
        )  # the slope in the sun, the ridge
        sheet.line(
            [(x - c * size / 2, y - s * size / 2), (x + c * size / 2, y + s * size / 2)],
            shade(roof, 1.4),
            2,
        )
        sheet.box(x + size * 0.2, y - size * 0.16, 5, 5, (210, 204, 196), 3)


def runway(sheet, rng, f):
    sheet.angle = rng.choice(DIRECTIONS[f["direction"]]) * math.pi + rng.uniform(-0.1, 0.1)
    width, start = (
        rng.uniform(56, 74),
        (-98 if f["direction"] != "diagonal" else -122) + rng.uniform(-8, 24),
    )
    sheet.origin = (-math.sin(sheet.angle) * 14, math.cos(sheet.angle) * 14)
    tarmac = jitter(rng, (112, 114, 118), 12)
    sheet.box(
        60, -width / 2 - 34, 500, 20, texture(rng, shade(tarmac, 1.12), 0.06)
    )  # taxiway and its link
    sheet.box(rng.uniform(-10, 50), -width / 2 - 14, 22, 44, shade(tarmac, 1.12))
    sheet.box(60, -width / 2 - 34, 500, 2, (206, 178, 70))
    sheet.box(start + 200, 0, 430, width + 8, shade(tarmac, 1.25))
    sheet.box(start + 200, 0, 430, width, texture(rng, tarmac, 0.1, (64, 32, 4)))
    for side in (-1, 1):
        sheet.box(start + 205, side * (width / 2 - 4), 420, 2, LINE)
        for k in range(3):  # threshold bars
            sheet.box(start + 24, side * (7 + k * (width / 2 - 15) / 2), 32, 4, LINE)
        sheet.dashes(side * width * 0.22, start + 96, start + 170, 44, 22, 5)  # touchdown marks
    sheet.dashes(0, start + 66, 260, 34, 18, 3)
    for _ in range(5):  # traces of tyres
        sheet.box(
            start + 120 + rng.uniform(-20, 20),
            rng.uniform(-7, 7),
            rng.uniform(50, 110),
            2,
            (40, 40, 44, 70),
        )
    if f["plane"] != "no plane":
        x = rng.uniform(20, 50)
        for part in (
            [(4, 0), (-14, -34), (-22, -34), (-12, 0), (-22, 34), (-14, 34)],
            [(-30, 0), (-40, -14), (-45, -14), (-40, 0), (-45, 14), (-40, 14)],
            [(36, 0), (30, -5), (-42, -4), (-46, 0), (-42, 4), (30, 5)],
        ):
            sheet.poly([(x + i, j) for i, j in part], (240, 240, 242), 6)
        sheet.line([(x - 44, 0), (x - 34, 0)], (60, 90, 150), 3)


def parking(sheet, rng, f):
    sheet.angle = rng.uniform(-0.35, 0.35) + rng.choice((0, 0.5)) * math.pi
    ys = {2: (-39, 39), 3: (-70, 0, 38), 4: (-84, -18, 18, 84)}[f["rows"]]
    top, bottom, long, stall = ys[0] - 26, ys[-1] + 26, rng.choice((10, 11, 12)), 19
    sheet.box(
        0,
        (top + bottom) / 2,
        long * stall + 30,
        bottom - top,
        texture(rng, jitter(rng, ASPHALT), 0.08),
    )
    sheet.frame(0, (top + bottom) / 2, long * stall + 30, bottom - top, 4, (188, 184, 174))
    for y in ys:
        for k in range(long + 1):
            sheet.box((k - long / 2) * stall, y, 2, 36, LINE)
        share = {"full of cars": 0.94, "half full": 0.5, "almost empty": 0.16}[f["fill"]]
        for k in rng.sample(range(long), max(1, round(share * long))):
            sheet.car(
                (k + 0.5 - long / 2) * stall,
                y + rng.uniform(-2, 2),
                rng.choice((1, -1)) * math.pi / 2,
                1.12,
            )
    far = long * stall / 2 + 24
    sheet.trees(
        70 * ("trees" in f["beside"]), lambda x, y: abs(x) > far or y < top - 9 or y > bottom + 9
    )


def tanks(sheet, rng, f):
    n = f["tanks"]
    sheet.angle = rng.uniform(-0.3, 0.3) + rng.choice((0, 0.5)) * math.pi
    if f["layout"] == "scattered":
        cells = rng.sample([(i, j) for i in (-78, 0, 78) for j in (-78, 0, 78)], n)
        spots = [
            (x + rng.uniform(-9, 9), y + rng.uniform(-9, 9), rng.uniform(19, 30)) for x, y in cells
        ]
    else:
        rows = 1 if f["layout"] == "in a row" else {4: 2, 6: 2, 9: 3}[n]
        cols, step = n // rows, min(96, 222 / max(n // rows, rows))
        spots = [
            ((i - (cols - 1) / 2) * step, (j - (rows - 1) / 2) * step, step * 0.36)
            for i in range(cols)
            for j in range(rows)
        ]
    for (x, y, r), (u, v, _) in zip(spots, spots[1:] + spots[-1:]):  # walls around, pipes between
        sheet.frame(x, y, 2.7 * r, 2.7 * r, 3, (131, 112, 84, 200))
        sheet.line([(x, y), (u, y), (u, v)], (120, 116, 112), 2)
    for x, y, r in spots:
        paint = jitter(rng, PAINT[f["colour"]], 6)
        for k in range(1, 7):
            sheet.disc(x, y, r, (20, 22, 26, 34), k * r * 0.1)
        sheet.disc(x, y, r, shade(paint, 0.7))
        sheet.disc(x, y, r * 0.92, paint)
        a, b = sheet.at(x, y)
        for q, light in ((r * 0.92, 0.9), (r * 0.6, 1.06)):
            sheet.pen.pieslice((a - q, b - q, a + q, b + q), 20, 110, fill=shade(paint, light))
        sheet.disc(x, y, r * 0.5, shade(paint, 0.97))
        for k in range(8):  # seams of the roof
            t = k * math.pi / 4 + 0.3
            sheet.line(
                [(x, y), (x + r * 0.9 * math.cos(t), y + r * 0.9 * math.sin(t))],
                (*shade(paint, 0.8), 150),
                1,
            )
        sheet.disc(x, y, r * 0.12, shade(paint, 0.6))


def tennis(sheet, rng, f):
    sheet.angle = rng.uniform(-0.3, 0.3) + rng.choice((0, 0.5)) * math.pi
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
        sheet.box(x, 0, w + 10, 2, (40, 44, 46), 4)  # net
        sheet.box(x, -1, w + 10, 1, (220, 220, 220))
    sheet.trees(
        64 * ("trees" in f["beside"]),
        lambda x, y: abs(x) > width / 2 + 9 or abs(y) > height / 2 + 9,
    )


def baseball(sheet, rng, f):
    n, first = f["diamonds"], rng.uniform(0, 2 * math.pi)
    turf, clay = (
        jitter(rng, (94, 146, 64), 8),
        jitter(rng, {"brown": (188, 140, 96), "red": (192, 104, 74)}[f["clay"]], 8),
    )
    taken = []
    for k in range(n):  # home plate is the origin, the field opens along x
        sheet.angle, size = first + k * math.pi, (168 if n == 1 else 122) * rng.uniform(0.92, 1.05)
        back = -size * (0.52 if n == 1 else 0.98)
        sheet.origin = (back * math.cos(sheet.angle), back * math.sin(sheet.angle))
        taken += [
            (*sheet.at(size * t, 0), size * r)
            for t, r in ((0, 0.12), (0.25, 0.28), (0.6, 0.56), (0.66, 0.6))
        ]

        def fan(r, half, x=0.0):
            return [(x, 0)] + [
                (x + r * math.cos(math.radians(t)), r * math.sin(math.radians(t)))
                for t in range(-half, half + 1, 3)
            ]

        lawn = texture(rng, turf, 0.08)
        pen = ImageDraw.Draw(lawn, "RGBA")
        for t in range(-300, 300, 24):  # mown stripes
            pen.polygon(
                [sheet.at(*p) for p in ((t, -300), (t + 12, -300), (t + 12, 300), (t, 300))],
                fill=(255, 255, 220, 26),
            )
        sheet.poly(
            fan(size * 1.06, 47, -6), shade(clay, 0.95)
        )  # warning track, outfield, infield, diamond
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
    sheet.angle, sheet.origin = 0.0, (0.0, 0.0)
    sheet.trees(
        80 * ("trees" in f["beside"]),
        lambda x, y: all(math.hypot(x + H - a, y + H - b) > r + 9 for a, b, r in taken),
    )


def forest(sheet, rng, f):
    bend, shift, opening = wave(rng, 26), rng.uniform(-40, 40), f["opening"]
    sheet.angle = rng.uniform(0, 2 * math.pi)
    if opening == "a narrow path":
        sheet.band(
            lambda t: shift + bend(t) - 7,
            lambda t: shift + bend(t) + 7,
            texture(rng, (188, 160, 118), 0.1),
        )
    if opening == "a small clearing":
        bare = [(k * 0.3, rng.uniform(40, 50)) for k in range(21)]
        sheet.poly(
            [(shift + r * math.cos(a), shift + r * math.sin(a)) for a, r in bare],
            texture(rng, (170, 156, 102)),
        )

    def free(x, y):
        gap = {
            "a narrow path": abs(y - shift - bend(x)) - 13,
            "a small clearing": math.hypot(x - shift, y - shift) - 44,
        }
        return gap.get(opening, 1) > 0

    for r in ((11, 15), (9, 13), (6, 11)):
        sheet.trees(170, free, r, WOOD[f["colour"]])


def river(sheet, rng, f):
    sheet.angle = rng.choice(DIRECTIONS[f["direction"]]) * math.pi + rng.uniform(-0.1, 0.1)
    bend, swell, half, x = wave(rng, 30), wave(rng, 7), rng.uniform(24, 40), rng.uniform(-50, 50)
    water = jitter(rng, WATER[f["water"]], 8)
    for extra, colour in ((9, (190, 172, 130)), (0, shade(water, 1.1)), (-9, water)):
        sheet.band(
            lambda t: bend(t) - half - extra - swell(t),
            lambda t: bend(t) + half + extra + swell(t),
            texture(rng, colour, 0.1, (64, 20, 5)),
        )
    for _ in range(26):  # glints along the stream
        t, k = rng.uniform(-180, 180), rng.uniform(-0.7, 0.7) * half
        sheet.line(
            [(t + d, bend(t + d) + k) for d in range(0, 26, 5)], (*shade(water, 1.45), 120), 1
        )
    bridge = f["bridge"] == "a bridge"
    sheet.trees(
        150 if f["bank"] == "green trees" else 6,
        lambda u, v: abs(v - bend(u)) > half + swell(u) + 20 and not (bridge and abs(u - x) < 24),
    )
    if bridge:
        sheet.box(x, 0, 22, 520, ASPHALT)
        sheet.box(x, bend(x), 30, 2 * half + 30, (186, 182, 174), 10)
        sheet.box(x, bend(x), 22, 2 * half + 32, ASPHALT)
        for t in range(-250, 250, 22):
            sheet.box(x, t, 2, 11, LINE)


def intersection(sheet, rng, f):
    turn, width = rng.uniform(0, math.pi), rng.uniform(50, 62)
    sheet.origin, sheet.angle = (rng.uniform(-16, 16), rng.uniform(-16, 16)), turn
    for arm in range(4):  # each road reaches across, so both are drawn before any of their markings
        sheet.angle = turn + arm * math.pi / 2
        sheet.box(
            0,
            0,
            600,
            width + 10 * (arm < 2),
            (186, 182, 172) if arm < 2 else texture(rng, ASPHALT, 0.06),
        )
    for arm in range(4):
        sheet.angle = turn + arm * math.pi / 2
        sheet.box(width / 2 + 162, 0, 270, 3, (226, 186, 62))
        for t in range(round(-width / 2) + 6, round(width / 2) - 2, 8):  # zebra crossing
            sheet.box(width / 2 + 13, t, 15, 4, LINE)
        for lane in (-1, 1):
            sheet.dashes(lane * width / 4, width / 2 + 30, 210, 18, 9, 1)
    slots = [(arm, lane, d) for arm in range(4) for lane in (-1, 1) for d in (0, 34)]
    for arm, lane, d in rng.sample(slots, f["cars"]):
        sheet.angle = turn + arm * math.pi / 2
        sheet.car(
            width / 2 + 40 + d, lane * width * (0.13 if d else 0.37), 0 if lane > 0 else math.pi
        )
    sheet.angle = turn
    for i, j in [(i, j) for i in (-150, -78, 78, 150) for j in (-150, -78, 78, 150)] * (
        f["corner"] == "buildings"
    ):
        roof, w, h = jitter(rng, rng.choice(ROOFS), 10), rng.uniform(46, 58), rng.uniform(46, 58)
        sheet.box(i, j, w, h, shade(roof, 0.8), 13)
        sheet.box(i, j, w - 6, h - 6, roof)
        sheet.box(i + rng.uniform(-9, 9), j + rng.uniform(-9, 9), 12, 9, shade(roof, 1.2), 4)
    sheet.trees(90 * ("trees" in f["corner"]), lambda x, y: min(abs(x), abs(y)) > width / 2 + 17)


def harbour(sheet, rng, f):  # as if the land lay at the left
    sheet.angle = (SIDES[f["land"]] + 0.5) * math.pi + rng.uniform(-0.08, 0.08)
    quay, piers, slots, reach = -78, f["piers"], [], rng.uniform(130, 165)
    sheet.box(quay - 110, 0, 220, 500, texture(rng, jitter(rng, GROUND["concrete"]), 0.08))
    sheet.box(quay, 0, 6, 500, (112, 110, 106), 5)
    for k in range(-2, 3):  # sheds on the quay
        roof = jitter(rng, PAINT[rng.choice(("gray", "blue", "red", "white"))])
        sheet.box(-110, k * 56, 30, 40, shade(roof, 0.85), 8)
        sheet.box(-118, k * 56, 14, 40, roof)
    for k in range(piers):
        y = (k - (piers - 1) / 2) * {1: 0, 2: 104, 3: 76}[piers] + (
            rng.uniform(-30, 30) if piers == 1 else 0
        )
        sheet.box(quay + reach / 2, y, reach, 13, texture(rng, (186, 168, 138), 0.1), 6)
        for x in range(12, int(reach), 12):
            sheet.line([(quay + x, y - 6), (quay + x, y + 6)], (146, 128, 102), 1)
        slots += [(quay + 24 + d * 31, y + side * 22, side) for side in (-1, 1) for d in range(4)]
    for x, y, side in rng.sample(slots, f["boats"]):
        sheet.boat(x, y, side * math.pi / 2 + rng.uniform(-0.06, 0.06))


COUNTS = "zero one two three four five six seven eight nine ten eleven twelve".split()
ZH_COUNTS = "零 一 两 三 四 五 六 七 八 九 十 十一 十二".split()
ZH = {
    "white": "白色",
    "red": "红色",
    "gray": "灰色",
    "blue": "蓝色",
    "green": "绿色",
    "brown": "棕色",
    "yellow": "黄色",
    "dark green": "深绿色",
    "yellow and green": "黄绿相间",
    "left": "左侧",
    "right": "右侧",
    "top": "上方",
    "bottom": "下方",
    "horizontal": "横向",
    "vertical": "竖向",
    "diagonal": "斜向",
    "green trees": "绿树",
    "green lawns": "草坪",
    "green grass": "绿草地",
    "bare ground": "裸地",
    "concrete ground": "水泥地",
    "buildings": "楼房",
    "a road": "道路",
    "a dirt road": "土路",
    "narrow ridges": "窄田埂",
    "a white plane": "停着一架白色飞机",
    "no plane": "没有飞机",
    "full of cars": "停满了汽车",
    "half full": "停了一半的车",
    "almost empty": "只停着几辆车",
    "in a row": "排成一行",
    "in a grid": "排成方阵",
    "scattered": "分散布置",
    "a narrow path": "有一条小路穿过",
    "a small clearing": "有一小块空地",
    "no gap": "没有空隙",
    "a bridge": "有一座桥",
    "no bridge": "没有桥",
}

# `facts`: the values that a fact may have; "colour other" are two facts with their joint values. `english` has six sentences, of which
# a picture gets five, which together tell all that its Chinese sentence tells: else one English text would have two translations.
# "{houses:house}" writes the count and the noun, "{houses:stands/stand}" only the form that agrees with the count.
Scene = namedtuple("Scene", "name zh draw ground facts english chinese")
SCENES = {
    "farmland": Scene(
        "farmland",
        "农田",
        farmland,
        lambda f: GROUND["grass"],
        {
            "fields": (3, 4, 5, 6),
            "border": ("a dirt road", "narrow ridges"),
            "colour other": (
                ("green", "yellow"),
                ("green", "brown"),
                ("yellow", "brown"),
                ("dark green", "yellow"),
            ),
        },
        [
            "{fields:piece} of farmland in {colour} and {other} lie side by side .",
            "The farmland is divided into {fields:field} by {border} .",
            "There are {fields:{colour} and {other} field} in the farmland .",
            "{colour} and {other} crops grow on this farmland .",
            "It is a piece of farmland with {border} between the fields .",
            "The farmland has neat furrows and {fields:rectangular field} .",
        ],
        [
            "这是一片农田，由{fields:块}{colour}和{other}的田地组成。",
            "图中的农田以{border}为界分成{fields:块}，颜色有{colour}和{other}。",
            "{fields:块}农田排列整齐，作物呈{colour}和{other}，田间有{border}。",
            "航拍图中是{colour}与{other}相间的农田，一共有{fields:块}。",
        ],
    ),
    "beach": Scene(
        "beach",
        "海滩",
        beach,
        lambda f: GROUND["bare"],
        {
            "sea": tuple(SIDES),
            "sand": ("yellow", "white"),
            "umbrellas": (2, 3, 4, 5, 6, 7, 8),
            "umbrella": ("red", "white", "blue"),
            "back": ("green trees", "a road", "green grass"),
        },
        [
            "The sea is on the {sea} of the {sand} beach .",
            "{umbrellas:{umbrella} umbrella} stand on the {sand} beach .",
            "White waves roll on to the beach with {umbrella} umbrellas and {back} behind it .",
            "There are {umbrellas:{umbrella} umbrella} on the beach beside the blue sea .",
            "It is a {sand} beach between the sea and {back} .",
            "Waves with white foam come from the {sea} to the beach .",
        ],
        [
            "{sand}的海滩{sea}是大海，沙上立着{umbrellas:把}{umbrella}遮阳伞。",
            "这是一处海滩，海水在{sea}，岸上紧邻{back}。",
            "白浪涌向{sand}的海滩，岸边有{umbrellas:把}{umbrella}的遮阳伞。",
            "图像{sea}是蓝色的海水，与{sand}的海滩相接，岸上是{back}。",
        ],
    ),
    "residential": Scene(
        "residential area",
        "住宅区",
        residential,
        lambda f: GROUND["grass"],
        {
            "houses": (4, 5, 6, 7, 8, 9, 10),
            "roof": ("red", "gray", "brown", "blue"),
            "around": ("green trees", "green lawns"),
        },
        [
            "{houses:house} with {roof} roofs stand in the residential area .",
            "A road runs through the residential area with {around} .",
            "There are {houses:house} on both sides of the road in this residential area .",
            "The houses of the residential area have {roof} roofs and {around} around them .",
            "It is a residential area with {houses:house} along a gray road .",
            "{around} surround the {roof} roofs of the residential area .",
        ],
        [
            "住宅区里有{houses:栋}{roof}屋顶的房屋，一条道路从中间穿过。",
            "这是一个住宅区，{houses:栋}房屋分列道路两旁，周围是{around}。",
            "图中的住宅区有{houses:栋}房子，屋顶是{roof}的，四周有{around}。",
            "{roof}屋顶的房屋沿道路排开，组成住宅区，共有{houses:栋}。",
        ],
    ),
    "runway": Scene(
        "runway",
        "跑道",
        runway,
        lambda f: GROUND["grass" if "grass" in f["ground"] else "bare"],
        {
            "direction": tuple(DIRECTIONS),
            "ground": ("green grass", "bare ground"),
            "plane": ("a white plane", "no plane"),
        },
        [
            "A {direction} runway lies on the {ground} .",
            "There is {plane} on the gray runway .",
            "The runway has white threshold bars and a dashed centre line .",
            "It is a straight runway with {ground} on both sides .",
            "White markings are painted on the {direction} runway .",
            "A taxiway runs beside the runway and {plane} is seen on it .",
        ],
        [
            "一条{direction}的灰色跑道铺在{ground}上，上面画着白色标线。",
            "笔直的跑道两侧是{ground}，跑道上{plane}。",
            "图中是一条{direction}跑道，端部有白色标志线，道面上{plane}。",
            "这是机场的跑道，呈{direction}延伸，旁边有滑行道和{ground}。",
        ],
    ),
    "parking": Scene(
        "parking lot",
        "停车场",
        parking,
        lambda f: GROUND["grass"],
        {
            "rows": (2, 3, 4),
            "fill": ("full of cars", "half full", "almost empty"),
            "beside": ("green trees", "green lawns"),
        },
        [
            "The parking lot is {fill} .",
            "There are {rows:row} of parking spaces in the parking lot .",
            "{beside} are around the parking lot .",
            "It is a gray parking lot with {rows:row} of white lines .",
            "The parking lot with {rows:row} is {fill} .",
            "Cars park neatly in the parking lot near {beside} .",
        ],
        [
            "停车场里有{rows:排}车位，{fill}，周围是{beside}。",
            "这是一个停车场，{rows:排}车位里{fill}。",
            "灰色的停车场四周有{beside}，{rows:排}车位{fill}。",
            "图中的停车场画着白色车位线，共{rows:排}，{fill}。",
        ],
    ),
    "tanks": Scene(
        "storage tank",
        "储罐",
        tanks,
        lambda f: GROUND[
            {"green grass": "grass", "bare ground": "bare", "concrete ground": "concrete"}[
                f["ground"]
            ]
        ],
        {
            "tanks layout": (
                (2, "in a row"),
                (3, "in a row"),
                (4, "in a row"),
                (4, "in a grid"),
                (6, "in a grid"),
                (9, "in a grid"),
                (3, "scattered"),
                (5, "scattered"),
                (7, "scattered"),
            ),
            "colour": ("white", "gray", "brown"),
            "ground": ("green grass", "bare ground", "concrete ground"),
        },
        [
            "{tanks:{colour} storage tank} stand on the {ground} .",
            "{tanks:round storage tank} lie {layout} .",
            "The {colour} storage tanks are {layout} .",
            "It is a group of {colour} storage tanks on the {ground} .",
            "{tanks:storage tank} cast dark shadows on the {ground} .",
            "Some round {colour} storage tanks can be seen on the {ground} .",
        ],
        [
            "{tanks:个}{colour}的圆形储罐{layout}，立在{ground}上。",
            "图中有{tanks:个}储罐，颜色为{colour}，{layout}。",
            "{ground}上建有{tanks:个}{colour}储罐，它们{layout}，罐旁有阴影。",
            "这是一组{colour}的储罐，共{tanks:个}，位于{ground}上。",
        ],
    ),
    "tennis": Scene(
        "tennis court",
        "网球场",
        tennis,
        lambda f: GROUND["grass"],
        {
            "courts": (1, 2, 3, 4),
            "colour around": (
                ("green", "red"),
                ("blue", "green"),
                ("red", "green"),
                ("blue", "gray"),
                ("green", "gray"),
            ),
            "beside": ("green trees", "green lawns"),
        },
        [
            "{courts:{colour} tennis court} with white lines {courts:is/are} in the picture .",
            "There {courts:is/are} {courts:tennis court} with {around} ground around .",
            "{beside} are near the {colour} tennis {courts:court/courts} .",
            "The tennis {courts:court is/courts are} {colour} and the ground around is {around} .",
            "{courts:tennis court} {courts:is/are} surrounded by {beside} .",
            "White lines mark the {colour} tennis {courts:court/courts} .",
        ],
        [
            "图中有{courts:个}{colour}的网球场，外围地面是{around}的。",
            "{courts:个}网球场画着白色边线，场地呈{colour}，四周是{beside}。",
            "这里有{courts:个}网球场，场内{colour}，场外{around}，旁边有{beside}。",
            "{beside}环绕着{courts:个}{colour}网球场，场中拉着球网。",
        ],
    ),
    "baseball": Scene(
        "baseball diamond",
        "棒球场",
        baseball,
        lambda f: GROUND["grass"],
        {"diamonds": (1, 2), "clay": ("brown", "red"), "beside": ("green trees", "green lawns")},
        [
            "{diamonds:baseball diamond} with {clay} clay {diamonds:is/are} in the picture .",
            "The baseball {diamonds:diamond has/diamonds have} the shape of a fan .",
            "{beside} surround the baseball {diamonds:diamond/diamonds} .",
            "There {diamonds:is/are} {diamonds:baseball diamond} on the green grass .",
            "The infield of the baseball {diamonds:diamond/diamonds} is {clay} and the outfield is green .",
            "It is a view of {diamonds:baseball diamond} near {beside} .",
        ],
        [
            "图中有{diamonds:个}扇形的棒球场，内场是{clay}的土地。",
            "{diamonds:个}棒球场位于{beside}之间，外场是绿色草地。",
            "{beside}旁边有{diamonds:个}棒球场，{clay}的内场围着菱形草地。",
            "这是{diamonds:个}棒球场，{clay}土地和绿色草地组成扇形。",
        ],
    ),
    "forest": Scene(
        "forest",
        "森林",
        forest,
        lambda f: (56, 76, 40),
        {
            "colour": ("green", "dark green", "yellow and green"),
            "opening": ("a narrow path", "a small clearing", "no gap"),
        },
        [
            "It is a dense {colour} forest .",
            "There is {opening} in the forest .",
            "Many {colour} trees form the forest .",
            "The trees of the {colour} forest stand close to each other .",
            "The forest with {colour} trees has {opening} .",
            "A {colour} forest covers the ground with {opening} .",
        ],
        [
            "这是一片{colour}的茂密森林，林中{opening}。",
            "图中的森林长满{colour}的树木，树冠相连，其间{opening}。",
            "{colour}的树冠密密地铺开，形成一片森林，里面{opening}。",
            "从空中看，森林呈{colour}，树木十分茂密，{opening}。",
        ],
    ),
    "river": Scene(
        "river",
        "河流",
        river,
        lambda f: GROUND["bare" if f["bank"] == "bare ground" else "grass"],
        {
            "direction": tuple(DIRECTIONS),
            "water": ("green", "blue", "brown"),
            "bank": ("green trees", "green grass", "bare ground"),
            "bridge": ("a bridge", "no bridge"),
        },
        [
            "A {water} river flows through {bank} .",
            "The river runs in a {direction} direction .",
            "There is {bridge} over the {water} river .",
            "{bank} can be seen on both sides of the river .",
            "It is a curved river with {water} water .",
            "The {direction} river has {bridge} and {bank} on its banks .",
        ],
        [
            "一条{water}的河流{direction}流过，两岸是{bank}。",
            "弯曲的河流呈{water}，两岸是{bank}，河上{bridge}。",
            "图中的河流{direction}穿过画面，河水是{water}的，水面上{bridge}。",
            "这是一条{direction}的河流，河水{water}，岸边有{bank}。",
        ],
    ),
    "intersection": Scene(
        "intersection",
        "十字路口",
        intersection,
        lambda f: GROUND["concrete" if f["corner"] == "buildings" else "grass"],
        {"cars": (2, 3, 4, 5, 6, 7, 8), "corner": ("buildings", "green trees", "green lawns")},
        [
            "Two roads cross at the intersection .",
            "There are {cars:car} at the intersection .",
            "{corner} can be seen at the corners of the intersection .",
            "{cars:car} drive on the roads near the intersection .",
            "The intersection has zebra crossings and {corner} around it .",
            "It is an intersection of two roads with {cars:car} .",
        ],
        [
            "两条道路交会成十字路口，路上有{cars:辆}汽车。",
            "十字路口的四角是{corner}，路面上有{cars:辆}车和斑马线。",
            "图中是一个十字路口，{cars:辆}汽车行驶在路上，周围是{corner}。",
            "这个十字路口画着斑马线，四周有{corner}，共有{cars:辆}车。",
        ],
    ),
    "harbour": Scene(
        "harbour",
        "港口",
        harbour,
        lambda f: WATER[f["water"]],
        {
            "land": tuple(SIDES),
            "water": ("blue", "green", "gray"),
            "piers boats": tuple(
                (p, b) for p in (1, 2, 3) for b in range(3, 11) if 2 * p <= b <= 2 + 4 * p
            ),
        },
        [
            "{boats:white boat} are moored in the harbour .",
            "There {piers:is/are} {piers:pier} in the harbour with {water} water .",
            "The land is on the {land} of the harbour .",
            "{boats:boat} lie beside {piers:pier} of the harbour .",
            "It is a harbour with {water} water and {boats:boat} .",
            "The {piers:pier reaches/piers reach} from the {land} into the {water} harbour .",
        ],
        [
            "港口里有{piers:座}码头，停着{boats:艘}白色的船，水面呈{water}。",
            "这是一个港口，陆地在{land}，{boats:艘}船停靠在码头旁。",
            "{boats:艘}白船停在港口的{piers:座}码头边，水是{water}的。",
            "图中港口的{land}是陆地，{piers:座}码头伸入{water}的水中。",
        ],
    ),
}


class Count(int):
    """A count that a template writes in words: `{houses:house}` -> "four houses", `{houses:stands/stand}` -> "stand"."""

    def __format__(self, spec):
        if "/" in spec:
            return spec.split("/")[self != 1]
        return f"{COUNTS[self]} {spec}{'' if self == 1 else 's'}"


class ZhCount(int):
    def __format__(self, spec):
        return ZH_COUNTS[self] + spec


def facts(scene, rng):
    """What a picture of the scene will show: counts, colours and relations by name, and the `style` of its sentences."""
    found = {"scene": scene, "style": rng.randrange(6)}
    for names, options in SCENES[scene].facts.items():
        value = rng.choice(options)
        found.update(zip(names.split(), value if " " in names else (value,)))
    return found


def describe_en(f):
    """Five English sentences, tokens apart from the final period as in the published caption sets."""
    words = {k: Count(v) if isinstance(v, int) else v for k, v in f.items()}
    templates = SCENES[f["scene"]].english
    raw = [templates[(f["style"] + k) % len(templates)].format(**words) for k in range(5)]
    return [s[0].upper() + s[1:] for s in raw]


def describe_zh(f):
    """One Chinese description."""
    words = {k: ZhCount(v) if isinstance(v, int) else ZH.get(v, v) for k, v in f.items()}
    templates = SCENES[f["scene"]].chinese
    return templates[f["style"] % len(templates)].format(**words)


def render(scene, rng):
    """A picture of the scene (RGB, 128x128) and its facts, both drawn from rng."""
    f = facts(scene, rng)
    sheet = Sheet(rng, texture(rng, jitter(rng, SCENES[scene].ground(f))))
    SCENES[scene].draw(sheet, rng, f)
    picture = sheet.image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.45)))
    for kind, low, high in (
        (ImageEnhance.Brightness, 0.88, 1.14),
        (ImageEnhance.Contrast, 0.92, 1.14),
        (ImageEnhance.Color, 0.85, 1.15),
    ):
        picture = kind(picture).enhance(rng.uniform(low, high))
    return picture, f


def rng_of(seed, scene, split, index):
    return random.Random(f"{seed}/{scene}/{split}/{index}")


def write(path, text):
    """Write all or nothing: temporary file, fsync, rename."""
    temporary = temporary_beside(path)
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def draw(job):
    path, seed, scene, split, index = job
    picture, _ = render(scene, rng_of(seed, scene, split, index))
    temporary = temporary_beside(path)
    picture.save(temporary, "TIFF", compression="tiff_adobe_deflate")
    os.replace(temporary, path)


def draw_set(args):
    jobs, images, memory = [], [], {}
    for split in SPLITS:
        for scene in SCENES:
            for index in range(getattr(args, split)):
                name, f = (
                    f"{scene}_{split}_{index:03d}.tif",
                    facts(scene, rng_of(args.seed, scene, split, index)),
                )
                raw = describe_en(f)
                images.append(
                    {
                        "filename": name,
                        "split": split,
                        "sentences": [{"raw": sentence} for sentence in raw],
                    }
                )
                memory["".join(sentence + "  " for sentence in raw)] = describe_zh(f)
                jobs.append((args.output / "images" / name, args.seed, scene, split, index))
    wanted = {
        "memory.jsonl": "".join(
            json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\n"
            for s, t in memory.items()
        ),
        "dataset.json": json.dumps(
            {"images": images, "dataset": "demo"}, ensure_ascii=False, indent=4
        )
        + "\n",
    }
    there = {
        name
        for name, text in wanted.items()
        if (args.output / name).is_file()
        and (args.output / name).read_bytes() == text.encode("utf-8")
    }
    if "dataset.json" in there:
        jobs = [job for job in jobs if not job[0].is_file()]
    if len(there) == len(wanted) and not jobs:
        print(
            f"{args.output}: all {len(images)} pictures and their captions are there, nothing to do"
        )
        return
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    if (
        "dataset.json" not in there
    ):  # until the new pictures are drawn, nothing may vouch for the old ones
        (args.output / "dataset.json").unlink(missing_ok=True)
    if len(jobs) < 100:  # starting processes takes longer than drawing
        list(map(draw, jobs))
    else:
        with multiprocessing.Pool() as pool:
            list(
                tqdm(
                    pool.imap_unordered(draw, jobs, chunksize=8),
                    total=len(jobs),
                    desc="pictures",
                    disable=None,
                )
            )
    for name, text in wanted.items():
        write(args.output / name, text)
    counts = ", ".join(f"{split} {getattr(args, split) * len(SCENES)}" for split in SPLITS)
    print(
        f"{args.output}: {len(jobs)} pictures drawn, {len(images)} in all ({counts}), {len(memory)} memory records"
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Draw a small aerial caption set: pictures, English captions, Chinese memory."
    )
    parser.add_argument(
        "--output", type=Path, default=DATA / "demo", help="folder to write (default: data/demo)"
    )
    parser.add_argument(
        "--train", type=int, default=48, help="training pictures per scene, 12 scenes (default: 48)"
    )
    parser.add_argument(
        "--val", type=int, default=8, help="validation pictures per scene (default: 8)"
    )
    parser.add_argument("--test", type=int, default=8, help="test pictures per scene (default: 8)")
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed draws another set (default: 1)"
    )
    args = parser.parse_args(argv)
    if min(args.train, args.val, args.test) < 0 or args.train + args.val + args.test == 0:
        parser.error(
            f"--train {args.train} --val {args.val} --test {args.test}: expected numbers of pictures, 0 or more and not all 0"
        )
    return run_stage(__file__, draw_set, args)


if __name__ == "__main__":
    sys.exit(main())
