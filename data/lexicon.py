"""What a Chinese or English caption names: objects, scenes, their colours and counts; negations.

Words come from lexicon.json. A text is read from left to right, the longest word at each place wins
and is used up, so 停车场 (parking lot) does not name 车 (car) and 机场 (airport) names no 飞机
(airplane). Chinese is matched by characters, English by whole words with their plurals.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

LEXICON = Path(__file__).resolve().parent / "lexicon.json"
# a count that is no number: 一些, 几架, several
SOME = "some"

# where a negation ends at the latest; 没有人工设施，如道路 denies the road as well
CLAUSE = {"zh": r"[。；！？：;!?\n]|[，,](?!如|例如|比如|包括)", "en": r"[.,;:!?\n]"}
# 无 and 没 are negators except in words like 无数 (countless); 有没有 asks
NEGATOR = {
    "zh": r"(?<!有)没有|(?<![有淹沉])没(?=[见看发])|无(?!人机|[数法论垠边际疑遗尽穷])|未[见能]|"
    r"未(?:发现|看到|显示|出现)|看不[到见出清]|无法看|不见|不存在|不含|不包[含括]|"
    r"不(?:太|大)?可能有|缺乏|缺少|不是|不像|并非",
    "en": r"\b(?:no|without|nor|neither|nothing|not (?:a|an|any)|(?:isn't|aren't) (?:a|an|any)|"
    r"(?:cannot|can't|don't|do not) (?:see|find))\b",
}
# what denies the noun before it, to the end of the clause: 船一艘也没有
DENIED = {
    "zh": r".{0,3}[都也均](?:没有|看不[到见]|不存在|不见)|(?:并)?(?:不存在|不可见|看不[到见])",
    "en": r" (?:is|are) (?:absent|not (?:there|visible|present))",
}
# words after which a negation no longer holds: "no trees on the ground" denies no ground
NEGATION_ENDS = {
    "zh": r"[但而却]|只有|仅有",
    "en": r"\b(?:but|with|while|in|on|at|near|beside|around|along|between|of|to|from|by|some|"
    r"is|are)\b",
}
# words that part a number or a colour from the noun after it
PARTS = {
    "zh": r"[在有是被着了和与及或、上下内里中边侧处呈从将把使其之以]|显示|展示|环绕|穿过|组成",
    "en": r"\b(?:and|or|with|in|on|at|near|beside|around|along|between|to|from|by|is|are|was|were|"
    r"has|have|that|which|while|there|surround\w*|goes?|through)\b",
}
COLOUR_LIST = {"zh": r"[和与及或、色的]*|相间的?", "en": r"[\s,]*(?:and|or)?\s*"}
# between a noun and the colour that is said of it: 屋顶是灰色的, the roofs are grey
COPULA = {
    "zh": r"(?:的?颜色)?(?:主要|大多|大部分|全部|整体|基本|都|均|多|也)*"
    r"(?:为|是|呈|呈现|呈现出|呈现为|显示为|涂成|有)",
    "en": r"\s*(?:is|are|look|looks|being)\s+(?:mostly |all |mainly |very )?",
}
# between two scene words: the one before is an attribute of the other
MODIFIER = re.compile(r"[^，。；、！？和与及或是有]*的[^，。；、！？和与及或是有]*")
# characters that a count or a colour may stand before its noun
COUNT_REACH = {"zh": 10, "en": 40}
COLOUR_REACH = {"zh": 8, "en": 20}


@dataclass(frozen=True)
class Mention:
    """One word of a text."""

    # "object" or "scene"
    kind: str
    # its key in lexicon.json
    name: str
    # characters of the text
    start: int
    end: int
    negated: bool = False
    # a number, SOME, or None where none is given
    count: int | str | None = None
    # names of the colours that are said of it
    colours: frozenset = frozenset()


@cache
def load():
    """lexicon.json as a dict. An object with the name of a scene has the scene's words, too."""
    lexicon = json.loads(LEXICON.read_text(encoding="utf-8"))
    for name, entry in lexicon["objects"].items():
        scene = lexicon["scenes"].get(name, {})
        for key in ("zh", "en", "implies"):
            entry[key] = list(dict.fromkeys(scene.get(key, []) + entry.get(key, [])))
    return lexicon


