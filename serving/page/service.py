"""What all events of the page share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from serving.page.about import About
from serving.page.sessions import Session, Sessions
from serving.page.votes import Votes
from serving.page.words import WORDS, WordedError
from serving.space import Space
from serving.turns import Turns


class Service:
    """assistant: see model.Assistant; english: language of page and answers, None for the browser's
    and answers as the checkpoint was trained; bands: of images at first, see read_image; votes:
    where they are written, None: nobody votes; space: of the disk, for people's files; turns: for
    decoding.
    """

    def __init__(
        self,
        assistant: Any,
        english: bool | None = None,
        bands: Sequence[int] | None = None,
        about: About | None = None,
        votes: Votes | None = None,
        space: Space | None = None,
        turns: Turns | None = None,
    ):
        self.assistant = assistant
        self.english = english
        self.bands = bands
        self.about = about or About("RemoteGLM")
        self.votes = votes
        self.sessions = Sessions()
        self.space = space or Space(Path(get_upload_folder()))
        self.turns = turns or Turns()
        self.first_question: str = assistant.first_question(english)

    def session(self, request: gr.Request) -> Session:
        return self.sessions.of(str(request.session_hash))

    def is_english(self, session: Session) -> bool:
        """The language of the page."""
        return bool(self.english if session.english is None else session.english)

    def words(self, session: Session) -> dict[str, str]:
        return WORDS[self.is_english(session)]

    def status(self, session: Session) -> str:
        """What is said of its last answer."""
        return session.state(self.words(session)) if session.state else ""

    def claim(self, session: Session, *paths: Path) -> None:
        """Uploaded files are a session's from now on.

        Raises WordedError where it has too much; it does not get them then.
        """
        new = set(paths) - session.uploads
        session.uploads |= new
        try:
            self.space.check_each(session.uploads)
        except WordedError:
            self.sessions.drop(session, new)
            raise

    def stay(self, request: gr.Request) -> None:
        """The page is open."""
        self.session(request)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.leave(str(request.session_hash))
