"""The family on transformers, on small random checkpoints of eight model types.

What a prompt is, which tokens are trained and what is answered are compared with transformers' and
peft's own functions.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import fork_server
import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import PROJECT, TEXTS
from hf_checkpoints import KINDS, TYPES, write_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from test_mapping import fields, mapped, write_scene

import cli_demo
import evaluate_RemoteGLM
import export_RemoteGLM
import finetune_RemoteGLM
from mapping.naming import alternatives, window_of
from model import Sampling, UserError, load_assistant, read_image
from model.family import Limits
from model.hf.adapter import linear_layers
from model.hf.family import probe_image
from model.hf.generate import generate
from model.hf.types import part_of
from model.images.tiles import open_scene
from model.opening import family_of, open_checkpoint
from model.pieces import Pieces
from model.rows import Sample
from model.running_batch import Question
from model.weight_files import CARD, PEFT_ADAPTER, PEFT_CONFIG

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=8)
COLORS = {"red": "红色的屋顶。", "green": "绿色的农田。", "blue": "蓝色的河流。"}
QUESTION = TEXTS[0]
LORA = {
    "name": "lora",
    "rank": 4,
    "alpha": 8.0,
    "layers": None,
    "dropout": 0.0,
    "targets": ["attention", "mlp"],
    "parts": [],
}


@pytest.fixture(scope="session", autouse=True)
def without_num2words():
    """SmolVLM's processor wants it for videos alone."""
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = object()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """model type -> folder, each written once."""
    root = tmp_path_factory.mktemp("hf")
    written = {}

    def folder(kind):
        if kind not in written:
            written[kind] = write_checkpoint(kind, root / kind)
        return written[kind]

    return folder


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """Rows over images of one color each, of several sizes."""
    folder = tmp_path_factory.mktemp("colors")
    for split, count in (("train", 12), ("val", 6)):
        rows = []
        for index in range(count):
            name = list(COLORS)[index % 3]
            image = folder / f"{split}-{index}.png"
            Image.new("RGB", (64 + 16 * (index % 4), 48 + index), name).save(image)
            rows.append({"img": image.name, "prompt": QUESTION, "label": COLORS[name]})
        text = json.dumps(rows, ensure_ascii=False)
        (folder / f"rows-{split}.json").write_text(text, encoding="utf-8")
    return folder


def image(size=(96, 64), color="green"):
    return Image.new("RGB", size, color)


def varied_images(count):
    """Images of several sizes and colors; every fourth place has none."""
    made = []
    for index in range(count):
        size = (60 + 20 * (index % 3), 50 + 10 * index)
        made.append(None if index % 4 == 3 else image(size, (30 * index, 90, 200 - 20 * index)))
    return made


def open_family(folder, **options):
    return open_checkpoint(folder, device="cpu", **options)


def messages(rounds, with_image):
    """Rounds (question, answer or None) as transformers takes them."""
    found = []
    for question, answer in rounds:
        found.append({"role": "user", "content": [{"type": "text", "text": question}]})
        if answer is not None:
            found.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    if with_image is not None:
        found[0]["content"].insert(0, {"type": "image", "image": with_image})
    return found


def template_ids(family, rounds, with_image, asks):
    """What transformers' apply_chat_template makes of them, thinking turned off."""
    return template_inputs(family, rounds, with_image, asks)["input_ids"][0].tolist()


def template_inputs(family, rounds, with_image, asks):
    return transformers.ProcessorMixin.apply_chat_template(
        family.processor,  # SmolVLM's own method asks for its video processor first
        messages(rounds, with_image),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=asks,
        enable_thinking=False,
    )


# Prompts and trained tokens


@pytest.mark.parametrize("kind", TYPES)
def test_a_prompt_is_what_the_chat_template_gives(checkpoints, kind):
    family = open_family(checkpoints(kind))
    for shown in (image(), image((200, 120)), None):
        for history in ((), (("有河吗？", "没有。"),), (("一", "二"), ("三", "四"))):
            sample = Sample(None, QUESTION, COLORS["red"], history)
            tokens = None if shown is None else family.inputs.image_tokens(shown.size)
            row = family.prompts.row(
                sample.question, sample.answer, history=sample.history, image_tokens=tokens
            )
            batch = family.collate([family.encode(row, shown)])
            ids = batch["input_ids"][0].tolist()
            expected = template_ids(family, [*history, (QUESTION, None)], shown, True)
            prompt = ids[: len(ids) - row.target_tokens]
            assert prompt == expected
            assert row.length == len(ids)
            # As the whole dialogue is written, too
            whole = template_ids(family, [*history, (QUESTION, COLORS["red"])], shown, False)
            if whole[: len(prompt)] == prompt:
                assert whole[: len(ids) - 1] == ids[:-1]


@pytest.mark.parametrize("kind", TYPES)
def test_the_loss_is_on_the_answer_and_its_end_alone(checkpoints, kind):
    """Against cross entropy over the logits that the class itself gives for all tokens."""
    family = open_family(checkpoints(kind))
    images = varied_images(4)
    rows = []
    for index, shown in enumerate(images):
        tokens = None if shown is None else family.inputs.image_tokens(shown.size)
        history = [("早先", "回答")] * (index % 2)
        answer = list(COLORS.values())[index % 3] * (index + 1)
        rows.append(family.prompts.row(QUESTION, answer, history=history, image_tokens=tokens))
    batch = family.collate([family.encode(row, shown) for row, shown in zip(rows, images)])
    assert batch["attention_mask"].sum(1).tolist() == [row.length for row in rows]

    end = family.processor.tokenizer.eos_token_id
    trained = []
    for row in rows:
        ids = row.target.tolist()
        assert ids[-1] == end and end not in ids[:-1]
        trained.append(family.processor.tokenizer.decode(ids[:-1]).strip())
    assert trained[0] == COLORS["red"]

    with torch.no_grad():
        logits, loss = family.network(**batch)
        inputs = {k: v for k, v in batch.items() if not k.startswith("target")}
        full = family.network.model(**inputs, use_cache=False).logits
    expected, places = [], []
    for index, row in enumerate(rows):
        start = row.length - row.target_tokens
        expected.append(full[index, start - 1 : row.length - 1])
        places.append(batch["input_ids"][index, start : row.length])
    expected, places = torch.cat(expected), torch.cat(places)
    assert logits.shape == (sum(row.target_tokens for row in rows), full.size(-1))
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(expected, places), atol=1e-6)
    assert family.target_tokens(batch) == len(places)


