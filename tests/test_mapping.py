"""Maps of large scenes: tiles, votes, polygons, confidence, and the command as a user starts it."""

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_web import CHROMIUM, chromium

import cli_demo
from data.lexicon import load
from mapping.answering import TileFile, answer_tiles
from mapping.colors import color_of, hex_color
from mapping.grid import Grid, grid_of
from mapping.naming import alternatives, objects_in, questions_of, scene_in, shares_of
from mapping.picture import CHANGED, OPACITY
from mapping.places import Places, box
from mapping.regions import regions_of, vote, votes_of
from mapping.summary import in_words, summarize
from model import Sampling, UserError, load_assistant
from model.images.tiles import Window, open_scene

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("rasterio.warp")

PROJECT = Path(__file__).resolve().parent.parent
UTM = rasterio.Affine(10, 0, 4e5, 0, -10, 3e6)
COLORS = {"river": (40, 90, 200), "forest": (30, 110, 40), "beach": (230, 210, 150)}
ANSWERS = {
    "river": "一条河流穿过草地。",
    "forest": "茂密的森林里有树木。",
    "beach": "沙滩旁是海。",
}


def write_scene(path, pixels, crs="EPSG:32650", transform=UTM, **options):
    """Write [bands, height, width] as a GeoTIFF."""
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "width": width, "height": height, "count": bands}
    profile |= {"dtype": pixels.dtype, "tiled": True, "blockxsize": 64, "blockysize": 64}
    if crs:
        profile["crs"] = crs
    if transform:
        profile["transform"] = transform
    with rasterio.open(path, "w", **profile | options) as file:
        file.write(pixels)
    return path


def fields(rows, side, border=0):
    """Fields of one colour each, [3, height, width] in 8 bits; a border of zeros around them.

    rows: lists of names of COLORS.
    """
    height, width = len(rows) * side + 2 * border, len(rows[0]) * side + 2 * border
    pixels = np.zeros((3, height, width), np.uint8)
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            top, left = border + i * side, border + j * side
            pixels[:, top : top + side, left : left + side] = np.array(COLORS[name])[:, None, None]
    return pixels


