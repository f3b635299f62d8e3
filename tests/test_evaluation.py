"""Metrics against other ways of computing them, the lexicon's rules by hand-made cases, and the
script as a user starts it."""

import csv
import json
import marshal
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from sacrebleu.metrics import CHRF

import evaluate_RemoteGLM as script
from evaluation.baselines import constant_caption, leave_one_out, nearest
from evaluation.hallucination import (
    SETTINGS,
    existence_metrics,
    existence_questions,
    hallucination_metrics,
    objects_of,
    scene_right,
    truth,
    yes_or_no,
)
from evaluation.metrics import (
    Cider,
    bleu,
    caption_metrics,
    chrf,
    common_subsequence,
    mean_of,
    rouge_l,
    tokens,
)
from evaluation.page import marked
from evaluation.predictions import (
    SHUFFLED_IMAGES,
    System,
    labels,
    number_equal_names,
    read_predictions,
)
from evaluation.references import asking_for_description
from evaluation.report import write_report
from evaluation.score import COPIES, EvaluationSet, score, worst_first
from model import Sampling, UserError, load_assistant, read_image
from model.assistant import DEFAULT_PROMPT as PROMPT
from model.rows import Sample
from model.weight_files import CARD

REFERENCES = [
    [
        "一个住宅区，房屋排列整齐",
        "住宅区内房屋整齐排列，有一些道路穿过",
        "许多红色屋顶的房子排成一排",
    ],
    ["一架飞机停在机场的停机坪上", "机场里停着一架白色飞机", "一架大飞机停在航站楼旁边"],
    ["蓝色的海洋旁边有一片白色沙滩", "海浪拍打着白色的沙滩", "一片沙滩紧挨着绿色的大海"],
]
ANSWERS = ["住宅区内有许多房屋整齐排列", "机场的停机坪上停着一架飞机", "绿色的森林里有一条河流"]


def metrics_of(answers, references, unit, punctuation):
    """({name: Metric}, tokenized answers, tokenized references)"""
    hypotheses = [tokens(text, unit, punctuation) for text in answers]
    refs = [[tokens(text, unit, punctuation) for text in texts] for texts in references]
    metrics = bleu(hypotheses, refs)
    metrics["ROUGE-L"] = rouge_l(hypotheses, refs)
    metrics["CIDEr"] = Cider(refs)(hypotheses, refs)
    return metrics, hypotheses, refs


def write_lines(path, entries):
    """JSON lines."""
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines), encoding="utf-8")


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "unit, punctuation, golden",
    (  # of coco-caption's code
        ("characters", False, (83.78, 75.28, 66.38, 56.85, 55.83, 2.4908)),
        ("characters", True, (83.78, 75.28, 66.38, 56.85, 54.58, 2.4190)),
        ("words", True, (76.19, 61.72, 46.66, 30.33, 50.59, 1.5747)),
    ),
)
def test_golden_values(unit, punctuation, golden):
    found = metrics_of(ANSWERS, REFERENCES, unit, punctuation)[0]
    assert [
        found[name].value for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L")
    ] == pytest.approx(golden[:5], abs=0.005)
    assert found["CIDEr"].value == pytest.approx(golden[5], abs=5e-5)


def random_captions(words, count, seed):
    rng = random.Random(seed)
    return [
        [" ".join(rng.choices(words, k=rng.randint(3, 14))) for _ in range(rng.randint(1, 5))]
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "words",
    (
        "a road runs beside the green farmland houses stand in rows of two".split(),
        "一条 道路 穿过 绿色 的 农田 ， 旁边 有 房屋 和 树木 。".split(),
    ),
    ids=("English", "Chinese"),
)
def test_agrees_with_pycocoevalcap(words):
    coco = pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider as CocoCider
    from pycocoevalcap.rouge.rouge import Rouge

    references = random_captions(words, 100, 1)
    answers = [
        random.Random(i).choice(refs) if i % 3 else refs[0] + words[i % 5]
        for i, refs in enumerate(random_captions(words, 100, 2))
    ]
    answers[7], answers[8] = references[7][0], ""  # a perfect one and an empty one
    found, hypotheses, refs = metrics_of(answers, references, "characters", True)
    truth = {i: [" ".join(ref) for ref in texts] for i, texts in enumerate(refs)}
    given = {i: [" ".join(text)] for i, text in enumerate(hypotheses)}

    ours = [found[f"BLEU-{n}"].value / 100 for n in range(1, 5)]
    theirs = Bleu(4).compute_score(truth, given, verbose=0)[0]
    assert ours == pytest.approx(theirs, abs=1e-6)

    rouge, each = Rouge().compute_score(truth, given)
    assert found["ROUGE-L"].value / 100 == pytest.approx(rouge, abs=1e-6)
    assert found["ROUGE-L"].stats[:, 0] / 100 == pytest.approx(each, abs=1e-6)

    cider, each = CocoCider().compute_score(truth, given)
    assert found["CIDEr"].value == pytest.approx(cider, abs=1e-6)
    assert found["CIDEr"].stats[:, 0] == pytest.approx(each, abs=1e-6)
    assert coco


def test_chrf_is_sacrebleus():
    answers = ["".join(tokens(text)) for text in ANSWERS]
    plain = [["".join(tokens(text)) for text in texts] for texts in REFERENCES]
    found = chrf(ANSWERS, REFERENCES)
    assert found.value == pytest.approx(CHRF().corpus_score(answers, list(zip(*plain))).score)

    # as many references as each image has
    uneven = chrf(ANSWERS, [REFERENCES[0], REFERENCES[1][:1], REFERENCES[2][:2]])
    streams = [
        [texts[i] if i < n else None for texts, n in zip(plain, (3, 1, 2))] for i in range(3)
    ]
    expected = CHRF().corpus_score(answers, streams).score
    assert uneven.value == pytest.approx(expected) != found.value


