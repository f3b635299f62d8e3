"""One map: its folder, the answers in it, and what is made of them."""

import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mapping.answering import TileFile, answer_tiles
from mapping.changes import change_features, compare, summarize_changes
from mapping.geojson import region_features, tile_features, write_geojson
from mapping.grid import Grid, grid_of
from mapping.naming import questions_of
from mapping.options import Options
from mapping.page import html_page
from mapping.picture import draw_map
from mapping.places import Places
from mapping.regions import regions_of
from mapping.summary import in_words, summarize
from model import Assistant, Sampling
from model.errors import UserError
from model.files import read_json, replacing, write_text
from model.images.tiles import Scene, open_scene

SETTINGS = "settings.json"
TILES, TILES_BEFORE = "tiles.jsonl", "before.jsonl"
# What a map consists of, for its readers; changes.geojson where there are two dates
FILES = (
    *("map.html", "map.png", "map.geojson", "tiles.geojson", "changes.geojson"),
    *("summary.txt", "summary.json"),
)
# Bytes that a tile takes in all files, roughly, and that the pictures of the scene take
TILE_BYTES, PICTURE_BYTES = 20_000, 10_000_000
SAMPLE = 2**20  # bytes at either end of a file that distinguish it


@dataclass
class Prepared:
    """An open scene and its folder, before a checkpoint is loaded.

    before: the earlier scene on the pixels of this one, or None.
    """

    options: Options
    scene: Scene
    grid: Grid
    before: Scene | None


@contextmanager
def prepared(options: Options) -> Iterator[Prepared]:
    """A context that has checked all that can be wrong with the user's files. Raises UserError."""
    with ExitStack() as stack:

        def opened(path, **grid):
            return stack.enter_context(open_scene(path, options.bands, options.stretch, **grid))

        scene = opened(options.scene)
        grid = grid_of(scene, options.tile, options.overlap)
        before = None
        if options.before:
            before = opened(options.before, grid=scene)
            if not (before.valid & scene.valid).any():
                raise UserError(
                    f"--before {options.before}: it does not overlap with {options.scene}; "
                    "compare their coordinates with `gdalinfo`"
                )
        _check_folder(options, scene, len(grid.windows))
        yield Prepared(options, scene, grid, before)


def _check_folder(options, scene, tiles):
    output = options.output
    try:
        output.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(output).free
    except OSError as error:
        raise UserError(f"output {output}: cannot be a folder ({error.strerror})") from None
    known = _known_settings(output)
    if known is not None and known.get("scene") != identity(scene):
        there = known.get("scene")
        name = there.get("file") if isinstance(there, dict) else "of something else"
        raise UserError(
            f"output {output}: it holds the map of another scene, {name}; name another folder"
        )
    others = [name for name in (TILES, *FILES) if (output / name).exists()]
    if known is None and others:
        raise UserError(
            f"output {output}: {others[0]} is there, and no map was begun there ({SETTINGS} is "
            "missing); name another folder"
        )
    needed = tiles * TILE_BYTES + PICTURE_BYTES
    if known is None and free < needed:
        raise UserError(
            f"output {output}: {free / 1e6:.0f} MB are free, a map of {tiles} tiles takes up to "
            f"{needed / 1e6:.0f}; make room or name another folder"
        )


def _known_settings(output):
    path = output / SETTINGS
    return read_json(path, "settings of a map", dict) if path.is_file() else None


