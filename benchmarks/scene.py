"""A map of a scene whose fields are known: how well, how fast, and in how much memory.

    python benchmarks/scene.py --from_pretrained checkpoints/demo
    python benchmarks/scene.py --sparse 40000     # memory alone, without a network

The scene is a GeoTIFF (UTM, half a metre a pixel) with a border of nodata; its fields are drawn as
the demo's images are (data/synthetic/), none of them in its set. The same pictures are also asked
about one by one, as cli_demo.py --input does: the map should name as many rightly.
"""

import random
import tempfile
import time
from functools import partial
from pathlib import Path

from networks import PROJECT, TINY_BASE, PeakMemory, anonymous, table

from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import numpy as np

    from model import Sampling, load_assistant

from PIL import Image
from tqdm import tqdm

from data.instructions import kin
from data.synthetic.captions import SCENES, describe_en, describe_zh
from data.synthetic.scenes import render
from evaluation.hallucination import scene_right, truth
from mapping.answering import TileFile
from mapping.naming import scene_names
from mapping.options import Options
from mapping.regions import vote
from mapping.run import TILES, make_map, prepared

METRES = 0.5  # of a pixel
CRS = "EPSG:32650"


def draw_fields(count, seed):
    """[(PIL RGB, its Truth)] of count x count fields."""
    fields = []
    for index in range(count * count):
        rng = random.Random(f"field {seed} {index}")
        image, facts = render(rng.choice(list(SCENES)), rng, plain=True)
        fields.append((image, truth([describe_zh(facts, plain=True), *describe_en(facts)])))
    return fields


def write_scene(path, fields, tile):
    """Write the fields, each a tile large, within a border of nodata that is one tile wide."""
    import rasterio

    count = round(len(fields) ** 0.5)
    size = (count + 2) * tile
    transform = rasterio.Affine(METRES, 0, 4e5, 0, -METRES, 3.5e6)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size,
        height=size,
        count=3,
        dtype="uint8",
        crs=CRS,
        transform=transform,
        nodata=0,
        tiled=True,
        compress="deflate",
    ) as file:
        for index, (image, _) in enumerate(fields):
            top, left = (tile * (1 + place) for place in divmod(index, count))
            pixels = np.asarray(image.resize((tile, tile), Image.Resampling.BICUBIC))
            window = (top, top + tile), (left, left + tile)
            file.write(np.maximum(pixels, 1).transpose(2, 0, 1), window=window)


def write_sparse(path, side):
    """Write a scene of this side, of which only some blocks are there; the others read as 0."""
    import rasterio

    place = rasterio.Affine(METRES, 0, 4e5, 0, -METRES, 3.5e6)
    options = {"tiled": True, "SPARSE_OK": True, "crs": CRS, "transform": place}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", **options
    ) as file:
        block = np.full((3, 256, 256), 120, np.uint8)
        for start in range(0, side - 256, 256 * 16):
            file.write(block, window=((start, start + 256), (start, start + 256)))


class Silent:
    """Answers at once, and is no network: what is left is reading and writing."""

    fingerprint = "silent"
    english = False

    def first_question(self, english):
        return "？"

    def answer_batch(self, questions, *rest, **options):
        return ["一条河流。"] * len(questions)

    def score(self, questions, *rest):
        return None


def run(assistant, path, folder, **options):
    """Map a scene; returns (its Grid, the lines of its tiles, seconds)."""
    job_options = Options(scene=str(path), output=folder, **options)
    with prepared(job_options) as job:
        start = time.perf_counter()
        make_map(
            job,
            assistant,
            checkpoint="benchmark",
            sampling=Sampling(temperature=0),
            english=False,
            progress=partial(tqdm, mininterval=5),
        )
        seconds = time.perf_counter() - start
        with TileFile(folder / TILES) as file:
            known = file.by_window()
        lines = [known[window] for window in job.grid.windows]
        return job.grid, lines, seconds


def share(right):
    """A share in % with half of its 95 % interval (normal approximation)."""
    mean = np.mean(right)
    half = 1.96 * (mean * (1 - mean) / len(right)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * half:.1f}"


def alone(assistant, fields, batch_size):
    """Of each field whether its picture, asked about by itself, is named rightly."""
    right = []
    for start in range(0, len(fields), batch_size):
        batch = fields[start : start + batch_size]
        answers = assistant.answer_batch(
            [assistant.first_question(False)] * len(batch),
            [image for image, _ in batch],
            Sampling(temperature=0),
            False,
        )
        for answer, (_, known) in zip(answers, batch):
            right.append(scene_right(answer, known))
    return right


