"""Make the README's pictures from what `bash demo.sh` left behind (web_demo.png: see the end of tests/test_web.py).

python images/make.py
"""

import json
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
RUN = PROJECT / "checkpoints" / "demo"
FONT = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")  # Debian's fonts-wqy-microhei
TILE, TEXT, COLUMNS, SCALE = 128, 76, 4, 2


def wrapped(draw, text, font, width):
    line, lines = "", []
    for character in text:
        if draw.textlength(line + character, font) > width:
            lines.append(line)
            line = ""
        line += character
    return "\n".join([*lines, line])


def main():
    """scenes.png: one held-out image of each scene with the answer before (grey) and after (black); loss.png."""
    shutil.copy(RUN / "loss.png", HERE / "loss.png")
    step = (RUN / "latest").read_text()
    lines = (
        (RUN / f"eval-demo-prompt-test-{step}" / "predictions.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    answers = {
        (Path(e["img"]).name, e["settings"]["system"]): e["answer"]
        for e in map(json.loads, reversed(lines))
    }  # the description comes first
    shown = sorted({name for name, _ in answers if name.endswith("_test_000.tif")})
    rows = -(-len(shown) // COLUMNS)
    width, height = (TILE + 12) * SCALE, (TILE + TEXT) * SCALE
    sheet = Image.new("RGB", (width * COLUMNS, height * rows), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(str(FONT), 17)
    for index, name in enumerate(shown):
        x, y = index % COLUMNS * width + 12, index // COLUMNS * height + 8
        image = Image.open(PROJECT / "data" / "demo" / "images" / name)
        sheet.paste(image.resize((TILE * SCALE, TILE * SCALE), Image.Resampling.LANCZOS), (x, y))
        y += TILE * SCALE + 6
        for system, label, colour in (("base", "前：", "gray"), ("tuned", "后：", "black")):
            text = wrapped(draw, label + answers[name, system], font, TILE * SCALE)
            draw.multiline_text((x, y), text, colour, font, spacing=2)
            y = draw.multiline_textbbox((x, y), text, font, spacing=2)[3] + 6
    sheet.quantize(256).save(HERE / "scenes.png", optimize=True)


if __name__ == "__main__":
    main()
