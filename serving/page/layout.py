"""Where everything stands on the page."""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from model.sampling import LIMITS
from serving.page import about, panel
from serving.page.answers import ALONE, OTHER, SIDE
from serving.page.examples import EXAMPLES, QUESTIONS
from serving.page.images import IMAGE, SEEN
from serving.page.question import SETTINGS, defaults
from serving.page.service import Service
from serving.page.view import STRETCHES
from serving.page.words import WORDS

LOGO = Path(__file__).resolve().parents[2] / "images" / "logo.svg"
# Least, greatest and step of a setting's slider
SLIDERS = {
    "max_length": (64, 2048, 64),
    "max_new_tokens": (0, 2048, 1),
    "temperature": (0, 2, 0.05),
    "top_p": (*LIMITS["top_p"], 0.05),
    "top_k": (0, 1000, 1),
    "repetition_penalty": (0.5, 2, 0.05),
    "seed": (-1, 2**31 - 1, 1),
}
# Option of `make` -> property of the component
TEXTS = {"text": "value", "label": "label", "placeholder": "placeholder", "choices": "choices"}


@dataclass
class Worded:
    """Components whose texts follow the language: (component, {property: key or both texts})."""

    of: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)

    def add(self, component: Any, **properties: Any) -> Any:
        self.of.append((component, properties))
        return component

    def updates(self, english: bool) -> list:
        """For each component what it says in a language."""
        return [
            gr.update(**{name: said(key, english) for name, key in properties.items()})
            for _, properties in self.of
        ]


def said(key: Any, english: bool) -> Any:
    """A key of WORDS, a (Chinese, English) pair, a function of the language, or choices."""
    if isinstance(key, tuple):
        return key[english]
    if callable(key):
        return key(english)
    if isinstance(key, list):
        return [(said(label, english), value) for label, value in key]
    return WORDS[english][key]


