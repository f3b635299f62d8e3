"""What a user asks of a map. Standard library only: a command line checks it at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What can be asked about a tile; of the first the checkpoint knows its own question
TASKS = ("description", "scene", "objects")
STRETCHES = ("scene", "tile")
LEAST_TILE = 16
MOST_OVERLAP = 0.9


@dataclass
class Options:
    """scene, before: files, the second one an earlier image of the same place; prompt: for the
    description, None: as the checkpoint was trained; the others as cli_demo.py --help says.
    """

    scene: str
    output: Path
    before: str | None = None
    tile: int = 256
    overlap: float = 0.5
    tasks: tuple[str, ...] = TASKS[:1]
    prompt: str | None = None
    bands: list[int] | None = None
    stretch: str = STRETCHES[0]
    min_confidence: float = 0.5
    batch_size: int = 4


def problem_of(name: str, value: Any) -> str | None:
    """What is wrong with the value of an option, or None."""
    if name == "tile" and value < LEAST_TILE:
        return f"must be at least {LEAST_TILE} pixels"
    if name == "overlap" and not 0 <= value <= MOST_OVERLAP:
        return f"must be at least 0 and at most {MOST_OVERLAP}"
    if name == "min_confidence" and not 0 <= value <= 1:
        return "must be at least 0 and at most 1"
    return None
