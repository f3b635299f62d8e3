"""What a Chinese or English caption names: objects, scenes, their colours and counts, and what it says is absent.

Words come from lexicon.json. A text is read from left to right, the longest word at each place wins and is used up, so
停车场 (parking lot) does not name 车 (car) and 机场 (airport) names no 飞机 (airplane). Chinese is matched by characters,
English by whole words with their plurals.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

LEXICON = Path(__file__).resolve().parent / "lexicon.json"
SOME = "some"  # a count that is no number: 一些, 几架, several

# where a negation ends at the latest; 没有人工设施，如道路 denies the road as well
CLAUSE = {"zh": r"[。；！？：;!?\n]|[，,](?!如|例如|比如|包括)", "en": r"[.,;:!?\n]"}
# 无 and 没 are negators except in words like 无数 (countless); 有没有 asks
NEGATOR = {
    "zh": r"(?<!有)没有|(?<![有淹沉])没(?=[见看发])|无(?!人机|[数法论垠边际疑遗尽穷])|未[见能]|未(?:发现|看到|显示|出现)|看不[到见出清]|无法看|不见|不存在|不含|"
    r"不包[含括]|不(?:太|大)?可能有|缺乏|缺少|不是|不像|并非",
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
    "en": r"\b(?:but|with|while|in|on|at|near|beside|around|along|between|of|to|from|by|some|is|are)\b",
}
# words that part a number or a colour from the noun after it
PARTS = {
    "zh": r"[在有是被着了和与及或、上下内里中边侧处呈从将把使其之以]|显示|展示|环绕|穿过|组成",
    "en": r"\b(?:and|or|with|in|on|at|near|beside|around|along|between|to|from|by|is|are|was|were|has|have|that|which|"
    r"while|there|surround\w*|goes?|through)\b",
}
COLOUR_LIST = {"zh": r"[和与及或、色的]*|相间的?", "en": r"[\s,]*(?:and|or)?\s*"}
# between a noun and the colour said of it: 屋顶是灰色的, the roofs are grey
COPULA = {
    "zh": r"(?:的?颜色)?(?:主要|大多|大部分|全部|整体|基本|都|均|多|也)*(?:为|是|呈|呈现|呈现出|呈现为|显示为|涂成|有)",
    "en": r"\s*(?:is|are|look|looks|being)\s+(?:mostly |all |mainly |very )?",
}


@dataclass(frozen=True)
class Mention:
    """One word of a text. `count`: a number, SOME, or None where none is said; `colours`: names of those said of it."""

    kind: str  # "object" or "scene"
    name: str  # its key in lexicon.json
    start: int
    end: int
    negated: bool = False
    count: int | str | None = None
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
    """ "zh" of a text with any Chinese character, else "en"."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


def plural(word):
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(?:s|x|ch|sh)$", word) else "s")


@cache
def vocabulary(language):
    """{word: [(kind, name), ...]}, kind "object", "scene", "colour" or "mask", and a pattern finding the longest first."""
    words, lexicon = defaultdict(list), load()
    for kind, key in (("object", "objects"), ("scene", "scenes"), ("colour", "colours")):
        for name, entry in lexicon[key].items():
            for word in entry[language]:
                for form in (
                    (word, plural(word)) if language == "en" and kind != "colour" else (word,)
                ):
                    if (kind, name) not in words[form]:
                        words[form].append((kind, name))
                if language == "zh" and kind == "colour" and not word.endswith("色"):
                    words[word + "色"].append((kind, name))
    for word in lexicon["masks"][language]:
        for form in (word, plural(word)):
            words[form].append(("mask", word))
    either = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = either if language == "zh" else rf"\b(?:{either.replace(chr(92) + ' ', '[ -]')})\b"
    return dict(words), re.compile(pattern)


