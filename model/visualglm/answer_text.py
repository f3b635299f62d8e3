"""Ids of an answer -> the text that people read, in pieces as it comes."""

import re

FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
DATE = ("[[训练时间]]", "2023年")


def tidy(text):
    """VisualGLM's post-processing: full-width punctuation next to Chinese, the training date.

    Source: process_response in chat.py of VisualGLM-6B.
    """
    text = text.strip().replace(*DATE)

    def wide(mark):
        return mark.group().translate(FULL_WIDTH)

    text = re.sub(r"(?<=[\u4e00-\u9fff])[,!:;?]", wide, text)
    return re.sub(r"[,!:;?](?=[\u4e00-\u9fff])", wide, text)


def stable_prefix(text):
    """The beginning of an unfinished answer that no later token can change."""
    if DATE[0][:2] in text:
        opened = text.rindex(DATE[0][:2])
        if DATE[0] not in text[opened:]:
            text = text[:opened]
    return re.sub(r"( n'?)?[ ,!:;?'.\[\ufffd]*$", "", text)


class AnswerText:
    """The text of one answer while its tokens arrive."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""

    def append(self, token):
        self.ids.append(token)

    def next_piece(self):
        """What can be shown beyond what has been shown; "" if nothing."""
        text = tidy(stable_prefix(self.tokenizer.decode(self.ids)))
        if len(text) <= len(self.shown) or not text.startswith(self.shown):
            return ""
        piece = text[len(self.shown) :]
        self.shown = text
        return piece

    def last_piece(self):
        """The rest of the finished answer."""
        return tidy(self.tokenizer.decode(self.ids))[len(self.shown) :]
