"""The page's tab for maps of large scenes: the form, how far a map is, and the map."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from mapping.options import MOST_OVERLAP, STRETCHES, TASKS, Options, problem_of
from model.errors import UserError
from serving.maps import SUFFIXES, MapRun, Maps
from serving.page.layout import Layout
from serving.page.service import Service
from serving.page.sessions import Session
from serving.page.words import WORDS as PAGE_WORDS
from serving.page.words import Said, Word, WordedError

# Key -> Chinese, English
TABLE = {
    "tab": ("整景制图", "Scene map"),
    "scene": ("大图（GeoTIFF，或普通图像）", "Large image (GeoTIFF, or any picture)"),
    "before": ("早先的一景（可不放，比较两个时相）", "Earlier image (optional: two dates)"),
    "on server": ("或选服务器上的图", "or one on the server"),
    "tile": ("块边长（像素）", "Tile (pixels)"),
    "overlap": ("重叠", "Overlap"),
    "min_confidence": ("最低把握", "Least confidence"),
    "tasks": ("每块问什么", "What each tile is asked"),
    "description": ("描述", "description"),
    "scene task": ("场景", "scene"),
    "objects": ("地物", "objects"),
    "prompt": ("描述的问题（空：照训练时的问法）", "Question (empty: as in training)"),
    "bands": ("波段（如 4 3 2，空：照文件）", "Bands (such as 4 3 2; empty: as the file says)"),
    "stretch": ("拉伸", "Stretch"),
    "whole": ("全景一致", "alike in the whole scene"),
    "each": ("各块自己", "each tile by itself"),
    "more": ("更多选项", "More options"),
    "start": ("开始制图", "Start"),
    "stop": ("停止", "Stop"),
    "summary": ("统计", "Summary"),
    "files": ("下载", "Downloads"),
    "hint": (
        "放入一景图像，点“开始制图”：切成块逐块提问，连成各场景的地图。",
        "Choose an image and press Start: its tiles are asked about and become a map.",
    ),
    "opening": ("正在打开图像……", "opening the image..."),
    "waiting": ("别人的地图还在做，请稍候……", "waiting for the maps of others..."),
    "tiles": ("{} / {} 块", "{} / {} tiles"),
    "date": ("早先的一景：", "earlier image: "),
    "rate": ("{:.1f} 块/秒", "{:.1f} tiles/s"),
    "left": ("约剩 {}", "about {} left"),
    "writing": ("正在写地图……", "writing the map..."),
    "done": ("完成", "done"),
    "stopped": (
        "已停止；答过的块都留着，再点“开始制图”接着做。",
        "Stopped; what was answered is kept, Start continues.",
    ),
    "interrupted": (
        "上一幅地图停在中途，答过的块都留着：放入同一景、选同样的选项，再点“开始制图”就接着做。",
        "The last map was interrupted; what was answered is kept: choose the same image and "
        "options, and Start continues.",
    ),
    "failed": (
        "{} 块没有读出来，再点“开始制图”重试；第一个：{}",
        "{} tiles could not be read, Start tries them again; the first: {}",
    ),
    "error": ("错误：", "error: "),
    "no scene": ("请先放入一景图像。", "choose an image first"),
    "no task": ("请至少选一样要问的。", "choose at least one thing to ask"),
    "form": ("{}：{}，不对", "{}: {} is not possible"),
    "bands form": ("波段 {}：应为三个从 1 数起的数", "bands {}: expected three numbers from 1 on"),
}
# Those of the page, too: what is said of the disk
WORDS = {
    english: PAGE_WORDS[english] | {key: pair[english] for key, pair in TABLE.items()}
    for english in (False, True)
}
# How an option of the command line is called here
LABELS = {"--tile": "tile", "--overlap": "overlap", "--before": "before"}
STRETCH_WORDS = dict(zip(STRETCHES, ("whole", "each")))
TASK_WORDS = dict(zip(TASKS, ("description", "scene task", "objects")))
FRAME = '<iframe title="地图 Map" sandbox="allow-scripts" srcdoc="{}" style="{}"></iframe>'
ROOM = 10**8  # bytes that a map is expected to take
STYLE = "width: 100%; height: 78vh; border: 1px solid #8884; border-radius: 6px; background: #fff"


class MapLayout:
    """The components, in the gr.Tabs that are open. names: images on the server."""

    def __init__(self, layout: Layout, names: Sequence[str]):
        self.make = layout.make
        with self._made(gr.Tab, label="tab", elem_id="scene-tab"), gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.form = self._sources(names) + self._settings()
                with gr.Row():
                    self.start = self._made(
                        gr.Button,
                        text="start",
                        variant="primary",
                        min_width=90,
                        elem_id="scene-start",
                    )
                    self.stop = self._made(
                        gr.Button, text="stop", min_width=90, elem_id="scene-stop"
                    )
            with gr.Column(scale=5):
                self.status = gr.HTML(elem_id="scene-status")
                self.map = gr.HTML(visible=False, elem_id="scene-map")
                self.summary = self._made(
                    gr.Textbox, label="summary", lines=6, visible=False, elem_id="scene-summary"
                )
                self.files = self._made(
                    gr.File,
                    label="files",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="scene-files",
                )

    def _made(self, kind, *values, **options):
        """Texts are keys of TABLE, and follow the language."""
        for name in ("text", "label"):
            if name in options:
                options[name] = TABLE[options[name]]
        return self.make(kind, *values, **options)

    def _sources(self, names):
        """Which image, and which earlier one: uploads, and names on the server."""
        found = []
        for key in ("scene", "before"):
            upload = self._made(
                gr.File, label=key, file_types=list(SUFFIXES), height=140, elem_id=f"{key}-file"
            )
            name = self._made(
                gr.Dropdown,
                ["", *names],
                value="",
                label="on server",
                visible=bool(names),
                elem_id=f"{key}-name",
            )
            found += [upload, name]
        return found

    def _settings(self):
        """In the order of MapTab.make."""
        with gr.Row():
            tile = self._made(gr.Number, Options.tile, label="tile", precision=0, min_width=100)
            overlap = self._made(
                gr.Number,
                Options.overlap,
                minimum=0,
                maximum=MOST_OVERLAP,
                step=0.05,
                label="overlap",
                min_width=100,
            )
        tasks = self._made(
            gr.CheckboxGroup,
            choices=[(TABLE[word], task) for task, word in TASK_WORDS.items()],
            value=list(Options.tasks),
            label="tasks",
        )
        with self._made(gr.Accordion, label="more", open=False, elem_id="scene-more"):
            prompt = self._made(gr.Textbox, label="prompt")
            bands = self._made(gr.Textbox, label="bands")
            stretch = self._made(
                gr.Radio,
                choices=[(TABLE[word], stretch) for stretch, word in STRETCH_WORDS.items()],
                value=Options.stretch,
                label="stretch",
            )
            least = self._made(
                gr.Slider, 0, 1, Options.min_confidence, step=0.05, label="min_confidence"
            )
        return [tile, overlap, tasks, prompt, bands, stretch, least]

    def connect(self, tab: "MapTab", arrived: Any, switched: Any) -> None:
        """arrived, switched: events after which the page may be in another language."""
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        outputs = [self.status, self.map, self.summary, self.files]
        self.start.click(tab.make, self.form, outputs, concurrency_limit=None, **quiet)
        self.stop.click(tab.stop, None, None, **quiet)
        arrived.then(tab.arrive, None, self.status, **quiet)
        switched.then(tab.say_again, None, self.status, **quiet)


class MapTab:
    """What its events do."""

    def __init__(self, maps: Maps, service: Service):
        self.maps = maps
        self.service = service
        # Of the map that each open page makes
        self._stopping: dict[str, threading.Event] = {}

    def arrive(self, request: gr.Request) -> str:
        """A page that is loaded shows no map, and makes none."""
        session = self.service.session(request)
        key = "interrupted" if session.map_is_open else "hint"
        return self._say(session, partial(_said, key))

    def say_again(self, request: gr.Request) -> str:
        """What is said of the map, in the page's language."""
        session = self.service.session(request)
        return self._say(session, session.map_said or partial(_said, "hint"))

    def _say(self, session: Session, said: Said) -> str:
        session.map_said = said
        return said(WORDS[self.service.is_english(session)])

    def make(
        self,
        request: gr.Request,
        scene: str | None,
        scene_name: str,
        before: str | None,
        before_name: str,
        *settings: Any,
    ) -> Iterator[tuple]:
        """Streams (how far it is, the map, its summary, its files)."""
        session = self.service.session(request)
        say = partial(self._say, session)
        nothing = gr.HTML(visible=False), gr.Textbox(visible=False), gr.File(visible=False)
        sources = [path for path in (scene, before) if path]
        stopping = self._stopping[str(request.session_hash)] = threading.Event()
        try:
            yield say(partial(_waiting, "opening")), *nothing
            self._claim(session, sources)
            asked = _asked(*settings)
            asked["scene"] = self._source(scene, scene_name)
            asked["before"] = self._source(before, before_name)
            if asked["scene"] is None:
                raise WordedError("no scene")
            yield from self._make(session, asked, say, stopping)
        except UserError as error:
            yield say(partial(_problem, error, sources)), *nothing
        finally:
            self._stopping.pop(str(request.session_hash), None)

    def _make(self, session, asked, say, stopping):
        """Raises UserError."""
        unchanged = gr.skip(), gr.skip(), gr.skip()
        run: MapRun | None = None
        self.service.space.take(ROOM)
        session.map_is_open = True
        making = self.maps.make(asked)
        try:
            for run in making:
                if stopping.is_set():
                    making.close()
                    break
                yield say(partial(_progress, run)), *unchanged
            shown = _result(run) if run and run.summary else None
        except GeneratorExit:
            # The page was closed, or is loaded again. The thread that says so answers everybody: it
            # cannot wait for the tiles that are being answered
            threading.Thread(target=making.close, daemon=True).start()
            raise
        finally:
            self.service.space.give_back(ROOM)
        session.map_is_open = not (run and (run.error or shown))
        if run and run.error:
            raise UserError(run.error)
        if shown:
            yield say(partial(_done, run)), *shown
        elif stopping.is_set():
            yield say(partial(_said, "stopped")), *unchanged

    def _claim(self, session, sources):
        """The scenes are this page's; those before them are removed. Raises WordedError."""
        session.scenes = {Path(path) for path in sources}
        self.service.claim(session, *session.scenes)
        self.service.sessions.release(session)

    def stop(self, request: gr.Request) -> None:
        """The map that this page makes ends by itself: what Gradio cancels cannot be started again
        in every case.
        """
        stopping = self._stopping.get(str(request.session_hash))
        if stopping:
            stopping.set()

    def _source(self, upload, name):
        """The file that somebody uploaded or chose; None: neither."""
        return self.maps.path_of(name) if name else upload


