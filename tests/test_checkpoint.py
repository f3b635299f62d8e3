"""Checkpoints: what is written comes back equal, what is wrong is named in one line."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import UserError, checkpoint

CPU = {"device": "cpu", "dtype": "float32"}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 509, 510, 20, 21]])
PREFIX = torch.tensor([9])


@torch.no_grad()
def logits(network):
    return network.eval()(IDS, PREFIX)[0]


def adapted(tiny_checkpoint, method):
    """A base with a randomly filled adapter."""
    network, words, config, mark = checkpoint.load_base(tiny_checkpoint, None, torch.device("cpu"), torch.float32)
    checkpoint.add_method(network, method)
    torch.manual_seed(3)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name in checkpoint.adapter_names(network):
            parameters[name].normal_(std=0.3)
    return network, words, config, mark


def save_adapter(folder, tiny_checkpoint, method):
    network, words, config, mark = adapted(tiny_checkpoint, method)
    tensors = network.state_dict()
    card = {"format": 1, "method": method, "base": {"path": str(tiny_checkpoint), "fingerprint": mark}, "prompt": "有什么？"}
    checkpoint.write_folder(folder, card=card, config=config, tokenizer=words,
                            tensors={name: tensors[name] for name in checkpoint.adapter_names(network)})
    return network


LORA = {"name": "lora", "rank": 3, "alpha": 6.0, "layers": [1]}
PTUNING = {"name": "ptuning", "length": 5}


def test_full_round_trip(tiny_checkpoint, tmp_path):
    network, words, card = checkpoint.load(tiny_checkpoint, **CPU)
    checkpoint.write_folder(tmp_path / "again", card=card, config=vars(network.config), tokenizer=words,
                            tensors=network.state_dict())
    again = checkpoint.load(tmp_path / "again", **CPU)[0]
    assert torch.equal(logits(network), logits(again))
    assert all(file.stat().st_mode & 0o044 for file in (tmp_path / "again").iterdir())  # others may read it
    half = checkpoint.load(tmp_path / "again", device="cpu", dtype="bfloat16")[0]
    assert half.dtype == torch.bfloat16 and (logits(half).float() - logits(network)).abs().max() < 0.2


@pytest.mark.parametrize("method", [LORA, PTUNING], ids=["lora", "ptuning"])
def test_adapter_round_trip(tiny_checkpoint, tmp_path, method):
    network = save_adapter(tmp_path / "run" / "20", tiny_checkpoint, method)
    base = logits(checkpoint.load(tiny_checkpoint, **CPU)[0])
    (tmp_path / "run" / "latest").write_text("20")
    loaded, _, card = checkpoint.load(tmp_path / "run", **CPU)
    assert torch.equal(logits(loaded), logits(network)) and card["prompt"] == "有什么？"
    assert (logits(loaded) - base).abs().max() > 1e-2
    with checkpoint.without_adapter(loaded):
        assert torch.equal(logits(loaded), base)
    assert torch.equal(logits(loaded), logits(network))
    stored = load_file(tmp_path / "run" / "20" / checkpoint.ADAPTER)
    assert sorted(stored) == sorted(checkpoint.adapter_names(network)) and len(stored) == {"lora": 8, "ptuning": 2}[method["name"]]


def test_lora_is_weight_plus_scaled_product(tiny_checkpoint):
    """The adapter's output against weights merged by hand: W + alpha / r * B A, for q, k, v and the output of layer 1."""
    network, *_ = adapted(tiny_checkpoint, LORA)
    plain, *_ = checkpoint.load_base(tiny_checkpoint, None, torch.device("cpu"), torch.float32)
    attention, merged = network.transformer.layers[1].attention, plain.transformer.layers[1].attention
    with torch.no_grad():
        for name in ("query_key_value", "dense"):
            lora = getattr(attention, name)
            getattr(merged, name).weight += torch.cat([b @ a * (6 / 3) for a, b in zip(lora.matrix_A, lora.matrix_B)])
    assert torch.allclose(logits(network), logits(plain), atol=1e-5)


def test_layers_outside_the_network(tiny_checkpoint):
    with pytest.raises(UserError, match=r"layer_range names layers \[7\]; the network has layers 0-1"):
        adapted(tiny_checkpoint, LORA | {"layers": [0, 7]})


