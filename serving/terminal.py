"""A dialogue in a terminal: image after image, question after question, answers as they come."""

import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from model.errors import UserError, printable
from model.sampling import Sampling
from serving.page.words import KINDS, cut_note

HISTORY = "~/.remoteglm_history"
HISTORY_LINES = 1000

# What a person sees, by --english; reasons: what happens most to an image's path, and what is said
WORDS = {
    False: {
        "image": "请输入图像路径（回车进入纯文本对话，stop 退出）：",
        "user": "用户：",
        "model": "RemoteGLM：",
        "base": "微调前：",
        "hint": "clear 换一张图像，stop 退出。",
        "error": "错误：",
        "truncated": "注意：回答到了长度上限（--max_length）就停下了",
        "reasons": {
            "no such file": "没有这个文件",
            "a folder; name one image in it": "是文件夹，请写出其中的一幅图像",
            "not an image Pillow can read (PNG, JPEG, TIFF, ... expected)": KINDS["unreadable"],
        },
    },
    True: {
        "image": "Path of an image (empty: plain text, stop: leave): ",
        "user": "You: ",
        "model": "RemoteGLM: ",
        "base": "Before fine-tuning: ",
        "hint": "clear: another image, stop: leave.",
        "error": "error: ",
        "truncated": "note: the answer was stopped by the length limit (--max_length)",
        "reasons": {},
    },
}


def talk(speaker, read, first):
    """A dialogue in the terminal, until Ctrl-D or `stop`; as `converse`."""
    try:
        with line_history():
            converse(speaker, read, first)
    except EOFError:  # Ctrl-D
        print()


@contextmanager
def line_history():
    """Line editing in a terminal, with what was typed in earlier dialogues."""
    try:
        import readline
    except ImportError:  # Windows
        readline = None
    if readline is None or not sys.stdin.isatty():
        yield
        return

    path = os.path.expanduser(HISTORY)
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)


def read_line(prompt, words):
    """A line that a person typed, without blanks around it. Raises EOFError at Ctrl-D."""
    while True:
        try:
            typed = input(prompt)
            typed.encode()
            return typed.strip()
        except KeyboardInterrupt:  # drops the line, as a shell does
            print()
        except UnicodeError as error:  # the terminal sends another encoding than it says
            print(f"{words['error']}not UTF-8 ({error})")


def converse(speaker, read, first):
    """Image after image until `stop`; read: path -> image. Raises EOFError at Ctrl-D."""
    words = speaker.words
    last = None
    while last != "stop":
        path = read_line(words["image"], words).strip("'\"")
        if path == "stop":
            return

        image = None
        try:
            if path:
                image = read(path)
        except KeyboardInterrupt:
            print()
            continue
        except UserError as error:
            print(words["error"] + image_problem(error, printable(path), words["reasons"]))
            continue

        print(words["hint"])
        last = converse_about(speaker, image, first)


def image_problem(error, path, reasons):
    """An error about the image at a path, in the language of the dialogue where it is known."""
    said = reasons.get(str(error).removeprefix(f"image {path}: "))
    return f"图像 {path}：{said}" if said else str(error)


def converse_about(speaker, image, first):
    """Question after question about an image, from `first` on; image: None for plain text.

    Returns the word that ended it, `clear` or `stop`. Raises EOFError at Ctrl-D.
    """
    words = speaker.words
    if image is None:
        question = read_line(words["user"], words)
    else:
        question = first
        print(words["user"] + question)

    history = []
    while question not in ("clear", "stop"):
        try:
            if question:
                answer = speaker.say(question, image, history, stoppable=True)
                if answer:
                    history.append((question, answer))
        except UserError as error:
            print(f"{words['error']}{error}")
        question = read_line(words["user"], words)
    return question


def say(name, pieces, stoppable):
    """Print an answer as it comes; return what came of it. Ctrl-C stops one that is stoppable."""
    answer = ""
    try:
        for piece in pieces:
            # The name waits for the first piece: an error is not introduced as an answer.
            shown = printable(piece)
            print(shown if answer else name + shown, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        if not stoppable:
            raise
    print("" if answer else name)
    return answer


@dataclass
class Speaker:
    """Answers of a checkpoint; with_base: after the answers of its untuned base.

    english: as for Assistant.stream. Standard error notes what a length limit leaves out, once a
    question, and after an answer that the limit ended.
    """

    assistant: Any  # or what answers like it
    sampling: Sampling
    english: bool | None
    with_base: bool
    is_truncated: bool = False  # whether the limit ended the last answer

    @property
    def words(self):
        return WORDS[bool(self.english)]

    def say(self, question, image, history=(), stoppable=False):
        """Print the answers as they come; return the checkpoint's. Raises UserError."""
        on_cut = self._note_cut
        if self.with_base:
            with self.assistant.untuned():
                say(self.words["base"], self._stream(question, image, history, on_cut), stoppable)
            self._note_truncated()
            on_cut = None

        answer = say(self.words["model"], self._stream(question, image, history, on_cut), stoppable)
        self._note_truncated()
        return answer

    def answers(self, question, image):
        """{"base_answer" if with_base, "answer"}; "base_truncated" and "truncated": True where the
        limit ended them. Raises UserError.
        """
        answers = {}
        on_cut = self._note_cut
        if self.with_base:
            with self.assistant.untuned():
                answers["base_answer"] = "".join(self._stream(question, image, (), on_cut))
            if self.is_truncated:
                answers["base_truncated"] = True
            self._note_truncated()
            on_cut = None

        answers["answer"] = "".join(self._stream(question, image, (), on_cut))
        if self.is_truncated:
            answers["truncated"] = True
        self._note_truncated()
        return answers

    def _stream(self, question, image, history, on_cut):
        self.is_truncated = False
        self.is_truncated = yield from self.assistant.stream(
            question, image, history, self.sampling, self.english, on_cut
        )

    def _note_cut(self, rounds, tokens):
        self._note(cut_note(bool(self.english), rounds, tokens))

    def _note_truncated(self):
        if self.is_truncated:
            self._note(self.words["truncated"])

    def _note(self, text):
        print(text, file=sys.stderr, flush=True)
