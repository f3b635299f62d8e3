"""Checkpoints: what is written comes back equal, what is wrong is named in one line."""

import json
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from conftest import load
from safetensors.torch import load_file, save_file

from model import UserError, load_assistant
from model.opening import export_checkpoint
from model.quantization import QuantizedLinear
from model.visualglm import checkpoint, export
from model.visualglm.checkpoint import open_stored
from model.visualglm.layouts import read_config
from model.visualglm.lora import adapter_names, add_method, without_adapter
from model.visualglm.tokenizer import VOCABULARY
from model.weight_files import ADAPTER, CONFIG, FULL

CPU = {"device": "cpu", "dtype": "float32"}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 509, 510, 20, 21]])
PREFIX = torch.tensor([9])


@torch.no_grad()
def logits(network):
    """With a picture, so that every tensor of the network has a say."""
    size = network.config.eva_args["image_size"][0]
    pixels = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    ids = torch.cat([IDS[:, :1], torch.full((1, 8), 3), IDS[:, 1:]], 1)
    return network.eval()(ids, PREFIX + 8, pixels=pixels, image_start=1)[0].float()


def adapted(base, method):
    """A base with a randomly filled adapter."""
    opened = checkpoint.open_stored(base)
    network, words = checkpoint.load_base(opened, dtype=torch.float32)
    add_method(network, method)
    torch.manual_seed(3)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name in adapter_names(network):
            parameters[name].normal_(std=1.5 * network.config.hidden_size**-0.5)
    return network, words, opened


def save_adapter(folder, base, method):
    network, words, opened = adapted(base, method)
    tensors = network.state_dict()
    card = {
        "format": 1,
        "method": method,
        "base": {"path": str(base), "fingerprint": opened.fingerprint()},
        "prompt": "有什么？",
    }
    checkpoint.write_folder(
        folder,
        card=card,
        config=opened.config,
        tokenizer=words,
        tensors={name: tensors[name] for name in adapter_names(network)},
    )
    return network


LORA = {"name": "lora", "rank": 3, "alpha": 6.0, "layers": [1]}
PTUNING = {"name": "ptuning", "length": 5}


def test_full_round_trip(tiny_checkpoint, tmp_path):
    network, words, card = load(tiny_checkpoint, **CPU)
    checkpoint.write_folder(
        tmp_path / "again",
        card=card,
        config=vars(network.config),
        tokenizer=words,
        tensors=network.state_dict(),
    )
    again = load(tmp_path / "again", **CPU)[0]
    assert torch.equal(logits(network), logits(again))
    assert all(
        file.stat().st_mode & 0o044 for file in (tmp_path / "again").iterdir()
    )  # others may read it
    half = load(tmp_path / "again", device="cpu", dtype="bfloat16")[0]
    assert half.dtype == torch.bfloat16 and (logits(half) - logits(network)).abs().max() < 0.2


@pytest.mark.parametrize("method", [LORA, PTUNING], ids=["lora", "ptuning"])
def test_adapter_round_trip(tiny_checkpoint, tmp_path, method):
    network = save_adapter(tmp_path / "run" / "20", tiny_checkpoint, method)
    base = logits(load(tiny_checkpoint, **CPU)[0])
    (tmp_path / "run" / "latest").write_text("20")
    loaded, _, card = load(tmp_path / "run", **CPU)
    assert torch.equal(logits(loaded), logits(network)) and card["prompt"] == "有什么？"
    assert (logits(loaded) - base).abs().max() > 1e-2
    with without_adapter(loaded):
        assert torch.equal(logits(loaded), base)
    assert torch.equal(logits(loaded), logits(network))
    stored = load_file(tmp_path / "run" / "20" / ADAPTER)
    assert (
        sorted(stored) == sorted(adapter_names(network))
        and len(stored) == {"lora": 8, "ptuning": 2}[method["name"]]
    )


