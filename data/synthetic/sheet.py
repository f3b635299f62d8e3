"""Drawing primitives: noise, colours, and a sheet with rotated coordinates and shadows.

Everything random comes from the random.Random that is handed in, in a fixed order: a changed order
of draws changes every image after it.
"""

import math

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

# side of an image, pixels
SIZE = 128
# side of the sheet it is drawn on; halving it smooths the edges
SHEET = 2 * SIZE
# coordinates run from -HALF to HALF around the middle of the sheet
HALF = SHEET / 2
# farther than a corner of the sheet
ACROSS = range(-210, 211, 5)

PAINT = {
    "white": (232, 232, 228),
    "red": (190, 62, 50),
    "gray": (142, 144, 148),
    "blue": (66, 108, 168),
    "black": (46, 48, 54),
    "brown": (142, 98, 62),
}
CROWN = (66, 106, 50)
LINE = (236, 236, 230)
SHADOW = (16, 20, 28, 120)
GLASS = (40, 48, 58)

# how far brightness, contrast and saturation go from what they were
LIGHT = ((ImageEnhance.Brightness, 0.3), (ImageEnhance.Contrast, 0.25), (ImageEnhance.Color, 0.4))
# colour and greatest share of the haze; how much a camera's colours differ
HAZE, THICKEST_HAZE, CAST = (200, 206, 214), 0.25, 0.1


def shade(colour, k):
    """The colour k times as bright."""
    return tuple(max(0, min(255, round(c * k))) for c in colour[:3])


def jitter(rng, colour, amount=9):
    """A colour near this one, its brightness up to `amount` away."""
    light = rng.uniform(-amount, amount)
    shifted = []
    for c in colour:
        shifted.append(round(c + light + rng.uniform(-amount, amount) / 2))
    return tuple(max(0, min(255, c)) for c in shifted)


def texture(rng, colour, contrast=0.22, cells=(64, 16, 4)):
    """A sheet of smoothed noise around a colour.

    cells: sizes of its grains in sheet pixels, the first weighs most.
    """
    field = None
    for cell in cells:
        n = SHEET // cell + 2
        noise = Image.frombytes("L", (n, n), rng.randbytes(n * n))
        noise = noise.resize((SHEET, SHEET), Image.Resampling.BICUBIC)
        field = noise if field is None else Image.blend(field, noise, 0.42)
    field = ImageOps.autocontrast(field, cutoff=1)
    return ImageOps.colorize(field, shade(colour, 1 - contrast), shade(colour, 1 + contrast))


def wave(rng, height):
    """A smooth random function of a coordinate, at most `height` from zero."""
    a, b, c = (rng.uniform(0, 6.3) for _ in range(3))

    def smooth(t):
        terms = 0.6 * math.sin(t / 62 + a) + 0.28 * math.sin(t / 29 + b)
        return height * (terms + 0.12 * math.sin(t / 13 + c))

    return smooth


def flat(t):
    """What a wave without height would be."""
    return 0


def turned(x, y, turn, points):
    """Points around the origin -> around (x, y), rotated by `turn` radians."""
    c, s = math.cos(turn), math.sin(turn)
    return [(x + c * i - s * j, y + s * i + c * j) for i, j in points]


def finish(rng, image, blur):
    """A sheet -> an image of SIZE, its blur drawn up to a radius of `blur` pixels."""
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, blur)))


def relit(rng, image):
    """The image in the light of another day, through another camera and more or less haze."""
    for kind, reach in LIGHT:
        image = kind(image).enhance(1 + rng.uniform(-reach, reach))
    thick = rng.uniform(0, THICKEST_HAZE)
    channels = []
    for channel, haze in zip(image.split(), HAZE):
        gain = rng.uniform(1 - CAST, 1 + CAST) * (1 - thick)
        levels = [min(255, round(level * gain + haze * thick)) for level in range(256)]
        channels.append(channel.point(levels))
    return Image.merge("RGB", channels)


