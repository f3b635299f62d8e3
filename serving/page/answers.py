"""What the events of the dialogue do. Each yields or returns what `dialogue_outputs` show."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import gradio as gr

from model.errors import UserError
from serving.page.dialogue import Dialogue
from serving.page.examples import EXAMPLES, QUESTIONS
from serving.page.images import EXAMPLE, other_image
from serving.page.question import checked, sampling_of
from serving.page.service import Service
from serving.page.talk import Stream, together
from serving.page.words import cut_note
from serving.scheduler import QueueFull

# What is asked about an image; without one it is not answered
ABOUT_IMAGE = re.compile(
    r"图像|图中|图片|图上|这张图|影像|遥感|照片|image|picture|photo", re.IGNORECASE
)
READY = {text for texts in QUESTIONS for text in texts}  # all of them are
# How the dialogue is compared
ALONE, SIDE, OTHER = "alone", "side", "other"
# Values of the buttons below a remark
AS_TEXT, NOT_SENT = "as text", "not sent"
OUTPUTS = 6  # components that `_outputs` changes
BOX = 2  # the one of the question among them
SHOWN_QUESTION = 40  # characters of a question in a remark


class Answers:
    def __init__(self, service: Service):
        self.service = service

    def answer(self, request: gr.Request, question: Any, mode: Any, *settings: Any) -> Iterator:
        """Streams what is asked; see `_outputs`."""
        session = self.service.session(request)
        yield from self._in_turn(session, self._asked(session, question, mode, settings))

    def ready(self, request: gr.Request, index: int, *rest: Any) -> Iterator:
        """One of the ready questions; the box keeps what is typed in it."""
        session = self.service.session(request)
        question = QUESTIONS[index][self.service.is_english(session)]
        yield from _box_kept(self.answer(request, question, *rest))
        session.pending_typed = session.pending != question

    def option(
        self, request: gr.Request, event: gr.EventData, mode: Any, *settings: Any
    ) -> Iterator:
        """A button below a remark: to go on as text, or not."""
        session = self.service.session(request)
        shown = self._in_turn(session, self._chosen(session, event, mode, settings))
        yield from shown if session.pending_typed else _box_kept(shown)

    def retry(self, request: gr.Request, mode: Any, *settings: Any) -> Iterator:
        """The last question again, also one that was not asked."""
        session = self.service.session(request)
        yield from self._in_turn(session, self._last_again(session, mode, settings))

    def edit(self, request: gr.Request, event: gr.EventData, mode: Any, *settings: Any) -> Iterator:
        """A question in other words; what followed it is dropped."""
        session = self.service.session(request)
        index = event._data.get("index")
        index = index[0] if isinstance(index, list) and index else index
        questions = session.main.questions
        number = questions.index(index) if index in questions else -1
        again = self._again(session, number, event._data.get("value"), mode, settings)
        yield from self._in_turn(session, again)

    def undo(self, request: gr.Request) -> list:
        """Take the last question back into the box."""
        session = self.service.session(request)
        session.end_answer()
        questions = session.main.questions
        if not questions:
            return self._outputs(session)
        question = session.main.messages[questions[-1]].text
        session.cut(len(questions) - 1)
        session.state = None
        return self._outputs(session, gr.update(value=question))

    def clear(self, request: gr.Request) -> list:
        """An empty dialogue and the first question."""
        session = self.service.session(request)
        session.end_answer()
        session.main.clear()
        session.side.clear()
        session.state = None
        return self._outputs(session, gr.update(value=self.service.first_question))

    def stop(self, request: gr.Request) -> None:
        """What there is of the answer stays."""
        self.service.session(request).end_answer()

    def settle(self, request: gr.Request) -> list:
        """What there is when the browser has drawn an answer: it may have been cleared before."""
        session = self.service.session(request)
        return self._outputs(session) if session.idle.is_set() else [gr.skip()] * OUTPUTS

    # How an answer comes: the last of what is shown is returned

    def _in_turn(self, session, shown):
        """One answer after another: while one is under way, nothing else begins."""
        if not session.begin_answer():
            yield [gr.skip()] * OUTPUTS
            return
        try:
            try:
                last = yield from shown
            finally:
                session.turn.release()
            yield last
        finally:
            # Gradio comes back here when it has sent the last output
            session.idle.set()

    def _asked(self, session, question, mode, settings):
        try:
            question = checked(question, self.service.words(session))
            if session.refused and mode != OTHER:  # which needs an image
                return self._ask_whether_as_text(session, question)
            return (yield from self._answer(session, question, mode, settings))
        except UserError as error:
            return self._problem(session, error, question)

    def _chosen(self, session, event, mode, settings):
        choice = event._data.get("value")
        if choice not in (AS_TEXT, NOT_SENT) or not session.pending:
            return [gr.skip()] * OUTPUTS
        question, session.pending = session.pending, ""
        session.main.messages.pop()
        if choice == NOT_SENT:
            return self._outputs(session, gr.update(value=question))
        session.refused = None
        try:
            return (yield from self._answer(session, question, mode, settings, as_text=True))
        except UserError as error:
            return self._problem(session, error, question)

    def _last_again(self, session, mode, settings):
        last = session.main.messages[-1] if session.main.messages else None
        if last is None or last.unsent is None:
            number = len(session.main.questions) - 1
            return (yield from self._again(session, number, None, mode, settings))
        session.main.messages.pop()
        return (yield from self._asked(session, last.unsent, mode, settings))

    def _again(self, session, number, text, mode, settings):
        if number < 0:
            return self._outputs(session)
        old = session.main.messages[session.main.questions[number]].text
        try:
            question = checked(old if text is None else text, self.service.words(session))
            as_text = not session.view
            return (yield from self._answer(session, question, mode, settings, as_text, number))
        except UserError as error:
            # What was changed goes into the box: the dialogue is as it was
            return self._problem(session, error, text)

    def _answer(self, session, question, mode, settings, as_text=False, again=None):
        """again: the number of the question whose place it takes.

        Raises UserError where nothing was asked; the dialogues are as before then.
        """
        is_about_image = question in READY or ABOUT_IMAGE.search(question)
        if not session.view and (mode == OTHER or is_about_image and not as_text):
            return self._ask_for_image(session, question)
        before = session.dialogues
        try:
            sampling = sampling_of(settings, self.service.words(session))
            if again is not None:
                session.cut(again)
            streams = self._streams(session, question, mode, sampling)
            box = gr.update(value="") if again is None else None
            yield from self._until_ended(session, streams, box)
        except UserError:
            session.dialogues = before
            raise
        return self._outputs(session)

    def _until_ended(self, session, streams, box):
        session.state = itemgetter("generating")
        try:
            yield self._outputs(session, box, streams, running=True)
            for _ in together(streams, session.stopping):
                yield self._outputs(session, None, streams, running=True)
        finally:
            # Also where the page is closed or loaded again
            self._end(session, streams)
            session.state = partial(_state, streams)
        if streams[0].was_refused:
            raise streams[0].error

    def _streams(self, session, question, mode, sampling):
        """One for the dialogue, one for what is compared with it. Raises UserError."""
        words = self.service.words(session)
        jobs = [(session.main, session.view, {})]
        if mode == SIDE:
            if not self.service.assistant.has_adapter:
                raise UserError(words["no base"])
            jobs.append((session.side, session.view, {"untuned": True}))
        if mode == OTHER:
            jobs.append((session.side, other_image(self.service, session), {}))
        if len(jobs) > 1:
            self._begin_beside(session, mode)
        return [
            self._stream(session, dialogue, view, question, sampling, options)
            for dialogue, view, options in jobs
        ]

    def _begin_beside(self, session, mode):
        """A comparison that begins in the middle: what was said is known to both, or it is told."""
        history = session.main.history
        if session.side.messages or not history:
            return
        if mode == SIDE:
            session.side.earlier = tuple(history)
        session.side.remark(self.service.words(session)[f"{mode} later"].format(len(history)))

    def _stream(self, session, dialogue: Dialogue, view, question, sampling, options):
        english = self.service.is_english(session)
        history = dialogue.history
        answer = dialogue.ask(question)

        def on_cut(rounds, tokens):
            dialogue.remark_before(answer, cut_note(english, rounds, tokens))

        image = view.image if view else None
        pieces = self.service.assistant.stream(
            question, image, history, sampling, self.service.english, on_cut, **options
        )
        return Stream(dialogue, answer, pieces)

    def _end(self, session, streams):
        """What went wrong is said in the dialogue it belongs to."""
        words = self.service.words(session)
        for stream in streams:
            if stream.error:
                if not stream.answer.text:
                    stream.dialogue.messages.remove(stream.answer)
                stream.dialogue.remark(words["error"] + self._text(stream.error, session))
            elif stream.was_stopped and not stream.answer.text:
                stream.dialogue.messages.remove(stream.answer)
                stream.dialogue.remark(words["stopped early"])
            elif stream.truncated:
                stream.dialogue.remark(words["truncated"])

    # What is shown

    def _outputs(self, session, question=None, streams=(), running=False):
        """For `dialogue_outputs` of the layout. question: an update of its box."""
        words = self.service.words(session)
        signs = {id(stream.dialogue): stream.sign(words) for stream in streams}
        status = self.service.status(session)
        waiting = [stream.sign(words) for stream in streams if stream.place is not None]
        if waiting:
            status = waiting[0]
        return [
            session.main.shown(signs.get(id(session.main), "")),
            session.side.shown(signs.get(id(session.side), "")),
            gr.skip() if question is None else question,
            status,
            gr.update(visible=not running),
            gr.update(visible=running),
        ]

    def _problem(self, session, error, question):
        """A remark; the question goes back into its box."""
        words = self.service.words(session)
        can_be_shown = isinstance(question, str) and _is_sound(question)
        unsent = question if can_be_shown else None
        self._remark(session, words["error"] + self._text(error, session), unsent=unsent)
        return self._outputs(session, gr.update(value=question) if can_be_shown else None)

    def _text(self, error, session):
        if isinstance(error, QueueFull):
            words = self.service.words(session)
            return words["full queue"].format(max(1, round(error.seconds)))
        return str(error)

    def _ask_whether_as_text(self, session, question):
        words = self.service.words(session)
        session.pending, session.pending_typed = question, True
        text = words["as text"].format(session.refused.name, question[:SHOWN_QUESTION])
        options = ((AS_TEXT, words["as text yes"]), (NOT_SENT, words["as text no"]))
        self._remark(session, text, options, question)
        # It stays in its box: another image may come instead of an answer to this
        return self._outputs(session, gr.update(value=question))

    def _ask_for_image(self, session, question):
        words = self.service.words(session)
        english = self.service.is_english(session)
        options = tuple((EXAMPLE + key, example.name[english]) for key, example in EXAMPLES.items())
        self._remark(session, words["error"] + words["no image"], options, question)
        return self._outputs(session, gr.update(value=question))

    def _remark(self, session, *remark, **more):
        session.state = None  # was that of an answer
        session.main.remark(*remark, **more)


def _state(streams: Sequence[Stream], words: dict[str, str]) -> str:
    """One line about answers that have ended."""
    parts = [stream.summary(words) for stream in streams if not stream.error]
    if any(stream.was_stopped for stream in streams):
        parts.insert(0, words["stopped"])
    return " | ".join(parts)


def _box_kept(shown: Iterator) -> Iterator:
    """The same outputs without a change of the question's box."""
    for outputs in shown:
        outputs[BOX] = gr.skip()
        yield outputs


def _is_sound(question: str) -> bool:
    """Whether it can be sent back: no megabytes, no half characters."""
    try:
        return len(question.encode()) < 10_000
    except UnicodeEncodeError:
        return False
