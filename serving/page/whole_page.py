"""What concerns the page as a whole: its arrival, its language, its dialogue as a file."""

import json
from typing import Any

import gradio as gr

from serving.page import panel
from serving.page.answers import ALONE, OTHER, SIDE, Answers
from serving.page.dialogue import USER, Dialogue
from serving.page.images import Images, other_image
from serving.page.layout import Worded
from serving.page.service import Service
from serving.page.sessions import Session

MODES = (ALONE, SIDE, OTHER)
MOST_DRAFT = 10_000  # characters


class WholePage:
    def __init__(self, service: Service, images: Images, answers: Answers, worded: Worded):
        self.service = service
        self.images = images
        self.answers = answers
        self.worded = worded

    def arrive(self, request: gr.Request, told: Any) -> list:
        """For `arrival_outputs`. told: what arrive.js says."""
        try:
            told = json.loads(told)
            language, before, draft = (told.get(key) for key in ("language", "before", "draft"))
        except (TypeError, ValueError, AttributeError):
            language = before = draft = None
        key = str(request.session_hash)
        if isinstance(before, str) and before != key:
            self.service.sessions.take_over(key, before)
        session = self.service.session(request)
        session.end_answer()  # one that goes to the page before
        if session.english is None and self.service.english is None and language:
            session.english = not str(language).lower().startswith("zh")
        question = self._draft(session, draft)
        return [*self._all(session), gr.update(value=question)]

    def _draft(self, session, draft):
        """What stands in the box; that of a dialogue may be empty."""
        if not isinstance(draft, str) or len(draft) > MOST_DRAFT:
            return self.service.first_question
        return draft if draft.strip() or session.main.messages else self.service.first_question

    def switch(self, request: gr.Request) -> list:
        """The other language, for `arrival_outputs` without the question."""
        session = self.service.session(request)
        session.english = not self.service.is_english(session)
        self.images.rename_examples(session)
        return self._all(session)

    def compare(self, request: gr.Request, mode: Any) -> list:
        """Another mode: what stands beside the dialogue begins again."""
        session = self.service.session(request)
        session.mode = mode if mode in MODES else ALONE
        session.side = Dialogue()  # an answer under way goes on in the old one
        beside = ""
        if session.mode == OTHER:
            beside = panel.whole(other_image(self.service, session), self.service.words(session))
        return [*self._mode(session), session.side.shown(), beside]

    def as_json(self, request: gr.Request) -> dict:
        session = self.service.session(request)
        image = None
        if session.view:
            view = session.view
            image = {"name": view.name, "width": view.size[0], "height": view.size[1]}
            image |= {"bands": view.bands, "box": view.box}
        content = {
            "model": self.service.about.name,
            "image": image,
            "dialogue": _messages(session.main),
            "beside": {"mode": session.mode, "dialogue": _messages(session.side)},
        }
        text = json.dumps(content, ensure_ascii=False, indent=4)
        return {"name": "dialogue.json", "type": "application/json", "text": text}

    def as_markdown(self, request: gr.Request) -> dict:
        session = self.service.session(request)
        words = self.service.words(session)
        lines = [f"# RemoteGLM · {self.service.about.name}"]
        if session.view:
            lines.append(f"{session.view.name} · {words['size'].format(*session.view.size)}")
        lines += _paragraphs(session.main, words)
        if session.side.messages:
            lines += [f"## {self._beside(session)}", *_paragraphs(session.side, words)]
        return {"name": "dialogue.md", "type": "text/markdown", "text": "\n\n".join(lines) + "\n"}

    def vote(self, request: gr.Request, event: gr.LikeData) -> None:
        """A thumb up or down on an answer."""
        session = self.service.session(request)
        messages = session.main.messages
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        is_answer = isinstance(index, int) and 0 < index < len(messages)
        if not self.service.votes or not is_answer or messages[index].is_remark:
            return
        try:
            self.service.votes.add(
                model=self.service.about.name,
                image=session.view.name if session.view else None,
                question=messages[index - 1].text,
                answer=messages[index].text,
                liked=bool(event.liked),
            )
        except OSError as error:
            gr.Warning(f"{self.service.votes.path}: {error.strerror}")
        else:
            gr.Info(self.service.words(session)["voted"])

    def _all(self, session: Session) -> list:
        english = self.service.is_english(session)
        return [
            *self.worded.updates(english),
            *self._mode(session),
            *self.images.updates(session),
        ]

    def _mode(self, session):
        """The switch, the dialogue, that beside it, the row of the other image."""
        names = {ALONE: "chat", SIDE: "tuned chat", OTHER: "this chat"}
        return [
            gr.update(value=session.mode),
            gr.update(label=self.service.words(session)[names[session.mode]]),
            gr.update(visible=session.mode != ALONE, label=self._beside(session)),
            gr.update(visible=session.mode == OTHER),
        ]

    def _beside(self, session):
        return self.service.words(session)["other chat" if session.mode == OTHER else "base chat"]


def _messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [
        {"role": message.role, "content": message.text}
        for message in dialogue.messages
        if not message.is_remark
    ]


def _paragraphs(dialogue: Dialogue, words: dict[str, str]) -> list[str]:
    lines = []
    for message in dialogue.messages:
        if message.is_remark:
            continue
        who = words["user" if message.role == USER else "assistant"]
        lines.append(f"**{who}**: {message.text}")
    return lines
