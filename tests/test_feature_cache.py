"""What is done once: features of images, and what processes share out among themselves."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_runs import losses, run

from model import UserError, read_image
from model import rows as rows_module
from model.family import FeatureSpec
from model.rows import Sample, check_images
from model.training import feature_cache
from model.training.dataset import rendered_dataset
from model.training.engine import Processes
from model.training.feature_cache import FeatureCache
from model.visualglm.pixels import to_pixels


class TestFeatureCache:
    def test_same_losses_with_and_without(self, pretrained, rows, tmp_path):
        """And a second run finds every image."""
        common = [
            "--from_pretrained",
            pretrained[0],
            "--train-data",
            rows / "rows-train.json",
            "--valid-data",
            rows / "rows-val.json",
            "--batch-size",
            3,
            "--train-iters",
            6,
            "--log-interval",
            1,
            "--lr",
            0.01,
            "--save",
            tmp_path,
        ]
        first, second = (
            run(*common, "--vision_cache", tmp_path / "cache", "--experiment-name", name)
            for name in ("first", "second")
        )
        off = run(*common, "--vision_cache", "off", "--experiment-name", "off")
        assert [r.returncode for r in (first, second, off)] == [0, 0, 0], (
            first.stderr + second.stderr + off.stderr
        )
        assert (
            "encoded 13 images once" in first.stdout and "encoded" not in second.stdout + off.stdout
        )  # 12 and the blank one
        trained, valid = losses(tmp_path / "first")
        assert losses(tmp_path / "second") == (trained, valid)
        without = losses(tmp_path / "off")
        assert trained == pytest.approx(without[0], abs=1e-5)
        for ours, theirs in zip(valid, without[1]):
            assert ours == pytest.approx(theirs, abs=1e-5)

    def make(self, folder, pictures, **change):
        made = {
            "shape": (2, 3),
            "dtype": torch.float32,
            "image_size": [8, 8],
            "mark": "base",
        } | change
        spec = FeatureSpec(made["shape"], made["dtype"], str(made))
        return FeatureCache(folder, spec).scan(pictures)

    def test_key_is_bytes_weights_and_preprocessing(self, rows, tmp_path):
        def mean_pixel(images):
            pixels = torch.stack([to_pixels(image, [8, 8]) for image in images])
            return pixels.mean((1, 2, 3))[:, None, None].expand(-1, 2, 3)

        pictures = sorted((rows / "images").glob("*.tif"))
        copy = shutil.copy(pictures[0], tmp_path / "same.tif")
        cache = self.make(tmp_path / "c", [*pictures, copy])
        assert len(cache.missing) == 13 and cache.has_space()
        cache.fill(mean_pixel, cache.missing, batch=5)
        assert self.make(tmp_path / "c", pictures).missing == []
        assert torch.equal(cache.read(copy), cache.read(pictures[0])) and not torch.equal(
            cache.read(pictures[1]), cache.read(pictures[0])
        )
        assert torch.allclose(
            cache.read(pictures[0]), to_pixels(read_image(pictures[0]), [8, 8]).mean(), atol=1e-6
        )
        for change in (
            {"mark": "other"},
            {"image_size": [9, 9]},
            {"dtype": torch.bfloat16},
            {"shape": (3, 2)},
        ):
            assert len(self.make(tmp_path / "c", pictures, **change).missing) == 13
        for damage in (
            lambda content: content[:5],
            lambda content: bytes(len(content)),
        ):  # cut short; zeros, as after a power cut
            kept = cache.files[pictures[2]].read_bytes()
            cache.files[pictures[2]].write_bytes(damage(kept))
            assert self.make(tmp_path / "c", pictures).missing == [pictures[2]]
            with pytest.raises(UserError, match="was removed or damaged while the run needed it"):
                cache.read(pictures[2])
            cache.files[pictures[2]].write_bytes(kept)

    def test_full_disk_and_pruning(self, rows, tmp_path, monkeypatch):
        def zeros(images):
            return torch.zeros(len(images), 2, 3)

        pictures = sorted((rows / "images").glob("*.tif"))
        old = self.make(tmp_path / "c", pictures, mark="old")
        old.fill(zeros, old.missing)
        for age, file in enumerate(old.files.values()):
            os.utime(file, (age, age))
        new = self.make(tmp_path / "c", pictures[:3])
        new.fill(zeros, new.missing)
        foreign = tmp_path / "c" / "ab" / "thesis.txt"
        foreign.parent.mkdir(exist_ok=True)
        foreign.touch()
        os.utime(foreign, (0, 0))
        new.prune(
            28 * 10
        )  # 13 old ones and 4 of this run, 28 bytes each: the seven used longest ago go
        assert [file.exists() for file in old.files.values()] == [False] * 7 + [True] * 6
        new.prune(0)
        assert foreign.exists()
        assert (
            new.missing
            and all(file.exists() for file in new.files.values())
            and not any(f.exists() for f in old.files.values())
        )
        monkeypatch.setattr(
            feature_cache.shutil,
            "disk_usage",
            lambda _: type("", (), {"free": feature_cache.SPARE + 10}),
        )
        assert (
            self.make(tmp_path / "c", pictures[:3]).has_space()
            and not self.make(tmp_path / "c", pictures).has_space()
        )
        with pytest.raises(UserError, match="feature cache /proc/c cannot be written"):
            self.make(Path("/proc/c"), pictures).has_space()


class TestSharded:
    """What every process needs of every row is done once, each process doing its share."""

    @pytest.fixture
    def in_ranks(self, monkeypatch):
        """Calls a function with the Processes of each of three ranks, which are threads here ->
        their results or errors.
        """
        world, rank = 3, threading.local()
        shared, barrier = [None] * world, threading.Barrier(world, timeout=60)

        def all_gather_object(shares, own):
            shared[rank.number] = own
            barrier.wait()
            shares[:] = shared
            barrier.wait()

        monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)

        def of(function):
            def of_rank(number):
                rank.number = number
                try:
                    return function(Processes(number, world, torch.device("cpu")))
                except UserError as error:
                    return str(error)

            with ThreadPoolExecutor(world) as pool:
                return list(pool.map(of_rank, range(world)))

        return of

    @pytest.mark.parametrize("count", [0, 1, 3, 7])
    def test_every_item_once_and_in_order(self, in_ranks, count):
        worked = []

        def work(share):
            worked.append(len(share))
            return [item * item for item in share]

        found = in_ranks(lambda processes: processes.sharded(work, list(range(count))))
        assert found == [[item * item for item in range(count)]] * 3
        assert sum(worked) == count and max(worked) - min(worked) <= 1

    def test_an_error_of_one_is_raised_in_all(self, in_ranks):
        def work(share):
            if 5 in share:
                raise UserError("the fifth is broken")
            return share

        found = in_ranks(lambda processes: processes.sharded(work, list(range(7))))
        assert found == ["the fifth is broken"] * 3

    def test_rows_are_rendered_once(self, in_ranks):
        rendered = []

        class Words:
            def render(self, sample, limits):
                rendered.append(sample)
                length = len(sample)
                return SimpleNamespace(length=length, target_tokens=1, cut=False)

        samples = ["a", "bb", "ccc", "dddd"]
        sets = in_ranks(
            lambda processes: rendered_dataset(Words(), samples, None, sharded=processes.sharded)
        )
        assert sorted(rendered) == samples
        assert [list(rows.lengths) for rows in sets] == [[1, 2, 3, 4]] * 3

    def test_images_are_hashed_and_decoded_once(self, rows, tmp_path, in_ranks, monkeypatch):
        pictures = sorted((rows / "images").glob("*.tif"))
        alone = TestFeatureCache().make(tmp_path / "c", pictures)
        alone.fill(lambda images: torch.zeros(len(images), 2, 3), alone.missing[:4])
        alone.scan(pictures)

        hashed, decoded = [], []
        name, read = FeatureCache._name, rows_module.read_image
        monkeypatch.setattr(
            FeatureCache, "_name", lambda self, image: hashed.append(image) or name(self, image)
        )
        monkeypatch.setattr(
            rows_module, "read_image", lambda path, bands: decoded.append(path) or read(path, bands)
        )
        caches = in_ranks(
            lambda processes: FeatureCache(tmp_path / "c", alone.spec).scan(
                pictures, processes.sharded
            )
        )
        assert len(hashed) == len(set(hashed)) == 13
        assert all(cache.files == alone.files for cache in caches)
        assert all(cache.missing == alone.missing for cache in caches) and alone.missing

        broken = tmp_path / "broken.tif"
        broken.write_bytes(b"II*")
        samples = [Sample(path, "?", "!") for path in (*pictures, broken)]
        said = in_ranks(lambda own: check_images(samples, "rows.json", sharded=own.sharded))
        assert len(decoded) == len(set(decoded)) == 13
        assert len(set(said)) == 1 and "rows.json: 1 of 13 wrong: " in said[0]
