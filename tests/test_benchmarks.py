"""What the benchmarks compare with must be the same network, or the comparison says nothing."""

import sys

import torch
from conftest import PROJECT

sys.path.append(str(PROJECT / "benchmarks"))  # at the end: its data.py would hide data/


def test_the_baseline_is_the_same_network(tiny_config, vocabulary):
    import baseline

    from model.visualglm.network import VisualGLM
    from model.visualglm.prompt import render
    from model.visualglm.tokenizer import Tokenizer

    torch.manual_seed(0)
    ours, theirs = VisualGLM(tiny_config).eval(), baseline.network(tiny_config)
    theirs.load_state_dict(ours.state_dict())
    tokenizer = Tokenizer(vocabulary, tiny_config)
    rows = [
        render(tokenizer, "图中有什么？", answer, image_slots=8)
        for answer in ("两块网球场。", "这是一片绿色的农田。")
    ]
    input_ids, labels = baseline.padded(rows, tiny_config["pad_token_id"])
    pixels, start = torch.randn(2, 3, 28, 28), rows[0].image_start
    with torch.no_grad():
        expected = theirs(input_ids=input_ids, pixels=pixels, image_start=start)[0]
        prefix = torch.tensor([row.prefix for row in rows])
        got = ours(input_ids, prefix, pixels=pixels, image_start=start)[0]
    assert input_ids.shape == (2, 320)
    for row, got_row, expected_row, label in zip(rows, got, expected, labels):
        torch.testing.assert_close(
            got_row[: len(row.ids)], expected_row[: len(row.ids)], atol=1e-5, rtol=1e-4
        )
        trained = (label[1:] != baseline.IGNORED).nonzero().flatten()
        assert trained.tolist() == list(row.target_positions)
        assert label[1:][trained].tolist() == [row.ids[t + 1] for t in row.target_positions]


def test_brief_rows_say_the_scene_first_and_one_thing_more():
    import effect

    def row(text, name="a.tif"):
        return {"img": f"/images/{name}", "prompt": "描述这张图。", "label": text}

    sentences = [
        "a harbor with many boats and a car",
        "there are boats in the harbor",
        "a harbor with a car and a building",
    ]
    images = [
        {"filename": name, "sentences": [{"raw": text} for text in sentences]}
        for name in ("a.tif", "b.tif")
    ]
    scenes = [row("港口。")]
    kept = effect.brief(
        [
            # The water and the pier follow from the harbour, the boats are one thing more.
            row("港口里停着许多船。"),
            row("港口的水面上停着许多船。"),
            row("许多船整齐地停着。"),  # names no scene: it is said before it
            row("港口里停着许多船，旁边有一辆汽车。"),  # two things more
            row("一片沙滩旁停着许多船。"),  # another scene
            row("港口里停着许多船。", "b.tif"),  # of which no scene is agreed
        ],
        scenes,
        images,
    )
    assert [r["label"] for r in kept] == [
        "港口。港口里停着许多船。",
        "港口。港口的水面上停着许多船。",
        "港口。许多船整齐地停着。",
    ]
    assert kept[0] == row("港口。港口里停着许多船。")


def test_folds_share_out_the_training_images_and_nothing_else(tmp_path):
    import json

    import effect

    data = tmp_path / "UCM"
    data.mkdir()
    images, records = [], []
    for index in range(2 * effect.FOLDS * effect.BLOCK + 7):
        name, split = f"{index}.tif", "val" if index % 9 == 8 else "train"
        images.append({"filename": name, "split": split, "sentences": []})
        records.append({"imged_id": name, "caption": "港口。", "split": split})
    (data / "dataset.json").write_text(json.dumps({"images": images, "dataset": "UCM"}))
    (data / "UCM-zh.json").write_text(json.dumps(records))
    train = [image["filename"] for image in images if image["split"] == "train"]

    held_out = []
    for fold in range(effect.FOLDS):
        effect.split_again(data, tmp_path, fold)
        split = {
            i["filename"]: i["split"] for i in effect.read(tmp_path / "dataset.json")["images"]
        }
        assert list(split) == train
        assert {r["imged_id"]: r["split"] for r in effect.read(tmp_path / "zh.json")} == split
        val = [name for name in train if split[name] == "val"]
        # Neighbours stay together
        places = [train.index(name) // effect.BLOCK for name in val]
        assert {place % effect.FOLDS for place in places} == {fold}
        held_out += val
    assert sorted(held_out) == sorted(train)


def test_split_finds_what_a_linear_classifier_finds():
    import split

    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(120) % 3
    features = torch.randn(120, 5, generator=generator) * 0.1
    features[torch.arange(120), classes] += 1
    train = torch.arange(120) < 90
    assert split.accuracy(features, classes, train) == 100
    # In the other part each class looks like another one.
    moved = torch.where(train, classes, (classes + 1) % 3)
    assert split.accuracy(features, moved, train) == 0
