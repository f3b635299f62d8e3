"""Tiles -> regions of one scene: the tiles over a cell vote, neighbouring cells are one polygon."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mapping.grid import Grid
from mapping.naming import scene_names, window_of
from mapping.places import Ring

NO_DATA = -1
LEAST_ENTROPY = 0.05  # nats, added to that of each tile


@dataclass
class Region:
    """Connected cells of one scene; scene None: of none, or of none that is sure enough.

    rings: in pixels, the outer one and the holes; lines: those of the tiles that say so.
    """

    scene: str | None
    rings: list[Ring]
    lines: list[dict] = field(default_factory=list)

    @property
    def confidence(self) -> float | None:
        """The mean of its tiles', None where none has one."""
        known = [line["confidence"] for line in self.lines if line["confidence"] is not None]
        return round(sum(known) / len(known), 4) if known else None


def sure_scene(line: dict, min_confidence: float) -> str | None:
    """The scene of a tile, None below min_confidence; unknown confidence counts as sure."""
    confidence = line["confidence"]
    if confidence is not None and confidence < min_confidence:
        return None
    return line["scene"]


def answered(lines: Sequence[dict]) -> list[dict]:
    """The lines of tiles that were asked about."""
    return [line for line in lines if "answers" in line]


def votes_of(line: dict) -> dict[str, float]:
    """A tile's votes: for each scene its probability, divided by the entropy of all of them.

    A tile across a border is of two minds and counts less than one that lies on one scene.
    """
    confidence = line["confidence"]
    alone = 1.0 if confidence is None else max(confidence, 1e-3)
    likely = line.get("likely") or {line["scene"]: alone}
    entropy = -sum(share * math.log(share) for share in likely.values())
    return {scene: share / (entropy + LEAST_ENTROPY) for scene, share in likely.items()}


def vote(grid: Grid, lines: Sequence[dict], min_confidence: float) -> np.ndarray:
    """Scene of each cell by its place in scene_names(), int16 [rows, columns] of cells.

    The tiles over a cell vote, see votes_of. The number behind the last scene: no tile there names
    one; NO_DATA: no tile was asked about.
    """
    names = scene_names()
    shape = len(grid.ys) - 1, len(grid.xs) - 1
    votes = np.zeros((len(names), *shape), np.float32)
    covered = np.zeros(shape, bool)
    for line in answered(lines):
        cells = grid.cells(window_of(line))
        covered[cells] = True
        if sure_scene(line, min_confidence) is not None:
            for scene, weight in votes_of(line).items():
                votes[names.index(scene), *cells] += weight

    winners = votes.argmax(0).astype(np.int16)
    winners[votes.max(0) == 0] = len(names)
    winners[~covered] = NO_DATA
    return winners


def regions_of(grid: Grid, lines: Sequence[dict], min_confidence: float) -> list[Region]:
    """The polygons of a scene, which do not overlap, from its upper left corner on."""
    from rasterio.features import rasterize, shapes

    winners = vote(grid, lines, min_confidence)
    names = [*scene_names(), None]
    regions, labelled = [], []
    for shape, value in shapes(winners, mask=winners != NO_DATA, connectivity=4):
        rings = [_in_pixels(ring, grid) for ring in shape["coordinates"]]
        regions.append(Region(names[int(value)], rings))
        labelled.append((shape, len(regions)))
    if not regions:
        return []

    labels = rasterize(labelled, out_shape=winners.shape, dtype="int32")
    for line in answered(lines):
        scene = sure_scene(line, min_confidence)
        for label in np.unique(labels[grid.cells(window_of(line))]):
            if label and regions[label - 1].scene == scene:
                regions[label - 1].lines.append(line)
    return regions


def _in_pixels(ring: Sequence, grid: Grid) -> Ring:
    """A ring around cells -> in pixels, with a point at every cell that it passes.

    Neighbours then have the same points, and no gap where straight lines become curves elsewhere.
    """
    points = []
    for (x1, y1), (x2, y2) in zip(ring, ring[1:]):
        steps = int(max(abs(x2 - x1), abs(y2 - y1)))
        for step in range(steps):
            x = x1 + (x2 - x1) * step / steps
            y = y1 + (y2 - y1) * step / steps
            points.append((float(grid.xs[round(x)]), float(grid.ys[round(y)])))
    return [*points, points[0]]
