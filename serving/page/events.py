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
IMAGES_AT_A_TIME = 4  # decoded; each may take some hundred MB
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
KEEP_LANGUAGE = "() => localStorage.setItem('remoteglm-language', document.documentElement.lang)"


def connect(service: Service, layout: Layout, at_a_time: int) -> None:
    """at_a_time: questions in the hands of the assistant."""
    images, answers = Images(service), Answers(service)
    asking = connect_dialogue(answers, layout, at_a_time)
    connect_images(images, layout, asking)
    connect_page(WholePage(service, images, answers, layout.worded), layout)


def connect_dialogue(answers: Answers, layout: Layout, at_a_time: int) -> list:
    """Returns the events that answer a question."""
    how = [layout.mode, *layout.sliders]
    shared = {
        "outputs": layout.dialogue_outputs,
        "concurrency_limit": at_a_time,
        "concurrency_id": "answers",
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
    layout.stop.click(None, cancels=asking).then(
        answers.stopped, None, layout.dialogue_outputs, **QUIET
    )
    # An event and what it cancels run side by side: what follows comes one step later, lest the
    # last piece of the old answer arrive after it.
    for triggers, action in (
        ([layout.clear.click, layout.chat.clear], answers.clear),
        ([layout.undo.click, layout.chat.undo], answers.undo),
    ):
        stopped = gr.on(triggers, lambda: None, cancels=asking, **QUIET)
        stopped.then(action, None, layout.dialogue_outputs, **QUIET)
    return asking


def _ready(answers, index):
    def ready(request: gr.Request, *how):
        yield from answers.ready(request, index, *how)

    return ready


def connect_images(images: Images, layout: Layout, asking: list) -> None:
    outputs = layout.image_outputs
    shared = {"concurrency_limit": IMAGES_AT_A_TIME, "concurrency_id": "images"}
    # preprocess=False: Gradio's component would leave an empty file for every upload
    raw = {"preprocess": False, "show_progress": "hidden"}

    def another(triggers, action, inputs=None, **options):
        stopped = gr.on(triggers, lambda: None, cancels=asking, **QUIET)
        return stopped.then(action, inputs, outputs, **shared, **options)

    another([layout.upload.upload], images.upload, layout.upload, api_name="image", **raw)
    another(
        [layout.address.submit],
        images.fetch,
        layout.address,
        api_name="fetch_image",
        show_progress="hidden",
    ).then(lambda: "", None, layout.address, **QUIET)
    another([layout.remove.click], images.remove, **QUIET)
    for key, button in layout.examples.items():
        another([button.click], _example(images, key), **QUIET)
    layout.chat.option_select(images.option, None, outputs, **QUIET, **shared)

    layout.other_upload.upload(
        images.upload_other,
        layout.other_upload,
        outputs,
        api_visibility="private",
        **raw,
        **shared,
    )
    layout.shown.input(images.choose, layout.shown, outputs, **QUIET)
    for menu in (*layout.bands, layout.stretch):
        menu.input(images.bands, [*layout.bands, layout.stretch], outputs, **QUIET, **shared)
    layout.viewer.select(images.drag, None, outputs, **QUIET, **shared)
    layout.box.submit(images.type_box, layout.box, outputs, **QUIET, **shared)
    layout.whole.click(images.uncrop, None, outputs, **QUIET, **shared)


def _example(images, key):
    def example(request: gr.Request):
        return images.example(request, key)

    return example


def connect_page(page: WholePage, layout: Layout) -> None:
    """Inside the Blocks that are open."""
    blocks = gr.context.Context.root_block
    worded = [component for component, _ in layout.worded.of]
    mode = [layout.mode, layout.chat, layout.side, layout.other_row]
    shown = [*worded, *mode, *layout.image_outputs]
    blocks.load(
        page.arrive, layout.arrival, [*shown, layout.question], js=_script("arrive"), **QUIET
    ).then(None, None, None, js=_script("language"))
    blocks.unload(page.service.leave)
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


def _script(name):
    return (FOLDER / f"{name}.js").read_text(encoding="utf-8")
