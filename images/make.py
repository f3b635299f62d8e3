"""Make README's images from what `bash demo.sh` left behind.

python images/make.py

web_demo.png is made elsewhere: see the end of tests/test_web.py.
"""

import json
import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
RUN = PROJECT / "checkpoints" / "demo"
# Debian's fonts-wqy-microhei
FONT = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")

# Images side by side; pixels of an image and of the text below it, both enlarged by SCALE; then
# pixels between images, of the font, and above each image and each answer, not enlarged
COLUMNS = 4
SCALE = 2
TILE, TEXT, GAP = 128 * SCALE, 76 * SCALE, 12
FONT_SIZE, TOP, SPACE = 17, 8, 6

# System in predictions.jsonl -> how its answer begins, and its color
SYSTEMS = {"base": ("前：", "gray"), "tuned": ("后：", "black")}


def read_answers():
    """{(file name of the image, system): answer} of the last evaluation on the test set."""
    step = (RUN / "latest").read_text()
    path = RUN / f"eval-demo-prompt-test-{step}" / "predictions.jsonl"
    answers = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        key = Path(entry["img"]).name, entry["settings"]["system"]
        # The first row of an image asks for its caption; the later ones are other questions.
        answers.setdefault(key, entry["answer"])
    return answers


def wrapped(draw, text, font, width):
    """The text with line breaks where a line would be wider than `width` pixels."""
    line, lines = "", []
    for character in text:
        if draw.textlength(line + character, font) > width:
            lines.append(line)
            line = ""
        line += character
    return "\n".join([*lines, line])


def draw_scene(sheet, name, answers, x, y):
    """One image of the test set at (x, y) of the sheet, the answers of all systems below it."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    image = Image.open(PROJECT / "data" / "demo" / "images" / name)
    sheet.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))

    y += TILE + SPACE
    for system, (label, color) in SYSTEMS.items():
        text = wrapped(draw, label + answers[name, system], font, TILE)
        draw.multiline_text((x, y), text, color, font, spacing=2)
        y = draw.multiline_textbbox((x, y), text, font, spacing=2)[3] + SPACE


def main():
    """loss.png; scenes.png: a test image of each scene, answers before and after fine-tuning."""
    shutil.copy(RUN / "loss.png", HERE / "loss.png")

    answers = read_answers()
    names = sorted({name for name, _ in answers if name.endswith("_test_000.tif")})
    rows = -(-len(names) // COLUMNS)
    width, height = TILE + GAP * SCALE, TILE + TEXT
    sheet = Image.new("RGB", (width * COLUMNS, height * rows), "white")
    for index, name in enumerate(names):
        row, column = divmod(index, COLUMNS)
        draw_scene(sheet, name, answers, column * width + GAP, row * height + TOP)
    sheet.quantize(256).save(HERE / "scenes.png", optimize=True)


if __name__ == "__main__":
    main()
