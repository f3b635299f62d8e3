"""The network against the official code's values, and every shortcut against the long way."""

import copy
import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from conftest import PIECES, TEXTS
from PIL import Image
from safetensors.torch import load_file

from model import Sampling, UserError, float_products, load_assistant, quantization
from model.visualglm import checkpoint
from model.visualglm.answer_text import stable_prefix, tidy
from model.visualglm.attention import positions_and_blocks, prefix_mask
from model.visualglm.decoder import Decoder
from model.visualglm.generate import filter_logits, generate
from model.visualglm.lora import Lora, adapter_names, add_method, without_adapter
from model.visualglm.network import VisualGLM
from model.visualglm.packing import (
    LARGEST_FLOAT16,
    Float16Linear,
    PackedLinear,
    has_float16_products,
    pack,
)
from model.visualglm.pixels import to_pixels
from model.visualglm.prompt import render
from model.visualglm.sat import LoraLinear
from model.visualglm.tokenizer import Tokenizer, train_vocabulary

FIXTURES = Path(__file__).parent / "fixtures"
TINY = Path(__file__).parent.parent / "model" / "tiny" / "base"
TOLERANCE = 2e-4
IMAGE_START, PREFIX = 3, 45  # of the reference's prompts


def reference_network(folder):
    """The network of a fixture folder, whose values were computed with VisualGLM-6B's code."""
    stored = checkpoint.open_stored(FIXTURES / folder)
    network = VisualGLM(stored.config, device="meta", init=False)
    checkpoint.fill(network, stored, torch.device("cpu"), torch.float32)
    if stored.method:
        tensors = {name: stored.read(name) for name in stored.adapter}
        checkpoint.fill_adapter(network, stored.method, tensors, folder)
    return network.eval()


def largest_difference(a, b):
    return (a - b).abs().max()


@pytest.fixture(scope="module", params=["visualglm-sat", "visualglm-hf"])
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def network(layout):
    return reference_network(layout)


@pytest.fixture(scope="module")
def expected(layout):
    return load_file(FIXTURES / layout / "expected.safetensors")


@torch.no_grad()
def reference_logits(network, expected, **change):
    embeds = network.encode_images(expected["image"])
    prefix = torch.tensor([PREFIX, PREFIX]) + change.get("prefix", 0)
    start = change.get("start", IMAGE_START)
    return network(expected["input_ids"], prefix, image_embeds=embeds, image_start=start)[0]


class TestReference:
    @torch.no_grad()
    def test_image_encoder(self, network, expected):
        encoder = network.mixins["eva"].model
        vit = encoder.vit(expected["image"])
        queries = encoder.qformer(vit)
        embeds = network.encode_images(expected["image"])
        assert largest_difference(vit, expected["vit_out"]) <= TOLERANCE
        assert largest_difference(queries, expected["qformer_out"]) <= TOLERANCE
        assert largest_difference(embeds, expected["image_embeds"]) <= TOLERANCE

    def test_logits(self, network, expected):
        logits = reference_logits(network, expected)
        assert largest_difference(logits, expected["logits"]) <= TOLERANCE
        with torch.no_grad():
            text = network(expected["input_ids"], torch.tensor([PREFIX, PREFIX]))[0]
        assert largest_difference(text, expected["logits_text_only"]) <= TOLERANCE

    def test_comparison_sees_one_wrong_weight_mask_entry_or_position(
        self, network, expected, monkeypatch
    ):
        def off():
            return largest_difference(reference_logits(network, expected), expected["logits"])

        assert off() <= TOLERANCE
        attention = network.mixins["chatglm-attn"]
        real_attention, real_tables = attention.attention_fn, attention.rotary_tables

        def hide_one(query, key, value, mask, dropout=None, visible=None, **kwargs):
            visible = visible.clone()
            visible[..., -1, 0] = False  # the last token no longer sees the first
            return real_attention(query, key, value, mask, dropout, visible=visible, **kwargs)

        def move_one(positions, blocks, *rest):
            positions = positions.clone()
            positions[:, 20] += 1
            return real_tables(positions, blocks, *rest)

        with monkeypatch.context() as patch:
            patch.setitem(network.hooks, "attention_fn", hide_one)
            for layer in network.transformer.layers:
                patch.setitem(layer.attention.hooks, "attention_fn", hide_one)
            assert off() > 2 * TOLERANCE
        with monkeypatch.context() as patch:
            patch.setattr(attention, "rotary_tables", move_one)
            assert off() > 2 * TOLERANCE
        assert off() <= TOLERANCE

        weight = network.transformer.layers[1].mlp.dense_4h_to_h.weight
        with torch.no_grad():
            kept = weight[0, 0].item()
            weight[0, 0] += 1
            changed = reference_logits(network, expected)
            weight[0, 0] = kept
        assert largest_difference(changed, expected["logits"]) > 10 * TOLERANCE

    def test_full_lora_checkpoint_of_the_upstream_scripts(self):
        expected = load_file(FIXTURES / "visualglm-sat-lora" / "expected.safetensors")
        network = reference_network("visualglm-sat-lora")
        logits = reference_logits(network, expected)
        assert largest_difference(logits, expected["logits"]) <= TOLERANCE
        with without_adapter(network):
            base = reference_logits(network, expected)
        assert largest_difference(base, expected["logits"]) > 10 * TOLERANCE

    def test_positions_and_mask(self, expected):
        """Positions and mask, against those that the official code recorded."""
        steps, prefix = torch.arange(59)[None], torch.tensor([PREFIX])
        recorded = expected["position_ids"][0]
        positions, blocks = positions_and_blocks(steps, prefix)
        assert torch.equal(positions[0], recorded[0])
        assert torch.equal(blocks[0], recorded[1])
        visible = prefix_mask(steps, prefix)
        assert torch.equal(visible[0], expected["attention_mask"][0, 0].bool())

    def test_loss(self, network, expected):
        ids, labels = expected["sft_input_ids"], expected["sft_labels"][:, 1:]
        trained = labels != -100
        flat = torch.arange(ids.numel()).view_as(ids)[:, :-1][trained]
        with torch.no_grad():
            _, loss = network(
                ids,
                torch.tensor([PREFIX, PREFIX]),
                pixels=expected["image"],
                image_start=IMAGE_START,
                targets=labels[trained],
                target_positions=flat,
            )
        assert abs(loss.item() - expected["sft_loss"].item()) <= TOLERANCE

    @pytest.mark.parametrize(
        "penalty, key", [(1.0, "greedy_output"), (1.2, "greedy_output_reppen_1.2")]
    )
    def test_greedy_decoding(self, network, expected, penalty, key):
        prompt = expected["greedy_prompt"].tolist()
        with torch.no_grad():
            embeds = network.encode_images(expected["image"][:1])
        steps = generate(
            network,
            [prompt],
            eop=network.config.vocab_size - 3,
            image_embeds=embeds,
            image_start=IMAGE_START,
            sampling=Sampling(max_new_tokens=24, top_k=1, repetition_penalty=penalty),
        )
        assert prompt + [token for (token,) in steps] == expected[key].tolist()


