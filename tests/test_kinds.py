"""Every kind of checkpoint that training and export write, in every precision, answers in the
terminal and in the page.
"""

import json
import sys
from itertools import product
from types import SimpleNamespace

import fork_server
import pytest
import torch
from conftest import load
from safetensors.torch import load_file
from test_checkpoint import logits, sat_folder
from test_model import decoder_error, uncached
from test_web import free_port

import cli_demo
import export_RemoteGLM
import web_demo
from model import Sampling, read_image
from model.files import PROJECT
from model.quantization import QuantizedLinear
from model.training.run_folder import RunFolder
from model.visualglm import checkpoint
from model.visualglm.answer_text import tidy
from model.visualglm.generate import generate
from model.visualglm.lora import add_ptuning, without_adapter
from model.visualglm.pixels import to_pixels
from model.visualglm.prompt import render
from model.visualglm.quantization import to_nf4
from model.weight_files import CARD

TRAINED = {
    "lora": "--use_lora --lora_rank 2 --lora_targets attention mlp",
    "sight": "--lora_targets vision projection --lora_alpha 4 --trainable projection --bf16",
    "qlora": "--use_qlora --layer_range 0 2",
    "ptuning": "--use_ptuning --pre_seq_len 3 --lr 1",
    "full": "--mode pretrain --lr 0.002",
}
EXPORTED = {
    "sat": "sight",
    "hf": "lora",
    "int8": "sight",
    "int4": "qlora",
}  # format -> what is exported
WEIGHTS = (
    {kind: kind for kind in TRAINED} | EXPORTED | {"upstream": "qlora"}
)  # kind -> whose trained tensors it has
REFUSED = {
    ("int8", 4): "holds 8-bit weights, --quant 4 was asked for; leave it out",
    ("int4", 8): "holds 4-bit weights, --quant 8 was asked for; leave it out",
    (
        "narrow",
        4,
    ): "4-bit weights come in groups of 32: a layer of this network has 48 inputs; use 8 bits",
    ("peft", None): "here open the adapter that it was exported from",
}
COSINE = {8: 0.99, 4: 0.9}
QUESTION, LENGTH = "图中有什么？", 60
# One process trains them all: DeepSpeed keeps its process groups, so the next run must find the
# last one's.
SCRIPT = """import json, sys, finetune_RemoteGLM
finetune_RemoteGLM.leave_process_group = lambda *_: None
for argv in json.loads(sys.argv[1]):
    finetune_RemoteGLM.main(argv)"""


@pytest.fixture(scope="module")
def kinds(wide, tiny_checkpoint, rows, tmp_path_factory):
    """kind -> its folder. Two steps at a high rate, so that the answers change."""
    work = tmp_path_factory.mktemp("kinds")
    common = [
        "--from_pretrained",
        wide,
        "--train-data",
        rows / "rows-val.json",
        "--save",
        work,
        "--vision_cache",
        work / "cache",
        "--train-iters",
        2,
        "--batch-size",
        3,
        "--lr",
        0.1,
        "--device",
        "cpu",
        "--experiment-name",
    ]
    runs = [[*map(str, common), kind, *options.split()] for kind, options in TRAINED.items()]
    command = [sys.executable, "-c", SCRIPT, json.dumps(runs)]
    trained = fork_server.run(command, cwd=PROJECT)
    assert trained.returncode == 0, trained.stderr
    for form, kind in (EXPORTED | {"peft": "lora"}).items():
        export_RemoteGLM.main(
            ["--from_pretrained", str(work / kind), "--format", form, "--output", str(work / form)]
        )
    sat_folder(wide, work / "upstream", b"")
    network = load(work / "qlora", device="cpu")[0]
    torch.save(
        {"module": network.state_dict()}, work / "upstream" / "1" / "mp_rank_00_model_states.pt"
    )
    return {kind: work / kind for kind in (*WEIGHTS, "peft")} | {"narrow": tiny_checkpoint}


@torch.no_grad()
def network_by_hand(base, folder=None):
    """The base with what a run trained put into its own weights here: no LoRA layers, nothing
    packed or quantized.
    """
    network, tokenizer = checkpoint.load_base(base)
    tensors = {}
    if folder:
        (step,) = RunFolder(folder).steps()[-1:]
        (file,) = (folder / str(step)).glob("*.safetensors")
        tensors = {
            name.replace(".original.", "."): tensor.float()
            for name, tensor in load_file(file).items()
        }
        method = json.loads((folder / str(step) / CARD).read_text(encoding="utf-8"))["method"]
        if method["name"] == "ptuning":
            add_ptuning(network, method["length"])
    own = dict(network.named_parameters())
    for name in sorted(
        tensors, key=lambda name: ".matrix_" in name
    ):  # whole tensors first, then what is added to them
        if ".matrix_" not in name:
            own[name].copy_(tensors[name])
        elif ".matrix_B." in name:
            layer, part = name.split(".matrix_B.")
            change = (
                tensors[name]
                @ tensors[f"{layer}.matrix_A.{part}"]
                * (method["alpha"] / method["rank"])
            )
            own[f"{layer}.weight"][int(part) * len(change) :][: len(change)] += change
    return network, tokenizer


