"""Talk about an aerial image in the browser; nothing leaves this machine.

python web_demo.py --from_pretrained checkpoints/demo                  # then open http://127.0.0.1:7860
python web_demo.py --from_pretrained checkpoints/demo --host 0.0.0.0   # for the whole local network
"""

import functools
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

from cli_demo import Parser, add_bands_option, add_loading_options, cut_note, loading

LOGO = Path(__file__).resolve().parent / "images" / "logo.svg"
PREVIEW = 1024  # longest side of the preview, in pixels; the model reads the picture itself
WORDS = {  # what a person sees, by --english
    False: {
        "title": "用中文与遥感图像对话",
        "prompt": None,
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
        "open": "请在浏览器中打开 {}（Ctrl-C 退出）",
    },
    True: {
        "title": "Talk with aerial images",
        "prompt": "Describe the image.",
        "file": "Aerial image (TIFF, PNG, JPEG, ...)",
        "preview": "Preview",
        "chat": "Dialogue",
        "hello": "Drop an aerial image, then press Send; without one it is a dialogue in plain text.",
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
    add = parser.add_argument
    add_loading_options(parser, default="checkpoints/RemoteGLM")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: every one of this machine (%(default)s)",
    )
    add("--port", type=int, default=7860, help="port to listen on, 1 to 65535 (%(default)s)")
    add_bands_option(parser)
    add("--english", action="store_true", help="page, questions and answers in English")
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: must be at least 1 and at most 65535")
    return args


def rounds(chat):
    """Gradio's messages -> (question, answer) pairs; a question without an answer is left out."""
    said = [
        (message["role"], "".join(part.get("text", "") for part in message["content"]))
        for message in chat
    ]
    return [
        (question, answer)
        for (asks, question), (answers, answer) in zip(said, said[1:])
        if (asks, answers) == ("user", "assistant") and answer
    ]


def build(assistant, english=False, bands=None):
    """The page, not yet served. Its only named endpoint is /answer. bands: see read_image."""
    import gradio as gr

    from model import Sampling, UserError, read_image

    words, default = WORDS[english], Sampling()
    first = words["prompt"] or assistant.prompt
    # One picture is one object as long as it is the latest: the assistant encodes it once for all its rounds.
    read = functools.lru_cache(maxsize=1)(functools.partial(read_image, bands=bands))

    def notice(text):
        """A message of the page itself; it follows no question, so it is no part of the dialogue's history."""
        return {"role": "assistant", "content": text}

    def problem(error, path=None):
        return notice(
            words["error"]
            + (str(error).replace(str(path), Path(path).name) if path else str(error))
        )

    def show(path):
        """Another picture, or none: its preview and a new dialogue. Browsers cannot show TIFF, so it is converted."""
        try:
            preview = read(path).copy() if path else None
        except UserError as error:
            return None, gr.Image(None, visible=False), [problem(error, path)], first
        if preview:
            preview.thumbnail((PREVIEW, PREVIEW))
        return gr.skip(), gr.Image(preview, visible=preview is not None), [], first

    def answer(path, question, chat, max_length, top_p, temperature):
        """Streams (the dialogue with the answer so far, the emptied question box)."""
        asked, reply = (
            {"role": "user", "content": question.strip()},
            {"role": "assistant", "content": ""},
        )
        sampling = Sampling(max_length=int(max_length), top_p=top_p, temperature=temperature)
        try:
            if not asked["content"]:
                raise UserError(words["empty"])
            image = read(path) if path else None
            yield [*chat, asked, reply], ""
            for piece in assistant.stream(
                asked["content"],
                image,
                rounds(chat),
                sampling,
                english,
                lambda *cut: chat.append(notice(cut_note(english, *cut))),
            ):
                reply["content"] += piece
                yield [*chat, asked, reply], ""
            yield [*chat, asked, reply], ""  # of an empty answer the notice alone
        except UserError as error:
            yield [*chat, problem(error, path)], question

    with gr.Blocks(title="RemoteGLM") as page:
        gr.HTML(
            f"<div id='head'>{LOGO.read_text()}<div><h1>RemoteGLM</h1><p>{words['title']}</p></div></div>"
        )
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
                    sliders = [
                        gr.Slider(64, 2048, default.max_length, step=64, label=words["max_length"]),
                        gr.Slider(0, 1, default.top_p, step=0.05, label=words["top_p"]),
                        gr.Slider(0, 2, default.temperature, step=0.05, label=words["temperature"]),
                    ]
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
                    first,
                    label=words["question"],
                    placeholder=words["hint"],
                    max_lines=4,
                    elem_id="question",
                )
                with gr.Row():
                    send = gr.Button(words["send"], variant="primary", elem_id="send")
                    stop = gr.Button(words["stop"], elem_id="stop")
                    clear = gr.Button(words["clear"], elem_id="clear")
        asking = gr.on(
            [send.click, question.submit],
            answer,
            [file, question, chat, *sliders],
            [chat, question],
            concurrency_limit=1,
            show_progress="hidden",
            api_name="answer",
        )
        # An event and what it cancels run side by side: a new dialogue is begun one step later, lest the last piece of
        # the old one arrive after it.
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        stop.click(None, cancels=[asking])
        gr.on([clear.click, chat.clear], lambda: None, cancels=[asking], **quiet).then(
            lambda: ([], first), None, [chat, question], **quiet
        )
        gr.on([file.upload, file.clear], lambda: None, cancels=[asking], **quiet).then(
            show, file, [file, preview, chat, question], **quiet
        )
    return page.queue(max_size=16)


def serve(assistant, host, port, english=False, bands=None):
    """Start to serve the page in the background; returns it, `local_url` is its address. Raises OSError."""
    # Gradio asks its own page whether it is up: never through a proxy.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
    page = build(assistant, english, bands)
    import gradio as gr

    font = [
        "system-ui",
        "PingFang SC",
        "Microsoft YaHei",
        "Noto Sans CJK SC",
        "WenQuanYi Micro Hei",
        "sans-serif",
    ]
    theme = gr.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=font, font_mono=["monospace"]
    )
    page.launch(
        server_name=host,
        server_port=port,
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


def main(argv=None):
    args = parse(argv)
    try:
        socket.create_server(
            (args.host, args.port)
        ).close()  # a taken port is told before the weights are read
    except OSError as error:
        sys.exit(
            f"web_demo.py: error: cannot listen on {args.host} port {args.port} ({error.strerror}); "
            "choose another with --host or --port"
        )
    # Imported here: --help and wrong options answer at once, without loading torch.
    from model import UserError, load_assistant

    try:
        assistant = load_assistant(args.from_pretrained, **loading(args))
    except UserError as error:
        sys.exit(f"web_demo.py: error: {error}")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        with tempfile.TemporaryDirectory(
            prefix="remoteglm-"
        ) as uploads:  # what people upload goes when the page goes
            os.environ["GRADIO_TEMP_DIR"] = uploads
            page = serve(assistant, args.host, args.port, args.english, args.bands)
            print(WORDS[args.english]["open"].format(page.local_url), flush=True)
            page.block_thread()
    finally:
        signal.signal(
            signal.SIGTERM, before
        )  # a process forked later would inherit it and could ignore its end


if __name__ == "__main__":
    main()