class Sheet:
    """What a scene is drawn on.

    Coordinates are rotated by `angle` around `origin`; shadows fall along `sun` whatever the angle.
    """

    def __init__(self, rng, image):
        self.rng, self.image = rng, image
        self.pen = ImageDraw.Draw(image, "RGBA")
        self.angle, self.origin = 0.0, (0.0, 0.0)
        direction = rng.uniform(0.3, 1.2)
        self.sun = (math.cos(direction), math.sin(direction))

    def at(self, x, y):
        """Sheet pixels of a point."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return HALF + self.origin[0] + c * x - s * y, HALF + self.origin[1] + s * x + c * y

    def poly(self, points, fill, lift=0):
        """A polygon of a colour or a texture; lift: length of its shadow in sheet pixels."""
        spots = [self.at(*point) for point in points]
        if lift:
            shadow = [(x + lift * self.sun[0], y + lift * self.sun[1]) for x, y in spots]
            self.pen.polygon(shadow, fill=SHADOW)
        if isinstance(fill, Image.Image):
            mask = Image.new("L", (SHEET, SHEET))
            ImageDraw.Draw(mask).polygon(spots, fill=255)
            self.image.paste(fill, mask=mask)
        else:
            self.pen.polygon(spots, fill=fill)

    def box(self, x, y, w, h, fill, lift=0, turn=0.0):
        """A rectangle around (x, y), rotated by `turn` radians."""
        corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
        self.poly(turned(x, y, turn, corners), fill, lift)

    def band(self, low, high, fill):
        """All that lies between two functions of x, right across the sheet."""
        points = [(t, low(t)) for t in ACROSS]
        points += [(t, high(t)) for t in reversed(ACROSS)]
        self.poly(points, fill)

    def disc(self, x, y, r, fill, lift=0, stretch=1.0):
        """stretch: height over width."""
        x, y = self.at(x, y)
        if lift:
            i, j = x + lift * self.sun[0], y + lift * self.sun[1]
            self.pen.ellipse((i - r, j - r, i + r, j + r), fill=SHADOW)
        self.pen.ellipse((x - r, y - r * stretch, x + r, y + r * stretch), fill=fill)

    def line(self, points, fill, width):
        spots = [self.at(*point) for point in points]
        self.pen.line(spots, fill=fill, width=width, joint="curve")

    def frame(self, x, y, w, h, width=2, fill=LINE):
        """The outline of an upright box."""
        a, b = w / 2, h / 2
        corners = [(x - a, y - b), (x + a, y - b), (x + a, y + b), (x - a, y + b)]
        self.line([*corners, corners[0]], fill, width)

    def dashes(self, y, start=-210, end=210, step=22, length=11, width=2, fill=LINE):
        """A dashed line along x."""
        for x in range(round(start), round(end), step):
            self.box(x + length / 2, y, length, width, fill)

    def tree(self, x, y, r, colour=CROWN):
        """A crown: a dark disc with its shadow, and lighter leaves towards the sun."""
        rng = self.rng
        base = jitter(rng, colour, 12)
        self.disc(x, y, r, shade(base, 0.72), lift=r * 0.55)
        x, y = self.at(x, y)
        for k in range(6):
            angle, distance = rng.uniform(0, 6.3), rng.uniform(0, 0.55) * r
            size = r * rng.uniform(0.3, 0.5)
            i = x + distance * math.cos(angle) - 0.2 * r * self.sun[0]
            j = y + distance * math.sin(angle) - 0.2 * r * self.sun[1]
            box = (i - size, j - size, i + size, j + size)
            self.pen.ellipse(box, fill=shade(base, 0.86 + 0.08 * k))

    def trees(self, count, free, r=(6, 11), colours=(CROWN,)):
        """Up to `count` trees where free(x, y) holds."""
        spots = []
        for _ in range(count * 4):
            x = self.rng.uniform(-1.45, 1.45) * HALF
            y = self.rng.uniform(-1.45, 1.45) * HALF
            if free(x, y):
                spots.append((x, y))
        for x, y in sorted(spots[:count], key=lambda spot: spot[1]):
            self.tree(x, y, self.rng.uniform(*r), self.rng.choice(colours))

    def car(self, x, y, turn=0.0, size=1.0):
        w, h = 24 * size, 11 * size
        paint = PAINT[self.rng.choice(("white", "white", "gray", "black", "red", "blue"))]
        self.box(x, y, w, h, jitter(self.rng, paint), 4, turn)
        # windscreen and rear window
        for along, width in ((0.16, 0.16), (-0.3, 0.12)):
            i, j = x + along * w * math.cos(turn), y + along * w * math.sin(turn)
            self.box(i, j, w * width, h * 0.8, GLASS, turn=turn)

    def boat(self, x, y, turn):
        hull = [(-13, -5), (5, -5.5), (15, 0), (5, 5.5), (-13, 5)]
        self.poly(turned(x, y, turn, hull), jitter(self.rng, (238, 238, 234), 6), 3)
        i, j = x - 3 * math.cos(turn), y - 3 * math.sin(turn)
        self.box(i, j, 10, 6, jitter(self.rng, (150, 158, 170), 20), turn=turn)
