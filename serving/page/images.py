"""What the events of the image panel do."""

import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio as gr

from model.errors import UserError
from model.images import ImageError
from model.images.facts import Facts
from model.images.reading import open_source
from serving.page import panel
from serving.page.examples import EXAMPLES
from serving.page.service import Service
from serving.page.sessions import Refused, Session
from serving.page.view import STRETCHES, View, box_of, parse_box
from serving.page.words import ADDRESS, KINDS, WordedError

IMAGE, SEEN = "image", "seen"
EXAMPLE = "example:"  # how the value of a button begins that shows one
OUTPUTS = 15  # components that `updates` changes
# Longest address that is not the name of a file
MOST_NAME = 60


class Images:
    """Each returns what `outputs` of the layout show."""

    def __init__(self, service: Service):
        self.service = service

    # Another image

    def upload(self, request: gr.Request, file: Any) -> list:
        """file: Gradio's description of an uploaded file, which lies in its folder; or None."""
        session = self.service.session(request)
        if file is None:
            return self.remove(request)
        path = Path(file["path"])
        return self._show_upload(session, path, file.get("orig_name") or path.name)

    def upload_other(self, request: gr.Request, file: Any) -> list:
        """The image to compare with."""
        session = self.service.session(request)
        if file is None:
            session.other = None
            return self.updates(session)
        path = Path(file["path"])
        name = file.get("orig_name") or path.name
        try:
            self.service.claim(session, path)
            session.other = View(path, name, self.service.bands, turns=self.service.turns)
        except UserError as error:
            self._remark(session, Refused(name, error, path))
        self.service.sessions.release(session)
        return self.updates(session)

    def example(self, request: gr.Request, key: str) -> list:
        session = self.service.session(request)
        example = EXAMPLES[key]
        name = example.name[self.service.is_english(session)]
        return self._show(session, example.path, name, bands=None)

    def option(self, request: gr.Request, event: gr.EventData) -> list:
        """The button of an example below a remark."""
        value = str(event._data.get("value"))
        key = value.removeprefix(EXAMPLE)
        if key == value or key not in EXAMPLES:
            return [gr.skip()] * OUTPUTS
        return self.example(request, key)

    def fetch(self, request: gr.Request, address: Any) -> list:
        """An image by its address, of the public network only."""
        session = self.service.session(request)
        address = str(address or "").strip()
        if not address:
            return self.updates(session)
        name = unquote(Path(urlsplit(address).path).name)[-MOST_NAME:] or "image"
        try:
            with open_source(address, public_only=True) as file:
                content = file.read()
        except (UserError, ValueError) as error:
            failed = ImageError(str(error), ADDRESS)
            return self._refuse(session, address[:MOST_NAME], failed, None)
        try:
            path = self._kept(content)
        except WordedError as error:
            return self._refuse(session, name, error, None)
        return self._show_upload(session, path, name)

    def _kept(self, content):
        """A file with this content, beside the uploads. Raises WordedError."""
        space = self.service.space
        space.take(len(content))
        try:
            path = Path(tempfile.mkdtemp(dir=space.folder)) / "image"
            path.write_bytes(content)
        finally:
            space.give_back(len(content))
        return path

    def remove(self, request: gr.Request) -> list:
        session = self.service.session(request)
        session.view, session.refused = None, None
        self._begin_again(session)
        return self.updates(session)

    def _show_upload(self, session, path, name):
        try:
            self.service.claim(session, path)
        except WordedError as error:
            return self._refuse(session, name, error, None)
        return self._show(session, path, name)

    def _show(self, session, path, name, **options):
        """Show an image; the dialogue begins again."""
        options.setdefault("bands", self.service.bands)
        try:
            session.view = View(path, name, turns=self.service.turns, **options)
            session.view.facts  # noqa: B018 -- whoever cannot say them cannot be shown
        except UserError as error:
            return self._refuse(session, name, error, path)
        session.refused = None
        self._begin_again(session)
        return self.updates(session)

    def _refuse(self, session, name, error, path):
        session.view = None
        session.refused = Refused(name, error, path)
        self._begin_again(session)
        self._remark(session, session.refused)
        return self.updates(session)

    def _begin_again(self, session):
        session.end_answer()
        session.main.clear()
        session.side.clear()
        session.state = None
        session.pending = ""
        session.shows = IMAGE
        self.service.sessions.release(session)

    def _remark(self, session, file: Refused):
        words = self.service.words(session)
        session.main.remark(words["error"] + self._reason(session, file))

    def _reason(self, session, file):
        """One line that names the file."""
        brief = self._in_brief(session, file.error)
        if brief:
            return self.service.words(session)["file refused"].format(file.name, brief)
        return self._in_full(session, file)

    def _in_brief(self, session, error):
        """In Chinese what is wrong with an image; "" where the error itself says it."""
        if self.service.is_english(session) or isinstance(error, WordedError):
            return ""
        return KINDS.get(getattr(error, "kind", ""), "")

    def _in_full(self, session, file):
        """The error; the file goes by the name that its owner knows."""
        if isinstance(file.error, WordedError):
            return file.error.said(self.service.words(session))
        text = str(file.error)
        return text.replace(str(file.path), file.name) if file.path else text

    # The same image in another way

    def choose(self, request: gr.Request, shown: Any) -> list:
        """The image itself, or what the model sees."""
        session = self.service.session(request)
        session.shows = SEEN if shown == SEEN else IMAGE
        return self.updates(session)

    def bands(self, request: gr.Request, red: Any, green: Any, blue: Any, stretch: Any) -> list:
        session = self.service.session(request)
        view = session.view
        if view is None:
            return self.updates(session)
        bands = [red, green, blue]
        usual = shown_bands(view)
        chosen = bands if all(isinstance(band, int) for band in bands) else usual
        percentiles = STRETCHES.get(stretch, view.percentiles)
        try:
            session.view = view.changed(view.bands if chosen == usual else chosen, percentiles)
        except UserError as error:
            gr.Warning(self._reason(session, Refused(view.name, error, view.path)))
        return self.updates(session)

    def drag(self, request: gr.Request, event: gr.EventData) -> list:
        """A box dragged over the image: two corners, as fractions of its width and height."""
        session = self.service.session(request)
        try:
            corners = [float(number) for number in event._data["box"]]
            box = box_of(corners, session.view.size) if session.view else None
        except (KeyError, TypeError, ValueError, OverflowError):
            return self.updates(session)
        return self._crop(session, box)

    def type_box(self, request: gr.Request, text: Any) -> list:
        session = self.service.session(request)
        if session.view is None:
            return self.updates(session)
        try:
            box = parse_box(str(text or ""), session.view.size)
        except UserError:
            words = self.service.words(session)
            gr.Warning(words["box form"].format(str(text)[:40], *session.view.size))
            return self.updates(session)
        return self._crop(session, box)

    def uncrop(self, request: gr.Request) -> list:
        return self._crop(self.service.session(request), None)

    def _crop(self, session, box):
        if session.view:
            session.view = session.view.cropped(box)
        return self.updates(session)

    def rename_examples(self, session: Session) -> None:
        """In the page's language, which has changed."""
        for view in filter(None, (session.view, session.other)):
            for example in EXAMPLES.values():
                if view.path == example.path:
                    view.name = example.name[self.service.is_english(session)]

    # What is shown

    def updates(self, session: Session) -> list:
        """For `image_outputs` of the layout: OUTPUTS values."""
        words = self.service.words(session)
        view = session.view
        facts = view.facts if view else None
        seen = self.service.assistant.seen(view.image) if view else None
        has_tools = bool(view)
        return [
            self._place(session, words, seen),
            panel.facts(view, words) if view else "",
            gr.update(visible=bool(view or session.refused)),
            gr.update(visible=seen is not None, value=session.shows),
            gr.update(visible=has_tools),
            *self._band_menus(view, facts),
            gr.update(visible=bool(facts and facts.can_be_stretched), value=_stretch_of(view)),
            gr.update(value=" ".join(map(str, view.box)) if view and view.box else ""),
            gr.update(visible=bool(view and view.box)),
            panel.whole(session.other, words) if session.other else "",
            session.main.shown(),
            session.side.shown(),
            self.service.status(session),
        ]

    def _place(self, session, words, seen):
        file = session.refused
        if file:
            reason = self._in_brief(session, file.error) or self._in_full(session, file)
            return panel.refused(file.name, reason, words)
        if session.view is None:
            return panel.empty(words)
        if session.shows == SEEN and seen is not None:
            return panel.as_seen(seen, words)
        return panel.whole(session.view, words, words["image hint"])

    def _band_menus(self, view: View | None, facts: Facts | None) -> list:
        if view is None or facts is None or not facts.is_raster or facts.bands < 2:
            return [gr.update(visible=False)] * 3
        choices = [(f"{band} {name}".strip(), band) for band, name in enumerate(facts.names, 1)]
        return [gr.update(visible=True, choices=choices, value=band) for band in shown_bands(view)]


def other_image(service: Service, session: Session) -> View:
    """The image to compare with: the person's, or an example."""
    if session.other is None:
        shown = session.view.path if session.view else None
        example = next(one for one in EXAMPLES.values() if one.path != shown)
        session.other = View(example.path, example.name[service.is_english(session)])
    return session.other


def shown_bands(view: View) -> list[int]:
    """The bands that are red, green and blue."""
    return list(view.bands or view.facts.shown_bands)


def _stretch_of(view: View | None) -> str:
    for name, percentiles in STRETCHES.items():
        if view and view.percentiles == percentiles:
            return name
    return next(iter(STRETCHES))