def uncached(network, prompts, new, penalty, **image):
    """Greedy ids [B, new] without any cache: all rows again for each token."""
    generated = [[] for _ in prompts]
    prefix = torch.tensor([len(prompt) - 1 for prompt in prompts])
    for _ in range(new):
        rows = [prompt + row for prompt, row in zip(prompts, generated)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        ends = torch.tensor([width * index + len(row) - 1 for index, row in enumerate(rows)])
        with torch.no_grad():
            logits = network(ids, prefix, logit_positions=ends, **image)[0]
        for row, row_logits in zip(generated, logits):
            for token in set(row):
                row_logits[token] /= penalty
            row.append(int(row_logits.argmax()))
    return generated


@pytest.fixture(scope="module")
def tiny_base():
    """The bundled base as it is loaded for training: nothing packed."""
    return checkpoint.load_base(TINY)[0]


@pytest.mark.parametrize("which", ["visualglm-sat", "visualglm-hf", "tiny"])
def test_fifty_prompts_batched_and_alone_equal_uncached(which, tiny_base):
    """Random prompts of different lengths, every other one with an image."""
    network = tiny_base if which == "tiny" else reference_network(which)
    rng, slots = torch.Generator().manual_seed(1), network.config.image_length
    with_image = list(range(0, 50, 2))
    size = network.config.eva_args["image_size"]
    with torch.no_grad():
        embeds = network.encode_images(torch.randn(len(with_image), 3, *size, generator=rng))
    lengths = torch.randint(2, 40, (50,), generator=rng)
    lengths += torch.tensor([slots + IMAGE_START, 0] * 25)
    prompts = []
    for length in lengths:
        ids = torch.randint(10, network.config.vocab_size, (length,), generator=rng)
        prompts.append(ids.tolist())
    image = {
        "image_embeds": embeds,
        "image_rows": torch.tensor(with_image),
        "image_start": IMAGE_START,
    }

    long_way = uncached(network, prompts, 6, 1.2, **image)
    sampling = Sampling(max_new_tokens=6, temperature=0, repetition_penalty=1.2)
    together = zip(*generate(network, prompts, eop=-1, sampling=sampling, **image))
    assert [list(row) for row in together] == long_way
    for index, prompt in enumerate(prompts):
        image = {}
        if index % 2 == 0:
            image = {"image_embeds": embeds[index // 2][None], "image_start": IMAGE_START}
        alone = generate(network, [prompt], eop=-1, sampling=sampling, **image)
        assert [token for (token,) in alone] == long_way[index]


def decoder_error(network, rows=3, steps=3):
    """Relative error of the decoder's logits, after a prompt and after each of some tokens."""
    rng = torch.Generator().manual_seed(3)
    lengths = [9, 24, 17][:rows]
    ids = torch.randint(10, 200, (rows, 24 + steps), generator=rng)
    error = scale = 0.0
    with torch.no_grad():
        decoder = Decoder(network, lengths, steps)
        for step in range(steps + 1):
            if step:
                token = torch.stack([row[n + step - 1] for row, n in zip(ids, lengths)])
                got = decoder.step(token)
            else:
                got = decoder.prefill(ids[:, : max(lengths)])
            wanted = network(ids, torch.tensor(lengths) - 1)[0]
            wanted = torch.stack([row[n + step - 1] for row, n in zip(wanted, lengths)])
            error = max(error, largest_difference(got, wanted).item())
            scale = max(scale, wanted.abs().max().item())
    return error / scale


@pytest.mark.parametrize(
    "method, std",
    [
        (None, 0),
        ({"name": "lora", "rank": 3, "alpha": 2.0, "layers": [0, 2]}, 0.3),
        ({"name": "ptuning", "length": 5}, 2),
    ],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_decoder_computes_what_the_network_computes(method, std, dtype, tolerance):
    network = checkpoint.load_base(TINY, dtype=dtype)[0]
    if method:
        ids, prefix = torch.arange(10, 40)[None], torch.tensor([25])
        with torch.no_grad():
            plain = network(ids, prefix)[0]
            add_method(network, method)
            for name in adapter_names(network):
                torch.nn.init.normal_(network.get_parameter(name), std=std)
            changed = network.eval()(ids, prefix)[0]
        assert largest_difference(changed, plain) > 0.1 * plain.abs().max()
        with without_adapter(network):
            assert decoder_error(network) <= tolerance
    assert decoder_error(network) <= tolerance
    assert decoder_error(network, rows=1) <= tolerance


@pytest.mark.parametrize("bits", [8, 4])
def test_decoder_over_quantized_layers(bits):
    assert decoder_error(checkpoint.load_base(TINY, bits=bits)[0]) <= 3e-2


@pytest.mark.parametrize("with_bfloat16", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_of_few_and_many_rows(dtype, with_bfloat16, monkeypatch):
    """Each way of multiplying, on a CPU with and without instructions for bfloat16."""
    monkeypatch.setattr(quantization, "bfloat16_products", lambda: with_bfloat16)
    torch.manual_seed(5)
    stored = quantization.quantize(torch.randn(96, 64), 8)
    x = torch.randn(40, 64)
    wanted = quantization.Dequantized(stored)(x)
    product = quantization.TorchInt8(stored)
    for rows in (1, 8, 9, 32, 33):
        got = product(x[:rows].to(dtype))
        assert largest_difference(got, wanted[:rows]) <= 0.02 * wanted.abs().max()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_packed_layers_compute_the_same(dtype, tolerance, monkeypatch):
    def build():
        return checkpoint.load_base(TINY, dtype=dtype)[0]

    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU's oneDNN has no bfloat16")
    network, pixels = build(), torch.randn(1, 3, 96, 96)
    ids, prefix = torch.arange(10, 40)[None], torch.tensor([25])
    everything = {torch.float32: 0, torch.bfloat16: 0}
    with torch.no_grad():
        logits, embeds = network(ids, prefix)[0], network.encode_images(pixels)
        pack(network, smallest=everything)
        kinds = [type(m) for m in network.modules()]
        assert kinds.count(PackedLinear) > 40 and torch.nn.Linear not in kinds
        packed_logits, packed_embeds = network(ids, prefix)[0], network.encode_images(pixels)
        assert largest_difference(packed_logits, logits) <= tolerance * logits.abs().max()
        assert largest_difference(packed_embeds, embeds) <= tolerance * embeds.abs().max()
    assert decoder_error(network) <= tolerance

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = build()
    pack(network, smallest=everything)
    assert not any(isinstance(m, PackedLinear) for m in network.modules())


def test_bfloat16_weights_are_the_same_in_float16():
    if not has_float16_products():
        pytest.skip("this build has no FBGEMM")
    torch.manual_seed(6)
    weight, bias = torch.randn(48, 64).bfloat16() / 8, torch.randn(48).bfloat16()
    weight[0] = 0.9 * 2.0**-17 * torch.randn(64).sign()
    weight[1] = 60000.0
    for rows in (1, 7, 40):
        x = torch.randn(2, rows, 64)
        wanted = torch.nn.functional.linear(x, weight.float(), bias.float())
        got = Float16Linear(weight, bias)(x)
        assert got.dtype == torch.float32 and torch.allclose(got, wanted, rtol=1e-5, atol=1e-3)
        assert Float16Linear(weight, None)(x.bfloat16()).dtype == torch.bfloat16


def test_the_language_model_takes_float16_products_and_images_do_not(monkeypatch):
    """But for weights that float16 cannot hold, and where such products do not run."""
    if not has_float16_products():
        pytest.skip("this build has no FBGEMM")
    monkeypatch.setattr("model.visualglm.packing.bfloat16_products", lambda: False)
    network = checkpoint.load_base(TINY, dtype=torch.bfloat16)[0]
    ids, prefix = torch.arange(10, 40)[None], torch.tensor([25])
    large = network.transformer.layers[0].mlp.dense_h_to_4h
    with torch.no_grad():
        wanted, first = network(ids, prefix)[0], large.weight[0, 0].clone()
        large.weight[0, 0] = 2 * LARGEST_FLOAT16
        pack(network)
        large.weight[0, 0] = first
        assert largest_difference(network(ids, prefix)[0], wanted) <= 0.03 * wanted.abs().max()
    packed = [path for path, m in network.named_modules() if isinstance(m, Float16Linear)]
    assert len(packed) == 4 * len(network.transformer.layers) and packed[0].endswith("lm_head")
    assert network.transformer.layers[0].mlp.dense_h_to_4h is large
    assert decoder_error(network) <= 3e-2

    monkeypatch.setattr("model.visualglm.packing.has_float16_products", lambda: False)
    network = checkpoint.load_base(TINY, dtype=torch.bfloat16)[0]
    pack(network)
    assert not any(isinstance(m, Float16Linear) for m in network.modules())


def test_the_decoder_reads_prompts_by_widened_products(monkeypatch):
    from model.visualglm.sat import ColumnParallelLinear, RowParallelLinear

    network = checkpoint.load_base(TINY, dtype=torch.bfloat16)[0]
    float_products.widen_products(network, (ColumnParallelLinear, RowParallelLinear))
    widened, real = [], float_products._pieces
    monkeypatch.setattr(float_products, "_pieces", lambda w: widened.append(w) or real(w))
    with torch.inference_mode():
        decoder = Decoder(network, [30], 1)
        decoder.prefill(torch.arange(10, 40)[None])
        assert len(widened) == 4 * len(network.transformer.layers)
        decoder.step(torch.tensor([5]))  # a few rows are not
    assert len(widened) == 4 * len(network.transformer.layers)
    assert decoder_error(network) <= 3e-2


@pytest.mark.parametrize("piece", [1, 48 * 5, 2**20])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_without_bfloat16_instructions_are_those_of_float32(has_bias, piece, monkeypatch):
    monkeypatch.setattr(float_products, "PIECE", piece)  # of 32 outputs: alone, by fives, all
    torch.manual_seed(6)
    layer = torch.nn.Linear(48, 32, bias=has_bias).bfloat16()
    exact = copy.deepcopy(layer).float()
    float_products.widen_products(layer)
    x = torch.randn(2, 7, 48).bfloat16()
    results = []
    for module, inputs in ((layer, x.clone()), (exact, x.float())):
        out = module(inputs.requires_grad_())
        out.float().sin().sum().backward()
        results.append([out, inputs.grad, *(p.grad for p in module.parameters())])
    for got, wanted in zip(*results):
        assert got.dtype == torch.bfloat16 and got.shape == wanted.shape
        assert largest_difference(got, wanted) <= 0.02 * wanted.abs().max()


def test_few_rows_are_left_to_torch_and_patches_are_widened():
    torch.manual_seed(6)
    layer = torch.nn.Linear(48, 32).bfloat16()
    convolution = torch.nn.Conv2d(3, 8, 4, stride=4).bfloat16()
    few, image = torch.randn(float_products.FEW_ROWS, 48).bfloat16(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        wanted = layer(few)
        patches = copy.deepcopy(convolution).float()(image.bfloat16().float())
        float_products.widen_products(torch.nn.ModuleList([layer, convolution]))
        assert torch.equal(layer(few), wanted)
        assert torch.equal(convolution(image.bfloat16()), patches.bfloat16())


@pytest.mark.parametrize("with_bfloat16", [True, False])
def test_answers_in_bfloat16_on_any_cpu(with_bfloat16, monkeypatch):
    """Image embeddings of float32, by float32 products exactly where a CPU needs them."""
    monkeypatch.setattr(float_products, "bfloat16_products", lambda: with_bfloat16)
    monkeypatch.setattr("model.visualglm.packing.bfloat16_products", lambda: False)
    image = Image.effect_noise((96, 96), 80).convert("RGB")
    found = []
    for dtype in ("bfloat16", "float32"):
        family = load_assistant(TINY, device="cpu", dtype=dtype).family
        widened = [m for m in family.network.modules() if "forward" in vars(m)]
        assert bool(widened) == (dtype == "bfloat16" and not with_bfloat16)
        found.append(family.encode_images([image]).float())
    assert largest_difference(*found) <= 0.05 * found[1].abs().max()


def test_a_kernel_is_tried_on_a_part_of_many_outputs(monkeypatch):
    shapes = []

    def quantize(weight, bits):
        shapes.append(tuple(weight.shape))
        return real(weight, bits)

    real = quantization.quantize
    monkeypatch.setattr(quantization, "quantize", quantize)
    quantization.choose_kernel.cache_clear()
    head = quantization.choose_kernel(torch.device("cpu"), 8, 130528, 64)
    small = quantization.choose_kernel(torch.device("cpu"), 8, 96, 64)
    assert head is small is quantization.TorchInt8
    (outputs, _), (few, _) = shapes
    assert few == 96 and outputs < 2 * quantization.PROBE_OUTPUTS
    assert outputs % quantization.PROBE_OUTPUTS == 130528 % quantization.PROBE_OUTPUTS


@pytest.mark.parametrize("projections", [1, 3])
def test_one_pair_of_products_is_sats_lora(projections):
    """Outputs and gradients, against SAT's own pair for each of q, k and v."""
    torch.manual_seed(3)
    shape = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "device": "cpu", "dtype": torch.float32}
    lora = Lora(torch.nn.Linear(12, 18), projections, **shape)
    for matrix in lora.matrix_B:
        torch.nn.init.normal_(matrix)
    x, weights = torch.randn(2, 5, 12, requires_grad=True), torch.randn(2, 5, 18)
    matrices = [x, *lora.matrix_A, *lora.matrix_B]

    ours, sats = lora(x), LoraLinear.forward(lora, x)
    assert torch.allclose(ours, sats, atol=1e-5)
    of_ours = torch.autograd.grad((ours * weights).sum(), matrices)
    of_sats = torch.autograd.grad((sats * weights).sum(), matrices)
    for got, expected in zip(of_ours, of_sats, strict=True):
        assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("nf4", [False, True])
@pytest.mark.parametrize("with_bfloat16", [True, False])
def test_lora_in_bfloat16_on_any_cpu(with_bfloat16, nf4, monkeypatch):
    """The gradients of float32, by float32 products exactly where a CPU needs them."""
    from model.opening import open_checkpoint

    monkeypatch.setattr(float_products, "bfloat16_products", lambda: with_bfloat16)
    method = {"name": "lora", "rank": 2, "alpha": 1.0, "layers": None, "dropout": 0.0}
    method |= {"targets": ["attention"]}
    networks = []
    for dtype in ("bfloat16", "float32"):
        family = open_checkpoint(TINY, device="cpu", dtype=dtype)
        family.add_method(method, device=torch.device("cpu"), nf4=nf4)
        networks.append(family.network.train())
    widened = [{type(m) for m in n.modules() if "forward" in vars(m)} for n in networks]
    assert bool(widened[0]) == (not with_bfloat16) and not widened[1]
    four_bit = {m.compute_dtype for m in networks[0].modules() if hasattr(m, "compute_dtype")}
    assert four_bit == ({torch.bfloat16 if with_bfloat16 else torch.float32} if nf4 else set())

    torch.manual_seed(7)
    names = adapter_names(networks[0])
    for name in names:
        values = 0.05 * torch.randn_like(networks[1].get_parameter(name))
        for network in networks:
            network.get_parameter(name).data.copy_(values)
    ids, prefix, at = torch.arange(10, 40)[None], torch.tensor([25]), torch.arange(24, 29)
    gradients = []
    for network in networks:
        logits = network(ids, prefix)[0][0, at].float()
        torch.nn.functional.cross_entropy(logits, ids[0, at + 1]).backward()
        gradients.append(torch.cat([network.get_parameter(n).grad.flatten() for n in names]))
    got, exact = gradients
    assert (got - exact).norm() <= 0.1 * exact.norm()


def test_packing_never_holds_the_weights_twice(monkeypatch):
    """Each layer is gone before the next one's turn: the real network's take 15 GB."""
    network, left = checkpoint.load_base(TINY)[0], []
    layers = []
    for module in network.modules():
        if getattr(module, "weight", torch.zeros(0)).ndim == 2:
            layers.append(weakref.ref(module))
    del module

    class Watched(PackedLinear):
        def __init__(self, *given):
            super().__init__(*given)
            left.append(sum(layer() is not None for layer in layers))

    monkeypatch.setattr("model.visualglm.packing.PackedLinear", Watched)
    pack(network, smallest={torch.float32: 0})
    assert len(left) > 40 and left == list(range(left[0], left[0] - len(left), -1))


def test_limits_and_stop(network, expected):
    prompt = expected["greedy_prompt"].tolist()

    def tokens(eop=-1, banned=None, **sampling):
        steps = generate(network, [prompt], eop=eop, banned=banned, sampling=Sampling(**sampling))
        return [token for (token,) in steps]

    greedy = tokens(max_new_tokens=6, top_p=0)
    assert len(greedy) == 6
    stop = greedy[3]
    before_stop = greedy[: greedy.index(stop)]
    assert tokens(eop=stop, max_new_tokens=6, top_p=0) == before_stop
    assert len(tokens(max_length=len(prompt) + 2, top_p=0)) == 2
    assert tokens(max_length=10) == []
    banned = tokens(max_new_tokens=6, top_p=0, banned=slice(100, 512))
    assert all(token < 100 for token in banned)
    longer = tokens(eop=stop, min_new_tokens=5, max_new_tokens=6, top_p=0)
    assert len(longer) >= 5 and stop not in longer
    assert longer[: greedy.index(stop)] == before_stop


@pytest.mark.parametrize(
    "top_k, top_p, temperature, penalty",
    [(100, 0.4, 0.8, 1.2), (5, 0.9, 1.3, 1.0), (50, 0.0, 0.8, 1.5)],
)
def test_sampling_follows_sat(top_k, top_p, temperature, penalty):
    """Weights against SAT's own functions, penalty on negative logits and top_p = 0 included."""
    from sat.generation.sampling_strategies.base_strategy import top_k_logits

    torch.manual_seed(2)
    logits, generated = torch.randn(3, 200) * 3, torch.randint(200, (3, 40))  # some of them twice
    used = torch.zeros(3, 200, dtype=torch.bool).scatter(1, generated, True)
    scaled = logits / torch.where(used, penalty * temperature, temperature)
    theirs = top_k_logits(scaled, top_k, top_p).softmax(-1)
    sampling = Sampling(
        top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=penalty
    )
    ids, weights = filter_logits(logits, generated, sampling)
    ours = torch.zeros_like(logits).scatter(1, ids, weights / weights.sum(-1, keepdim=True))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_seed_repeats_a_sample(network, expected):
    prompt = expected["greedy_prompt"].tolist()
    hot = {"max_new_tokens": 12, "temperature": 5.0, "top_p": 1.0, "top_k": 0}
    runs = []
    for seed in (1, 1, 2):
        steps = generate(network, [prompt], eop=-1, sampling=Sampling(seed=seed, **hot))
        runs.append([token for (token,) in steps])
    assert runs[0] == runs[1] != runs[2]


def test_patch_dropout(tiny_base):
    """While training, layers see the class token and another random half of the patches.

    Each patch has its own position. In evaluation mode layers see all of them.
    """
    network, seen = copy.deepcopy(tiny_base), []
    tower = network.mixins["eva"].model.vit
    hook = tower.transformer.layers[0].register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0].detach())
    )
    network.configure_training(patch_dropout=0.5)
    size, rng = network.config.eva_args["image_size"], torch.Generator().manual_seed(1)
    pixels = torch.randn(2, 3, *size, generator=rng)
    network.eval()
    network.encode_images(pixels)
    network.train()
    for _ in range(60):
        network.encode_images(pixels)
    hook.remove()

    whole, *halves = seen
    patches = whole.size(1) - 1
    which = []  # each bool [2, 1 + kept, 1 + patches]
    for half in halves:
        which.append((half[:, :, None] == whole[:, None]).all(-1))
    for half, w in zip(halves, which):
        assert half.size(1) == 1 + patches // 2
        assert w[:, 0, 0].all()
        assert (w.sum(-1) == 1).all()
        assert (w.sum(1) <= 1).all()
    # Share of the times that a patch was kept.
    share = torch.stack([w.any(1)[:, 1:] for w in which]).float().mean(0)
    assert 0.2 < share.min() and share.max() < 0.8
    assert not torch.equal(which[0][0], which[0][1])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 2e-2)])
