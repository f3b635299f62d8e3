"""The colour of a scene, the same on every map."""

from PIL import ImageColor

UNSURE = "#969696"
# Water blue, woods green, houses red; any two as unlike as so many colours can be (CIELAB)
COLORS = {
    "farmland": "#b9db1e",
    "airport": "#004d78",
    "baseball diamond": "#ff7a5d",
    "basketball court": "#af7902",
    "beach": "#e3ffc0",
    "bridge": "#76494a",
    "chaparral": "#4e9d00",
    "city": "#7f0039",
    "church": "#cb7fdc",
    "commercial area": "#de2c7d",
    "desert": "#819451",
    "forest": "#005800",
    "freeway": "#00000a",
    "golf course": "#a9ff89",
    "football field": "#00ff6b",
    "harbour": "#001180",
    "industrial area": "#9102d2",
    "intersection": "#ff8100",
    "meadow": "#8aff00",
    "mobile home park": "#f98ba5",
    "mountain": "#252f03",
    "overpass": "#693b00",
    "park": "#00ab66",
    "parking lot": "#6996f0",
    "playground": "#fbd573",
    "pond": "#05c6ff",
    "railway station": "#230036",
    "residential area": "#ff0053",
    "resort": "#ff4fd7",
    "river": "#1c68f4",
    "runway": "#00796a",
    "school": "#ffd400",
    "square": "#ffccff",
    "stadium": "#840078",
    "storage tanks": "#8bd7ce",
    "suburb": "#e1a483",
    "tennis court": "#00ffd8",
    "village": "#890000",
}


def hex_color(scene: str | None) -> str:
    """None: of a tile without a sure scene."""
    return UNSURE if scene is None else COLORS[scene]


def color_of(scene: str | None) -> tuple[int, int, int]:
    """The same in 8-bit RGB."""
    red, green, blue = ImageColor.getrgb(hex_color(scene))[:3]
    return red, green, blue
