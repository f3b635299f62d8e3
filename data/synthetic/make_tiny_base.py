"""Train the bundled tiny base from scratch: VisualGLM-6B's architecture with small numbers.

    python data/synthetic/make_tiny_base.py

Draws images that are not aerial scenes and writes texts about them (tiny_pictures.py), trains a
small vocabulary, trains the image encoder on the phrases of the texts (tiny_encoder.py), then the
language model over the frozen encoder with finetune_RemoteGLM.py, and stores the result in half
precision in model/tiny/base. Half an hour on 2 cores.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import torch

from data.synthetic.tiny_encoder import train_encoder
from model.files import PROJECT, write_text
from model.opening import open_checkpoint
from model.visualglm.family import VisualGLMFamily
from model.visualglm.layouts import read_config
from model.visualglm.tokenizer import VOCABULARY, train_vocabulary
from model.weight_files import CONFIG

HERE = PROJECT / "model" / "tiny"
# ids kept free above the pieces: [MASK], [gMASK], <sop>, <eop> and four more
CONTROL_TOKENS = 8
KEYWORDS = "用关键词描述这张图片。"
FILLER = re.compile("背景是|画面|图中有|上面有|图中是|边界是|的|，|。|是|远处|一条")
# rows that describe only a part of their image: characters, end of the question
SHORT_ANSWER, ONE_SENTENCE = 12, "请用一句话回答。"
# of every run of the trainer
TRAINING = """
    --method full --trainable language embeddings head projection
    --overwrite --keep 1 --batch-size 16 --eval-batch-size 32 --eval-iters 4
    --lr 4e-4 --warmup 0.05 --clip-grad 1
"""


def descriptions(rows):
    """The rows that describe the whole of their image."""
    found = []
    for row in rows:
        is_part = len(row["label"]) < SHORT_ANSWER or row["prompt"].endswith(ONE_SENTENCE)
        if "img" in row and not is_part:
            found.append(row)
    return found


def keyword_rows(rows):
    """Whole descriptions without their filler.

    Nearly every token of these depends on the image, so a network with random weights learns to
    look; among whole sentences it would only learn the language for a long time.
    """
    found = []
    for row in descriptions(rows):
        label = FILLER.sub("", row["label"])
        found.append({"img": row["img"], "prompt": KEYWORDS, "label": label})
    return found


def write(path, rows):
    write_text(path, json.dumps(rows, ensure_ascii=False))


def run(script, *words):
    """Run a script of this project. Raises CalledProcessError."""
    subprocess.run([sys.executable, PROJECT / script, *map(str, words)], check=True)


def make_rows(work):
    """keywords-{train,val}.json and all-{train,val}.json from what tiny_pictures.py has written."""
    for split in ("train", "val"):
        rows = json.loads((work / f"base-{split}.json").read_text(encoding="utf-8"))
        keywords, alone = keyword_rows(rows), [row for row in rows if "img" not in row]
        write(work / f"keywords-{split}.json", keywords + alone)
        write(work / f"all-{split}.json", rows + keywords)


def make_encoder(work, steps):
    """work/encoder: a checkpoint of a network that sees, and says nothing yet."""
    family = VisualGLMFamily.from_config(
        HERE / CONFIG, tokenizer=work / VOCABULARY, device=torch.device("cpu"), dtype=torch.float32
    )
    rows = json.loads((work / "base-train.json").read_text(encoding="utf-8"))
    described = [(work / row["img"], row["label"]) for row in descriptions(rows)]
    loss = train_encoder(family, described, steps)
    print(f"encoder: {steps} steps over {len(described)} images, loss {loss:.3f}")
    card = {"format": 1, "method": {"name": "full"}, "base": None}
    family.save(work / "encoder", card)


def train(work, name, rows, iters, *more):
    """One run of the trainer over work/<rows>-train.json, to work/<name>."""
    run(
        "finetune_RemoteGLM.py",
        *("--train-data", work / f"{rows}-train.json"),
        *("--save", work, "--experiment-name", name),
        *("--train-iters", iters, "--eval-interval", max(1, iters // 8)),
        *TRAINING.split(),
        *more,
    )


def make_parser():
    parser = Parser(__doc__)
    parser.add_argument(
        "--work",
        type=Path,
        default=PROJECT / "data" / "tiny",
        help="folder of images, rows and runs (default: data/tiny)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "base",
        help="folder of the finished base (default: model/tiny/base)",
    )
    parser.add_argument(
        "--pictures", type=int, default=12000, help="images to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--iters",
        type=int,
        nargs=4,
        default=(2000, 1000, 2400, 2400),
        help="steps of the encoder, on keywords, on everything, and once more in another order "
        "(default: 2000 1000 2400 2400)",
    )
    return parser


def main(argv=None):
    args = make_parser().parse_args(argv)
    work = args.work
    run("data/synthetic/tiny_pictures.py", "--output", work, "--pictures", args.pictures)
    make_rows(work)

    config = read_config(HERE / CONFIG)
    texts = (work / "vocabulary.txt").read_text(encoding="utf-8").splitlines() + [KEYWORDS] * 50
    train_vocabulary(texts, work / VOCABULARY, config["vocab_size"] - CONTROL_TOKENS)

    encoder, first, second, third = args.iters
    make_encoder(work, encoder)
    from_encoder = ("--from_pretrained", work / "encoder")
    train(work, "keywords", "keywords", first, "--lr-decay-style", "constant", *from_encoder)
    train(work, "all", "all", second, "--from_pretrained", work / "keywords")
    train(work, "again", "all", third, "--from_pretrained", work / "all", "--seed", 4321)

    family = open_checkpoint(work / "again", device="cpu", dtype="float16")
    kept = {key: family.card[key] for key in ("format", "method")}
    family.save(args.output, kept | {"base": None})
    parameters = sum(p.numel() for p in family.network.parameters())
    print(f"{args.output}: {parameters:,} parameters in half precision")


if __name__ == "__main__":
    main()
