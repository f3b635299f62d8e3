"""Draw a small aerial caption set, so that every stage can be tried before any real set is at hand.

    python data/synthetic/demo_scenes.py [--output data/demo] [--train 48] [--val 8] [--test 8]
                                         [--seed 1]

Source: drawn by this file, nothing is downloaded; licence: that of this repository. 12 scenes,
128x128 RGB TIFF seen from straight above; per scene 48 train / 8 val / 8 test images (768 in all),
5 English captions each. It writes

    images/<scene>_<split>_<index>.tif
    dataset.json    {"images": [{"filename", "split", "sentences": [{"raw"} x 5]}],
                    "dataset": "demo"} (Karpathy layout)
    memory.jsonl    {"source": the five captions as the transform stage joins them,
                    "target": one Chinese description}

Every image has a random generator of its own, seeded by (seed, scene, split, index): a smaller set
is a subset of a larger one, byte for byte.
"""

import json
import random
import sys
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from command_line import Parser
from data.caption_sets import SPLITS
from data.stage import DATA, run_stage, worker_pool
from data.synthetic.captions import SCENES, describe_en, describe_zh, facts
from data.synthetic.scenes import render
from model.files import replacing, write_text

# starting processes takes longer than drawing fewer
PARALLEL_FROM = 100


def rng_of(seed, scene, split, index):
    return random.Random(f"{seed}/{scene}/{split}/{index}")


def draw(job):
    """Draw one image file; job: (path, plain, seed, scene, split, index)."""
    path, plain, *key = job
    _, scene, _, _ = key
    image, _ = render(scene, rng_of(*key), plain)
    # not synced: a lost image is drawn again
    with replacing(path, "wb", sync=False) as file:
        image.save(file, "TIFF", compression="tiff_adobe_deflate")


def draw_all(jobs):
    if len(jobs) < PARALLEL_FROM:
        for job in jobs:
            draw(job)
        return
    with worker_pool() as pool:
        results = pool.imap_unordered(draw, jobs, chunksize=8)
        for _ in tqdm(results, total=len(jobs), desc="images", disable=None):
            pass


def plan(args):
    """(jobs for `draw`, {file name: text} of the caption files, number of memory records)."""
    jobs, images, memory = [], [], {}
    for split in SPLITS:
        for scene in SCENES:
            for index in range(getattr(args, split)):
                name = f"{scene}_{split}_{index:03d}.tif"
                f = facts(scene, rng_of(args.seed, scene, split, index))
                raws = describe_en(f)
                sentences = [{"raw": raw} for raw in raws]
                images.append({"filename": name, "split": split, "sentences": sentences})
                memory["".join(raw + "  " for raw in raws)] = describe_zh(f, args.plain)
                path = args.output / "images" / name
                jobs.append((path, args.plain, args.seed, scene, split, index))

    lines = []
    for source, target in memory.items():
        lines.append(json.dumps({"source": source, "target": target}, ensure_ascii=False) + "\n")
    dataset = {"images": images, "dataset": "demo"}
    texts = {
        "memory.jsonl": "".join(lines),
        "dataset.json": json.dumps(dataset, ensure_ascii=False, indent=4) + "\n",
    }
    return jobs, texts, len(memory)


def draw_set(args):
    jobs, texts, records = plan(args)
    total, dataset = len(jobs), args.output / "dataset.json"
    current = set()
    for name, text in texts.items():
        path = args.output / name
        if path.is_file() and path.read_bytes() == text.encode("utf-8"):
            current.add(name)

    if len(current) == len(texts):
        jobs = [job for job in jobs if not job[0].is_file()]
    if not jobs:
        print(f"{args.output}: all {total} images and their captions are there, nothing to do")
        return

    (args.output / "images").mkdir(parents=True, exist_ok=True)
    # until the new images are drawn, nothing may vouch for the old ones
    if len(current) < len(texts):
        dataset.unlink(missing_ok=True)
    draw_all(jobs)
    for name, text in texts.items():
        write_text(args.output / name, text)

    counts = ", ".join(f"{split} {getattr(args, split) * len(SCENES)}" for split in SPLITS)
    print(
        f"{args.output}: {len(jobs)} images drawn, {total} in all ({counts}), "
        f"{records} memory records"
    )


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, default=DATA / "demo", help="folder to write (default: data/demo)")
    add(
        "--train",
        type=int,
        default=48,
        help="training images per scene, 12 scenes (default: %(default)s)",
    )
    add("--val", type=int, default=8, help="validation images per scene (default: %(default)s)")
    add("--test", type=int, default=8, help="test images per scene (default: %(default)s)")
    add("--seed", type=int, default=1, help="another seed draws another set (default: %(default)s)")
    add(
        "--plain",
        action="store_true",
        help="even light, and descriptions that leave some of the facts out",
    )
    args = parser.parse_args(argv)
    numbers = args.train, args.val, args.test
    if min(numbers) < 0 or sum(numbers) == 0:
        parser.error(
            f"--train {args.train} --val {args.val} --test {args.test}: expected numbers of "
            "images, 0 or more and not all 0"
        )
    return run_stage(__file__, draw_set, args)


if __name__ == "__main__":
    sys.exit(main())
