"""Talk about an aerial image in the browser; nothing leaves this machine.

On http://127.0.0.1:7860, or for the whole local network:

    python web_demo.py --from_pretrained checkpoints/demo
    python web_demo.py --from_pretrained checkpoints/demo --host 0.0.0.0
"""

import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli_demo import cut_note
from command_line import (
    Parser,
    add_bands_option,
    add_language_options,
    add_loading_options,
    loading,
    sigterm_cleans_up,
)
from model.errors import UserError

if TYPE_CHECKING:
    import gradio

LOGO = Path(__file__).resolve().parent / "images" / "logo.svg"
PREVIEW = 1024  # longest side of the preview, in pixels; the model reads the image itself
QUEUE = 16  # questions that may wait; one is answered at a time
# Fonts that show Chinese, by operating system
FONTS = [
    "system-ui",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "sans-serif",
]

# What a person sees, by --english
WORDS = {
    False: {
        "title": "用中文与遥感图像对话",
        "file": "遥感图像（TIFF、PNG、JPEG……）",
        "preview": "预览",
        "chat": "对话",
        "hello": "放入一张遥感图像，再点“发送”；不放图像就是纯文本对话。",
        "question": "问题",
        "hint": "输入问题，回车发送",
        "send": "发送",
        "stop": "停止",
        "clear": "清空对话",
        "sampling": "生成参数",
        "max_length": "最大长度（提示与回答合计，词元）",
        "top_p": "top_p（0：贪心）",
        "temperature": "温度（0：贪心）",
        "error": "错误：",
        "empty": "请先输入问题。",
        "truncated": "注意：回答到了最大长度就停下了，可在“生成参数”里调大。",
        "open": "请在浏览器中打开 {}（Ctrl-C 退出）",
    },
    True: {
        "title": "Talk with aerial images",
        "file": "Aerial image (TIFF, PNG, JPEG, ...)",
        "preview": "Preview",
        "chat": "Dialogue",
        "hello": "Drop an aerial image, then press Send; "
        "without one it is a dialogue in plain text.",
        "question": "Question",
        "hint": "Type a question, Enter sends it",
        "send": "Send",
        "stop": "Stop",
        "clear": "Clear",
        "sampling": "Sampling",
        "max_length": "Maximum length (prompt and answer, tokens)",
        "top_p": "top_p (0: greedy)",
        "temperature": "Temperature (0: greedy)",
        "error": "error: ",
        "empty": "please type a question first",
        "truncated": "note: the answer was stopped by the maximum length; Sampling raises it.",
        "open": "Open {} in a browser (Ctrl-C: leave)",
    },
}
CSS = """
.gradio-container {width: 100%; max-width: 1240px !important; margin: 0 auto !important}
#head {display: flex; align-items: center; gap: 14px} #head svg {width: 52px; height: 52px}
#head h1 {margin: 0; font-size: 26px} #head p {margin: 0; opacity: .7}
#preview img {width: 100%; height: 100%; object-fit: contain}
"""


def parse(argv=None):
    parser = Parser(__doc__)
    add_loading_options(parser, default="checkpoints/RemoteGLM")
    page = parser.add_argument_group("page")
    add = page.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: every one of this machine (%(default)s)",
    )
    add("--port", type=int, default=7860, help="port to listen on, 1 to 65535 (%(default)s)")
    add(
        "--root-path",
        default="",
        help="path or address under which a reverse proxy shows the page, such as /remoteglm "
        "(default: directly)",
    )
    add_language_options(add)
    add_bands_option(page)

    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: must be at least 1 and at most 65535")
    if args.root_path and not args.root_path.startswith(("/", "http://", "https://")):
        parser.error(f"--root-path {args.root_path}: must begin with / or http(s)://")
    args.host = args.host.strip("[]")
    return args


# What the page does. A dialogue is a list of Gradio's messages:
# {"role": "user" or "assistant", "content": [{"type": "text", "text"}, ...]}, or a text as content
# of those made here.


def text_of(message):
    """The text of one of the messages that Gradio hands over."""
    return "".join(part.get("text", "") for part in message["content"])


def rounds(chat):
    """Gradio's messages -> (question, answer) pairs; a question without an answer is left out."""
    pairs = []
    for asked, reply in zip(chat, chat[1:]):
        if (asked["role"], reply["role"]) != ("user", "assistant"):
            continue
        answer = text_of(reply)
        if answer:
            pairs.append((text_of(asked), answer))
    return pairs