def test_attention_while_training(network, dtype, tolerance):
    """bfloat16 training on a CPU has products of its own: values and gradients as fused ones."""
    torch.manual_seed(4)
    q, k, v = (torch.randn(2, 4, 12, 16).to(dtype).requires_grad_() for _ in range(3))
    prefix = (torch.ones(12, 12).tril().bool() | (torch.arange(12) < 5)).expand(2, 1, 12, 12)
    language = network.mixins["chatglm-attn"].attention_fn
    vision = network.mixins["eva"].model.vit.mixins["attention"].attention_fn
    for visible, got in (
        (prefix, language(q, k, v, None, visible=prefix)),
        (None, vision(q, k, v, None)),
    ):
        fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        results = []
        for out in (got, fused):
            results.append([out, *torch.autograd.grad((out * torch.arange(16)).sum(), (q, k, v))])
        for ours, theirs in zip(*results):
            assert largest_difference(ours, theirs) <= tolerance * theirs.abs().max()


class TestTokenizer:
    def test_round_trip(self, vocabulary, tiny_config):
        tokenizer = Tokenizer(vocabulary, tiny_config)
        for text in ("绿色的农田", "问：图中有什么？\n答：", "a\tb  c", "生僻字龘🛰"):
            ids = tokenizer.encode(text)
            assert all(0 <= i < 338 for i in ids)
            assert tokenizer.decode(ids) == text.replace("：", ":").replace("？", "?")  # nfkc
        ids = [tokenizer.gmask, tokenizer.sop, *tokenizer.encode("农田"), tokenizer.eop, 507]
        assert tokenizer.decode(ids) == "农田"

    def test_words_that_are_one_piece(self, tmp_path, tiny_config):
        def pieces(whole):
            train_vocabulary(TEXTS * 20, tmp_path / "v", PIECES, whole)
            encode = Tokenizer(tmp_path / "v", tiny_config).encode
            return len(encode("绿<img>")) - len(encode("绿"))

        assert pieces(()) > 2 and pieces(["<img>"]) == 1

    def test_words_have_the_same_pieces_everywhere_without_a_prefix(self, tmp_path, tiny_config):
        def first(prefix):
            train_vocabulary(TEXTS * 20, tmp_path / "v", PIECES, prefix=prefix)
            encode = Tokenizer(tmp_path / "v", tiny_config).encode
            return encode("农田") == encode("的农田")[1:]

        assert first(False) and not first(True)

    def test_real_vocabulary(self):
        """All recorded vectors both ways, where ChatGLM's own vocabulary is at hand.

        REMOTEGLM_VOCABULARY=ice_text.model
        """
        path = os.environ.get("REMOTEGLM_VOCABULARY")
        if not path:
            pytest.skip(
                "REMOTEGLM_VOCABULARY does not name ChatGLM's ice_text.model "
                "(2.7 MB, not part of this project)"
            )
        vectors = json.loads((FIXTURES / "chatglm-tokenizer.json").read_text(encoding="utf-8"))
        special = vectors["special"]
        config = {
            "vocab_size": 130528,
            "gmask_token_id": special["gmask"],
            "bos_token_id": special["bos(sop)"],
            "pad_token_id": special["pad"],
        }
        tokenizer = Tokenizer(path, config)
        for vector in vectors["vectors"]:
            assert tokenizer.encode(vector["text"]) == vector["ids"]
            assert tokenizer.decode(vector["ids_with_special"]) == vector["decoded"]
        for pair in vectors["pairs"]:
            ids = [*pair["a"], tokenizer.gmask, tokenizer.sop, *pair["b"], tokenizer.eop]
            assert ids == pair["with_special"]

    @pytest.mark.parametrize(
        "content, words",
        [(b"<html>not found</html>", "no sentencepiece model"), (None, "No such file")],
    )
    def test_wrong_file(self, tmp_path, tiny_config, content, words):
        path = tmp_path / "ice_text.model"
        if content:
            path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            Tokenizer(path, tiny_config)

    def test_other_file_for_the_real_network(self, vocabulary, tiny_config):
        """A network of ChatGLM-6B's size takes its very vocabulary only, by hash."""
        message = r"\d+ bytes with sha256 \w{12}\.\.\., expected ChatGLM-6B's 5e974d9a69c2"
        with pytest.raises(UserError, match=message):
            Tokenizer(vocabulary, tiny_config | {"vocab_size": 130528})

    def test_too_large_for_the_network(self, vocabulary, tiny_config):
        with pytest.raises(UserError, match="338 pieces, the network only 300"):
            Tokenizer(vocabulary, tiny_config | {"vocab_size": 300})