def test_limits_drop_rounds_and_never_cut_the_image(checkpoints):
    family = open_family(checkpoints("qwen3_vl"))
    history = (("一" * 20, "二" * 20), ("三" * 20, "四" * 20))
    tokens = family.inputs.image_tokens((96, 64))

    def row(limit, history=history, question=QUESTION, target=None):
        return family.prompts.row(
            question,
            COLORS["red"],
            history=history,
            image_tokens=tokens,
            max_source=limit,
            max_target=target,
        )

    full, bare = row(None), row(None, ())
    assert row(full.length).dropped == 0
    shorter = row(full.length - full.target_tokens - 1)
    assert (shorter.dropped, shorter.shortened, shorter.cut) == (1, 0, True)
    source = bare.length - bare.target_tokens
    assert row(source).dropped == 2 and row(source).text == bare.text
    short = row(source - 9)
    assert short.shortened == 9 and short.length <= bare.length - 9
    ids = family.collate([family.encode(short, image())])["input_ids"][0].tolist()
    assert ids.count(family.processor.image_token_id) == tokens + 1
    with pytest.raises(UserError, match="--max_pixels"):
        row(tokens + 2)

    cut = row(None, target=5)
    assert cut.answer_cut and len(cut.target) == 4
    assert cut.target.tolist() == bare.target[:4].tolist()


def test_images_in_a_tar_count_as_those_beside_it(checkpoints, tmp_path):
    family = open_family(checkpoints("qwen3_vl"))
    loose = tmp_path / "a.png"
    image((320, 192)).save(loose)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(loose, "a.png")
    rows = []
    for path in (loose, tmp_path / "s.tar" / "a.png"):
        sample = Sample(path, QUESTION, COLORS["red"])
        row = family.render(sample, Limits())
        item = family.encode(row, read_image(path))
        assert row.length == family.collate([item])["attention_mask"].sum()
        rows.append(row)
    assert rows[0].length == rows[1].length


def test_words_of_the_template_in_a_text_stay_text(checkpoints):
    """A question that quotes an image's placeholder, as exported rows do, adds no image."""
    for kind in ("qwen3_vl", "llava", "smolvlm"):
        family = open_family(checkpoints(kind))
        word, end = family.processor.image_token, family.processor.tokenizer.eos_token
        tokens = family.inputs.image_tokens((96, 64))
        row = family.prompts.row(f"{word}\n有{end}吗？", f"有{end}", image_tokens=tokens)
        ids = family.collate([family.encode(row, image())])["input_ids"][0].tolist()
        plain = family.prompts.row("有吗？", "有", image_tokens=tokens)
        plain = family.collate([family.encode(plain, image())])["input_ids"][0].tolist()
        for token in (family.processor.image_token_id, family.processor.tokenizer.eos_token_id):
            assert ids.count(token) == plain.count(token)


def test_pixel_bounds(checkpoints, tmp_path):
    """256 x 256 stays as it is, a large image gets no more than the bound; a folder keeps them."""
    real = {"shortest_edge": 65536, "longest_edge": 16777216}  # Qwen3-VL's own
    folder = shutil.copytree(checkpoints("qwen3_vl"), tmp_path / "base")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": real}))
    for pixels, expected in (
        ((None, None), {(256, 256): 64, (4000, 4000): 576, (2000, 500): 576}),
        ((None, 262144), {(256, 256): 64, (4000, 4000): 256}),
        ((262144, None), {(256, 256): 256}),
    ):
        family = open_family(folder, pixels=pixels)
        for size, most in expected.items():
            tokens = family.inputs.image_tokens(size) + 1
            assert 0.9 * most <= tokens <= most

    glm = open_family(checkpoints("glm4v"), pixels=(None, 28 * 28 * 9))
    assert glm.inputs.image_tokens((500, 500)) + 1 == 9
    with pytest.raises(UserError, match="--min_pixels"):
        open_family(folder, pixels=(10**6, None))


@pytest.mark.parametrize("kind", ["glm4v", "glm46v"])
def test_pixel_bounds_where_frames_are_counted(checkpoints, kind):
    """Tokens of 28 x 28 pixels: at a bound nothing changes, a row more or less is fitted to it."""
    most = open_family(checkpoints(kind), pixels=(None, 84 * 84))
    for size, tokens in (((84, 84), 9), ((84, 56), 6), ((112, 84), 6), ((840, 840), 9)):
        assert most.inputs.image_tokens(size) + 1 == tokens
    least = open_family(checkpoints(kind), pixels=(112 * 112, None))
    for size, tokens in (((112, 112), 16), ((140, 112), 20), ((112, 84), 20), ((28, 28), 16)):
        assert least.inputs.image_tokens(size) + 1 == tokens


@pytest.mark.parametrize("kind", ["internvl", "smolvlm"])
def test_tiles_are_bounded(checkpoints, kind):
    few = open_family(checkpoints(kind), pixels=(None, 2 * 112 * 112))
    many = open_family(checkpoints(kind), pixels=(None, 10 * 112 * 112))
    assert few.inputs.image_tokens((900, 900)) < many.inputs.image_tokens((900, 900))
    assert few.inputs.image_tokens((50, 50)) <= few.inputs.image_tokens((900, 900))


# Training


def gradients(family, batch):
    """Names of parameters that a step gives a gradient other than 0."""
    family.network.train()
    family.network(**batch)[1].backward()
    return {
        name
        for name, p in family.network.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


def batch_of(family, count=2):
    rows = []
    for shown in varied_images(count):
        tokens = None if shown is None else family.inputs.image_tokens(shown.size)
        rows.append((family.prompts.row(QUESTION, COLORS["red"], image_tokens=tokens), shown))
    return family.collate([family.encode(row, shown) for row, shown in rows])


@pytest.mark.parametrize("kind", TYPES)
def test_training_changes_what_it_should_and_nothing_else(checkpoints, kind, tmp_path):
    """LoRA on everything: the loss falls, the base's weights stay; plain peft has equal logits."""
    folder = checkpoints(kind)
    family = open_family(folder)
    before = {n: p.clone() for n, p in family.network.base.named_parameters()}
    method = LORA | {"targets": ["attention", "mlp", "vision", "projector"]}
    family.add_method(method, device=CPU)
    batch = batch_of(family)
    losses = train_steps(family, batch, 6)
    assert losses[-1] < losses[0]
    for name, parameter in family.network.base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, before[name.replace(".base_layer", "")])

    saved = tmp_path / "adapter"
    card = {"method": method, "base": {"path": str(folder), "fingerprint": family.base_fingerprint}}
    family.save(saved, card)
    again = open_family(saved)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(plain, saved).eval()
    inputs = {k: v for k, v in batch.items() if not k.startswith("target")}
    with torch.no_grad():
        expected = plain(**inputs).logits.flatten(0, 1)[batch["target_positions"]]
        family.network.eval()
        assert torch.allclose(family.network(**batch)[0], expected, atol=1e-5)
        assert torch.allclose(again.network(**batch)[0], expected, atol=1e-5)
        with again.untuned():
            base = open_family(folder).network(**batch)[0]
            assert torch.allclose(again.network(**batch)[0], base, atol=1e-6)
    assert (base - expected).abs().max() > 1e-3


