"""The network against the official code's values, and every shortcut against the long way."""

import copy
import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from conftest import PIECES, TEXTS
from model.visualglm.stored import Stored
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import Sampling, UserError, load_assistant
from model.assistant import settled, tidy
from model.visualglm import loading as checkpoint
from model.visualglm.decoder import Decoder
from model.visualglm.generate import candidates, generate
from model.visualglm.packing import PackedLinear, pack
from model.visualglm.pixels import to_pixels
from model.visualglm.prompt import render
from model.visualglm.tokenizer import Tokenizer, train_vocabulary

FIXTURES = Path(__file__).parent / "fixtures"
TINY = Path(__file__).parent.parent / "model" / "tiny" / "base"
TOLERANCE = 2e-4
IMAGE_START, PREFIX = 3, 45  # of the reference's prompts


def reference_network(folder):
    """The network of a fixture folder: small checkpoints, and what the official VisualGLM-6B code computes with them."""
    stored = Stored(FIXTURES / folder)
    network = checkpoint.VisualGLM(stored.config, device="meta", init=False)
    checkpoint._fill(network, stored, torch.device("cpu"), torch.float32, None)
    if stored.method:
        checkpoint._add_adapter(
            network,
            stored.method,
            {name: stored.read(name) for name in stored.adapter},
            folder,
            torch.device("cpu"),
            torch.float32,
        )
    return network.eval()


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
    return network(
        expected["input_ids"],
        prefix,
        image_embeds=embeds,
        image_start=change.get("start", IMAGE_START),
    )[0]


class TestReference:
    @torch.no_grad()
    def test_image_encoder(self, network, expected):
        encoder = network.mixins["eva"].model
        vit = encoder.vit(expected["image"])
        queries = encoder.qformer(vit)
        assert (vit - expected["vit_out"]).abs().max() <= TOLERANCE
        assert (queries - expected["qformer_out"]).abs().max() <= TOLERANCE
        assert (
            network.encode_images(expected["image"]) - expected["image_embeds"]
        ).abs().max() <= TOLERANCE

    def test_logits(self, network, expected):
        assert (reference_logits(network, expected) - expected["logits"]).abs().max() <= TOLERANCE
        with torch.no_grad():
            text = network(expected["input_ids"], torch.tensor([PREFIX, PREFIX]))[0]
        assert (text - expected["logits_text_only"]).abs().max() <= TOLERANCE

    def test_comparison_sees_one_wrong_weight_mask_entry_or_position(
        self, network, expected, monkeypatch
    ):
        def off():
            return (reference_logits(network, expected) - expected["logits"]).abs().max()

        assert off() <= TOLERANCE
        attention = network.mixins["chatglm-attn"]
        real_attention, real_tables = attention.attention_fn, attention.tables

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
            patch.setattr(attention, "tables", move_one)
            assert off() > 2 * TOLERANCE
        assert off() <= TOLERANCE
        weight = network.transformer.layers[1].mlp.dense_4h_to_h.weight
        with torch.no_grad():
            kept = weight[0, 0].item()
            weight[0, 0] += 1
            changed = reference_logits(network, expected)
            weight[0, 0] = kept
        assert (changed - expected["logits"]).abs().max() > 10 * TOLERANCE

    def test_full_lora_checkpoint_of_the_ancestor(self):
        expected = load_file(FIXTURES / "visualglm-sat-lora" / "expected.safetensors")
        network = reference_network("visualglm-sat-lora")
        assert (reference_logits(network, expected) - expected["logits"]).abs().max() <= TOLERANCE
        with checkpoint.without_adapter(network):
            assert (
                reference_logits(network, expected) - expected["logits"]
            ).abs().max() > 10 * TOLERANCE

    def test_positions_and_mask(self, expected):
        """The rules this code computes positions and mask by, against those the official code recorded."""
        steps, prefix = torch.arange(59), PREFIX
        recorded = expected["position_ids"][0]
        assert torch.equal(torch.minimum(steps, torch.tensor(prefix - 1)), recorded[0])
        assert torch.equal((steps - prefix + 1).clamp(min=0), recorded[1])
        visible = (steps[None] <= steps[:, None]) | (steps[None] < prefix)
        assert torch.equal(visible, expected["attention_mask"][0, 0].bool())

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
        eop = network.config.vocab_size - 3
        steps = generate(
            network,
            [prompt],
            eop=eop,
            image_embeds=embeds,
            image_start=IMAGE_START,
            sampling=Sampling(max_new_tokens=24, top_k=1, repetition_penalty=penalty),
        )
        assert prompt + [token for (token,) in steps] == expected[key].tolist()