def test_longest_common_subsequence():
    def table(a, b):
        lengths = np.zeros((len(a) + 1, len(b) + 1), int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                lengths[i + 1, j + 1] = (
                    lengths[i, j] + 1 if x == y else max(lengths[i, j + 1], lengths[i + 1, j])
                )
        return lengths[-1, -1]

    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abcde", k=rng.randint(0, 80)) for _ in range(2))
        assert common_subsequence(a, b) == table(a, b)


@pytest.mark.parametrize(
    "text, unit, punctuation, expected",
    (
        ("一个　港口，ＡＢ１！", "characters", False, "一 个 港 口 a b 1"),
        ("港口，", "characters", True, "港 口 ,"),
        ("绿色的农田。", "words", False, "绿色 的 农田"),
        ("Two tennis-courts .", "characters", False, "two tennis courts"),
        ("Two courts.", "words", True, "two courts ."),
        ("。", "words", False, ""),
    ),
)
def test_tokens(text, unit, punctuation, expected):
    assert tokens(text, unit, punctuation) == tuple(expected.split())


def test_segmentation_reads_and_writes_nothing_in_the_shared_temporary_folder(tmp_path):
    """A dictionary planted there would make one word of the whole sentence."""
    planted = tmp_path / "jieba.cache"
    planted.write_bytes(marshal.dumps(({"绿": 0, "绿色": 0, "绿色的": 0, "绿色的农田": 9}, 9)))
    code = "from evaluation.metrics import tokens; print(*tokens('绿色的农田。', 'words'))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.stdout == "绿色 的 农田\n" and result.stderr == ""
    assert list(tmp_path.iterdir()) == [planted]


def test_unsegmented_or_single_references_are_no_trap():
    def cider(*arguments):
        return caption_metrics(*arguments)["characters"]["CIDEr"].value

    assert cider(ANSWERS, REFERENCES) > 1  # unsegmented Chinese would give 0
    assert math.isnan(cider(ANSWERS[:1], REFERENCES[:1]))  # log 1 = 0 is undefined
    assert cider(ANSWERS[:1], REFERENCES[:1], REFERENCES) > 0


def test_interval_and_test():
    """Against resampling by loops with another generator; a system against itself and against a
    clearly better one."""
    rng = np.random.default_rng(5)
    metric = mean_of(rng.normal(50, 10, 200))
    loops = [np.mean(rng.choice(metric.stats[:, 0], 200)) for _ in range(4000)]
    assert metric.interval() == pytest.approx(np.percentile(loops, (2.5, 97.5)), abs=0.35)
    assert metric.p_value(metric) == 1 and math.isnan(metric.p_value(mean_of([None] * 200)))
    noise = mean_of(metric.stats[:, 0] + rng.normal(0, 10, 200))
    assert mean_of(metric.stats[:, 0] + 3).p_value(metric) < 0.01 < noise.p_value(metric)
    assert math.isnan(mean_of([None, None]).value) and mean_of([1, None]).value == 1


# One image: two white airplanes at an airport beside a terminal, some trees in a residential area
AIRPORT = truth(
    [
        "机场上停着两架白色的飞机，旁边是航站楼。",
        "Two airplanes stand at the airport .",
        "There are some trees near the airport terminal .",
        "Two white airplanes and a terminal .",
    ]
)


@pytest.mark.parametrize(
    "text, objects",
    (
        ("飞机旁有汽车", {"airplane": True, "car": False}),
        ("停车场", {}),
        ("机场", {}),
        ("住宅区", {}),  # the longest word, scenes are no objects
        ("飞机和客机", {"airplane": True}),
        ("图中没有汽车", {}),
        ("没有汽车，只有树木", {"tree": True}),  # once each; denied
        ("植物", {"plant": True}),
        ("建筑物", {"building": True}),
        ("房屋", {"house": False}),
        ("灌木", {"bush": False}),  # what is implied, one way
        ("网球场", {"tennis court": False}),
        ("", {}),
        ("Cars beside a plane", {"car": False, "airplane": True}),
    ),
)
def test_objects_of(text, objects):
    assert {name: right for name, *_, right in objects_of(text, AIRPORT)} == objects


def test_a_word_of_two_meanings_is_right_by_either():
    harbour, lake = truth(["港口里停着船。"]), truth(["湖边有一座房屋。"])
    assert [right for *_, right in objects_of("船停在码头", harbour)] == [True, True]
    assert [right for *_, right in objects_of("湖边的码头", lake)] == [True, False]


@pytest.mark.parametrize(
    "text, right",
    (
        ("这是一个机场。", True),
        ("一个港口，旁边是机场", False),
        ("飞机", False),
        ("", False),
        ("没有港口，是机场", True),
        ("一个靠近港口的机场", True),
        ("机场旁的港口", False),
        ("港口和附近的机场", False),
        ("港口，后面的机场", False),
    ),
)
def test_scene(text, right):
    assert scene_right(text, AIRPORT) is right


def test_scene_of_a_kind_counts_and_none_is_left_out():
    homes = truth(["这是一个住宅区。"])
    assert (
        scene_right("移动房屋公园", homes) is True
        and scene_right("住宅区", truth(["移动房屋公园里有房屋。"])) is False
    )
    nothing = truth(["有一些树木。"])
    assert nothing.scene is None and scene_right("机场", nothing) is None
    assert (
        hallucination_metrics(["机场", "住宅区"], [nothing, homes])["scene accuracy"].value == 100
    )


def test_hallucination_metrics():
    """Two hand-counted captions: 3 objects, 1 invented; none named."""
    found = hallucination_metrics(["飞机、树木和汽车", ""], [AIRPORT, AIRPORT])
    assert AIRPORT.facts.present == ("airplane", "terminal")
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {
            "scene accuracy": 0,
            "CHAIR_i": 100 / 3,
            "CHAIR_s": 50,
            "object recall": 100 / 4,
            "objects per caption": 1.5,
            "length": 3.5,
        }
    )
    assert marked("飞机、汽车<b>", AIRPORT) == '飞机、<mark title="car">汽车</mark>&lt;b&gt;'


