"""Tokens and cost of requests: estimated before a reply, counted by what it reports."""

import math
import re

# tokens that a message has beside its text
TOKENS_PER_MESSAGE = 4


# of an image of 768 pixels a side, as GPT-4o and Qwen2.5-VL count about, before a reply has told
TOKENS_PER_IMAGE = 800


# a number of tokens above it is no count
MOST_TOKENS = 10**7


def estimated_tokens(text):
    """About as many as common tokenizers make of it.

    One per Chinese character, four per three English words.
    """
    chinese = len(re.findall("[\u4e00-\u9fff，。：、；“”]", text))
    return chinese + math.ceil(4 / 3 * len(re.findall(r"[A-Za-z0-9]+", text)))


def prompt_tokens(messages):
    """Estimated tokens of a request's messages."""
    return sum(_content_tokens(m["content"]) + TOKENS_PER_MESSAGE for m in messages)


def _content_tokens(content):
    """Of a text, or of a list of parts: {"type": "text" or "image_url", ...}."""
    if isinstance(content, str):
        return estimated_tokens(content)
    texts = [part["text"] for part in content if part["type"] == "text"]
    return sum(map(estimated_tokens, texts)) + TOKENS_PER_IMAGE * (len(content) - len(texts))


def cost_of(args, tokens_in, tokens_out):
    """By args.price_in and args.price_out, per million tokens or None."""
    return (tokens_in * (args.price_in or 0) + tokens_out * (args.price_out or 0)) / 1e6


def reported_tokens(usage):
    """(tokens in, tokens out) as a reply reports them; (0, 0) where it does not, or nonsense."""
    used = [(usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(type(count) is int and 0 <= count <= MOST_TOKENS for count in used):
        return 0, 0
    return tuple(used)
