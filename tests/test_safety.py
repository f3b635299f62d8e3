"""Files from elsewhere: none runs code, leads out of its folder or takes minutes to be refused."""

import json
import os
import pickle
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch

import cli_demo
from data.exports import read_dataset_info
from data.image_check import CACHE, read_cache
from data.journal import Journal
from data.records import read_records
from evaluation.predictions import read_predictions
from model import UserError
from model.adapters import MANIFEST
from model.answer_file import AnswerFile
from model.devices import choose_device
from model.files import PROJECT, is_inside, parse_json, read_json
from model.find import find_checkpoint
from model.opening import open_checkpoint
from model.rows import Sample, load_rows
from model.training.log import Log
from model.training.resume import read_progress, resume
from model.training.run_folder import REPLACED, RunFolder
from model.visualglm.family import VisualGLMFamily
from model.visualglm.layouts import read_config
from model.weight_files import ADAPTER, CARD, CONFIG, weight_files

DEEP = "[" * 100_000
UNPICKLES = re.compile(
    r"\bpickle\.loads?\b|\bpickle\.Unpickler|\b(?:dill|cloudpickle|joblib|marshal|shelve)\b"
    r"|torch\.load\((?!.*weights_only=True)|allow_pickle|\.load_checkpoint\(|weights_only=False"
    r"|\bpd\.read_pickle"
)


def test_nothing_of_the_project_unpickles():
    """But for torch.load(weights_only=True), which builds tensors and calls nothing."""
    found = []
    for path in sorted(PROJECT.rglob("*.py")):
        place = path.relative_to(PROJECT)
        # Tests make such files, the benchmark of loading makes the pickles it compares with
        if place.parts[0] in (".venv", "tests") or str(place) == "benchmarks/load.py":
            continue
        found += [f"{place}: {line}" for line in UNPICKLES.findall(path.read_text("utf-8"))]
    assert found == []
    for path in (PROJECT / "model/training").glob("*.py"):
        assert "torch.save(" not in path.read_text("utf-8"), path
    benchmark = (PROJECT / "benchmarks/load.py").read_text()
    assert all("weights_only=True" in s for s in re.findall(r"torch\.load\(.*", benchmark))