def test_lora_is_weight_plus_scaled_product(tiny_checkpoint):
    """The adapter's output against weights merged by hand: W + alpha / r * B A, for q, k, v and the
    output of layer 1.
    """
    network, *_ = adapted(tiny_checkpoint, LORA)
    plain, _ = checkpoint.load_base(tiny_checkpoint, dtype=torch.float32)
    attention, merged = (
        network.transformer.layers[1].attention,
        plain.transformer.layers[1].attention,
    )
    with torch.no_grad():
        for name in ("query_key_value", "dense"):
            lora = getattr(attention, name)
            getattr(merged, name).weight += torch.cat(
                [b @ a * (6 / 3) for a, b in zip(lora.matrix_A, lora.matrix_B)]
            )
    assert torch.allclose(logits(network), logits(plain), atol=1e-5)


def test_layers_outside_the_network(tiny_checkpoint):
    with pytest.raises(
        UserError, match=r"layer_range names layers \[7\]; the network has layers 0-1"
    ):
        adapted(tiny_checkpoint, LORA | {"layers": [0, 7]})


def test_failed_write_keeps_the_old_folder(tiny_checkpoint, tmp_path, monkeypatch):
    network = save_adapter(tmp_path / "a", tiny_checkpoint, LORA)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.shutil, "copy", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        save_adapter(tmp_path / "a", tiny_checkpoint, LORA)
    monkeypatch.undo()
    assert torch.equal(logits(load(tmp_path / "a", **CPU)[0]), logits(network))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def sat_folder(base, folder, content):
    """A SAT folder whose weight file holds these bytes."""
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    for name in (CONFIG, VOCABULARY):
        shutil.copy(base / name, folder)
    (folder / "1" / "mp_rank_00_model_states.pt").write_bytes(content)


def hf_folder(base, folder, kind="bin", shards=3):
    """The tiny base as Hugging Face's code stores it, written here by the rules of the reference's
    README.
    """
    folder.mkdir()
    config = json.loads((base / CONFIG).read_text())
    heads = config["num_attention_heads"]
    config["eva_config"], config["qformer_config"] = (
        config.pop("eva_args"),
        config.pop("qformer_args"),
    )
    (folder / "config.json").write_text(
        json.dumps(config | {"residual_layers": config["num_layers"]})
    )
    shutil.copy(base / VOCABULARY, folder)
    tensors = {"transformer.layers.0.attention.rotary_emb.inv_freq": torch.ones(3).half()}
    for name, tensor in load_file(base / FULL).items():
        if name.startswith("transformer.layers.") and ".query_key_value." in name:
            part, head, rest = 3, heads, tensor.shape[0] // 3 // heads
            rows = [
                tensor[(p * head + h) * rest : (p * head + h + 1) * rest]
                for h in range(head)
                for p in range(part)
            ]
            tensor = torch.cat(rows)
        if name.startswith("mixins.eva.model."):
            name = "image_encoder." + name.removeprefix("mixins.eva.model.")
        tensors["lm_head.weight" if name == "mixins.chatglm-final.lm_head.weight" else name] = (
            tensor
        )
    stem, ending = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    weight_map = {}
    for index in range(shards):
        file = (
            f"{stem}-{index + 1:05d}-of-{shards:05d}.{ending}" if shards > 1 else f"{stem}.{ending}"
        )
        part = dict(list(tensors.items())[index::shards])
        weight_map |= dict.fromkeys(part, file)
        (torch.save if kind == "bin" else save_file)(part, folder / file)
    if shards > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    return folder


def without_frequencies(folder):
    """The weights of an hf export; its rotary frequencies are tested in test_official.py."""
    tensors = load_file(next(folder.glob("*.safetensors")))
    return {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}


def test_sat_layout(tiny_checkpoint, tmp_path):
    """A SAT folder, with the buffer that the official code stores."""
    sat_folder(tiny_checkpoint, tmp_path / "sat", b"")
    module = load_file(tiny_checkpoint / FULL) | {
        "mixins.chatglm-attn.rotary_emb.inv_freq": torch.ones(4)
    }
    torch.save({"module": module}, tmp_path / "sat" / "1" / "mp_rank_00_model_states.pt")
    assert torch.equal(
        logits(load(tmp_path / "sat", **CPU)[0]),
        logits(load(tiny_checkpoint, **CPU)[0]),
    )