class OneIdPerCharacter:
    """A tokenizer whose ids are easy to read."""

    gmask, sop, eop, pad = -1, -2, -3, -4

    def encode(self, text):
        return [ord(c) for c in text]


def spelled(rendered):
    names = {-1: "[gMASK]", -2: "<sop>", -3: "<eop>", -4: "_"}
    return "".join(names.get(i) or chr(i) for i in rendered.ids)


class TestDialogue:
    tokenizer = OneIdPerCharacter()

    def test_golden(self):
        row = render(self.tokenizer, "有什么？", "农田。", image_slots=4)
        assert spelled(row) == "<img>____</img>问：有什么？\n答：[gMASK]<sop>农田。<eop>"
        assert (row.prefix, row.image_start, row.cut) == (row.ids.index(-2), 5, False)
        trained = [(row.ids[i], row.ids[i + 1]) for i in row.target_positions]
        assert trained[0] == (-1, -2) and trained[-1] == (ord("。"), -3) and len(trained) == 5

    def test_rounds_text_only_and_english(self):
        row = render(self.tokenizer, "再说", history=[("问一", "答一"), ("问二", "答二")])
        rounds = "问：问一\n答：答一\n问：问二\n答：答二\n问：再说\n答：[gMASK]<sop>"
        assert spelled(row) == rounds and row.image_start is None
        row = render(self.tokenizer, "What?", english=True, image_slots=1)
        assert spelled(row) == "<img>_</img>Q:What?\nA:[gMASK]<sop>"

    def test_limits(self):
        history = [("旧问", "旧答"), ("新问", "新答")]
        whole = render(self.tokenizer, "现在", history=history, image_slots=3)
        limit = whole.prefix - 1
        row = render(self.tokenizer, "现在", history=history, image_slots=3, max_source=limit)
        assert spelled(row) == "<img>___</img>问：新问\n答：新答\n问：现在\n答：[gMASK]<sop>"
        assert row.cut
        row = render(self.tokenizer, "很长的问题" * 5, image_slots=3, max_source=25)
        assert spelled(row) == "<img>___</img>问：很长的问题\n答：[gMASK]<sop>"
        assert row.prefix == 25 and row.cut
        row = render(self.tokenizer, "问", "很长的回答", max_target=5)
        assert spelled(row).endswith("<sop>很长的<eop>") and row.cut
        # what was cut in mid-sentence trains no end
        trained = [row.ids[position + 1] for position in row.target_positions]
        assert trained == row.ids[row.prefix : -1] and row.target_tokens == 4
        whole = render(self.tokenizer, "问", "很长的", max_target=5)
        assert not whole.cut and whole.target_tokens == 5
        message = "a limit of 12 tokens before the answer is too small: the image takes 13"
        with pytest.raises(UserError, match=message):
            render(self.tokenizer, "问", image_slots=8, max_source=12)


