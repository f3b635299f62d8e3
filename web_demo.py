"""Talk about an aerial image in the browser, or by OpenAI's protocol; nothing leaves this machine.

On http://127.0.0.1:7860 (the page) and http://127.0.0.1:7860/v1 (the API), or for the whole local
network:

    python web_demo.py --from_pretrained checkpoints/demo
    python web_demo.py --from_pretrained checkpoints/demo --host 0.0.0.0 --auth lab:word --api-key k
    python web_demo.py --from_pretrained checkpoints/demo --api-only
"""

import ipaddress
import os
import re
import socket
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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
UPLOAD = "1gb"  # largest image or scene
# What is asked about an image; without one it is not answered
ABOUT_IMAGE = re.compile(
    r"图像|图中|图片|图上|这张图|影像|遥感|照片|image|picture|photo", re.IGNORECASE
)
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
        "no image": "还没有图像：请先在左边放入一张遥感图像，再发送这个问题。",
        "waiting": "排队中：前面 {} 人，约 {} 秒",
        "working": "……",
        "open": "请在浏览器中打开 {}（Ctrl-C 退出）",
        "network": "局域网地址：{}",
        "api": "OpenAI 兼容接口：{}v1，模型名 {}",
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
        "no image": "There is no image yet: drop one on the left, then send this question.",
        "waiting": "waiting: {} before you, about {} s",
        "working": "...",
        "open": "Open {} in a browser (Ctrl-C: leave)",
        "network": "In the local network: {}",
        "api": "OpenAI-compatible API: {}v1, model {}",
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
    add(
        "--scenes",
        type=Path,
        metavar="FOLDER",
        help="a folder of this machine: whoever sees the page may map the images in it (default: "
        "only what people upload)",
    )
    add_language_options(add)
    add_bands_option(page)
    add_access_options(parser.add_argument_group("who may ask").add_argument)
    add_engine_options(parser.add_argument_group("answers to many people").add_argument)

    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: must be at least 1 and at most 65535")
    if args.root_path and not args.root_path.startswith(("/", "http://", "https://")):
        parser.error(f"--root-path {args.root_path}: must begin with / or http(s)://")
    if args.scenes and not args.scenes.is_dir():
        parser.error(f"--scenes {args.scenes}: no such folder")
    args.host = args.host.strip("[]")
    check_access(parser, args)
    for name in ("rows", "waiting", "answer_seconds", "answer_tokens", "kv_memory"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} {value}: must be more than 0")
    return args


def add_access_options(add):
    add("--api-only", action="store_true", help="only the API, without the page and Gradio")
    add(
        "--api-key",
        default=os.environ.get("REMOTEGLM_API_KEY") or None,
        help="what programs must send as Authorization: Bearer KEY (default: the environment's "
        "REMOTEGLM_API_KEY, else none)",
    )
    add("--auth", metavar="USER:PASSWORD", help="what people must type before they see the page")
    add("--open", action="store_true", help="let everybody in who reaches --host")
    add(
        "--trusted-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name under which this server is reached, as behind a reverse proxy; "
        "requests under other names and from other web sites are refused",
    )


def add_engine_options(add):
    add("--rows", type=int, default=8, help="answers under way at a time (%(default)s)")
    add("--waiting", type=int, default=64, help="questions that may wait (%(default)s)")
    add(
        "--answer-seconds",
        type=float,
        default=120,
        help="an answer that takes longer is ended there (%(default)s)",
    )
    add(
        "--answer-tokens", type=int, help="most tokens of an answer (default: what the model reads)"
    )
    add(
        "--kv-memory",
        type=float,
        metavar="GB",
        help="limit of the KV cache; answers that find no room wait (default: no limit)",
    )


def check_access(parser, args):
    """Beyond this machine nothing is open unless that was said."""
    if args.auth and not all(args.auth.partition(":")[::2]):
        parser.error(f"--auth {args.auth}: expected USER:PASSWORD")
    if args.open or is_loopback(args.host):
        return
    needed = [] if args.api_key else ["--api-key KEY"]
    if not args.auth and not args.api_only:
        needed.append("--auth USER:PASSWORD")
    if needed:
        parser.error(
            f"--host {args.host}: others can reach it; add {' and '.join(needed)}, or --open to "
            "let everybody in"
        )


def is_loopback(host):
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


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
            if not path and ABOUT_IMAGE.search(asked["content"]):
                raise UserError(self.words["no image"])
            sampling = Sampling(max_length=int(max_length), top_p=top_p, temperature=temperature)
            image = self._read(path) if path else None
            yield [*chat, asked, reply], ""

            pieces = Returning(
                self.assistant.stream(
                    asked["content"], image, rounds(chat), sampling, self.english, on_cut
                )
            )
            # What is typed meanwhile stays in the box
            for piece in pieces:
                reply["content"] += piece
                shown = reply if piece or reply["content"] else notice(self._sign(piece))
                yield [*chat, asked, shown], gr.skip()
            yield [*chat, asked, reply], gr.skip()  # of an empty answer the notice alone
            if pieces.value:
                gr.Warning(self.words["truncated"])
        except UserError as error:
            yield [*chat, self._problem(error, path)], question

    def _sign(self, silence):
        """What stands in the answer's place before its first piece."""
        place = getattr(silence, "place", None)
        if place is None:
            return self.words["working"]
        ahead, seconds = place
        return self.words["waiting"].format(ahead, max(1, round(seconds)))

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