class ColorAssistant:
    """Answers by the colour of an image's middle; as sure as `sure` says."""

    fingerprint = "colors"
    english = False

    def __init__(self, sure=0.9):
        self.sure = sure
        self.batches = []
        self.say = ANSWERS

    def first_question(self, english):
        return "这张遥感图像展现了什么场景？"

    def answer_batch(self, questions, images, sampling, english, on_truncated=None):
        self.batches.append(len(images))
        answers = []
        for image in images:
            color = image.getpixel((image.width // 2, image.height // 2))
            distance = {n: math.dist(color, known) for n, known in COLORS.items()}
            answers.append(self.say[min(distance, key=distance.get)])
        return answers

    def score(self, questions, images, texts, english):
        scores = []
        for of_row in texts:
            others = (1 - self.sure) / max(1, len(of_row) - 1)
            answers = tuple(self.say.values())
            found = [any(a.startswith(text) for a in answers) for text in of_row]
            scores.append([math.log(self.sure if known else others) for known in found])
        return scores


def mapped(path, folder, assistant=None, tile=64, overlap=0.0, **options):
    """(grid, lines, places) of a scene whose tiles are answered."""
    assistant = assistant or ColorAssistant()
    with open_scene(path) as scene, TileFile(folder / "tiles.jsonl") as file:
        grid = grid_of(scene, tile, overlap)
        questions = questions_of(["description"], "什么？", english=False)
        lines = answer_tiles(
            assistant,
            scene,
            grid.windows,
            file,
            questions,
            sampling=Sampling(temperature=0),
            english=False,
            batch_size=4,
            **options,
        )
        return grid, lines, Places(scene)


class TestReading:
    """model/images/tiles.py"""

    def test_windows_are_the_pixels_of_the_file(self, tmp_path):
        rng = np.random.default_rng(0)
        pixels = rng.integers(1, 255, (3, 200, 300), dtype=np.uint8)
        write_scene(tmp_path / "a.tif", pixels)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
        for name in ("a.tif", "a.png"):
            with open_scene(tmp_path / name) as scene:
                image, valid = scene.read(Window(90, 40, 64, 32))
                assert (scene.width, scene.height, valid) == (300, 200, 1.0)
                expected = pixels[:, 40:72, 90:154].transpose(1, 2, 0)
                assert np.array_equal(np.asarray(image), expected)

    def test_one_stretch_for_the_whole_scene_or_one_for_each_tile(self, tmp_path):
        """A dark half and a bright half: alike in their own stretch, apart in the scene's."""
        ramp = np.tile(np.linspace(0, 100, 64, dtype=np.uint16), (64, 1))
        write_scene(tmp_path / "a.tif", np.hstack([ramp, ramp + 1000])[None])
        shown = {}
        for stretch in ("scene", "tile"):
            with open_scene(tmp_path / "a.tif", stretch=stretch) as scene:
                for left in (0, 64):
                    image, _ = scene.read(Window(left, 0, 64, 64))
                    shown[stretch, left] = np.asarray(image).astype(int)
        low, high = np.percentile(np.hstack([ramp, ramp + 1000]), (2, 98))
        expected = np.clip((ramp - low) * 255 / (high - low), 0, 255).astype(int)
        assert np.abs(shown["scene", 0][..., 0] - expected).max() <= 1
        assert shown["scene", 64].min() > shown["scene", 0].max() + 150
        assert np.array_equal(shown["tile", 0], shown["tile", 64])
        assert shown["tile", 0].max() == 255

    def test_nodata_is_not_valid(self, tmp_path):
        pixels = fields([["river"]], 64, border=32).astype(np.float32)
        pixels[pixels == 0] = np.nan
        write_scene(tmp_path / "nan.tif", pixels)
        write_scene(tmp_path / "zero.tif", fields([["river"]], 64, border=32), nodata=0)
        alpha = np.zeros((128, 128, 4), np.uint8)
        alpha[32:96, 32:96] = 255
        Image.fromarray(alpha).save(tmp_path / "alpha.png")
        for name in ("nan.tif", "zero.tif", "alpha.png"):
            with open_scene(tmp_path / name) as scene:
                assert scene.data_window() == (32, 32, 64, 64), name
                assert scene.read(Window(0, 0, 64, 64))[1] == 0.25

    def test_large_tiles_come_from_overviews(self, tmp_path):
        """What an overview says, not the pixels below it."""
        path = write_scene(tmp_path / "a.tif", np.full((1, 4096, 4096), 50, np.uint8))
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2])
        with rasterio.open(path, "r+", OVERVIEW_LEVEL=0) as file:
            file.write(np.full((1, 2048, 2048), 200, np.uint8))
        with open_scene(path) as scene:
            assert scene.read(Window(0, 0, 4096, 4096))[0].getpixel((9, 9)) == (200,) * 3
            assert scene.read(Window(0, 0, 512, 512))[0].getpixel((9, 9)) == (50,) * 3

    @pytest.mark.parametrize(
        "options, expected",
        [
            ({"crs": None}, r"no coordinate system; name it with `gdal_edit.py -a_srs"),
            ({"transform": None}, r"\(EPSG:32650\) but no transform"),
            ({"transform": UTM @ rasterio.Affine.rotation(20)}, "rotated .* `gdalwarp`"),
            ({"crs": 'LOCAL_CS["drawing",UNIT["metre",1]]'}, "no place on the globe"),
        ],
    )
    def test_half_a_georeference_is_one_line(self, tmp_path, options, expected):
        path = write_scene(tmp_path / "a.tif", fields([["river"]], 64), **options)
        with pytest.raises(UserError, match=f"scene .*a.tif: .*{expected}"), open_scene(path):
            pass

    def test_bad_files_are_one_line(self, tmp_path, monkeypatch):
        (tmp_path / "text.tif").write_text("no image")
        whole = write_scene(tmp_path / "whole.tif", fields([["river"]], 64)).read_bytes()
        (tmp_path / "cut.tif").write_bytes(whole[:100])
        write_scene(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint8), nodata=0)
        Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
        cases = [
            ("text.tif", None, "not an image"),
            ("cut.tif", None, "cannot be read"),
            ("absent.tif", None, "no such file"),
            ("whole.tif", [1, 2, 9], "bands 1 2 9 were asked for"),
            ("a.png", [1, 2, 3], "a choice of bands needs a GeoTIFF"),
        ]
        for name, bands, expected in cases:
            with pytest.raises(UserError, match=f"{name}: .*{expected}") as caught:
                with open_scene(tmp_path / name, bands):
                    pass
            assert "\n" not in str(caught.value)
        with open_scene(tmp_path / "empty.tif") as scene:
            with pytest.raises(UserError, match="nothing but nodata"):
                scene.data_window()
        monkeypatch.setattr("model.images.pillow.Image.MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(UserError, match="gdal_translate"), open_scene(tmp_path / "a.png"):
            pass
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(UserError, match="needs rasterio: pip install rasterio"):
            with open_scene(tmp_path / "whole.tif"):
                pass


class TestGrid:
    def test_every_pixel_is_covered_and_no_tile_leaves_the_scene(self, tmp_path):
        rng = random.Random(0)
        for _ in range(20):
            width, height = rng.randint(64, 300), rng.randint(64, 300)
            path = write_scene(tmp_path / "a.tif", np.ones((1, height, width), np.uint8))
            with open_scene(path) as scene:
                grid = grid_of(scene, rng.randint(16, 64), rng.choice((0, 0.25, 0.5, 0.9)))
            covered = np.zeros((height, width), int)
            for left, top, w, h in grid.windows:
                assert 0 <= left <= left + w <= width and 0 <= top <= top + h <= height
                covered[top : top + h, left : left + w] += 1
            assert covered.min() >= 1

    def test_cells_are_what_the_tiles_edges_cut(self):
        grid = Grid(Window(0, 0, 100, 64), 64, [0, 36], [0])
        assert (grid.xs, grid.ys) == ([0, 36, 64, 100], [0, 64])
        assert grid.cells(Window(36, 0, 64, 64)) == (slice(0, 1), slice(1, 3))

    def test_a_tile_larger_than_the_scene_is_one_line(self, tmp_path):
        path = write_scene(tmp_path / "a.tif", fields([["river"]], 64))
        with open_scene(path) as scene, pytest.raises(UserError, match="--tile 65: .* 64 x 64"):
            grid_of(scene, 65, 0)


class TestNaming:
    def test_scene_and_objects_are_those_that_the_answer_says_are_there(self):
        text = "一条河流穿过森林，没有房屋，岸边有道路。"
        assert scene_in(text) == "river" and scene_in("一片空地。") is None
        assert objects_in({"description": text})[:1] == ["river"]
        assert "house" not in objects_in({"description": text})
        assert objects_in({"description": text, "objects": "图中有飞机。"}) == ["airplane"]

    def test_alternatives_are_the_answer_up_to_each_scenes_word(self):
        texts, own = alternatives("一条弯曲的河道穿过草地。")
        assert texts[own] == "一条弯曲的河道"
        assert len(texts) == len(load()["scenes"]) == len(set(texts))
        assert "一条弯曲的机场" in texts
        texts, own = alternatives("There are many boats in a port near a road.")
        assert texts[own] == "There are many boats in a port"

    def test_share(self):
        assert shares_of([math.log(1), math.log(3)])[1] == pytest.approx(0.75)
        assert shares_of([-1000.0, -1001.0])[0] == pytest.approx(1 / (1 + math.exp(-1)))


def plain_score(family, question, text, image):
    """What Family.score says of one text, each of its terms by a pass of the network of its own."""
    from model.visualglm.prompt import render

    ids = family.tokenizer.encode(text)
    pieces = family.tokenizer.pieces
    slots = family.config["image_length"] if image else 0
    total = 0.0
    for place in range(len(ids)):
        rest = "".join(pieces.id_to_piece(i) for i in ids[place:])
        row = render(family.tokenizer, question, image_slots=slots)
        row = row.__class__([*row.ids, *ids], row.prefix, row.image_start)
        batch = {"input_ids": torch.tensor([row.ids]), "prefix": torch.tensor([row.prefix])}
        if image:
            pixels = family._pixels([image])
            batch |= {"pixels": pixels, "image_start": row.image_start}
        with torch.inference_mode():
            logits, _ = family.network(**batch)
        steps = logits[0, row.prefix :].double().softmax(-1)
        before = math.prod(steps[i, ids[i]].item() for i in range(place))
        for token in range(pieces.vocab_size()):
            if pieces.id_to_piece(token).startswith(rest):
                total += before * steps[place, token].item()
    return math.log(total)


@pytest.fixture(scope="module")
def assistant(tiny_checkpoint):
    return load_assistant(tiny_checkpoint, device="cpu")


class TestScore:
    """Family.score of VisualGLM, against the plain network."""

    def test_as_the_plain_network_says(self, assistant):
        images = [Image.new("RGB", (40, 40), "red"), None, Image.new("RGB", (40, 40), "blue")]
        questions = ["什么？", "这张遥感图像展现了什么场景？", "图中有什么？"]
        texts = [
            ["一条绿色的河流", "一条绿色的农", "一条绿色的停车场"],
            ["河流穿过", "停车场"],
            ["这是一片绿"],
        ]
        found = assistant.score(questions, images, texts)
        for question, image, of_row, scores in zip(questions, images, texts, found):
            for text, score in zip(of_row, scores):
                expected = plain_score(assistant.family, question, text, image)
                assert score == pytest.approx(expected, abs=1e-4)

    def test_an_empty_text_is_certain(self, assistant):
        assert assistant.score(["什么？"], [None], [[""]]) == [[0.0]]

    def test_a_text_that_ends_inside_a_token_counts(self, assistant):
        tokenizer = assistant.family.tokenizer
        for endings, token in zip(tokenizer.endings(tokenizer.encode("森林")), "森林"):
            assert all(isinstance(index, int) for index in endings), token
        (last,) = tokenizer.endings(tokenizer.encode("森林"))[-1:]
        names = {tokenizer.pieces.id_to_piece(index) for index in last}
        assert tokenizer.encode("森林")[-1] in last
        assert all(name.endswith("林") or "林" in name for name in names)

    def test_images_are_encoded_once_for_answers_and_scores(self, assistant, monkeypatch):
        calls = []
        encode = assistant.family.encode_images
        monkeypatch.setattr(
            assistant.family, "encode_images", lambda images: calls.append(1) or encode(images)
        )
        images = [Image.new("RGB", (40, 40), name) for name in ("red", "green")]
        greedy = Sampling(temperature=0, max_length=60)
        assistant.answer_batch(["什么？"] * 2, images, greedy)
        assistant.answer_batch(["有什么？"] * 2, images, greedy)
        assistant.score(["什么？"] * 2, images, [["河流"], ["森林"]])
        assert calls == [1]


def lab(rgb):
    """CIELAB of 8-bit sRGB [N, 3] under D65, by the CIE's formulas."""
    linear = np.where(rgb > 10, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    primaries = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(linear @ np.transpose(primaries) / (0.9505, 1, 1.089)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def test_colors_of_scenes_can_be_told_apart():
    """A difference of 2 is just seen side by side."""
    names = [*load()["scenes"], None]
    colors = lab(np.array([color_of(name) for name in names], float))
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 25
    assert hex_color("river") == "#1c68f4" and color_of("river") == (0x1C, 0x68, 0xF4)


class TestRegions:
    def test_polygons_are_the_fields(self, tmp_path):
        rows = [["river", "river", "beach"], ["forest", "river", "beach"]]
        path = write_scene(tmp_path / "a.tif", fields(rows, 64, border=32), nodata=0)
        grid, lines, places = mapped(path, tmp_path)
        regions = regions_of(grid, lines, 0.5)
        found = {region.scene: places.area(region.rings) for region in regions}
        assert found == {"river": 3 * 640**2, "beach": 2 * 640**2, "forest": 640**2}
        [river] = [region for region in regions if region.scene == "river"]
        assert len(river.lines) == 3 and river.confidence == pytest.approx(0.9, abs=1e-4)
        corners = {(32, 32), (32, 96), (96, 96), (96, 160), (160, 160), (160, 32)}
        assert corners <= set(river.rings[0])

    def test_holes(self, tmp_path):
        ring = [["river"] * 3, ["river", "beach", "river"], ["river"] * 3]
        path = write_scene(tmp_path / "a.tif", fields(ring, 64))
        grid, lines, places = mapped(path, tmp_path)
        regions = {region.scene: region.rings for region in regions_of(grid, lines, 0)}
        assert (len(regions["river"]), len(regions["beach"])) == (2, 1)
        assert places.area(regions["river"]) == 8 * 640**2

    def test_overlapping_tiles_vote_with_their_confidence(self):
        grid = Grid(Window(0, 0, 96, 64), 64, [0, 32], [0])

        def line(left, scene, confidence):
            return {
                "window": [left, 0, 64, 64],
                "valid": 1.0,
                "answers": {},
                "scene": scene,
                "objects": [],
                "confidence": confidence,
            }

        names = list(load()["scenes"])
        river, beach = names.index("river"), names.index("beach")
        lines = [line(0, "river", 0.8), line(32, "beach", 0.6)]
        assert vote(grid, lines, 0).tolist() == [[river, river, beach]]
        assert vote(grid, lines, 0.7).tolist() == [[river, river, len(names)]]
        lines = [line(0, "river", None), {"window": [32, 0, 64, 64], "valid": 0.1}]
        assert vote(grid, lines, 0.7).tolist() == [[river, river, -1]]

    def test_a_tile_of_two_minds_counts_less_than_a_sure_one(self):
        """Three of four tiles lie across borders; two of them name the same neighbour."""
        grid = Grid(Window(0, 0, 96, 96), 64, [0, 32], [0, 32])
        sure = {"river": 0.99, "beach": 0.01}
        torn = {"beach": 0.6, "river": 0.3, "forest": 0.1}
        lines = []
        for window, likely in zip(grid.windows, (sure, torn, torn, {"forest": 0.9})):
            scene = max(likely, key=likely.get)
            line = {"window": list(window), "answers": {}, "scene": scene, "objects": []}
            lines.append(line | {"confidence": likely[scene], "likely": likely})
        names = list(load()["scenes"])
        assert names[vote(grid, lines, 0)[1, 1]] == "river"
        for line in lines:
            del line["likely"]
        weights = votes_of(lines[0]), votes_of(lines[1])
        assert weights[0]["river"] > 3 * weights[1]["beach"]

    def test_unsure_tiles_are_undecided(self, tmp_path):
        path = write_scene(tmp_path / "a.tif", fields([["river", "beach"]], 64))
        grid, lines, places = mapped(path, tmp_path, ColorAssistant(sure=0.4))
        [region] = regions_of(grid, lines, 0.5)
        assert region.scene is None and places.area(region.rings) == 2 * 640**2

    @pytest.mark.parametrize("west", [100, 179.9])  # the other lies across the antimeridian
    def test_areas_of_degrees_are_those_on_the_globe(self, tmp_path, west):
        """A cell of a sphere's area, which differs from the ellipsoid's by less than 1 %."""
        place = rasterio.Affine(0.01, 0, west, 0, -0.01, 60)
        path = write_scene(
            tmp_path / "a.tif", fields([["river"]], 64), crs="EPSG:4326", transform=place
        )
        with open_scene(path) as scene:
            area = Places(scene).area(box(0, 0, 64, 64))
        band = math.sin(math.radians(60)) - math.sin(math.radians(60 - 0.64))
        assert area == pytest.approx(6371007**2 * band * math.radians(0.64), rel=0.01)

    def test_areas_of_mercator_are_those_on_the_globe(self, tmp_path):
        """At 60 degrees north its metres are half as long as they say."""
        place = rasterio.Affine(10, 0, 1e6, 0, -10, 6378137 * math.log(math.tan(math.radians(75))))
        pixels = fields([["river"]], 64)
        path = write_scene(tmp_path / "a.tif", pixels, crs="EPSG:3857", transform=place)
        with open_scene(path) as scene:
            area = Places(scene).area(box(0, 0, 64, 64))
        assert area == pytest.approx(640**2 * math.cos(math.radians(60)) ** 2, rel=0.01)


class TestAnswering:
    def test_tiles_without_data_are_skipped_and_counted(self, tmp_path):
        pixels = fields([["river", "beach"], ["forest", "beach"]], 64)
        pixels[:, 64:, :60] = 0
        path = write_scene(tmp_path / "a.tif", pixels, nodata=0)
        assistant = ColorAssistant()
        grid, lines, places = mapped(path, tmp_path, assistant)
        assert [line.get("scene") for line in lines] == ["river", "beach", None, "beach"]
        assert lines[2] == {"window": [0, 64, 64, 64], "valid": 0.0625}
        summary = summarize(grid, lines, regions_of(grid, lines, 0.5), places, 0.5)
        assert summary["tiles"] == {
            "total": 4,
            "answered": 3,
            "nodata": 1,
            "failed": 0,
            "unsure": 0,
        }
        assert assistant.batches == [3]

    def test_a_second_run_asks_only_what_is_missing(self, tmp_path):
        path = write_scene(tmp_path / "a.tif", fields([["river", "beach"]] * 4, 64))
        first, told = ColorAssistant(), []
        _, lines, _ = mapped(path, tmp_path, first, done=told.append)
        assert first.batches == told == [4, 4]
        file = tmp_path / "tiles.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) * 3 // 4])  # torn within a line
        again = ColorAssistant()
        _, repeated, _ = mapped(path, tmp_path, again)
        assert repeated == lines and again.batches == [2] and file.read_bytes() == whole

    def test_ctrl_c_keeps_what_is_there(self, scene_file, tmp_path, monkeypatch):
        class Stopped(ColorAssistant):
            def answer_batch(self, *args, **options):
                if self.batches:
                    raise KeyboardInterrupt
                return super().answer_batch(*args, **options)

        folder = tmp_path / "map"
        options = ["--tile", 64, "--overlap", 0, "--batch-size", 2]
        monkeypatch.setattr("model.load_assistant", lambda name, **options: Stopped())
        with pytest.raises(SystemExit) as stopped:
            map_scene("colors", scene_file, folder, *options)
        assert stopped.value.code == 130
        assert len((folder / "tiles.jsonl").read_text().splitlines()) == 2
        again = ColorAssistant()
        monkeypatch.setattr("model.load_assistant", lambda name, **options: again)
        map_scene("colors", scene_file, folder, *options)
        assert again.batches == [2, 2] and (folder / "map.html").is_file()

    def test_a_full_disk_is_one_line(self, scene_file, tmp_path, colors, monkeypatch):
        def full(path, text):
            raise OSError(28, "No space left on device")

        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64)
        monkeypatch.setattr("mapping.run.write_text", full)
        with pytest.raises(SystemExit, match="cannot be written: No space left .* make room"):
            map_scene("colors", scene_file, tmp_path / "map", "--tile", 64)

    def test_a_family_that_does_not_score(self, scene_file, tmp_path, colors):
        colors.score = lambda *args: None
        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64, "--overlap", 0)
        summary = json.loads((tmp_path / "map" / "summary.json").read_text())
        assert summary["tiles"]["unsure"] == 0
        tiles = json.loads((tmp_path / "map" / "tiles.geojson").read_text())["features"]
        assert {tile["properties"]["confidence"] for tile in tiles} == {None}

    @pytest.mark.parametrize("is_trained", [True, False])
    def test_the_confidence_is_asked_for_by_the_question_about_scenes(self, tmp_path, is_trained):
        """Of a network that answers it with a scene's name; else in its own answer's words."""

        class Torn(ColorAssistant):
            def score(self, questions, images, texts, english):
                if questions[0] == "什么？":
                    return super().score(questions, images, texts, english)
                assert questions == ["这张遥感图像属于哪一类场景？"] * 2
                assert texts[0] == [entry["zh"][0] for entry in load()["scenes"].values()]
                shares = {"河流": 0.7, "海滩": 0.2} if is_trained else {"河流": 0.01}
                return [[math.log(shares.get(text, 1e-9)) for text in row] for row in texts]

        path = write_scene(tmp_path / "a.tif", fields([["river", "beach"]], 64))
        _, (river, beach), _ = mapped(path, tmp_path, Torn())
        if is_trained:
            assert (river["confidence"], beach["confidence"]) == (0.7778, 0.2222)
            assert river["likely"] == beach["likely"] == {"river": 0.7778, "beach": 0.2222}
        else:
            assert river["confidence"] == beach["confidence"] == pytest.approx(0.9, abs=1e-3)

    def test_a_damaged_tile_is_its_own_error_and_is_tried_again(self, tmp_path):
        pixels = np.tile(fields([["river", "beach"]], 64), (1, 40, 20))
        path = write_scene(tmp_path / "a.tif", pixels, compress="deflate")
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2])
            offset = int(file.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
        whole = path.read_bytes()
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 40)
        _, lines, _ = mapped(path, tmp_path, tile=512)
        assert re.search("a.tif: cannot be read", lines[0]["error"])
        assert all("error" not in line for line in lines[1:])
        path.write_bytes(whole)
        again = ColorAssistant()
        _, lines, _ = mapped(path, tmp_path, again, tile=512)
        assert again.batches == [1] and lines[0]["scene"] in COLORS


