"""Scoring without a model: how long do all measures of 1,000 answers with five references each take?

    python benchmarks/evaluate.py

Answers and references are sentences of data/synthetic/demo_scenes.py; the whole command is timed, start and pictures included.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from networks import PROJECT, machine, table

sys.path.insert(0, str(PROJECT))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=1000, help="answers (%(default)s)")
    parser.add_argument(
        "--references", type=int, default=5, help="references of each (%(default)s)"
    )
    args = parser.parse_args()
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        work, rng = Path(folder), random.Random(0)
        subprocess.run(
            [
                sys.executable,
                PROJECT / "data/synthetic/demo_scenes.py",
                "--output",
                work / "demo",
                "--train",
                "20",
            ],
            check=True,
            capture_output=True,
        )
        memory = (work / "demo/memory.jsonl").read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["target"] for line in memory]
        rows, lines = [], []
        for index in range(args.captions):
            Image.new("RGB", (64, 64), tuple(rng.choices(range(256), k=3))).save(
                work / f"{index}.png"
            )
            asked = {"img": f"{index}.png", "prompt": "图中有什么？"}
            rows += [asked | {"label": text} for text in rng.sample(texts, args.references)]
            lines.append(json.dumps(asked | {"answer": rng.choice(texts)}, ensure_ascii=False))
        (work / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        (work / "answers.jsonl").write_text("\n".join(lines), encoding="utf-8")
        start = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                PROJECT / "evaluate_RemoteGLM.py",
                "--predictions",
                work / "answers.jsonl",
                "--data",
                work / "rows.json",
            ],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
    print(f"{machine()}\n")
    table(
        [
            {
                "answers": args.captions,
                "references": args.captions * args.references,
                "seconds": f"{seconds:.1f}",
                "wanted": "<= 20",
            }
        ]
    )


if __name__ == "__main__":
    main()
