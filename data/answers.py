"""The answer in a reply, or why there is none."""

from data.peel import peel


class Refused(Exception):
    """A filter of the endpoint refuses this request; the message says what it said."""


class NoAnswer(Exception):
    """The endpoint replied, but with no usable text, or not in time."""


def usable_text(reply, bare=peel):
    """The answer in a Reply, without what bare(text) takes off.

    Raises Refused where a filter refuses, NoAnswer.
    """
    text = bare(reply.text)
    if reply.is_filtered:
        raise Refused(f"finish_reason {reply.ending}")
    if not text and reply.text.strip():
        raise NoAnswer("thoughts and no answer; --extra-body may turn thinking off")
    if not text or not reply.is_whole:
        raise NoAnswer(f"empty or cut answer (finish_reason {reply.ending or 'not given'})")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoAnswer("half a surrogate pair, which no file can store") from None
    return text
