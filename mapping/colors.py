"""The colour of a scene, the same on every map."""

import colorsys

from mapping.regions import scene_names

UNSURE = (150, 150, 150)
GOLDEN = 0.618034  # of the hue circle: neighbours in the lexicon look unlike each other


def color_of(scene: str | None) -> tuple[int, int, int]:
    """8-bit RGB; None: of a tile without a sure scene."""
    if scene is None:
        return UNSURE
    index = scene_names().index(scene)
    hue = index * GOLDEN % 1
    saturation, value = (0.85, 0.6)[index % 2], (0.9, 0.75, 1.0)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def hex_color(scene: str | None) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color_of(scene))
