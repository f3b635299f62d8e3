"""Does the whole pipeline teach what real images show?

    NUM_GPUS=2 python benchmarks/effect.py --data data/UCM      # two processes, on a CPU as well

A network trained from scratch (random initialisation) learns one caption set and is evaluated.
--data holds dataset.json, NAME-zh.json (what the translation stage writes) and images/.

The network is small, sized for a CPU, and learns in three stages:
1. drawn: scenes and objects of drawn images (data/synthetic/demo_scenes.py);
2. looking: the scenes of the set's images, where nearly every token depends on the image;
3. telling: brief descriptions (see `brief`), objects and yes / no questions.

A second run continues where the first was stopped. evaluate_RemoteGLM.py evaluates the val rows,
with their whole descriptions as references, after the first stage, at the end, and at the step of
the last stage whose validation loss was lowest.

A recipe is tried on folds of the training images, so that nothing is chosen by the val images:

    NUM_GPUS=2 python benchmarks/effect.py --data data/UCM --fold 0
"""

import json
import subprocess
import sys
from pathlib import Path

from networks import PROJECT, config, need_caption_set

from command_line import Parser
from data.lexicon import closure, find
from evaluation.hallucination import first_scenes, objects_of, scene_right, truth
from model.images.reading import read_image
from model.visualglm.tokenizer import VOCABULARY, train_vocabulary

PIECES = 2048  # of the vocabulary
SIDE = 96  # pixels of an image as the network sees it
# Pieces of their own: character by character they would be half of a row
FRAME = ("<img>", "</img>", "问：", "答：")
SPLITS = ("train", "val")
# A fold is every fifth block of so many neighbouring training images: neighbours look alike
FOLDS, BLOCK = 5, 16