def train_steps(family, batch, steps, lr=0.01):
    trained = [p for p in family.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    family.network.train()
    losses = []
    for _ in range(steps):
        loss = family.network(**batch)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", TYPES)
def test_only_the_named_parts_are_trained(checkpoints, kind):
    for parts in (["projector"], ["vision", "projector"], ["language"]):
        family = open_family(checkpoints(kind))
        family.add_method({"name": "full", "parts": parts}, device=CPU)
        before = hashes(family)
        train_steps(family, batch_of(family), 2)
        changed = {part_of(n) for n, value in hashes(family).items() if value != before[n]}
        assert changed == set(parts)


def hashes(family):
    found = {}
    for name, tensor in family.network.model.state_dict().items():
        found[name] = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
    return found


def kept_and_trained(family):
    """Hashes by the base's own names: of its weights, of peft's copies that are trained."""
    kept, copies = {}, {}
    for name, value in hashes(family).items():
        own = re.sub(r"base_model\.model\.|\.base_layer|\.original_module", "", name)
        if "modules_to_save" in name:
            copies[own.replace(".modules_to_save.default", "")] = value
        elif "lora_" not in name:
            kept[own] = value
    return kept, copies


@pytest.mark.parametrize("kind", ["qwen3_vl", "glm4v", "llava"])
def test_parts_beside_an_adapter(checkpoints, kind, tmp_path):
    """A projector trained in full beside LoRA comes back, in plain peft as well.

    Every weight of the base is as it was.
    """
    folder = checkpoints(kind)
    family = open_family(folder)
    before = hashes(family)
    method = family.add_method(LORA | {"parts": ["projector"]}, device=CPU)
    assert method["layers"] == [0, 1]
    batch = batch_of(family)
    train_steps(family, batch, 3)
    kept, trained_copies = kept_and_trained(family)
    assert kept == before
    assert {part_of(name) for name in trained_copies} == {"projector"}
    assert all(value != before[name] for name, value in trained_copies.items())
    card = {"method": method, "base": {"path": str(folder), "fingerprint": family.base_fingerprint}}
    family.save(tmp_path / "adapter", card)
    again = open_family(tmp_path / "adapter")
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    inputs = {k: v for k, v in batch.items() if not k.startswith("target")}
    with torch.no_grad():
        logits = again.network(**batch)[0]
        expected = plain(**inputs).logits.flatten(0, 1)[batch["target_positions"]]
        assert torch.allclose(logits, expected, atol=1e-5)
        with again.untuned():
            base = open_family(folder).network(**batch)[0]
            assert torch.allclose(again.network(**batch)[0], base, atol=1e-6)
    with pytest.raises(UserError, match="exclude each other"):
        other = open_family(folder)
        other.add_method(LORA | {"parts": ["language"]}, device=CPU)


@pytest.mark.parametrize("kind", TYPES)
def test_activation_checkpointing_keeps_the_gradients(checkpoints, kind):
    """Also those of LoRA on the vision part, with everything else frozen."""
    found = []
    for checkpointing in (False, True):
        family = open_family(checkpoints(kind))
        torch.manual_seed(0)
        family.add_method(LORA | {"targets": ["vision"]}, device=CPU)
        family.configure_training(activation_checkpointing=checkpointing)
        names = gradients(family, batch_of(family))
        assert any("lora_B" in name and part_of(name) == "vision" for name in names)
        values = {n: p.grad for n, p in family.network.named_parameters() if p.grad is not None}
        found.append(values)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3_vl", "glm4v", "llava"])
def test_the_estimate_of_activations(checkpoints, kind):
    """Against what autograd keeps, the weights left out."""
    family = open_family(checkpoints(kind))
    family.add_method(LORA, device=CPU)
    row = family.prompts.row(QUESTION, COLORS["red"] * 20)
    batch = family.collate([family.encode(row, None)] * 4)
    weights = {p.untyped_storage().data_ptr() for p in family.network.parameters()}
    kept, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)  # or another tensor might get its address
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    family.network.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        family.network(**batch)
    counts = (batch["input_ids"].numel(), family.target_tokens(batch))
    estimate = family.activation_bytes(*counts)
    assert 0.5 < sum(kept.values()) / estimate < 2
    family.configure_training(activation_checkpointing=True)
    assert family.activation_bytes(*counts) < 0.8 * estimate


