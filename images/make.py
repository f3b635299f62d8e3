"""Make README's images from what `bash demo.sh` left behind.

    python images/make.py

answers.json   the first test image of each scene, in the order of the scenes: its reference, the
               answers before and after fine-tuning, and the objects that an answer invents
scenes.png     the same, drawn; invented objects in red
loss.png       the losses of the run

page.png is made elsewhere: see the end of tests/test_web.py.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    from model import Sampling, load_assistant

from PIL import Image, ImageDraw, ImageFont

from data.synthetic.captions import SCENES
from evaluation.hallucination import hallucinated, truth
from model.images import read_image

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
RUN = PROJECT / "checkpoints" / "demo"
DATA = PROJECT / "data" / "demo"
# Debian's fonts-wqy-microhei
FONT = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")

# Images side by side; pixels of an image and of the text below it, both enlarged by SCALE; then
# pixels between images, of the font, of a line, and above each image and each text, not enlarged
COLUMNS = 4
SCALE = 2
TILE, TEXT, GAP = 128 * SCALE, 118 * SCALE, 12
FONT_SIZE, LINE, TOP, SPACE = 17, 21, 8, 5

# What stands below an image, how it begins, and its color
TEXTS = (("reference", "参考：", "#357"), ("base", "前：", "gray"), ("tuned", "后：", "black"))
INVENTED = "#d02020"
# Stand at the end of a full line, rather than at the begin of the next
CLOSING = "，。、"


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_answers(names):
    """{"base" or "tuned": answers to the question that demo.sh asks, in the order of the names}."""
    assistant = load_assistant(RUN, device="cpu")
    images = [read_image(DATA / "images" / name) for name in names]
    questions = [assistant.first_question()] * len(images)
    greedy = Sampling(temperature=0)
    with assistant.untuned():
        base = assistant.answer_batch(questions, images, greedy)
    return {"base": base, "tuned": assistant.answer_batch(questions, images, greedy)}


def shown_answers():
    """What answers.json holds: [{"img", "reference", "base", "tuned", "invented"}, ...]

    invented: {"base" or "tuned": words of the answer}
    """
    captions = {record["imged_id"]: record["caption"] for record in read(DATA / "demo-zh.json")}
    images = {image["filename"]: image for image in read(DATA / "dataset.json")["images"]}
    names = [f"{scene}_test_000.tif" for scene in SCENES]
    answers = read_answers(names)
    shown = []
    for index, name in enumerate(names):
        entry = {"img": name, "reference": captions[name], "invented": {}}
        sentences = [sentence["raw"] for sentence in images[name]["sentences"]]
        known = truth([captions[name], *sentences])
        for system in ("base", "tuned"):
            text = entry[system] = answers[system][index]
            words = [text[found.start : found.end] for found in hallucinated(text, known)]
            entry["invented"][system] = words
        shown.append(entry)
    return shown


def draw_text(draw, text, at, font, color, invented=()):
    """Draw a text of TILE pixels at most a line, the invented words in red; returns where it ends.

    at: (left, top) pixel of the text.
    """
    colors = [color] * len(text)
    for word in invented:
        start = text.find(word)
        colors[start : start + len(word)] = [INVENTED] * len(word)

    left, y = at
    x = left
    for character, own in zip(text, colors):
        width = draw.textlength(character, font)
        if x + width > left + TILE and character not in CLOSING:
            x, y = left, y + LINE
        draw.text((x, y), character, own, font)
        x += width
    return y + LINE


def draw_scene(sheet, entry, x, y):
    """One image of the test set at (x, y) of the sheet, its texts below it."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(FONT), FONT_SIZE)
    image = Image.open(DATA / "images" / entry["img"])
    sheet.paste(image.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))

    y += TILE + SPACE
    for key, label, color in TEXTS:
        invented = entry["invented"].get(key, ())
        y = draw_text(draw, label + entry[key], (x, y), font, color, invented) + SPACE


def main():
    shutil.copy(RUN / "loss.png", HERE / "loss.png")
    shown = shown_answers()
    text = json.dumps(shown, ensure_ascii=False, indent=4) + "\n"
    (HERE / "answers.json").write_text(text, encoding="utf-8")

    rows = -(-len(shown) // COLUMNS)
    width, height = TILE + GAP * SCALE, TILE + TEXT
    sheet = Image.new("RGB", (width * COLUMNS, height * rows), "white")
    for index, entry in enumerate(shown):
        row, column = divmod(index, COLUMNS)
        draw_scene(sheet, entry, column * width + GAP, row * height + TOP)
    sheet.quantize(256).save(HERE / "scenes.png", optimize=True)


if __name__ == "__main__":
    main()
