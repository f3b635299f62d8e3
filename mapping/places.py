"""Where the pixels of a scene lie: in its coordinate system, on the globe, and how large they are.

Without georeference everything stays in pixels from the upper left corner, y downwards.
"""

from collections.abc import Sequence
from typing import Any

from model.images.tiles import Scene

Ring = Sequence[tuple[float, float]]  # closed: the last point is the first one
WGS84 = "EPSG:4326"
# Of the whole globe, for scenes in degrees: https://epsg.io/6933
EQUAL_AREA = "EPSG:6933"
MERCATOR = ("merc", "webmerc")  # PROJ's names
DECIMALS = 9  # of degrees: a tenth of a millimetre


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
        shapes = [_polygon(self.native(rings)) for rings in polygons]
        if self.crs is None:
            return shapes
        from rasterio.warp import transform_geom

        return transform_geom(self._crs, WGS84, shapes, precision=DECIMALS)

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


def _polygon(rings: Sequence[Ring]) -> dict:
    turned = []
    for index, ring in enumerate(rings):
        is_counterclockwise = signed_area(ring) > 0
        points = [list(point) for point in ring]
        turned.append(points if is_counterclockwise == (index == 0) else points[::-1])
    return {"type": "Polygon", "coordinates": turned}


def signed_area(ring: Ring) -> float:
    """Positive where the ring runs counterclockwise, with y upwards."""
    x0, y0 = ring[0]
    doubled = 0.0
    for (x1, y1), (x2, y2) in zip(ring, ring[1:]):
        # From its first point: of large coordinates the digits that count would be lost
        doubled += (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    return doubled / 2


def box(left: float, top: float, width: float, height: float) -> list[Ring]:
    """The polygon of a window."""
    right, bottom = left + width, top + height
    return [[(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]]