@pytest.mark.parametrize("kind, shards", [("bin", 3), ("bin", 1), ("safetensors", 2)])
def test_huggingface_layout(tiny_checkpoint, tmp_path, kind, shards):
    folder = hf_folder(tiny_checkpoint, tmp_path / "hf", kind, shards)
    assert torch.equal(
        logits(load(folder, **CPU)[0]),
        logits(load(tiny_checkpoint, **CPU)[0]),
    )
    assert open_stored(folder).fingerprint() == open_stored(tiny_checkpoint).fingerprint()


def test_huggingface_code_scales_residuals_as_for_28_layers(tiny_checkpoint, tmp_path):
    folder = hf_folder(tiny_checkpoint, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    del config["residual_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    network = load(folder, **CPU)[0]
    assert network.config.residual_layers == 28
    assert not torch.allclose(logits(network), logits(load(tiny_checkpoint, **CPU)[0]), atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_full_checkpoint_of_the_ancestor(tiny_checkpoint, tmp_path, method):
    """With everything that SAT and DeepSpeed store beside the weights."""
    chosen = {"lora": LORA | {"alpha": 1.0}, "ptuning": PTUNING}[method]
    network, *_ = adapted(tiny_checkpoint, chosen)
    sat_folder(tiny_checkpoint, tmp_path / "run", b"")
    state = {
        "module": network.state_dict(),
        "iteration": 300,
        "client_lr_scheduler": {"start_lr": 1e-4, "decay_style": "cosine"},
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(legacy=True),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "optimizer": None,
        "skipped_steps": 0,
        "ds_version": "0.9.5",
        "sparse_tensor_module_names": {"a", "b"},
        "ds_config": {"train_batch_size": 4},
        "param_shapes": [{"a": torch.Size([2, 3])}],
        "buffer_names": [],
    }
    torch.save(state, tmp_path / "run" / "1" / "mp_rank_00_model_states.pt")
    loaded, _, card = load(tmp_path / "run", **CPU)
    assert (
        card["method"]
        == {"lora": {"name": "lora", "rank": 3, "alpha": 1.0, "layers": [1]}, "ptuning": PTUNING}[
            method
        ]
    )
    assert torch.equal(logits(loaded), logits(network))
    with without_adapter(loaded):
        assert torch.equal(logits(loaded), logits(load(tiny_checkpoint, **CPU)[0]))


def test_numpy_1_random_state():
    """The same pickle as numpy 1 wrote it names the function's old place."""
    old = pickle.dumps(np.random.get_state(), protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy.core.multiarray" in old
    allowed = {f"{entry[1]}" for entry in checkpoint.RANDOM_STATE if isinstance(entry, tuple)}
    assert allowed == {"numpy.core.multiarray._reconstruct"}


@pytest.mark.parametrize("layout", ["sat", "hf-bin", "hf-safetensors"])
def test_adapter_over_every_layout(tiny_checkpoint, tmp_path, layout):
    network = save_adapter(tmp_path / "adapter", tiny_checkpoint, LORA)
    if layout == "sat":
        sat_folder(tiny_checkpoint, tmp_path / "base", b"")
        torch.save(
            {"module": load_file(tiny_checkpoint / FULL)},
            tmp_path / "base" / "1" / "mp_rank_00_model_states.pt",
        )
    else:
        hf_folder(tiny_checkpoint, tmp_path / "base", layout.removeprefix("hf-"))
    loaded = load(tmp_path / "adapter", base=tmp_path / "base", **CPU)[0]
    assert torch.equal(logits(loaded), logits(network))


class TestExport:
    @pytest.mark.parametrize("form", ["sat", "hf"])
    def test_merged(self, tiny_checkpoint, tmp_path, form, monkeypatch):
        monkeypatch.setattr(export, "SHARD_BYTES", 2e5)
        network = save_adapter(tmp_path / "adapter", tiny_checkpoint, LORA)
        loaded, words, card = load(tmp_path / "adapter", **CPU)
        (export.to_sat if form == "sat" else export.to_huggingface)(
            tmp_path / "out", loaded, words, card
        )
        again, _, kept = load(tmp_path / "out", **CPU)
        assert torch.allclose(logits(again), logits(network), atol=1e-5)
        assert torch.equal(logits(again), logits(loaded))  # merged in place: the very same weights
        assert not adapter_names(again) and kept["prompt"] == "有什么？"
        assert load_assistant(tmp_path / "out", device="cpu").prompt == "有什么？"
        if form == "hf":
            assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1

    def test_huggingface_names_and_rows(self, tiny_checkpoint, tmp_path):
        """Against the layout written by hand above."""
        loaded, words, card = load(tiny_checkpoint, **CPU)
        export.to_huggingface(tmp_path / "ours", loaded, words, card)
        theirs = torch.load(
            hf_folder(tiny_checkpoint, tmp_path / "theirs", "bin", 1) / "pytorch_model.bin",
            weights_only=True,
        )
        ours = without_frequencies(tmp_path / "ours")
        assert set(ours) == {name for name in theirs if not name.endswith("inv_freq")}
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

    def test_peft(self, tiny_checkpoint, tmp_path):
        """The peft library merges our adapter into the Hugging Face weights: the result is our
        merged checkpoint.
        """
        peft = pytest.importorskip("peft")
        save_adapter(tmp_path / "adapter", tiny_checkpoint, LORA)
        loaded, words, card = load(tmp_path / "adapter", **CPU)
        export.to_peft(tmp_path / "peft", loaded, "THUDM/visualglm-6b")
        base, *_ = load(tiny_checkpoint, **CPU)
        export.to_huggingface(tmp_path / "hf", base, words, {})
        weights = without_frequencies(tmp_path / "hf")
        theirs = torch.nn.Module()  # modules of the Hugging Face names, as their code has them
        for name, tensor in weights.items():
            path, _, kind = name.rpartition(".")
            module = theirs
            for step in path.split(".")[:-1]:
                if not hasattr(module, step):
                    module.add_module(step, torch.nn.Module())
                module = getattr(module, step)
            child = path.rpartition(".")[2]
            if not hasattr(module, child):
                is_linear = weights[f"{path}.weight"].ndim == 2 and f"{path}.bias" in weights
                module.add_module(child, torch.nn.Linear(1, 1) if is_linear else torch.nn.Module())
            setattr(getattr(module, child), kind, torch.nn.Parameter(tensor.clone()))
            if is_linear and kind == "weight":
                getattr(module, child).out_features, getattr(module, child).in_features = (
                    tensor.shape
                )
        theirs.config, theirs.prepare_inputs_for_generation = (
            {"model_type": "chatglm"},
            None,
        )  # what their code has besides
        merged = (
            peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
            .merge_and_unload()
            .state_dict()
        )
        config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
        assert (
            config["base_model_name_or_path"] == "THUDM/visualglm-6b"
            and config["peft_type"] == "LORA"
        )
        export.to_huggingface(tmp_path / "merged", loaded, words, card)
        ours = without_frequencies(tmp_path / "merged")
        assert (
            set(merged) == set(ours)
            and sum(not torch.equal(ours[name], weights[name]) for name in ours) == 2
        )
        assert all(torch.allclose(merged[name], ours[name], atol=1e-6) for name in ours)

    def test_refusals(self, tiny_checkpoint, tmp_path):
        save_adapter(tmp_path / "ptuning", tiny_checkpoint, PTUNING)
        network, words, card = load(tmp_path / "ptuning", **CPU)
        with pytest.raises(UserError, match="P-tuning .* cannot be merged"):
            export.to_sat(tmp_path / "out", network, words, card)
        with pytest.raises(UserError, match="this checkpoint has none"):
            export.to_peft(tmp_path / "out", network, "x")
        network, words, card = load(tiny_checkpoint, device="cpu", bits=8)
        with pytest.raises(UserError, match="quantized weights cannot be merged"):
            export.to_huggingface(tmp_path / "out", network, words, card)
        folder = hf_folder(tiny_checkpoint, tmp_path / "hf")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"residual_layers": 28}))
        network, words, card = load(folder, **CPU)
        with pytest.raises(
            UserError, match="a network of 2 layers that was trained as if it had 28"
        ):
            export.to_sat(tmp_path / "out", network, words, card)
        assert not (tmp_path / "out").exists()


class TestQuantized:
    @pytest.mark.parametrize("bits, similarity, share", [(8, 0.999, 0.30), (4, 0.97, 0.20)])
    def test_close_and_small(self, wide, bits, similarity, share):
        full, quantized = (logits(load(wide, device="cpu", bits=b)[0]) for b in (None, bits))
        assert torch.nn.functional.cosine_similarity(full, quantized, dim=-1).min() >= similarity
        network = checkpoint.load_base(wide, bits=bits)[0]
        layers = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, QuantizedLinear)
        }
        assert len(layers) == 3 * 4 + 1
        weights = load_file(wide / FULL)
        for name, layer in layers.items():
            held = sum(
                t.nbytes for t in vars(layer.product).values() if isinstance(t, torch.Tensor)
            )
            assert (
                held
                <= (0.30 if layer.bits == 8 else share) * weights[f"{name}.weight"].float().nbytes
            )
        vision = network.mixins["eva"].model.vit
        assert {p.dtype for p in vision.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("bits", [8, 4])
    def test_stored_quantized(self, wide, tmp_path, bits):
        """What is exported equals what is quantized while loading, and an adapter of the full base
        goes over it.
        """
        export_checkpoint(wide, f"int{bits}", tmp_path / "small")
        direct = logits(load(wide, device="cpu", bits=bits)[0])
        assert torch.equal(logits(load(tmp_path / "small", device="cpu")[0]), direct)
        assert (tmp_path / "small" / FULL).stat().st_size < 0.5 * (wide / FULL).stat().st_size
        assert "quantized already" in str(
            pytest.raises(
                UserError, export_checkpoint, tmp_path / "small", f"int{bits}", tmp_path / "x"
            ).value
        )
        with pytest.raises(
            UserError, match=f"holds {bits}-bit weights, --quant {12 - bits} was asked for"
        ):
            load(tmp_path / "small", device="cpu", bits=12 - bits)
        network = save_adapter(tmp_path / "adapter", wide, LORA)
        over, over_direct = (
            logits(load(tmp_path / "adapter", base=base, device="cpu", bits=bits)[0])
            for base in (tmp_path / "small", wide)
        )
        assert torch.equal(over, over_direct) and not torch.equal(over, direct)
        assert (
            torch.nn.functional.cosine_similarity(over, logits(network), dim=-1).min()
            >= {8: 0.995, 4: 0.95}[bits]
        )

    def test_adapter_quantized_in_one_step(self, wide, tmp_path):
        network = save_adapter(tmp_path / "adapter", wide, LORA)
        export_checkpoint(tmp_path / "adapter", "int8", tmp_path / "small", **CPU)
        small, _, card = load(tmp_path / "small", device="cpu")
        assert not adapter_names(small) and card["prompt"] == "有什么？"
        assert (
            torch.nn.functional.cosine_similarity(logits(small), logits(network), dim=-1).min()
            >= 0.99
        )

    def test_prefill_and_decoding_agree(self, wide):
        """Many rows and few take different kernels."""
        network = load(wide, device="cpu", bits=8)[0]
        x = torch.randn(200, 256).bfloat16()
        layer = network.transformer.layers[0].mlp.dense_h_to_4h
        with torch.no_grad():
            many, few = layer(x), torch.cat([layer(row) for row in x.split(1)])
        assert (many - few).abs().max() <= 0.02 * many.abs().max()

    def test_group_that_does_not_fit(self, tiny_checkpoint):
        with pytest.raises(
            UserError, match="groups of 32: a layer of this network has 48 inputs; use 8 bits"
        ):
            load(tiny_checkpoint, device="cpu", bits=4)
        with pytest.raises(UserError, match="quantization to 3 bits: expected 8 or 4"):
            load(tiny_checkpoint, device="cpu", bits=3)

    def test_image_encoder_on_the_cpu(self, tiny_checkpoint):
        """Layers are lent to the device while they compute and come back as they were."""
        network = load(tiny_checkpoint, **CPU)[0]
        wanted = logits(network)
        kept = {name: p.data_ptr() for name, p in network.named_parameters()}
        network.keep_on_cpu()
        lent = []
        layer = network.mixins["eva"].model.vit.transformer.layers[1]
        layer.attention.register_forward_pre_hook(lambda *_: lent.append(layer.on_cpu_data))
        assert (
            torch.equal(logits(network), wanted)
            and len(lent) == 1
            and len(lent[0]) == len(list(layer.parameters()))
        )
        assert {name: p.data_ptr() for name, p in network.named_parameters()} == kept


def change_tensors(folder, edit):
    tensors = load_file(folder / FULL)
    edit(tensors)
    save_file(tensors, folder / FULL)


def change_config(folder, **new):
    config = json.loads((folder / CONFIG).read_text()) | new
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


NORM = "transformer.final_layernorm.weight"
DAMAGE = {
    "no weights": (lambda f: (f / FULL).unlink(), "no weights"),
    "cut short": (
        lambda f: (f / FULL).write_bytes((f / FULL).read_bytes()[:5000]),
        "cannot be read",
    ),
    "git lfs pointer": (
        lambda f: (f / FULL).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a Git LFS pointer",
    ),
    "html page": (
        lambda f: (f / FULL).write_text("<!DOCTYPE html><html></html>"),
        "an HTML page of 28 bytes",
    ),
    "missing tensor": (
        lambda f: change_tensors(f, lambda t: t.pop(NORM)),
        f"1 tensors do not fit.*missing {NORM}",
    ),
    "unexpected tensor": (
        lambda f: change_tensors(f, lambda t: t.update(x=torch.ones(1))),
        "unexpected x",
    ),
    "wrong shape": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: torch.ones(3)})),
        r"has shape \[3\], expected \[48\]",
    ),
    "config without keys": (lambda f: change_config(f, eva_args=None), "lacks eva_args"),
    "config is a list": (
        lambda f: (f / CONFIG).write_text("[]"),
        "expected a JSON object, got list",
    ),
    "config with text": (
        lambda f: change_config(f, num_layers="2"),
        "num_layers is '2', expected a number",
    ),
    "config not JSON": (lambda f: (f / CONFIG).write_text("{"), "not readable as JSON"),
    "no config": (
        lambda f: (f / CONFIG).unlink(),
        "not a checkpoint; expected model_config.json",
    ),
    "no vocabulary": (
        lambda f: (f / VOCABULARY).unlink(),
        "vocabulary ice_text.model not found: looked at .*base, ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder(tiny_checkpoint, tmp_path, damage):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    break_it, words = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(UserError, match=words) as caught:
        load(folder, **CPU)
    assert "\n" not in str(caught.value)


def test_a_configuration_of_ones_own_is_to_be_corrected(tiny_checkpoint, tmp_path):
    """--model_config names a file that was never downloaded."""
    config = json.loads((tiny_checkpoint / CONFIG).read_text()) | {"num_layers": 0}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_layers is 0, expected .*; correct it or copy it"):
        read_config(tmp_path / CONFIG)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html>", b"", b"\x80\x02cos\nsystem\n."],
    ids=["html", "empty", "unsafe pickle"],
)
def test_damaged_sat_file(tiny_checkpoint, tmp_path, content):
    sat_folder(tiny_checkpoint, tmp_path / "sat", content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(tmp_path / "sat", **CPU)
    assert "\n" not in str(caught.value)


SHARD = "pytorch_model-00002-of-00003.bin"
DAMAGE_HF = {
    "shard missing": (
        lambda f: (f / SHARD).unlink(),
        f"1 of 3 weight files are missing \\({SHARD}\\)",
    ),
    "shard cut short": (
        lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:3000]),
        f"{SHARD}: the weights cannot be read.*it has 3000 bytes",
    ),
    "shard is a pointer": (
        lambda f: (f / SHARD).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
        ),
        f"{SHARD}.*a Git LFS pointer",
    ),
    "shard is a page": (
        lambda f: (f / SHARD).write_text("<html>"),
        f"{SHARD}.*an HTML page of 6 bytes",
    ),
    "index missing": (
        lambda f: (f / "pytorch_model.bin.index.json").unlink(),
        "pytorch_model.bin.index.json, the list of its 3 weight files, is missing",
    ),
    "index is empty": (
        lambda f: (f / "pytorch_model.bin.index.json").write_text("{}"),
        "lists no weight files",
    ),
    "index is a page": (
        lambda f: (f / "pytorch_model.bin.index.json").write_text("<html>"),
        "not readable as JSON.*an HTML page",
    ),
    "no weights": (
        lambda f: [file.unlink() for file in f.glob("pytorch_model*")],
        "no weights; expected",
    ),
    "another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}'),
        "model_type 'llama', expected one of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE_HF)