def test_qlora_trains_over_4_bits(checkpoints):
    family = open_family(checkpoints("qwen3_vl"))
    family.add_method(LORA, device=CPU, nf4=True)
    layer = family.network.base.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert layer.base_layer.weight.dtype == torch.uint8
    losses = train_steps(family, batch_of(family), 5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", TYPES)
def test_cached_features_stand_in_for_the_images(checkpoints, kind):
    """The same batch, losses and gradients, with images of several sizes and without."""
    found, batches = [], []
    for cached in (False, True):
        family = open_family(checkpoints(kind))
        torch.manual_seed(0)
        family.add_method(LORA, device=CPU)
        images = varied_images(4)
        spec = family.feature_spec()
        assert spec.shape is None and spec.estimated_bytes > 0
        features = [None if one is None else family.image_features([one])[0] for one in images]
        if cached:
            family.drop_vision()
        items = []
        for one, own in zip(images, features):
            tokens = None if one is None else family.inputs.image_tokens(one.size)
            row = family.prompts.row(QUESTION, COLORS["blue"], image_tokens=tokens)
            with_features = cached and own is not None
            items.append(
                family.encode_features(row, own) if with_features else family.encode(row, one)
            )
        family.network.train()
        batches.append(family.collate(items))
        loss = family.network(**batches[-1])[1]
        loss.backward()
        gradients = [p.grad for p in family.network.parameters() if p.grad is not None]
        found.append((loss, gradients, family.effect()))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert len(found[0][1]) == len(found[1][1])
    for ours, theirs in zip(found[0][1], found[1][1]):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert found[0][2] == found[1][2] == 0
    own = {name: value for name, value in batches[0].items() if not name.startswith("pixel_")}
    assert own.keys() == batches[1].keys() - {"features"}
    assert all(torch.equal(value, batches[1][name]) for name, value in own.items())


def test_images_with_features_are_processed_once_a_size(checkpoints, monkeypatch):
    family = open_family(checkpoints("qwen3_vl"))
    family.add_method(LORA, device=CPU)
    row = family.prompts.row(QUESTION, COLORS["red"], image_tokens=0)
    [small, large] = family.image_features([image((96, 64)), image((128, 64))])
    first = family.encode_features(row, small)
    monkeypatch.setattr(type(family.processor.image_processor), "preprocess", None)
    again = family.encode_features(row, small)
    assert first["inputs"].keys() == again["inputs"].keys()
    assert all(torch.equal(v, again["inputs"][name]) for name, v in first["inputs"].items())
    with pytest.raises(TypeError):
        family.encode_features(row, large)


def test_features_are_not_cached_where_the_vision_part_is_trained(checkpoints):
    for method in (
        LORA | {"targets": ["vision"]},
        LORA | {"parts": ["projector"]},
        {"name": "full", "parts": []},
    ):
        family = open_family(checkpoints("qwen3_vl"))
        family.add_method(method, device=CPU)
        assert family.feature_spec() is None


# Answers


@pytest.mark.parametrize("kind", TYPES)
def test_greedy_answers_are_those_of_transformers(checkpoints, kind):
    """Token for token model.generate's, a batch of eight equal to one by one."""
    family = open_family(checkpoints(kind))
    images = varied_images(8)
    questions = [QUESTION * (1 + index % 3) for index in range(8)]
    texts = []
    for question, shown in zip(questions, images):
        texts.append(family.prompts.text((), question, shown is not None))

    batch = tokens_of(family, texts, images)
    for index in range(8):
        assert (
            tokens_of(family, texts[index : index + 1], images[index : index + 1])[0]
            == (batch[index])
        )
        inputs = transformers.ProcessorMixin.apply_chat_template(
            family.processor,
            messages([(questions[index], None)], images[index]),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            enable_thinking=False,
        )
        made = family.network.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected = made[0, inputs["input_ids"].size(1) :].tolist()
        end = family.processor.tokenizer.eos_token_id
        if end in expected:
            expected = expected[: expected.index(end)]
        assert batch[index] == expected


def tokens_of(family, texts, images):
    inputs = family.inputs.of_texts(texts, images, "left")
    rows = [[] for _ in texts]
    steps = generate(
        family.network.model,
        inputs,
        end_ids=family.prompts.end_ids,
        pad=0,
        sampling=GREEDY,
        context_length=2048,
    )
    for step in steps:
        for row, token in zip(rows, step):
            if token is not None:
                row.append(token)
    return rows


def test_answers_stream_end_and_stop(checkpoints):
    assistant = load_assistant(checkpoints("qwen3_vl"), device="cpu")
    streamed = assistant.stream(QUESTION, image(), sampling=GREEDY)
    pieces, truncated = [], None
    while truncated is None:
        try:
            pieces.append(next(streamed))
        except StopIteration as end:
            truncated = end.value
    assert "".join(pieces) == assistant.answer_batch([QUESTION], [image()], GREEDY)[0]
    assert truncated is True

    # Whoever stops listening ends the thread
    import threading

    before = threading.active_count()
    left = assistant.stream(QUESTION, image(), sampling=Sampling(max_new_tokens=1000))
    next(left)
    left.close()
    assert threading.active_count() <= before

    noted = []
    history = [("一" * 300, "二" * 300)] * 2
    answer = assistant.stream(
        QUESTION, image(), history, GREEDY, on_cut=lambda *found: noted.append(found)
    )
    list(answer)
    assert noted == [(2, 0)]


@pytest.mark.parametrize("kind", TYPES)
def test_served_answers_count_the_tokens_of_transformers(checkpoints, kind):
    """What a server's usage says: of the prompt with its image, and of the answer."""
    family = open_family(checkpoints(kind))
    shown = image()
    batch = family.open_batch(2)
    asked = [QUESTION, "有船吗？"]
    joined = [batch.add(Question(Sample(None, text, None, ()), shown, GREEDY)) for text in asked]
    for text, place in zip(asked, joined):
        assert place.prompt_tokens == len(template_ids(family, [(text, None)], shown, True))
        assert place.cut == (0, 0)
    tokens = {}
    while len(batch):
        tokens |= {advance.key: advance.tokens for advance in batch.step()}
    for text, place in zip(asked, joined):
        prompt = family.prompts.text((), text, True)
        assert tokens[place.key] == len(tokens_of(family, [prompt], [shown])[0])


def test_what_a_served_dialogue_leaves_out_is_known(checkpoints):
    history = (("一" * 300, "二" * 300),) * 2
    batch = open_family(checkpoints("qwen3_vl")).open_batch(1)
    joined = batch.add(Question(Sample(None, QUESTION, None, history), image(), GREEDY))
    assert joined.cut == (2, 0)


def test_sampling_is_repeatable_and_independent_of_the_batch(checkpoints):
    assistant = load_assistant(checkpoints("glm4v"), device="cpu")
    hot = Sampling(temperature=2.0, top_p=1, top_k=0, max_new_tokens=6, seed=3)
    images = varied_images(3)
    batch = assistant.answer_batch([QUESTION] * 3, images, hot)
    single = [assistant.answer_batch([QUESTION], [one], hot)[0] for one in images]
    assert batch == single
    other = Sampling(temperature=2.0, top_p=1, top_k=0, max_new_tokens=6, seed=4)
    assert assistant.answer_batch([QUESTION] * 3, images, other) != batch


@pytest.mark.parametrize("kind", TYPES)
def test_scores_are_those_of_transformers(checkpoints, kind):
    """Each text by a pass of its own over its whole row; rows with an image and without."""
    folder = checkpoints(kind)
    family = open_family(folder)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    images = [image(), None, image((200, 120), "red")]
    scenes = ["河流", "机场", "港", "棒球场", "森林", "沙漠", "农田", "桥", "停车场", "池塘"]
    texts = [[f"一个{scene}" for scene in scenes], ["有", "没有"], ["", "河"]]
    found = family.score([Sample(None, QUESTION, None)] * 3, images, texts)
    for shown, of_row, scores in zip(images, texts, found):
        expected = [plain_score(family, plain.eval(), shown, text) for text in of_row]
        assert scores == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def plain_score(family, plain, shown, text):
    """The log probability of a text's bytes, which are the tokens of these checkpoints."""
    inputs = template_inputs(family, [(QUESTION, None)], shown, True)
    length = inputs["input_ids"].size(1)
    ids = family.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    for name, value in inputs.items():
        if value.shape == (1, length):
            added = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            added = added.get(name, torch.zeros_like(ids))
            inputs[name] = torch.cat((value, added.to(value.dtype)), 1)
    steps = plain(**inputs, use_cache=False).logits[0, length - 1 : -1].log_softmax(-1)
    return steps.gather(1, ids.T.long()).sum().item()


def test_pieces_that_go_beyond_the_end_of_a_text_count():
    pieces = Pieces(["停", "车", "停车", "场", "停车场", "停车场里", "场里", "里"])
    assert pieces.endings([2, 3]) == [[4, 5], [3, 6]]
    assert pieces.endings([7]) == [[7]] and pieces.endings([]) == []


def test_a_map_is_as_sure_as_the_network(checkpoints, tmp_path, monkeypatch):
    """Of tiles whose answer names a scene; against the scores of all scenes."""
    assistant = load_assistant(checkpoints("qwen3_vl"), device="cpu")
    answer = "这是一条河流。"
    monkeypatch.setattr(
        assistant, "answer_batch", lambda questions, *_, **__: [answer] * len(questions)
    )
    path = write_scene(tmp_path / "scene.tif", fields([["river", "beach"]], 64))
    _, lines, _ = mapped(path, tmp_path, assistant)
    texts, own = alternatives(answer)
    for line in lines:
        with open_scene(path) as scene:
            shown, _ = scene.read(window_of(line))
        (scores,) = assistant.score(["什么？"], [shown], [texts])
        expected = torch.tensor(scores).softmax(0)[own].item()
        assert line["scene"] == "river"
        assert line["confidence"] == pytest.approx(expected, abs=1e-4)
    assert len({line["confidence"] for line in lines}) == 2


def test_quantized_answers(checkpoints):
    for bits in (8, 4):
        assistant = load_assistant(checkpoints("llava"), device="cpu", bits=bits)
        list(assistant.stream(QUESTION, image(), sampling=GREEDY))
    with pytest.raises(UserError, match="expected 8 or 4"):
        load_assistant(checkpoints("llava"), device="cpu", bits=3)


@pytest.mark.parametrize("bits, least", [(8, 0.999), (4, 0.97)])
@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_5", "glm4v", "llava"])
def test_few_bits_in_a_folder(checkpoints, kind, bits, least, tmp_path):
    """Close to the float weights', the same as quantized while loading; an adapter fits over it."""
    folder, few = checkpoints(kind), tmp_path / "few"
    command = ["--from_pretrained", str(folder), "--output"]
    export_RemoteGLM.main([*command, str(few), "--format", f"int{bits}"])
    plain, stored = open_family(folder), open_family(few)
    batch = batch_of(plain)
    found = {}
    with torch.no_grad():
        for name, family in (
            ("plain", plain),
            ("stored", stored),
            ("loading", open_family(folder, bits=bits)),
        ):
            if name != "stored":
                family.prepare_to_answer()
            found[name] = family.network(**batch)[0]
        assert torch.allclose(found["stored"], dequantized(plain, bits, batch), atol=1e-4)
        similar = torch.cosine_similarity(found["loading"], found["plain"], dim=-1)
        assert least < similar.min() < 1
        stored.prepare_to_answer()
        assert torch.equal(stored.network(**batch)[0], found["loading"])
    answer = [*stored.generate([Sample(None, QUESTION, None)], [image()], GREEDY)]
    again = open_family(folder, bits=bits)
    again.prepare_to_answer()
    assert answer == [*again.generate([Sample(None, QUESTION, None)], [image()], GREEDY)]


def dequantized(family, bits, batch):
    """Logits over float weights that are rounded by plain arithmetic."""
    for name, layer in linear_layers(family.network.base).items():
        if part_of(name) != "language":
            continue
        weight = layer.weight.data
        if bits == 8:
            scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
            layer.weight.data = (weight / scale).round() * scale
            continue
        groups = weight.unflatten(1, (-1, 32))
        low, high = groups.amin(-1, True), groups.amax(-1, True)
        scale = ((high - low) / 15).bfloat16().float()
        zero = (low + 8 * scale).bfloat16().float()
        steps = ((groups - zero) / scale).round().clamp(-8, 7)
        layer.weight.data = (steps * scale + zero).flatten(1)
    return family.network(**batch)[0]


def test_adapters_and_few_bits(trained, tmp_path):
    """Over a quantized base, merged into one; what such a folder cannot do is one line."""
    base = json.loads((trained[1] / "30" / CARD).read_text())["base"]["path"]
    few, merged = tmp_path / "few", tmp_path / "merged"
    command = ["--format", "int8", "--output"]
    export_RemoteGLM.main(["--from_pretrained", base, *command, str(few)])
    export_RemoteGLM.main(["--from_pretrained", str(trained[1]), *command, str(merged)])
    tuned = open_family(trained[1])
    batch = batch_of(tuned)
    with torch.no_grad():
        expected = tuned.network(**batch)[0]
        for family in (open_family(trained[1], base=few), open_family(merged)):
            family.prepare_to_answer()
            got = family.network(**batch)[0]
            assert torch.cosine_similarity(got, expected, dim=-1).min() > 0.999
            with family.untuned():
                untuned = family.network(**batch)[0]
            assert family.has_adapter == (not torch.equal(untuned, got))
    assert load_assistant(merged, device="cpu").prompt == QUESTION

    with pytest.raises(UserError, match="holds 8-bit weights, --quant 4 was asked for"):
        open_family(merged, bits=4)
    for name, options in ((merged, []), (trained[1], ["--base_path", str(few)])):
        with pytest.raises(SystemExit, match="is quantized already"):
            export_RemoteGLM.main(
                ["--from_pretrained", str(name), *options, "--format", "hf"]
                + ["--output", str(tmp_path / "no")]
            )
    options, _ = finetune_RemoteGLM.parse(["--from_pretrained", str(merged), "--device", "cpu"])
    with pytest.raises(UserError, match="its weights are quantized"):
        finetune_RemoteGLM.open_base(options, CPU, torch.float32)


# Scripts


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}"}


