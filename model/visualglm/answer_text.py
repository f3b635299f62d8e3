"""Ids of an answer of VisualGLM -> the text that people read."""

import re

from model.answer_text import StreamedText

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


class AnswerText(StreamedText):
    """Tidied."""

    def text(self):
        return tidy(self.tokenizer.decode(self.ids))

    def stable_text(self):
        return tidy(stable_prefix(self.tokenizer.decode(self.ids)))