def test_damaged_huggingface_folder(tiny_checkpoint, tmp_path, damage):
    folder = hf_folder(tiny_checkpoint, tmp_path / "hf")
    break_it, words = DAMAGE_HF[damage]
    break_it(folder)
    with pytest.raises(UserError, match=words) as caught:
        load(folder, **CPU)
    assert "\n" not in str(caught.value)


def test_sat_folder_split_for_model_parallelism(tiny_checkpoint, tmp_path):
    sat_folder(tiny_checkpoint, tmp_path / "sat", b"")
    (tmp_path / "sat" / "1" / "mp_rank_01_model_states.pt").touch()
    with pytest.raises(UserError, match="split for model parallelism"):
        load(tmp_path / "sat", **CPU)


def test_adapter_and_its_base(tiny_checkpoint, tmp_path):
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    network = save_adapter(tmp_path / "adapter", base, LORA)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="its base is not at .*base; name it with --base_path"):
        load(tmp_path / "adapter", **CPU)
    assert torch.equal(logits(load(tmp_path / "adapter", base=moved, **CPU)[0]), logits(network))
    whole = (tmp_path / "adapter" / ADAPTER).read_bytes()
    (tmp_path / "adapter" / ADAPTER).write_bytes(whole[:200])
    with pytest.raises(UserError, match="adapter.safetensors cannot be read"):
        load(tmp_path / "adapter", base=moved, **CPU)
    (tmp_path / "adapter" / ADAPTER).write_bytes(whole)
    (tmp_path / "adapter" / "complete.json").write_text(json.dumps({ADAPTER: "0"}))
    with pytest.raises(UserError, match="is not what training wrote"):
        load(tmp_path / "adapter", base=moved, **CPU)
    (tmp_path / "adapter" / "complete.json").unlink()
    with pytest.raises(UserError, match="is an adapter, too, not its base"):
        load(tmp_path / "adapter", base=tmp_path / "adapter", **CPU)
    change_tensors(moved, lambda t: t.update({NORM: t[NORM] + 1}))
    with pytest.raises(UserError, match="is not the base it was trained on"):
        load(tmp_path / "adapter", base=moved, **CPU)