def uncached(network, prompts, new, penalty, **image):
    """Greedy ids [B, new] without any cache: all rows again for each token."""
    said = [[] for _ in prompts]
    for _ in range(new):
        rows = [prompt + row for prompt, row in zip(prompts, said)]
        width = max(map(len, rows))
        ends = torch.tensor([width * index + len(row) - 1 for index, row in enumerate(rows)])
        with torch.no_grad():
            logits = network(
                torch.tensor([row + [0] * (width - len(row)) for row in rows]),
                torch.tensor([len(prompt) - 1 for prompt in prompts]),
                logit_positions=ends,
                **image,
            )[0]
        for row, row_logits in zip(said, logits):
            for token in set(row):
                row_logits[token] /= penalty
            row.append(int(row_logits.argmax()))
    return said


@pytest.fixture(scope="module")
def tiny_base():
    """The bundled base as it is loaded for training: nothing packed."""
    return checkpoint.load_base(TINY)[0]


@pytest.mark.parametrize("which", ["visualglm-sat", "visualglm-hf", "tiny"])
def test_fifty_prompts_batched_and_alone_equal_uncached(which, tiny_base):
    """Random prompts of different lengths, half of them with a picture, in one batch and one by one."""
    network = tiny_base if which == "tiny" else reference_network(which)
    rng, slots = torch.Generator().manual_seed(1), network.config.image_length
    with_image = list(range(0, 50, 2))
    with torch.no_grad():
        embeds = network.encode_images(
            torch.randn(len(with_image), 3, *network.config.eva_args["image_size"], generator=rng)
        )
    lengths = torch.randint(2, 40, (50,), generator=rng) + torch.tensor(
        [slots + IMAGE_START, 0] * 25
    )
    prompts = [
        torch.randint(10, network.config.vocab_size, (n,), generator=rng).tolist() for n in lengths
    ]
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
        picture = (
            {}
            if index % 2
            else {"image_embeds": embeds[index // 2][None], "image_start": IMAGE_START}
        )
        assert [
            token for (token,) in generate(network, [prompt], eop=-1, sampling=sampling, **picture)
        ] == long_way[index]


class Recorder(TorchDispatchMode):
    """Stands in for a CUDA graph: notes each kernel with the very tensors it had, and runs them again without any Python between."""

    def __init__(self, step):
        super().__init__()
        self.calls = []
        with self:
            self.out = step()

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        out = kernel(*args, **kwargs or {})
        self.calls.append((kernel, args, kwargs or {}, out))
        return out

    def replay(self):
        for kernel, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(kernel(*args, **kwargs))):
                if (
                    torch.is_tensor(old) and old.data_ptr() != new.data_ptr()
                ):  # no view, not in place: the same address gets the new values
                    old.copy_(new)


@pytest.mark.parametrize("prefix", [0, 3], ids=["plain", "P-tuning"])
def test_recorded_steps_give_the_same_tokens(tiny_config, prefix, monkeypatch):
    """Rows of different lengths, over the end of two spans; what is replayed knows nothing but the tensors it was recorded with."""
    monkeypatch.setattr("model.visualglm.decoder.SPAN", 16)
    torch.manual_seed(4)
    network = checkpoint.VisualGLM(tiny_config).eval()
    if prefix:
        checkpoint.add_method(network, {"name": "ptuning", "length": prefix})
    recorded, prompts = [], [torch.randint(10, 400, (n,)).tolist() for n in (5, 12, 9)]

    def record(step):
        recorded.append(Recorder(step))
        return recorded[-1].replay, recorded[-1].out

    def answers(rows):
        return [
            list(row)
            for row in zip(
                *generate(
                    network,
                    rows,
                    eop=-1,
                    sampling=Sampling(max_new_tokens=30, temperature=0, repetition_penalty=1.2),
                )
            )
        ]

    plain = answers(prompts), answers(prompts[1:2])
    network.record = record
    assert (answers(prompts), answers(prompts[1:2])) == plain and len(
        recorded
    ) == 6  # 12 + 30 slots: up to 16, 32 and the end
    assert len({tuple(row) for row in plain[0]}) == 3


def test_graphs_need_a_gpu(tiny_base):
    with pytest.raises(UserError, match="CUDA graphs need a CUDA GPU, the device is cpu"):
        load_assistant(TINY, device="cpu", cuda_graphs=True)


def decoder_error(network, rows=3, steps=3):
    """Largest difference between the decoder's logits and the network's own, over a prompt and some tokens after it."""
    rng = torch.Generator().manual_seed(3)
    lengths = [9, 24, 17][:rows]
    ids = torch.randint(10, 200, (rows, 24 + steps), generator=rng)
    error = scale = 0.0
    with torch.no_grad():
        decoder = Decoder(network, lengths, steps)
        for step in range(steps + 1):
            if step:
                said = torch.stack([row[n + step - 1] for row, n in zip(ids, lengths)])
            got = decoder.step(said) if step else decoder.prefill(ids[:, : max(lengths)])
            wanted = network(ids, torch.tensor(lengths) - 1)[0]
            wanted = torch.stack([row[n + step - 1] for row, n in zip(wanted, lengths)])
            error, scale = (
                max(error, (got - wanted).abs().max().item()),
                max(scale, wanted.abs().max().item()),
            )
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
    network = checkpoint.load_base(TINY, dtype=str(dtype).removeprefix("torch."))[0]
    if method:
        with torch.no_grad():
            plain = network(torch.arange(10, 40)[None], torch.tensor([25]))[0]
            checkpoint.add_method(network, method)
            for name in checkpoint.adapter_names(network):
                torch.nn.init.normal_(network.get_parameter(name), std=std)
            changed = network.eval()(torch.arange(10, 40)[None], torch.tensor([25]))[0]
        assert (changed - plain).abs().max() > 0.1 * plain.abs().max()
        with checkpoint.without_adapter(network):
            assert decoder_error(network) <= tolerance
    assert decoder_error(network) <= tolerance
    assert decoder_error(network, rows=1) <= tolerance


@pytest.mark.parametrize("bits", [8, 4])
def test_decoder_over_quantized_layers(bits):
    assert decoder_error(checkpoint.load_base(TINY, bits=bits)[0]) <= 3e-2


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_packed_layers_compute_the_same(dtype, tolerance, monkeypatch):
    def build():
        return checkpoint.load_base(TINY, dtype=dtype)[0]

    if dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU's oneDNN has no bfloat16")
    network, pixels = build(), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        logits, embeds = (
            network(torch.arange(10, 40)[None], torch.tensor([25]))[0],
            network.encode_images(pixels),
        )
        pack(network, {torch.float32: 0, torch.bfloat16: 0})
        kinds = [type(m) for m in network.modules()]
        assert kinds.count(PackedLinear) > 40 and torch.nn.Linear not in kinds
        assert (
            network(torch.arange(10, 40)[None], torch.tensor([25]))[0] - logits
        ).abs().max() <= tolerance * logits.abs().max()
        assert (
            network.encode_images(pixels) - embeds
        ).abs().max() <= tolerance * embeds.abs().max()
    assert decoder_error(network) <= tolerance
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = build()
    pack(network, {torch.float32: 0, torch.bfloat16: 0})
    assert not any(isinstance(m, PackedLinear) for m in network.modules())


def test_packing_never_holds_the_weights_twice(monkeypatch):
    """Each layer is gone before the next one's turn: the real network's take 15 GB."""
    network, left = checkpoint.load_base(TINY)[0], []
    layers = [
        weakref.ref(module)
        for module in network.modules()
        if getattr(module, "weight", torch.zeros(0)).ndim == 2
    ]

    class Watched(PackedLinear):
        def __init__(self, *given):
            super().__init__(*given)
            left.append(sum(layer() is not None for layer in layers))

    monkeypatch.setattr("model.visualglm.packing.PackedLinear", Watched)
    pack(network, {torch.float32: 0})
    assert len(left) > 40 and left == list(range(left[0], left[0] - len(left), -1))


def test_limits_and_stop(network, expected):
    prompt = expected["greedy_prompt"].tolist()
    greedy = [
        token
        for (token,) in generate(
            network, [prompt], eop=-1, sampling=Sampling(max_new_tokens=6, top_p=0)
        )
    ]
    assert len(greedy) == 6
    stop = greedy[3]
    assert [
        t
        for (t,) in generate(
            network, [prompt], eop=stop, sampling=Sampling(max_new_tokens=6, top_p=0)
        )
    ] == greedy[: greedy.index(stop)]
    assert (
        len(
            list(
                generate(
                    network,
                    [prompt],
                    eop=-1,
                    sampling=Sampling(max_length=len(prompt) + 2, top_p=0),
                )
            )
        )
        == 2
    )
    assert list(generate(network, [prompt], eop=-1, sampling=Sampling(max_length=10))) == []
    banned = list(
        generate(
            network,
            [prompt],
            eop=-1,
            sampling=Sampling(max_new_tokens=6, top_p=0),
            banned=slice(100, 512),
        )
    )
    assert all(token < 100 for (token,) in banned)
    longer = [
        t
        for (t,) in generate(
            network,
            [prompt],
            eop=stop,
            sampling=Sampling(min_new_tokens=5, max_new_tokens=6, top_p=0),
        )
    ]
    assert (
        len(longer) >= 5
        and stop not in longer
        and longer[: greedy.index(stop)] == greedy[: greedy.index(stop)]
    )


@pytest.mark.parametrize(
    "top_k, top_p, temperature, penalty",
    [(100, 0.4, 0.8, 1.2), (5, 0.9, 1.3, 1.0), (50, 0.0, 0.8, 1.5)],
)
def test_sampling_follows_sat(top_k, top_p, temperature, penalty):
    """Weights against SAT's own functions, penalty on negative logits and top_p = 0 included."""
    from sat.generation.sampling_strategies.base_strategy import top_k_logits

    torch.manual_seed(2)
    logits, said = torch.randn(3, 200) * 3, torch.randint(200, (3, 40))  # some of them twice
    used = torch.zeros(3, 200, dtype=torch.bool).scatter(1, said, True)
    theirs = top_k_logits(
        logits / torch.where(used, penalty * temperature, temperature), top_k, top_p
    ).softmax(-1)
    ids, weights = candidates(
        logits,
        said,
        Sampling(top_k=top_k, top_p=top_p, temperature=temperature, repetition_penalty=penalty),
    )
    ours = torch.zeros_like(logits).scatter(1, ids, weights / weights.sum(-1, keepdim=True))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_seed_repeats_a_sample(network, expected):
    prompt = expected["greedy_prompt"].tolist()
    hot = dict(max_new_tokens=12, temperature=5.0, top_p=1.0, top_k=0)
    runs = [
        [t for (t,) in generate(network, [prompt], eop=-1, sampling=Sampling(seed=seed, **hot))]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_patch_dropout(tiny_base):
    """While training, layers see the class token and another random half of the patches, at their own positions; else all of them."""
    network, seen = copy.deepcopy(tiny_base), []
    tower = network.mixins["eva"].model.vit
    hook = tower.transformer.layers[0].register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0].detach())
    )
    tower.transformer.embedding_dropout.share = 0.5
    pixels = torch.randn(
        2, 3, *network.config.eva_args["image_size"], generator=torch.Generator().manual_seed(1)
    )
    network.eval()
    network.encode_images(pixels)
    network.train()
    for _ in range(60):
        network.encode_images(pixels)
    hook.remove()
    whole, *halves = seen
    patches = whole.size(1) - 1
    which = [
        (half[:, :, None] == whole[:, None]).all(-1) for half in halves
    ]  # [2, 1 + kept, 1 + patches]
    assert all(
        half.size(1) == 1 + patches // 2
        and w[:, 0, 0].all()
        and (w.sum(-1) == 1).all()
        and (w.sum(1) <= 1).all()
        for half, w in zip(halves, which)
    )
    share = (
        torch.stack([w.any(1)[:, 1:] for w in which]).float().mean(0)
    )  # of the times that a patch was kept
    assert 0.2 < share.min() and share.max() < 0.8 and not torch.equal(which[0][0], which[0][1])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 2e-2)])
