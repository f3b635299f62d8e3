"""Maps behind the page: beside people's questions, with the command's code, and in a browser."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_random
from PIL import Image
from test_mapping import COLORS, ColorAssistant, fields, map_scene, write_scene
from test_web import CHROMIUM, CONTRASTS, chromium, free_port, wait_until

import web_demo
from mapping.options import Options
from model import Sampling, UserError, load_assistant
from model.rows import Sample
from model.running_batch import Question
from serving.bulk import Bulk
from serving.map_tab import MapTab
from serving.maps import Maps
from serving.page.service import Service
from serving.scheduler import QueueFull, Scheduler

GREEDY = Sampling(max_new_tokens=12, top_k=1)
ASKED = {
    "before": None,
    "tile": 64,
    "overlap": 0.0,
    "tasks": ("description",),
    "prompt": None,
    "bands": None,
    "stretch": "scene",
    "min_confidence": 0.5,
}
SETTINGS = [64, 0.0, ["description"], "", "", "scene", 0.5]


@pytest.fixture(scope="module")
def talkative(tmp_path_factory, config_file, vocabulary):
    """An assistant that says pieces of the vocabulary and never ends by itself."""
    folder = tmp_path_factory.mktemp("talkative") / "base"
    write_random(folder, config_file, vocabulary, talkative=True)
    return load_assistant(folder, device="cpu")


@pytest.fixture
def scheduler(talkative):
    running = Scheduler(talkative, rows=3, waiting=2)
    yield running
    running.close()


class ColorBulk(ColorAssistant):
    """Answers by colour; waits before each batch from `hold` on until `go`."""

    rows = 2

    def __init__(self, hold=99):
        super().__init__()
        self.hold = hold
        self.go = threading.Event()

    def answer_batch(self, *args, **options):
        if len(self.batches) >= self.hold:
            assert self.go.wait(30)
        return super().answer_batch(*args, **options)


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory):
    """3 x 2 fields of 64 pixels within a border of nodata."""
    rows = [["river", "river", "beach"], ["forest", "river", "beach"]]
    path = tmp_path_factory.mktemp("scene") / "a.tif"
    return write_scene(path, fields(rows, 64, border=32), nodata=0)


class TestBulk:
    def images(self, count):
        return [Image.new("RGB", (30, 30), (9 * index, 90, 40)) for index in range(count)]

    def test_answers_and_scores_are_those_of_the_assistant(self, talkative, scheduler):
        images, questions = self.images(5), [f"有什么{'？' * n}" for n in range(1, 6)]
        bulk, truncated = Bulk(talkative, scheduler), []
        found = bulk.answer_batch(questions, images, GREEDY, False, on_truncated=truncated.append)
        assert found == talkative.answer_batch(questions, images, GREEDY, False)
        assert sorted(truncated) == [0, 1, 2, 3, 4] and bulk.fingerprint == talkative.fingerprint
        texts = [["河流", "森林"]] * 5
        scores = bulk.score(questions, images, texts, False)
        expected = talkative.score(questions, images, texts, False)
        for of_row, others in zip(scores, expected):
            assert of_row == pytest.approx(others, abs=1e-5)

    def test_people_are_answered_before_the_rest_of_a_batch(self, talkative, scheduler):
        """Of two rows of three; a full queue refuses people and not the batch."""
        bulk, ended = Bulk(talkative, scheduler), []
        long = Sampling(max_new_tokens=40, top_k=1)
        assert bulk.rows == 2
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(bulk.answer_batch, ["有什么？"] * 8, self.images(8), long, False)
            job.add_done_callback(lambda _: ended.append("bulk"))
            assert wait_until(lambda: scheduler.load[0] == 2)
            asked = Question(Sample(None, "你好", None), None, long)
            for index in range(2):
                scheduler.submit(
                    asked, lambda event: event.end and ended.append("person"), client=str(index)
                )
            answers = job.result(60)
        assert ended == ["person", "person", "bulk"] and all(answers)

    def test_a_full_queue_has_room_for_it(self, talkative, scheduler):
        asked = Question(Sample(None, "你好", None), None, Sampling(max_new_tokens=90, top_k=1))
        tickets = []
        with pytest.raises(QueueFull):
            for _ in range(9):
                tickets.append(scheduler.submit(asked, lambda event: None))
        found = Bulk(talkative, scheduler).answer_batch(["有什么？"], [None], GREEDY, False)
        assert found == talkative.answer_batch(["有什么？"], [None], GREEDY, False)
        assert len(tickets) >= 2

    def test_an_error_is_the_askers(self, talkative, scheduler, monkeypatch):
        def fail(images):
            raise ValueError("no such pixels")

        monkeypatch.setattr(talkative.family, "encode_images", fail)
        bulk = Bulk(talkative, scheduler)
        images = [Image.new("RGB", (31, 31))]
        with pytest.raises(UserError, match="no such pixels"):
            bulk.answer_batch(["有什么？"], images, GREEDY, False)
        with pytest.raises(ValueError, match="no such pixels"):
            bulk.score(["有什么？"], images, [["河流"]], False)
        assert bulk.score(["有什么？"], [None], [[""]], False) == [[0.0]]

    def test_the_end_of_the_server_is_one_line(self, talkative):
        scheduler = Scheduler(talkative, rows=2)
        bulk = Bulk(talkative, scheduler)
        with ThreadPoolExecutor(1) as pool:
            endless = Sampling(max_new_tokens=100, top_k=1)
            job = pool.submit(bulk.answer_batch, ["有什么？"] * 50, [None] * 50, endless, False)
            assert wait_until(lambda: scheduler.load[0])
            scheduler.close()
            with pytest.raises(UserError, match="the server is shutting down"):
                job.result(30)
        with pytest.raises(UserError, match="the server is shutting down"):
            bulk.score(["有什么？"], [None], [[""]], False)


class TestMaps:
    def test_the_files_are_those_of_the_command(self, talkative, scheduler, scene_file, tmp_path):
        """Of a network that answers; only the name of the checkpoint may differ."""
        asked = ASKED | {"scene": str(scene_file), "overlap": 0.5}
        maps = Maps(Bulk(talkative, scheduler), "page")
        maps_sampling = Sampling(temperature=0, max_length=50)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("serving.maps.GREEDY", maps_sampling)
            *_, run = maps.make(asked)
        assert run.error is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.load_assistant", lambda name, **options: talkative)
            map_scene("page", scene_file, tmp_path / "map", "--tile", 64, "--overlap", 0.5)
        names = {path.name for path in run.files}
        assert names == {
            *("map.html", "map.png", "map.geojson", "tiles.geojson", "summary.txt"),
            "summary.json",
        }
        for name in names:
            here, there = run.options.output / name, tmp_path / "map" / name
            assert here.read_bytes() == there.read_bytes(), name

    def test_stopped_and_started_again(self, scene_file):
        bulk = ColorBulk(hold=1)
        maps = Maps(bulk, "colors")
        asked = ASKED | {"scene": str(scene_file)}
        making = maps.make(asked, look=0.01)
        run = next(making)
        assert wait_until(lambda: run.progress.done == 2)
        assert run.progress.total == 6 and run.progress.rate > 0
        assert run.progress.seconds_left == pytest.approx(4 / run.progress.rate, rel=0.5)
        threading.Timer(0.2, bulk.go.set).start()
        making.close()  # as Gradio does it at the button
        assert not run.is_running and run.error is None and run.summary is None
        assert not run.files and bulk.batches == [2, 2]

        again = ColorBulk()
        maps.bulk = again
        *_, run = maps.make(asked)
        assert again.batches == [2] and run.summary["tiles"]["answered"] == 6
        # Another threshold asks nothing
        *_, run = maps.make(asked | {"min_confidence": 1.0})
        assert again.batches == [2] and run.summary["tiles"]["unsure"] == 6

    def test_a_third_map_waits(self, scene_file):
        bulk = ColorBulk(hold=0)
        maps = Maps(bulk, "colors")
        making = []
        for tile in (64, 48, 32):
            making.append(maps.make(ASKED | {"scene": str(scene_file), "tile": tile}, look=0.01))
        assert next(making[0]) and next(making[1]) and next(making[2]) is None
        bulk.go.set()
        *_, first = making[0]
        *_, third = making[2]
        assert first.summary and third.summary["tiles"]["total"] > 6
        making[1].close()

    def test_only_the_images_of_the_folder_can_be_named(self, scene_file, tmp_path):
        folder = tmp_path / "scenes"
        (folder / "2024").mkdir(parents=True)
        write_scene(folder / "2024" / "b.tif", fields([["river"]], 64))
        (folder / "notes.txt").write_text("secret")
        (folder / "link.tif").symlink_to(scene_file)
        maps = Maps(ColorBulk(), "colors", scenes=folder)
        assert "2024/b.tif" in maps.names() and "notes.txt" not in maps.names()
        assert maps.path_of("2024/b.tif") == str(folder / "2024" / "b.tif")
        for name in ("notes.txt", "link.tif", "../a.tif", str(scene_file), "2024", "c.tif"):
            with pytest.raises(UserError, match="no image in the folder of scenes"):
                maps.path_of(name)
        without = Maps(ColorBulk(), "colors")
        assert without.names() == []
        with pytest.raises(UserError, match="no image in the folder"):
            without.path_of("2024/b.tif")


ME = SimpleNamespace(session_hash="me")


def tab_of(bulk):
    service = Service(SimpleNamespace(first_question=lambda english: "有什么？"))
    return MapTab(Maps(bulk, "colors"), service)


class TestForm:
    @pytest.fixture
    def tab(self):
        return tab_of(ColorBulk())

    def last(self, tab, scene, settings, before=None, names=("", "")):
        *_, shown = tab.make(ME, scene and str(scene), names[0], before, names[1], *settings)
        return shown

    @pytest.mark.parametrize(
        "index, value, expected",
        [
            (0, 3, "块边长（像素）：3，不对"),
            (0, None, "块边长（像素）：None，不对"),
            (0, 999, "块边长（像素） 999: larger than the scene, 256 x 192 pixels"),
            (1, 1.5, "重叠：1.5，不对"),
            (1, float("nan"), "重叠：nan，不对"),
            (2, [], "请至少选一样要问的"),
            (4, "4 3", "波段 4 3：应为三个"),
            (4, "a b c", "波段 a b c：应为三个"),
            (4, "7 8 9", "a.tif: bands 7 8 9 were asked for, it has 1 to 3"),
            (5, "lab", "拉伸：lab，不对"),
            (6, 2, "最低把握：2，不对"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tab, scene_file, index, value, expected):
        settings = list(SETTINGS)
        settings[index] = value
        status, *_ = self.last(tab, scene_file, settings)
        assert "错误：" in status and expected in status
        assert str(scene_file.parent) not in status

    def test_a_file_that_is_no_scene(self, tab, tmp_path):
        assert "请先放入一景图像" in self.last(tab, None, SETTINGS)[0]
        (tmp_path / "x.tif").write_text("<b>no</b>")
        status, *_ = self.last(tab, tmp_path / "x.tif", SETTINGS)
        assert "scene x.tif: not an image" in status
        status, *_ = self.last(tab, None, SETTINGS, names=("../secret.tif", ""))
        assert "no image in the folder" in status

    def test_two_dates(self, tab, scene_file, tmp_path):
        rows = [["forest", "river", "beach"], ["forest", "river", "beach"]]
        earlier = write_scene(tmp_path / "b.tif", fields(rows, 64, border=32), nodata=0)
        _, shown, summary, files = self.last(tab, scene_file, SETTINGS, before=str(earlier))
        assert "森林 → 河流：1 块" in summary.value
        assert "changes.geojson" in str(files.value)

    def test_stop_says_nothing_of_a_map_that_is_done(self, tab, scene_file):
        status, *_ = self.last(tab, scene_file, SETTINGS)
        tab.stop(ME)
        again, *_ = self.last(tab, scene_file, SETTINGS)
        assert "完成" in status and "完成" in again

    def test_who_stops_ends_the_own_map_which_then_goes_on(self, scene_file, monkeypatch):
        bulk = ColorBulk(hold=1)

        def stop(run):
            run.progress.stopping.set()
            bulk.go.set()
            run.wait(30)

        monkeypatch.setattr("serving.maps.MapRun.stop", stop)
        tab = tab_of(bulk)
        making = tab.make(ME, str(scene_file), "", None, "", *SETTINGS)
        for status, *_ in making:
            if "2 / 6 块" in status:
                break
        tab.stop(SimpleNamespace(session_hash="somebody else"))
        assert "块" in next(making)[0]
        tab.stop(ME)
        assert "已停止" in [shown[0] for shown in making][-1]
        assert "完成" in self.last(tab, scene_file, SETTINGS)[0]

    def test_what_it_says_follows_the_language(self, tab, scene_file):
        session = tab.service.session(ME)
        assert "开始制图" in tab.arrive(ME)
        session.english = True
        assert "press Start" in tab.say_again(ME)
        status, *_ = self.last(tab, scene_file, [3, *SETTINGS[1:]])
        assert "error: Tile (pixels): 3 is not possible" in status
        session.english = False
        assert "错误：块边长（像素）：3，不对" in tab.say_again(ME)
        self.last(tab, scene_file, SETTINGS)
        session.english = True
        assert "<p>done</p>" in tab.say_again(ME)
        assert "press Start" in tab.arrive(ME) == tab.say_again(ME)

    def test_a_page_keeps_the_scenes_of_its_last_map(self, tab, scene_file, tmp_path):
        session = tab.service.session(ME)
        copies = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            copies.append(tmp_path / name / "scene.tif")
            copies[-1].write_bytes(scene_file.read_bytes())
        self.last(tab, copies[0], SETTINGS, before=str(copies[1]))
        assert all(path.exists() for path in copies)
        self.last(tab, copies[1], SETTINGS)
        assert not copies[0].exists() and session.uploads == {copies[1]}
        tab.service.sessions.leave("me")
        assert tab.service.sessions.end_oldest() and not copies[1].exists()

    def test_a_map_that_finds_no_room_is_said_and_begins_later(self, tab, scene_file, monkeypatch):
        """Older maps that nobody makes go for it."""
        space, maps = tab.service.space, tab.maps
        space.folder, space.most = Path(maps._folder.name), 10**8 + 1000
        space.removers = [maps.remove_oldest]
        assert "完成" in self.last(tab, scene_file, SETTINGS)[0]
        (first,) = space.folder.iterdir()
        assert "完成" in self.last(tab, scene_file, [32, *SETTINGS[1:]])[0]
        assert not first.exists()
        space.take(1001)
        assert "空间（0.1 GB）满了" in self.last(tab, scene_file, SETTINGS)[0]
        space.give_back(1001)
        assert "完成" in self.last(tab, scene_file, SETTINGS)[0]

    def test_a_page_left_in_the_middle_of_a_map_is_told_and_goes_on(self, scene_file):
        """Whoever says that it was left, as Gradio does it, does not wait for the tiles."""
        bulk = ColorBulk(hold=1)
        tab = tab_of(bulk)
        making = tab.make(ME, str(scene_file), "", None, "", *SETTINGS)
        while "2 / 6 块" not in next(making)[0]:
            pass
        began = time.monotonic()
        making.close()
        assert time.monotonic() - began < 2 and not bulk.go.is_set()
        assert "停在中途" in tab.arrive(ME) and "停在中途" in tab.say_again(ME)
        # The tiles that are being answered are waited for
        again = tab.make(ME, str(scene_file), "", None, "", *SETTINGS)
        assert "正在打开图像" in next(again)[0] and "请稍候" in next(again)[0]
        bulk.go.set()
        assert "完成" in [shown[0] for shown in again][-1]
        assert bulk.batches == [2, 2, 2]
        assert "停在中途" not in tab.arrive(ME)

    def test_it_says_how_far_it_is(self, scene_file):
        bulk = ColorBulk(hold=1)
        tab = tab_of(bulk)
        seen = []
        for status, *_ in tab.make(ME, str(scene_file), "", None, "", *SETTINGS):
            seen.append(status)
            if "2 / 6 块" in status:
                bulk.go.set()
        line = next(status for status in seen if "2 / 6 块" in status)
        assert "块/秒" in line and "约剩 0:0" in line and 'value="0.3333"' in line
        assert "完成" in seen[-1]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"the browser tests need {CHROMIUM}: apt-get install chromium")
    with chromium() as running:
        yield running


def begin(tab, address, scene):
    """Open the page, upload a scene and press the button."""
    tab.goto(address)
    tab.get_by_role("tab", name="整景制图").click()
    tab.set_input_files("#scene-file input[type=file]", scene)
    tab.get_by_label("块边长（像素）").fill("64")
    tab.wait_for_selector("#scene-file .file-preview")
    tab.click("#scene-start")


class TestPage:
    @pytest.fixture
    def page(self, talkative, tmp_path, monkeypatch):
        """(address, the ColorBulk behind its maps)"""
        for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
        bulk = ColorBulk(hold=1)
        server = web_demo.serve(
            talkative, "127.0.0.1", free_port(), maps=Maps(bulk, "colors"), at_a_time=2
        )
        yield server.local_url, bulk
        bulk.go.set()
        server.close()

    def test_a_scene_becomes_a_map(self, page, browser, scene_file, tmp_path, monkeypatch):
        """Uploaded, stopped, started again; the map in its frame, a tile clicked, a file saved."""
        address, bulk = page
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, locale="zh-CN")
        asked_for, errors = [], []
        tab.on("request", lambda request: asked_for.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        begin(tab, address, scene_file)
        tab.wait_for_selector("#scene-status progress")
        assert wait_until(lambda: "2 / " in tab.inner_text("#scene-status"), 60)
        tab.screenshot(path=tmp_path / "running.png")

        def stop(run):
            run.progress.stopping.set()
            bulk.go.set()
            run.wait(30)

        monkeypatch.setattr("serving.maps.MapRun.stop", stop)
        tab.click("#scene-stop")
        assert wait_until(lambda: "已停止" in tab.inner_text("#scene-status"), 60)
        answered = len(bulk.batches)

        tab.click("#scene-start")
        assert wait_until(lambda: "完成" in tab.inner_text("#scene-status"), 60)
        assert len(bulk.batches) > answered
        frame = tab.frame_locator("#scene-map iframe")
        frame.locator("svg").wait_for()
        box = frame.locator("svg").bounding_box()
        tab.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3)
        assert "一条河流穿过草地。" in frame.locator("#tile").inner_text()
        assert "河流" in frame.locator("#legend").inner_text()
        assert "共 " in tab.input_value("#scene-summary textarea")
        tab.screenshot(path=tmp_path / "map.png", full_page=True)
        with tab.expect_download() as download:
            tab.click("#scene-files a[download='map.geojson']")
        content = json.loads(Path(download.value.path()).read_text())
        assert {f["properties"]["scene"] for f in content["features"]} == set(COLORS)
        assert [url for url in asked_for if not url.startswith((address, "data:", "blob:"))] == []
        tab.click("#language")
        tab.get_by_role("tab", name="Scene map").wait_for()
        assert "Click to Upload" in tab.inner_text("#before-file")
        assert wait_until(lambda: tab.inner_text("#scene-status") == "done")
        assert tab.inner_text("#scene-start") == "Start"
        assert tab.get_by_label("Tile (pixels)").input_value() == "64"
        tab.click("#scene-tab-button, [role=tab]:last-child")
        assert frame.locator("svg").is_visible()
        assert not errors
        tab.close()

    def test_loaded_again_in_the_middle_of_a_map(self, page, browser, scene_file):
        """While its tiles are still being answered; the same file and Start go on."""
        address, bulk = page
        tab = browser.new_page(locale="zh-CN")
        begin(tab, address, scene_file)
        assert wait_until(lambda: "2 / " in tab.inner_text("#scene-status"), 60)
        tab.reload(timeout=15_000)
        tab.get_by_role("tab", name="整景制图").click()
        assert wait_until(lambda: "停在中途" in tab.inner_text("#scene-status"), 10)
        assert not bulk.go.is_set()
        begin(tab, address, scene_file)
        assert wait_until(lambda: "请稍候" in tab.inner_text("#scene-status"), 15)
        bulk.go.set()
        assert wait_until(lambda: "完成" in tab.inner_text("#scene-status"), 60)
        at_once = ColorBulk()
        usual = {"overlap": Options.overlap, "tasks": Options.tasks, "scene": str(scene_file)}
        list(Maps(at_once, "colors").make(ASKED | usual))
        assert sum(bulk.batches) == sum(at_once.batches)
        tab.close()

    def test_the_map_has_no_way_into_the_page(self, page, browser, scene_file):
        """Its scripts run in a frame of another origin."""
        address, bulk = page
        bulk.go.set()
        bulk.say = bulk.say | {"river": "<img src=x onerror=parent.document.title='河流'>河流"}
        tab = browser.new_page(locale="zh-CN")
        begin(tab, address, scene_file)
        frame = tab.locator("#scene-map iframe")
        frame.wait_for()
        tab.mouse.move(0, 0)
        assert not [text for text in tab.evaluate(CONTRASTS) if text[1] < 4.5]
        assert frame.get_attribute("sandbox") == "allow-scripts"
        inside = tab.frames[-1]
        inside.wait_for_selector("svg")
        reached = inside.evaluate(
            "() => { try { return parent.document.title } catch (e) { return e.name } }"
        )
        assert reached == "SecurityError" and tab.title() == "RemoteGLM"
        tab.close()


def test_the_folder_of_scenes_is_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        web_demo.main(["--scenes", str(tmp_path / "absent")])
    assert f"--scenes {tmp_path / 'absent'}: no such folder" in capsys.readouterr().err
    assert web_demo.parse(["--scenes", str(tmp_path)]).scenes == tmp_path
