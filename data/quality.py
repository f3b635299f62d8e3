"""The quality gate: what is wrong with a Chinese description, given its English sentences.

Reasons: filter (the endpoint refused), cut (no end), marks (of an answer's form, or damage),
chinese (share of Chinese characters), length, refusal, latin (stray words), echo (of the
instruction or the task), subjective (feelings and praise), unseen (what no image shows: places,
dates, purposes, guesses), attribute, position, object, scene, colour, count (named in the Chinese,
in none of the English sentences; the last four by lexicon.json). The patterns of refusal, echo,
subjective, unseen, attribute and position stand in quality_rules.json.
"""

import hashlib
import math
import re
from collections import Counter
from functools import cache
from pathlib import Path

from data import lexicon
from data.replies import ENDING
from model.errors import UserError
from model.files import read_json

RULES_FILE = Path(__file__).resolve().parent / "quality_rules.json"
# Chinese characters: least; most per word of the distinct English sentences; most in any case. Of
# the descriptions of UCM that pass everything else 99 % have at most 2.3 a word and 92 in all.
LEAST, PER_WORD, ALWAYS = 5, 3, 80
# of the letters, that are Chinese
CHINESE_SHARE = 0.8
# reasons of the rules that only English sentences can give
BY_ENGLISH = ("attribute", "position")
# so many characters of the instruction in a row are an echo of it
ECHO = 12

# English that states a number without the word for it: a road across another are two, an
# intersection has four corners
TWO_ROADS = re.compile(
    r"\b(?:another|each other|both|cross|intersection|t-junction|junction|overpass)", re.I
)
CORNERS = re.compile(r"\bcorners\b", re.I)
CROSSING = ("road", "freeway", "path", "bridge", "overpass", "railway", "runway", "intersection")

SENTENCE = re.compile(r"[^。！？!?]+[。！？!?]*[”’）」』)]*")
# what ties a sentence to the one before it: words that can go,
LINKS = re.compile(
    r"^(?:此外|另外|同时|除此之外|除此以外|总之|总的来说|总体(?:来说|而言)|整体(?:来说|而言)|"
    r"首先|其次|最后|而且|因此|所以|并且)[，,]?"
)
# words that point back,
BACK = re.compile(r"[它其这那]|两者|前者|后者|上述|该|另[一两]")
# and words that no description begins with
AMID = re.compile(
    r"还|也|周围|旁边|四周|附近|两旁|两侧|除了|部分|整[个体张幅]|与|在[^，。]*[下旁周边]"
)

# what is left of Markdown, HTML, JSON and templates, damaged characters, emoji
MARKS = re.compile(
    "[*#`_~|<>{}\\[\\]\\\\\ufffd\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]+|&\\w+;|https?:|"
    "^(?:描述|译文|翻译|回答|答案?|输出|注|备注)[：:]"
)

COMPLAINTS = {
    "chinese": "应全部用中文",
    "length": "长度不合适",
    "refusal": "不要拒绝或说明做不到",
    "latin": "不要夹杂外文",
    "echo": "不要提到题目或英文句子本身",
    "subjective": "有主观感受或赞美",
    "unseen": "有图像看不出的内容",
    "attribute": "有英文没有说的性质",
    "position": "有英文没有说的方位",
    "object": "有英文没有提到的地物",
    "scene": "有英文没有提到的场景",
    "colour": "有英文没有说的颜色",
    "count": "有英文没有说的数量",
    "cut": "句子没有写完，应以句号结束",
    "marks": "不要标记、标签、表情符号或乱码",
}


@cache
def fingerprint():
    """Of everything that a verdict depends on besides the texts: rules, lexicon and code."""
    folder = Path(__file__).resolve().parent
    names = ("quality.py", "lexicon.py", "lexicon.json", "seen_questions.py")
    code = [folder / name for name in names]
    content = b"".join(path.read_bytes() for path in (*code, RULES_FILE))
    return hashlib.sha256(content).hexdigest()[:16]