def test_attention_while_training(network, dtype, tolerance):
    """In bfloat16 on a CPU the training pass has products of its own: against the fused ones, values and gradients."""
    torch.manual_seed(4)
    q, k, v = (torch.randn(2, 4, 12, 16).to(dtype).requires_grad_() for _ in range(3))
    prefix = (torch.ones(12, 12).tril().bool() | (torch.arange(12) < 5)).expand(2, 1, 12, 12)
    language, vision = (
        network.mixins["chatglm-attn"].attention_fn,
        network.mixins["eva"].model.vit.mixins["attention"].attention_fn,
    )
    for visible, got in (
        (prefix, language(q, k, v, None, visible=prefix)),
        (None, vision(q, k, v, None)),
    ):
        results = []
        for out in (
            got,
            torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible),
        ):
            results.append([out, *torch.autograd.grad((out * torch.arange(16)).sum(), (q, k, v))])
        for ours, fused in zip(*results):
            assert (ours - fused).abs().max() <= tolerance * fused.abs().max()


class TestTokenizer:
    def test_round_trip(self, vocabulary, tiny_config):
        tokenizer = Tokenizer(vocabulary, tiny_config)
        for text in ("绿色的农田", "问：图中有什么？\n答：", "a\tb  c", "生僻字龘🛰"):
            ids = tokenizer.encode(text)
            assert all(0 <= i < 338 for i in ids)
            assert tokenizer.decode(ids) == text.replace("：", ":").replace("？", "?")  # nfkc
        assert (
            tokenizer.decode(
                [tokenizer.gmask, tokenizer.sop, *tokenizer.encode("农田"), tokenizer.eop, 507]
            )
            == "农田"
        )

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
        """All recorded vectors both ways, where ChatGLM's own vocabulary is at hand: REMOTEGLM_VOCABULARY=ice_text.model"""
        path = os.environ.get("REMOTEGLM_VOCABULARY")
        if not path:
            pytest.skip(
                "REMOTEGLM_VOCABULARY does not name ChatGLM's ice_text.model (2.7 MB, not part of this project)"
            )
        vectors = json.loads((FIXTURES / "chatglm-tokenizer.json").read_text(encoding="utf-8"))
        special = vectors["special"]
        tokenizer = Tokenizer(
            path,
            {
                "vocab_size": 130528,
                "gmask_token_id": special["gmask"],
                "bos_token_id": special["bos(sop)"],
                "pad_token_id": special["pad"],
            },
        )
        for vector in vectors["vectors"]:
            assert tokenizer.encode(vector["text"]) == vector["ids"]
            assert tokenizer.decode(vector["ids_with_special"]) == vector["decoded"]
        for pair in vectors["pairs"]:
            assert [*pair["a"], tokenizer.gmask, tokenizer.sop, *pair["b"], tokenizer.eop] == pair[
                "with_special"
            ]

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
        with pytest.raises(
            UserError,
            match=r"\d+ bytes with sha256 \w{12}\.\.\., expected ChatGLM-6B's 5e974d9a69c2",
        ):
            Tokenizer(vocabulary, tiny_config | {"vocab_size": 130528})

    def test_too_large_for_the_network(self, vocabulary, tiny_config):
        with pytest.raises(UserError, match="338 pieces, the network only 300"):
            Tokenizer(vocabulary, tiny_config | {"vocab_size": 300})


