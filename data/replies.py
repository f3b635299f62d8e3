"""What language models and their servers send, whatever its shape -> the text of the answer.

`parse` reads a reply's body, `peel` takes wrappers off its text: thoughts, code fences, JSON,
labels, quotes, marks. What is no wrapper stays, for the quality gate to complain about.
"""

import html
import json
import re
import unicodedata
from dataclasses import dataclass

from model.files import parse_json

# Why an answer ended: it is whole. Whatever else, a length, an error, a vendor's word: it is not.
WHOLE = re.compile(
    r"stop|stop.?(?:sequence|token|word|hit)\w*|eos(?:.?token)?|end(?:ed)?|end.?of.?turn|end.?turn|"
    r"complete[d]?|finish(?:ed)?|finish.?reason.?stop|normal|success|done"
)
# ... or a filter of the endpoint has refused, which a code or message of an error may say as well
FILTERED_ENDING = re.compile(
    r"filter|sensitiv|safety|block|prohibit|moderat|policy|risk|recitation|refus|guardrail|censor"
)
FILTERED = re.compile(
    r"content.?(?:filter|policy|moderation|safety|management)|content exists risk|data.?inspection|"
    r"moderation|responsible.?ai|inappropriate content|sensitive.{0,2}(?:content|word|info|text)|"
    r"\b1301\b|敏感|违规|不安全|审核",
    re.IGNORECASE,
)
URL_HINT = "does the base URL end in /v1?"
# how a finished Chinese sentence ends
ENDING = re.compile(r"[。！？!?….．][”’」』）)\]】]*$")
# characters of an answer that are looked at, thoughts left out
LONGEST = 4000
# nesting of JSON around an answer that is looked into
DEPTH = 5

TEXT_KEYS = (
    *("description", "caption", "translation", "text", "content", "answer", "output", "result"),
    *("response", "chinese", "zh", "描述", "中文描述", "图像描述", "译文", "翻译", "中文", "概括"),
    *("总结", "回答", "答案", "结果", "输出", "内容"),
)
THOUGHT = r"(?:\w+:)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|思考)"
THOUGHT_MARK = re.compile(
    rf"[<＜\[◁]\|?(?:(?P<end>/|end_of_)|begin_of_)?{THOUGHT}\|?[>＞\]▷]", re.IGNORECASE
)
# gpt-oss: the answer stands in the final channel
FINAL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
OTHER_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)")
# ollama in a terminal
THINKING, DONE_THINKING = "Thinking...", "...done thinking."
SPECIAL_TOKENS = re.compile(r"<[|｜][^<>]{1,30}[|｜]>|</?s>|\[/?INST\]")