def language(text):
    """Returns "zh" of a text with any Chinese character, else "en"."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


def plural(word):
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if re.search(r"(?:s|x|ch|sh)$", word):
        return word + "es"
    return word + "s"


@cache
def vocabulary(language):
    """({word: [(kind, name), ...]}, a pattern that finds the longest first).

    kind: "object", "scene", "colour" or "mask"
    """
    lexicon, words = load(), defaultdict(list)
    for kind in ("object", "scene", "colour"):
        for name, entry in lexicon[kind + "s"].items():
            for word in entry[language]:
                for form in _forms(word, kind, language):
                    if (kind, name) not in words[form]:
                        words[form].append((kind, name))
    for word in lexicon["masks"][language]:
        for form in (word, plural(word)):
            words[form].append(("mask", word))

    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    if language == "zh":
        return dict(words), re.compile(either)
    # English compounds may be hyphenated; re.escape has put a backslash before each space
    hyphenated = either.replace("\\ ", "[ -]")
    return dict(words), re.compile(rf"\b(?:{hyphenated})\b")


def _forms(word, kind, language):
    if language == "en" and kind != "colour":
        return (word, plural(word))
    if language == "zh" and kind == "colour" and not word.endswith("色"):
        return (word, word + "色")
    return (word,)


@cache
def quantities(language):
    """A pattern of quantities.

    Group n is a number, with g it counts groups (rows, pairs); without n it is SOME.
    """
    lexicon = load()
    words = sorted(lexicon["several"][language], key=len, reverse=True)
    if language == "en":
        vague, numbers = "|".join(words), "|".join(lexicon["numbers"]["en"])
        return re.compile(
            rf"\b(?:(?:{vague})\b|(?P<n>{numbers}|\d+)\b)"
            r"(?P<g>[^.,;]*?\b(?:rows?|lines?|groups?) of\b)?"
        )

    # 几, 数, 多 only before a counter
    vague = "|".join(word for word in words if len(word) > 1)
    one, group = lexicon["numbers"]["counters"], lexicon["numbers"]["group counters"]
    digits = "[一二两三四五六七八九十百]"
    return re.compile(
        rf"{vague}|一([{one}{group}])\1|[几数多][十百千]?[{one}{group}]|"
        rf"(?:{digits}+|\d+)[几多余][{one}{group}]|"
        rf"(?<![第十百\d.])(?P<n>{digits}+|\d+) ?(?:[{one}]|(?P<g>[{group}]))"
    )


def chinese_number(text):
    """三 -> 3, 十二 -> 12, 一百二十 -> 120; digits as they are."""
    if text.isdigit() and text.isascii():
        return int(text)
    total = digit = 0
    for char in text:
        unit = {"十": 10, "百": 100}.get(char)
        if unit:
            total += (digit or 1) * unit
            digit = 0
        elif char == "两":
            digit = 2
        else:
            digit = "一二三四五六七八九".index(char) + 1
    return total + digit


def value(match, language):
    """Number or SOME of a match of quantities()."""
    if match["n"] is None or match["g"]:
        return SOME
    return as_number(match["n"], language)


def as_number(word, language):
    if language == "zh":
        return chinese_number(word)
    return int(word) if word.isdigit() else load()["numbers"]["en"][word]


def numbers(text, language):
    """The exact numbers of a text that count something, rows and groups included.

    {2} of 两排树, two rows of trees.
    """
    matches = quantities(language).finditer(text.lower())
    return {as_number(match["n"], language) for match in matches if match["n"]}


def tokens(text, language):
    """Words of the lexicon in the order of the text: (start, end, [(kind, name), ...])."""
    words, pattern = vocabulary(language)
    for match in pattern.finditer(text):
        yield match.start(), match.end(), words[match[0].replace("-", " ")]


def find(text, language):
    """Everything a text names, as a list of Mention in reading order.

    text: a caption; language: "zh" or "en". A word that is object and scene gives two. A negation
    reaches to the end of its clause, over lists (没有树木和房屋), and ends at the 的 after what it
    denied (没有树木的草地 has grass). A count or colour belongs to the noun that it stands before
    without a verb between, a colour also to the noun it is said of (屋顶是灰色的).
    """
    text = text.lower()
    clauses, start = [], 0
    for match in re.finditer(CLAUSE[language], text):
        clauses.append((start, match.start()))
        start = match.end()
    clauses.append((start, len(text)))

    found, all_tokens = [], list(tokens(text, language))
    for begin, end in clauses:
        clause = [token for token in all_tokens if begin <= token[0] < end]
        found += _in_clause(text, begin, end, clause, language)
    return found


def _in_clause(text, begin, end, clause, language):
    """The mentions of text[begin:end]; clause: its tokens."""
    negators = [begin + match.end() for match in re.finditer(NEGATOR[language], text[begin:end])]
    mentions = []
    # colours since the noun before, [(start, end, names)]; where that noun ends
    waiting, last = [], begin

    for position, stop, meanings in clause:
        colours = [name for kind, name in meanings if kind == "colour"]
        if len(colours) == len(meanings):
            # the first colour after a noun may be said of it
            if mentions and not waiting and re.fullmatch(COPULA[language], text[last:position]):
                mentions = _coloured(mentions, last, colours)
            waiting.append((position, stop, colours))
            continue

        negated = any(
            after <= position and _negation_holds(text, after, position, clause, language)
            for after in negators
        )
        count = _count_before(text[last:position], language)
        named_colours = _colours_before(text, waiting, position, language) | set(colours)
        for kind, name in meanings:
            if kind in ("object", "scene"):
                mention = Mention(kind, name, position, stop, negated, count, named_colours)
                mentions.append(mention)
        waiting, last = [], stop

    if re.fullmatch(DENIED[language], text[last:end].rstrip()):
        mentions = [replace(m, negated=True) if m.end == last else m for m in mentions]
    return mentions


def _coloured(mentions, end, colours):
    """The mentions, with colours added to those that end at `end`."""
    changed = []
    for mention in mentions:
        if mention.end == end:
            mention = replace(mention, colours=mention.colours | set(colours))
        changed.append(mention)
    return changed


def _negation_holds(text, after, position, clause, language):
    """Whether a negator that ends at `after` denies the word at `position`."""
    if re.search(NEGATION_ENDS[language], text[after:position]):
        return False
    if language == "en":
        return True
    denied = []
    for start, stop, meanings in clause:
        if after <= start < position and meanings[0][0] != "colour":
            denied.append(stop)
    return not denied or "的" not in text[denied[-1] : position]


def _count_before(lead, language):
    """The count in `lead`, the text between the noun before (or the clause's start) and the noun
    that is counted; a number, SOME or None."""
    matches = list(quantities(language).finditer(lead))
    if not matches:
        return None
    match = matches[-1]
    rest = lead[match.end() :]
    if re.search(PARTS[language], rest) or len(rest) > COUNT_REACH[language]:
        return None

    # houses of "a group of houses" are several, of "a pair of" or "a piece of" they are counted
    if language == "en" and match["n"] != "pair" and re.search(r"\bof\b", rest):
        if not re.search(r"\b(?:piece|part)s? of\b", rest):
            return SOME
    return value(match, language)


def _colours_before(text, waiting, position, language):
    """Colours of the list `waiting` that ends right before `position`: both of 白色和灰色的屋顶."""
    names, right = set(), position
    for start, stop, words in reversed(waiting):
        gap = text[stop:right]
        if right == position:
            near = len(gap) <= COLOUR_REACH[language] and not re.search(PARTS[language], gap)
        else:
            near = re.fullmatch(COLOUR_LIST[language], gap)
        if not near:
            break
        names.update(words)
        right = start
    return frozenset(names)


def colours(text, language):
    """Names of all colours of a text, whatever they belong to."""
    found = set()
    for _, _, meanings in tokens(text.lower(), language):
        found.update(name for kind, name in meanings if kind == "colour")
    return found


def named(mentions, kind="object"):
    """Names of what the mentions say is there (each once): what is denied is left out."""
    return {mention.name for mention in mentions if mention.kind == kind and not mention.negated}


def first_scene(text):
    """The mentions that the first scene word of a text means: [] if it names none.

    Of 穿过森林的河流 (a river through a forest) that is the river.
    """
    scenes = []
    for mention in find(text, language(text)):
        if mention.kind == "scene" and not mention.negated:
            scenes.append(mention)
    if not scenes:
        return []

    first = scenes[0]
    for scene in scenes[1:]:
        if MODIFIER.fullmatch(text, first.end, max(scene.start, first.end)):
            first = scene
    return [mention for mention in scenes if mention.start == first.start]


def first_scenes(text):
    """Their names, a set."""
    return {mention.name for mention in first_scene(text)}


def closure(mentions):
    """Names of the objects and scenes that the mentions name, with all their hypernyms.

    The transitive closure of `implies`, one way: a house is a building, a forest has trees, a
    mobile home park is a park.
    """
    lexicon, granted = load(), set()
    left = [mention.name for mention in mentions if not mention.negated]
    while left:
        name = left.pop()
        if name not in granted:
            granted.add(name)
            for key in ("objects", "scenes"):
                left += lexicon[key].get(name, {}).get("implies", [])
    return granted


def unsupported(claims, granted):
    """Claimed objects and scenes that `granted`, a closure, does not cover: [(kind, name), ...].

    Each once. A word of several meanings (码头: pier or harbour) is covered by any of them.
    """
    words = defaultdict(list)
    for claim in claims:
        if not claim.negated:
            words[claim.start].append(claim)

    found = {}
    for meanings in words.values():
        if not any(claim.name in granted for claim in meanings):
            found.update(((claim.kind, claim.name), None) for claim in meanings)
    return list(found)