def notice(text):
    """A message of the page itself: it follows no question, so it is no part of the history."""
    return {"role": "assistant", "content": text}


class Page:
    """What the events of the page do. Dialogues stay in the browser: only the last image is kept.

    assistant: see model.Assistant; english: language of page and answers, None for a Chinese page
    and answers as the checkpoint was trained; bands: see read_image.
    """

    def __init__(self, assistant, english=False, bands=None):
        from model import read_image

        self.assistant = assistant
        self.english = english
        self.words = WORDS[bool(english)]
        self.first_question = assistant.first_question(english)
        # One image is one object as long as it is the latest: the assistant encodes it once for
        # all its rounds.
        self._read = lru_cache(maxsize=1)(partial(read_image, bands=bands))

    def show(self, path):
        """Another image, or none -> file, preview, dialogue, question.

        The preview is converted, since browsers cannot show TIFF; the dialogue begins again.
        """
        import gradio as gr

        try:
            preview = self._read(path).copy() if path else None
        except UserError as error:
            hidden = gr.Image(None, visible=False)
            return None, hidden, [self._problem(error, path)], self.first_question

        if preview is not None:
            preview.thumbnail((PREVIEW, PREVIEW))
        shown = gr.Image(preview, visible=preview is not None)
        return gr.skip(), shown, [], self.first_question

    def answer(self, path, question, chat, max_length, top_p, temperature):
        """Streams (the dialogue with the answer so far, the emptied question box)."""
        import gradio as gr

        from model import Sampling
        from model.family import Returning

        asked = {"role": "user", "content": question.strip()}
        reply = {"role": "assistant", "content": ""}

        def on_cut(rounds, tokens):
            chat.append(notice(cut_note(bool(self.english), rounds, tokens)))

        try:
            if not asked["content"]:
                raise UserError(self.words["empty"])
            sampling = Sampling(max_length=int(max_length), top_p=top_p, temperature=temperature)
            image = self._read(path) if path else None
            yield [*chat, asked, reply], ""

            pieces = Returning(
                self.assistant.stream(
                    asked["content"], image, rounds(chat), sampling, self.english, on_cut
                )
            )
            for piece in pieces:
                reply["content"] += piece
                yield [*chat, asked, reply], ""
            yield [*chat, asked, reply], ""  # of an empty answer the notice alone
            if pieces.value:
                gr.Warning(self.words["truncated"])
        except UserError as error:
            yield [*chat, self._problem(error, path)], question

    def clear(self):
        """An empty dialogue and the first question."""
        return [], self.first_question

    def _problem(self, error, path):
        """The notice of an error; the file goes by the name that its owner knows."""
        text = str(error)
        if path:
            text = text.replace(str(path), Path(path).name)
        return notice(self.words["error"] + text)


# How it looks


@dataclass
class Layout:
    """The components that events read or change."""

    file: "gradio.File"
    preview: "gradio.Image"
    sliders: "list[gradio.Slider]"  # max_length, top_p, temperature
    chat: "gradio.Chatbot"
    question: "gradio.Textbox"
    send: "gradio.Button"
    stop: "gradio.Button"
    clear: "gradio.Button"


def lay_out(words, first_question):
    """Place the components in the Blocks that are open -> Layout."""
    import gradio as gr

    heading = f"<h1>RemoteGLM</h1><p>{words['title']}</p>"
    gr.HTML(f"<div id='head'>{LOGO.read_text(encoding='utf-8')}<div>{heading}</div></div>")
    with gr.Row():
        with gr.Column(scale=2):
            file = gr.File(label=words["file"], height=170, elem_id="file")
            preview = gr.Image(
                label=words["preview"],
                visible=False,
                interactive=False,
                height=450,
                format="png",
                buttons=["fullscreen"],
                elem_id="preview",
            )
            with gr.Accordion(words["sampling"], open=False, elem_id="sampling"):
                sliders = lay_out_sliders(words)
        with gr.Column(scale=3):
            chat = gr.Chatbot(
                label=words["chat"],
                placeholder=words["hello"],
                height=490,
                render_markdown=False,
                buttons=["copy"],
                group_consecutive_messages=False,
                elem_id="chat",
            )
            question = gr.Textbox(
                first_question,
                label=words["question"],
                placeholder=words["hint"],
                max_lines=4,
                elem_id="question",
            )
            with gr.Row():
                send = gr.Button(words["send"], variant="primary", elem_id="send")
                stop = gr.Button(words["stop"], elem_id="stop")
                clear = gr.Button(words["clear"], elem_id="clear")
    return Layout(file, preview, sliders, chat, question, send, stop, clear)