@cache
def rules():
    """quality_rules.json as ((reason, Chinese pattern, English pattern or None), ...).

    A hit of the Chinese pattern in a description is a complaint, unless the English pattern is
    found at the beginning of a word of the sentences. Raises UserError.
    """
    return tuple(read_rules(RULES_FILE))


def read_rules(path):
    """The checked rules of a file: [{"reason", "chinese": [pattern, ...], "english": [...]}, ...].

    The patterns of a list are alternatives; "english": [] supports nothing. Raises UserError.
    """
    found = []
    for number, entry in enumerate(read_json(path, "quality rules", list, own=True)):
        try:
            found.append(_rule(entry))
        except (UserError, re.error) as error:
            raise UserError(f"quality rules {path}: rule {number}: {error}") from None
    return found


def _rule(entry):
    if not isinstance(entry, dict) or set(entry) != {"reason", "chinese", "english"}:
        raise UserError(f"expected the keys reason, chinese and english, got {entry!r}")
    reason, chinese, english = entry["reason"], entry["chinese"], entry["english"]
    if reason not in COMPLAINTS:
        raise UserError(f"reason {reason!r}: expected one of {', '.join(COMPLAINTS)}")
    for key, patterns in (("chinese", chinese), ("english", english)):
        if not isinstance(patterns, list) or not all(isinstance(p, str) and p for p in patterns):
            raise UserError(f"{key}: expected a list of patterns, got {patterns!r}")
    if not chinese:
        raise UserError("chinese: expected at least one pattern")

    support = None
    if english:
        support = re.compile(rf"\b(?:{'|'.join(english)})", re.I)
    return reason, re.compile("|".join(chinese)), support


def chinese_characters(text):
    return len(re.findall("[\u4e00-\u9fff]", text))


# what hardly a sentence lacks: in English; in French, German, Spanish, Italian, Portuguese, Dutch
ENGLISH_WORDS = set(
    "the of are is there this that to by near some many it has have its from next around beside "
    "and with two three several on at green white trees buildings parked".split()
)
# none that is English as well, such as die, as, no and con
FOREIGN_WORDS = set(
    "le la les des du une est sont sur dans avec et il y plusieurs près "
    "der das und ist sind ein eine auf im mit neben dem viele gibt es "
    "el los las hay un una en muchos muchas junto del al "
    "lo gli uno sono nel nella sul sulla ci molti di "
    "os um uma há na com muitos perto "
    "het een zijn er op naast veel de".split()
)
ACCENTED = "àâäáãåæçéèêëíìîïñóòôöõøœúùûüßý¿¡"


def written_in(text):
    """ "zh" of a text that is Chinese for the most part, "other" of neither Chinese nor Latin
    letters or of French, German and the like, else "en".
    """
    letters = re.findall(r"[^\W\d_]", text)
    chinese = chinese_characters(text)
    if letters and chinese >= CHINESE_SHARE * len(letters):
        return "zh"
    latin = sum(letter < "\u0250" for letter in letters)
    if chinese + latin < len(letters) / 2 or is_foreign(text):
        return "other"
    return "en"


def is_foreign(text):
    """Whether a text is in another language of Latin letters, by the words that all texts have.

    One English word among them is enough for no: names and loan words are no language.
    """
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    if words & ENGLISH_WORDS:
        return False
    accented = any(letter in ACCENTED for letter in text.lower())
    return len(words & FOREIGN_WORDS) + accented >= 2


def as_description(caption):
    """A Chinese caption of transform's as a paragraph: its distinct sentences, each with an end."""
    sentences = dict.fromkeys(part.strip() for part in caption.split("  ") if part.strip())
    return "".join(one if ENDING.search(one) else f"{one}。" for one in sentences)


