"""Polygons of maps across the antimeridian and around the poles, point by point."""

from types import SimpleNamespace

import numpy as np
import pytest

from mapping.antimeridian import cut, signed_area
from mapping.places import Places, box

rasterio = pytest.importorskip("rasterio")
warp = pytest.importorskip("rasterio.warp")

# By name: coordinate system, its units per pixel, west, north
SCENES = {
    "degrees": ("EPSG:4326", 0.01, 179.5, 11),
    "degrees from the west": ("EPSG:4326", 0.01, -180.3, 11),
    "degrees of 0 to 360": ("EPSG:4326", 1, 130, 50),
    "Mercator": ("EPSG:3857", 1000, 2e7, 1.1e6),
    "UTM zone 60": ("EPSG:32660", 400, 810_000, 1_140_000),
    "UTM zone 1": ("EPSG:32701", 400, 150_000, 3_900_000),
    "Pacific": ("EPSG:3832", 30_000, 2e6, 1e6),
    "South Pole": ("EPSG:3031", 10_000, -5e5, 5e5),
    "North Pole": ("EPSG:3413", 10_000, -5e5, 5e5),
}


def places_of(name):
    code, size, west, north = SCENES[name]
    transform = rasterio.Affine(size, 0, west, 0, -size, north)
    return Places(SimpleNamespace(crs=rasterio.CRS.from_string(code), transform=transform))


def walled(left, top, width, height):
    """The polygon of a window as a region has it: with a point at every cell."""
    [ring] = box(left, top, width, height)
    points = []
    for start, end in zip(np.array(ring), np.array(ring[1:])):
        points += [tuple(start + (end - start) * step / 64) for step in range(64)]
    return [[*points, points[0]]]


def parts(geometry):
    """The polygons of GeoJSON's Polygon or MultiPolygon."""
    if geometry["type"] == "Polygon":
        return [geometry["coordinates"]]
    return geometry["coordinates"]


def enclosed(rings, x, y):
    """Which points an odd number of rings go around (ray casting)."""
    inside = np.zeros(len(x), bool)
    for ring in map(np.array, rings):
        for (x0, y0), (x1, y1) in zip(ring, ring[1:]):
            if y0 != y1:
                passes = (y0 > y) != (y1 > y)
                inside ^= passes & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x)
    return inside


WHOLE = walled(0, 0, 100, 100)
SHAPES = {
    "whole": WHOLE,
    "half": walled(0, 0, 50, 100),
    "a hole in the middle": WHOLE + walled(25, 25, 50, 50),
    "a hole aside": WHOLE + walled(10, 60, 20, 20),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SCENES)
def test_a_polygon_holds_the_places_that_its_pixels_have(name, shape):
    """Random pixels lie in the polygon in degrees if and only if they lie in that in pixels."""
    places, rings = places_of(name), SHAPES[shape]
    [geometry] = places.geometries([rings])
    _, size, west, north = SCENES[name]
    x, y = np.random.default_rng(0).uniform(-20, 120, (2, 4000))
    clear = np.ones(4000, bool)  # of edges, which are straight in one system alone
    for corner in (corner for ring in rings for corner in (min(ring), max(ring))):
        clear &= (np.abs(x - corner[0]) > 0.3) & (np.abs(y - corner[1]) > 0.3)
    native = west + size * x, north - size * y
    lon, lat = map(np.array, warp.transform(SCENES[name][0], "EPSG:4326", *native))
    lon = (lon + 180) % 360 - 180

    found = enclosed([ring for part in parts(geometry) for ring in part], lon, lat)
    assert np.array_equal(found[clear], enclosed(rings, x, y)[clear])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SCENES)
def test_rings_are_as_rfc_7946_asks(name, shape):
    [geometry] = places_of(name).geometries([SHAPES[shape]])
    for outer, *holes in parts(geometry):
        assert signed_area(outer) > 0 and all(signed_area(hole) < 0 for hole in holes)
        for ring in (outer, *holes):
            assert ring[0] == ring[-1]
            assert all(-180 <= lon <= 180 and -90 <= lat <= 90 for lon, lat in ring)


@pytest.mark.parametrize("name", ["degrees", "degrees from the west", "Mercator", "UTM zone 60"])
def test_the_parts_have_the_area_of_the_whole(name):
    places = places_of(name)
    [geometry] = places.geometries([WHOLE])
    assert geometry["type"] == "MultiPolygon" and len(parts(geometry)) == 2
    total = 0.0
    for (ring,) in parts(geometry):
        total += signed_area(list(zip(*warp.transform("EPSG:4326", "EPSG:6933", *zip(*ring)))))
    # A metre of UTM is up to 0.1 % longer or shorter than one on the ground
    assert total == pytest.approx(places.area(WHOLE), rel=3e-3 if "UTM" in name else 1e-3)


def test_the_whole_globe_is_one_polygon():
    transform = rasterio.Affine(1, 0, -180, 0, -1, 90)
    places = Places(SimpleNamespace(crs=rasterio.CRS.from_string("EPSG:4326"), transform=transform))
    assert places.geometries([]) == []
    [geometry] = places.geometries([box(0, 0, 360, 180)])
    ring = [[-180, 90], [-180, -90], [180, -90], [180, 90], [-180, 90]]
    assert geometry == {"type": "Polygon", "coordinates": [ring]}


def test_an_edge_on_the_antimeridian_is_no_crossing():
    places = places_of("degrees")  # 180 degrees are 50 pixels from its left
    for left, sign in ((0, 1), (50, -1)):
        [geometry] = places.geometries([box(left, 0, 50, 100)])
        assert geometry["type"] == "Polygon"
        lons = {lon for lon, _ in geometry["coordinates"][0]}
        assert lons == {sign * 180.0, sign * 179.5}


def test_a_hole_with_an_edge_on_the_antimeridian_becomes_a_bay():
    """No ring shares an edge with another."""
    places = places_of("degrees")
    [geometry] = places.geometries([box(0, 0, 100, 100) + box(30, 40, 20, 20)])
    west, east = sorted(geometry["coordinates"], key=lambda rings: -rings[0][0][0])
    assert len(west) == len(east) == 1
    assert signed_area(west[0]) == pytest.approx(0.5 - 0.04) and signed_area(east[0]) == 0.5


def test_elsewhere_nothing_is_cut():
    ring = [(10, 0), (20, 0), (20, 5), (10, 5), (10, 0)]
    assert cut([ring]) == [[ring]]


def test_a_crossing_that_winds_becomes_several_parts():
    """A comb whose three teeth lie beyond the line."""
    comb = [(179, 0), (181, 0), (181, 1), (179.5, 1), (179.5, 2), (181, 2), (181, 3)]
    comb += [(179.5, 3), (179.5, 4), (181, 4), (181, 5), (179, 5), (179, 0)]
    polygons = cut([comb])
    assert sorted(signed_area(outer) for (outer,) in polygons) == [1, 1, 1, 4]