def lay_out_sliders(words):
    import gradio as gr

    from model import Sampling

    default = Sampling()
    return [
        gr.Slider(64, 2048, default.max_length, step=64, label=words["max_length"]),
        gr.Slider(0, 1, default.top_p, step=0.05, label=words["top_p"]),
        gr.Slider(0, 2, default.temperature, step=0.05, label=words["temperature"]),
    ]


def connect(page, layout):
    """Say which event of the layout calls what of the page."""
    import gradio as gr

    dialogue = [layout.chat, layout.question]
    asking = gr.on(
        [layout.send.click, layout.question.submit],
        page.answer,
        [layout.file, layout.question, layout.chat, *layout.sliders],
        dialogue,
        concurrency_limit=1,
        show_progress="hidden",
        api_name="answer",
    )
    layout.stop.click(None, cancels=[asking])

    # An event and what it cancels run side by side: a new dialogue begins one step later, lest the
    # last piece of the old one arrive after it.
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    cleared = gr.on(
        [layout.clear.click, layout.chat.clear], lambda: None, cancels=[asking], **quiet
    )
    cleared.then(page.clear, None, dialogue, **quiet)
    changed = gr.on(
        [layout.file.upload, layout.file.clear], lambda: None, cancels=[asking], **quiet
    )
    changed.then(page.show, layout.file, [layout.file, layout.preview, *dialogue], **quiet)


def build(assistant, english=False, bands=None):
    """The page, not yet served. Its only named endpoint is /answer. bands: see read_image."""
    import gradio as gr

    page = Page(assistant, english, bands)
    with gr.Blocks(title="RemoteGLM") as blocks:
        layout = lay_out(page.words, page.first_question)
        connect(page, layout)
    return blocks.queue(max_size=QUEUE)


# Serving


def serve(assistant, host, port, english=False, bands=None, root_path=""):
    """Start to serve the page in the background -> the page, `local_url` is its address.

    root_path: the path or address under which a proxy shows it. Raises OSError.
    """
    # Gradio asks its own page whether it is up: never through a proxy.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
    import gradio as gr

    page = build(assistant, english, bands)
    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["monospace"]
    )
    page.launch(
        server_name=f"[{host}]" if ":" in host else host,  # IPv6 as in an address
        server_port=port,
        root_path=root_path,
        share=False,
        ssr_mode=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        run_history=False,
        footer_links=[],
        favicon_path=str(LOGO),
        theme=theme,
        css=CSS,
    )
    return page


def check_port(host, port):
    """Exit with one line if another program listens there already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        exit_without_port(host, port, error.strerror)


def exit_without_port(host, port, reason):
    sys.exit(
        f"web_demo.py: error: cannot listen on {host} port {port} ({reason}); "
        "choose another with --host or --port"
    )


def start(assistant, args):
    """Serve; exit with one line if the port was taken while the weights were read."""
    # Only where it is given: the page is served as it always was
    more = {"root_path": args.root_path} if args.root_path else {}
    try:
        return serve(assistant, args.host, args.port, args.english, args.bands, **more)
    except OSError:
        exit_without_port(args.host, args.port, "taken while the checkpoint was loaded")


def serve_until_stopped(assistant, args):
    """Serve the page until Ctrl-C or SIGTERM; what people upload is removed with it."""
    with sigterm_cleans_up(), tempfile.TemporaryDirectory(prefix="remoteglm-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = start(assistant, args)
        print(WORDS[args.english]["open"].format(page.local_url), flush=True)
        page.block_thread()


def main(argv=None):
    args = parse(argv)
    check_port(args.host, args.port)  # before the weights are read, which takes minutes

    # Imported here: --help and wrong options answer at once, without torch.
    from model import load_assistant

    try:
        assistant = load_assistant(args.from_pretrained, **loading(args))
    except UserError as error:
        sys.exit(f"web_demo.py: error: {error}")
    serve_until_stopped(assistant, args)


if __name__ == "__main__":
    main()
