"""Rows on their way to a batch: order, rendering, augmentation, and what is wrong with them."""

import json
import random
import shutil

import pytest
import torch
from PIL import Image

from model import UserError
from model.family import Limits
from model.opening import open_checkpoint
from model.rows import Sample, check_images, load_rows, shuffle_images
from model.training.dataset import COLOR, DIRECTION, rendered_dataset
from model.training.sampler import DistributedBatchSampler, plan_epoch, validation_batches
from model.visualglm.family import VisualGLMFamily
from model.visualglm.pixels import MEAN, STD
from model.visualglm.tokenizer import Tokenizer


def test_plan_of_an_epoch():
    """Every row once, alike lengths together, other orders in other epochs, whoever asks."""
    lengths = [random.Random(i).randrange(20, 200) for i in range(1000)]
    steps = plan_epoch(lengths, 8, 1, 0)
    assert len(steps) == 125 and sorted(i for rows in steps for i in rows) == list(range(1000))
    assert steps == plan_epoch(lengths, 8, 1, 0) != plan_epoch(lengths, 8, 1, 1)
    spread = [max(lengths[i] for i in rows) - min(lengths[i] for i in rows) for rows in steps]
    assert sum(spread) / len(spread) < 25
    short = [
        24 + i % 8 for i in range(800)
    ]  # differ by less than a step of padding: answers of one length do not stand together
    assert min(len({short[i] for i in rows}) for rows in plan_epoch(short, 16, 1, 0)) > 4
    uneven = plan_epoch(lengths[:10], 4, 1, 0)
    assert [len(rows) for rows in uneven] == [4, 4, 4] and {
        i for rows in uneven for i in rows
    } == set(range(10))

    def plan(epoch):
        return plan_epoch(lengths, 8, 1, epoch)

    shares = [list(DistributedBatchSampler(plan, 1000, 2, 2, rank, 2)) for rank in range(2)]
    assert [shares[0][0], shares[1][0], shares[0][1], shares[1][1]] == [
        steps[0][i : i + 2] for i in (0, 2, 4, 6)
    ]
    late = DistributedBatchSampler(plan, 1000, 2, 2, 1, 2)
    late.start = 100
    assert list(late) == shares[1][200:]
    late.epoch, late.start = 3, 124  # indices say which epoch they belong to
    assert list(late) == [[3000 + i for i in plan(3)[124][first : first + 2]] for first in (2, 6)]