def connect(page, layout, at_a_time):
    """Say which event of the layout calls what of the page. at_a_time: questions in its hands."""
    import gradio as gr

    dialogue = [layout.chat, layout.question]
    asking = gr.on(
        [layout.send.click, layout.question.submit],
        page.answer,
        [layout.file, layout.question, layout.chat, *layout.sliders],
        dialogue,
        concurrency_limit=at_a_time,
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


def build(assistant, english=False, bands=None, at_a_time=1, maps=None):
    """The page, not yet served. Its only named endpoint is /answer. bands: see read_image.

    at_a_time: questions that the assistant takes at once, waiting ones included; maps: see
    serving.maps, None: without maps of scenes.
    """
    import gradio as gr

    from serving.map_tab import scene_tab

    page = Page(assistant, english, bands)
    with gr.Blocks(title="RemoteGLM", analytics_enabled=False) as blocks, gr.Tabs():
        with gr.Tab(page.words["chat"]):
            layout = lay_out(page.words, page.first_question)
            connect(page, layout, at_a_time)
        if maps:
            scene_tab(maps, bool(english))
    return blocks.queue(max_size=2 * at_a_time + 16)


# Serving


def mount(app, page, host, port, root_path="", auth=None):
    """Show the page behind the routes of a FastAPI app. auth: (user, password)."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["monospace"]
    )
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        server_port=port,
        root_path=root_path or None,
        auth=auth,
        max_file_size=UPLOAD,
        ssr_mode=False,
        show_error=True,
        run_history=False,
        footer_links=[],
        favicon_path=str(LOGO),
        theme=theme,
        css=CSS,
    )


def serve(assistant, host, port, english=False, bands=None, **options):
    """Start to serve the page in the background -> serving.server.Server.

    options: see serve_app. Raises OSError.
    """
    from fastapi import FastAPI

    from serving.server import listen

    listener = listen(host, port)
    try:
        return serve_app(FastAPI(), listener, assistant, english, bands, **options)
    finally:
        listener.close()


def serve_app(
    app,
    listener,
    assistant,
    english=False,
    bands=None,
    *,
    root_path="",
    auth=None,
    trusted=(),
    at_a_time=1,
    maps=None,
):
    """Serve an app and behind its routes the page -> serving.server.Server.

    root_path: the path or address under which a proxy shows it; trusted: see serving.guard.
    """
    # Nothing of Gradio asks the outside; its client finds this server without a proxy.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
    from serving.guard import Guard
    from serving.server import Server

    host, port = listener.getsockname()[:2]
    page = build(assistant, english, bands, at_a_time, maps)
    mount(app, page, host, port, root_path, auth)
    return Server(Guard(app, trusted), listener).start()


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


@contextmanager
def upload_folder():
    """A folder for what people upload, removed at the end, at SIGTERM as well."""
    with sigterm_cleans_up(), tempfile.TemporaryDirectory(prefix="remoteglm-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        yield


def open_engine(args):
    """(Assistant, Scheduler) that the options ask for. Raises UserError."""
    from model import load_assistant
    from serving.scheduler import Scheduler

    assistant = load_assistant(args.from_pretrained, **loading(args))
    scheduler = Scheduler(
        assistant,
        rows=args.rows,
        waiting=args.waiting,
        seconds=args.answer_seconds,
        max_tokens=args.answer_tokens,
        memory=None if args.kv_memory is None else int(args.kv_memory * 1e9),
    )
    return assistant, scheduler


def serve_until_stopped(args, listener):
    """Serve until Ctrl-C or SIGTERM; while the checkpoint is loaded the answer is 503."""
    from serving.api import Api, create_app
    from serving.guard import Guard
    from serving.served import Served
    from serving.server import Server

    api = Api(Path(args.from_pretrained).name, args.api_key, args.bands, args.english)
    trusted = [*args.trusted_host, urlsplit(args.root_path).hostname or "localhost"]
    server = Server(Guard(create_app(api), trusted), listener).start()
    with ExitStack() as ends:
        ends.callback(lambda: server.close())
        assistant, scheduler = open_engine(args)
        ends.callback(scheduler.close)
        served = Served(assistant, scheduler)
        if not args.api_only:
            maps = maps_for(args, api.name, assistant, scheduler)
            loading_server, server = server, serve_page(args, api, served, listener, trusted, maps)
            loading_server.close()
        api.served = served
        announce(args, api.name, server)
        server.wait()


def maps_for(args, name, assistant, scheduler):
    from serving.bulk import Bulk
    from serving.maps import Maps

    return Maps(Bulk(assistant, scheduler), name, args.english, args.scenes)


def serve_page(args, api, served, listener, trusted, maps):
    """The page behind the API's routes."""
    from serving.api import create_app

    return serve_app(
        create_app(api, with_page=True),
        listener,
        served,
        args.english,
        args.bands,
        root_path=args.root_path,
        auth=tuple(args.auth.split(":", 1)) if args.auth else None,
        trusted=trusted,
        at_a_time=args.rows + args.waiting,
        maps=maps,
    )


def announce(args, name, server):
    from serving.server import network_address

    words = WORDS[bool(args.english)]
    if not args.api_only:
        print(words["open"].format(server.local_url), flush=True)
    print(words["api"].format(server.local_url, name), flush=True)
    network = None if is_loopback(args.host) else network_address(args.port)
    if network:
        print(words["network"].format(network), flush=True)


def main(argv=None):
    args = parse(argv)
    check_port(args.host, args.port)  # before what is heavy is imported

    from serving.server import listen

    try:
        listener = listen(args.host, args.port)
    except OSError:
        exit_without_port(args.host, args.port, "taken while this started")
    try:
        with upload_folder():
            serve_until_stopped(args, listener)
    except UserError as error:
        sys.exit(f"web_demo.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