LABEL = (
    r"(?:最终|以下|中文|简短|图像|图片|遥感|影像|完整|合并后?的?|改写后?的?)*"
    r"(?:描述|译文|翻译|回答|答案|答|输出|结果|概括|总结|说明|中文|内容|概述)(?:如下|为|是)?"
)
ENGLISH_LABEL = r"(?:(?:chinese|final|image) )?(?:description|caption|translation|answer|output)"
LEAD = (
    r"(?:好的|当然|没问题|明白了|以下(?:是|为)|下面是|根据(?:您|你|上述|以上|提供|给出|英文|描述)|"
    r"sure|certainly|of course|ok(?:ay)?|here(?:'s| is| are)|the (?:chinese|translation))"
    r"[^。\n：:]{0,60}"
)
WRAPPERS = (
    # a code fence, also with a line before it
    re.compile(r"^[^\n]{0,60}\s*```[A-Za-z0-9_+-]*\s*\n(?P<text>.*?)\n?\s*```\s*$", re.DOTALL),
    re.compile(r"^```[A-Za-z0-9_+-]*\s*(?P<text>.*?)\s*```$", re.DOTALL),
    re.compile(
        r"^.*<(?P<tag>answer|output|result|final|response|translation|description|caption|p|zh)>"
        r"(?P<text>.*)</(?P=tag)>.*$",
        re.DOTALL | re.IGNORECASE,
    ),
    re.compile(r"^\\boxed\{(?P<text>.*)\}$", re.DOTALL),
    # a label or a lead-in, with its marks: **描述**：, ## 译文, 答：, 好的，以下是描述：
    re.compile(
        rf"^[\s*_#>【\[“\-]*(?:{LABEL}|{ENGLISH_LABEL}|{LEAD})[\s*_】\]”]*(?:[：:]|\n|(?<=[】\]]))"
        r"[\s*_]*(?P<text>.+)$",
        re.DOTALL | re.IGNORECASE,
    ),
    re.compile(r"^(?:好的|当然|没问题|明白了)[，,。！!]+\s*(?P<text>.+)$", re.DOTALL),
    *(
        re.compile(rf"^{left}(?P<text>[^{left}{right}]+){right}$", re.DOTALL)
        for left, right in ("“”", "‘’", "「」", "『』", '""', "''", "《》", "【】")
    ),
)
NOTE = re.compile(
    r"\s*[（(【\[](?:注|备注|说明|附注|note)s?[：:][^（(【\[]*[）)】\]]\s*$"
    r"|\n\s*[*_]*(?:注|备注|说明|附注|notes?)(?:意)?[*_]*[：:].*$",
    re.DOTALL | re.IGNORECASE,
)
BULLET = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]+|[-*•·–—>▪●◦][ \t]+|[•·▪●◦]|\d{1,2}[.、)）](?!\d)[ \t]*|"
    r"[（(]\d{1,2}[)）][ \t]*|[①-⑳][ \t]*|第[一二三四五]句?[，,：:])",
    re.MULTILINE,
)
EMPHASIS = re.compile(
    r"(\*\*\*|\*\*|\*|___|__|~~|`)(?=\S)(.{1,200}?)(?<=\S)\1",
    re.DOTALL,
)
HEADING = re.compile(rf"(?:{LABEL}|{ENGLISH_LABEL})", re.IGNORECASE)
REPEATED = re.compile(r"(.{6,}?)\s*(?:\1\s*)+", re.DOTALL)


class UnusableReply(Exception):
    """A reply without a text of an answer; the message says what it was instead."""


@dataclass
class Reply:
    """text: as sent; ending: why it ended, "" if unsaid; usage: {"prompt_tokens", ...} or None."""

    text: str
    ending: str
    usage: dict | None

    @property
    def is_filtered(self):
        return bool(FILTERED_ENDING.search(self.ending))

    @property
    def is_whole(self):
        """Whether nothing is missing, as far as the server tells."""
        if self.ending:
            return bool(WHOLE.fullmatch(self.ending))
        return bool(ENDING.search(self.text.rstrip()))


def parse(body):
    """The body of a chat completion, as JSON or as server-sent events -> Reply.

    Raises UnusableReply; where the server names an error, it stands in the message.
    """
    text = body.lstrip("\ufeff \t\r\n")
    if re.match(r"(?:data|event|id|retry)?:", text):
        return _joined(_events(text))
    return _reply(_json(text))


def _json(text):
    if re.match(r"<(?:!doctype|html|\?xml|head|body)", text, re.IGNORECASE):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        shown = f' ("{" ".join(title[1].split())[:60]}")' if title else ""
        raise UnusableReply(f"not a chat completion but a web page{shown}; {URL_HINT}")
    try:
        return parse_json(text)
    except ValueError as error:
        raise UnusableReply(f"a reply that is not JSON: {str(error)[:100]}") from None


def _events(text):
    """The JSON of each event of a stream."""
    for line in text.splitlines():
        name, _, data = line.partition(":")
        if name == "data" and data.strip() not in ("", "[DONE]"):
            yield _json(data.strip())


def _joined(events):
    """The pieces of a stream as one reply."""
    pieces, ending, usage = [], "", None
    for event in events:
        reply = _reply(event, piece=True)
        pieces.append(reply.text)
        ending = reply.ending or ending
        usage = reply.usage or usage
    return Reply("".join(pieces), ending, usage)


