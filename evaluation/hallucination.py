"""Does an answer name what is there? Scenes, CHAIR and POPE's yes / no questions, by the lexicon.

Sources: CHAIR, Rohrbach et al. 2018, Object Hallucination in Image Captioning; POPE, Li et al.
2023, Evaluating Object Hallucination in Large Vision-Language Models. A scene word (住宅区) counts
as a scene, not as an object, unless the lexicon of data/ lists it as both (网球场).
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.instructions import QUESTIONS, Facts, Statistics, absent_objects, facts, kin, word
from data.lexicon import closure, find, first_scenes, language, named

from .metrics import Metric, divide, mean_of, ratio_of, tokens

SETTINGS = ("random", "popular", "adversarial")
ASK = {"zh": QUESTIONS["existence"][0], "en": "Is there a {name} in the image?"}

# What an answer that does not name the object says. The first match decides, of several at one
# place the longest; an echo of the question decides nothing.
ECHO = r"有没有|是不是|是否|有无|能否"
UNKNOWN = (
    r"无法(?:判断|确定|确认|回答|得知|识别|分辨)|不清楚|不确定|不知道|难以|"
    r"cannot (?:tell|determine|say)|can't (?:tell|determine|say)|not sure|unclear"
)
NO = (
    r"没有|没(?!错)|无(?!法|疑)|无法看|不[是对能含见]|不可[以能见]|不太可能|不存在|不包含|"
    r"未[见发看显出]|看不|并非|否|^不|"
    r"\bno\b|\bnot\b|\bcannot\b|n't\b|\bnone\b"
)
YES = (
    r"有|^是|是的|没错|毫无疑问|存在|包含|看得[到见]|对|^能|^可以|"
    r"\byes\b|\bthere (?:is|are)\b"
)
REPLY = re.compile(
    f"(?P<echo>{ECHO})|(?P<unknown>{UNKNOWN})|(?P<no>{NO})|(?P<yes>{YES})", re.IGNORECASE
)
# An answer may begin by repeating the question
QUESTION = re.compile(r"[^。！；，,.;!?？]*[?？]")


@dataclass(frozen=True)
class Truth:
    """What the references of an image say."""

    scene: str | None  # by its name in the lexicon, as is all that follows
    granted: frozenset  # objects and scenes that any reference names, and what they imply
    facts: Facts  # objects that are there by agreement, and that are not


class NamedObject(NamedTuple):
    """An object that a text says is there."""

    name: str
    start: int  # text[start:end] is the word for it
    end: int
    right: bool  # a reference names it, too


class ExistenceQuestion(NamedTuple):
    """POPE: is there such an object in the image?"""

    image: int  # its index
    name: str  # of the object
    present: bool
    question: str


def truth(references: Sequence[str]) -> Truth:
    """Truth of an image from its references, Chinese or English; the first is its description."""
    mentions = [find(text, language(text)) for text in references]
    votes: dict[str, int] = defaultdict(int)
    for of_text in mentions:
        for scene in named(of_text, "scene"):
            votes[scene] += 1
    first = first_scenes(references[0])
    scene = max(votes, key=lambda name: (votes[name], name in first), default=None)

    granted = closure(mention for of_text in mentions for mention in of_text)
    return Truth(scene, frozenset(granted), facts(references[0], references[1:]))


def scene_right(text: str, image_truth: Truth) -> bool | None:
    """Does the text name the right scene first? None where the references name none.

    A kind of it counts: 移动房屋公园 (a mobile home park) is a 住宅区 (residential area).
    """
    if image_truth.scene is None:
        return None
    return any(image_truth.scene in kin("scene", name) for name in first_scenes(text))


def objects_of(text: str, image_truth: Truth) -> list[NamedObject]:
    """The objects that an answer says are there, each once.

    A word of several meanings (码头: pier or harbour) is right if any of them is.
    """
    meanings = defaultdict(list)  # of the word that begins at a place
    for mention in find(text, language(text)):
        if not mention.negated:
            meanings[mention.start].append(mention)

    objects: dict[str, NamedObject] = {}
    for start, mentions in meanings.items():
        names = [mention.name for mention in mentions if mention.kind == "object"]
        if not names:
            continue
        right = {mention.name for mention in mentions} & image_truth.granted
        name = next((name for name in names if name in right), names[0])
        objects.setdefault(name, NamedObject(name, start, mentions[0].end, bool(right)))
    return list(objects.values())


def hallucinated(text: str, image_truth: Truth) -> list[NamedObject]:
    """The objects that an answer says are there and that no reference names."""
    return [found for found in objects_of(text, image_truth) if not found.right]


def hallucination_metrics(answers: Sequence[str], truths: Sequence[Truth]) -> dict[str, Metric]:
    """{name: Metric} of texts, one an image: scenes, CHAIR, and what must stand beside it.

    An empty answer has CHAIR 0: look at object recall and at the number of objects, too.
    """
    scenes, wrong, mentioned, recalled, present, lengths = [], [], [], [], [], []
    for text, image_truth in zip(answers, truths):
        objects = objects_of(text, image_truth)
        implied = set()
        for found in objects:
            implied |= kin("object", found.name)

        scenes.append(scene_right(text, image_truth))
        wrong.append(sum(not found.right for found in objects))
        mentioned.append(len(objects))
        recalled.append(sum(name in implied for name in image_truth.facts.present))
        present.append(len(image_truth.facts.present))
        lengths.append(len(tokens(text)))

    return {
        "scene accuracy": percent(mean_of(scenes)),
        "CHAIR_i": percent(ratio_of(wrong, mentioned, better=-1)),
        "CHAIR_s": percent(mean_of((count > 0 for count in wrong), better=-1)),
        "object recall": percent(ratio_of(recalled, present)),
        "objects per caption": mean_of(mentioned, better=0),
        "length": mean_of(lengths, better=0),
    }


def percent(metric: Metric) -> Metric:
    return Metric(metric.stats, lambda sums: 100 * metric.formula(sums), metric.better)


def existence_questions(
    truths: Sequence[Truth], pairs: int, seed: int = 0, asked_in: str = "zh"
) -> dict[str, list[ExistenceQuestion]]:
    """{setting: questions}, for each image up to `pairs` of each kind.

    As many ask about objects that are there, the same in all settings, as about negatives: random,
    popular (the commonest in this set), adversarial (those that most often accompany what is
    there).
    """
    statistics = Statistics()
    for image_truth in truths:
        statistics.add(image_truth.facts.present)

    questions: dict[str, list[ExistenceQuestion]] = {setting: [] for setting in SETTINGS}
    for index, image_truth in enumerate(truths):
        known = image_truth.facts
        number = min(pairs, len(known.present), len(known.absent))
        positives = random.Random(f"{seed} {index}").sample(known.present, number)
        for setting in SETTINGS:
            rng = random.Random(f"{seed} {index} {setting}")
            negatives = absent_objects(known, statistics, rng, number, setting)
            for name in (*positives, *negatives):
                shown = word(name) if asked_in == "zh" else name
                question = ASK[asked_in].format(name=shown)
                questions[setting].append(
                    ExistenceQuestion(index, name, name in positives, question)
                )
    return questions


def yes_or_no(answer: str, name: str) -> bool | None:
    """Does the answer say that the object is there? None where it says neither yes nor no.

    What it says of the object itself decides (图中有房屋，但没有飞机: houses, but no airplane),
    then the first word that means yes or no.
    """
    reply = QUESTION.sub("", answer)
    kinds = [match.lastgroup for match in REPLY.finditer(reply.strip())]
    if "unknown" in kinds:
        return None

    mentions = []
    for mention in find(reply, language(reply)):
        if mention.kind == "object" and name in kin("object", mention.name):
            mentions.append(mention)
    if mentions:
        return not all(mention.negated for mention in mentions)

    for kind in kinds:
        if kind != "echo":
            return kind == "yes"
    return None


# Columns of the counts behind the metrics of POPE: object present or not, answer yes, no or neither
PRESENT_YES, PRESENT_NO, PRESENT_OTHER, ABSENT_YES, ABSENT_NO, ABSENT_OTHER = range(6)


def existence_metrics(
    questions: Sequence[ExistenceQuestion], answers: Iterable[str], images: int
) -> dict[str, Metric]:
    """{name: Metric} of one setting. answers: texts, one a question; images: how many there are."""
    counts = np.zeros((images, 6))
    for (image, name, present, _), answer in zip(questions, answers):
        meaning = yes_or_no(answer, name)
        column = PRESENT_YES if present else ABSENT_YES
        if meaning is None:
            column += 2
        elif not meaning:
            column += 1
        counts[image, column] += 1

    def share(part, whole):
        """Formula: 100 * the sum of some columns by that of others."""
        return lambda sums: (
            100 * divide(np.stack([sums[..., part].sum(-1), sums[..., whole].sum(-1)], -1))
        )

    def f1(sums):
        hits = 2 * sums[..., PRESENT_YES]
        misses = sums[..., [PRESENT_NO, PRESENT_OTHER, ABSENT_YES]].sum(-1)
        return 100 * divide(np.stack([hits, hits + misses], -1))

    every = list(range(6))
    answered_yes = [PRESENT_YES, ABSENT_YES]
    asked_present = [PRESENT_YES, PRESENT_NO, PRESENT_OTHER]
    return {
        "accuracy": Metric(counts, share([PRESENT_YES, ABSENT_NO], every)),
        "precision": Metric(counts, share([PRESENT_YES], answered_yes)),
        "recall": Metric(counts, share([PRESENT_YES], asked_present)),
        "F1": Metric(counts, f1),
        "yes": Metric(counts, share(answered_yes, every), better=0),
        "unparsable": Metric(counts, share([PRESENT_OTHER, ABSENT_OTHER], every), better=-1),
    }
