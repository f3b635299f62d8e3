"""Does the whole pipeline teach a picture's content? A small network, made from nothing, learns one real caption set.

    python benchmarks/from_nothing.py --data data/UCM [--work checkpoints/from-nothing] [--train-iters N]

--data holds dataset.json, <set>-zh.json (the translation stage's output) and images/. Descriptions are trained where they
pass the quality gate; of every training picture its scene, its objects and half a pair of yes / no questions. A second run
goes on where the first was stopped. At the end evaluate_RemoteGLM.py measures the val rows.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

from networks import PROJECT, config

sys.path.insert(0, str(PROJECT / "data"))

from instructions import QUESTIONS  # noqa: E402
from model.tokenizer import train_vocabulary  # noqa: E402

NETWORK = dict(layers=3, width=192, heads=6, inner=768, vocabulary=2048, vit=(4, 192, 6, 768), qformer=(2, 192, 6), image_size=64, patch_size=8, slots=8)
CONTROL_TOKENS = 8  # ids above the pieces


def run(script, *options):
    subprocess.run([sys.executable, PROJECT / script, *map(str, options)], check=True)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_rows(data, work):
    """train.json and val.json in `work`, from descriptions and English sentences."""
    name, captions = data.name, data / "dataset.json"
    whole, passed = data / f"{name}-zh.json", work / f"{name}-passed.json"
    run("data/translation_en2zh.py", "--check", whole, "--input", captions, "--output", passed)
    common = ("--captions", captions, "--image-root", data / "images")
    run("data/generate_prompt.py", "--input", whole, "--output", work / "all.json", *common)
    run("data/generate_prompt.py", "--input", passed, "--output", work / "passed-rows.json", *common)
    run("data/generate_prompt.py", "--input", whole, "--output", work / "asked.json", "--tasks", "scene", "objects", "existence=0.5", *common)
    write(work / "train.json", read(work / "passed-rows-train.json") + read(work / "asked-train.json"))
    write(work / "val.json", read(work / "all-val.json"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PROJECT / "data" / "UCM", help="folder of the caption set (data/UCM)")
    parser.add_argument("--work", type=Path, default=PROJECT / "checkpoints" / "from-nothing", help="where everything is written")
    parser.add_argument("--train-iters", type=int, default=6000, help="steps of 32 rows (%(default)s)")
    args = parser.parse_args()
    work = args.work
    work.mkdir(parents=True, exist_ok=True)

    make_rows(args.data, work)
    network = config(**NETWORK)
    write(work / "model_config.json", network)
    rows = read(work / "train.json")
    texts = [text for row in rows for text in (row["prompt"], row["label"])]
    vocabulary = work / "ice_text.model"
    if not vocabulary.exists():
        train_vocabulary(texts + sum(QUESTIONS.values(), []), vocabulary, NETWORK["vocabulary"] - CONTROL_TOKENS)
    run("finetune_RemoteGLM.py", "--mode", "pretrain", "--model_config", work / "model_config.json", "--tokenizer", vocabulary,
        "--train-data", work / "train.json", "--valid-data", work / "val.json", "--save", work, "--experiment-name", "run", "--resume",
        "--augment", "--batch-size", 32, "--lr", 1e-3, "--weight-decay", 0.05, "--warmup", 0.03, "--clip-grad", 1, "--train-iters", args.train_iters,
        "--eval-interval", 500, "--eval-batch-size", 32, "--keep", 1)
    run("evaluate_RemoteGLM.py", "--from_pretrained", work / "run", "--data", work / "val.json", "--references", args.data / "dataset.json",
        "--train-data", work / "all-train.json")


if __name__ == "__main__":
    main()