def run(script, *options):
    command = ["bash"] if script.endswith(".sh") else [sys.executable]
    subprocess.run([*command, PROJECT / script, *map(str, options)], check=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def draw_scenes(drawn):
    """Drawn images and their Chinese descriptions in the folder `drawn`."""
    run("data/synthetic/demo_scenes.py", "--output", drawn, "--train", 400, "--seed", 7, "--plain")
    run(
        "data/transform.py",
        *("--dataset", "demo"),
        *("--input", drawn / "dataset.json"),
        *("--output", drawn / "demo-en.json"),
    )
    run(
        "data/translation_en2zh.py",
        *("--dataset", "demo"),
        *("--input", drawn / "demo-en.json"),
        *("--output", drawn / "demo-zh.json"),
        *("--memory", drawn / "memory.jsonl"),
    )


def shrink_images(source, target):
    """Copies at one and a half times what the network sees: cheaper to read and to augment."""
    if target.exists():
        return
    part = target.with_suffix(".part")
    part.mkdir(exist_ok=True)
    side = SIDE * 3 // 2
    for image in source.iterdir():
        read_image(image).resize((side, side)).save(part / f"{image.stem}.bmp")
    part.rename(target)


def split_again(data, work, fold):
    """dataset.json and zh.json in `work`: of the training images alone, one fold of them as val.

    Returns both paths.
    """
    training = [i for i in read(data / "dataset.json")["images"] if i["split"] == "train"]
    splits = {}
    for index, image in enumerate(training):
        image["split"] = "val" if index // BLOCK % FOLDS == fold else "train"
        splits[image["filename"]] = image["split"]
    write(work / "dataset.json", {"images": training, "dataset": data.name})

    records = []
    for record in read(data / f"{data.name}-zh.json"):
        if record["imged_id"] in splits:
            records.append(record | {"split": splits[record["imged_id"]]})
    write(work / "zh.json", records)
    return work / "dataset.json", work / "zh.json"


def make_rows(data, captions, whole, work):
    """{drawn,looking,telling,all}-{train,val}.json in `work`, from drawn and from real images.

    captions, whole: the caption file and its translation.
    """
    drawn = work / "scenes"
    draw_scenes(drawn)
    shrink_images(data / "images", work / "images")

    passed = work / "passed.json"
    run(
        "data/translation_en2zh.py",
        *("--check", whole),
        *("--input", captions),
        *("--output", passed),
        *("--trim", 1),
    )
    real = captions, data / "images"
    make_prompts("all", whole, *real, work)
    make_prompts("described", passed, *real, work)
    make_prompts("scene", whole, *real, work, "scene")
    make_prompts("facts", whole, *real, work, "scene", "objects")
    make_prompts("asked", whole, *real, work, "existence=0.5")
    synthetic = drawn / "dataset.json", drawn / "images"
    make_prompts("drawn", drawn / "demo-zh.json", *synthetic, work, "scene", "objects")

    images = read(captions)["images"]
    for split in SPLITS:
        described, scenes = (read(work / f"{name}-{split}.json") for name in ("described", "scene"))
        write(work / f"brief-{split}.json", brief(described, scenes, images))
        mix_rows("looking", ("scene",), split, work)
        mix_rows("telling", ("brief", "brief", "brief", "facts", "asked"), split, work)


def make_prompts(name, source, captions, images, work, *tasks):
    """<name>.json and its splits in `work`: rows of the given tasks, by default descriptions."""
    run(
        "data/generate_prompt.py",
        *("--input", source),
        *("--output", work / f"{name}.json"),
        *("--captions", captions),
        *("--image-root", images),
        *(["--tasks", *tasks] if tasks else []),
    )


def mix_rows(name, parts, split, work):
    """<name>-<split>.json: the rows of several parts, about the shrunk images."""
    rows = []
    for part in parts:
        for row in read(work / f"{part}-{split}.json"):
            shrunk = work / "images" / f"{Path(row['img']).stem}.bmp"
            rows.append(row | {"img": str(shrunk)})
    write(work / f"{name}-{split}.json", rows)


def brief(rows, scenes, images):
    """Rows whose answer holds at most one object that does not follow from the scene.

    The scene is put before the answer (农田。这是一片...): every later word can lean on it. A small
    network is taught to say little, as what it adds is what it hallucinates most.
    rows and scenes: of the stage; images: of the caption file.
    """
    labels = {row["img"]: row["label"] for row in scenes}
    truths = {}
    for image in images:
        truths[image["filename"]] = truth([sentence["raw"] for sentence in image["sentences"]])

    kept = []
    for row in rows:
        scene, text = labels.get(row["img"]), row["label"]
        image_truth = truths[Path(row["img"]).name]
        names_another = first_scenes(text) and not scene_right(text, image_truth)
        if not scene or names_another:
            continue
        implied = closure(find(scene, "zh"))
        added = [found for found in objects_of(text, image_truth) if found.name not in implied]
        if len(added) <= 1:
            kept.append(row | {"label": scene + text})
    return kept


def make_network(work):
    """The vocabulary and model_config.json of the small network."""
    texts = []
    for name in ("drawn", "telling"):
        for row in read(work / f"{name}-train.json"):
            texts += [row["prompt"], row["label"]]
    train_vocabulary(texts, work / VOCABULARY, PIECES - 8, FRAME, prefix=False)

    small = config(
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
    )
    write(work / "model_config.json", small)


def train(work, name, iters, dtype, *more):
    run(
        "finetune_RemoteGLM.sh",
        *("--method", "full"),
        *("--train-data", work / f"{name}-train.json"),
        *("--save", work),
        *("--experiment-name", name),
        "--resume",
        *("--dtype", dtype),
        *("--batch-size", 32),
        *("--clip-grad", 1),
        *("--weight-decay", 0.5),
        *("--label_smoothing", 0.1),
        *("--train-iters", iters),
        *("--eval-interval", 1000),
        *("--eval-batch-size", 32),
        *("--keep", 1),
        *more,
    )


def train_stages(work, iters, dtype):
    train(
        work,
        "drawn",
        iters[0],
        dtype,
        *("--model_config", work / "model_config.json"),
        *("--tokenizer", work / VOCABULARY),
        *("--lr", 8e-4),
        *("--lr-decay-style", "constant"),
        *("--patch_dropout", 0.7),
    )
    train(
        work,
        "looking",
        iters[1],
        dtype,
        *("--from_pretrained", work / "drawn"),
        *("--lr", 8e-4),
        *("--augment", 0.4),
        *("--patch_dropout", 0.7),
    )
    # Crops show things larger than whole images do: in the last stage they are nearly whole
    train(
        work,
        "telling",
        iters[2],
        dtype,
        *("--from_pretrained", work / "looking"),
        *("--lr", 5e-4),
        *("--augment", 0.8),
        *("--patch_dropout", 0.5),
    )


def evaluate(work, captions):
    """The network of the last stage at its end, and where its validation loss was lowest."""
    telling = work / "telling"
    best = (telling / "best").read_text().strip()
    steps = dict.fromkeys([(telling / "latest").read_text().strip(), best])
    for step in steps:
        run(
            "evaluate_RemoteGLM.py",
            *("--from_pretrained", telling / step),
            *("--base", work / "drawn"),
            *("--data", work / "all-val.json"),
            *("--references", captions),
        )


def main():
    parser = Parser(__doc__)
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
        help="folder of all that is written (checkpoints/effect)",
    )
    parser.add_argument(
        "--iters",
        type=int,
        nargs=3,
        default=(600, 8000, 3500),
        help="steps of each stage, of 32 rows per process (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="float32 is faster on a CPU without bfloat16 instructions (%(default)s)",
    )
    parser.add_argument(
        "--fold",
        type=int,
        choices=range(FOLDS),
        help="evaluate this fifth of the training images, train on the others (default: all train "
        "images, evaluated on val)",
    )
    args = parser.parse_args()
    work, data = args.work.absolute(), args.data.absolute()
    need_caption_set(parser, data, "dataset.json", f"{data.name}-zh.json", "images")

    captions, whole = data / "dataset.json", data / f"{data.name}-zh.json"
    work.mkdir(parents=True, exist_ok=True)
    if args.fold is not None:
        work /= f"fold-{args.fold}"
        work.mkdir(exist_ok=True)
        captions, whole = split_again(data, work, args.fold)
    make_rows(data, captions, whole, work)
    make_network(work)
    train_stages(work, args.iters, args.dtype)
    evaluate(work, captions)


if __name__ == "__main__":
    main()
