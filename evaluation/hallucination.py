"""Does an answer name what is there? Scenes, CHAIR and POPE's yes / no questions, by the lexicon of data/.

Sources: CHAIR, Rohrbach et al. 2018, Object Hallucination in Image Captioning; POPE, Li et al. 2023, Evaluating Object
Hallucination in Large Vision-Language Models. A scene word (住宅区) counts as a scene, not as an object, unless the lexicon
lists it as both (网球场).
"""

import random
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from data.instructions import QUESTIONS, Facts, Statistics, absent_objects, facts, kin, word
from data.lexicon import closure, find, language, named

from .metrics import Measure, divide, mean_of, ratio_of, tokens

SETTINGS = ("random", "popular", "adversarial")
ASK = {"zh": QUESTIONS["existence"][0], "en": "Is there a {name} in the image?"}
# What an answer that does not name the object says; the first that is found decides, of several at one place the longest
ECHO = r"有没有|是不是|是否|有无|能否"  # of the question
UNKNOWN = r"无法(?:判断|确定|确认|回答|得知|识别|分辨)|不清楚|不确定|不知道|难以|cannot (?:tell|determine|say)|can't (?:tell|determine|say)|not sure|unclear"
NO = (
    r"没有|没(?!错)|无(?!法|疑)|无法看|不[是对能含见]|不可[以能见]|不太可能|不存在|不包含|未[见发看显出]|看不|并非|否|^不|"
    r"\bno\b|\bnot\b|\bcannot\b|n't\b|\bnone\b"
)
YES = r"有|^是|是的|没错|毫无疑问|存在|包含|看得[到见]|对|^能|^可以|\byes\b|\bthere (?:is|are)\b"
REPLY = re.compile(
    "|".join(
        f"(?P<{name}>{words})"
        for name, words in (("echo", ECHO), ("unknown", UNKNOWN), ("no", NO), ("yes", YES))
    ),
    re.I,
)
# Between two scene words: the one before is an attribute of the other
MODIFIER = re.compile(r"[^，。；、！？和与及或是有]*的[^，。；、！？和与及或是有]*")
QUESTION = re.compile(r"[^。！；，,.;!?？]*[?？]")  # an answer may begin by saying it again


@dataclass(frozen=True)
class Truth:
    """What the references of a picture say."""

    scene: str | None  # by its name in the lexicon, as is all that follows
    granted: frozenset  # objects and scenes that any reference names, and what they imply
    facts: Facts  # objects that are there by agreement, and that are not


def truth(references):
    """Truth of one picture from its references, Chinese or English; the first is its description."""
    mentions = [find(text, language(text)) for text in references]
    found = facts(references[0], references[1:])
    votes = defaultdict(int)
    for text in mentions:
        for scene in named(text, "scene"):
            votes[scene] += 1
    first = first_scenes(references[0])
    scene = max(votes, key=lambda name: (votes[name], name in first), default=None)
    return Truth(scene, frozenset(closure(mention for text in mentions for mention in text)), found)


def first_scenes(text):
    """The scenes that the first scene word of a text means; empty if it names none. Of 穿过森林的河流 that is the river."""
    scenes = [
        mention
        for mention in find(text, language(text))
        if mention.kind == "scene" and not mention.negated
    ]
    first = scenes[:1]
    for scene in scenes[1:]:
        if MODIFIER.fullmatch(text, first[0].end, max(scene.start, first[0].end)):
            first = [scene]
    return {mention.name for mention in scenes if mention.start == first[0].start}


def scene_right(text, known):
    """Does the text name the right scene first? A kind of it counts (移动房屋公园 is a 住宅区). None where the references name none."""
    return known.scene and any(known.scene in kin("scene", name) for name in first_scenes(text))


def objects_of(text, known):
    """[(object, start, end, right), ...]: the objects an answer says are there, each once, and whether a reference grants it.

    A word of several meanings (码头: pier or harbour) is right if any of them is.
    """
    words = defaultdict(list)
    for mention in find(text, language(text)):
        if not mention.negated:
            words[mention.start].append(mention)
    found = {}
    for start, meanings in words.items():
        names = [mention.name for mention in meanings if mention.kind == "object"]
        if names:
            right = [mention.name for mention in meanings if mention.name in known.granted]
            found.setdefault(
                next((name for name in names if name in right), names[0]),
                (start, meanings[0].end, bool(right)),
            )
    return [(name, *place) for name, place in found.items()]


