"""Polygons in longitude and latitude, cut at the antimeridian: RFC 7946, section 3.1.9.

Rings are closed and oriented, the outer one counterclockwise, holes clockwise: what they enclose
lies on the left of whoever walks along them. Longitudes are unwrapped: continuous, in degrees, and
maybe beyond 180.
"""

from collections.abc import Sequence

Point = tuple[float, float]
Ring = Sequence[Point]

HALF, WHOLE = 180.0, 360.0


def cut(rings: Sequence[Ring]) -> list[list[Ring]]:
    """A polygon -> polygons, each between -180 and 180 degrees.

    A ring around a pole is not closed: it ends 360 degrees east or west of where it begins.
    """
    rings = _beside_each_other(_around_poles(rings))
    west = min(x for x, _ in rings[0])
    east = max(x for x, _ in rings[0])
    polygons = []
    turn = (west + HALF) // WHOLE
    while turn * WHOLE - HALF < east:
        moved = [[(x - turn * WHOLE, y) for x, y in ring] for ring in rings]
        polygons += _grouped(_mirrored(_west_of(_mirrored(_west_of(moved)))))
        turn += 1
    return polygons


def signed_area(ring: Ring) -> float:
    """Positive where the ring runs counterclockwise, with y upwards."""
    x0, y0 = ring[0]
    doubled = 0.0
    for (x1, y1), (x2, y2) in zip(ring, ring[1:]):
        # From its first point: of large coordinates the digits that count would be lost
        doubled += (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    return doubled / 2


def _around_poles(rings):
    """The same with one closed ring in the place of those that run around a pole."""
    closed, around = [], []
    for ring in rings:
        is_closed = abs(ring[-1][0] - ring[0][0]) < HALF
        (closed if is_closed else around).append(ring)
    if not around:
        return closed
    walk = [point for ring in around for point in _from_antimeridian(ring)]
    if len(around) == 1:
        # What it encloses is on its left: north of a way to the east
        end = walk[-1][0]
        pole = 90.0 if end > 0 else -90.0
        walk += [(end, pole), (-end, pole)]
    return [[*walk, walk[0]], *closed]


def _from_antimeridian(ring):
    """A ring around a pole, beginning and ending at -180 and 180 degrees or the reverse."""
    turn = WHOLE if ring[-1][0] > ring[0][0] else -WHOLE
    line = (ring[0][0] + HALF) // WHOLE * WHOLE + HALF  # the next one to the east
    if turn < 0:
        line -= WHOLE
    edges = list(zip(ring, ring[1:]))
    at = next(i for i, (start, end) in enumerate(edges) if (start[0] < line) != (end[0] < line))
    crossing = _crossing(*edges[at], line)
    points = [crossing, *ring[at + 1 :]]
    points += [(x + turn, y) for x, y in ring[1 : at + 1]]
    points.append((crossing[0] + turn, crossing[1]))
    middle = line + turn / 2
    return [(x - middle, y) for x, y in points]


def _beside_each_other(rings):
    """Holes moved by whole turns to where the outer ring is."""
    outer, *holes = rings
    west = min(x for x, _ in outer)
    moved = [outer]
    for hole in holes:
        turns = (min(x for x, _ in hole) - west + 1e-9) // WHOLE
        moved.append([(x - turns * WHOLE, y) for x, y in hole])
    return moved


def _mirrored(rings):
    """East becomes west; walked backwards, so that what is enclosed stays on the left."""
    return [[(-x, y) for x, y in reversed(ring)] for ring in rings]


def _west_of(rings):
    """What oriented rings enclose west of 180 degrees, as oriented rings."""
    kept, pieces = [], []
    for ring in rings:
        inside = [x < HALF for x, _ in ring]
        if all(inside):
            kept.append(ring)
        elif any(inside):
            pieces += _pieces(ring)
    return kept + _joined(pieces)


def _pieces(ring):
    """The parts of a ring west of 180 degrees, each from where it comes in to where it goes out.

    What lies on the line is no part: a hole that has an edge there becomes a bay.
    """
    points = ring[:-1]
    first = next(i for i, (x, _) in enumerate(points) if x >= HALF)
    walk = [*points[first:], *points[: first + 1]]
    pieces = []
    for start, end in zip(walk, walk[1:]):
        if start[0] >= HALF > end[0]:
            pieces.append([_crossing(start, end, HALF)])
        if end[0] < HALF:
            pieces[-1].append(end)
        elif start[0] < HALF:
            pieces[-1].append(_crossing(start, end, HALF))
    return pieces


def _crossing(start, end, x):
    share = (x - start[0]) / (end[0] - start[0])
    return x, start[1] + share * (end[1] - start[1])


def _joined(pieces):
    """Pieces become rings along the line: from where one goes out north to the next that comes in.

    From south to north they go out and come in by turns, as what is enclosed is on the left.
    """
    by_end = sorted(range(len(pieces)), key=lambda index: pieces[index][-1][1])
    by_start = sorted(range(len(pieces)), key=lambda index: pieces[index][0][1])
    following = dict(zip(by_end, by_start))
    rings = []
    while following:
        ring, index = [], next(iter(following))
        while index in following:
            ring += pieces[index]
            index = following.pop(index)
        rings.append([*ring, ring[0]])
    return rings


def _grouped(rings):
    """Oriented rings -> polygons: each outer ring with the holes in it."""
    polygons, holes = [], []
    for ring in rings:
        if signed_area(ring) > 0:
            polygons.append([ring])
        else:
            holes.append(ring)
    for hole in holes:
        (x1, y1), (x2, y2) = hole[:2]
        middle = (x1 + x2) / 2, (y1 + y2) / 2
        home = next(polygon for polygon in polygons if _encloses(polygon[0], middle))
        home.append(hole)
    return polygons


def _encloses(ring, point):
    """Whether a ray to the east of a point passes the ring an odd number of times."""
    x, y = point
    is_inside = False
    for start, end in zip(ring, ring[1:]):
        if (start[1] > y) != (end[1] > y):
            share = (y - start[1]) / (end[1] - start[1])
            is_inside ^= start[0] + share * (end[0] - start[0]) > x
    return is_inside