@pytest.mark.parametrize(
    "answer, meaning",
    (
        ("有。", True),
        ("没有，图中没有飞机。", False),
        ("是的，有飞机", True),
        ("不是", False),
        ("图中有没有飞机？没有。", False),
        ("是否有飞机：有", True),
        ("无法确定", None),
        ("这是一片农田", None),
        ("", None),
        ("否", False),
        ("无", False),
        ("Yes, there is.", True),
        ("No.", False),
        ("There isn't any", False),
        ("A runway", None),
        ("没错，图中有飞机。", True),
        ("没错。", True),
        ("毫无疑问。", True),
        ("看不出有", False),
        ("图中看不出有飞机。", False),
        ("不对，没有。", False),
        ("不可以看到。", False),
        ("图中不太可能有飞机。", False),
        ("有农田，没有飞机。", False),
        ("图中有房屋，但没有飞机。", False),
        ("图像右侧停着三架飞机。", True),
        ("能。", True),
        ("可以。", True),
        ("看得见", True),
        ("不能。", False),
        ("图中不含飞机。", False),
        ("未看到。", False),
        ("无法看到飞机。", False),
        ("不，这是一片农田。", False),
        ("There is a plane.", True),
        ("I cannot see any airplanes.", False),
        ("无法判断图中是否有飞机。", None),
        ("飞机一架也没有。", False),
        ("有一架客机停在那里", True),
        ("No, only cars.", False),
    ),
)
def test_yes_or_no(answer, meaning):
    assert yes_or_no(answer, "airplane") is meaning


def test_labels_of_settings():
    assert labels("a", [None]) == ["a"]
    two = [{"system": "base"}, {"system": "tuned"}]
    assert labels("a", two) == ["a, base", "a, tuned"]
    assert labels(
        "a",
        [
            {"system": "tuned", "temperature": 0, "fingerprint": "x"},
            {"system": "tuned", "temperature": 1, "fingerprint": "y"},
        ],
    ) == ["a, temperature 0", "a, temperature 1"]


def test_answers_belong_to_the_path_that_agrees_longest(tmp_path):
    lines = [
        {"img": f"/elsewhere/{folder}/1.tif", "prompt": "有什么？", "answer": folder}
        for folder in ("airport", "beach")
    ]
    write_lines(tmp_path / "a.jsonl", lines)
    samples = [
        Sample(Path(f"images/{name}/1.tif"), "有什么？", None) for name in ("beach", "airport")
    ]
    (system,) = read_predictions(tmp_path / "a.jsonl", samples, [])
    assert system.answers == ["beach", "airport"]


LABELS = ("红色的屋顶旁有树木。", "绿色的农田。", "蓝色的河流穿过森林。")
SAMPLES = [Sample(Path(f"images/{i}.tif"), PROMPT, label) for i, label in enumerate(LABELS)]
# How other tools write the same three answers: name of the file -> its lines
WRITTEN = {
    "infer_result.jsonl": [  # ms-swift
        {
            "response": label,
            "labels": label,
            "logprobs": None,
            "messages": [
                {"role": "user", "content": "<image>" + PROMPT},
                {"role": "assistant", "content": label},
            ],
            "images": [{"bytes": None, "path": f"/data/images/{i}.png"}],
        }
        for i, label in enumerate(LABELS)
    ],
    "generated_predictions.jsonl": [  # LLaMA-Factory: no images, but the order of the rows
        {"prompt": f"user<|image_pad|>{PROMPT}", "predict": label, "label": label + "<|im_end|>"}
        for label in LABELS
    ],
    "plain.jsonl": [{"image": f"{i}.tif", "response": label} for i, label in enumerate(LABELS)],
    "output.jsonl": [{"image": f"{i}.tif", "output": label} for i, label in enumerate(LABELS)],
    "text.jsonl": [  # LLaVA
        {"question_id": i, "image": f"{i}.tif", "prompt": PROMPT, "text": label}
        for i, label in enumerate(LABELS)
    ],
    "references.jsonl": [
        {"prompt": PROMPT, "pred": label, "ground_truth": label} for label in LABELS
    ],
    "png.jsonl": [
        {"img": f"images\\{i}.png", "prompt": f"<image>\n{PROMPT}", "answer": label}
        for i, label in enumerate(LABELS)
    ],
    "coco.json": [{"image_id": i, "caption": label} for i, label in enumerate(LABELS)],
    "llava.jsonl": [
        {"image": [f"{i}.jpg"], "question": PROMPT, "answer": "参考", "prediction": label}
        for i, label in enumerate(LABELS)
    ],
}
TABLE = [["index", "image_path", "question", "answer", "prediction"]]
TABLE += [[i, f"images/{i}.tif", PROMPT, "多行\n参考", label] for i, label in enumerate(LABELS)]


@pytest.mark.parametrize("name", [*WRITTEN, "table.tsv", "table.csv", "table.xlsx"])
def test_answers_of_other_tools(tmp_path, name):
    path = tmp_path / name
    if name in WRITTEN and path.suffix == ".json":
        path.write_text(json.dumps(WRITTEN[name]))
    elif name in WRITTEN:
        write_lines(path, WRITTEN[name])
    elif path.suffix == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="needs openpyxl")
        book = openpyxl.Workbook()
        for line in TABLE:
            book.active.append(line)
        book.save(path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(TABLE)

    (system,) = read_predictions(path, SAMPLES, [(0, "有船吗？")], lambda: SAMPLES)
    assert system.answers == list(LABELS) and system.replies == {}
    assert "no image ablation" in system.notes[0]
    assert "no reply to 1 of 1 yes / no questions, such as 0.tif: 有船吗？" in system.notes[1]


def test_an_ending_in_capitals_and_space_around_a_question(tmp_path):
    with open(tmp_path / "A.TSV", "w", newline="", encoding="utf-8") as file:
        spaced = [[*line[:2], f" {line[2]}\n", *line[3:]] for line in TABLE[1:]]
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows([TABLE[0], *spaced])
    (system,) = read_predictions(tmp_path / "A.TSV", SAMPLES, [], lambda: SAMPLES)
    assert system.answers == list(LABELS)
    write_lines(tmp_path / "A.JSONL", WRITTEN["llava.jsonl"])
    spaced = [replace(sample, question=f"{sample.question}\n") for sample in SAMPLES]
    (system,) = read_predictions(tmp_path / "A.JSONL", spaced, [], lambda: spaced)
    assert system.answers == list(LABELS)


def test_a_workbook_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "a.xlsx").touch()
    with pytest.raises(UserError, match="needs openpyxl .pip install openpyxl.; or save"):
        read_predictions(tmp_path / "a.xlsx", SAMPLES, [])


