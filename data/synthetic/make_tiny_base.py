"""Make the bundled tiny base from nothing: the same architecture as VisualGLM-6B, small numbers. Half an hour on 2 cores.

    python data/synthetic/make_tiny_base.py

Draws pictures that are not aerial scenes and writes texts about them (data/synthetic/tiny_pictures.py), trains a small vocabulary,
trains all parameters with finetune_RemoteGLM.py, and stores the result in half precision beside this file.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
HERE = PROJECT / "model" / "tiny"
sys.path.insert(0, str(PROJECT))

from model import checkpoint  # noqa: E402
from model.visualglm.tokenizer import VOCABULARY, train_vocabulary  # noqa: E402

CONTROL_TOKENS = 8  # ids kept free above the pieces: [MASK], [gMASK], <sop>, <eop> and room
KEYWORDS = "用关键词描述这张图片。"
FILLER = re.compile("背景是|画面|图中有|上面有|图中是|边界是|的|，|。|是|远处|一条")
SHORT_ANSWER, ONE_SENTENCE = (
    12,
    "请用一句话回答。",
)  # rows that describe only a part of their picture


def keyword_rows(rows):
    """Whole descriptions without their filler. Nearly every token of these depends on the picture, so a network that
    knows nothing yet learns to look; among whole sentences it would only learn the language for a long time."""
    return [
        {"img": row["img"], "prompt": KEYWORDS, "label": FILLER.sub("", row["label"])}
        for row in rows
        if "img" in row
        and len(row["label"]) >= SHORT_ANSWER
        and not row["prompt"].endswith(ONE_SENTENCE)
    ]


def write(path, rows):
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=PROJECT / "data" / "tiny",
        help="folder of pictures, rows and runs",
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "base", help="folder of the finished base"
    )
    parser.add_argument(
        "--pictures", type=int, default=12000, help="pictures to draw (%(default)s)"
    )
    parser.add_argument(
        "--iters",
        type=int,
        nargs=3,
        default=(1000, 2400, 2400),
        help="steps on keywords, on everything, and once more in another order (%(default)s)",
    )
    args = parser.parse_args(argv)
    work = args.work

    subprocess.run(
        [
            sys.executable,
            PROJECT / "data" / "synthetic" / "tiny_pictures.py",
            "--output",
            work,
            "--pictures",
            str(args.pictures),
        ],
        check=True,
    )
    for split in ("train", "val"):
        rows = json.loads((work / f"base-{split}.json").read_text(encoding="utf-8"))
        keywords = keyword_rows(rows)
        write(work / f"keywords-{split}.json", keywords + [row for row in rows if "img" not in row])
        write(work / f"all-{split}.json", rows + keywords)
    config = checkpoint.read_config(HERE / checkpoint.CONFIG)
    texts = (work / "vocabulary.txt").read_text(encoding="utf-8").splitlines() + [KEYWORDS] * 50
    train_vocabulary(texts, work / VOCABULARY, config["vocab_size"] - CONTROL_TOKENS)

    def train(name, rows, iters, *more):
        subprocess.run(
            [
                sys.executable,
                PROJECT / "finetune_RemoteGLM.py",
                "--mode",
                "pretrain",
                "--train-data",
                work / f"{rows}-train.json",
                "--train-iters",
                str(iters),
                "--experiment-name",
                name,
                "--save",
                work,
                "--overwrite",
                "--keep",
                "1",
                "--batch-size",
                "16",
                "--lr",
                "4e-4",
                "--warmup",
                "0.05",
                "--clip-grad",
                "1",
                "--eval-batch-size",
                "32",
                "--eval-iters",
                "4",
                "--eval-interval",
                str(max(1, iters // 8)),
                *more,
            ],
            check=True,
        )

    train(
        "keywords",
        "keywords",
        args.iters[0],
        "--lr-decay-style",
        "constant",
        "--model_config",
        HERE / checkpoint.CONFIG,
        "--tokenizer",
        work / VOCABULARY,
    )
    train("all", "all", args.iters[1], "--from_pretrained", work / "keywords")
    train("again", "all", args.iters[2], "--from_pretrained", work / "all", "--seed", "4321")

    network, tokenizer, card = checkpoint.load(work / "again", device="cpu", dtype="float16")
    checkpoint.write_folder(
        args.output,
        config=config,
        tokenizer=tokenizer,
        tensors=network.state_dict(),
        card={"format": card["format"], "method": card["method"], "base": None},
    )
    print(
        f"{args.output}: {sum(p.numel() for p in network.parameters()):,} parameters in half precision"
    )


if __name__ == "__main__":
    main()
