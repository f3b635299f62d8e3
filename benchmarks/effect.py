"""Does the whole pipeline teach what real pictures show? A network made from nothing learns one caption set, and is measured.

    NUM_GPUS=2 python benchmarks/effect.py --data data/UCM          # two processes, on a CPU as well

--data holds dataset.json, NAME-zh.json (what the translation stage writes) and images/. A small network, sized for a CPU, learns
to look at drawn scenes (data/synthetic/demo_scenes.py) and then to name the scenes of the pictures, where nearly every token depends on the picture. At
last it learns brief descriptions (see `brief`), objects and yes / no questions. A second run goes on where the first was stopped.
evaluate_RemoteGLM.py measures the val rows, with their whole descriptions as references, after the drawn scenes and at the end.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from networks import PROJECT, config

from data.lexicon import closure, find
from evaluation.hallucination import (
    first_scenes,
    objects_of,
    scene_right,
    truth,
)  # puts data/ on the path
from model.images.reading import read_image
from model.visualglm.tokenizer import VOCABULARY, train_vocabulary

PIECES, SIDE = 2048, 96  # of the vocabulary; of a picture, pixels
FRAME = (
    "<img>",
    "</img>",
    "问：",
    "答：",
)  # a piece each: character by character they would be half of a row


def run(script, *options):
    command = ["bash"] if script.endswith(".sh") else [sys.executable]
    subprocess.run([*command, PROJECT / script, *map(str, options)], check=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_rows(data, work):
    """{drawn,looking,telling,all}-{train,val}.json in `work`, from drawn pictures and from descriptions and English sentences.

    The pictures that are trained on are shrunk once, to one and a half times what the network sees, so that reading and turning them costs less.
    """
    drawn = work / "scenes"
    run("data/synthetic/demo_scenes.py", "--output", drawn, "--train", 400, "--seed", 7)
    run(
        "data/transform.py",
        "--dataset",
        "demo",
        "--input",
        drawn / "dataset.json",
        "--output",
        drawn / "demo-en.json",
    )
    run(
        "data/translation_en2zh.py",
        "--dataset",
        "demo",
        "--input",
        drawn / "demo-en.json",
        "--output",
        drawn / "demo-zh.json",
        "--memory",
        drawn / "memory.jsonl",
    )
    if not (work / "images").exists():
        part = work / "images.part"
        part.mkdir(exist_ok=True)
        for image in (data / "images").iterdir():
            read_image(image).resize((SIDE * 3 // 2, SIDE * 3 // 2)).save(
                part / f"{image.stem}.bmp"
            )
        part.rename(work / "images")

    whole, passed, facts = data / f"{data.name}-zh.json", work / "passed.json", ("scene", "objects")
    run(
        "data/translation_en2zh.py",
        "--check",
        whole,
        "--input",
        data / "dataset.json",
        "--output",
        passed,
        "--trim",
        1,
    )
    for name, folder, source, tasks in (
        ("all", data, whole, ()),
        ("described", data, passed, ()),
        ("scene", data, whole, facts[:1]),
        ("facts", data, whole, facts),
        ("asked", data, whole, ("existence=0.5",)),
        ("drawn", drawn, drawn / "demo-zh.json", facts),
    ):
        run(
            "data/generate_prompt.py",
            "--input",
            source,
            "--output",
            work / f"{name}.json",
            "--captions",
            folder / "dataset.json",
            "--image-root",
            folder / "images",
            *(["--tasks", *tasks] if tasks else []),
        )
    images = read(data / "dataset.json")["images"]
    for split in ("train", "val"):
        write(
            work / f"brief-{split}.json",
            brief(
                read(work / f"described-{split}.json"), read(work / f"scene-{split}.json"), images
            ),
        )
    for name, parts in (
        ("looking", ("scene",)),
        ("telling", ("brief", "brief", "brief", "facts", "asked")),
    ):
        for split in ("train", "val"):
            rows = sum((read(work / f"{part}-{split}.json") for part in parts), [])
            write(
                work / f"{name}-{split}.json",
                [
                    row | {"img": str(work / "images" / f"{Path(row['img']).stem}.bmp")}
                    for row in rows
                ],
            )


def brief(rows, scenes, images):
    """The rows whose answer holds at most one object that does not follow from the scene, with the scene before it (农田。这是一片...).

    The scene comes first because every later word can lean on it, and a small network is taught to say little: what it adds is what it
    makes up most. rows and scenes: of the stage; images: of the caption file.
    """
    scenes = {row["img"]: row["label"] for row in scenes}
    known = {
        image["filename"]: truth([sentence["raw"] for sentence in image["sentences"]])
        for image in images
    }
    kept = []
    for row in rows:
        scene, text, there = scenes.get(row["img"]), row["label"], known[Path(row["img"]).name]
        if scene and (scene_right(text, there) or not first_scenes(text)):
            follows = closure(find(scene, "zh"))
            if sum(name not in follows for name, *_ in objects_of(text, there)) <= 1:
                kept.append(row | {"label": scene + text})
    return kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=PROJECT / "data" / "UCM",
        help="folder of the caption set (data/UCM)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=PROJECT / "checkpoints" / "effect",
        help="folder of all that is written",
    )
    parser.add_argument(
        "--iters",
        type=int,
        nargs=3,
        default=(600, 8000, 3500),
        help="steps of 32 rows per process (%(default)s)",
    )
    args = parser.parse_args()
    work, data = args.work.absolute(), args.data.absolute()
    work.mkdir(parents=True, exist_ok=True)
    make_rows(data, work)
    texts = [
        row[key]
        for name in ("drawn", "telling")
        for row in read(work / f"{name}-train.json")
        for key in ("prompt", "label")
    ]
    train_vocabulary(texts, work / VOCABULARY, PIECES - 8, FRAME, prefix=False)
    write(
        work / "model_config.json",
        config(
            layers=3,
            width=128,
            heads=4,
            inner=512,
            vocabulary=PIECES,
            vit=(4, 128, 4, 512),
            qformer=(1, 128, 4),
            image_size=SIDE,
            patch_size=8,
            slots=8,
        ),
    )

    def train(name, iters, *more):
        run(
            "finetune_RemoteGLM.sh",
            "--mode",
            "pretrain",
            "--train-data",
            work / f"{name}-train.json",
            "--save",
            work,
            "--experiment-name",
            name,
            "--resume",
            "--bf16",
            "--batch-size",
            32,
            "--clip-grad",
            1,
            "--weight-decay",
            0.5,
            "--label_smoothing",
            0.1,
            "--train-iters",
            iters,
            "--eval-interval",
            1000,
            "--eval-batch-size",
            32,
            "--keep",
            1,
            *more,
        )

    train(
        "drawn",
        args.iters[0],
        "--model_config",
        work / "model_config.json",
        "--tokenizer",
        work / VOCABULARY,
        "--lr",
        8e-4,
        "--lr-decay-style",
        "constant",
        "--patch_dropout",
        0.7,
    )
    train(
        "looking",
        args.iters[1],
        "--from_pretrained",
        work / "drawn",
        "--lr",
        8e-4,
        "--augment",
        0.4,
        "--patch_dropout",
        0.7,
    )
    # crops show things larger than whole pictures do: at last they are nearly whole
    train(
        "telling",
        args.iters[2],
        "--from_pretrained",
        work / "looking",
        "--lr",
        5e-4,
        "--augment",
        0.8,
        "--patch_dropout",
        0.5,
    )
    run(
        "evaluate_RemoteGLM.py",
        "--from_pretrained",
        work / "telling",
        "--base",
        work / "drawn",
        "--data",
        work / "all-val.json",
        "--references",
        data / "dataset.json",
    )


if __name__ == "__main__":
    main()
