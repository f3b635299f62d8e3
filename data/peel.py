"""Taking a description out of what language models put around it.

Thoughts, code fences, JSON, labels, quotes, numbering, notes and small talk go; what is left is the
text as the model wrote it, for quality.py to judge. Text without any of these stays as it is.
"""

import ast
import html
import json
import re

# characters; what is longer is no description and is left to the gate
MOST = 4_000
# rounds in which one wrapper may lie inside another
ROUNDS = 12

HAN = "\u4e00-\u9fff"
# an answer ends with one of them
CLOSING = "。！？!?.…；;”’」』）)】》"

# ---- thoughts: <think>, [THINK], ◁think▷, <seed:think>, <|START_THINKING|>, <details
# type="reasoning"> and the like; text before a closing mark alone is a thought as well
THOUGHT = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad|(?:inner_)?monologue"
    r"|cot|chain_of_thought|deep_?think|details|思考(?:过程)?|推理(?:过程)?)"
)
MARK = re.compile(
    r"(?P<open>[<\[◁【〈])\s{0,3}[|｜]?\s{0,3}(?P<close>/?)\s{0,3}"
    r"(?:[a-z]{1,8}:|START_|begin_of_|(?P<end>END_|end_of_))?"
    + THOUGHT
    + r"(?:\s[^<>\[\]◁▷\n]{0,200})?\s{0,3}[|｜]?\s{0,3}[>\]▷】〉]",
    re.I,
)
# gpt-oss: <|channel|>analysis<|message|>...<|end|>...<|channel|>final<|message|>answer, or what is
# left of it without the special tokens
FINAL_CHANNEL = re.compile(r"<\|channel\|>\s{0,3}final[^<]{0,80}<\|message\|>")
OTHER_CHANNEL = re.compile(r"<\|?channel\|?>\s*(?:analysis|commentary|thought).*", re.S)
# Gemma closes its channel
CLOSED_CHANNEL = re.compile(r"<\|channel>\s*thought.*?<channel\|>", re.S)
# ollama in a terminal
THINKING, DONE_THINKING = "Thinking...", "...done thinking."
BARE_CHANNEL = re.compile(r"^analysis.*?assistant\s*final", re.S)

# ---- marks that go wherever they stand: (pattern, what takes their place)
MARKS = tuple(
    (re.compile(pattern, re.I), replacement)
    for pattern, replacement in (
        # invisible: control characters, joiners, marks of direction, selectors, tags, BOM
        (r"\r\n?|[\u2028\u2029\x85]", "\n"),
        (
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
            r"\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]",
            "",
        ),
        (r"[\xa0\u1680\u2000-\u200a\u202f\u205f]", " "),
        # special tokens of models
        (
            r"<[|｜][^<>\n]{1,40}?[|｜]>|</?s>|\[/?INST\]"
            r"|<(?:[be]os|pad|unk|(?:start|end)_of_turn)>",
            "",
        ),
        # HTML
        (r"</?(?:p|br|div|li|ul|ol|h[1-6]|tr)(?:\s[^<>]{0,200})?/?>", "\n"),
        (
            r"</?(?:b|i|u|em|strong|span|font|mark|code|pre|blockquote|html|body|sentence|answer"
            r"|final|final_answer|output|result|response|description|translation|caption|text|zh"
            r"|chinese|content)(?:\s[^<>]{0,200})?/?>",
            "",
        ),
        (r"\$?\\(?:boxed|text)\{([^{}]*)\}\$?", r"\1"),
        # Markdown
        (r"(\*{1,3})([^*\n]+)\1", r"\2"),
        (r"(_{2}|~~|`{1,2})([^_~`\n]+)\1", r"\2"),
    )
)
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d{0,2});", re.I)
# full-width letters, digits and brackets of tags
WIDE = {wide: wide - 0xFEE0 for wide in (*range(0xFF10, 0xFF1A), 0xFF1C, 0xFF1E)}
WIDE |= {wide: wide - 0xFEE0 for wide in (*range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}

# ---- of a text that tags its answer, only that
TAGGED = re.compile(
    r"<(answer|final|final_answer|output|result|response|description|translation|caption)>"
    r"([^<>]*)</\1>",
    re.I,
)
BOXED = re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.S)

