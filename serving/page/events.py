"""Which event of the layout calls what."""

from pathlib import Path
from typing import Any

import gradio as gr

from serving.page.answers import Answers
from serving.page.images import Images
from serving.page.layout import Layout
from serving.page.question import defaults
from serving.page.service import Service
from serving.page.whole_page import WholePage

FOLDER = Path(__file__).parent
IMAGES_AT_A_TIME = 16  # events, of the 40 threads that Gradio has; for decoding they take turns
PING = 50.0  # seconds after which an open page says so, within the grace of sessions.py
ADDRESSES_AT_A_TIME = 8  # fetched, which may take a minute
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# For page.js: the image is being read, and has been
READING = "() => document.dispatchEvent(new Event('remoteglm-reading'))"
READ = "() => document.dispatchEvent(new Event('remoteglm-read'))"
KEEP_LANGUAGE = "() => localStorage.setItem('remoteglm-language', document.documentElement.lang)"


def connect(service: Service, layout: Layout, at_a_time: int) -> tuple[Any, Any]:
    """Events after which the page has arrived, or is in the other language.

    at_a_time: questions in the hands of the assistant.
    """
    images, answers = Images(service), Answers(service)
    connect_dialogue(answers, layout, at_a_time)
    connect_images(images, layout)
    return connect_page(WholePage(service, images, answers, layout.worded), layout)


def connect_dialogue(answers: Answers, layout: Layout, at_a_time: int) -> None:
    how = [layout.mode, *layout.sliders]
    shared = {
        "outputs": layout.dialogue_outputs,
        "concurrency_limit": at_a_time,
        "concurrency_id": "answers",
        "trigger_mode": "multiple",  # whether it may be asked is decided by Answers
        "show_progress": "hidden",
    }
    asking = [
        gr.on(
            [layout.send.click, layout.question.submit],
            answers.answer,
            [layout.question, *how],
            api_name="answer",
            **shared,
        ),
        layout.chat.retry(answers.retry, how, api_visibility="private", **shared),
        layout.chat.edit(answers.edit, how, api_visibility="private", **shared),
        layout.chat.option_select(answers.option, how, api_visibility="private", **shared),
    ]
    for index, button in enumerate(layout.ready):
        asking.append(button.click(_ready(answers, index), how, api_visibility="private", **shared))
    # Trap: the browser may draw late pieces of an answer after what an event that ended it showed
    for answered in asking:
        answered.then(answers.settle, None, layout.dialogue_outputs, **QUIET)
    layout.next_call.click(answers.settle, None, layout.dialogue_outputs, **QUIET)
    # They wait for the answer that they end
    waits = {"concurrency_limit": None, **QUIET}
    layout.stop.click(answers.stop, None, None, **waits)
    for triggers, action in (
        ([layout.clear.click, layout.chat.clear], answers.clear),
        ([layout.undo.click, layout.chat.undo], answers.undo),
    ):
        gr.on(triggers, action, None, layout.dialogue_outputs, **waits)


def _ready(answers, index):
    def ready(request: gr.Request, *how):
        yield from answers.ready(request, index, *how)

    return ready


def connect_images(images: Images, layout: Layout) -> None:
    outputs = layout.image_outputs
    shared: dict[str, Any] = {"concurrency_limit": IMAGES_AT_A_TIME, "concurrency_id": "images"}
    # preprocess=False: Gradio's component would leave an empty file for every upload
    raw: dict[str, Any] = {"preprocess": False, "show_progress": "hidden", **shared}
    quiet = {**QUIET, **shared}
    _read(layout.upload.upload, images.upload, layout.upload, outputs, api_name="image", **raw)
    _read(
        layout.address.submit,
        images.fetch,
        layout.address,
        outputs,
        api_name="fetch_image",
        show_progress="hidden",
        concurrency_limit=ADDRESSES_AT_A_TIME,
        concurrency_id="addresses",
    ).then(lambda: "", None, layout.address, **QUIET)
    for key, button in layout.examples.items():
        _read(button.click, _example(images, key), None, outputs, **quiet)
    menus = [*layout.bands, layout.stretch]
    for menu in menus:
        _read(menu.input, images.bands, menus, outputs, **quiet)
    _read(layout.viewer.select, images.drag, None, outputs, **quiet)
    _read(layout.box.submit, images.type_box, layout.box, outputs, **quiet)

    layout.remove.click(images.remove, None, outputs, **quiet)
    layout.whole.click(images.uncrop, None, outputs, **quiet)
    layout.chat.option_select(images.option, None, outputs, **quiet)
    layout.shown.input(images.choose, layout.shown, outputs, **QUIET)
    layout.other_upload.upload(
        images.upload_other, layout.other_upload, outputs, api_visibility="private", **raw
    )


def _read(trigger, action, inputs, outputs, **options):
    """An event with a sign over the image from its beginning to its end."""
    trigger(None, None, None, js=READING)
    event = trigger(action, inputs, outputs, **options)
    event.then(None, None, None, js=READ)
    return event


def _example(images, key):
    def example(request: gr.Request):
        return images.example(request, key)

    return example


def connect_page(page: WholePage, layout: Layout) -> tuple[Any, Any]:
    """Inside the Blocks that are open -> see `connect`."""
    blocks: Any = gr.context.Context.root_block
    worded = [component for component, _ in layout.worded.of]
    mode = [layout.mode, layout.chat, layout.side, layout.other_row]
    shown = [*worded, *mode, *layout.image_outputs]
    arrived = blocks.load(
        page.arrive, layout.arrival, [*shown, layout.question], js=_script("arrive"), **QUIET
    )
    arrived.then(None, None, None, js=_script("language"))
    blocks.unload(page.service.leave)
    gr.Timer(PING).tick(page.service.stay, None, None, queue=False, **QUIET)
    switched = layout.language.click(page.switch, None, shown, **QUIET)
    switched.then(None, None, None, js=_script("language")).then(None, None, None, js=KEEP_LANGUAGE)
    layout.mode.input(page.compare, layout.mode, [*mode, layout.side, layout.other_viewer], **QUIET)
    layout.reset.click(defaults, None, layout.sliders, **QUIET)
    for button, action in ((layout.json, page.as_json), (layout.markdown, page.as_markdown)):
        button.click(action, None, layout.saved, **QUIET).then(
            None, layout.saved, None, js=_script("save")
        )
    if page.service.votes:
        layout.chat.like(page.vote, None, None, **QUIET)
    return arrived, switched


def _script(name):
    return (FOLDER / f"{name}.js").read_text(encoding="utf-8")