@pytest.mark.parametrize(
    "lines, words",
    [
        (
            [{"pred": "x", "ground_truth": label} for label in LABELS[::-1]],
            "line 1 was to be '蓝色的河流穿过森林。', the row's label is '红色的屋顶旁有树木。'",
        ),
        ([{"predict": "x"}] * 2, "one for each row of --data in order; got 2 answers, 3 rows"),
        (
            [{"predict": "x", "label": label} for label in LABELS[::-1]],
            "line 1 was to be '蓝色的河流穿过森林。', the row's label is '红色的屋顶旁有树木。'",
        ),
        (
            [{"img": "0.tif", "prompt": PROMPT, "answer": None}, *WRITTEN["png.jsonl"][1:]],
            r"1 of 3 images have no answer .* 0.tif: 这张.* \(line 1 has no answer to it\)",
        ),
        (
            [{"img": f"{i}.tif", "prompt": "啥？", "answer": "x"} for i in range(3)],
            r"3 of 3 images .* \(the file asks about it: 啥？\)",
        ),
        (
            [{"img": "7.tif", "prompt": PROMPT, "answer": "x"}],
            r"\(the file is about 1 images, such as 7.tif\)",
        ),
        ([{"img": "0.tif", "prompt": PROMPT, "answer": None}], "all 1 answers are null"),
        ([{"img": "0.tif", "prompt": PROMPT, "error": "gone"}], "all 1 answers are null"),
        (
            [{"img": f"0.{end}", "prompt": PROMPT, "answer": end} for end in ("png", "jpg")],
            "several answers about images/0.tif",
        ),
    ],
)
def test_a_mismatch_shows_both_sides(tmp_path, lines, words):
    write_lines(tmp_path / "a.jsonl", lines)
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(tmp_path / "a.jsonl", SAMPLES, [], lambda: SAMPLES)
    assert "\n" not in str(caught.value)