# ---- lines
OUTER_FENCE = re.compile(r"^(?:```|~~~)[\w-]*\s*|\s*(?:```|~~~)$")
# an object of one text whose end is missing
TORN_JSON = re.compile(r"""^\{\s*["'][^"'\n]{1,30}["']\s*[:：]\s*["']([^"'{}]{6,})["']?\s*,?$""")
FENCED_JSON = re.compile(r"(?:```|~~~)[\w-]*\s*([{\[][^`~]*)(?:```|~~~)")
FENCE = re.compile(r"^(?:```|~~~)[\w-]*$|^[-=_*#~·—\s]{2,}$")
HEADING = re.compile(r"^#{1,6}\s*")
BULLET = re.compile(
    r"^(?:[-*+•·●○▪■◦►>➤✓✔※－—]\s*|(?:第[一二三四五六七八九十]句|句子?)\s*\d{0,2}\s*[:：]\s*"
    r"|[（(]?\d{1,2}[）)、]\s*|\d{1,2}[.．](?!\d)\s*|[①-⑳❶-❿]\s*"
    r"|[（(]?[一二三四五六七八九十]{1,2}(?:[）)]|、(?![一二三四五六七八九十两]))\s*)"
)
LABEL_WORDS = (
    r"(?:描述|译文|译|翻译|回答|答案?|答复|回复|输出|结果|改写|合并|概括|扩写|总结|摘要|版本|文本|内容"
    r"|句子|图说|标题|说明|中文|汉语|简体|以下|如下|caption|description|translation|answer|output"
    r"|result|summary|response|text|chinese|assistant|final)"
)
LABEL = re.compile(
    r"^(?:[AQ]|[^。！？!?\n：:]{0,60}?" + LABEL_WORDS + r")(?:结果|如下|为|是"
    r"""|[（(][^（）()]{0,20}[）)]|[\s"'”’】\]*])*[:：]\s*""",
    re.I,
)
# a label in brackets instead of before a colon
BRACKETED = re.compile(
    r"^[【\[（(][^【】\[\]（）()。，]{0,12}" + LABEL_WORDS + r"[】\]）)]\s*[:：]?\s*"
)
TALK = re.compile(
    r"^(?:好的?|好嘞|当然(?:可以|没问题)?|没问题|可以|明白了?|了解|收到|OK|Okay|Sure|Certainly"
    r"|Of course|Got it)(?:[，,。.！!～~、]\s*)+",
    re.I,
)
# labels of what follows a description
AFTER = (
    r"(?:注意?|备注|注释|附注|注解|提示|补充|(?:补充|翻译|修改|改写)?说明|译注|译者注|解释|解析|理由"
    r"|字数(?:统计)?|原文|英文(?:原文)?|Notes?|P\.?S|Explanation|English)"
)
NOTE = re.compile(r"^[（(【\[*\s]*" + AFTER + r"\s*\d{0,2}[*\s]*[】\]]?[*\s]*[:：]", re.I)
# at the end of a line: a note in brackets, or after the last sentence
TAILS = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        r"\s*[（(【\[]\s*" + AFTER + r"\s*\d{0,2}\s*[:：][^（）()【】\[\]]{0,300}[）)】\]]\s*。?$",
        r"\s*[（(【\[](?:全文|正文|合计|总计|共计?|约)?\s*\d{1,4}\s*个?汉?字符?[^（）()【】\[\]]{0,10}"
        r"[）)】\]]\s*。?$",
        r"(?<=[。！？])\s*" + AFTER + r"\s*\d{0,2}\s*[:：].*$",
        r"(?<=[。！？])\s*(?:希望(?:这|以上|能|对|该)|如需|如果(?:您|你|需要)|如有|若(?:您|你|需|有)"
        r"|请告诉我|请随时|需要我|还需要|是否需要|以上(?:就?是|为)|Let me know|I hope|Hope|If you)"
        r".*$",
    )
)
# of a text in several parts, the answer is the last that is labelled so
FINAL = re.compile(
    r"^\W{0,4}(?:最终|最后|合并后?的?|改写后?的?|翻译后?的?|简体|中文|汉语|Chinese|Final)*\s*的?"
    r"(?:描述|译文|翻译|答案?|回答|回复|输出|结果|版本|文本|中文|汉语|description|translation|answer"
    r"|output|result|caption|chinese)(?:结果|如下|为|是)?[\W_]{0,6}?[:：]",
    re.I,
)

PAIRS = (
    "“”",
    "‘’",
    '""',
    "''",
    "「」",
    "『』",
    "《》",
    "【】",
    "（）",
    "()",
    "[]",
    "``",
    "{}",
    "〈〉",
)
# keys of a JSON object under which a description stands; the first found wins
KEYS = (
    "description", "描述", "中文描述", "图像描述", "caption", "translation", "译文", "翻译", "中文",
    "chinese", "zh", "target", "final_answer", "answer", "答案", "回答", "output", "输出", "result",
    "结果", "text", "文本", "content", "内容", "response", "summary",
)  # fmt: skip
SENTENCE = re.compile(r"[^。！？!?\n]+[。！？!?]*[”’）」』)]*|[。！？!?\n]+")
# characters of a sentence from which on saying it again is an accident
REPEATED = 6


def without_thoughts(text):
    """The text outside thoughts, "" if there is nothing else."""
    if text.lstrip().startswith(THINKING):
        text = text.partition(DONE_THINKING)[2]
    text = CLOSED_CHANNEL.sub("", text)
    text = FINAL_CHANNEL.split(text)[-1]
    text = OTHER_CHANNEL.sub("", text)
    text = BARE_CHANNEL.sub("", text, count=1)

    kept, start, thinking = [], 0, False
    for mark in MARK.finditer(text.translate(WIDE)):
        closes = bool(mark["close"] or mark["end"])
        if not thinking and closes:
            kept = []
        elif not thinking:
            kept.append(text[start : mark.start()])
        thinking = not closes
        start = mark.end()
    if not thinking:
        kept.append(text[start:])
    return "".join(kept).strip()