@pytest.mark.parametrize("count, world", [(10, 1), (10, 3), (3, 4)])
def test_held_out_rows_are_counted_once(count, world):
    shares = [validation_batches(count, 2, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(
        i for share in shares for rows, counted in share if counted for i in rows
    ) == list(range(count))


class TestRows:
    def test_dialogue_becomes_one_sample_per_round(self, rows, tmp_path, vocabulary, tiny_config):
        turns = [
            {"role": r, "content": c}
            for r, c in (
                ("user", "甲"),
                ("assistant", "农田"),
                ("user", "乙"),
                ("assistant", "河流"),
            )
        ]
        path = tmp_path / "a.json"
        path.write_text(json.dumps([{"img": str(rows / "images/1.tif"), "conversations": turns}]))
        samples = load_rows(path)
        assert [(s.question, s.answer, s.history) for s in samples] == [
            ("甲", "农田", ()),
            ("乙", "河流", (("甲", "农田"),)),
        ]
        tokenizer = Tokenizer(vocabulary, tiny_config)
        family = VisualGLMFamily(None, tokenizer, tiny_config)
        dataset = rendered_dataset(family, samples, Limits())
        batch = family.collate([dataset[0], dataset[1]])
        flat = batch["input_ids"].flatten()
        assert torch.equal(flat[batch["target_positions"] + 1], batch["targets"])
        trained = [
            tokenizer.decode(
                batch["targets"][
                    batch["target_positions"] // batch["input_ids"].size(1) == i
                ].tolist()
            )
            for i in (0, 1)
        ]
        assert trained == ["农田", "河流"] and batch["pixels"].shape == (2, 3, 28, 28)

    def test_augmented_pictures(self, rows, tmp_path, vocabulary, tiny_config):
        """Other ones in every epoch, the same ones again when asked again; up stays up where the
        words need it.
        """
        corner = Image.new("RGB", (40, 40), "black")
        corner.paste("white", (0, 0, 20, 20))
        corner.save(tmp_path / "a.png")
        samples = [
            Sample(tmp_path / "a.png", "有什么？", answer)
            for answer in ("一块白色。", "左上角是白色。", "The top is white.")
        ]
        family = VisualGLMFamily(None, Tokenizer(vocabulary, tiny_config), tiny_config)
        dataset, plain = (
            rendered_dataset(family, samples, Limits(), augmentation=how)
            for how in ((3, 0.8), None)
        )
        white = {
            row: {
                int(
                    dataset[row + 3 * epoch]["pixels"]
                    .mean(0)
                    .reshape(2, 14, 2, 14)
                    .mean((1, 3))
                    .argmax()
                )
                for epoch in range(40)
            }
            for row in range(3)
        }
        assert white == {0: {0, 1, 2, 3}, 1: {0}, 2: {0}}  # the brightest quarter of the picture
        pixels = dataset[7]["pixels"]
        assert torch.equal(pixels, dataset[7]["pixels"]) and not torch.equal(
            pixels, dataset[4]["pixels"]
        )
        assert (
            torch.equal(plain[7]["pixels"], plain[1]["pixels"])
            and dataset[7]["row"] is dataset.rows[1]
        )

    def test_augmented_colours(self, tmp_path, vocabulary, tiny_config):
        """A red picture may lose its hue, but not where the words name a colour."""
        Image.new("RGB", (40, 40), (140, 90, 90)).save(tmp_path / "a.png")
        samples = [
            Sample(tmp_path / "a.png", "有什么？", answer)
            for answer in ("一片屋顶。", "一片红色屋顶。", "A red roof.")
        ]
        family = VisualGLMFamily(None, Tokenizer(vocabulary, tiny_config), tiny_config)
        dataset = rendered_dataset(family, samples, Limits(), augmentation=(3, 0.8))

        def spread(row, epoch):  # of red above green and blue; the pixels are normalised
            r, g, b = (
                (dataset[row + 3 * epoch]["pixels"].mean((1, 2))) * torch.tensor(STD)
                + torch.tensor(MEAN)
            ).tolist()
            return r - g, r - b

        assert [
            all(
                g > 0.05 and b > 0.05 and abs(g - b) < 0.02
                for g, b in (spread(row, epoch) for epoch in range(40))
            )
            for row in range(3)
        ] == [False, True, True]

    def test_words_of_direction_and_colour(self):
        for text in (
            "左侧的河",
            "西南角",
            "图的下半部",
            "一条斜向的跑道",
            "纵横交错",
            "对角",
            "leftmost",
            "North-eastern",
            "两条diagonal跑道",
            "upper part",
        ):
            assert DIRECTION.search(text), text
        for text in ("有什么东西？", "地上有车", "flowers", "a stop sign", "天下"):
            assert not DIRECTION.search(text), text
        for text in ("彩色屋顶", "灰色", "Greenish", "是white的", "a tan roof", "beige", "greyish"):
            assert COLOR.search(text), text
        for text in ("storage tanks", "altered", "evergreen", "一片屋顶"):
            assert not COLOR.search(text), text

    def test_padding_and_mixed_rows_do_not_change_the_loss(
        self, rows, vocabulary, tiny_config, tiny_checkpoint
    ):
        """Rows alone against the same rows in one padded batch with and without pictures."""
        family = open_checkpoint(tiny_checkpoint, device="cpu")
        network = family.network
        samples = load_rows(rows / "rows-train.json")[:2] + [Sample(None, "你好" * 20, "是。")]
        dataset = rendered_dataset(family, samples, Limits())
        with torch.no_grad():
            whole = network(**family.collate([dataset[i] for i in range(3)]))[1]
            parts = [
                (network(**family.collate([dataset[i]]))[1] * len(dataset.rows[i].target_positions))
                for i in range(3)
            ]
        tokens = sum(len(row.target_positions) for row in dataset.rows)
        assert abs(whole - sum(parts) / tokens) < 1e-5

    def test_swapped_images_are_other_images(self, rows):
        samples = load_rows(rows / "rows-train.json")
        swapped = shuffle_images(samples, 1)
        assert all(a.image != b.image and a.answer == b.answer for a, b in zip(samples, swapped))
        assert sorted(s.image for s in swapped) == sorted(s.image for s in samples)

    BAD = {
        "no file": (None, "no such file"),
        "not json": ("[{", "not readable as JSON"),
        "an object": (
            '{"a": 1}',
            "expected a list of .*got dict; make it with data/generate_prompt.py",
        ),
        "empty": ("[]", "got an empty list"),
        "wrong keys": (
            '[{"image": "a", "text": "b"}]',
            "1 of 1 wrong: row 0: has keys image, text",
        ),
        "empty label": (
            '[{"img": "a", "prompt": "b", "label": " "}]',
            "row 0: has keys img, prompt, label",
        ),
        "missing image": (
            '[{"img": "no.tif", "prompt": "b", "label": "c"}]',
            "row 0: image not found at .*no.tif or .*no.tif",
        ),
        "roles": (
            '[{"conversations": [{"role": "user", "content": "a"}, '
            '{"role": "user", "content": "b"}]}]',
            "expected assistant",
        ),
        "content in parts": (
            '[{"conversations": [{"role": "user", "content": [{"type": "text"}]}, '
            '{"role": "assistant", "content": "a"}]}]',
            "expected user",
        ),
        "half a surrogate pair": (
            '[{"prompt": "\\ud800", "label": "b"}]',
            "row 0: has keys prompt, label",
        ),
        "long name": (
            '[{"img": "' + "x" * 300 + '", "prompt": "b", "label": "c"}]',
            "row 0: image x+...: File name too long",
        ),
        "odd turns": (
            '[{"conversations": [{"role": "user", "content": "a"}]}]',
            "list of user and assistant turns",
        ),
    }

    @pytest.mark.parametrize("case", BAD)
    def test_bad_rows(self, tmp_path, case):
        content, words = self.BAD[case]
        if content is not None:
            (tmp_path / "rows.json").write_text(content)
        with pytest.raises(UserError, match=words) as caught:
            load_rows(tmp_path / "rows.json")
        assert "\n" not in str(caught.value)

    def test_image_root_is_the_only_place_when_given(self, rows, tmp_path):
        shutil.copy(rows / "rows-val.json", tmp_path / "rows.json")
        with pytest.raises(UserError, match="3 of 3 wrong"):
            load_rows(tmp_path / "rows.json")
        assert len(load_rows(tmp_path / "rows.json", rows)) == 3

    def test_unreadable_images_are_all_named_before_training(self, rows, tmp_path):
        shutil.copytree(rows, tmp_path / "r")
        for name, content in (
            ("0", b"not a picture"),
            ("4", (rows / "images/4.tif").read_bytes()[:300]),
        ):
            (tmp_path / "r/images" / f"{name}.tif").write_bytes(content)
        with pytest.raises(UserError, match="2 of 9 wrong: image .*0.tif: .*; image .*4.tif: "):
            check_images(load_rows(tmp_path / "r/rows-train.json"), "rows")
