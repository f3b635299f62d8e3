"""map.geojson and tiles.geojson, written by hand: longitude and latitude, as RFC 7946 asks.

Each feature also has its outline in the scene's own coordinate system, as STAC's projection
extension names it: "proj:code" and "proj:geometry". Source:
https://github.com/stac-extensions/projection
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mapping.naming import scene_word, window_of
from mapping.places import Places, Ring, box
from mapping.regions import Region, answered, sure_scene
from model.files import replacing

Feature = tuple[Sequence[Ring], dict]  # rings in pixels, properties


def region_features(regions: Sequence[Region]) -> list[Feature]:
    """A feature for each region; the description is that of its surest tile."""
    features: list[Feature] = []
    for region in regions:
        surest = max(region.lines, key=lambda line: line["confidence"] or 0.0, default={})
        objects = {name: True for line in region.lines for name in line["objects"]}
        properties = {
            "scene": region.scene,
            "scene_zh": scene_word(region.scene, english=False),
            "confidence": region.confidence,
            "objects": list(objects),
            "description": text_of(surest),
            "tiles": len(region.lines),
        }
        features.append((region.rings, properties))
    return features


def tile_features(lines: Sequence[dict], min_confidence: float) -> list[Feature]:
    """The same of each tile that was asked about; they may overlap."""
    features: list[Feature] = []
    for line in answered(lines):
        scene = sure_scene(line, min_confidence)
        properties = {
            "scene": scene,
            "scene_zh": scene_word(scene, english=False),
            "confidence": line["confidence"],
            "objects": line["objects"],
            "description": text_of(line),
            "answers": line["answers"],
            "window": line["window"],
        }
        features.append((box(*window_of(line)), properties))
    return features


def text_of(line: dict) -> str | None:
    """The description of a tile, or what else was answered about it."""
    answers = line.get("answers", {})
    return answers.get("description") or " ".join(answers.values()) or None


def write_geojson(path: Path, features: Sequence[Feature], places: Places) -> None:
    """Write features, a line each. Raises OSError."""
    geometries = places.geometries([rings for rings, _ in features])
    name = json.dumps(path.stem)
    with replacing(path) as file:
        file.write(f'{{"type": "FeatureCollection", "name": {name},\n')
        if places.crs is None:
            # Without "crs": null programs take the numbers for degrees
            note = "pixels from the upper left corner, y downwards: no georeference"
            file.write(f'"crs": null, "note": {json.dumps(note)},\n')
        file.write('"features": [')
        for index, ((rings, properties), geometry) in enumerate(zip(features, geometries)):
            properties = properties | {"area": round(places.area(rings), 2), "unit": places.unit}
            if places.crs is not None:
                properties["proj:code"] = places.crs
                native = [list(map(list, ring)) for ring in places.native(rings)]
                properties["proj:geometry"] = {"type": "Polygon", "coordinates": native}
            feature = {"type": "Feature", "properties": properties, "geometry": geometry}
            file.write(",\n" if index else "\n")
            file.write(json.dumps(feature, ensure_ascii=False))
        file.write("\n]}\n")