def peel(text):
    """The description in an answer of a model, in one line; "" if it has none.

    Of more than ROUNDS wrappers inside each other, or in a very long text, some stay.
    """
    if len(text) > MOST:
        text = without_thoughts(text)
    if len(text) > MOST:
        return text
    for _ in range(ROUNDS):
        before = text
        for rule in RULES:
            text = rule(text).strip()
        if text == before:
            break
    return text


def _decoded(text):
    return ENTITY.sub(lambda entity: html.unescape(entity[0]), text.translate(WIDE))


def _tagged(text):
    found = BOXED.search(text)
    if found:
        return found[1]
    found = TAGGED.search(text)
    return found[2] if found and _has_chinese(found[2]) else text


def _unmarked(text):
    for pattern, replacement in MARKS:
        text = pattern.sub(replacement, text)
    return text


def _unquoted_json(text):
    """The text in a JSON value, or as Python writes one; also inside a code fence."""
    fenced = FENCED_JSON.search(text)
    inner = (
        fenced[1].strip() if fenced else re.sub(r"^(?:```|~~~)[\w-]*\s*|\s*(?:```|~~~)$", "", text)
    )
    if inner[:1] not in ("{", "[", '"'):
        return text
    for parse in (_json, ast.literal_eval):
        try:
            found = _text_in(parse(inner))
        # SyntaxError, MemoryError: literal_eval
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        # or JSON again, in escapes
        if found and (_has_chinese(found) or "\\u" in found):
            return _unquoted_json(found)
    torn = TORN_JSON.match(inner)
    return torn[1] if torn else text


def _json(text):
    return json.loads(text, strict=False)


def _text_in(value):
    """The one text that a value holds, or None."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _joined(value)
    if not isinstance(value, dict):
        return None

    lower = {str(key).lower(): part for key, part in value.items()}
    for key in KEYS:
        if lower.get(key):
            return _text_in(lower[key])
    texts = [part for part in value.values() if isinstance(part, str) and _has_chinese(part)]
    if len(texts) == 1:
        return texts[0]
    return _text_in(next(iter(value.values()))) if len(value) == 1 else None


def _joined(values):
    texts = [_text_in(value) for value in values]
    if not texts or not all(texts):
        return None
    return "\n".join(texts)


def _lined(text):
    """Without labels, numbering, headings, notes and foreign lines; what goes together in one."""
    # JSON that could not be read
    if text[:1] in ("{", "[") and not BRACKETED.match(text):
        return text
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not FENCE.match(line)]
    for number in range(len(lines) - 1, 0, -1):
        if FINAL.match(lines[number]):
            lines = lines[number:]
            break

    several, kept = sum(map(_has_chinese, lines)) > 1, []
    for line in lines:
        if kept and (NOTE.match(line) or not _has_chinese(line)):
            continue
        title = HEADING.match(line) and line[-1] not in CLOSING
        if not (title and several):
            kept.append(_bare(line))
    if any(map(_has_chinese, kept)):
        kept = [line for line in kept if _has_chinese(line)]
    return _one_line(kept)


def _bare(line):
    for pattern in (HEADING, BULLET, TALK, BRACKETED, LABEL):
        line = pattern.sub("", line, count=1)
    for pattern in TAILS:
        line = pattern.sub("", line)
    return line.strip()


def _one_line(lines):
    """Joined where each line ends like a sentence or its part; otherwise line breaks stay."""
    lines = [line for line in lines if line]
    if all(line[-1] in CLOSING + "，、,：" for line in lines[:-1]):
        return "".join(lines)
    return "\n".join(lines)


def _unwrapped(text):
    """Without a pair of quotes or brackets around the whole."""
    stop = re.search("[。.]?$", text)[0]
    body = text[: len(text) - len(stop)]
    for opening, closing in PAIRS:
        if len(body) < 2 or body[0] != opening or body[-1] != closing:
            continue
        inner = body[1:-1]
        if opening in inner or closing in inner:
            continue
        if stop and inner[-1:] not in CLOSING:
            return inner + stop
        return inner
    return text


def _once(text):
    """Without sentences that repeat an earlier one word for word."""
    seen, kept = set(), []
    for sentence in SENTENCE.findall(text):
        bare = sentence.strip()
        if len(bare) >= REPEATED and bare in seen:
            continue
        seen.add(bare)
        kept.append(sentence)
    return "".join(kept)


def _has_chinese(text):
    return re.search(f"[{HAN}]", text) is not None


RULES = (
    _decoded,
    without_thoughts,
    _tagged,
    _unmarked,
    _unquoted_json,
    _lined,
    _unwrapped,
    _once,
)
