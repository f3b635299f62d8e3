"""Talk about an aerial image in the browser, or by OpenAI's protocol; nothing leaves this machine.

On http://127.0.0.1:7860 (the page) and http://127.0.0.1:7860/v1 (the API), or for the whole local
network:

    python web_demo.py --from_pretrained checkpoints/demo
    python web_demo.py --from_pretrained checkpoints/demo --host 0.0.0.0 --auth lab:word --api-key k
    python web_demo.py --from_pretrained checkpoints/demo --api-only
"""

import ipaddress
import os
import shutil
import socket
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from command_line import (
    Parser,
    add_bands_option,
    add_language_options,
    add_loading_options,
    ctrl_c_ends_at_once,
    loading,
    sigterm_cleans_up,
)
from model.errors import UserError
from serving.page.words import WORDS
from serving.space import GB, USUAL, Space
from serving.turns import USUAL as MOST_PIXELS

ABOVE_ZERO = (
    *("rows", "waiting", "answer_seconds", "answer_tokens", "kv_memory", "upload_space"),
    "max_image_pixels",
)
# Folders of what people upload: one for each process, by its number
UPLOADS = "remoteglm-{}-"


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
    add(
        "--votes",
        metavar="FILE",
        help="let people vote on answers, and append every vote with its question and answer to "
        "this file, a JSON object a line (default: nobody votes)",
    )
    add(
        "--upload-space",
        type=float,
        metavar="GB",
        default=USUAL / GB,
        help="disk that uploads and maps may take, those of one page a quarter of it (%(default)s)",
    )
    page.add_argument(
        "--max-image-pixels",
        type=int,
        default=MOST_PIXELS,
        help="pixels of an image that a question may be about, by page and API; of a file with "
        "overviews those count that are read (%(default)s)",
    )
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
    for name in ABOVE_ZERO:
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


# Serving


def build(assistant, english=None, bands=None, at_a_time=1, **options):
    """The page, not yet served; see serving.page.app."""
    from serving.page import app

    return app.build(assistant, english, bands, at_a_time, **options)


def serve(assistant, host, port, english=None, bands=None, **options):
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


def serve_app(app, listener, assistant, english=None, bands=None, *, trusted=(), **options):
    """Serve an app and behind its routes the page -> serving.server.Server.

    trusted: see serving.guard; options: see add_page.
    """
    from serving.guard import Guard
    from serving.server import Server

    add_page(app, listener, assistant, english, bands, **options)
    return Server(Guard(app, trusted), listener).start()


def add_page(
    app,
    listener,
    assistant,
    english=None,
    bands=None,
    *,
    root_path="",
    auth=None,
    upload_space=USUAL / GB,
    **options,
):
    """Put the page behind the routes of an app that has not started.

    root_path: the path or address under which a proxy shows it; auth: (user, password);
    upload_space: GB of the disk for people's files; options: see serving.page.app.build.
    """
    # Nothing of Gradio asks the outside; its client finds this server without a proxy.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
    from gradio.utils import get_upload_folder

    from serving.page.app import mount

    space = Space(Path(get_upload_folder()), int(upload_space * GB))
    page = build(assistant, english, bands, space=space, **options)
    host, port = listener.getsockname()[:2]
    mount(app, page, space, host, port, root_path, auth, english)


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
    """A folder for what people upload, removed at the end, also when a signal ends it.

    Those of processes that were killed are removed as well.
    """
    remove_left_folders()
    prefix = UPLOADS.format(os.getpid())
    with sigterm_cleans_up(), tempfile.TemporaryDirectory(prefix=prefix) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        yield


def remove_left_folders():
    for folder in Path(tempfile.gettempdir()).glob(UPLOADS.format("*") + "*"):
        number = folder.name.split("-")[1]
        if number.isdecimal() and not is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def is_running(process):
    """Whether there is a process of this number, whoever owns it."""
    if os.name == "nt":
        return True  # there os.kill would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


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
    with ctrl_c_ends_at_once():
        from serving.api import Api, create_app
        from serving.guard import Guard
        from serving.served import Served
        from serving.server import Server
        from serving.turns import Turns

    turns = Turns(args.max_image_pixels)
    api = Api(Path(args.from_pretrained).name, args.api_key, args.bands, args.english, turns=turns)
    trusted = [*args.trusted_host, urlsplit(args.root_path).hostname or "localhost"]
    server = Server(Guard(create_app(api), trusted), listener).start()
    with ExitStack() as ends:
        ends.callback(server.close)
        assistant, scheduler = open_engine(args)
        ends.callback(scheduler.close)
        served = Served(assistant, scheduler)
        if not args.api_only:
            maps = maps_for(args, api.name, assistant, scheduler)
            server.show(Guard(app_with_page(args, api, served, listener, maps), trusted))
        api.served = served
        announce(args, api.name, server)
        server.wait()


def maps_for(args, name, assistant, scheduler):
    from serving.bulk import Bulk
    from serving.maps import Maps

    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    return Maps(Bulk(assistant, scheduler), name, args.english, args.scenes, uploads)


def app_with_page(args, api, served, listener, maps):
    """The page behind the API's routes."""
    from serving.api import create_app
    from serving.page.about import about
    from serving.page.votes import Votes

    app = create_app(api, with_page=True)
    add_page(
        app,
        listener,
        served,
        args.english,
        args.bands,
        root_path=args.root_path,
        auth=tuple(args.auth.split(":", 1)) if args.auth else None,
        at_a_time=args.rows + args.waiting + 1,  # the last is told that there is no place
        about=about(served.family, api.name, args.from_pretrained),
        votes=Votes(args.votes) if args.votes else None,
        upload_space=args.upload_space,
        turns=api.turns,
        maps=maps,
    )
    return app


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