def test_failed_write_keeps_the_old_folder(tiny_checkpoint, tmp_path, monkeypatch):
    network = save_adapter(tmp_path / "a", tiny_checkpoint, LORA)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.shutil, "copy", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        save_adapter(tmp_path / "a", tiny_checkpoint, LORA)
    monkeypatch.undo()
    assert torch.equal(logits(checkpoint.load(tmp_path / "a", **CPU)[0]), logits(network))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def sat_folder(base, folder, content):
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    for name in (checkpoint.CONFIG, checkpoint.VOCABULARY):
        shutil.copy(base / name, folder)
    (folder / "1" / "mp_rank_00_model_states.pt").write_bytes(content)


def test_sat_layout(tiny_checkpoint, tmp_path):
    """A SAT folder, with the buffer that the official code stores."""
    sat_folder(tiny_checkpoint, tmp_path / "sat", b"")
    module = load_file(tiny_checkpoint / checkpoint.FULL) | {"mixins.chatglm-attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save({"module": module}, tmp_path / "sat" / "1" / "mp_rank_00_model_states.pt")
    assert torch.equal(logits(checkpoint.load(tmp_path / "sat", **CPU)[0]), logits(checkpoint.load(tiny_checkpoint, **CPU)[0]))


def change_tensors(folder, edit):
    tensors = load_file(folder / checkpoint.FULL)
    edit(tensors)
    save_file(tensors, folder / checkpoint.FULL)


def change_config(folder, **new):
    config = json.loads((folder / checkpoint.CONFIG).read_text()) | new
    (folder / checkpoint.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


NORM = "transformer.final_layernorm.weight"
DAMAGE = {
    "no weights": (lambda f: (f / checkpoint.FULL).unlink(), "no weights"),
    "cut short": (lambda f: (f / checkpoint.FULL).write_bytes((f / checkpoint.FULL).read_bytes()[:5000]), "cannot be read"),
    "git lfs pointer": (lambda f: (f / checkpoint.FULL).write_text("version https://git-lfs.github.com/spec/v1\n"), "cannot be read"),
    "missing tensor": (lambda f: change_tensors(f, lambda t: t.pop(NORM)), f"1 tensors do not fit.*missing {NORM}"),
    "unexpected tensor": (lambda f: change_tensors(f, lambda t: t.update(x=torch.ones(1))), "unexpected x"),
    "wrong shape": (lambda f: change_tensors(f, lambda t: t.update({NORM: torch.ones(3)})), r"has shape \[3\], expected \[48\]"),
    "config without keys": (lambda f: change_config(f, eva_args=None), "lacks eva_args"),
    "config not JSON": (lambda f: (f / checkpoint.CONFIG).write_text("{"), "not readable as JSON"),
    "no config": (lambda f: (f / checkpoint.CONFIG).unlink(), "no such file"),
    "no vocabulary": (lambda f: (f / checkpoint.VOCABULARY).unlink(), "vocabulary not found"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder(tiny_checkpoint, tmp_path, damage):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    break_it, words = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(UserError, match=words) as caught:
        checkpoint.load(folder, **CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"", b"\x80\x02cos\nsystem\n."], ids=["html", "empty", "unsafe pickle"])
def test_damaged_sat_file(tiny_checkpoint, tmp_path, content):
    sat_folder(tiny_checkpoint, tmp_path / "sat", content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        checkpoint.load(tmp_path / "sat", **CPU)
    assert "\n" not in str(caught.value)


def test_adapter_and_its_base(tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    network = save_adapter(tmp_path / "adapter", base, LORA)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="its base is not at .*base; name it with --base_path"):
        checkpoint.load(tmp_path / "adapter", **CPU)
    assert torch.equal(logits(checkpoint.load(tmp_path / "adapter", base=moved, **CPU)[0]), logits(network))
    whole = (tmp_path / "adapter" / checkpoint.ADAPTER).read_bytes()
    (tmp_path / "adapter" / checkpoint.ADAPTER).write_bytes(whole[:200])
    with pytest.raises(UserError, match="adapter.safetensors cannot be read"):
        checkpoint.load(tmp_path / "adapter", base=moved, **CPU)
    (tmp_path / "adapter" / checkpoint.ADAPTER).write_bytes(whole)
    change_tensors(moved, lambda t: t.update({NORM: t[NORM] + 1}))
    with pytest.raises(UserError, match="is not the base it was trained on"):
        checkpoint.load(tmp_path / "adapter", base=moved, **CPU)


@pytest.mark.parametrize("given, words", [({"device": "tpu9"}, "device 'tpu9' cannot be used"), ({"dtype": "int3"}, "dtype 'int3'")])
def test_device_and_dtype(tiny_checkpoint, given, words):
    with pytest.raises(UserError, match=words):
        checkpoint.load(tiny_checkpoint, **CPU | given)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.load(tmp_path / "nowhere", **CPU)
