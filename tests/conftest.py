"""Shared fixtures: small checkpoints, vocabularies and rows that the tests make themselves."""

import json
import os
import random
import sys
from pathlib import Path

import pytest
from PIL import Image
from stub_endpoint import KEY, Stub

PROJECT = Path(__file__).resolve().parent.parent
PIECES = 338  # of the tests' vocabulary
sys.path.insert(0, str(PROJECT))

# Beside other workers one thread each
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


def pytest_collection_modifyitems(items):
    """A slow test takes its time."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


TEXTS = [
    "这张遥感图像展现了什么场景？",
    "这是一片绿色的农田。",
    "这是一个灰色的停车场，停着三辆汽车。",
    "蓝色的河流穿过森林。",
    "问：图中有什么？\n答：两块网球场。",
    "Describe the image.",
    "A green farmland beside a road .",
    "有，没有，是，不是。",
]


@pytest.fixture(scope="session")
def tiny_config():
    """A network small enough that a training step takes milliseconds."""
    config = json.loads((PROJECT / "model" / "tiny" / "model_config.json").read_text())
    config |= {
        "num_layers": 2,
        "hidden_size": 48,
        "inner_hidden_size": 96,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "bos_token_id": 510,
        "eos_token_id": 511,
        "gmask_token_id": 509,
        "mask_token_id": 508,
    }
    config["eva_args"] |= {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "inner_hidden_size": 64,
        "image_size": [28, 28],
        "patch_size": 16,
        "max_sequence_length": 5,
    }
    config["qformer_args"] |= {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "is_decoder": [True, False],
        "cross_attn_hidden_size": 32,
        "vocab_size": 8,
    }
    return config | {"image_length": 8}


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory, tiny_config):
    """A sentencepiece file of the tests' own texts."""
    from model.visualglm.tokenizer import train_vocabulary

    path = tmp_path_factory.mktemp("vocabulary") / "ice_text.model"
    train_vocabulary(TEXTS * 20, path, PIECES)
    return path


@pytest.fixture(scope="session")
def config_file(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp("config") / "model_config.json"
    path.write_text(json.dumps(tiny_config))
    return path


def load(name, **options):
    """A checkpoint of VisualGLM, not yet packed for answering -> (network, tokenizer, card)."""
    from model.opening import open_checkpoint

    family = open_checkpoint(name, **options)
    return family.network, family.tokenizer, family.card


def write_random(folder, config_file, vocabulary, talkative=False):
    """A loadable full checkpoint with random weights.

    talkative: it says pieces of the vocabulary only and never ends.
    """
    import torch

    from model.visualglm import checkpoint
    from model.visualglm.family import VisualGLMFamily

    torch.manual_seed(0)
    family = VisualGLMFamily.from_config(
        config_file, tokenizer=vocabulary, device=torch.device("cpu"), dtype=torch.float32
    )
    tensors = family.network.state_dict()
    if talkative:
        # Some logit of the others is above 0
        tensors["mixins.chatglm-final.lm_head.weight"][PIECES:] = 0
    checkpoint.write_folder(
        folder,
        config=family.config,
        tokenizer=family.tokenizer,
        tensors=tensors,
        card={"format": 1, "method": {"name": "full"}, "base": None},
    )
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, config_file, vocabulary):
    return write_random(tmp_path_factory.mktemp("checkpoint") / "base", config_file, vocabulary)


@pytest.fixture(scope="session")
def wide(tmp_path_factory, tiny_config, vocabulary):
    """A checkpoint of widths that the kernels for quantized and packed weights take, with the depth
    of the reference.
    """
    folder = tmp_path_factory.mktemp("wide")
    config = tiny_config | {
        "num_layers": 3,
        "hidden_size": 256,
        "inner_hidden_size": 1024,
        "num_attention_heads": 4,
    }
    (folder / "model_config.json").write_text(json.dumps(config))
    return write_random(folder / "base", folder / "model_config.json", vocabulary, talkative=True)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A folder with train.json and val.json over 12 one-coloured pictures, each colour with its own
    answer.
    """
    folder = tmp_path_factory.mktemp("rows")
    colours = {"red": "红色的屋顶。", "green": "绿色的农田。", "blue": "蓝色的河流。"}
    (folder / "images").mkdir()
    rows, rng = [], random.Random(0)
    for index in range(12):
        name = list(colours)[index % 3]
        image = Image.new("RGB", (40, 40), name)
        image.putpixel((rng.randrange(40), rng.randrange(40)), (255, 255, 255))
        image.save(folder / "images" / f"{index}.tif")
        rows.append({"img": f"images/{index}.tif", "prompt": TEXTS[0], "label": colours[name]})
    (folder / "rows-train.json").write_text(
        json.dumps(rows[:9], ensure_ascii=False), encoding="utf-8"
    )
    (folder / "rows-val.json").write_text(
        json.dumps(rows[9:], ensure_ascii=False), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="session")
def vision_cache(tmp_path_factory):
    """Pictures are encoded into a folder of the tests."""
    from train_runs import CACHE

    CACHE.append(tmp_path_factory.mktemp("vision-cache"))


@pytest.fixture(scope="session")
def pretrained(vision_cache, rows, config_file, vocabulary, tmp_path_factory):
    """From nothing on one-coloured pictures, long enough to learn which colour is which."""
    from train_runs import run

    save = tmp_path_factory.mktemp("pretrain")
    result = run(
        "--mode",
        "pretrain",
        "--model_config",
        config_file,
        "--tokenizer",
        vocabulary,
        "--train-data",
        rows / "rows-train.json",
        "--save",
        save,
        "--experiment-name",
        "base",
        "--train-iters",
        120,
        "--lr",
        3e-3,
        "--batch-size",
        9,
        "--clip-grad",
        1,
        "--eval-interval",
        40,
        "--lr-decay-style",
        "linear",
    )
    assert result.returncode == 0, result.stderr
    return save / "base", result


@pytest.fixture
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def stub(monkeypatch):
    """An OpenAI-compatible endpoint on this machine, which the environment names."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    stub = Stub()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    yield stub
    stub.server.shutdown()
    stub.server.server_close()
