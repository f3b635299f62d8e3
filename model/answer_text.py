"""Ids of an answer -> the text that people read, in pieces as it comes."""

from model.family import Returning


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


def streamed(steps, texts, stream, on_token=None):
    """Yields a list of pieces, one for each text: as they come if stream, else all at the end.

    steps: a generator of lists of ids, None of a text that has ended; on_token: see
    Family.generate. Returns what steps returns.
    """
    steps = Returning(steps)
    for tokens in steps:
        for index, token in enumerate(tokens):
            if token is None:
                continue
            texts[index].append(token)
            if on_token:
                on_token(index)
        if stream:
            yield [text.next_piece() for text in texts]
    yield [text.last_piece() for text in texts]
    return steps.value