class Words:
    """A tokenizer whose ids are easy to read: one per character."""

    gmask, sop, eop, pad = -1, -2, -3, -4

    def encode(self, text):
        return [ord(c) for c in text]


def spelled(rendered):
    names = {-1: "[gMASK]", -2: "<sop>", -3: "<eop>", -4: "_"}
    return "".join(names.get(i) or chr(i) for i in rendered.ids)


class TestDialogue:
    def test_golden(self):
        row = render(Words(), "有什么？", "农田。", image_slots=4)
        assert spelled(row) == "<img>____</img>问：有什么？\n答：[gMASK]<sop>农田。<eop>"
        assert (row.prefix, row.image_start, row.cut) == (row.ids.index(-2), 5, False)
        trained = [(row.ids[i], row.ids[i + 1]) for i in row.target_positions]
        assert trained[0] == (-1, -2) and trained[-1] == (ord("。"), -3) and len(trained) == 5

    def test_rounds_text_only_and_english(self):
        row = render(Words(), "再说", history=[("问一", "答一"), ("问二", "答二")])
        assert (
            spelled(row) == "问：问一\n答：答一\n问：问二\n答：答二\n问：再说\n答：[gMASK]<sop>"
            and row.image_start is None
        )
        assert (
            spelled(render(Words(), "What?", english=True, image_slots=1))
            == "<img>_</img>Q:What?\nA:[gMASK]<sop>"
        )

    def test_limits(self):
        history = [("旧问", "旧答"), ("新问", "新答")]
        whole = render(Words(), "现在", history=history, image_slots=3)
        row = render(Words(), "现在", history=history, image_slots=3, max_source=whole.prefix - 1)
        assert (
            spelled(row) == "<img>___</img>问：新问\n答：新答\n问：现在\n答：[gMASK]<sop>"
            and row.cut
        )
        row = render(Words(), "很长的问题" * 5, image_slots=3, max_source=25)
        assert (
            row.prefix == 25
            and spelled(row) == "<img>___</img>问：很长的问题\n答：[gMASK]<sop>"
            and row.cut
        )
        row = render(Words(), "问", "很长的回答", max_target=5)
        assert spelled(row).endswith("<sop>很长的<eop>") and row.cut
        with pytest.raises(
            UserError,
            match="a limit of 12 tokens before the answer is too small: the image takes 13",
        ):
            render(Words(), "问", image_slots=8, max_source=12)


