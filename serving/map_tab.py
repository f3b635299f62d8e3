"""The page's tab for maps of large scenes: the form, how far a map is, and the map."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from mapping.options import MOST_OVERLAP, STRETCHES, TASKS, Options, problem_of
from model.errors import UserError
from serving.maps import SUFFIXES, MapRun, Maps

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
    "map": ("地图", "Map"),
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
# How an option of the command line is called here
LABELS = {"--tile": "tile", "--overlap": "overlap", "--before": "before"}
STRETCH_WORDS = dict(zip(STRETCHES, ("whole", "each")))
TASK_WORDS = dict(zip(TASKS, ("description", "scene task", "objects")))
FRAME = '<iframe title="{}" sandbox="allow-scripts" srcdoc="{}" style="{}"></iframe>'
STYLE = "width: 100%; height: 78vh; border: 1px solid #8884; border-radius: 6px; background: #fff"


def scene_tab(maps: Maps, english: bool = False) -> None:
    """Add the tab to the gr.Tabs that are open."""
    words = {key: pair[english] for key, pair in TABLE.items()}
    with gr.Tab(words["tab"], elem_id="scene-tab"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            form = _sources(maps, words) + _settings(words)
            with gr.Row():
                start = gr.Button(
                    words["start"], variant="primary", min_width=90, elem_id="scene-start"
                )
                stop = gr.Button(words["stop"], min_width=90, elem_id="scene-stop")
        with gr.Column(scale=5):
            status = gr.HTML(_line(words["hint"]), elem_id="scene-status")
            shown = gr.HTML(visible=False, elem_id="scene-map")
            summary = gr.Textbox(
                label=words["summary"], lines=6, visible=False, elem_id="scene-summary"
            )
            files = gr.File(
                label=words["files"],
                file_count="multiple",
                interactive=False,
                visible=False,
                elem_id="scene-files",
            )

    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    tab = MapTab(maps, words, english)
    start.click(
        tab.make,
        form,
        [status, shown, summary, files],
        concurrency_limit=None,
        **quiet,
    )
    stop.click(tab.stop, None, None, **quiet)


def _sources(maps, words):
    """Components that say which image, and which earlier one: uploads, and names on the server."""
    names = maps.names()
    found = []
    for key in ("scene", "before"):
        found.append(
            gr.File(label=words[key], file_types=list(SUFFIXES), height=140, elem_id=f"{key}-file")
        )
        found.append(
            gr.Dropdown(
                ["", *names],
                value="",
                label=words["on server"],
                visible=bool(names),
                elem_id=f"{key}-name",
            )
        )
    return found


def _settings(words):
    """Components in the order of MapTab.make."""
    with gr.Row():
        tile = gr.Number(Options.tile, label=words["tile"], precision=0, min_width=100)
        overlap = gr.Number(
            Options.overlap,
            minimum=0,
            maximum=MOST_OVERLAP,
            step=0.05,
            label=words["overlap"],
            min_width=100,
        )
    tasks = gr.CheckboxGroup(
        [(words[word], task) for task, word in TASK_WORDS.items()],
        value=list(Options.tasks),
        label=words["tasks"],
    )
    with gr.Accordion(words["more"], open=False, elem_id="scene-more"):
        prompt = gr.Textbox(label=words["prompt"])
        bands = gr.Textbox(label=words["bands"])
        stretch = gr.Radio(
            [(words[word], stretch) for stretch, word in STRETCH_WORDS.items()],
            value=Options.stretch,
            label=words["stretch"],
        )
        least = gr.Slider(0, 1, Options.min_confidence, step=0.05, label=words["min_confidence"])
    return [tile, overlap, tasks, prompt, bands, stretch, least]


class MapTab:
    """What the button does."""

    def __init__(self, maps: Maps, words: dict[str, str], english: bool):
        self.maps = maps
        self.words = words
        self.english = english
        # Of the map that each open page makes
        self._stopping: dict[str, threading.Event] = {}

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
        nothing = gr.HTML(visible=False), gr.Textbox(visible=False), gr.File(visible=False)
        sources = [path for path in (scene, before) if path]
        stopping = self._stopping[str(request.session_hash)] = threading.Event()
        try:
            yield _bar(self.words["opening"]), *nothing
            asked = self._asked(*settings)
            asked["scene"] = self._source(scene, scene_name)
            asked["before"] = self._source(before, before_name)
            if asked["scene"] is None:
                raise UserError(self.words["no scene"])
            run: MapRun | None = None
            with closing(self.maps.make(asked)) as making:
                for run in making:
                    if stopping.is_set():
                        break
                    yield self._progress(run), gr.skip(), gr.skip(), gr.skip()
            if stopping.is_set() and not (run and run.summary):
                yield _line(self.words["stopped"]), gr.skip(), gr.skip(), gr.skip()
                return
            if run and run.error:
                raise UserError(run.error)
            if run and run.summary:
                yield self._result(run)
        except UserError as error:
            yield _line(self.words["error"] + self._plain(error, sources)), *nothing
        finally:
            self._stopping.pop(str(request.session_hash), None)

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

    def _asked(self, tile, overlap, tasks, prompt, bands, stretch, least):
        """Options but for the files. Raises UserError, in the page's words."""
        asked = {"tile": tile, "overlap": overlap, "min_confidence": least, "stretch": stretch}
        for name in ("tile", "overlap", "min_confidence"):
            value = asked[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or problem_of(name, value):
                raise UserError(self.words["form"].format(self.words[name], value))
        if stretch not in STRETCHES:
            raise UserError(self.words["form"].format(self.words["stretch"], stretch))
        asked["tile"] = int(tile)
        asked["tasks"] = tuple(task for task in TASKS if task in tasks)
        if not asked["tasks"]:
            raise UserError(self.words["no task"])
        asked["prompt"] = (prompt or "").strip() or None
        asked["bands"] = self._bands(bands or "")
        return asked

    def _bands(self, text: str) -> list[int] | None:
        if not text.strip():
            return None
        try:
            bands = [int(word) for word in text.replace(",", " ").split()]
        except ValueError:
            bands = []
        if len(bands) != 3 or min(bands) < 1:
            raise UserError(self.words["bands form"].format(text.strip()))
        return bands

    def _plain(self, error: UserError, sources: Sequence[str]) -> str:
        """An error in the words of the page: files by the names that their owner knows."""
        text = str(error)
        for path in sources:
            text = text.replace(str(path), Path(path).name)
        for option, key in LABELS.items():
            text = text.replace(option, self.words[key])
        return text

    def _progress(self, run: MapRun | None) -> str:
        if run is None:
            return _bar(self.words["waiting"])
        progress = run.progress
        if not progress.total:
            return _bar(self.words["opening"])
        parts = [self.words["tiles"].format(progress.done, progress.total)]
        if progress.dates == 2:
            parts[0] = self.words["date"] + parts[0]
        if progress.rate is not None:
            parts.append(self.words["rate"].format(progress.rate))
        if progress.done == progress.total:
            parts.append(self.words["writing"])
        elif progress.seconds_left is not None:
            parts.append(self.words["left"].format(_clock(progress.seconds_left)))
        return _bar(" · ".join(parts), progress.done / progress.total)

    def _result(self, run):
        failed = run.summary["tiles"]["failed"]
        line = self.words["done"]
        if failed:
            line = self.words["failed"].format(failed, run.summary["first_error"])
        page, text = (
            (run.options.output / name).read_text(encoding="utf-8")
            for name in ("map.html", "summary.txt")
        )
        frame = FRAME.format(self.words["map"], escape(page), STYLE)
        files = [str(path) for path in run.files]
        return (
            _line(line),
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
