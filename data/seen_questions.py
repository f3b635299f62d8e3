"""Questions about an image that a vision-language model writes: parsing and checking.

A pair is a sentence that ends in ？ and the sentences up to the next such one. Of an answer the
pairs that pass are kept; where none does, it is rejected.
"""

import re

from data import lexicon, quality
from data.conversation import turns_of
from data.instructions import kin

FORM = (
    "写四组，每组一行：先写一个问句，以“？”结尾，紧接着写回答，以“。”结尾；"
    "不要编号、标签和其他文字。用中文。"
)
TASK = "你是遥感影像解译专家。用户给出一幅遥感图像和若干句英文描述。"
# {style: instruction}
INSTRUCTIONS = {
    "questions": (
        f"{TASK}请写出关于这幅图像的问答，问场景、地物、数量、颜色或位置。"
        f"问和答都只能涉及图像中看得到的内容，与英文描述不符的不要写。{FORM}"
    ),
    "absent": (
        f"{TASK}请写出关于图像中没有的东西的问答：每个问句问一种图像中没有、"
        f"别的遥感图像中常见的地物是否存在，回答以“没有”开头，可以再说图像中实际有什么。{FORM}"
    ),
}
COMPLAINTS = quality.COMPLAINTS | {
    "form": "应为一问一答，问句以问号结尾",
    "present": "问的东西可能就在图像里，或者没有问到具体的地物",
    "denial": "回答应以“没有”开头",
}
DENIAL = re.compile("没有|没|无|不|否")


def pairs_of(text):
    """[(question, answer), ...] of an answer; what belongs to no question is left out."""
    pairs, question, answer = [], None, []
    for sentence in [*quality.SENTENCE.findall(text), "？"]:
        if sentence.rstrip("”’」』").endswith(("？", "?")):
            if question and answer:
                pairs.append((question, "".join(answer)))
            question, answer = sentence.strip(), []
        else:
            answer.append(sentence.strip())
    return pairs


def problems(text, source, style):
    """What is wrong with an answer of which no pair passes: [(reason, words), ...]; else []."""
    pairs = pairs_of(text)
    found = [_pair_problems(*pair, source, style) for pair in pairs]
    if not pairs:
        return [("form", text[:40])]
    if not all(found):
        return []
    return list(dict.fromkeys(problem for of_pair in found for problem in of_pair))


def record(about, text, source, style):
    """{"imged_id", "conversations", "split" where `about` has one} of the pairs that pass."""
    pairs = [pair for pair in pairs_of(text) if not _pair_problems(*pair, source, style)]
    made = {"imged_id": about["imged_id"], "conversations": turns_of(pairs)}
    return made | {key: about[key] for key in ("split",) if key in about}


def _pair_problems(question, answer, source, style):
    if style == "absent":
        return _absent_problems(question, answer, source)
    found = quality.problems(question + answer, source, INSTRUCTIONS[style])
    return [problem for problem in found if problem[0] != "length"]


def _absent_problems(question, answer, source):
    """Asked is about an object that nobody mentions, nor anything akin to it; it is denied."""
    asked = lexicon.named(lexicon.find(question, "zh"), "object")
    present = lexicon.closure(lexicon.find(source, "en"))
    there = [name for name in sorted(asked) if present & kin("object", name)]
    if not asked or there:
        return [("present", " ".join(there) or question)]
    if not DENIAL.match(answer):
        return [("denial", answer)]
    found = quality.problems(answer, source, INSTRUCTIONS["absent"])
    return [problem for problem in found if problem[0] != "length"]
