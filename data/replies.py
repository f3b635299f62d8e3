"""What an OpenAI-compatible endpoint sends, whatever its shape -> the text of the answer."""

import json
import re
from dataclasses import dataclass

from model.files import parse_json

# Why an answer ended: it is whole. Whatever else, a length, an error, a vendor's word: it is not.
WHOLE = re.compile(
    r"stop|stop.?(?:sequence|token|word|hit)\w*|eos(?:.?token)?|end(?:ed)?|end.?of.?turn|end.?turn|"
    r"complete[d]?|finish(?:ed)?|finish.?reason.?stop|normal|success|done"
)
# ... or a limit of tokens has cut it
CUT_ENDING = re.compile(
    r"length|(?:max|model).?(?:new.?)?(?:output.?)?(?:tokens?|length)|token.?limit"
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
# where vendors say what is wrong under status 200
ERROR_KEYS = ("error", "errors", "Error", "Response", "base_resp")
CODE_KEYS = ("code", "Code", "error_code", "status_code", "type")
MESSAGE_KEYS = ("message", "Message", "msg", "error_msg", "status_msg", "detail")
URL_HINT = "does the base URL end in /v1?"
# how a finished Chinese sentence ends
ENDING = re.compile(r"[。！？!?….．][”’」』）)\]】]*$")


class UnusableReply(Exception):
    """A reply without a text of an answer; the message says what it was instead."""


@dataclass
class Reply:
    """text: as sent; ending: why it ended, "" if unsaid; usage: {"prompt_tokens", ...} or None.

    cut: what a server of this project did not read, {"rounds", "question_tokens"}, or None.
    """

    text: str
    ending: str
    usage: dict | None
    cut: dict | None = None

    @property
    def is_filtered(self):
        return bool(FILTERED_ENDING.search(self.ending))

    @property
    def is_truncated(self):
        """Whether a limit of tokens has ended it."""
        return bool(CUT_ENDING.fullmatch(self.ending))

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
            event = _json(data.strip())
            if event is not None:
                yield event


def _joined(events):
    """The pieces of a stream as one reply."""
    pieces, ending, usage, cut = [], "", None, None
    for event in events:
        reply = _reply(event, piece=True)
        pieces.append(reply.text)
        ending = reply.ending or ending
        usage = reply.usage or usage
        cut = reply.cut or cut
    return Reply("".join(pieces), ending, usage, cut)


def _reply(data, piece=False):
    """Of one JSON object; piece: of a stream, where the last ones may hold no choice."""
    if isinstance(data, list) and len(data) == 1:
        [data] = data
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
    if choice.get("error"):
        raise UnusableReply(_as_text(choice["error"]))
    ending = choice.get("finish_reason")
    ending = ending.strip().lower() if isinstance(ending, str) else ""
    message = choice.get("delta") or choice.get("message")
    if isinstance(message, dict):
        text = _text(message.get("content"))
        if message.get("refusal") and not text:
            ending = "refusal"
        if not text and isinstance(message.get("reasoning_content"), str) and not piece:
            text = f"<think>{message['reasoning_content']}"
    else:
        text = _text(choice.get("text"))
    return Reply(text, ending, usage, data.get("cut"))


def _said_error(data):
    """What a server says is wrong, in a reply that looks like a success; "" if nothing."""
    for key in ERROR_KEYS:
        if data.get(key):
            return _as_text(data[key])
    if data.get("choices"):
        return ""
    return _as_text(data) if any(data.get(key) for key in MESSAGE_KEYS) else ""


def _as_text(error):
    """Code and message, wherever vendors put them."""
    if isinstance(error, dict):
        for key in ERROR_KEYS:
            if error.get(key):
                return _as_text(error[key])
        parts = [error.get(key) for key in (*CODE_KEYS, *MESSAGE_KEYS)]
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
