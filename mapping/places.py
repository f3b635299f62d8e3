"""Where the pixels of a scene lie: in its coordinate system, on the globe, and how large they are.

Without georeference everything stays in pixels from the upper left corner, y downwards.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mapping.antimeridian import Ring, cut, signed_area
from model.images.tiles import Scene

WGS84 = "EPSG:4326"
# Of the whole globe, for scenes in degrees: https://epsg.io/6933
EQUAL_AREA = "EPSG:6933"
MERCATOR = ("merc", "webmerc")  # PROJ's names
DECIMALS = 9  # of degrees: a tenth of a millimetre
# Longitudes are followed along an edge in so many steps, each of less than 180 degrees
STEPS = 4
NUDGE = 1e-3  # pixels by which a point moves that lies on a pole, where there is no longitude


class Places:
    """crs: the name of the scene's coordinate system, such as EPSG:32650; None without one."""

    def __init__(self, scene: Scene):
        self.crs = _name(scene.crs)
        self._crs = scene.crs
        self._transform = scene.transform

    @property
    def is_north_up(self) -> bool:
        return self.crs is not None and self._transform.e < 0 < self._transform.a

    @property
    def unit(self) -> str:
        """Of areas."""
        return "pixels" if self.crs is None else "m2"

    def native(self, rings: Sequence[Ring]) -> list[Ring]:
        """Rings in pixels -> in the scene's coordinate system."""
        if self.crs is None:
            return list(rings)
        place = self._transform  # north up: see tiles.py
        found: list[Ring] = []
        for ring in rings:
            found.append([(place.c + place.a * x, place.f + place.e * y) for x, y in ring])
        return found

    def geometries(self, polygons: Sequence[Sequence[Ring]]) -> list[dict]:
        """Polygons in pixels, each its outer ring and its holes -> GeoJSON in longitude, latitude.

        Outer rings run counterclockwise, as RFC 7946 asks.
        """
        oriented = [_oriented(self.native(rings)) for rings in polygons]
        if self.crs is None or not oriented:
            return [_geometry([rings]) for rings in oriented]
        globes = self._on_globe([ring for rings in oriented for ring in rings])
        return [_geometry(cut([next(globes) for _ in rings])) for rings in oriented]

    def _on_globe(self, rings: Sequence[Ring]) -> Iterator[Ring]:
        """In longitude and latitude; longitudes go on beyond 180 instead of beginning again."""
        paths = [_in_steps(ring) for ring in rings]
        lons, lats = self._lon_lat(np.concatenate(paths))
        begin = 0
        for path in paths:
            part = slice(begin, begin + len(path))
            begin += len(path)
            unwrapped = np.unwrap(lons[part], period=360)[::STEPS]
            yield list(zip(unwrapped.tolist(), lats[part][::STEPS].tolist()))

    def _lon_lat(self, points):
        from rasterio.warp import transform

        lons, lats = np.array(transform(self._crs, WGS84, *points.T))
        at_pole = np.abs(lats) > 90 - 1e-9
        if at_pole.any() and not self._crs.is_geographic:
            width = abs(self._transform.a)
            moved = points[at_pole] + (NUDGE * width, 2 * NUDGE * width)
            lons[at_pole], lats[at_pole] = transform(self._crs, WGS84, *moved.T)
        return lons, lats

    def area(self, rings: Sequence[Ring]) -> float:
        """Of a polygon in pixels, in `unit`: m2 of the projection, but true ones of degrees and of
        Mercator's, whose squares grow towards the poles.
        """
        outer, *holes = [abs(signed_area(self._flat(ring))) for ring in rings]
        return outer - sum(holes)

    def _flat(self, ring: Ring) -> Ring:
        if self.crs is None:
            return ring
        [ring] = self.native([ring])
        if self._crs.is_projected and self._crs.to_dict().get("proj") not in MERCATOR:
            _, metres = self._crs.linear_units_factor
            return [(x * metres, y * metres) for x, y in ring]
        from rasterio.warp import transform

        # From its first meridian: beyond 180 degrees east it would be torn apart
        west = ring[0][0]
        ring = [(x - west, y) for x, y in ring]
        xs, ys = transform(self._crs, EQUAL_AREA, *zip(*ring))
        return list(zip(xs, ys))


def _name(crs: Any) -> str | None:
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else crs.to_wkt()


def _oriented(rings: Sequence[Ring]) -> list[Ring]:
    """The outer ring counterclockwise, holes clockwise."""
    turned = []
    for index, ring in enumerate(rings):
        is_counterclockwise = signed_area(ring) > 0
        turned.append(ring if is_counterclockwise == (index == 0) else ring[::-1])
    return turned


def _in_steps(ring: Ring) -> np.ndarray:
    """[points, 2]: every STEPS-th one is the ring's, others lie evenly between them."""
    points = np.array(ring, float)
    steps = np.arange(STEPS)[:, None] / STEPS
    edges = points[:-1, None] + steps * (points[1:] - points[:-1])[:, None]
    return np.concatenate((edges.reshape(-1, 2), points[-1:]))


def _geometry(polygons: Sequence[Sequence[Ring]]) -> dict:
    """GeoJSON of one polygon, or of several."""
    found = []
    for rings in polygons:
        found.append([[[round(v, DECIMALS) for v in point] for point in ring] for ring in rings])
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found[0]}
    return {"type": "MultiPolygon", "coordinates": found}


def box(left: float, top: float, width: float, height: float) -> list[Ring]:
    """The polygon of a window."""
    right, bottom = left + width, top + height
    return [[(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]]
