"""Ids of an answer of a transformers base -> the text that people read."""

from model.answer_text import StreamedText


class AnswerText(StreamedText):
    """Without special tokens and without blanks around it."""

    def text(self):
        return self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()

    def stable_text(self):
        # A character whose bytes are not all there yet
        return self.text().rstrip("\ufffd").rstrip()
