"""Ids of an answer -> the text that people read, in pieces as it comes."""


class StreamedText:
    """The text of one answer while its tokens arrive.

    A subclass says what the ids mean: `text` of all of them, and `stable_text`, the beginning of it
    that no later token can change.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids = []
        self.shown = ""

    def append(self, token):
        self.ids.append(token)

    def next_piece(self):
        """What can be shown beyond what has been shown; "" if nothing."""
        text = self.stable_text()
        if len(text) <= len(self.shown) or not text.startswith(self.shown):
            return ""
        piece = text[len(self.shown) :]
        self.shown = text
        return piece

    def last_piece(self):
        """The rest of the finished answer."""
        return self.text()[len(self.shown) :]