def hallucination_measures(answers, truths):
    """{name: Measure} of texts, one an image: scenes, CHAIR, and what must stand beside it (an empty answer has CHAIR 0)."""
    named_objects = [objects_of(text, known) for text, known in zip(answers, truths)]
    wrong = np.array([sum(not right for *_, right in found) for found in named_objects])
    mentioned = np.array([len(found) for found in named_objects])
    told = [set().union(*(kin("object", name) for name, *_ in found)) for found in named_objects]
    recalled = [
        sum(name in said for name in known.facts.present) for said, known in zip(told, truths)
    ]
    return {
        "scene accuracy": percent(
            mean_of([scene_right(text, known) for text, known in zip(answers, truths)])
        ),
        "CHAIR_i": percent(ratio_of(wrong, mentioned, better=-1)),
        "CHAIR_s": percent(mean_of(wrong > 0, better=-1)),
        "object recall": percent(
            ratio_of(recalled, [len(known.facts.present) for known in truths])
        ),
        "objects per caption": mean_of(mentioned, better=0),
        "length": mean_of([len(tokens(text)) for text in answers], better=0),
    }


def percent(measure):
    return Measure(measure.stats, lambda sums: 100 * measure.formula(sums), measure.better)


def existence_questions(truths, pairs, seed=0, asked_in="zh"):
    """{setting: [(index of the image, object, whether it is there, question), ...]}

    For each image up to `pairs` objects that are there, the same in all settings, and as many that are not: any, those
    commonest in this set, or those that most often accompany what is there.
    """
    statistics, questions = Statistics(), {setting: [] for setting in SETTINGS}
    for known in truths:
        statistics.add(known.facts.present)
    for index, known in enumerate(truths):
        number = min(pairs, len(known.facts.present), len(known.facts.absent))
        there = random.Random(f"{seed} {index}").sample(known.facts.present, number)
        for setting in SETTINGS:
            absent = absent_objects(
                known.facts, statistics, random.Random(f"{seed} {index} {setting}"), number, setting
            )
            questions[setting] += [
                (
                    index,
                    name,
                    name in there,
                    ASK[asked_in].format(name=word(name) if asked_in == "zh" else name),
                )
                for name in (*there, *absent)
            ]
    return questions


def yes_or_no(answer, name):
    """Does the answer say that the object is there? True, False, or None where it says neither.

    What it says of the object itself decides (图中有房屋，但没有飞机), then the first word that means yes or no.
    """
    said = QUESTION.sub("", answer)
    replies = [
        match.lastgroup for match in REPLY.finditer(said.strip()) if match.lastgroup != "echo"
    ]
    if "unknown" in replies:
        return None
    mentions = [
        mention
        for mention in find(said, language(said))
        if mention.kind == "object" and name in kin("object", mention.name)
    ]
    if mentions:
        return not all(mention.negated for mention in mentions)
    return {"yes": True, "no": False}[replies[0]] if replies else None


def existence_measures(questions, answers, images):
    """{name: Measure} of one setting. questions: as above; answers: their texts; images: how many there are."""
    rows = np.zeros((images, 6))  # there: yes, no, neither; not there: yes, no, neither
    for (index, name, there, _), answer in zip(questions, answers):
        rows[index, 3 * (not there) + {True: 0, False: 1, None: 2}[yes_or_no(answer, name)]] += 1

    def share(part, whole):
        return lambda sums: (
            100 * divide(np.stack([sums[..., part].sum(-1), sums[..., whole].sum(-1)], -1))
        )

    everything, precision, recall = list(range(6)), share([0], [0, 3]), share([0], [0, 1, 2])

    def f1(sums):
        return 100 * divide(
            np.stack([2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1:4].sum(-1)], -1)
        )

    return {
        "accuracy": Measure(rows, share([0, 4], everything)),
        "precision": Measure(rows, precision),
        "recall": Measure(rows, recall),
        "F1": Measure(rows, f1),
        "yes": Measure(rows, share([0, 3], everything), 0),
        "unparsable": Measure(rows, share([2, 5], everything), -1),
    }