def distinct_sentences(source):
    """The sentences of a source text, each once; transform sets two spaces between sentences."""
    sentences = [sentence.strip().lower() for sentence in re.split(r"[.\n]|  ", source)]
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def most_characters(source, allowance=1.0):
    """Chinese characters that a description of `source` may have; of None any number."""
    if source is None:
        return math.inf
    words = sum(len(sentence.split()) for sentence in distinct_sentences(source))
    return int(allowance * max(ALWAYS, PER_WORD * words))


def problems(target, source, instruction="", allowance=1.0):
    """What is wrong with `target`, Chinese made from the English `source`.

    source: None of a description that was Chinese from the beginning, of which only what no text
    may have is found: what it names is for its author to know.
    instruction: text of the request, an answer must not repeat it; allowance: factor on the length
    that a style may have. Returns [(reason, words that show it), ...], [] if nothing is.
    """
    found = []
    if not ENDING.search(target.rstrip()):
        found.append(("cut", target.rstrip()[-10:]))
    marks = MARKS.findall(target)
    if marks:
        found.append(("marks", " ".join(dict.fromkeys(marks))))
    letters, chinese = len(re.findall(r"[^\W\d_]", target)), chinese_characters(target)
    if not letters or chinese < CHINESE_SHARE * letters:
        found.append(("chinese", f"{chinese} of {letters} characters"))

    most = most_characters(source, allowance)
    if not LEAST <= chinese <= most:
        found.append(("length", f"{chinese} characters, expected {LEAST} to {most}"))

    stray = re.findall(r"[A-Za-z]{2,}", target)
    if stray:
        found.append(("latin", " ".join(stray)))

    copied = _copied(target, instruction)
    if copied:
        found.append(("echo", copied))

    for reason, pattern, support in rules():
        if source is None and reason in BY_ENGLISH:
            continue
        hits = [match[0] for match in pattern.finditer(target)]
        supported = support is not None and support.search(source or "")
        if hits and not supported:
            found.append((reason, " ".join(dict.fromkeys(hits))))
    return found if source is None else found + unfaithful(target, source)


def _copied(target, instruction):
    """The first ECHO characters in a row that both have, or None."""
    for start in range(len(target) - ECHO + 1):
        part = target[start : start + ECHO]
        if part in instruction:
            return part
    return None


def trimmed(target, source, instruction="", allowance=1.0, sentences=math.inf):
    """The first sentences of `target` that pass, as a description that passes; "" if none is left.

    sentences: as many at most, or the fewest that pass; the others: see problems.

    Of what follows a sentence left out, the word that linked it goes, and a sentence that points
    back to it or begins in mid-thought goes as well. A description does not lose the scene that it
    named: one that the source names too, not just what that implies (of 移动房屋公园, 公园), where
    there is such a one.
    """

    def problems_of(text):
        return problems(text, source, instruction, allowance)

    most, needed = most_characters(source, allowance), _needed_scenes(target, source)
    kept, gap = [], False
    for sentence in SENTENCE.findall(target):
        if not ENDING.search(sentence):
            break
        if gap:
            sentence = LINKS.sub("", sentence, count=1)
        text = "".join([*kept, sentence])
        dangling = gap and (BACK.match(sentence) or (not kept and AMID.match(sentence)))
        if dangling or chinese_characters(text) > most or not _passes(problems_of(sentence)):
            gap = True
            continue

        kept.append(sentence)
        gap = False
        if len(kept) >= sentences and not problems_of(text):
            break

    text = "".join(kept)
    if problems_of(text) or (needed and not needed & _scenes(text)):
        return ""
    return text


def _passes(found):
    """Whether a sentence passes, alone too short or not."""
    return all(reason == "length" for reason, _ in found)


def _scenes(text):
    return lexicon.named(lexicon.find(text, "zh"), "scene")


def _needed_scenes(target, source):
    """Scenes of which a trimmed target must keep one."""
    scenes = _scenes(target)
    if source is None:
        return scenes
    mentions = lexicon.find(source, "en")
    stated = scenes & lexicon.named(mentions, "scene")
    if stated:
        return stated
    return scenes & lexicon.closure(mentions)