class TestAssistant:
    def test_stream_equals_batch(self, tiny_checkpoint):
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        sampling = Sampling(max_new_tokens=30, temperature=0, repetition_penalty=1.3)
        images = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")] + [None]
        questions = ["有什么？", "Describe the image.", "你好"]
        together = assistant.answer_batch(questions, images, sampling)
        for question, image, answer in zip(questions, images, together):
            pieces = list(assistant.stream(question, image, (), sampling))
            assert "".join(pieces) == answer

    def test_stream_never_breaks_a_character(self, tiny_checkpoint, monkeypatch):
        """Characters outside the vocabulary arrive as single bytes; none is shown incomplete."""
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        text = "卫星🛰飞过：龘"
        ids = assistant.family.tokenizer.encode(text)
        assert len(ids) > len(text) + 5
        monkeypatch.setattr("model.visualglm.family.generate", lambda *a, **k: ([i] for i in ids))
        pieces = list(assistant.stream("看", None))
        answer = "".join(pieces)
        assert answer == text.replace("：", "：") and len(pieces) >= 4 and "\ufffd" not in answer

    def test_image_is_encoded_once_per_dialogue(self, tiny_checkpoint, monkeypatch):
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        encoded = []
        real = assistant.family.encode_images

        def noted(images):
            encoded.append(len(images))
            return real(images)

        monkeypatch.setattr(assistant.family, "encode_images", noted)
        image, sampling = Image.new("RGB", (30, 30), "green"), Sampling(max_new_tokens=3)
        history = []
        for question in ("一", "二", "三"):
            answer = "".join(assistant.stream(question, image, history, sampling))
            history.append((question, answer))
        assert encoded == [1]

    def test_later_rounds_equal_the_uncached_path(self, tiny_base):
        """Three streamed rounds about an image, as a network without cache or packing answers."""
        assistant = load_assistant(TINY, device="cpu")
        tokenizer, sampling = assistant.family.tokenizer, Sampling(max_new_tokens=12, top_k=1)
        image = Image.new("RGB", (96, 96), "green")
        pixels = to_pixels(image, tiny_base.config.eva_args["image_size"])
        with torch.no_grad():
            embeds = tiny_base.encode_images(pixels[None])
        history = []
        for question in ("这是哪里？", "有路吗？", "还有什么？"):
            row = render(
                tokenizer, question, history=history, image_slots=tiny_base.config.image_length
            )
            shown = {"image_embeds": embeds, "image_start": row.image_start}
            (ids,) = uncached(tiny_base, [row.ids], 12, 1.2, **shown)
            if tokenizer.eop in ids:
                ids = ids[: ids.index(tokenizer.eop)]
            answer = "".join(assistant.stream(question, image, history, sampling))
            assert answer == tidy(tokenizer.decode(ids))
            history.append((question, answer))

    def test_rounds_that_do_not_fit_are_left_out_and_reported(self, tiny_checkpoint, monkeypatch):
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        asked, cuts = [], []

        def no_answer(network, prompts, **options):
            asked.append(prompts[0])
            return iter(())

        def note_cut(*cut):
            cuts.append(cut)

        def prompt(rounds):
            return render(
                assistant.family.tokenizer, "现在呢", history=[("问", "答" * 9)] * rounds
            ).ids

        monkeypatch.setattr("model.visualglm.family.generate", no_answer)
        for rounds in (2, 300):
            history = [("问", "答" * 9)] * rounds
            list(assistant.stream("现在呢", None, history, on_cut=note_cut))
        assert asked[0] == prompt(2)
        ((dropped, shortened),) = cuts
        assert shortened == 0 and asked[1] == prompt(300 - dropped)
        assert len(asked[1]) <= 2048 * 7 // 8 < len(prompt(301 - dropped))

        long, short_limit = "很长的问题" * 50, Sampling(max_length=64)
        list(assistant.stream(long, None, [("问", "答")] * 3, short_limit, on_cut=note_cut))
        whole = len(render(assistant.family.tokenizer, long).ids)
        assert cuts[1:] == [(3, whole - 56)] and len(asked[2]) == 56

    def test_tidy_and_stable_prefix(self):
        tidied = tidy(" 农田,有路!Yes, it is:好?[[训练时间]] ")
        assert tidied == "农田，有路！Yes, it is：好？2023年"
        for whole in ("农田,有路", "He isn 't here .", "今年是[[训练时间]]。", "a [ b"):
            shown = ""
            for end in range(1, len(whole) + 1):
                text = stable_prefix(whole[:end])
                assert text.startswith(shown) or shown.startswith(text)
                shown = max(shown, text, key=len)
