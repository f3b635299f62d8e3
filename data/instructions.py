"""Questions and answers about an image, from its captions and the lexicon alone: no LLM.

facts() reads the captions, dialogues() asks about them; nothing is said that the captions do not
say. What is asked about an image depends on the seed and its file name, not on the order of the
input. existence_questions() also makes the yes / no questions of POPE (Li et al. 2023, Evaluating
Object Hallucination in Large Vision-Language Models): half about objects that are there, half
about objects that are not.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache

from data.lexicon import SOME, Mention, closure, find, language, load, named

NEGATIVES = ("balanced", "random", "popular", "adversarial")
# counters of what can be counted; 片 and 丛 are areas
COUNTED = tuple("架个艘座辆台列把栋棵条")
# need not be listed beside what is one or has one: 房屋, not 房屋和建筑物
GENERAL = ("building", "plant", "water")
# greater numbers are estimates
MOST_COUNTED = 20

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
    """What the captions of an image say; objects and scenes by their names in the lexicon."""

    # the Chinese description
    caption: str
    # the scene that the captions agree on, or None
    scene: str | None
    # objects that are there
    present: tuple
    # objects that are not: denied, or neither named nor related to what is named nor likely in
    # such a scene
    absent: tuple
    # {object: number} where all that count it agree
    counts: dict


@cache
def kin(kind, name):
    """An object or scene with all that it implies: {forest, tree, plant}."""
    return closure([Mention(kind, name, 0, 0)])


def agreed_scene(chinese, english):
    """The scene that most sentences name, or None.

    chinese: mentions of the description; english: mentions of each sentence. Two sentences have to
    name it, or one and the description; without sentences, the description no other.
    """
    votes = Counter()
    for mentions in english or [chinese]:
        votes.update(named(mentions, "scene"))
    best = votes.most_common(2)
    if not best:
        return None

    scene, count = best[0]
    tied = len(best) > 1 and best[1][1] == count
    if tied or (count < 2 and scene not in closure(chinese)):
        return None
    return scene


def agreed_counts(texts, english):
    """{object: number} where every text that says how many says the same number.

    texts: mentions of each text, the description first; english: those of the sentences. Where
    there are sentences, two texts have to say it.
    """
    stated = defaultdict(list)
    for mentions in texts:
        for name in named(mentions):
            number = stated_count(mentions, name)
            if number is not None:
                stated[name].append(number)

    least, agreed = 2 if english else 1, {}
    for name, numbers in stated.items():
        number = numbers[0]
        same = len(set(numbers)) == 1 and len(numbers) >= least
        countable = load()["objects"][name].get("counter") in COUNTED
        if same and countable and number in range(1, MOST_COUNTED + 1):
            agreed[name] = number
    return agreed


def stated_count(mentions, name):
    """How many of an object one text says there are: a number, SOME, or None."""
    numbers = [m.count for m in mentions if m.kind == "object" and m.name == name]
    if all(number is None for number in numbers):
        return None
    # "a plane and two planes": not to be relied on
    return numbers[0] if len(numbers) == 1 else SOME


def facts(caption, sentences=()):
    """Facts of an image from its description and, where they are known, further sentences.

    Each text is Chinese or English by itself. Where there are sentences an object is there if two
    of them name it, or one and the description; and nothing is absent that any text names. Without
    them the description alone is believed.
    """
    texts = [find(text, language(text)) for text in (caption, *sentences)]
    chinese, *english = texts
    unasked = set(load()["unasked"])

    denied = set()
    for mentions in texts:
        denied.update(m.name for m in mentions if m.kind == "object" and m.negated)
    present = agreed_objects(chinese, english) - denied - unasked
    absent = [name for name in not_there(texts, denied) if name not in unasked]

    # in the order of the description
    first = {mention.name: mention.start for mention in reversed(chinese)}
    present = sorted(present, key=lambda name: (first.get(name, len(caption)), name))
    agreed = agreed_counts(texts, english)
    counts = {name: count for name, count in agreed.items() if name in present}
    return Facts(caption, agreed_scene(chinese, english), tuple(present), tuple(absent), counts)


def agreed_objects(chinese, english):
    """Names of the objects that the texts agree are there."""
    if not english:
        return named(chinese)
    votes = Counter(name for mentions in english for name in named(mentions))
    described = closure(chinese)
    return {name for name, count in votes.items() if count > 1 or name in described}


def not_there(texts, denied):
    """Names of the objects that no text grants, in the order of the lexicon.

    denied: what a text says is absent. Of the others, what is usual beside anything that is
    mentioned is left out, though nobody names it: a car in a residential area.
    """
    mentions = [m for mentions in texts for m in mentions if not m.negated]
    granted = closure(mentions)
    scenes = {m.name for m in mentions if m.kind == "scene"} or {"unknown"}
    likely = set()
    for key in scenes | named(mentions):
        likely.update(load()["likely"].get(key, ()))

    found = []
    for name in load()["objects"]:
        if name in denied:
            absent = name not in granted
        else:
            absent = not (granted | likely) & kin("object", name)
        if absent:
            found.append(name)
    return found


class Statistics:
    """How often objects are there, alone and together, in a whole set.

    What popular and adversarial negatives need.
    """

    def __init__(self):
        self.count = Counter()
        self.together = defaultdict(Counter)

    def add(self, present):
        """present: names of the objects of one image."""
        self.count.update(present)
        for name in present:
            self.together[name].update(other for other in present if other != name)


def absent_objects(facts, statistics, rng, number, negatives):
    """`number` objects (or as many as there are) that are not in the image: POPE's negatives.

    random: any; popular: those most often there in the set; adversarial: those most often together
    with what is there; balanced: drawn as often as they are there in the set, so that the name of
    an object does not give the answer away.
    """
    left = list(facts.absent)
    if negatives in ("popular", "adversarial"):
        rank = statistics.count
        if negatives == "adversarial":
            rank = sum((statistics.together[name] for name in facts.present), Counter())
        left.sort(key=lambda name: (-rank[name], -statistics.count[name], name))
        return left[:number]

    drawn = []
    while left and len(drawn) < number:
        weights = [1] * len(left)
        if negatives == "balanced":
            weights = [statistics.count[name] + 0.1 for name in left]
        name = rng.choices(left, weights)[0]
        drawn.append(name)
        left.remove(name)
    return drawn


def existence_questions(facts, statistics, rng, pairs=1, negatives="balanced"):
    """[(object, True), (object, False), ...]: as many objects that are there as are not.

    facts: of the image; statistics: of the whole set; rng: random.Random; pairs: of them at most;
    negatives: one of NEGATIVES.
    """
    absent = absent_objects(facts, statistics, rng, min(pairs, len(facts.present)), negatives)
    asked = [(name, True) for name in rng.sample(facts.present, len(absent))]
    asked += [(name, False) for name in absent]
    rng.shuffle(asked)
    return asked


def word(name, kind="objects"):
    """The first Chinese word of an object or scene."""
    return load()[kind][name]["zh"][0]


def numeral(number):
    """1 to 99 in Chinese as before a counter: 2 -> 两, 12 -> 十二."""
    if number == 2:
        return "两"
    digits = ("", *"一二三四五六七八九")
    tens, ones = divmod(number, 10)
    if tens == 0:
        return digits[ones]
    if tens == 1:
        return "十" + digits[ones]
    return digits[tens] + "十" + digits[ones]


def joined(words):
    """A Chinese list: 房屋、道路和树木."""
    if len(words) == 1:
        return words[0]
    return "、".join(words[:-1]) + "和" + words[-1]


def ask_existence(name, there, rng):
    """(question, answer) whether an object is there; the answer begins with 有 or 没有."""
    question = rng.choice(QUESTIONS["existence"])
    answer = "有" if there else "没有"
    if "只回答" not in question:
        answer += f"，图中{answer}{word(name)}"
    return question.format(name=word(name)), answer + "。"


def ask_counts(facts, rng, number):
    """Up to `number` (question, answer) about how many of an object there are."""
    rounds = []
    for name in rng.sample(sorted(facts.counts), min(number, len(facts.counts))):
        counter = load()["objects"][name]["counter"]
        question = rng.choice(QUESTIONS["counting"]).format(name=word(name), counter=counter)
        rounds.append((question, f"{numeral(facts.counts[name])}{counter}。"))
    return rounds


def listed_objects(facts):
    """The objects that an answer lists: those that are not implied by a more specific one."""
    found = []
    for name in facts.present:
        others = [other for other in facts.present if other != name]
        implied = any(name in kin("object", other) for other in others)
        if name not in GENERAL or not implied:
            found.append(name)
    return found


def ask(task, facts, statistics, rng, number, negatives):
    """Up to `number` (question, answer) of a task, pairs of them for existence.

    Fewer where the captions say too little.
    """
    if task == "existence":
        asked = existence_questions(facts, statistics, rng, number, negatives)
        return [ask_existence(name, there, rng) for name, there in asked]
    if task == "counting":
        return ask_counts(facts, rng, number)

    answer = None
    if task == "description":
        answer = facts.caption
    if task == "scene" and facts.scene:
        answer = word(facts.scene, "scenes") + "。"
    if task == "objects":
        names = listed_objects(facts)
        if names:
            answer = f"图中有{joined([word(name) for name in names])}。"

    questions = rng.sample(QUESTIONS[task], min(number, len(QUESTIONS[task])))
    if not answer:
        return []
    return [(question, answer) for question in questions]


def dialogue(facts, statistics, rng, negatives):
    """Two to four rounds of different tasks, from the whole to the detail, or none."""
    tasks = ("description", "scene", "objects", "counting", "existence")
    rounds = [ask(task, facts, statistics, rng, 1, negatives) for task in tasks]
    description, scene, *others = rounds
    opening = scene
    if not scene or rng.random() < 0.5:
        opening = description

    rest = [round_ for part in others for round_ in part]
    kept = sorted(rng.sample(range(len(rest)), min(len(rest), rng.randint(1, 3))))
    if not kept:
        return []
    return opening + [rest[place] for place in kept]


def dialogues(facts, statistics, tasks, seed, name, negatives="balanced"):
    """Everything asked about an image: [[(question, answer), ...], ...], one inner list a row.

    tasks: {task: rows per image}, where 0.5 asks every second image; seed and name (its file name)
    decide all draws.
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