def python(*args):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )


SCRIPT = (PROJECT / "finetune_RemoteGLM.py",)


def finetune(base, rows, save, name, *more, ends=0, start=SCRIPT, ranks=1):
    command = [
        *(sys.executable, *start),
        *("--from_pretrained", base),
        *("--train-data", rows / "rows-train.json"),
        *("--save", save, "--experiment-name", name),
        *("--batch-size", 4, "--train-iters", 30, "--lr", 0.02, "--clip-grad", 0),
        *("--eval-interval", 15, "--log-interval", 5, "--keep", 0),
        *("--vision_cache", save / "features"),
        *("--lora_rank", 8, "--lora_alpha", 32, "--lora_targets", "attention", "mlp"),
        *more,
    ]
    result = fork_server.run(command, ranks, env=environment())
    assert result.returncode == ends, result.stderr[-2000:]
    return result.stdout


def readings(folder):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    return losses, [entry["valid"] for entry in entries if "valid" in entry]


@pytest.fixture(scope="session", params=["qwen3_vl", "glm4v"])
def trained(request, checkpoints, colors, tmp_path_factory):
    """What training printed, and the run's folder."""
    save = tmp_path_factory.mktemp("runs")
    more = ["--checkpoint-activations"] if request.param == "glm4v" else []
    printed = finetune(checkpoints(request.param), colors, save, "run", *more)
    return printed, save / "run", more