KINDS = r"no JSON; expected .jsonl \(.*\), .json \(.*\), .tsv, .csv or .xlsx$"


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "a.jsonl",
            '{"answer": "河"}'.encode("gbk"),
            r"not UTF-8 \(at byte \d+\); save it as UTF-8$",
        ),
        (
            "a.jsonl",
            '{"answer": "河"}'.encode("utf-16"),
            r"not UTF-8 \(at byte 0\); save it as UTF-8$",
        ),
        ("a.json", '[{"answer": "河"}]'.encode("gbk"), r"not UTF-8 \(at byte \d+\); save it as"),
        (
            "a.csv",
            "image,answer\na.tif,河\n".encode("gbk"),
            r"not UTF-8 \(at byte \d+\); save it as",
        ),
        ("a.txt", "一条河。\n", KINDS),
        ("a.md", "| img | answer |\n", KINDS),
        ("a.html", "<html>", KINDS),
        ("a.parquet", b"PAR1\x15\x04\xff", KINDS),
        (
            "a.jsonl",
            '[{"img": "a.tif", "answer": "x"}]',
            "got list; an array needs a name ending in .json$",
        ),
        ("a.jsonl", '[\n{"img": "a.tif"}]', "an array needs a name ending in .json$"),
        ("a.jsonl", "<html>", "an HTML page of 6 bytes"),
        ("a.json", '{"img": 1}\n{"img": 2}', "one record a line needs a name ending in .jsonl"),
        (
            "a.json",
            '{"a.tif": "河"}',
            "holds one object of a.tif, without answers; name the file of",
        ),
        ("a.json", "", "the file is empty; it has 0 bytes: make it again"),
        ("a.json", '[{"img":', "the file ends in the middle; it has 8 bytes: make it again"),
        ("a.jsonl", '{"img": "a', "the file ends in the middle; it has 10 bytes: make it again"),
        ("a.json", '[{"img": "河'.encode()[:-1], "the file ends in the middle; it has 12 bytes"),
        ("a.jsonl", b"PK\x03\x04\x14\x80", "an archive: unpack it$"),
        ("a.zip", b"PK\x03\x04\x14\x80", "an archive: unpack it; expected .jsonl"),
        ("a.tif", b"II*\0\x80", "an image, not a file that names images; expected .jsonl"),
    ],
)
def test_predictions_of_another_kind(tmp_path, name, content, words):
    """One line that says what is read, or what to do: in the words that rows get."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words) as caught:
        read_predictions(path, SAMPLES, [])
    said = str(caught.value)
    assert said.startswith(f"predictions {path}: ") and "\n" not in said
    assert "JSONDecodeError" not in said and "fetch" not in said


def test_lines_of_answers_by_any_other_name(tmp_path):
    for name in ("a.ndjson", "a.txt", "a"):
        write_lines(tmp_path / name, WRITTEN["llava.jsonl"])
        (system,) = read_predictions(tmp_path / name, SAMPLES, [], lambda: SAMPLES)
        assert system.answers == list(LABELS)


def test_another_ending_is_not_another_image(tmp_path):
    """a.png is an image of its own: its answer is not that of a.tif."""
    samples = [Sample(Path(f"a.{end}"), PROMPT, None) for end in ("tif", "png")]
    write_lines(tmp_path / "a.jsonl", [{"img": "a.png", "prompt": PROMPT, "answer": "x"}])
    with pytest.raises(UserError, match="1 of 2 images have no answer .* such as a.tif"):
        read_predictions(tmp_path / "a.jsonl", samples, [])


def test_answers_that_the_limit_ended_are_counted(tmp_path):
    lines = [entry | {"truncated": i < 2} for i, entry in enumerate(WRITTEN["png.jsonl"])]
    write_lines(tmp_path / "a.jsonl", lines)
    (system,) = read_predictions(tmp_path / "a.jsonl", SAMPLES, [])
    references = [[label] for label in LABELS]
    dataset = EvaluationSet(
        [sample.image for sample in SAMPLES], references, list(map(truth, references))
    )
    assert score([system], dataset, resamples=100).warnings == [
        "a: 2 of 3 answers were stopped by the length limit and end in mid-sentence; raise it "
        "(--max-new-tokens; --max_length of cli_demo.py)"
    ]


@pytest.mark.parametrize(
    "answers, told",
    [
        (["A roof.", "A farmland.", "A river."], True),
        (["A roof.", "一片农田。", "一条河流。"], False),
        (["", "", "A river."], False),
    ],
)
def test_answers_in_another_language_get_a_hint(answers, told):
    references = [[label] for label in LABELS]
    dataset = EvaluationSet([Path("a")] * 3, references, list(map(truth, references)))
    warnings = score([System("s", answers)], dataset, resamples=100).warnings
    hint = "s: 3 of 3 answers are English, the references Chinese"
    assert any(line.startswith(hint) for line in warnings) == told


def test_which_rows_ask_for_a_description():
    def ask(*pairs):
        return [Sample(Path("a"), question, answer) for question, answer in pairs]

    own = ask(("说说这图", "一条河流穿过森林。"), ("图里是啥样", "绿色的农田旁有道路。"))
    closed = ask(
        ("有船吗？", "没有，图中没有船。"), ("有几条船？", "图中有三条船。"), ("啥？", "船")
    )
    known = ask((PROMPT, "船"))
    assert asking_for_description(own + closed) == own
    assert asking_for_description(own + closed + known) == known
    assert asking_for_description(closed[:1]) == closed[:1]
    assert asking_for_description(own + closed, ["啥？"]) == closed[2:]
    assert asking_for_description(closed) == []


def test_existence_questions():
    truths = [
        AIRPORT,
        truth(["河流旁边有树木和汽车，没有房屋。"]),
        truth(["道路上有汽车，旁边有树木和房屋。"]),
    ]
    questions = existence_questions(truths, 2)
    assert set(questions) == set(SETTINGS)
    for asked in questions.values():
        assert asked == [row for row in asked if row[2] == (row[1] in truths[row[0]].facts.present)]
        assert Counter((index, there) for index, _, there, _ in asked) == {
            (index, there): 2 for index in range(3) for there in (True, False)
        }
        assert all(row[1] in truths[row[0]].facts.absent for row in asked if not row[2])
        assert [row[:2] for row in asked if row[2]] == [
            row[:2] for row in questions["random"] if row[2]
        ]  # the same in all
    assert questions == existence_questions(truths, 2) != existence_questions(truths, 2, seed=1)
    counts = Counter(name for known in truths for name in known.facts.present)
    for index, name, there, _ in questions["popular"]:
        if not there:
            others = [other for other in truths[index].facts.absent if counts[other] > counts[name]]
            assert len(others) < 2
    assert existence_questions(truths, 1, asked_in="en")["random"][0][3].startswith("Is there a ")


def test_existence_metrics():
    asked = [
        (0, "car", True, ""),
        (0, "tree", True, ""),
        (0, "boat", False, ""),
        (1, "sea", False, ""),
        (1, "car", True, ""),
    ]
    found = existence_metrics(asked, ["有", "没有", "有", "没有", "也许吧"], 2)
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {"accuracy": 40, "precision": 50, "recall": 100 / 3, "F1": 40, "yes": 40, "unparsable": 20}
    )


def test_baselines():
    captions = ["绿色的农田", "一条河流", "绿色的农田旁有道路", "绿色的农田和道路"]
    assert constant_caption(captions + ["一条河流"]) == "一条河流"
    assert constant_caption(captions) != "一条河流"  # none is commoner: one like the others
    many = [f"{what}旁有{n}" for n in range(120) for what in ("绿色的农田", "河流")]
    many += ["机场"] * 2  # 2 of 242 are too few
    assert constant_caption(many) != "机场" == constant_caption(many + ["机场"])
    images = [Image.new("RGB", (40, 40), color) for color in ("red", "green", "blue")]
    similar = [Image.new("RGB", (30, 50), color) for color in ((0, 20, 230), (5, 130, 20))]
    assert list(nearest(similar, images)) == [2, 1]
    assert leave_one_out([["a", "b", "c"], ["d", "e", "f"]]) == (
        ["a", "e"],
        [["b", "c"], ["d", "f"]],
    )


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory):
    from test_checkpoint import LORA, save_adapter

    folder = tmp_path_factory.mktemp("evaluated") / "a"
    save_adapter(folder, tiny_checkpoint, LORA)
    return folder


class TestScript:
    """evaluate_RemoteGLM.py as a user starts it."""

    @staticmethod
    def options(rows, output, *more):
        return [
            "--data",
            str(rows / "rows-val.json"),
            "--output",
            str(output),
            "--max_new_tokens",
            "20",
            "--batch-size",
            "2",
            "--device",
            "cpu",
            "--resamples",
            "100",
            *more,
        ]

    def test_run_and_resume(self, adapter, tiny_checkpoint, rows, tmp_path, capsys):
        """Answers of each system are those of its own network to that image; what is answered is
        not asked again."""
        predictions = tmp_path / "predictions.jsonl"
        argv = ["--from_pretrained", str(adapter), "--base", *self.options(rows, tmp_path)]
        metrics = script.main(argv)
        columns = metrics["columns"]
        lines = read_lines(predictions)
        described = [line for line in lines if "吗" not in line["prompt"]]
        # shuffled images are other rows' images: no lines of their own
        systems = [line["settings"]["system"] for line in described]
        assert systems == ["base"] * 4 + ["tuned"] * 4
        images = [Path(line["img"]).name for line in described]
        assert images == ["9.tif", "10.tif", "11.tif", "blank.png"] * 2

        sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=20)
        assistants = {
            "tuned": load_assistant(adapter, device="cpu"),
            "base": load_assistant(tiny_checkpoint, device="cpu"),
        }
        for line in lines:
            alone = assistants[line["settings"]["system"]].stream(
                line["prompt"], read_image(line["img"]), (), sampling
            )
            assert line["answer"] == "".join(alone)

        assert list(columns) == [
            "base",
            "base, blank images",
            "base, shuffled images",
            "tuned",
            "tuned, blank images",
            "tuned, shuffled images",
            "constant",
            "nearest",
        ]
        nearest_column = columns["nearest"]
        assert nearest_column["scene accuracy"]["value"] == nearest_column[COPIES]["value"] == 100
        assert "POPE F1, random" in columns["tuned"]
        assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
        assert "| scene accuracy " in capsys.readouterr().out
        assert "| BLEU-4, words " in (tmp_path / "table.md").read_text()

        argv_of_file = ["--predictions", str(predictions), *self.options(rows, tmp_path / "again")]
        from_file = script.main(argv_of_file)["columns"]
        for name in ("base", "tuned"):  # the same from the file alone
            assert from_file[f"predictions, {name}"] == columns[name]

        for line in lines:
            tuned = line["settings"]["system"] == "tuned"
            if tuned and line["img"] == described[4]["img"] and "吗" not in line["prompt"]:
                line["answer"] = "绿色的农田。"
        write_lines(predictions, lines[1:])
        with predictions.open("a", encoding="utf-8") as file:
            file.write('\n{"img": "torn')
        again = script.main(argv)["columns"]  # asks only for the missing line, believes the rest
        assert again["base"] == columns["base"] and again["tuned"] != columns["tuned"]
        assert len(read_lines(predictions)) == len(lines)

    def test_another_checkpoint_as_the_base(self, adapter, tiny_checkpoint, rows, tmp_path):
        fewer = ("--existence", "0", "--no-controls", "--limit", "2")
        metrics = script.main(
            [
                "--from_pretrained",
                str(tiny_checkpoint),
                "--base",
                str(adapter),
                *self.options(rows, tmp_path, *fewer),
            ]
        )
        assert metrics["pictures"] == 2 and list(metrics["columns"])[:2] == ["base (1)", "base (2)"]

    def test_a_base(self, tiny_checkpoint, rows, tmp_path, monkeypatch, capsys):
        """Its answers are not called tuned, and its folder is not written into."""
        before = sorted(tiny_checkpoint.iterdir())
        monkeypatch.setattr(script, "PROJECT", tmp_path)
        metrics = script.main(
            [
                "--from_pretrained",
                str(tiny_checkpoint),
                "--data",
                str(rows / "rows-val.json"),
                "--max_new_tokens",
                "5",
                "--device",
                "cpu",
                "--base",
                "--resamples",
                "100",
                "--existence",
                "1",
                "--english",
            ]
        )
        assert (
            "base" in metrics["columns"]
            and "tuned" not in metrics["columns"]
            and sorted(tiny_checkpoint.iterdir()) == before
        )
        asked = (tmp_path / "checkpoints/eval-base-rows-val/predictions.jsonl").read_text(
            encoding="utf-8"
        )
        assert "Is there a " in asked and "--base is left out" in capsys.readouterr().err

    def test_predictions_without_a_model(self, rows, tmp_path, capsys):
        """Two systems from files: one that looks, and one that says the same of everything."""
        labeled = json.loads((rows / "rows-val.json").read_text(encoding="utf-8"))
        looks, blind = [], []
        for row in labeled:
            asked = {"img": row["img"], "prompt": row["prompt"]}
            looks.append(asked | {"answer": row["label"]})
            blind.append(asked | {"answer": "绿色的农田。"})
        write_lines(tmp_path / "looks.jsonl", looks)
        write_lines(tmp_path / "blind.jsonl", blind)
        blind_file, looks_file = str(tmp_path / "blind.jsonl"), str(tmp_path / "looks.jsonl")
        options = ["--data", str(rows / "rows-val.json"), "--resamples", "100"]
        metrics = script.main(["--predictions", blind_file, looks_file, *options])
        again = script.main(["--predictions", looks_file, looks_file, *options])
        assert list(again["columns"])[:2] == ["looks (1)", "looks (2)"]

        own = tmp_path / "own"
        options += ["--train-data", str(rows / "rows-val.json")]
        options += ["--gallery", "1", "--output", str(own)]
        script.main(["--predictions", looks_file, *options])
        assert (own / "report.html").read_text(encoding="utf-8").count("<img ") == 1
        columns = json.loads((own / "metrics.json").read_text())["columns"]
        assert columns["looks"][COPIES]["value"] == 100

        assert metrics["columns"]["looks"]["chrF"]["value"] == 100
        assert metrics["columns"]["looks"]["CHAIR_s"]["value"] == 0
        assert metrics["columns"]["blind"]["distinct outputs"]["value"] == pytest.approx(100 / 3)
        assert "looks / blind" in metrics["p"]
        assert (tmp_path / "eval-rows-val/report.html").is_file()

    def test_own_phrasings_and_rows_that_nobody_named(self, rows, tmp_path, capsys):
        """The validation rows ask in own words; the training rows beside them cannot be read."""
        labeled = json.loads((rows / "rows-val.json").read_text(encoding="utf-8"))
        own, lines = [], []
        for number, row in enumerate(labeled):
            row |= {"img": str(rows / row["img"]), "prompt": f"说说第{number}图", "id": number}
            own.append(row)
            lines.append({"img": row["img"], "prompt": row["prompt"], "answer": row["label"]})
        (tmp_path / "my-val.json").write_text(json.dumps(own), encoding="utf-8")
        write_lines(tmp_path / "a.jsonl", lines)
        argv = ["--predictions", str(tmp_path / "a.jsonl"), "--resamples", "100"]
        argv += ["--data", str(tmp_path / "my-val.json")]
        moved = [{"img": "moved.tif", "prompt": PROMPT, "label": "一条河。"}]
        for broken in ("[{", json.dumps(moved), json.dumps(moved * 2)):
            (tmp_path / "my-train.json").write_text(broken)
            metrics = script.main(argv)
            assert metrics["pictures"] == 3 and metrics["columns"]["a"]["chrF"]["value"] == 100
            assert "constant" not in metrics["columns"]
            said = capsys.readouterr().out
            assert "no baselines of the training rows beside --data: " in said
            assert "not used: id (3 rows)" in said and "a: no image ablation" in said
            page = (tmp_path / "eval-my-val/report.html").read_text(encoding="utf-8")
            assert "no baselines" in page
        with pytest.raises(SystemExit, match="moved.tif"):
            script.main([*argv, "--train-data", str(tmp_path / "my-train.json")])

        picked = script.main([*argv, "--description-questions", "说说第0图", "说说第2图"])
        assert picked["pictures"] == 2
        assert "2 of 3 rows are taken as descriptions" in capsys.readouterr().out

    def test_the_report_is_written_before_it_is_printed(self, rows, tmp_path):
        """To a standard output that is closed, and in ASCII."""
        labeled = json.loads((rows / "rows-val.json").read_text(encoding="utf-8"))
        lines = [{"img": row["img"], "response": "河流😀"} for row in labeled]
        write_lines(tmp_path / "飞机.jsonl", lines)
        command = [sys.executable, PROJECT / "evaluate_RemoteGLM.py", "--resamples", "100"]
        command += ["--predictions", tmp_path / "飞机.jsonl", "--data", rows / "rows-val.json"]
        command += ["--output", tmp_path / "out"]
        ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
        run = {"env": os.environ | ascii_only, "stderr": subprocess.PIPE}
        done = subprocess.run([*command], stdout=subprocess.PIPE, **run)
        assert done.returncode == 0, done.stderr
        assert rb"\u98de\u673a" in done.stdout
        (tmp_path / "out/metrics.json").unlink()
        with open("/dev/full", "wb") as full:
            subprocess.run([*command], stdout=full, **run)
        assert (tmp_path / "out/metrics.json").is_file()

    def test_the_card_decides_the_language(self, adapter, rows, tmp_path):
        """A run trained with --english is asked in English; --chinese asks it in Chinese."""
        english = shutil.copytree(adapter, tmp_path / "english")
        card = json.loads((english / CARD).read_text())
        (english / CARD).write_text(json.dumps(card | {"english": True}))
        few = ("--existence", "1", "--no-controls", "--limit", "1")
        for option, expected in (([], True), (["--chinese"], False)):
            output = tmp_path / f"out{expected}"
            argv = ["--from_pretrained", str(english), *self.options(rows, output, *few), *option]
            assert script.main(argv)["settings"]["english"] == expected
            lines = read_lines(output / "predictions.jsonl")
            assert {line["settings"]["english"] for line in lines} == {expected}
            asked = [line for line in lines if line["prompt"].startswith("Is there")]
            assert bool(asked) == expected

    def test_references(self, rows, tmp_path):
        """English sentences only tell what is there, Chinese ones are references; --split
        chooses."""
        sentences = {
            "9.tif": ["A red roof beside a road .", "A road ."],
            "10.tif": ["绿色的农田。", "一片农田。"],
            "11.tif": ["A blue river .", "A boat ."],
        }
        answers = {"9.tif": "道路。", "10.tif": "绿色的农田。", "11.tif": "道路旁有船。"}
        images, lines = [], []
        for row in json.loads((rows / "rows-val.json").read_text(encoding="utf-8")):
            name = Path(row["img"]).name
            raw = [{"raw": text} for text in sentences[name]]
            split = "val" if name != "11.tif" else "test"
            images.append({"filename": name, "split": split, "sentences": raw})
            lines.append({"img": name, "prompt": PROMPT, "answer": answers[name]})
        (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
        write_lines(tmp_path / "a.jsonl", lines)

        argv = ["--predictions", str(tmp_path / "a.jsonl"), "--resamples", "100"]
        argv += ["--data", str(rows / "rows-val.json")]
        argv += ["--references", str(tmp_path / "dataset.json")]
        columns = script.main(argv)["columns"]
        # the road beside the boat
        assert columns["a"]["CHAIR_s"]["value"] == pytest.approx(100 / 3)
        assert "label" in columns and "CIDEr" not in columns["label"]
        assert script.main([*argv, "--split", "val"])["pictures"] == 2

    def test_an_image_lost_on_the_way(self, adapter, rows, tmp_path, monkeypatch):
        def lost(*_):
            raise UserError("image lost.tif: no such file")

        monkeypatch.setattr("model.batch.read_image", lost)
        words = "3 of 3 rows have no answer; the first: image lost.tif: no such file"
        with pytest.raises(SystemExit, match=words):
            script.main(["--from_pretrained", str(adapter), *self.options(rows, tmp_path)])

    @pytest.mark.parametrize(
        "argv, words",
        [
            (
                ["--from_pretrained", "nowhere", "--data", "VAL"],
                "checkpoint nowhere: no such folder",
            ),
            (["--from_pretrained", "CK", "--data", "no.json"], "rows no.json: no such file"),
            (
                ["--from_pretrained", "CK", "--data", "VAL", "--output", "/proc/x"],
                "--output /proc/x cannot be written",
            ),
            (
                ["--from_pretrained", "CK", "--data", "VAL", "--image-root", "/nowhere"],
                "3 of 3 wrong",
            ),
            (
                ["--predictions", "no.jsonl", "--data", "VAL"],
                "predictions no.jsonl: no such file",
            ),
            (["--predictions", "VAL", "--data", "VAL"], "line 1 is no "),
            (
                ["--predictions", "EMPTY", "--data", "VAL"],
                "no answers about images; expected lines of img, prompt and answer, "
                "got an empty file",
            ),
            (["--predictions", "COLUMNS", "--data", "VAL"], "got keys image, result"),
            (
                ["--predictions", "LIST", "--data", "VAL"],
                "line 1 is no .*expected an object, got list",
            ),
            (
                ["--predictions", "OTHER", "--data", "VAL"],
                "of other 3 of 3 images have no answer to the question of their row, "
                "such as 9.tif: 这张",
            ),
            (
                ["--predictions", "NUMBER", "--data", "VAL"],
                "line 1 is no .*answer must be a text, got 5",
            ),
            (["--predictions", "TWICE", "--data", "VAL"], "several answers about .*9.tif"),
            (
                ["--predictions", "OTHER", "--data", "MIXED"],
                "must be all Chinese or all English; 1 of 2 are not like the others, "
                "such as 1.tif: A car.",
            ),
            (
                [
                    "--predictions",
                    "OTHER",
                    "--data",
                    "VAL",
                    "--references",
                    "SETS",
                    "--split",
                    "train",
                ],
                "none of the 3 images of .* belongs to it; they belong to val",
            ),
            (["--from_pretrained", "CK", "--data", "VAL", "--references", "no.json"], "no.json"),
            (["--from_pretrained", "CK", "--data", "ASKED"], "none asks for a description"),
        ],
    )
    def test_user_errors(self, adapter, rows, tmp_path, argv, words):
        asked = [
            {"img": str(rows / "images/0.tif"), "prompt": question, "label": "有。"}
            for question in ("有船吗？", "有车吗？")
        ]
        (tmp_path / "asked.json").write_text(json.dumps(asked))
        (tmp_path / "empty").touch()
        (tmp_path / "columns").write_text('{"image": "a.tif", "result": "有车。"}')
        (tmp_path / "list").write_text("[]")
        (tmp_path / "number").write_text('{"img": "a.tif", "prompt": "有什么？", "answer": 5}')
        (tmp_path / "other").write_text(
            '{"img": "a.tif", "prompt": "有什么？", "answer": "有车。"}'
        )
        twice = [{"img": f"{folder}/9.tif", "prompt": PROMPT, "answer": folder} for folder in "ab"]
        write_lines(tmp_path / "twice", twice)
        mixed = [
            {"img": str(rows / f"images/{i}.tif"), "prompt": "?", "label": label}
            for i, label in enumerate(("一辆车。", "A car."))
        ]
        (tmp_path / "mixed.json").write_text(json.dumps(mixed))
        images = []
        for i in range(12):
            split = "val" if i > 8 else "train"
            sentences = [{"raw": "a car"}]
            images.append({"filename": f"images\\{i}.tif", "split": split, "sentences": sentences})
        (tmp_path / "sets.json").write_text(json.dumps({"images": images}))
        names = {
            "VAL": str(rows / "rows-val.json"),
            "CK": str(adapter),
            "EMPTY": str(tmp_path / "empty"),
            "COLUMNS": str(tmp_path / "columns"),
            "LIST": str(tmp_path / "list"),
            "OTHER": str(tmp_path / "other"),
            "NUMBER": str(tmp_path / "number"),
            "TWICE": str(tmp_path / "twice"),
            "MIXED": str(tmp_path / "mixed.json"),
            "SETS": str(tmp_path / "sets.json"),
            "ASKED": str(tmp_path / "asked.json"),
        }
        with pytest.raises(SystemExit, match=words) as caught:
            script.main([names.get(word, word) for word in argv])
        assert "\n" not in caught.value.code
        # nothing is written before the files are known to be right
        assert not list(tmp_path.glob("eval-*"))

    @pytest.mark.parametrize(
        "entry, words",
        [
            ({"answer": "\ud800飞机"}, "UnicodeEncodeError"),
            ({"answer": "车", "settings": [1]}, r"settings must be an object, got \[1\]"),
            ({"answer": "车", "settings": "a"}, "settings must be an object, got 'a'"),
        ],
    )
    def test_answers_that_no_report_could_hold(self, rows, tmp_path, entry, words):
        (tmp_path / "a.jsonl").write_text(json.dumps({"img": "9.tif", "prompt": PROMPT} | entry))
        with pytest.raises(SystemExit, match=f"line 1 is no .*{words}"):
            script.main(
                ["--predictions", str(tmp_path / "a.jsonl"), "--data", str(rows / "rows-val.json")]
            )

    @pytest.mark.parametrize(
        "argv, words",
        [
            ([], "give either"),
            (["--from_pretrained", "a", "--predictions", "b"], "give either"),
            (["--predictions", "b", "--base"], "--base goes with"),
            (["--from_pretrained", "a", "--split", "val"], "--split needs"),
            (["--from_pretrained", "a", "--batch-size", "0"], "must be at least 1"),
        ],
    )
    def test_wrong_options(self, argv, words, capsys):
        with pytest.raises(SystemExit):
            script.main(["--data", "rows.json", *argv])
        assert words in capsys.readouterr().err

    def test_all_wrong_options_are_named_in_one_line(self, capsys):
        with pytest.raises(SystemExit):
            script.main(["--data", "a.json", "--split", "val", "--resamples", "5"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for words in ("give either", "--split needs", "--resamples 5: must be at least 100"):
            assert words in error

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "evaluation.score", None)
        with pytest.raises(ModuleNotFoundError, match="evaluation.score"):
            script.main(["--data", "rows.json", "--predictions", "a.jsonl"])

    def test_help_does_not_load_torch(self):
        code = (
            "import sys, evaluate_RemoteGLM\n"
            "try: evaluate_RemoteGLM.main(['--help'])\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
        assert "--predictions" in result.stdout


def test_a_captioner_that_ignores_the_image_is_called_out(tmp_path):
    """And one that looks is not. Image ablations of both are made by hand."""
    references = [
        [f"{what}旁有{other}。"]
        for what in ("农田", "机场", "港口", "住宅区")
        for other in ("道路", "树木", "汽车", "房屋", "池塘")
    ]
    rng = random.Random(0)
    order = [(i + 7) % len(references) for i in range(len(references))]
    images = [Path(f"{i}.png") for i in range(len(references))]
    truths = [truth(texts) for texts in references]
    dataset = EvaluationSet(
        images, references, truths, read_image=lambda path: Image.new("RGB", (8, 8))
    )
    looks = [texts[0] for texts in references]
    blind = [rng.choice(["农田旁有道路。", "住宅区旁有树木。"]) for _ in references]
    shuffled = {"looks": [looks[i] for i in order], "blind": rng.sample(blind, len(blind))}
    systems = [
        System(name, answers, {SHUFFLED_IMAGES: shuffled[name]})
        for name, answers in (("blind", blind), ("looks", looks))
    ]
    scores = score(systems, dataset, resamples=200)
    metrics = write_report(scores, tmp_path)
    assert len(metrics["warnings"]) == 1
    assert metrics["warnings"][0].startswith("nothing shows that blind looks at the image")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert metrics["warnings"][0].split(":")[0] in page
    assert page.count("<img ") == len(images) and "src='http" not in page
    assert page.index("0.png")
    harbour = metrics["scenes"]["Scene named rightly: looks"]["harbour"]
    assert harbour == {"share": 100, "pictures": 5}
    wrong_first = worst_first(scores, "blind")
    assert scene_right(blind[wrong_first[0]], truths[wrong_first[0]]) is False


@pytest.mark.parametrize(
    "answers, warning",
    (
        (
            ["", "。", "机场"],
            "silent: 2 of 3 answers are empty, which counts as nothing hallucinated",
        ),
        (["机场", "机场", "港口"], None),
        (["机场"] * 3, "silent: says the same of all 3 images"),
    ),
)
def test_empty_and_constant_answers_are_called_out(answers, warning):
    references = [["机场。"], ["港口。"], ["农田。"]]
    dataset = EvaluationSet([Path("a")] * 3, references, list(map(truth, references)))
    scores = score([System("silent", answers)], dataset)
    assert scores.warnings == ([warning] if warning else [])


def test_lexicon_names_each_scene_of_the_demo():
    from data.synthetic import demo_scenes

    scenes = [
        truth([getattr(demo_scenes.SCENES[key], "zh", None) or demo_scenes.SCENES[key][1]]).scene
        for key in demo_scenes.SCENES
    ]
    assert len(set(scenes)) == 12 and None not in scenes


def test_a_system_never_takes_the_name_of_a_baseline():
    """`nearest.jsonl` would otherwise disappear behind the baseline's column."""
    systems = [System("nearest", ["a"]), System("tuned", ["b"])]
    number_equal_names(systems)
    assert [system.name for system in systems] == ["nearest (1)", "tuned"]
