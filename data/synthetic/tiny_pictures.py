"""Draw and write what the tiny base is trained on before it sees any aerial image.

    python data/synthetic/tiny_pictures.py --output DIR [--pictures 12000] [--seed 1]

Source: drawn and written by this project, nothing is downloaded; licence: that of this repository.
128x128 RGB JPEG, quality 90: four of five are abstract (colours, textures, regions, bands, counted
shapes), one of five is a ground view (house, car, fish, ...). None is an aerial scene, so a demo
that fine-tunes the model on those shows something new. It writes

    pictures/000000.jpg ...
    base-train.json, base-val.json   rows {"img", "prompt", "label"}, 2 % for validation, no image
                                     in both; about 3 rows an image and 15 % rows of text alone,
                                     which have no "img"
    vocabulary.txt                   every text of the rows and of the demo scenes, words,
                                     characters: one a line, to train a tokenizer

Every image has a random generator of its own, seeded by (seed, index): fewer images are a subset,
byte for byte. A second run draws the same files again.
"""

import itertools
import json
import random
import sys
from functools import cache
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from command_line import Parser
from data.records import write_records
from data.stage import run_stage, worker_pool
from data.synthetic.abstract import abstract
from data.synthetic.captions import SCENES, describe_en, describe_zh, facts, joint_facts
from data.synthetic.sheet import finish, relit
from data.synthetic.views import view
from data.synthetic.wording import ASK
from model.files import write_text

TEXTS = Path(__file__).resolve().parent / "texts.json"
NUMERALS = "零 一 二 三 四 五 六 七 八 九 十 十一 十二".split()
# of all rows, that have no image: 15 %
TEXT_ROWS_PER_IMAGE_ROW = 15 / 85
# one image in so many is for validation
VAL_EVERY = 50
# starting processes takes longer than drawing fewer
PARALLEL_FROM = 100


@cache
def texts():
    """texts.json: knowledge, chat, words and characters."""
    return json.loads(TEXTS.read_text(encoding="utf-8"))


@cache
def chat():
    """[(question, answer), ...] without an image: chat, numbers, sums, knowledge."""
    rows = [tuple(row) for row in texts()["chat"]]
    for number, word in enumerate(NUMERALS):
        rows.append((f"数字{number}怎么读？", f"读作{word}。"))
        rows.append((f"用汉字写出{number}。", f"{word}。"))
    for i, j in itertools.product(range(1, 10), repeat=2):
        if i + j <= 12:
            rows.append((f"{NUMERALS[i]}加{NUMERALS[j]}等于几？", f"等于{NUMERALS[i + j]}。"))
    for name, answers in texts()["knowledge"].items():
        for questions, answer in zip(texts()["knowledge questions"], answers):
            rows += [(question.format(name), answer + "。") for question in questions]
    return rows


def draw(job):
    """Draw one image file; returns its rows. job: (folder, seed, index)."""
    folder, seed, index = job
    rng = random.Random(f"{seed}/picture/{index}")
    subject = abstract if rng.random() < 0.8 else view
    sheet, label, answers = subject(rng)
    name = f"pictures/{index:06d}.jpg"
    image = relit(rng, finish(rng, sheet, 0.5), 0.4)
    image.save(folder / name, "JPEG", quality=90)

    number = rng.choice((2, 2, 3))
    rows = rng.sample(answers, min(len(answers), number))
    question = rng.choice(ASK["describe"])
    if rng.random() < 0.75:
        rows.append((question, label))
    return [{"img": name, "prompt": question, "label": answer} for question, answer in rows]


def draw_all(jobs):
    """The rows of each image."""
    if len(jobs) < PARALLEL_FROM:
        return [draw(job) for job in jobs]
    with worker_pool() as pool:
        results = pool.imap(draw, jobs, chunksize=32)
        return list(tqdm(results, total=len(jobs), desc="images", disable=None))


def text_row(seed, index):
    """(question, answer) without an image: mostly the description of an aerial scene, else chat."""
    rng = random.Random(f"{seed}/text/{index}")
    if rng.random() < 0.2:
        return rng.choice(chat())
    scene = rng.choice(list(SCENES))
    question = rng.choice(texts()["sentence questions"]).format(SCENES[scene].zh)
    return question, describe_zh(facts(scene, rng))


def text_rows(seed, count):
    """`count` different ones, or fewer."""
    found = dict.fromkeys(text_row(seed, index) for index in range(3 * count))
    return list(found)[:count]


def scene_sentences():
    """Every sentence, Chinese and English, that the demo scenes can have."""
    found = set()
    for scene, entry in SCENES.items():
        for values in itertools.product(*entry.facts.values()):
            f = {"scene": scene}
            for names, value in zip(entry.facts, values):
                f.update(joint_facts(names, value))
            for style in range(6):
                f["style"] = style
                found.update(describe_en(f))
                found.add(describe_zh(f))
    return sorted(found)


def vocabulary_lines(rows):
    """Every text once, in a fixed order."""
    lines = []
    for row in rows:
        lines += [row["prompt"], row["label"]]
    lines += itertools.chain(*chat())
    lines += scene_sentences()
    lines += texts()["words"]
    lines += itertools.chain(*texts()["characters"])
    return list(dict.fromkeys(lines))


def draw_base(args):
    (args.output / "pictures").mkdir(parents=True, exist_ok=True)
    groups = draw_all([(args.output, args.seed, index) for index in range(args.pictures)])
    image_rows = sum(len(group) for group in groups)
    alone = text_rows(args.seed, round(image_rows * TEXT_ROWS_PER_IMAGE_ROW))
    groups += [[{"prompt": question, "label": answer}] for question, answer in alone]

    rows = {"train": [], "val": []}
    # an image is wholly on one side
    for k, group in enumerate(groups):
        split = "val" if k % VAL_EVERY == VAL_EVERY - 1 else "train"
        rows[split] += group
    for split, part in rows.items():
        random.Random(f"{args.seed}/order").shuffle(part)
        write_records(args.output / f"base-{split}.json", part)

    lines = vocabulary_lines(rows["train"] + rows["val"])
    write_text(args.output / "vocabulary.txt", "".join(line + "\n" for line in lines))
    print(
        f"{args.output}: {args.pictures} images, {len(rows['train'])} train and "
        f"{len(rows['val'])} val rows, {len(alone)} of them text alone; "
        f"{len(lines)} vocabulary lines"
    )


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--pictures",
        type=int,
        default=12000,
        help="images to draw, about 3 rows each (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="another seed draws another set (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.pictures < 1:
        parser.error(f"--pictures {args.pictures}: expected a number of images, 1 or more")
    return run_stage(__file__, draw_base, args)


if __name__ == "__main__":
    sys.exit(main())