def test_the_trainer_trains_and_validates(trained):
    printed, folder, _ = trained
    losses, valid = readings(folder)
    assert losses[-1] < losses[0] - 0.1
    assert [set(entry) for entry in valid] == [{"real", "blank", "shuffled"}] * 3
    assert valid[-1]["real"] < valid[0]["real"] - 0.1
    assert len(set(valid[-1].values())) == 3
    assert "encoded 13 images once" in printed  # the same bytes are one image, and a blank one
    assert re.search(r"tokens of an image: \d+ at 256 x 256, \d+ at 768 x 768", printed)
    names = {path.name for path in (folder / "30").iterdir()}
    assert {PEFT_CONFIG, PEFT_ADAPTER, CARD} <= names


# The 23rd step never ends
KILLED = """import os, finetune_RemoteGLM
from model.training.loop import Trainer
train_step = Trainer.train_step
def killed(self, *given):
    if self.progress.step == 22:
        os.kill(os.getpid(), 9)
    return train_step(self, *given)
Trainer.train_step = killed
finetune_RemoteGLM.main()
"""


def test_resuming_is_exact(trained, colors, tmp_path):
    """After kill -9: losses, tensors and optimizer to the last bit those of the whole run."""
    _, folder, more = trained
    again = tmp_path / "run"
    base = json.loads((folder / "30" / CARD).read_text())["base"]["path"]
    finetune(base, colors, tmp_path, "run", *more, ends=-9, start=("-c", KILLED))
    assert readings(again)[0] == readings(folder)[0][:4] and not (again / "30").exists()
    printed = finetune(base, colors, tmp_path, "run", *more, "--resume")
    assert "resumed at step 15" in printed
    assert readings(again) == readings(folder)
    ours, theirs = (load_file(run / "30" / PEFT_ADAPTER) for run in (again, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for file in (folder / "30" / "state").glob("*.safetensors"):
        assert file.read_bytes() == (again / "30" / "state" / file.name).read_bytes()


# All of them in the same two processes
STAGES = """import json, sys, finetune_RemoteGLM
finetune_RemoteGLM.leave_process_group = lambda *_: None
for stage in range(4):
    stage = str(stage)
    finetune_RemoteGLM.main([*sys.argv[1:], "--zero-stage", stage, "--experiment-name", stage])
"""
SHORT = (
    *("--train-iters", 6, "--log-interval", 1, "--clip-grad", 0.5, "--checkpoint-activations"),
    *("--lora_targets", "attention", "mlp", "vision", "--eval-interval", 100),
)


def test_several_processes_train_the_same(checkpoints, colors, tmp_path):
    """LoRA, on the vision part as well, with recomputed activations, over all ZeRO stages."""
    base = checkpoints("qwen3_vl")
    finetune(base, colors, tmp_path, "one", *SHORT)
    expected, _ = readings(tmp_path / "one")
    script = tmp_path / "stages.py"
    script.write_text(STAGES)
    finetune(base, colors, tmp_path, "", *SHORT, "--batch-size", 2, start=[script], ranks=2)
    for stage in range(4):
        assert readings(tmp_path / str(stage))[0] == pytest.approx(expected, abs=1e-4)
        tensors = load_file(tmp_path / str(stage) / "6" / PEFT_ADAPTER)
        assert all(tensor.any() for tensor in tensors.values())
        family = open_family(tmp_path / str(stage))
        assert family.effect() == pytest.approx(family.card["effect"], rel=1e-3)


def test_terminal_and_batch(trained, colors, tmp_path, capsys, monkeypatch):
    checkpoint = ["--from_pretrained", str(trained[1])]
    greedy = ["--temperature", "0", "--repetition_penalty", "1", "--max_length", "160"]
    shown = str(colors / "val-1.png")
    cli_demo.main([*checkpoint, *greedy, "--image", shown, "--base"])
    out = capsys.readouterr().out
    answer = out.split("RemoteGLM：")[1].strip()
    assert "微调前：" in out and answer

    typed = iter([shown, "再说一遍", "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    cli_demo.main([*checkpoint, *greedy])
    assert answer in capsys.readouterr().out

    output = tmp_path / "answers.jsonl"
    cli_demo.main(
        [*checkpoint, *greedy, "--input", str(colors / "rows-val.json"), "--output", str(output)]
    )
    entries = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(entries) == 6 and entries[1]["answer"] == answer


def test_the_page_streams_the_answer(trained, colors, monkeypatch, tmp_path):
    from gradio_client import Client, handle_file
    from test_web import served, text

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for name in ("GRADIO_ANALYTICS_ENABLED", "no_proxy"):  # the page sets them
        monkeypatch.setenv(name, "")
    shown = colors / "val-0.png"
    sampling = Sampling(max_length=256, temperature=0, max_new_tokens=8)
    with served(trained[1], max_new_tokens=8) as (address, assistant):
        client = Client(address, verbose=False)
        client.predict(handle_file(shown), api_name="/image")
        job = client.submit(QUESTION, "alone", 256, 8, 0, 1, 100, 1.2, -1, api_name="/answer")
        sign, *answers = [text(outputs[0][1]) for outputs in job]
        expected = "".join(assistant.assistant.stream(QUESTION, read_image(shown), (), sampling))
    assert sign == "……" and expected and answers[-1] == expected
    assert all(later.startswith(earlier) for earlier, later in zip(answers, answers[1:]))


def test_evaluation_writes_its_report(trained, colors, tmp_path):
    evaluate_RemoteGLM.main(
        ["--from_pretrained", str(trained[1]), "--data", str(colors / "rows-val.json")]
        + ["--output", str(tmp_path / "report"), "--existence", "0", "--resamples", "100"]
    )
    assert (tmp_path / "report" / "report.html").is_file()


PLAIN = """import sys, json, torch, transformers
from PIL import Image
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
folder, shown, question = sys.argv[1:]
model, found = transformers.AutoModelForImageTextToText.from_pretrained(
    folder, dtype=torch.float32, output_loading_info=True)
assert not any(found.values()), found
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
images = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
kind = PROCESSOR_MAPPING[type(model.config)]
kind = type(kind.__name__, (kind,), {"get_attributes": classmethod(
    lambda cls: ["image_processor", "tokenizer"])})
processor = kind(images, tokenizer, chat_template=tokenizer.chat_template)
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image", "image": Image.open(shown)},
                                  {"type": "text", "text": question}]}],
    tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
made = made[0, inputs["input_ids"].shape[1]:]
print(json.dumps(tokenizer.decode(made, skip_special_tokens=True)))
assert not any(name.split(".")[0] in ("model", "sat") for name in sys.modules)
"""


def test_export_loads_in_transformers_alone(trained, colors, tmp_path):
    merged = tmp_path / "merged"
    export_RemoteGLM.main(
        ["--from_pretrained", str(trained[1]), "--format", "hf", "--output", str(merged)]
    )
    shown = colors / "val-2.png"
    script = tmp_path / "plain.py"
    script.write_text(PLAIN)
    result = subprocess.run(
        [sys.executable, script, merged, shown, QUESTION],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout.splitlines()[-1]).strip()
    for folder in (trained[1], merged):
        assistant = load_assistant(folder, device="cpu")
        assert assistant.answer_batch([QUESTION], [read_image(shown)], GREEDY) == [answer]
    assert assistant.prompt == QUESTION


def test_full_training_writes_a_folder_of_transformers(checkpoints, colors, tmp_path):
    finetune(
        checkpoints("qwen3_vl"),
        *(colors, tmp_path, "full", "--method", "full", "--trainable", "projector", "language"),
        *("--train-iters", 4, "--eval-interval", 4),
    )
    before = load_file(checkpoints("qwen3_vl") / "model.safetensors")
    after = load_file(tmp_path / "full" / "4" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {part_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"projector", "language"}
    assert load_assistant(tmp_path / "full", device="cpu").prompt == QUESTION


def test_training_starts_from_an_adapter(trained, colors, tmp_path):
    finetune(trained[1], colors, tmp_path, "on", "--train-iters", 5, "--eval-interval", 5)
    _, valid = readings(tmp_path / "on")
    assert valid[0]["real"] == pytest.approx(readings(trained[1])[1][-1]["real"], abs=1e-4)


ANSWER_ALONE = """import sys
from model import load_assistant, read_image, Sampling
assistant = load_assistant(sys.argv[1], device="cpu")
list(assistant.stream("有什么？", read_image(sys.argv[2]), sampling=Sampling(max_new_tokens=2)))
found = {name.split(".")[0] for name in sys.modules}
print(sorted(found & {"sat", "deepspeed", "torchvision"}))
print([name for name in sys.modules if name.startswith("model.visualglm")])
"""


def test_answering_imports_neither_sat_nor_deepspeed(trained, colors):
    result = python("-c", ANSWER_ALONE, trained[1], colors / "val-1.png")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[-2:] == ["[]", "[]"]


def test_visualglm_imports_nothing_of_this(tiny_checkpoint):
    code = "import sys; from model import load_assistant; load_assistant(sys.argv[1]); print("
    code += "[name for name in sys.modules if name.startswith('model.hf')])"
    result = python("-c", code, tiny_checkpoint)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr[-2000:]


# Adapters of other programs


def test_an_adapter_that_peft_wrote(checkpoints, tmp_path):
    folder = checkpoints("qwen3_vl")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=r".*language_model.*\.(q_proj|v_proj)",
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    family = open_family(tmp_path / "theirs")
    batch = batch_of(family)
    inputs = {k: v for k, v in batch.items() if not k.startswith("target")}
    with torch.no_grad():
        expected = theirs(**inputs).logits.flatten(0, 1)[batch["target_positions"]]
        assert torch.allclose(family.network(**batch)[0], expected, atol=1e-5)
        with family.untuned():
            assert not torch.allclose(family.network(**batch)[0], expected, atol=1e-3)


def test_training_starts_from_an_adapter_that_peft_wrote(checkpoints, colors, tmp_path):
    """Its first loss is plain peft's, its settings stay, and plain peft reads what is written."""
    folder = shutil.copytree(checkpoints("qwen3_vl"), tmp_path / "base")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6,
        lora_alpha=12,
        lora_dropout=0.2,
        target_modules=r".*language_model.*\.(q_proj|up_proj)",
        use_rslora=True,
        modules_to_save=["merger"],
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="--lora_targets: the adapter .* says itself where"):
        resolved(tmp_path / "theirs", "--lora_targets", "mlp")
    own = ("--lora_rank", 6, "--lora_alpha", 12, "--lora_targets", "attention")
    options = ("--train-iters", 4, "--eval-interval", 4, *own)
    finetune(tmp_path / "theirs", colors, tmp_path, "run", *options)

    rows = json.loads((colors / "rows-val.json").read_text(encoding="utf-8"))
    family = open_family(folder)
    items = []
    for row in rows:
        shown = read_image(colors / row["img"])
        tokens = family.inputs.image_tokens(shown.size)
        rendered = family.prompts.row(row["prompt"], row["label"], image_tokens=tokens)
        items.append(family.encode(rendered, shown))
    batch = family.collate(items)
    inputs = {k: v for k, v in batch.items() if not k.startswith("target")}
    with torch.no_grad():
        logits = theirs(**inputs).logits.flatten(0, 1)[batch["target_positions"]]
    expected = torch.nn.functional.cross_entropy(logits, batch["targets"]).item()
    assert readings(tmp_path / "run")[1][0]["real"] == pytest.approx(expected, abs=1e-4)

    saved = tmp_path / "run" / "4"
    written = json.loads((saved / PEFT_CONFIG).read_text())
    for key in ("r", "lora_alpha", "target_modules", "use_rslora", "modules_to_save"):
        assert written[key] == getattr(config, key)
    before, after = (load_file(path / PEFT_ADAPTER) for path in (tmp_path / "theirs", saved))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(plain, saved).eval()
    with torch.no_grad():
        expected = plain(**inputs).logits.flatten(0, 1)[batch["target_positions"]]
        assert torch.allclose(open_family(saved).network(**batch)[0], expected, atol=1e-5)
    # and from there, the base under another path
    folder.rename(tmp_path / "moved")
    options = resolved(saved, "--base-path", tmp_path / "moved")
    further, _ = finetune_RemoteGLM.open_base(options, CPU, torch.float32)
    started = further.trained_tensors()
    assert started.keys() == after.keys()
    assert all(torch.equal(started[name], after[name]) for name in after)
    assert sum(p.requires_grad for p in further.network.parameters()) == len(after)


def resolved(base, *options):
    argv = ["--from_pretrained", str(base), "--device", "cpu", *map(str, options)]
    options, _ = finetune_RemoteGLM.parse(argv)
    return finetune_RemoteGLM.as_resolved(options, torch.float32)


def test_an_adapter_with_names_of_earlier_releases(checkpoints, tmp_path):
    """As peft wrote it over LLaVA before transformers 5."""
    folder = checkpoints("llava")
    family = open_family(folder)
    method = family.add_method(LORA, device=CPU)
    batch = batch_of(family)
    train_steps(family, batch, 3)
    card = {"method": method, "base": {"path": str(folder), "fingerprint": family.base_fingerprint}}
    family.save(tmp_path / "adapter", card)
    path = tmp_path / "adapter" / PEFT_ADAPTER
    now, before = "model.model.language_model.", "model.language_model.model."
    old = {name.replace(now, before): tensor for name, tensor in load_file(path).items()}
    save_file(old, path)
    config = json.loads((path.parent / PEFT_CONFIG).read_text())
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
    config["target_modules"] += ["up_proj", "down_proj"]
    config["exclude_modules"] = ".*vision_tower.*"
    (path.parent / PEFT_CONFIG).write_text(json.dumps(config))
    with torch.no_grad():
        family.network.eval()
        again = open_family(path.parent)
        assert torch.allclose(again.network(**batch)[0], family.network(**batch)[0], atol=1e-6)


def test_adapters_that_do_not_fit(trained, checkpoints, tmp_path):
    saved = trained[1] / "30"
    for number, change in enumerate((lambda name: f"x.{name}", lambda name: name)):
        folder = shutil.copytree(saved, tmp_path / str(number))
        (folder / "complete.json").unlink()
        tensors = load_file(saved / PEFT_ADAPTER)
        named = {change(name): tensor for name, tensor in tensors.items()}
        if number:
            named.popitem()
            named = {name: tensor.clone() for name, tensor in named.items()}
        save_file(named, folder / PEFT_ADAPTER)
        with pytest.raises(UserError, match=r"\d+ tensors do not fit the network: ") as error:
            open_family(folder)
        assert "\n" not in str(error.value)

    with pytest.raises(UserError, match="is not the base it was trained on"):
        open_family(saved, base=checkpoints("llava"))
    folder = shutil.copytree(saved, tmp_path / "foreign")
    (folder / CARD).unlink()
    (folder / "complete.json").unlink()
    with pytest.raises(UserError, match="does not fit this base"):
        open_family(folder, base=checkpoints("smolvlm"))
    (folder / PEFT_ADAPTER).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_family(folder)


# Does the adapter do anything?


def test_the_card_keeps_what_the_adapter_does(trained):
    """As large as the change of logits that plain peft finds on the same row."""
    printed, folder, _ = trained
    card = json.loads((folder / "30" / CARD).read_text())
    assert f"changes the logits of an answer by {card['effect']:.3g}" in printed
    base = card["base"]["path"]
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, folder / "30").eval()
    inputs = transformers.ProcessorMixin.apply_chat_template(
        open_family(base).processor,
        messages([(QUESTION, None)], probe_image()),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    with torch.no_grad():
        tuned = model(**inputs).logits[0, -1]
        with model.disable_adapter():
            change = tuned - model(**inputs).logits[0, -1]
    assert card["effect"] == pytest.approx(change.pow(2).mean().sqrt().item(), rel=1e-3)


def test_an_adapter_that_does_nothing_is_an_error(trained, tmp_path, monkeypatch):
    saved = trained[1] / "30"

    def changed(name, tensors=None, **values):
        folder = shutil.copytree(saved, tmp_path / name)
        (folder / "complete.json").unlink()
        path = folder / PEFT_CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        if tensors:
            save_file(tensors, folder / PEFT_ADAPTER)
        return folder

    zeros = {name: torch.zeros_like(t) for name, t in load_file(saved / PEFT_ADAPTER).items()}
    one_line(changed("zeros", zeros), "it changes no answer of its base")
    one_line(changed("less", lora_alpha=0.01), "changes the logits of its base by")

    monkeypatch.setattr(peft.LoraModel, "merge_and_unload", lambda self, *_, **__: self.unload())
    with pytest.raises(SystemExit, match="merging would change its answers"):
        export_RemoteGLM.main(
            ["--from_pretrained", str(saved), "--format", "hf", "--output", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()


def test_training_that_changes_nothing_ends_in_an_error(checkpoints, colors, tmp_path):
    with pytest.raises(AssertionError, match="does nothing: its weights did not change"):
        finetune(checkpoints("llava"), colors, tmp_path, "none", "--lr", 1e-30)
    assert (tmp_path / "none" / "30" / PEFT_ADAPTER).is_file()


# Errors


def one_line(folder, match):
    with pytest.raises(UserError, match=match) as error:
        open_family(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "config, match",
    [
        ({"model_type": "llama"}, "does not answer questions about images"),
        ({"model_type": "clip"}, "does not answer questions about images"),
        ({"model_type": "no_such_type"}, "does not know it"),
        (
            {"model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling.M"}},
            "foreign code is never run",
        ),
        (
            {"model_type": "qwen9_vl", "transformers_version": "99.0.0"},
            "written by 99.0.0: pip install -U transformers",
        ),
        ({"model_type": 3}, "expected a name"),
    ],
)
def test_bases_that_cannot_be_opened(tmp_path, config, match):
    (tmp_path / "config.json").write_text(json.dumps(config))
    one_line(tmp_path, match)
    with pytest.raises(UserError):
        family_of(tmp_path)


def test_folders_that_lack_something(checkpoints, tmp_path):
    base = checkpoints("qwen3_vl")

    def damaged(name, change):
        folder = shutil.copytree(base, tmp_path / name)
        change(folder)
        return folder

    def drop(*names):
        return lambda folder: [(folder / name).unlink() for name in names]

    def edit(folder, name, **values):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    def lose(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("model.language_model.norm.weight")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    def cut(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:2000])

    cases = {
        "template": (drop("chat_template.jinja"), "no chat template"),
        "images": (drop("preprocessor_config.json", "processor_config.json"), "image processor"),
        "words": (drop("tokenizer.json"), "no tokenizer"),
        "weights": (drop("model.safetensors"), "no weights"),
        "lost": (lose, "missing model.language_model.norm.weight"),
        "cut": (cut, "the weights cannot be read"),
        "field": (lambda f: edit(f, "config.json", text_config=3), "network configuration"),
        "depth": (
            lambda f: edit(
                f, "config.json", text_config={"hidden_size": 64, "num_hidden_layers": 3}
            ),
            "tensors do not fit|network configuration|cannot be read",
        ),
    }
    for name, (change, match) in cases.items():
        one_line(damaged(name, change), match)


def test_choices_that_this_family_lacks(checkpoints, colors, tmp_path):
    for option, match in (
        (("--method", "ptuning"), "--method ptuning: expected lora, qlora, full"),
        (("--lora_targets", "qformer"), "--lora_targets qformer: expected attention"),
        (("--trainable", "qformer"), "--trainable qformer: expected vision"),
        (("--patch-dropout", "0.5"), "--patch-dropout is not there for this base"),
        (("--layer_range", "7"), "the network has layers 0-1"),
    ):
        options, _ = finetune_RemoteGLM.parse(
            ["--from_pretrained", str(checkpoints("llava")), "--device", "cpu", *option]
        )
        with pytest.raises(UserError, match=match):
            finetune_RemoteGLM.open_base(options, CPU, torch.float32)


def test_visualglm_has_no_pixel_bounds(tiny_checkpoint):
    with pytest.raises(UserError, match="one fixed size"):
        open_checkpoint(tiny_checkpoint, device="cpu", pixels=(None, 1000))


def test_limits_object_is_kept(checkpoints):
    """The trainer's limits reach the rows."""
    family = open_family(checkpoints("qwen3_vl"))
    row = family.render(Sample(None, QUESTION, COLORS["red"]), Limits(None, 5))
    assert row.answer_cut and np.array(row.target).size == 4
    assert set(KINDS) == set(TYPES)