@cache
def quantities(language):
    """A pattern of quantities: group n a number, with g standing for groups (rows, pairs); without either it is SOME."""
    lexicon = load()
    words = sorted(lexicon["several"][language], key=len, reverse=True)
    vague = "|".join(
        word for word in words if language == "en" or len(word) > 1
    )  # 几, 数, 多 only before a counter
    if language == "en":
        numbers = "|".join(lexicon["numbers"]["en"])
        return re.compile(
            rf"\b(?:(?:{vague})\b|(?P<n>{numbers}|\d+)\b)"
            r"(?P<g>[^.,;]*?\b(?:rows?|lines?|groups?) of\b)?"
        )
    one, group = lexicon["numbers"]["counters"], lexicon["numbers"]["group counters"]
    digits = "[一二两三四五六七八九十百]"
    return re.compile(
        rf"{vague}|一([{one}{group}])\1|[几数多][十百千]?[{one}{group}]|(?:{digits}+|\d+)[几多余][{one}{group}]|"
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
            total, digit = total + (digit or 1) * unit, 0
        else:
            digit = 2 if char == "两" else "一二三四五六七八九".index(char) + 1
    return total + digit


def value(match, language):
    """Number or SOME of a match of quantities()."""
    return SOME if match["n"] is None or match["g"] else as_number(match["n"], language)


def as_number(word, language):
    if language == "zh":
        return chinese_number(word)
    return int(word) if word.isdigit() else load()["numbers"]["en"][word]


def numbers(text, language):
    """The exact numbers of a text that count something, rows and groups included: {2} of 两排树, two rows of trees."""
    return {
        as_number(match["n"], language)
        for match in quantities(language).finditer(text.lower())
        if match["n"]
    }


def tokens(text, language):
    """Words of the lexicon in the order of the text: (start, end, [(kind, name), ...])."""
    words, pattern = vocabulary(language)
    for match in pattern.finditer(text):
        yield match.start(), match.end(), words[match[0].replace("-", " ")]


def find(text, language):
    """Everything a text names, as a list of Mention in reading order; a word that is object and scene gives two.

    text: a caption; language: "zh" or "en". A negation reaches to the end of its clause, over lists (没有树木和房屋), and ends
    at the 的 after what it denied (没有树木的草地 has grass). A count or colour belongs to the noun that it stands before without
    a verb between, a colour also to the noun it is said of (屋顶是灰色的).
    """
    text = text.lower()
    found, clauses, start = [], [], 0
    for match in re.finditer(CLAUSE[language], text):
        clauses.append((start, match.start()))
        start = match.end()
    all_tokens = list(tokens(text, language))
    for begin, end in [*clauses, (start, len(text))]:
        found += in_clause(
            text, begin, end, [token for token in all_tokens if begin <= token[0] < end], language
        )
    return found


def in_clause(text, begin, end, clause, language):
    mentions, waiting, last = (
        [],
        [],
        begin,
    )  # waiting: colours since the noun before, [(start, end, names)]; `last`: its end
    negators = [begin + match.end() for match in re.finditer(NEGATOR[language], text[begin:end])]
    for position, stop, meanings in clause:
        names = [name for kind, name in meanings if kind == "colour"]
        if len(names) == len(meanings):
            if mentions and not waiting and re.fullmatch(COPULA[language], text[last:position]):
                mentions = [
                    replace(m, colours=m.colours | set(names)) if m.end == last else m
                    for m in mentions
                ]
            waiting.append((position, stop, names))
            continue
        negated = any(
            negation_holds(text, after, position, clause, language)
            for after in negators
            if after <= position
        )
        lead = text[last:position]
        shared = dict(
            start=position,
            end=stop,
            negated=negated,
            count=count_before(lead, language),
            colours=colours_before(text, waiting, position, language) | set(names),
        )
        mentions += [
            Mention(kind, name, **shared) for kind, name in meanings if kind in ("object", "scene")
        ]
        waiting, last = [], stop
    if re.fullmatch(DENIED[language], text[last:end].rstrip()):
        mentions = [replace(m, negated=True) if m.end == last else m for m in mentions]
    return mentions


def negation_holds(text, after, position, clause, language):
    between = text[after:position]
    if re.search(NEGATION_ENDS[language], between):
        return False
    denied = [
        token for token in clause if after <= token[0] < position and token[2][0][0] != "colour"
    ]
    return not (language == "zh" and denied and "的" in text[denied[-1][1] : position])


def count_before(lead, language):
    """The count said by `lead`, the text between the noun before (or the clause's start) and the noun counted."""
    matches = list(quantities(language).finditer(lead))
    if not matches:
        return None
    rest = lead[matches[-1].end() :]
    if re.search(PARTS[language], rest) or len(rest) > (10 if language == "zh" else 40):
        return None
    whole = (
        language == "zh"
        or matches[-1]["n"] == "pair"
        or re.search(r"\b(?:piece|part)s? of\b", rest)
    )
    if not whole and re.search(r"\bof\b", rest):  # houses of "a group of houses" are several
        return SOME
    return value(matches[-1], language)


def colours_before(text, waiting, position, language):
    """Colours of the list `waiting` that ends right before `position`: both of 白色和灰色的屋顶."""
    names, right = set(), position
    for start, stop, words in reversed(waiting):
        gap = text[stop:right]
        joined = right != position and re.fullmatch(COLOUR_LIST[language], gap)
        near = (
            right == position
            and not re.search(PARTS[language], gap)
            and len(gap) <= (8 if language == "zh" else 20)
        )
        if not (joined or near):
            break
        names.update(words)
        right = start
    return frozenset(names)


def colours(text, language):
    """Names of all colours of a text, whatever they belong to."""
    return {
        name
        for _, _, meanings in tokens(text.lower(), language)
        for kind, name in meanings
        if kind == "colour"
    }


def named(mentions, kind="object"):
    """Names of what the mentions say is there (each once): what is denied is left out."""
    return {mention.name for mention in mentions if mention.kind == kind and not mention.negated}


def closure(mentions):
    """Names of the objects and scenes that the mentions grant: those named, and one way what they imply.

    A house is a building, a forest has trees, a mobile home park is a park.
    """
    lexicon, granted = load(), set()
    left = [mention.name for mention in mentions if not mention.negated]
    while left:
        name = left.pop()
        if name not in granted:
            granted.add(name)
            left += [
                implied
                for key in ("objects", "scenes")
                for implied in lexicon[key].get(name, {}).get("implies", [])
            ]
    return granted


def unsupported(claims, granted):
    """Names of the claimed objects and scenes that `granted`, a closure, does not cover: [(kind, name), ...], each once.

    A word of several meanings (码头: pier or harbour) is covered by any of them.
    """
    words = defaultdict(list)
    for claim in claims:
        if not claim.negated:
            words[claim.start].append(claim)
    bare = [word for word in words.values() if not any(claim.name in granted for claim in word)]
    return list(dict.fromkeys((claim.kind, claim.name) for word in bare for claim in word))
