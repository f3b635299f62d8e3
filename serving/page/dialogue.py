"""A dialogue as text, on the server: what was asked and answered, and remarks of the page."""

import re
from dataclasses import dataclass, field
from typing import Any

USER, ASSISTANT = "user", "assistant"
# Trap: Gradio's Chatbot takes tags and entities of HTML for what they are, render_markdown=False or
# not. This invisible character (WORD JOINER) behind < and & makes them text.
JOINER = "\u2060"
MARKUP = re.compile(r"[<&](?=[A-Za-z!/?#])")


def as_text(text: str) -> str:
    """A text that Gradio's Chatbot shows as it is."""
    return MARKUP.sub(rf"\g<0>{JOINER}", text)


@dataclass(eq=False)  # two of the same text are two
class Message:
    """options: (value, label) of buttons below it; unsent: the question that a remark is about,
    where it was not asked.

    A remark of the page is no part of the history.
    """

    role: str
    text: str
    is_remark: bool = False
    options: tuple[tuple[str, str], ...] = ()
    unsent: str | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """Gradio's form of it."""
        options = [{"value": value, "label": label} for value, label in self.options]
        return {"role": self.role, "content": as_text(self.text), "options": options}


@dataclass
class Dialogue:
    """earlier: (question, answer) pairs of another dialogue that this one begins after."""

    messages: list[Message] = field(default_factory=list)
    earlier: tuple[tuple[str, str], ...] = ()

    def ask(self, question: str) -> Message:
        """Add a question -> its answer, still empty, which grows where it stands."""
        answer = Message(ASSISTANT, "")
        self.messages += [Message(USER, question), answer]
        return answer

    def remark(
        self, text: str, options: tuple[tuple[str, str], ...] = (), unsent: str | None = None
    ) -> None:
        self.messages.append(Message(ASSISTANT, text, True, options, unsent))

    def remark_before(self, answer: Message, text: str) -> None:
        """A remark on the question of an answer."""
        self.messages.insert(self.messages.index(answer) - 1, Message(ASSISTANT, text, True))

    @property
    def history(self) -> list[tuple[str, str]]:
        """(question, answer) pairs; a question without an answer is left out."""
        pairs = list(self.earlier)
        for asked, reply in zip(self.messages, self.messages[1:]):
            is_pair = (asked.role, reply.role) == (USER, ASSISTANT)
            if is_pair and reply.text and not reply.is_remark:
                pairs.append((asked.text, reply.text))
        return pairs

    @property
    def questions(self) -> list[int]:
        """Where the questions stand in `messages`."""
        return [index for index, message in enumerate(self.messages) if message.role == USER]

    def copy(self) -> "Dialogue":
        """The same messages, in a list of its own."""
        return Dialogue(list(self.messages), self.earlier)

    def clear(self) -> None:
        self.messages.clear()
        self.earlier = ()

    def cut(self, question: int) -> None:
        """Drop a question, counted from 0, with what was remarked of it and all that follows."""
        start = self.questions[question]
        while start and self.messages[start - 1].is_remark:
            start -= 1
        del self.messages[start:]

    def shown(self, sign: str = "") -> list[dict[str, Any]]:
        """Gradio's form. sign: what stands in the place of an empty answer at the end."""
        messages = [message.shown for message in self.messages]
        if messages and not messages[-1]["content"]:
            messages[-1]["content"] = sign
        return messages