def _asked(tile, overlap, tasks, prompt, bands, stretch, least):
    """Options but for the files. Raises WordedError."""
    asked = {"tile": tile, "overlap": overlap, "min_confidence": least, "stretch": stretch}
    for name in ("tile", "overlap", "min_confidence"):
        value = asked[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or problem_of(name, value):
            raise WordedError("form", Word(name), value)
    if stretch not in STRETCHES:
        raise WordedError("form", Word("stretch"), stretch)
    asked["tile"] = int(tile)
    asked["tasks"] = tuple(task for task in TASKS if task in tasks)
    if not asked["tasks"]:
        raise WordedError("no task")
    asked["prompt"] = (prompt or "").strip() or None
    asked["bands"] = _bands(bands or "")
    return asked


def _bands(text: str) -> list[int] | None:
    if not text.strip():
        return None
    try:
        bands = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        bands = []
    if len(bands) != 3 or min(bands) < 1:
        raise WordedError("bands form", text.strip())
    return bands


# What is said: HTML, of words


def _said(key, words):
    return _line(words[key])


def _waiting(key, words):
    return _bar(words[key])


def _problem(error: UserError, sources: Sequence[str], words: dict[str, str]) -> str:
    """An error in the words of the page: files by the names that their owner knows."""
    text = error.said(words) if isinstance(error, WordedError) else str(error)
    for path in sources:
        text = text.replace(str(path), Path(path).name)
    for option, key in LABELS.items():
        text = text.replace(option, words[key])
    return _line(words["error"] + text)


def _progress(run: MapRun | None, words: dict[str, str]) -> str:
    if run is None:
        return _bar(words["waiting"])
    progress = run.progress
    if not progress.total:
        return _bar(words["opening"])
    parts = [words["tiles"].format(progress.done, progress.total)]
    if progress.dates == 2:
        parts[0] = words["date"] + parts[0]
    if progress.rate is not None:
        parts.append(words["rate"].format(progress.rate))
    if progress.done == progress.total:
        parts.append(words["writing"])
    elif progress.seconds_left is not None:
        parts.append(words["left"].format(_clock(progress.seconds_left)))
    return _bar(" · ".join(parts), progress.done / progress.total)


def _done(run, words):
    failed = run.summary["tiles"]["failed"]
    if failed:
        return _line(words["failed"].format(failed, run.summary["first_error"]))
    return _line(words["done"])


def _result(run):
    """The map, its summary, its files: in the language of its answers."""
    page, text = (
        (run.options.output / name).read_text(encoding="utf-8")
        for name in ("map.html", "summary.txt")
    )
    frame = FRAME.format(escape(page), STYLE)
    files = [str(path) for path in run.files]
    return (
        gr.HTML(frame, visible=True),
        gr.Textbox(text, visible=True),
        gr.File(files, visible=True),
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _line(text: str) -> str:
    """HTML."""
    return f"<p>{escape(text)}</p>"


def _bar(text: str, share: float | None = None) -> str:
    """A line below a bar; share: what is done of 1, None: not known."""
    value = "" if share is None else f' max="1" value="{share:.4f}"'
    style = "width: 100%; height: 14px; accent-color: var(--primary-600)"
    return f'<progress{value} style="{style}"></progress>' + _line(text)
