"""Exports in other people's programs: THUDM/visualglm-6b's official code under transformers, peft.

The slow tests make environments of their own and need the official code, five files that are not
part of this project: VISUALGLM_CODE names a folder that holds them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import PROJECT, TEXTS
from PIL import Image
from safetensors.torch import load_file, save_file
from test_checkpoint import CPU, LORA, save_adapter

import cli_demo
import export_RemoteGLM
from model import UserError
from model.opening import export_checkpoint, open_checkpoint
from model.sampling import Sampling
from model.visualglm import checkpoint, official
from model.visualglm.family import VisualGLMFamily
from model.visualglm.generate import generate
from model.visualglm.prompt import render
from model.visualglm.tokenizer import VOCABULARY, train_vocabulary

# Under which releases of transformers the official code loads, with the peft of the same time
RELEASES = {"4.33.3": "0.5.0", "4.48.3": "0.13.2"}
CODE = os.environ.get("VISUALGLM_CODE")
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
# LoRA in all places that the official model keeps as torch's layers
EVERYWHERE = LORA | {"layers": [0, 1], "targets": ["attention", "mlp", "projection"]}
QUESTION = "图中有什么？"
# Exact where pip would search long for releases that fit each other
PACKAGES = (
    "torch==2.13.0",
    "numpy==2.4.6",
    "huggingface_hub==0.36.2",
    "accelerate==1.15.0",
    "datasets==3.6.0",
    "deepspeed==0.19.8",
    "tensorboardX==2.6.5",
    "sentencepiece",
    "requests",
    "pillow",
    "einops",
    "cpm_kernels",
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def without_control_tokens(base, folder):
    """A copy of a checkpoint whose configuration is SAT's: without the ids of `<eop>`, [MASK]."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "model_config.json").read_text())
    del config["eos_token_id"], config["mask_token_id"]
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder


def test_hf_export_names_what_the_official_code_would_guess(tiny_checkpoint, tmp_path):
    """By its defaults: a head tied to the embedding, `<eop>` and [MASK] outside the vocabulary,
    20,000 ids reserved for images.
    """
    base = without_control_tokens(tiny_checkpoint, tmp_path / "base")
    export_checkpoint(base, "hf", tmp_path / "hf", device="cpu", dtype="stored")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    ids = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "gmask", "mask", "pad")}
    assert ids == {"bos": 510, "eos": 511, "gmask": 509, "mask": 508, "pad": 3}
    words = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert words["num_image_tokens"] == 0 and words["tokenizer_class"] == "ChatGLMTokenizer"
    # Every class that they name is in one of the five files
    named = [*config["auto_map"].values(), words["auto_map"]["AutoTokenizer"][0]]
    assert {name.partition(".")[0] + ".py" for name in named} < set(official.OFFICIAL_FILES)