@pytest.mark.parametrize(
    "given, words",
    [({"device": "tpu9"}, "device 'tpu9' cannot be used"), ({"dtype": "int3"}, "dtype 'int3'")],
)
def test_device_and_dtype(tiny_checkpoint, given, words):
    with pytest.raises(UserError, match=words):
        load(tiny_checkpoint, **CPU | given)


@pytest.mark.parametrize(
    "bits, large, wanted",
    [(None, 1e9, torch.float32), (None, 1, torch.bfloat16), (8, 1e9, torch.bfloat16)],
)
def test_dtype_on_a_cpu(tiny_checkpoint, monkeypatch, bits, large, wanted):
    monkeypatch.setattr(checkpoint, "LARGE", large)
    assert load(tiny_checkpoint, device="cpu", bits=bits)[0].dtype == wanted
    assert checkpoint.choose_dtype(None, torch.device("cuda")) == torch.float16


def test_nothing_is_half_loaded(tiny_checkpoint, tmp_path, monkeypatch):
    """What does not fit is found before the first weight is copied."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    change_tensors(folder, lambda t: t.pop(NORM))
    monkeypatch.setattr(checkpoint, "_place", lambda *_: pytest.fail("weights were placed"))
    with pytest.raises(UserError, match="1 tensors do not fit"):
        load(folder, **CPU)