class Layout:
    """The components. Its head is placed in the Blocks that are open."""

    def __init__(self, service: Service):
        self.english = bool(service.english)
        self.service = service
        self.worded = Worded()
        self.lay_out_head()

    def lay_out_body(self) -> None:
        """The dialogue about an image, below the head or in a tab."""
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=300, elem_id="left"):
                self.lay_out_image()
                self.lay_out_examples()
                self.lay_out_tools()
                self.lay_out_sampling()
            with gr.Column(scale=3, min_width=300, elem_id="right"):
                self.lay_out_bar()
                self.lay_out_dialogue()
                self.lay_out_composer()
        self.arrival = gr.Textbox(visible=False)
        self.saved = gr.JSON(visible=False)
        self.next_call = gr.Button(visible="hidden", elem_id="next-call")  # see calls.js

    def make(self, kind: Any, *values: Any, **options: Any) -> Any:
        """A component. Options of the names in TEXTS follow the language: see `said`."""
        texts = {TEXTS[name]: options.pop(name) for name in TEXTS if name in options}
        shown = {name: said(text, self.english) for name, text in texts.items()}
        return self.worded.add(kind(*values, **options, **shown), **texts)

    def lay_out_head(self):
        logo = LOGO.read_text(encoding="utf-8")
        with gr.Row(elem_id="head"):
            gr.HTML(f"<div id='logo' aria-hidden='true'>{logo}</div>", min_width=50)
            self.make(gr.HTML, text=self._title, elem_id="title")
            self.language = self.make(
                gr.Button, text="switch language", size="sm", elem_id="language", min_width=80
            )
        if self.service.about.is_tiny:
            self.make(gr.HTML, text=self._tiny, elem_id="banner")

    def _title(self, english):
        words = WORDS[english]
        api = escape(words["api help"].format(self.service.about.name))
        return (
            f"<h1>RemoteGLM <small>{words['title']}</small></h1>"
            f"<p>{about.line(self.service.about, words)}</p> "
            f"<details id='api'><summary>API</summary><code>{api}</code></details>"
        )

    def _tiny(self, english):
        option = "--from_pretrained"
        text = escape(WORDS[english]["tiny"]).replace(option, f"<code>{option}</code>")
        return f"<p role='note'>{text}</p>"

    def lay_out_image(self):
        self.viewer = gr.HTML(
            panel.empty(WORDS[self.english]),
            elem_id="preview",
            js_on_load=(Path(__file__).parent / "crop.js").read_text(encoding="utf-8"),
        )
        self.facts = gr.HTML("", elem_id="facts")
        with gr.Row(elem_id="source"):
            self.upload = self.make(gr.UploadButton, label="upload", size="sm", elem_id="file")
            self.remove = self.make(
                gr.Button, text="remove", size="sm", visible=False, elem_id="remove"
            )
            self.address = self.make(
                gr.Textbox,
                label="address",
                placeholder="address hint",
                show_label=False,
                container=False,
                max_lines=1,
                elem_id="address",
            )
        self.shown = self.make(
            gr.Radio,
            choices=[("original", IMAGE), ("seen", SEEN)],
            value=IMAGE,
            label="shown",
            show_label=False,
            container=False,
            visible=False,
            elem_id="shown",
        )

    def lay_out_examples(self):
        self.make(
            gr.HTML,
            text=lambda english: f"<p>{WORDS[english]['examples']}</p>",
            elem_id="examples-title",
        )
        with gr.Row(elem_id="examples"):
            self.examples = {
                key: self.make(
                    gr.Button,
                    text=example.name,
                    icon=_icon(example),
                    size="sm",
                    min_width=60,
                    elem_id=f"example-{key}",
                )
                for key, example in EXAMPLES.items()
            }

    def lay_out_tools(self):
        with self.make(
            gr.Accordion, label="tools", open=False, visible=False, elem_id="tools"
        ) as self.tools:
            with gr.Row():
                self.bands = [
                    self.make(gr.Dropdown, label=color, visible=False, min_width=80, elem_id=color)
                    for color in ("red", "green", "blue")
                ]
            self.stretch = self.make(
                gr.Dropdown, list(STRETCHES), label="stretch", visible=False, elem_id="stretch"
            )
            with gr.Row():
                self.box = self.make(
                    gr.Textbox, label="box", placeholder="box hint", max_lines=1, elem_id="box"
                )
                self.whole = self.make(
                    gr.Button,
                    text="whole",
                    size="sm",
                    visible=False,
                    min_width=80,
                    elem_id="whole",
                )

    def lay_out_sampling(self):
        with self.make(gr.Accordion, label="sampling", open=False, elem_id="sampling"):
            self.sliders = []
            for name, value in zip(SETTINGS, defaults()):
                low, high, step = SLIDERS[name]
                self.sliders.append(
                    self.make(gr.Slider, low, high, value, step=step, label=name, elem_id=name)
                )
            self.reset = self.make(gr.Button, text="reset", size="sm", elem_id="reset")

    def lay_out_bar(self):
        modes = [("alone", ALONE), ("side", SIDE), ("other", OTHER)]
        if not self.service.assistant.has_adapter:
            modes = [("this chat", ALONE), ("other", OTHER)]
        with gr.Row(elem_id="bar"):
            self.mode = self.make(
                gr.Radio,
                choices=modes,
                value=ALONE,
                label="mode",
                show_label=False,
                container=False,
                elem_id="mode",
            )
            self.undo = self.make(gr.Button, text="undo", size="sm", min_width=60, elem_id="undo")
            self.clear = self.make(
                gr.Button, text="clear", size="sm", min_width=60, elem_id="clear"
            )
            self.json = self.make(gr.Button, text="json", size="sm", min_width=60, elem_id="json")
            self.markdown = self.make(
                gr.Button, text="markdown", size="sm", min_width=60, elem_id="markdown"
            )
        with gr.Row(visible=False, elem_id="other") as self.other_row:
            self.other_viewer = gr.HTML("", elem_id="other-preview")
            self.other_upload = self.make(
                gr.UploadButton, label="other upload", size="sm", elem_id="other-file"
            )

    def lay_out_dialogue(self):
        with gr.Row(elem_id="dialogues"):
            options = {
                "render_markdown": False,
                "latex_delimiters": [],
                "buttons": ["copy"],
                "group_consecutive_messages": False,
                "height": 440,
                "autoscroll": False,  # page.js does it, so that one can scroll up meanwhile
            }
            self.chat = self.make(
                gr.Chatbot,
                label="chat",
                placeholder="hello",
                editable="user",
                min_width=200,
                elem_id="chat",
                **options,
            )
            self.side = gr.Chatbot(visible=False, min_width=200, elem_id="side", **options)

    def lay_out_composer(self):
        with gr.Column(elem_id="composer"):
            with gr.Row(elem_id="ready"):
                self.ready = [
                    self.make(gr.Button, text=question, size="sm", min_width=80)
                    for question in QUESTIONS
                ]
            with gr.Row(elem_id="ask"):
                self.question = self.make(
                    gr.Textbox,
                    self.service.first_question,
                    label="question",
                    placeholder="hint",
                    show_label=False,
                    container=False,
                    max_lines=4,
                    scale=6,
                    elem_id="question",
                )
                self.send = self.make(
                    gr.Button, text="send", variant="primary", min_width=80, elem_id="send"
                )
                self.stop = self.make(
                    gr.Button,
                    text="stop",
                    variant="stop",
                    visible=False,
                    min_width=80,
                    elem_id="stop",
                )
            self.status = gr.HTML("", elem_id="status")

    @property
    def image_outputs(self) -> list:
        """What Images.updates changes, in its order."""
        return [
            self.viewer,
            self.facts,
            self.remove,
            self.shown,
            self.tools,
            *self.bands,
            self.stretch,
            self.box,
            self.whole,
            self.other_viewer,
            self.chat,
            self.side,
            self.status,
        ]

    @property
    def dialogue_outputs(self) -> list:
        """What Answers yields, in its order."""
        return [self.chat, self.side, self.question, self.status, self.send, self.stop]


def _icon(example):
    """Browsers show no TIFF: there is a small picture beside it."""
    return str(example.path.with_suffix(".png"))