def map_scene(checkpoint, scene, folder, *options):
    """The command, with answers that do not depend on chance."""
    greedy = ["--device", "cpu", "--max_length", "50"]
    words = ["--from_pretrained", checkpoint, "--scene", scene, "--output", folder]
    cli_demo.main([str(word) for word in (*words, *greedy, *options)])


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory):
    """3 x 2 fields of 64 pixels within a border of nodata."""
    rows = [["river", "river", "beach"], ["forest", "river", "beach"]]
    path = tmp_path_factory.mktemp("scene") / "a.tif"
    return write_scene(path, fields(rows, 64, border=32), nodata=0)


@pytest.fixture
def colors(monkeypatch):
    """The command answers by colours, whatever checkpoint it is given."""
    assistant = ColorAssistant()
    monkeypatch.setattr("model.load_assistant", lambda name, **options: assistant)
    return assistant


class TestCommand:
    def test_files_of_a_map(self, scene_file, tmp_path, colors, capsys):
        folder = tmp_path / "map"
        map_scene("colors", scene_file, folder, "--tile", 64, "--overlap", 0)
        printed = capsys.readouterr().out
        assert printed == (folder / "summary.txt").read_text() + f"map: {folder}\n"
        assert "共 6 块，回答 6 块，无数据 0 块" in printed
        assert "河流：1.23 平方千米，占 50.0%，3 块" in printed

        summary = json.loads((folder / "summary.json").read_text())
        shares = {entry["scene"]: entry["share"] for entry in summary["area"]["scenes"]}
        assert shares == {"river": 0.5, "beach": pytest.approx(1 / 3, abs=1e-6), "forest": 0.166667}
        assert summary["area"]["mapped"] == 6 * 640**2 and summary["crs"] == "EPSG:32650"

        content = json.loads((folder / "map.geojson").read_text())
        areas = {}
        for feature in content["features"]:
            properties = feature["properties"]
            native = properties["proj:geometry"]["coordinates"]
            areas[properties["scene"]] = abs(shoelace(native[0]))
            assert properties["proj:code"] == "EPSG:32650"
            assert properties["description"] == ANSWERS[properties["scene"]]
            assert shoelace(feature["geometry"]["coordinates"][0]) > 0  # counterclockwise
            back = rasterio.warp.transform_geom("EPSG:4326", "EPSG:32650", feature["geometry"])
            there = {(round(x, 2), round(y, 2)) for x, y in back["coordinates"][0]}
            assert there == {tuple(point) for point in native[0]}
        assert areas == {"river": 3 * 640**2, "beach": 2 * 640**2, "forest": 640**2}
        tiles = json.loads((folder / "tiles.geojson").read_text())["features"]
        assert [tile["properties"]["scene_zh"] for tile in tiles[:3]] == ["河流", "河流", "海滩"]
        assert all(
            {"confidence", "objects", "answers"} <= tile["properties"].keys() for tile in tiles
        )

    def test_the_picture_and_its_legend(self, scene_file, tmp_path, colors):
        """A quarter of a pixel's colour or more comes from its scene; all share one height."""
        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64, "--overlap", 0)
        with Image.open(tmp_path / "map" / "map.png") as picture:
            assert picture.height >= 192 and picture.width > 256 + 60
            for (x, y), name in {
                (60, 60): "river",
                (60, 130): "forest",
                (200, 60): "beach",
            }.items():
                shown, plain = np.array(picture.getpixel((x, y))), np.array(COLORS[name])
                expected = plain + (np.array(color_of(name)) - plain) * OPACITY / 255
                assert np.abs(shown - expected).max() <= 2
            assert picture.getpixel((10, 10)) == (255, 255, 255)
            legend = np.array(picture)[:, 256:].reshape(-1, 3)
        for name in COLORS:
            assert (legend == color_of(name)).all(1).sum() > 200

    def test_the_legend_without_a_chinese_font(
        self, scene_file, tmp_path, colors, monkeypatch, capsys
    ):
        monkeypatch.setattr("mapping.picture.FONTS", ("absent.ttc",))
        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64)
        assert "no Chinese font found" in capsys.readouterr().err

    def test_the_page_in_a_browser(self, scene_file, tmp_path, colors):
        if not CHROMIUM.exists():
            pytest.skip(f"the browser tests need {CHROMIUM}: apt-get install chromium")
        with_tag = ANSWERS | {"beach": "沙滩</script><b>旁是海。"}
        colors.say = with_tag
        folder = tmp_path / "map"
        map_scene("colors", scene_file, folder, "--tile", 64, "--overlap", 0)
        requests, errors = [], []
        with chromium() as browser:
            page = browser.new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"file://{folder}/map.html")
            box = page.locator("svg").bounding_box()
            page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5)
            told = page.locator("#tile").inner_text()
            picture = page.locator("#tile img").evaluate("image => image.naturalWidth")
            legend = page.locator("#legend").inner_text()
        assert "海滩" in told and with_tag["beach"] in told and "0.900" in told
        assert picture == 64 and "河流 50.0%" in legend
        others = [url for url in requests if not url.startswith(("data:", "file:"))]
        assert not others and not errors

    def test_a_picture_without_georeference_says_so(self, tmp_path, colors, capsys):
        pixels = fields([["river", "beach"]], 64)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "a.png")
        map_scene("colors", tmp_path / "a.png", tmp_path / "map", "--tile", 64, "--overlap", 0)
        assert "图像没有地理参考，坐标与面积以像素计。" in capsys.readouterr().out
        content = json.loads((tmp_path / "map" / "map.geojson").read_text())
        assert "no georeference" in content["note"] and content["crs"] is None
        assert {tuple(p) for p in content["features"][0]["geometry"]["coordinates"][0]} == {
            *((0, 0), (0, 64), (64, 64), (64, 0))
        }

    def test_options_reach_the_tiles(self, scene_file, tmp_path, colors):
        folder = tmp_path / "map"
        options = ["--tasks", "scene", "description", "objects", "--prompt", "描述。"]
        options += ["--overlap", "0.25"]
        options += [
            "--bands",
            3,
            2,
            1,
            "--stretch",
            "tile",
            "--min-confidence",
            "0.95",
            "--chinese",
        ]
        map_scene("colors", scene_file, folder, "--tile", 32, "--batch-size", 7, *options)
        settings = json.loads((folder / "settings.json").read_text())
        assert settings["questions"] == {
            "description": "描述。",
            "scene": "这张遥感图像属于哪一类场景？",
            "objects": "图中有哪些地物？",
        }
        assert (settings["tile"], settings["overlap"], settings["bands"]) == (32, 0.25, [3, 2, 1])
        assert settings["stretch"] == "tile" and max(colors.batches) == 7
        assert settings["sampling"]["temperature"] == 0
        summary = json.loads((folder / "summary.json").read_text())
        assert [entry["scene"] for entry in summary["area"]["scenes"]] == [None]
        assert "unsure" in in_words(summary, english=True)[3]

    @pytest.mark.parametrize(
        "options, expected",
        [
            (["--output", "{}"], "--input and --output go together"),
            (["--tile", "64"], "--tile is for a map: name its --scene"),
            (["--min-confidence", "0"], "--min-confidence is for a map"),
            (["--scene", "a.tif"], "--scene needs --output"),
            (["--scene", "a.tif", "--output", "{}", "--image", "b.tif"], "exclude each other"),
            (["--scene", "a.tif", "--output", "{}", "--overlap", "1"], "--overlap 1.0: must be"),
            (
                ["--scene", "a.tif", "--output", "{}", "--tile", "2"],
                "--tile 2: must be at least 16",
            ),
            (["--scene", "a.tif", "--output", "{}", "--min-confidence", "2"], "at most 1"),
            (["--scene", "a.tif", "--output", "{}", "--tasks", "dance"], "choice: 'dance'"),
        ],
    )
    def test_contradictions_are_refused(self, tmp_path, capsys, options, expected):
        with pytest.raises(SystemExit) as stopped:
            cli_demo.main([option.format(tmp_path) for option in options])
        assert stopped.value.code == 2 and expected in capsys.readouterr().err

    def test_a_folder_of_another_scene_or_of_other_settings(self, scene_file, tmp_path, colors):
        other = write_scene(tmp_path / "b.tif", fields([["river"]], 64))
        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64)
        before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "map").iterdir())
        with pytest.raises(SystemExit, match="it holds the map of another scene, a.tif"):
            map_scene("colors", other, tmp_path / "map", "--tile", 64)
        with pytest.raises(SystemExit, match="begun with other settings .tile: 64 there, 32 now"):
            map_scene("colors", scene_file, tmp_path / "map", "--tile", 32)
        assert before == sorted((p.name, p.read_bytes()) for p in (tmp_path / "map").iterdir())
        map_scene("colors", scene_file, tmp_path / "map", "--tile", 64, "--min-confidence", "1")

    @pytest.mark.parametrize("settings", ["{}", '{"scene": "dark+"}'])
    def test_a_folder_with_settings_of_another_program(
        self, scene_file, tmp_path, colors, settings
    ):
        (tmp_path / "settings.json").write_text(settings)
        with pytest.raises(SystemExit, match="name another folder"):
            map_scene("colors", scene_file, tmp_path, "--tile", 64)
        assert (tmp_path / "settings.json").read_text() == settings

    @pytest.mark.parametrize("name", ["map.png", "summary.txt", "tiles.jsonl"])
    def test_a_folder_with_files_of_somebody_else(self, scene_file, tmp_path, colors, name):
        (tmp_path / name).write_text("mine")
        with pytest.raises(SystemExit, match=f"{name} is there, and no map was begun there"):
            map_scene("colors", scene_file, tmp_path, "--tile", 64)
        assert (tmp_path / name).read_text() == "mine"
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_no_room_on_the_disk(self, scene_file, tmp_path, colors, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(SystemExit, match="MB are free, a map of 6 tiles takes up to"):
            map_scene("colors", scene_file, tmp_path / "map", "--tile", 64, "--overlap", 0)
        (tmp_path / "file").write_text("")
        with pytest.raises(SystemExit, match="cannot be a folder"):
            map_scene("colors", scene_file, tmp_path / "file", "--tile", 64)

    def test_killed_and_resumed_gives_the_same_files(self, scene_file, tmp_path, tiny_checkpoint):
        """A real checkpoint: the process is killed after some tiles."""
        words = ["--tile", "32", "--overlap", "0.5", "--batch-size", "2"]
        map_scene(tiny_checkpoint, scene_file, tmp_path / "whole", *words)
        whole = tmp_path / "whole" / "tiles.jsonl"
        torn = tmp_path / "killed"
        torn.mkdir()
        shutil.copy(tmp_path / "whole" / "settings.json", torn)
        (torn / "tiles.jsonl").write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
        map_scene(tiny_checkpoint, scene_file, torn, *words)
        names = {path.name for path in (tmp_path / "whole").iterdir()}
        assert names == {path.name for path in torn.iterdir()}
        for name in names:
            assert (torn / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name

    def test_a_killed_process_and_a_stopped_one(self, scene_file, tmp_path, tiny_checkpoint):
        """SIGKILL after some tiles, then Ctrl-C after some more, then the rest."""
        words = ["--tile", "32", "--overlap", "0.75", "--batch-size", "1"]
        map_scene(tiny_checkpoint, scene_file, tmp_path / "whole", *words)
        folder = tmp_path / "killed"
        tiles = folder / "tiles.jsonl"
        command = [sys.executable, PROJECT / "cli_demo.py", "--scene", scene_file, *words]
        command += ["--from_pretrained", tiny_checkpoint, "--output", folder]
        command += ["--device", "cpu", "--max_length", "50"]
        known = 0
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
                try:
                    while not (tiles.exists() and tiles.stat().st_size > known):
                        assert process.poll() is None
                        time.sleep(0.01)
                    process.send_signal(number)
                    said = process.communicate(timeout=60)[1]
                finally:
                    process.kill()
            assert process.returncode == status and "Traceback" not in said
            known = tiles.stat().st_size
            assert known < (tmp_path / "whole" / "tiles.jsonl").stat().st_size
            assert not (folder / "map.html").exists()
        map_scene(tiny_checkpoint, scene_file, folder, *words)
        names = {path.name for path in (tmp_path / "whole").iterdir()}
        assert names == {path.name for path in folder.iterdir()}
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


class TestTwoDates:
    @pytest.fixture
    def earlier(self, tmp_path):
        """The same place in pixels half as large; one field differs, the last column is missing."""
        rows = [["river", "forest"], ["forest", "river"]]
        place = UTM @ rasterio.Affine.translation(32, 32) @ rasterio.Affine.scale(0.5)
        return write_scene(tmp_path / "earlier.tif", fields(rows, 128), transform=place)

    def test_tiles_that_changed(self, scene_file, earlier, tmp_path, colors, capsys):
        folder = tmp_path / "map"
        options = ["--tile", 64, "--overlap", 0, "--before", earlier]
        map_scene("colors", scene_file, folder, *options)
        printed = capsys.readouterr().out
        assert "4 块两次都有数据，2 块不重叠，不能比较；场景变化 1 块，地物变化 1 块" in printed
        assert "森林 → 河流：1 块" in printed

        [feature] = json.loads((folder / "changes.geojson").read_text())["features"]
        properties = feature["properties"]
        assert properties["window"] == [96, 32, 64, 64]
        assert (properties["scene_before"], properties["scene"]) == ("forest", "river")
        assert properties["description_before"] == ANSWERS["forest"]
        assert properties["description"] == ANSWERS["river"]
        assert "tree" in properties["objects_removed"] and "river" in properties["objects_added"]
        with Image.open(folder / "map.png") as picture:
            assert picture.getpixel((97, 60)) == CHANGED and picture.getpixel((33, 60)) != CHANGED
        before = colors.batches.copy()
        map_scene("colors", scene_file, folder, *options)
        assert colors.batches == before  # nothing is asked again
        with pytest.raises(SystemExit, match="begun with other settings .before: "):
            map_scene("colors", scene_file, folder, *options[:-2])

    def test_an_earlier_date_may_come_later(self, scene_file, earlier, tmp_path, colors, capsys):
        options = ["--tile", 64, "--overlap", 0]
        map_scene("colors", scene_file, tmp_path / "map", *options)
        map_scene("colors", scene_file, tmp_path / "map", *options, "--before", earlier)
        assert colors.batches == [4, 2, 4]
        assert "森林 → 河流：1 块" in capsys.readouterr().out
        map_scene("colors", scene_file, tmp_path / "map", *options, "--before", earlier)

    def test_another_coordinate_system(self, scene_file, earlier, tmp_path, colors, capsys):
        with rasterio.open(earlier) as file:
            there, crs = file.read(), "EPSG:32651"
            place, width, height = rasterio.warp.calculate_default_transform(
                file.crs, crs, file.width, file.height, *file.bounds
            )
            turned = np.zeros((3, height, width), np.uint8)
            rasterio.warp.reproject(
                there,
                turned,
                src_crs=file.crs,
                src_transform=file.transform,
                dst_crs=crs,
                dst_transform=place,
            )
        other = write_scene(tmp_path / "other.tif", turned, crs=crs, transform=place, nodata=0)
        options = ["--tile", 64, "--overlap", 0, "--before", other]
        map_scene("colors", scene_file, tmp_path / "map", *options)
        assert "森林 → 河流：1 块" in capsys.readouterr().out

    def test_the_page_shows_both_dates(self, scene_file, earlier, tmp_path, colors):
        if not CHROMIUM.exists():
            pytest.skip(f"the browser tests need {CHROMIUM}: apt-get install chromium")
        options = ["--tile", 64, "--overlap", 0, "--before", earlier]
        map_scene("colors", scene_file, tmp_path / "map", *options)
        with chromium() as browser:
            page = browser.new_page()
            page.goto(f"file://{tmp_path}/map/map.html")
            box = page.locator("svg").bounding_box()
            page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.3)
            told = page.locator("#tile").inner_text()
            assert page.locator("#tile img").count() == 2
            assert page.locator('svg rect[stroke="#d00"]').count() == 1
        assert told.index(ANSWERS["river"]) < told.index("之前") < told.index(ANSWERS["forest"])

    @pytest.mark.parametrize(
        "shift, crs, expected",
        [
            (10_000, "EPSG:32650", "does not overlap with .*a.tif"),
            (None, None, "aligned by their georeference, and one has none"),
        ],
    )
    def test_what_cannot_be_aligned(self, scene_file, tmp_path, colors, shift, crs, expected):
        place = shift and UTM @ rasterio.Affine.translation(shift, 0)
        other = write_scene(tmp_path / "b.tif", fields([["river"]], 64), crs=crs, transform=place)
        options = ["--tile", 64, "--before", other]
        with pytest.raises(SystemExit, match=expected):
            map_scene("colors", scene_file, tmp_path / "map", *options)
        Image.new("RGB", (64, 64)).save(tmp_path / "c.png")
        with pytest.raises(SystemExit, match="two dates need GeoTIFFs"):
            options = ["--tile", 64, "--before", tmp_path / "c.png"]
            map_scene("colors", scene_file, tmp_path / "map", *options)


def shoelace(ring):
    x, y = np.array(ring).T
    x, y = x - x[0], y - y[0]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def screenshot(page_file, picture):
    """images/map.png: the page of a map, a tile of it chosen."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(f"file://{Path(page_file).resolve()}")
        box = page.locator("svg").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.3)
        page.wait_for_timeout(500)
        page.screenshot(path=picture)


if __name__ == "__main__":
    screenshot(*sys.argv[1:])
