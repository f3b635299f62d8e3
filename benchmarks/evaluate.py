"""Evaluation without a model: how long do the metrics of 1,000 answers with 5 references each take?

    python benchmarks/evaluate.py

Answers and references are sentences of data/synthetic/demo_scenes.py; the whole command is timed,
start and images included.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from networks import PROJECT, machine, table
from PIL import Image

from command_line import Parser

GOAL = 20  # seconds
QUESTION = "图中有什么？"


def run(script, *options):
    command = [sys.executable, PROJECT / script, *map(str, options)]
    subprocess.run(command, check=True, capture_output=True)


def demo_captions(work):
    """Chinese descriptions of the drawn scenes."""
    run("data/synthetic/demo_scenes.py", "--output", work / "demo", "--train", 20)
    lines = (work / "demo" / "memory.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["target"] for line in lines]


def write_inputs(work, captions, references):
    """rows.json with one-colored images, and answers.jsonl with an answer to each."""
    rng = random.Random(0)
    texts = demo_captions(work)
    rows, answers = [], []
    for index in range(captions):
        color = tuple(rng.choices(range(256), k=3))
        Image.new("RGB", (64, 64), color).save(work / f"{index}.png")
        asked = {"img": f"{index}.png", "prompt": QUESTION}
        for text in rng.sample(texts, references):
            rows.append(asked | {"label": text})
        answers.append(asked | {"answer": rng.choice(texts)})

    (work / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    (work / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")


def main():
    parser = Parser(__doc__)
    parser.add_argument("--captions", type=int, default=1000, help="answers (%(default)s)")
    parser.add_argument(
        "--references", type=int, default=5, help="references of each (%(default)s)"
    )
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_inputs(work, args.captions, args.references)
        start = time.perf_counter()
        run(
            "evaluate_RemoteGLM.py",
            *("--predictions", work / "answers.jsonl"),
            *("--data", work / "rows.json"),
        )
        seconds = time.perf_counter() - start

    print(f"{machine()}\n")
    row = {
        "answers": args.captions,
        "references": args.captions * args.references,
        "seconds": f"{seconds:.1f}",
        "goal": f"<= {GOAL}",
    }
    table([row])


if __name__ == "__main__":
    main()