def right_tiles(lines, fields, tile):
    """The same of the tiles that lie on one field each."""
    count = round(len(fields) ** 0.5)
    right = []
    for line in lines:
        left, top, _, _ = line["window"]
        if "answers" in line and left % tile == 0 and top % tile == 0:
            known = fields[(top // tile - 1) * count + left // tile - 1][1]
            right.append(scene_right(line["answers"]["description"], known))
    return right


def within_fields(edges, tile):
    """(index of a cell, begin, end) of its parts that each lie on one field."""
    for index, (begin, end) in enumerate(zip(edges, edges[1:])):
        borders = range((begin // tile + 1) * tile, end, tile)
        for part in zip([begin, *borders], [*borders, end]):
            yield index, *part


def overlap_by_area(grid, lines, fields, tile, min_confidence):
    """Intersection over union, of all scenes together, of what the map says and what is there."""
    names = [*scene_names(), None]
    count = round(len(fields) ** 0.5)
    winners = vote(grid, lines, min_confidence)
    common = named = 0
    for row, top, bottom in within_fields(grid.ys, tile):
        for column, left, right in within_fields(grid.xs, tile):
            scene = names[winners[row, column]]
            if scene is None:
                continue
            area = (bottom - top) * (right - left)
            named += area
            known = fields[(top // tile - 1) * count + left // tile - 1][1]
            common += area * (known.scene in kin("scene", scene))
    return common / (named + len(fields) * tile**2 - common)


def measure(args, folder):
    """Rows of the table, one for each overlap."""
    assistant = load_assistant(args.from_pretrained, base=args.base_path, device=args.device)
    fields = draw_fields(args.size // args.tile - 2, args.seed)
    path = folder / "scene.tif"
    write_scene(path, fields, args.tile)
    rows = [{"what": "single pictures", "named rightly, %": share(alone(assistant, fields, 16))}]
    for overlap in args.overlap:
        with PeakMemory() as memory:
            start = anonymous()
            grid, lines, seconds = run(
                assistant, path, folder / f"map-{overlap}", overlap=overlap, **tiles_of(args)
            )
        rows.append(
            {
                "what": f"map, --overlap {overlap:g}: {len(lines)} tiles",
                "named rightly, %": share(right_tiles(lines, fields, args.tile)),
                "IoU by area": f"{overlap_by_area(grid, lines, fields, args.tile, 0):.2f}",
                "tiles/s": f"{len(lines) / seconds:.1f}",
                "MB beside the network": f"{(memory.peak - start) / 1e6:.0f}",
            }
        )
    heads = list(rows[-1])
    return [{head: row.get(head, "") for head in heads} for row in rows]


def tiles_of(args):
    return {"tile": args.tile, "min_confidence": 0.0, "batch_size": 16}


def measure_sparse(args, folder):
    """The row of a large scene that nobody answers."""
    path = folder / "sparse.tif"
    write_sparse(path, args.sparse)
    with PeakMemory() as memory:
        start = anonymous()
        _, lines, seconds = run(Silent(), path, folder / "sparse", overlap=0.0, **tiles_of(args))
    return {
        "what": f"{args.sparse} x {args.sparse} pixels, no network: {len(lines)} tiles",
        "tiles/s": f"{len(lines) / seconds:.0f}",
        "MB": f"{(memory.peak - start) / 1e6:.0f}",
    }


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--from_pretrained",
        default=str(PROJECT / "checkpoints" / "demo"),
        help="checkpoint (checkpoints/demo)",
    )
    add("--base_path", default=str(TINY_BASE), help="the adapter's base (model/tiny/base)")
    add("--device", help="cuda, mps or cpu; default: the first that works")
    add("--size", type=int, default=4096, help="side of the scene in pixels (%(default)s)")
    add("--tile", type=int, default=256, help="side of a field and of a tile (%(default)s)")
    add(
        "--overlap",
        type=float,
        nargs="+",
        default=[0.0, 0.25, 0.5],
        help="of the tiles (0 0.25 0.5)",
    )
    add("--sparse", type=int, help="instead map a sparse scene of this side, without a network")
    add("--folder", type=Path, help="keep the scene and its maps here (default: nowhere)")
    add("--seed", type=int, default=1, help="another seed draws other fields (%(default)s)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if args.sparse:
            table([measure_sparse(args, folder)])
        else:
            table(measure(args, folder))


if __name__ == "__main__":
    main()