def _reply(data, piece=False):
    """Of one JSON object; piece: of a stream, where the last ones may hold no choice."""
    if not isinstance(data, dict):
        raise UnusableReply(f"not a chat completion but {type(data).__name__}; {URL_HINT}")
    said = _said_error(data)
    if said:
        raise UnusableReply(said)
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else None

    choices = data.get("choices")
    if piece and not choices:
        return Reply("", "", usage)
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnusableReply(f"not a chat completion: no choices; {URL_HINT}")
    choice = choices[0]
    ending = choice.get("finish_reason")
    ending = ending.strip().lower() if isinstance(ending, str) else ""
    message = choice.get("delta" if piece else "message")
    if isinstance(message, dict):
        text = _text(message.get("content"))
    else:
        text = _text(choice.get("text"))
    return Reply(text, ending, usage)


def _said_error(data):
    """What a server says is wrong, in a reply that looks like a success; "" if nothing."""
    error = data.get("error")
    if error:
        return _as_text(error)
    if data.get("choices"):
        return ""
    for code, message in (("code", "message"), ("error_code", "error_msg"), ("code", "msg")):
        if data.get(message):
            return f"{data.get(code, '')} {_as_text(data[message])}".strip()
    return ""


def _as_text(error):
    if isinstance(error, dict):
        parts = [error.get("code"), error.get("type"), error.get("message")]
        return " ".join(str(part) for part in parts if part) or json.dumps(error)[:200]
    return str(error)


def _text(content):
    """The text of a content: a text, or the text parts of a list; of any other shape ""."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return ""
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
            part = part.get("text")
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def peel(text):
    """An answer without what models wrap it in; "" where it is nothing but thoughts."""
    text = SPECIAL_TOKENS.sub("", _without_thoughts(_visible(text))).strip()[:LONGEST]
    before = None
    while text != before:
        before = text
        text = _unwrapped(text)
    text = _one_paragraph(text)
    twice = REPEATED.fullmatch(text)
    return twice[1].strip() if twice else text


def _visible(text):
    """Entities as characters; without what is invisible, line ends kept."""
    text = html.unescape(text).replace("\r\n", "\n").replace("\u2028", "\n")
    kept = []
    for character in text:
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf"):
            kept.append(character)
    return "".join(kept)


def _without_thoughts(text):
    """Thoughts may be closed, opened before the answer began, or never closed."""
    text = FINAL.split(text)[-1]
    text = OTHER_CHANNEL.split(text)[0]
    if text.lstrip().startswith(THINKING):
        text = text.partition(DONE_THINKING)[2]

    kept, start, is_thought = [], 0, False
    for mark in THOUGHT_MARK.finditer(text):
        if mark["end"] and not is_thought:
            kept.clear()
        elif not mark["end"] and not is_thought:
            kept.append(text[start : mark.start()])
        is_thought = not mark["end"]
        start = mark.end()
    if not is_thought:
        kept.append(text[start:])
    return "".join(kept)


def _unwrapped(text):
    """The text without its outermost wrapper, if it has one."""
    text = NOTE.sub("", text).strip()
    if text[:1] in ("{", "[", '"'):
        try:
            inner = _inside(parse_json(text))
        except ValueError:
            inner = ""
        if inner:
            return inner.strip()
    for wrapper in WRAPPERS:
        match = wrapper.match(text)
        if match:
            return match["text"].strip()
    return text


def _inside(value, depth=DEPTH):
    """The text that JSON around an answer holds, "" if it is not clear which."""
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if isinstance(value, list):
        texts = [_inside(item, depth - 1) for item in value]
        return "".join(texts) if all(texts) else ""
    if isinstance(value, dict):
        if len(value) == 1:
            return _inside(*value.values(), depth - 1)
        for name, item in value.items():
            if name.strip().lower() in TEXT_KEYS:
                return _inside(item, depth - 1)
    return ""


def _one_paragraph(text):
    """Lines without bullets, numbers, headings and emphasis, joined."""
    text = EMPHASIS.sub(r"\2", BULLET.sub("", text))
    lines = [line.strip() for line in text.splitlines()]
    return "".join(line for line in lines if line and not HEADING.fullmatch(line))