class TestAssistant:
    def test_stream_equals_batch(self, tiny_checkpoint):
        from PIL import Image

        assistant = load_assistant(tiny_checkpoint, device="cpu")
        sampling = Sampling(max_new_tokens=30, temperature=0, repetition_penalty=1.3)
        images = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")] + [None]
        questions = ["有什么？", "Describe the image.", "你好"]
        together = assistant.answer_batch(questions, images, sampling)
        for question, image, answer in zip(questions, images, together):
            pieces = list(assistant.stream(question, image, (), sampling))
            assert "".join(pieces) == answer

    def test_stream_never_breaks_a_character(self, tiny_checkpoint, monkeypatch):
        """Characters outside the vocabulary arrive as single bytes; none is shown before it is whole."""
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        text = "卫星🛰飞过：龘"
        ids = assistant.tokenizer.encode(text)
        assert len(ids) > len(text) + 5
        monkeypatch.setattr("model.assistant.generate", lambda *a, **k: ([i] for i in ids))
        pieces = list(assistant.stream("看", None))
        assert (
            "".join(pieces) == text.replace("：", "：")
            and len(pieces) >= 4
            and "\ufffd" not in "".join(pieces)
        )

    def test_image_is_encoded_once_per_dialogue(self, tiny_checkpoint, monkeypatch):
        from PIL import Image

        assistant = load_assistant(tiny_checkpoint, device="cpu")
        encoded = []
        real = assistant.encode_images
        monkeypatch.setattr(
            assistant, "encode_images", lambda images: encoded.append(len(images)) or real(images)
        )
        image, sampling = Image.new("RGB", (30, 30), "green"), Sampling(max_new_tokens=3)
        history = []
        for question in ("一", "二", "三"):
            history.append(
                (question, "".join(assistant.stream(question, image, history, sampling)))
            )
        assert encoded == [1]

    def test_later_turns_equal_the_uncached_path(self, tiny_base):
        """Streamed through three turns about a picture: text and rounds as a network without cache or packing has them."""
        from PIL import Image

        assistant = load_assistant(TINY, device="cpu")
        image = Image.new("RGB", (96, 96), "green")
        with torch.no_grad():
            embeds = tiny_base.encode_images(
                to_pixels(image, tiny_base.config.eva_args["image_size"])[None]
            )
        history = []
        for question in ("这是哪里？", "有路吗？", "还有什么？"):
            row = render(
                assistant.tokenizer, question, history=history, image_slots=assistant.image_slots
            )
            (ids,) = uncached(
                tiny_base, [row.ids], 12, 1.2, image_embeds=embeds, image_start=row.image_start
            )
            said = "".join(
                assistant.stream(question, image, history, Sampling(max_new_tokens=12, top_k=1))
            )
            ids = (
                ids[: ids.index(assistant.tokenizer.eop)] if assistant.tokenizer.eop in ids else ids
            )
            assert said == tidy(assistant.tokenizer.decode(ids))
            history.append((question, said))

    def test_rounds_that_do_not_fit_are_left_out_and_said_so(self, tiny_checkpoint, monkeypatch):
        assistant = load_assistant(tiny_checkpoint, device="cpu")
        asked, cuts = [], []
        monkeypatch.setattr(
            "model.assistant.generate",
            lambda network, prompts, **k: asked.append(prompts[0]) or iter(()),
        )

        def prompt(rounds):
            return render(assistant.tokenizer, "现在呢", history=[("问", "答" * 9)] * rounds).ids

        for rounds in (2, 300):
            list(
                assistant.stream(
                    "现在呢",
                    None,
                    [("问", "答" * 9)] * rounds,
                    on_cut=lambda *cut: cuts.append(cut),
                )
            )
        assert asked[0] == prompt(2)
        ((dropped, shortened),) = cuts
        assert (
            shortened == 0
            and asked[1] == prompt(300 - dropped)
            and len(asked[1]) <= 2048 * 7 // 8 < len(prompt(301 - dropped))
        )
        long = "很长的问题" * 50
        list(
            assistant.stream(
                long,
                None,
                [("问", "答")] * 3,
                Sampling(max_length=64),
                on_cut=lambda *cut: cuts.append(cut),
            )
        )
        whole = len(render(assistant.tokenizer, long).ids)
        assert cuts[1:] == [(3, whole - 56)] and len(asked[2]) == 56

    def test_tidy_and_settled(self):
        assert (
            tidy(" 农田,有路!Yes, it is:好?[[训练时间]] ") == "农田，有路！Yes, it is：好？2023年"
        )
        for whole in ("农田,有路", "He isn 't here .", "今年是[[训练时间]]。", "a [ b"):
            said = ""
            for end in range(1, len(whole) + 1):
                text = settled(whole[:end])
                assert text.startswith(said) or said.startswith(text)
                said = max(said, text, key=len)