def unfaithful(target, source):
    """Objects, scenes, colours and counts that `target` names and no sentence of `source` does."""
    source = " . ".join(distinct_sentences(source))
    claims, facts = lexicon.find(target, "zh"), lexicon.find(source, "en")
    found = lexicon.unsupported(claims, lexicon.closure(facts))
    colours = lexicon.colours(target, "zh") - lexicon.colours(source, "en")
    found += [("colour", name) for name in sorted(colours)]
    found += wrong_counts(claims, facts, target, source)
    return list(dict.fromkeys(found))


def wrong_counts(claims, facts, target, source):
    """Numbers above one that no English sentence states, or states of the same thing otherwise.

    claims, facts: mentions of target and source. Yields ("count", words).
    """
    crossing = _unspoken_numbers(source)
    stated = lexicon.numbers(source, "en")
    for number in sorted(lexicon.numbers(target, "zh") - stated - crossing - {1}):
        yield "count", str(number)

    for claim in claims:
        number = claim.count
        if not isinstance(number, int) or number <= 1:
            continue
        if claim.name in CROSSING and number in crossing:
            continue
        # a word may have several meanings
        names = {other.name for other in claims if other.start == claim.start}
        counts = {fact.count for fact in facts if fact.name in names} - {None}
        if counts and not counts & {number, lexicon.SOME}:
            yield "count", f"{number} {claim.name}"


def _unspoken_numbers(source):
    if TWO_ROADS.search(source):
        return {2, 4}
    if CORNERS.search(source):
        return {4}
    return set()


def complaint(problems, wanted="中文描述", complaints=COMPLAINTS):
    """The request to write it again, in Chinese, naming each problem."""
    lexicon_key = {"object": "objects", "scene": "scenes", "colour": "colours"}
    parts = []
    for reason, words in problems:
        if reason in lexicon_key:
            words = lexicon.load()[lexicon_key[reason]][words]["zh"][0]
        parts.append(f"{complaints[reason]}（{words}）")
    listed = "；".join(parts)
    return f"这段描述不合要求：{listed}。请只根据前面的英文句子重写，只输出改正后的{wanted}。"


class Report:
    """Rows per reason with the first few as examples; a row with several reasons counts in each."""

    EXAMPLES = 5

    def __init__(self):
        self.passed = self.trimmed = self.rejected = 0
        self.rows = Counter()
        self.examples = {}

    @property
    def total(self):
        return self.passed + self.trimmed + self.rejected

    def add(self, name, target, problems, trimmed=False):
        """name: of the image; problems: see problems(); trimmed: whether a part of it passes."""
        if not problems:
            self.passed += 1
        elif trimmed:
            self.trimmed += 1
        else:
            self.rejected += 1

        for reason in dict.fromkeys(reason for reason, _ in problems):
            self.rows[reason] += 1
            if self.rows[reason] <= self.EXAMPLES:
                words = [text for other, text in problems if other == reason]
                example = {"imged_id": name, "words": words, "text": target}
                self.examples.setdefault(reason, []).append(example)

    def as_dict(self):
        reasons = {}
        for reason, count in self.rows.most_common():
            reasons[reason] = {"rows": count, "examples": self.examples[reason]}
        return {
            "rows": self.total,
            "passed": self.passed,
            "trimmed": self.trimmed,
            "rejected": self.rejected,
            "reasons": reasons,
        }

    def __str__(self):
        trimmed = f"{self.trimmed} trimmed, " if self.trimmed else ""
        lines = [
            f"quality gate: {self.total} rows, {self.passed} passed, {trimmed}"
            f"{self.rejected} rejected"
        ]
        for reason, count in self.rows.most_common():
            example = self.examples[reason][0]
            words = "; ".join(example["words"])
            lines.append(f"  {reason:<10} {count:>6}  e.g. {example['imged_id']}: {words}")
        return "\n".join(lines)