def test_hf_export_holds_the_rotary_frequencies(tiny_checkpoint, tmp_path):
    """Heads of width 12, half of them for each kind of position, two values a frequency."""
    export_checkpoint(tiny_checkpoint, "hf", tmp_path / "hf", device="cpu", dtype="stored")
    tensors = load_file(next((tmp_path / "hf").glob("*.safetensors")))
    for layer in range(2):
        stored = tensors[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"]
        expected = torch.tensor([10000 ** (-2 * i / 6) for i in range(3)])
        assert torch.allclose(stored, expected, rtol=1e-6)


def test_export_says_what_the_official_code_cannot_load(tiny_checkpoint, tmp_path, capsys):
    arguments = ["--from_pretrained", str(tiny_checkpoint), "--format", "hf", "--output"]
    export_RemoteGLM.main([*arguments, str(tmp_path / "hf")])
    said = capsys.readouterr().out
    for words in (
        "official code for transformers, which this is for, does not read a network of this kind",
        "hidden_size is 48, 4096 is written into it",
        "image_length is 8, 32 is written into it",
        "qformer hidden_size is 32, 768 is written into it",
        "image_size is [28, 28], [224, 224] is written into it",
        "residual scale, in layers is 2, 28 is written into it",
        "the vocabulary has no <sop> with the id 510",
    ):
        assert words in said


def test_nothing_hinders_the_official_code_from_loading_the_official_network():
    config = {
        "num_layers": 28,
        "hidden_size": 4096,
        "image_length": 32,
        "eva_args": {"image_size": [224, 224]},
        "qformer_args": {"vocab_size": 32, "hidden_size": 768},
    }
    ids = {"<sop>": 130004, "<eop>": 130005, "[gMASK]": 130001, "<pad>": 3}
    words = SimpleNamespace(
        sop=130004, eop=130005, gmask=130001, pad=3, pieces=SimpleNamespace(piece_to_id=ids.get)
    )
    assert official.obstacles(config, words) == []
    assert official.token_ids(config, words)["mask_token_id"] == 130000
    ids["<eop>"] = 7
    (said,) = official.obstacles(config, words)
    assert said == "the vocabulary has no <eop> with the id 130005"


@pytest.fixture(scope="module")
def lora_export(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    save_adapter(folder / "adapter", tiny_checkpoint, EVERYWHERE)
    export_checkpoint(folder / "adapter", "peft", folder / "peft", device="cpu")
    return folder / "peft"


class TestPeft:
    def test_no_layer_differs_in_rank(self, lora_export):
        """peft 0.5 knows one rank for all, and later releases look others up by different rules."""
        config = json.loads((lora_export / "adapter_config.json").read_text())
        assert not {"rank_pattern", "alpha_pattern"} & set(config)
        assert (config["r"], config["lora_alpha"]) == (9, 18)
        tensors = load_file(lora_export / "adapter_model.safetensors")
        assert len(tensors) == 2 * 9
        for name, matrix in tensors.items():
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            assert re.fullmatch(config["target_modules"], layer)
            assert matrix.size(0 if "lora_A" in name else 1) == 9

    @pytest.mark.parametrize("targets", ["as exported", ["query_key_value"]])
    @pytest.mark.parametrize("base", [None, "tiny_checkpoint"])
    def test_what_is_for_peft_is_not_opened_here(
        self, lora_export, tmp_path, request, base, targets
    ):
        folder = shutil.copytree(lora_export, tmp_path / "peft")
        config = json.loads((folder / "adapter_config.json").read_text())
        if targets != "as exported":
            (folder / "adapter_config.json").write_text(
                json.dumps(config | {"target_modules": targets})
            )
        options = ["--from_pretrained", str(folder), "--prompt", "x"]
        if base:
            options += ["--base_path", str(request.getfixturevalue(base))]
        with pytest.raises(SystemExit) as caught:
            cli_demo.main(options)
        assert re.search(
            r"peft: for the peft library, over VisualGLM-6B .*--format hf\).*; here open the "
            "adapter that it was exported from$",
            caught.value.code,
        )
        assert "\n" not in caught.value.code

    def test_lora_on_the_vision_tower_is_refused(self, tiny_checkpoint, tmp_path):
        method = LORA | {"targets": ["attention", "vision"]}
        save_adapter(tmp_path / "adapter", tiny_checkpoint, method)
        with pytest.raises(UserError, match="4 of 6 LoRA layers, .* vision tower.*--format hf"):
            export_checkpoint(tmp_path / "adapter", "peft", tmp_path / "peft", device="cpu")
        assert not (tmp_path / "peft").exists()

    @pytest.mark.parametrize(
        "place, expected",
        [
            ("visualglm-6b", "THUDM/visualglm-6b"),  # its folder, in whichever layout
            ("models--zai-org--visualglm-6b/snapshots/1", "THUDM/visualglm-6b"),
            ("hf", "hf"),
            ("sat", None),
        ],
    )
    def test_name_of_the_base(self, tiny_checkpoint, tmp_path, place, expected):
        base = tmp_path / place
        if place == "hf":
            export_checkpoint(tiny_checkpoint, "hf", base, device="cpu")
        else:
            shutil.copytree(tiny_checkpoint, base)
        save_adapter(tmp_path / "adapter", base, LORA)
        export_checkpoint(tmp_path / "adapter", "peft", tmp_path / "peft", device="cpu")
        config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
        if place == "hf":
            expected = str(base)
        assert config["base_model_name_or_path"] == expected


def official_sizes(tiny_config, pieces):
    """A configuration with all that the official code has written into it, everything else small;
    like SAT's, it names neither `<eop>` nor [MASK].
    """
    config = tiny_config | {
        "residual_layers": 28,
        "hidden_size": 4096,
        "inner_hidden_size": 512,
        "num_attention_heads": 32,
        "image_length": 32,
        "gmask_token_id": pieces.piece_to_id("[gMASK]"),
        "bos_token_id": pieces.piece_to_id("<sop>"),
    }
    config["eva_args"] = config["eva_args"] | {
        "image_size": [224, 224],
        "patch_size": 14,
        "max_sequence_length": 257,
    }
    config["qformer_args"] = config["qformer_args"] | {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "vocab_size": 32,
    }
    del config["eos_token_id"], config["mask_token_id"]
    return config


def greedy(family, ids, pixels, limit):
    """Ids of the greedy answer to a prompt."""
    tokens = generate(
        family.network,
        [ids],
        eop=family.tokenizer.eop,
        sampling=Sampling(temperature=0, repetition_penalty=1, max_new_tokens=limit),
        image_embeds=family.network.encode_images(pixels),
        image_start=ids.index(3),
    )
    return [token for (token,) in tokens]


@torch.no_grad()
def logits_here(family, ids, pixels, answer=()):
    """[T, V] for a prompt and the beginning of its answer."""
    every = torch.tensor([[*ids, *answer]])
    prefix = torch.tensor([len(ids) - 1])
    return family.network(every, prefix, pixels=pixels, image_start=ids.index(3))[0][0]


@torch.no_grad()
def teach_to_end(family, ids, pixels, after):
    """Fit the head's row of `<eop>` so that the greedy answer ends after so many tokens: only its
    product with the hidden state of that step is above all other logits.
    """
    hidden = []
    head = family.network.mixins["chatglm-final"].lm_head
    hook = head.register_forward_pre_hook(lambda _, given: hidden.append(given[0][0]))
    logits = logits_here(family, ids, pixels, greedy(family, ids, pixels, after))
    hook.remove()
    states = hidden[-1][len(ids) - 1 :]
    wanted = 0.5 * logits[len(ids) - 1 :].max(-1).values
    wanted[after] *= 2.4
    head.weight[family.tokenizer.eop] = torch.linalg.pinv(states) @ wanted


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config):
    """Exports of a network of the official sizes with the official code beside them, and what the
    network computes here, without and with an adapter.
    """
    work = tmp_path_factory.mktemp("official")
    train_vocabulary(TEXTS * 20, work / VOCABULARY, 348, whole=CONTROL)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(work / VOCABULARY))
    (work / "model_config.json").write_text(json.dumps(official_sizes(tiny_config, pieces)))
    torch.manual_seed(0)
    family = VisualGLMFamily.from_config(
        work / "model_config.json", tokenizer=work, device=torch.device("cpu"), dtype=torch.float32
    )
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    image.save(work / "image.png")
    pixels = family._pixels([image])
    save_file({"pixels": pixels}, work / "pixels.safetensors")
    ids = render(family.tokenizer, QUESTION, image_slots=32).ids
    (work / "ids.json").write_text(json.dumps(ids))
    teach_to_end(family, ids, pixels, 4)

    # The official code makes its layers in half precision, whatever it reads
    tensors = {name: tensor.half() for name, tensor in family.network.state_dict().items()}
    checkpoint.write_folder(
        work / "base",
        config=family.config,
        tokenizer=family.tokenizer,
        tensors=tensors,
        card={"format": 1, "method": {"name": "full"}, "base": None},
    )
    save_adapter(work / "adapter", work / "base", EVERYWHERE)
    export_checkpoint(work / "base", "hf", work / "hf", device="cpu", dtype="stored")
    export_checkpoint(work / "adapter", "peft", work / "peft", device="cpu", dtype="float32")
    for name in official.OFFICIAL_FILES:
        shutil.copy(Path(CODE) / name, work / "hf")

    here = {}
    for name in ("base", "adapter"):
        opened = open_checkpoint(work / name, **CPU)
        here[name] = logits_here(opened, ids, pixels), greedy(opened, ids, pixels, 30)
    here["text"] = opened.tokenizer.decode(here["base"][1])
    return work, here


