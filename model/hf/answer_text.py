"""Ids of an answer -> the text that people read, in pieces as it comes."""


class AnswerText:
    """The text of one answer while its tokens arrive."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""

    def append(self, token):
        self.ids.append(token)

    def _text(self):
        return self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()

    def next_piece(self):
        """What can be shown beyond what has been shown; "" if nothing."""
        # A character whose bytes are not all there yet
        text = self._text().rstrip("\ufffd").rstrip()
        if len(text) <= len(self.shown) or not text.startswith(self.shown):
            return ""
        piece = text[len(self.shown) :]
        self.shown = text
        return piece

    def last_piece(self):
        """The rest of the finished answer."""
        return self._text()[len(self.shown) :]