def identity(scene: Scene) -> dict[str, Any]:
    """What distinguishes a scene from others, wherever its file lies."""
    path = Path(scene.path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        check = zlib.crc32(file.read(SAMPLE))
        file.seek(max(0, size - SAMPLE))
        check = zlib.crc32(file.read(SAMPLE), check)
    pixels = [scene.width, scene.height]
    return {"file": path.name, "bytes": size, "crc32": f"{check:08x}", "pixels": pixels}


def make_map(
    job: Prepared,
    assistant: Assistant,
    *,
    checkpoint: str,
    sampling: Sampling,
    english: bool,
    progress: Callable[..., Any],
) -> dict[str, Any]:
    """Answer what is not answered yet, and write the map; returns what summary.json holds.

    checkpoint: its name; progress: tqdm, or what is called like it. Raises UserError.
    """
    options = job.options
    prompt = options.prompt or assistant.first_question(english)
    questions = questions_of(options.tasks, prompt, english)
    _keep_settings(
        options.output,
        {
            "scene": identity(job.scene),
            "before": identity(job.before) if job.before else None,
            "tile": options.tile,
            "overlap": options.overlap,
            "questions": questions,
            "bands": options.bands,
            "stretch": options.stretch,
            "english": english,
            "checkpoint": str(checkpoint),
            "fingerprint": assistant.fingerprint,
            "sampling": asdict(sampling),
        },
    )

    def answers(name, scene):
        return _answers(job, name, scene, assistant, questions, sampling, english, progress)

    lines = answers(TILES, job.scene)
    before = answers(TILES_BEFORE, job.before) if job.before else None
    return _write(job, lines, before, english)


def _keep_settings(output, settings):
    """Write what the answers depend on, or compare it with what is there. Raises UserError."""
    known = _known_settings(output) or settings
    if known.get("before") is None:  # an earlier date may be added
        known = known | {"before": settings["before"]}
    # A checkpoint may have moved: its fingerprint counts
    other = [key for key in settings if key != "checkpoint" and known.get(key) != settings[key]]
    if other:
        key = other[0]
        raise UserError(
            f"output {output}: it was begun with other settings ({', '.join(other)}: "
            f"{known.get(key)!r} there, {settings[key]!r} now); use those, or name another folder"
        )
    text = json.dumps(settings, ensure_ascii=False, indent=1)
    _writing(output, lambda: write_text(output / SETTINGS, text + "\n"))


def _writing(output, write):
    try:
        write()
    except OSError as error:
        raise UserError(
            f"output {output} cannot be written: {error.strerror}; make room, the same command "
            "continues"
        ) from None


def _answers(job, name, scene, assistant, questions, sampling, english, progress):
    windows = job.grid.windows
    with TileFile(job.options.output / name) as file:
        answered = sum(window in file.by_window() for window in windows)
        with progress(total=len(windows), initial=answered, unit="tile") as bar:
            return answer_tiles(
                assistant,
                scene,
                windows,
                file,
                questions,
                sampling=sampling,
                english=english,
                batch_size=job.options.batch_size,
                done=bar.update,
            )


def _write(job, lines, before, english):
    """All files of the map but its answers. before: the lines of the earlier date, or None."""
    options, output = job.options, job.options.output
    least = options.min_confidence
    places = Places(job.scene)
    regions = regions_of(job.grid, lines, least)
    compared = compare(lines, before or (), least)
    summary = {"scene": identity(job.scene), "min_confidence": least}
    summary |= summarize(job.grid, lines, regions, places, least)
    if before is not None:
        summary |= {"before": identity(job.before)}
        summary["changes"] = summarize_changes(compared, lines)
        errors = [line["error"] for line in before if "error" in line]
        summary["tiles"]["failed"] += len(errors)
        for error in errors[:1]:
            summary.setdefault("first_error", error)
    picture = draw_map(job.scene, regions, compared, summary, english)
    page = html_page(job, lines, regions, compared, summary, english)

    def write():
        write_geojson(output / "map.geojson", region_features(regions), places)
        write_geojson(output / "tiles.geojson", tile_features(lines, least), places)
        if before is not None:
            write_geojson(output / "changes.geojson", change_features(compared), places)
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        write_text(output / "summary.json", text + "\n")
        write_text(output / "summary.txt", "\n".join(in_words(summary, english)) + "\n")
        with replacing(output / "map.png", "wb") as file:
            picture.save(file, "PNG")
        write_text(output / "map.html", page)

    _writing(output, write)
    return summary
