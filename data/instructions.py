"""Questions and answers about a picture, from its captions and the lexicon alone: no LLM, nothing that captions do not say.

facts() reads the captions, dialogues() asks about them. What a picture is asked hangs on the seed and its file name, not on
the order of the input. existence_questions() also makes the yes / no questions of POPE (Li et al. 2023, Evaluating Object
Hallucination in Large Vision-Language Models): half about objects that are there, half about objects that are not.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

from data.lexicon import SOME, Mention, closure, find, language, load, named

NEGATIVES = ("balanced", "random", "popular", "adversarial")
COUNTED = "架个艘座辆台列把栋棵条"  # counters of what can be counted; 片 and 丛 are areas
GENERAL = (
    "building",
    "plant",
    "water",
)  # need not be listed beside what is one or has one: 房屋, not 房屋和建筑物
MOST = 20  # greater numbers are estimates

QUESTIONS = {
    "description": [
        "这张遥感图像展现了什么场景？",
        "请描述这张遥感图像。",
        "请用中文描述图中的内容。",
        "这幅航拍图像里有什么？请详细说明。",
        "请介绍一下这张图像所展示的地面情况。",
        "从这张遥感图像中可以看到什么？",
        "请为这张遥感图像写一段说明。",
        "描述图中的主要地物及其分布。",
    ],
    "scene": [
        "这张遥感图像属于哪一类场景？",
        "图中是什么类型的区域？请简短回答。",
        "请判断这张图像的场景类别。",
        "用一个词说出这张图像的场景。",
        "这是哪一种场景？只需说出名称。",
    ],
    "objects": [
        "图中有哪些地物？",
        "请列出图中能看到的主要地物。",
        "这张遥感图像里包含哪些物体？",
        "说出图中出现的地物名称。",
        "这张图像里可以辨认出什么？",
    ],
    "existence": [
        "图中有{name}吗？",
        "图中有没有{name}？",
        "这张遥感图像里能看到{name}吗？",
        "图像中是否有{name}？",
        "图中有没有{name}？请只回答“有”或“没有”。",
    ],
    "counting": [
        "图中有几{counter}{name}？",
        "图中一共有多少{counter}{name}？",
        "请数一数图中的{name}，有几{counter}？",
        "图像里能看到几{counter}{name}？",
    ],
}
TASKS = (*QUESTIONS, "dialogue")


@dataclass(frozen=True)
class Facts:
    """What the captions of a picture say; objects and scenes by their names in the lexicon."""

    caption: str  # the Chinese description
    scene: str | None  # where the captions agree on one
    present: tuple  # objects that are there
    absent: tuple  # objects that are not: denied, or neither named nor akin to what is named nor likely in such a scene
    counts: dict  # {object: number} where all that count it agree


@cache
def kin(kind, name):
    """An object or scene with all that it implies: {forest, tree, plant}."""
    return closure([Mention(kind, name, 0, 0)])


def agreed_scene(chinese, english):
    """The scene that more sentences name than any other, two of them or one and the description; of the description alone, the only one."""
    votes = Counter(
        scene for mentions in english or [chinese] for scene in named(mentions, "scene")
    )
    best = votes.most_common(2)
    if (
        not best
        or len(best) > 1
        and best[0][1] == best[1][1]
        or best[0][1] < 2
        and best[0][0] not in closure(chinese)
    ):
        return None
    return best[0][0]


def agreed_counts(texts, english):
    """{object: number} where every text that says how many says the same number, two of them where there are sentences."""
    said = defaultdict(list)
    for mentions in texts:
        for name in named(mentions):
            numbers = [
                mention.count
                for mention in mentions
                if mention.name == name and mention.kind == "object"
            ]
            if any(number is not None for number in numbers):
                said[name].append(
                    numbers[0] if len(numbers) == 1 else SOME
                )  # "a plane and two planes": not to be relied on
    return {
        name: numbers[0]
        for name, numbers in said.items()
        if len(set(numbers)) == 1
        and len(numbers) >= (2 if english else 1)
        and numbers[0] in range(1, MOST + 1)
        and load()["objects"][name].get("counter") in tuple(COUNTED)
    }


def facts(caption, sentences=()):
    """Facts of a picture from its description and, where they are known, further sentences; Chinese or English, each by itself.

    Where there are sentences an object is there if two of them name it, or one and the description; and nothing is absent
    that any text names. Without them the description alone is believed.
    """
    objects = load()["objects"]
    chinese, *english = texts = [find(text, language(text)) for text in (caption, *sentences)]
    votes = Counter(name for mentions in english for name in named(mentions))
    if english:
        present = {name for name, count in votes.items() if count > 1 or name in closure(chinese)}
    else:
        present = named(chinese)
    denied = {
        mention.name
        for mentions in texts
        for mention in mentions
        if mention.kind == "object" and mention.negated
    }
    present -= denied | set(load()["unasked"])
    everything = [mention for mentions in texts for mention in mentions if not mention.negated]
    granted, scenes = (
        closure(everything),
        {mention.name for mention in everything if mention.kind == "scene"},
    )
    # a scene or object whose usual surroundings nobody mentions: a car in a residential area
    likely = {
        name
        for key in (scenes or {"unknown"}) | named(everything)
        for name in load()["likely"].get(key, ())
    }
    absent = [
        name
        for name in objects
        if name not in load()["unasked"]
        and (
            name not in granted if name in denied else not (granted | likely) & kin("object", name)
        )
    ]
    first = {mention.name: mention.start for mention in reversed(chinese)}
    present = sorted(present, key=lambda name: (first.get(name, len(caption)), name))
    counts = {
        name: count for name, count in agreed_counts(texts, english).items() if name in present
    }
    return Facts(caption, agreed_scene(chinese, english), tuple(present), tuple(absent), counts)


class Statistics:
    """How often objects are there, alone and together, in a whole set: what popular and adversarial negatives need."""

    def __init__(self):
        self.count, self.together = Counter(), defaultdict(Counter)

    def add(self, present):
        self.count.update(present)
        for name in present:
            self.together[name].update(other for other in present if other != name)


def absent_objects(facts, statistics, rng, number, negatives):
    """`number` objects (or as many as there are) that are not in the picture.

    random: any; popular: those most often there in the set; adversarial: those most often together with what is there;
    balanced: drawn as often as they are there in the set, so that the name of an object does not give the answer away.
    """
    left = list(facts.absent)
    if negatives in ("popular", "adversarial"):
        beside = sum((statistics.together[name] for name in facts.present), Counter())
        rank = statistics.count if negatives == "popular" else beside
        return sorted(left, key=lambda name: (-rank[name], -statistics.count[name], name))[:number]
    weight = (
        (lambda name: statistics.count[name] + 0.1) if negatives == "balanced" else (lambda name: 1)
    )
    drawn = []
    while left and len(drawn) < number:
        drawn.append(rng.choices(left, [weight(name) for name in left])[0])
        left.remove(drawn[-1])
    return drawn


def existence_questions(facts, statistics, rng, pairs=1, negatives="balanced"):
    """[(object, True), (object, False), ...]: as many objects that are there as are not, `pairs` of each at most.

    facts: of the picture; statistics: of the whole set; rng: random.Random; negatives: one of NEGATIVES.
    """
    absent = absent_objects(facts, statistics, rng, min(pairs, len(facts.present)), negatives)
    asked = [(name, True) for name in rng.sample(facts.present, len(absent))] + [
        (name, False) for name in absent
    ]
    rng.shuffle(asked)
    return asked


def word(name, kind="objects"):
    return load()[kind][name]["zh"][0]


def numeral(number):
    """2 -> 两, as before a counter."""
    tens, ones = divmod(number, 10)
    digits = "一二三四五六七八九"
    if number == 2:
        return "两"
    return ("" if not tens else "十" if tens == 1 else digits[tens - 1] + "十") + (
        digits[ones - 1] if ones else ""
    )


def joined(words):
    return "、".join(words[:-1]) + "和" + words[-1] if len(words) > 1 else words[0]


def ask_existence(name, there, rng):
    """(question, answer) whether an object is there; the answer begins with 有 or 没有."""
    question = rng.choice(QUESTIONS["existence"])
    if "只回答" in question:
        answer = "有。" if there else "没有。"
    else:
        answer = f"有，图中有{word(name)}。" if there else f"没有，图中没有{word(name)}。"
    return question.format(name=word(name)), answer


def ask(task, facts, statistics, rng, number, negatives):
    """Up to `number` (question, answer) of a task, pairs of them for existence; fewer where the captions say too little."""
    if task == "existence":
        asked = existence_questions(facts, statistics, rng, number, negatives)
        return [ask_existence(name, there, rng) for name, there in asked]
    if task == "counting":
        names = rng.sample(sorted(facts.counts), min(number, len(facts.counts)))
        counters = {name: load()["objects"][name]["counter"] for name in names}
        return [
            (
                rng.choice(QUESTIONS[task]).format(name=word(name), counter=counters[name]),
                f"{numeral(facts.counts[name])}{counters[name]}。",
            )
            for name in names
        ]
    answer = facts.caption
    if task == "scene":
        answer = facts.scene and word(facts.scene, "scenes") + "。"
    if task == "objects":
        told = [
            name
            for name in facts.present
            if name not in GENERAL
            or not any(name in kin("object", other) for other in facts.present if other != name)
        ]
        answer = told and f"图中有{joined(list(map(word, told)))}。"
    questions = rng.sample(QUESTIONS[task], min(number, len(QUESTIONS[task])))
    return [(question, answer) for question in questions] if answer else []


def dialogue(facts, statistics, rng, negatives):
    """Two to four rounds of different tasks, from the whole to the detail, or none."""
    description, scene, *others = (
        ask(task, facts, statistics, rng, 1, negatives)
        for task in ("description", "scene", "objects", "counting", "existence")
    )
    opening, rest = description if not scene or rng.random() < 0.5 else scene, sum(others, [])
    kept = sorted(rng.sample(range(len(rest)), min(len(rest), rng.randint(1, 3))))
    return opening + [rest[place] for place in kept] if kept else []


def dialogues(facts, statistics, tasks, seed, name, negatives="balanced"):
    """Everything asked about a picture: [[(question, answer), ...], ...], one inner list a row.

    tasks: {task: rows per picture}, where 0.5 asks every second picture; seed and name (its file name) decide all draws.
    """
    rows = []
    for task, share in tasks.items():
        rng = random.Random(f"{seed}/{name}/{task}")
        number = int(share) + (rng.random() < share % 1)
        if task == "dialogue":
            rows += [dialogue(facts, statistics, rng, negatives) for _ in range(number)]
        else:
            rows += [[round_] for round_ in ask(task, facts, statistics, rng, number, negatives)]
    return [row for row in rows if row]