@pytest.fixture(scope="module")
def references(kinds, wide, rows):
    """Whose weights (None: the base's) -> their answer and logits, by the network's own forward
    pass without a cache.
    """
    found = {}
    for kind in (None, *TRAINED):
        network, tokenizer = network_by_hand(wide, kind and kinds[kind])
        row = render(tokenizer, QUESTION, image_slots=network.config.image_length)
        pixels = to_pixels(read_image(rows / "images/0.tif"), network.config.eva_args["image_size"])
        with torch.no_grad():
            embeds = network.encode_images(pixels[None])
        (ids,) = uncached(
            network,
            [row.ids],
            LENGTH - len(row.ids),
            1.2,
            image_embeds=embeds,
            image_start=row.image_start,
        )
        ids = ids[: ids.index(tokenizer.eop)] if tokenizer.eop in ids else ids
        found[kind] = SimpleNamespace(answer=tidy(tokenizer.decode(ids)), logits=logits(network))
    answers = [reference.answer for reference in found.values()]
    assert all(answers) and len(set(answers)) == len(answers)
    return found


def options(kinds, kind, bits):
    return [
        "--from_pretrained",
        str(kinds[kind]),
        "--device",
        "cpu",
        *(["--quant", str(bits)] if bits else []),
    ]


@pytest.fixture(scope="module")
def page():
    """A page for one assistant after the other: `ask`, by the functions behind its buttons, asks
    `assistant` greedily and returns the dialogues that it shows.
    """
    page = SimpleNamespace(
        has_adapter=False,
        first_question=lambda english: QUESTION,
        stream=lambda *asked: page.assistant.stream(*asked),
        seen=lambda image: page.assistant.seen(image),
    )
    functions = {entry.api_name: entry.fn for entry in web_demo.build(page).fns.values()}

    def ask(picture):
        me = SimpleNamespace(session_hash=picture)
        functions["image"](me, {"path": picture})
        outputs = functions["answer"](me, QUESTION, "alone", LENGTH, 0, 0)
        return [one[0] for one in outputs]

    page.ask = ask
    return page


def loaded_by_page(argv, monkeypatch):
    """The assistant that web_demo.py would serve."""
    loaded = []

    def scheduler(assistant, **options):
        loaded.append(assistant)
        sys.exit()

    monkeypatch.setattr("serving.scheduler.Scheduler", scheduler)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # main sets it: it is gone afterwards
    with pytest.raises(SystemExit) as end:
        web_demo.main([*argv, "--port", str(free_port())])
    assert end.value.code is None
    return loaded[0]


@pytest.mark.parametrize(
    "kind, bits", [pair for pair in product(WEIGHTS, (None, 8, 4)) if pair not in REFUSED]
)
def test_it_answers(kinds, references, page, rows, capsys, monkeypatch, kind, bits):
    """Terminal and page say the same, in pieces: unquantized what the weights say by hand, else
    from logits near to it.
    """
    picture, argv = str(rows / "images/0.tif"), options(kinds, kind, bits)
    tuned, base = references[WEIGHTS[kind]], references[None]
    cli_demo.main(
        [
            *argv,
            "--image",
            picture,
            "--prompt",
            QUESTION,
            "--max_length",
            str(LENGTH),
            "--temperature",
            "0",
            "--json",
            "--base",
        ]
    )
    said = json.loads(capsys.readouterr().out)
    page.assistant = assistant = loaded_by_page(argv, monkeypatch)
    monkeypatch.setattr("serving.page.talk.PERIOD", 0)
    sign, *streamed = [chat[1]["content"] for chat in page.ask(picture)]
    assert sign == "……"
    assert streamed[-1] == said["answer"] and len(set(streamed)) > 2
    assert all(later.startswith(earlier) for earlier, later in zip(streamed, streamed[1:]))
    bits = bits or {"int8": 8, "int4": 4}.get(kind)
    found = {
        module.bits
        for module in assistant.family.network.modules()
        if isinstance(module, QuantizedLinear)
    }
    assert found == {None: set(), 8: {8}, 4: {4, 8}}[bits]  # the head keeps 8

    def near(wanted, other):
        got = logits(assistant.family.network)
        return (
            torch.cosine_similarity(got, wanted, dim=-1).min() >= COSINE.get(bits, 1 - 1e-6)
            and (got - wanted).norm() < 0.8 * (got - other).norm()
        )

    assert near(tuned.logits, base.logits)
    assert bits or said["answer"] == tuned.answer
    assert ("base_answer" in said) == (kind in ("lora", "sight", "qlora", "ptuning", "upstream"))
    if "base_answer" in said:
        assert bits or said["base_answer"] == base.answer
        with assistant.untuned():
            assert near(base.logits, tuned.logits)


@pytest.mark.parametrize("kind, bits", REFUSED)
def test_it_is_refused_in_one_line(kinds, kind, bits):
    for main, more in (
        (cli_demo.main, ["--prompt", "x"]),
        (web_demo.main, ["--port", str(free_port())]),
    ):
        with pytest.raises(SystemExit) as end:
            main([*options(kinds, kind, bits), *more])
        assert REFUSED[kind, bits] in end.value.code and "\n" not in end.value.code


def test_decoding_over_nf4_equals_the_uncached_path(kinds):
    """The weights that QLoRA trains over, with what it trained and without."""
    network = load(kinds["qlora"], device="cpu")[0]
    to_nf4(network)
    assert (
        sum(type(module).__name__ == "Linear4bit" for module in network.modules())
        == 4 * network.config.num_layers
    )
    prompts = [list(range(10, 40)), list(range(100, 117))]

    def said():
        assert decoder_error(network) <= 1e-5
        rows = uncached(network, prompts, 12, 1.2)
        sampling = Sampling(max_new_tokens=12, temperature=0, repetition_penalty=1.2)
        assert [
            list(row) for row in zip(*generate(network, prompts, eop=-1, sampling=sampling))
        ] == rows
        assert [
            token for (token,) in generate(network, prompts[:1], eop=-1, sampling=sampling)
        ] == rows[0]
        return logits(network)

    tuned = said()
    with without_adapter(network):
        assert (said() - tuned).abs().max() > 1e-3