@pytest.mark.slow
@pytest.mark.skipif(not CODE, reason="VISUALGLM_CODE names no folder with the official code")
@pytest.mark.parametrize("transformers", RELEASES)
def test_official_code_computes_the_same(exported, tmp_path, transformers):
    """Logits and greedy answers of the hf export, and of the peft adapter over it."""
    work, here = exported
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    releases = [f"transformers=={transformers}", f"peft=={RELEASES[transformers]}"]
    subprocess.run([*pip, *releases, *PACKAGES], check=True)
    # Without what they would pull: another torch, packages that only training needs
    subprocess.run([*pip, "--no-deps", "torchvision", "SwissArmyTransformer==0.3.7"], check=True)
    command = [python, PROJECT / "tests" / "official_code.py", work, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | os.environ)
    assert result.returncode == 0, result.stderr[-3000:]

    there = json.loads((tmp_path / "answers.json").read_text())
    logits = load_file(tmp_path / "logits.safetensors")
    for name in ("base", "adapter"):
        assert (logits[name] - here[name][0]).abs().max() <= 1e-3
        assert there[name] == here[name][1]
    assert len(there["base"]) == 4 and there["adapter"]
    assert (logits["base"] - logits["adapter"]).abs().max() > 0.1
    # Its tokenizer and its generation are older than later releases
    if transformers == "4.33.3":
        # In this vocabulary control tokens are text; in ChatGLM's they decode to nothing
        assert re.sub("|".join(map(re.escape, CONTROL)), "", there["text"]) == here["text"]
