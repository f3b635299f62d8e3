"""What the tests of the data stages share: calls of the scripts, small files and images."""

import json
import resource
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

from conftest import PROJECT
from PIL import Image

from data import generate_prompt

DATA = PROJECT / "data"
QUESTION = "这张遥感图像展现了什么场景？"


def call(script, *options):
    """The exit status of a script with these options, here in this process."""
    return script.main([str(option) for option in options])


def image(name, split=None, raws=("A lake .", "There is a lake .")):
    entry = {
        "filename": name,
        "sentences": [{"raw": raw, "tokens": raw.split()} for raw in raws],
        "imgid": 0,
    }
    return entry if split is None else {**entry, "split": split}


def english(count, split=None):
    rows = [{"imged_id": f"{i}.png", "caption": f"Lake {i} ."} for i in range(count)]
    return [{**row, "split": split} for row in rows] if split else rows


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value)
        if path.suffix == ".jsonl"
        else ""
    )
    path.write_text(lines or json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def load(path):
    text = Path(path).read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()]
        if Path(path).suffix == ".jsonl"
        else json.loads(text)
    )


def save_images(folder, *names, size=(16, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, tuple(zlib.crc32(name.encode()).to_bytes(4, "big")[:3])).save(
            folder / name
        )


def limited(size, script, *options):
    """A script in a process whose files may have so many bytes -> (exit status, stderr)."""
    done = subprocess.run(
        [sys.executable, DATA / script, *map(str, options)],
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def prompt(folder, *options, records_=None, output="rows.json"):
    """Run generate_prompt on `records_` in `folder`: (status, rows by file name).

    records_: {file name: split or None}
    """
    source = folder / "zh.json"
    if records_ is not None:
        save(
            source,
            [
                {"imged_id": name, "caption": f"湖{name}。", **({"split": split} if split else {})}
                for name, split in records_.items()
            ],
        )
    status = call(generate_prompt, "--input", source, "--output", folder / output, *options)
    rows = load(folder / output) if (folder / output).exists() else []
    return status, {row["img"].split("/", 1)[1]: row for row in rows if "img" in row}
