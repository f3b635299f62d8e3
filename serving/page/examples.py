"""What a first visitor may try: images of our own, and questions."""

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "images" / "examples"


class Example(NamedTuple):
    """name: Chinese, English."""

    file: str
    name: tuple[str, str]

    @property
    def path(self) -> Path:
        return FOLDER / self.file


EXAMPLES = {
    "harbour": Example("harbour.tif", ("港口（4 波段）", "Harbour (4 bands)")),
    "parking": Example("parking.png", ("停车场", "Parking lot")),
    "tennis": Example("tennis.png", ("网球场", "Tennis")),
    "tanks": Example("tanks.png", ("储罐", "Tanks")),
    "intersection": Example("intersection.png", ("路口", "Crossing")),
    "river": Example("river.png", ("河流", "River")),
}
# Chinese, English
QUESTIONS = (
    ("请描述这张遥感图像。", "Describe this aerial image."),
    ("这是哪一种场景？只需说出名称。", "What scene is it? Name it."),
    ("图中有哪些地物？", "Which objects are in the image?"),
    ("图中有几条船？", "How many boats are there?"),
    ("图中有没有树木？", "Are there trees in the image?"),
)