class Trap:
    """Its pickle makes a folder, if it is ever loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000, text
    return text


@pytest.mark.parametrize("name", ["state/optimizer-0.safetensors", "state/random-0.safetensors"])
def test_resume_runs_nothing_of_a_prepared_folder(tmp_path, name):
    """A pickle in the place of a file, its hash beside it."""
    run = RunFolder(tmp_path / "x").prepare()
    progress = {"options": {}, "world": 1, "best": None, "waited": 0, "base": None, "steps": 1}
    progress |= {"rows per step": 1, "training rows": "", "held-out rows": None}
    new = run.scratch(3)
    (new / "state").mkdir(parents=True)
    (new / "state/progress.json").write_text(json.dumps(progress))
    for file in ("optimizer-0", "random-0", "trained"):
        torch.save({"a": Trap(tmp_path / "trap")}, new / f"state/{file}.safetensors")
    (new / name).write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    run.publish(3)
    assert run.damage(3) is None

    processes = SimpleNamespace(
        is_main=True, rank=0, world=1, from_main=int, together=Nothing, say=print
    )
    engine = SimpleNamespace(zero_optimization_stage=lambda: 0)
    with pytest.raises(UserError, match="cannot be resumed from") as caught:
        resume(run, SimpleNamespace(parts=()), engine, processes, progress)
    one_line(caught)
    assert not (tmp_path / "trap").exists()


class Nothing:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def test_a_step_of_an_earlier_version_says_what_to_do(tmp_path):
    (tmp_path / "3/state/engine").mkdir(parents=True)
    (tmp_path / "3/state/engine/mp_rank_00_model_states.pt").write_bytes(
        pickle.dumps(Trap(tmp_path / "trap"))
    )
    (tmp_path / "3/state/progress.json").write_text("{}")
    with pytest.raises(UserError, match="pickles.*as a new run: --from_pretrained .*3 --exp") as e:
        read_progress(tmp_path / "3/state")
    one_line(e)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("content", [DEEP, "[]", "{}", '{"options": 3}', "\xff", "1" * 5000])
def test_a_progress_file_of_another_kind(tmp_path, content):
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(UserError, match="state of the run") as caught:
        read_progress(tmp_path)
    one_line(caught)


@pytest.mark.parametrize("content", [DEEP, "[]", "{}", "3", '{"../../secret": "0"}', "{", ""])
def test_a_manifest_of_another_kind_is_damage(tmp_path, content):
    run = RunFolder(tmp_path / "x").prepare()
    (run.folder / "3").mkdir()
    (run.folder / "3" / MANIFEST).write_text(content)
    assert run.damage(3) == MANIFEST


def test_a_manifest_reads_nothing_outside(tmp_path):
    """Not by an absolute path, nor through a link."""
    run = RunFolder(tmp_path / "x").prepare()
    step = run.folder / "3"
    step.mkdir()
    (tmp_path / "secret").write_text("s")
    (step / "link").symlink_to(tmp_path / "secret")
    for name in (str(tmp_path / "secret"), "link", "a/../../../secret", "x" * 5000, "\0"):
        (step / MANIFEST).write_text(json.dumps({name: "0"}))
        assert run.damage(3) == MANIFEST, name
    (run.folder / "9").symlink_to(tmp_path)
    (run.folder / "²").mkdir()
    assert run.steps() == [3]


class TestLatest:
    OUTSIDE = ["..", "../other", "ABSOLUTE", "link", "1/../../other", "x" * 5000, "9" * 5000, "a\0"]

    @pytest.mark.parametrize("tag", OUTSIDE)
    def test_it_does_not_lead_out_of_the_folder(self, tiny_checkpoint, tmp_path, tag):
        shutil.copytree(tiny_checkpoint, tmp_path / "other")
        run = tmp_path / "run"
        run.mkdir()
        (run / "link").symlink_to(tmp_path / "other")
        (run / "latest").write_text(tag.replace("ABSOLUTE", str(tmp_path / "other")))
        with pytest.raises(UserError, match="latest` names|not a checkpoint") as caught:
            find_checkpoint(run)
        one_line(caught)
        # SAT's layout: its `latest` names the folder of the weights
        (run / CONFIG).write_text("{}")
        with pytest.raises(UserError):
            (file,) = weight_files(run)
            open_checkpoint(run)

    def test_a_step_inside_is_found(self, tiny_checkpoint, tmp_path):
        shutil.copytree(tiny_checkpoint, tmp_path / "run/300")
        (tmp_path / "run/latest").write_text("300\n")
        (tmp_path / "by-link").symlink_to(tmp_path / "run")
        assert find_checkpoint(tmp_path / "by-link").name == "300"

    @pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", 5, "a/b.bin"])
    def test_an_index_names_files_of_its_folder(self, tmp_path, name):
        (tmp_path / "config.json").write_text("{}")
        index = {"weight_map": {"a": name}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="expected files of this folder") as caught:
            weight_files(tmp_path)
        one_line(caught)


def log_of(path):
    shutil.copy(path, path.with_name("metrics.jsonl"))
    return Log(path.parent).open(5)


READERS = {
    "read_json": lambda path: read_json(path, "a file"),
    "rows": load_rows,
    "rows in lines": lambda path: load_rows(shutil.copy(path, path.with_suffix(".jsonl"))),
    "records": lambda path: list(read_records(path)),
    "records in lines": lambda path: list(
        read_records(path.with_name(shutil.copy(path, path.with_suffix(".jsonl")).name))
    ),
    "answers": lambda path: AnswerFile(path).open(),
    "predictions": lambda path: read_predictions(path, [], []),
    "registry": lambda path: read_dataset_info(
        shutil.copy(path, path.with_name("dataset_info.json")).parent
    ),
    "configuration": read_config,
}


@pytest.mark.parametrize("content", [DEEP, '{"a":' * 100_000, "1" * 5000], ids=["[", "{", "1"])
@pytest.mark.parametrize("reader", READERS)
def test_json_nested_too_deeply_is_one_line(tmp_path, reader, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    one_line(caught)


def test_json_nested_too_deeply_is_no_line_of_a_journal(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(DEEP + "\n")
    shutil.copy(path, tmp_path / CACHE)
    assert read_cache(tmp_path / CACHE, "2") == {} and log_of(path).entries == []
    assert Journal(path).read("detailed") == {}
    with pytest.raises(json.JSONDecodeError, match="nested too deeply"):
        parse_json(DEEP)


ABSURD = {
    "a million layers": {"num_layers": 1_000_000},
    "no layers": {"num_layers": 0},
    "half a layer": {"num_layers": 2.5},
    "true layers": {"num_layers": True},
    "text": {"hidden_size": "48"},
    "heads that do not divide": {"num_attention_heads": 5},
    "width of a head": {"num_attention_heads": 24},
    "vocabulary": {"vocab_size": 10**12},
    "negative": {"image_length": -1},
    "too large in all": {"num_layers": 1000, "hidden_size": 96_000, "inner_hidden_size": 900_000},
    "epsilon": {"layernorm_epsilon": float("nan")},
    "order": {"layernorm_order": "sideways"},
    "a million layers of vision": {"eva_args": {"num_layers": 1_000_000}},
    "no patches": {"eva_args": {"patch_size": 0}},
    "image size": {"eva_args": {"image_size": 28}},
    "image sizes": {"eva_args": {"image_size": [28, "28"]}},
    "missing": {"eva_args": {"in_channels": None}},
    "a million queries' layers": {"qformer_args": {"num_layers": 10**6}},
    "family": {"model_type": ["visualglm"]},
    "decoder": {"qformer_args": {"is_decoder": [True]}},
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_configurations_are_refused_at_once(tiny_checkpoint, tmp_path, case):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    config = json.loads((folder / CONFIG).read_text())
    for key, value in ABSURD[case].items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (folder / CONFIG).write_text(json.dumps(config))
    start = time.perf_counter()
    with pytest.raises(UserError, match=str(folder / CONFIG)) as caught:
        open_checkpoint(folder, device="cpu")
    one_line(caught)
    assert time.perf_counter() - start < 2


def test_a_network_larger_than_the_machine_is_not_begun(config_file, tmp_path):
    config = json.loads(config_file.read_text())
    config |= {"num_layers": 900, "hidden_size": 9600, "inner_hidden_size": 38400}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="takes about .* GB in float32, the machine has") as caught:
        VisualGLMFamily.from_config(
            tmp_path / CONFIG, tokenizer=None, device=torch.device("cpu"), dtype=torch.float32
        )
    one_line(caught)


def test_a_long_value_is_shown_shortened(config_file, tmp_path):
    config = json.loads(config_file.read_text()) | {"eva_args": [0] * 100_000}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="eva_args is .*, expected an object") as caught:
        read_config(tmp_path / CONFIG)
    one_line(caught)


def test_a_prepared_run_folder_removes_nothing_outside(tmp_path):
    (tmp_path / "mine").mkdir()
    run = RunFolder(tmp_path / "x").prepare()
    (run.folder / REPLACED).write_text(json.dumps(["../mine", str(tmp_path / "mine"), None, 3]))
    (run.folder / "best").write_bytes(b"\xff" * 5000)
    (run.folder / "latest").write_text("../mine")
    run.drop(run.replaced())
    assert run.replaced() == [3] and (tmp_path / "mine").is_dir()
    assert not (run.folder / "best").exists() and not (run.folder / "latest").exists()
    (run.folder / REPLACED).write_text(DEEP)
    with pytest.raises(UserError, match="list of replaced steps") as caught:
        run.steps()
    one_line(caught)


CARDS = {
    "base": {"base": 3},
    "path": {"base": {"path": 3, "fingerprint": "0"}},
    "method": {"method": []},
    "name": {"method": {}},
    "other": {"method": {"name": "telepathy"}},
    "rank": {"method": {"name": "lora", "rank": 10**12, "layers": [0], "alpha": 1.0}},
    "layers": {"method": {"name": "lora", "rank": 4, "layers": [10**6], "alpha": 1.0}},
    "prefix": {"method": {"name": "ptuning", "length": "4"}},
}


@pytest.mark.parametrize("case", CARDS)
def test_cards_of_another_kind(tiny_checkpoint, tmp_path, case):
    base = open_checkpoint(tiny_checkpoint, device="cpu").base_fingerprint
    card = {
        "base": {"path": str(tiny_checkpoint), "fingerprint": base},
        "method": {"name": "ptuning", "length": 4},
    }
    shutil.copytree(tiny_checkpoint, tmp_path / "adapter")
    (tmp_path / "adapter/model.safetensors").rename(tmp_path / "adapter" / ADAPTER)
    (tmp_path / "adapter" / CARD).write_text(json.dumps(card | CARDS[case]))
    with pytest.raises(UserError) as caught:
        open_checkpoint(tmp_path / "adapter", device="cpu")
    one_line(caught)


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda trap: {"module": {"a": trap}}, "a pickle that calls posix.mkdir"),
        (lambda trap: {"module": {"a": 3}}, "not a table of tensors by name"),
        (lambda trap: {"module": [torch.ones(1)]}, "the weights cannot be read"),
        (lambda trap: trap, "a pickle that calls posix.mkdir"),
    ],
)
def test_a_checkpoint_that_is_code_is_refused_in_our_words(
    tiny_checkpoint, tmp_path, content, words
):
    folder = tmp_path / "sat"
    (folder / "1").mkdir(parents=True)
    shutil.copy(tiny_checkpoint / CONFIG, folder)
    shutil.copy(tiny_checkpoint / "ice_text.model", folder)
    (folder / "latest").write_text("1")
    torch.save(content(Trap(tmp_path / "trap")), folder / "1/mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match=words) as caught:
        open_checkpoint(folder, device="cpu")
    assert "weights_only" not in one_line(caught) and not (tmp_path / "trap").exists()


@pytest.fixture
def served():
    """An address of this machine, and the paths asked for there."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.mark.parametrize("allowed", [False, True])
def test_addresses_in_rows_do_not_reach_private_hosts(tiny_checkpoint, tmp_path, served, allowed):
    address, asked = served
    (tmp_path / "rows.json").write_text(json.dumps([{"img": f"{address}/a.png", "prompt": "x"}]))
    argv = ["--from_pretrained", tiny_checkpoint, "--input", tmp_path / "rows.json"]
    argv += ["--output", tmp_path / "answers.jsonl", "--device", "cpu"]
    argv += ["--allow-private-hosts"] * allowed
    words = "the server answered 404" if allowed else "not on the public .*--allow-private-hosts"
    with pytest.raises(SystemExit, match=words):
        cli_demo.main(list(map(str, argv)))
    assert asked == (["/a.png"] if allowed else [])


@pytest.mark.parametrize("name", ["meta", "tpu9", "cuda:99", "hpu", "vulkan", "privateuseone"])
def test_devices_that_compute_nothing(name):
    with pytest.raises(UserError, match="cannot be used here"):
        choose_device(name)


def test_inside(tmp_path):
    assert is_inside(tmp_path, "a/b") and not is_inside(tmp_path, "..")
    assert Sample(tmp_path, "a", "b").image == tmp_path
