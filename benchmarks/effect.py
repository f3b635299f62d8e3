"""Does the whole pipeline teach what real pictures show? The bundled tiny base learns one caption set, and is measured.

    NUM_GPUS=2 python benchmarks/effect.py --data data/UCM          # two processes, on a CPU as well

--data holds dataset.json, NAME-zh.json (what the translation stage writes) and images/. All parameters learn from scenes and objects
alone, of which nearly every token depends on the picture, then also from yes / no questions and the descriptions that pass the
quality gate; at last, while the vision part stays as it is, mostly from descriptions. A second run goes on where the first was
stopped. evaluate_RemoteGLM.py measures the val rows, whose descriptions are all used, before and after.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

from networks import PROJECT, TINY


def run(script, *options):
    command = ["bash"] if script.endswith(".sh") else [sys.executable]
    subprocess.run([*command, PROJECT / script, *map(str, options)], check=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_rows(data, work):
    """looking-train.json, all-train.json and all-val.json in `work`, from descriptions and English sentences."""
    whole, passed = data / f"{data.name}-zh.json", work / "passed.json"
    common = ("--captions", data / "dataset.json", "--image-root", data / "images")
    run("data/translation_en2zh.py", "--check", whole, "--input", data / "dataset.json", "--output", passed)
    for name, source, *tasks in (("all", whole), ("described", passed), ("looking", whole, "scene", "objects"),
                                 ("asked", whole, "existence=0.5")):
        run("data/generate_prompt.py", "--input", source, "--output", work / f"{name}.json", *common, *(["--tasks", *tasks] if tasks else []))
    for name, parts in (("mixed", ("described", "looking", "asked")), ("telling", ("described",) * 3 + ("asked",))):
        write(work / f"{name}-train.json", sum((read(work / f"{part}-train.json") for part in parts), []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PROJECT / "data" / "UCM", help="folder of the caption set (data/UCM)")
    parser.add_argument("--work", type=Path, default=PROJECT / "checkpoints" / "effect", help="folder of all that is written")
    parser.add_argument("--iters", type=int, nargs=3, default=(2500, 2000, 1500), help="steps of 16 rows per process (%(default)s)")
    args = parser.parse_args()
    work, data = args.work.absolute(), args.data.absolute()
    work.mkdir(parents=True, exist_ok=True)
    make_rows(data, work)

    def train(name, base, rows, iters, *more):
        run("finetune_RemoteGLM.sh", "--mode", "pretrain", "--from_pretrained", base, "--train-data", work / f"{rows}-train.json", "--valid-data",
            work / "all-val.json", "--save", work, "--experiment-name", name, "--resume", "--batch-size", 16, "--lr", 3e-4, "--clip-grad", 1,
            "--train-iters", iters, "--eval-interval", 500, "--eval-batch-size", 32, "--keep", 1, *more)

    train("looking", TINY / "base", "looking", args.iters[0], "--augment", 0.8, "--lr-decay-style", "constant")
    train("mixed", work / "looking", "mixed", args.iters[1], "--augment", 0.5)
    train("effect", work / "mixed", "telling", args.iters[2], "--freeze", "vision", "qformer")
    run("evaluate_RemoteGLM.py", "--from_pretrained", work / "effect", "--base", TINY / "base", "--data", work / "all-val.json",
        "--references", data / "dataset.json")


if __name__ == "__main__":
    main()
