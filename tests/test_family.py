"""The line between a family of networks and the rest of the house.

The rest runs on a second family that shares nothing with VisualGLM (mean_color.py), and its files
name nothing of VisualGLM's inside.
"""

import ast
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import fork_server
import pytest
from conftest import PROJECT, TEXTS
from mean_color import write_base
from PIL import Image
from safetensors.torch import load_file

import cli_demo
import evaluate_RemoteGLM
import web_demo
from model import UserError, load_assistant, read_image
from model.answer_file import AnswerFile
from model.opening import FAMILIES, family_of
from model.weight_files import ADAPTER, FULL

COLORS = {"red": "红色的屋顶。", "green": "绿色的农田。", "blue": "蓝色的河流。"}
QUESTION = TEXTS[0]
TRAIN = """import sys
import model.opening
model.opening.FAMILIES["mean_color"] = "mean_color:MeanColorFamily"
import finetune_RemoteGLM
finetune_RemoteGLM.main(sys.argv[1:])"""


@pytest.fixture(scope="module", autouse=True)
def registered():
    patch = pytest.MonkeyPatch()
    patch.setitem(FAMILIES, "mean_color", "mean_color:MeanColorFamily")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Images of one color each, every one of another size."""
    folder = tmp_path_factory.mktemp("colors")
    for split, count in (("train", 12), ("val", 6)):
        rows = []
        for index in range(count):
            name = list(COLORS)[index % 3]
            image = folder / f"{split}-{index}.png"
            Image.new("RGB", (20 + 3 * index, 30 + index), name).save(image)
            rows.append({"img": image.name, "prompt": QUESTION, "label": COLORS[name]})
        text = json.dumps(rows, ensure_ascii=False)
        (folder / f"rows-{split}.json").write_text(text, encoding="utf-8")
    return folder


def train(*args):
    environment = os.environ | {
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    result = fork_server.run([sys.executable, "-c", TRAIN, *args], env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def options(base, rows, save, name):
    return [
        *("--from_pretrained", base),
        *("--train-data", rows / "rows-train.json"),
        *("--save", save),
        *("--experiment-name", name),
        *("--batch-size", 4),
        *("--train-iters", 90),
        *("--lr", 0.05),
        *("--clip-grad", 0),
        *("--eval-interval", 30),
        *("--log-interval", 10),
        *("--keep", 0),
    ]


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    """An adapter over a base that has been trained on no color: what it printed, its folder."""
    work = tmp_path_factory.mktemp("runs")
    characters = sorted({character for label in COLORS.values() for character in label})
    base = write_base(work / "base", "".join(characters))
    full = train(*options(base, rows, work, "full"), "--method", "full")
    return full, work / "full", base


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    return losses, [entry["valid"] for entry in entries if "valid" in entry]


def test_the_trainer_validates_with_the_image_ablation(trained):
    printed, folder, _ = trained
    losses, valid = metrics(folder)
    assert losses[-1] < 0.1 * losses[0]
    assert [set(entry) for entry in valid] == [{"real", "blank", "shuffled"}] * 4
    assert valid[-1]["real"] < 0.2
    assert min(valid[-1]["blank"], valid[-1]["shuffled"]) > 5 * valid[-1]["real"]
    assert "features cannot be cached" in printed


def test_resuming_is_exact(trained, rows, tmp_path):
    """From the step before the last one: the same losses and the same weights, bit for bit."""
    _, folder, base = trained
    again = shutil.copytree(folder, tmp_path / "full")
    shutil.rmtree(again / "90")
    printed = train(*options(base, rows, tmp_path, "full"), "--method", "full", "--resume")
    assert "resumed at step 60" in printed
    assert metrics(again) == metrics(folder)
    ours, theirs = (load_file(run / "90" / FULL) for run in (again, folder))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_an_adapter_is_saved_alone_and_switched_off(trained, rows, tmp_path):
    base = trained[1] / "90"
    train(*options(base, rows, tmp_path, "lora"), "--method", "lora", "--lr", 0.01)
    names = set(load_file(tmp_path / "lora" / "90" / ADAPTER))
    assert names == {"adapter.weight", "adapter.bias"}
    assistant = load_assistant(tmp_path / "lora", device="cpu")
    assert assistant.has_adapter and not assistant.is_base
    with assistant.untuned():
        assert not assistant.has_adapter


def test_unknown_choices_are_one_line(trained, rows, tmp_path):
    for option, value, expected in (
        ("--method", "ptuning", "lora, full"),
        ("--trainable", "vision", "see, place, say"),
        ("--lora_targets", "mlp", "attention"),
    ):
        with pytest.raises(AssertionError, match=f"{option} {value}: expected {expected}"):
            train(*options(trained[2], rows, tmp_path, "x"), option, value)


def test_terminal(trained, rows, capsys, monkeypatch):
    image = str(rows / "val-1.png")
    checkpoint = ["--from_pretrained", str(trained[1])]
    cli_demo.main([*checkpoint, "--image", image, "--temperature", "0"])
    assert COLORS["green"] in capsys.readouterr().out

    typed = iter([image, "再说一遍", "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    cli_demo.main(checkpoint)
    assert capsys.readouterr().out.count(COLORS["green"]) == 2


def test_batch_answers(trained, rows, tmp_path):
    output = tmp_path / "answers.jsonl"
    cli_demo.main(
        ["--from_pretrained", str(trained[1]), "--output", str(output)]
        + ["--input", str(rows / "rows-val.json"), "--batch-size", "4"]
    )
    entries = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [entry["answer"] for entry in entries] == [entry["label"] for entry in entries]
    assert len(entries) == 6


def test_one_run_writes_an_answer_file(tmp_path):
    with AnswerFile(tmp_path / "a.jsonl").open():
        with pytest.raises(UserError, match="another run is writing there"):
            AnswerFile(tmp_path / "a.jsonl").open()
    AnswerFile(tmp_path / "a.jsonl").open()


def test_page(trained, rows):
    page = web_demo.build(load_assistant(trained[1]))
    functions = {entry.api_name: entry.fn for entry in page.fns.values()}
    me = SimpleNamespace(session_hash="page")
    functions["image"](me, {"path": str(rows / "val-2.png")})
    shown = list(functions["answer"](me, QUESTION, "alone", 64, 0, 1, 0))
    assert shown[-1][0][-1]["content"] == COLORS["blue"]


def test_evaluation(trained, rows, tmp_path):
    metrics = evaluate_RemoteGLM.main(
        ["--from_pretrained", str(trained[1]), "--data", str(rows / "rows-val.json")]
        + ["--output", str(tmp_path / "report"), "--existence", "0", "--resamples", "100"]
    )
    assert metrics["columns"]["tuned"]["chrF"]["value"] == pytest.approx(100)
    assert (tmp_path / "report" / "report.html").is_file()


def test_images_of_a_batch_may_differ_in_size(trained, rows):
    assistant = load_assistant(trained[1])
    images = [read_image(rows / f"val-{index}.png") for index in range(6)]
    assert len({image.size for image in images}) == 6
    assert assistant.answer_batch([QUESTION] * 6, images) == [*COLORS.values()] * 2


def test_a_folder_of_no_family_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="model_type 'llama', expected one of visualglm") as error:
        family_of(tmp_path)
    assert "\n" not in str(error.value)


# Names of VisualGLM's inside that nothing above the line may know
INSIDE = re.compile(
    r"mixins|eva_args|qformer|ice_text|glm_proj|image_length|word_embeddings|gmask|<sop>|"
    r"model\.visualglm"
)
ABOVE = [
    *PROJECT.glob("*.py"),
    *PROJECT.glob("evaluation/*.py"),
    *PROJECT.glob("serving/*.py"),
    *PROJECT.glob("model/*.py"),
    *PROJECT.glob("model/training/*.py"),
    *PROJECT.glob("model/images/*.py"),
]


@pytest.mark.parametrize("path", ABOVE, ids=lambda path: str(path.relative_to(PROJECT)))
def test_nothing_above_the_line_knows_the_inside(path):
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        is_registry = path.name == "opening.py" and "VisualGLMFamily" in line
        if INSIDE.search(line) and not is_registry:
            found.append(f"{number}: {line.strip()}")
    assert not found, found


PACKAGES = ("model", "evaluation", "mapping", "serving", "data")


def module_name(path):
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def modules():
    """name -> path of the project's modules."""
    found = {}
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*.py"):
            found[module_name(path)] = path
    return found


def imports(path, top_level=False):
    """Names of the project's modules that a file imports; top_level: while it is imported."""
    known = modules()
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).rpartition(".")[0] if node.level else ""
            base = f"{package}.{node.module}".strip(".") if package else node.module
            names = []
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                names.append(submodule if submodule in known else base)
        else:
            continue
        found.update(name for name in names if name in known)
    return found


# What every family of networks may use
OF_FAMILIES = (
    *("model.family", "model.errors", "model.files", "model.weight_files", "model.sampling"),
    *("model.next_token", "model.answer_text", "model.text_scores", "model.pieces"),
    *("model.nf4", "model.quantization", "model.float_products"),
    # an export opens the checkpoint first
    *("model.opening", "model.devices"),
)
# room -> the modules (and rooms) that it may import
DOWNHILL = {
    "model.images": ("model.images", "model.errors", "model.files"),
    "model.visualglm": (
        *("model.visualglm", "model.images", "model.find", "model.running_batch", *OF_FAMILIES),
    ),
    "model.hf": ("model.hf", "model.images", *OF_FAMILIES),
    "model.training": (
        *("model.training", "model.family", "model.images", "model.rows", "model.row_store"),
        *("model.opening", "model.adapters", "model.devices", "model.find", "model.weight_files"),
        *("model.errors", "model.files"),
    ),
    "model": ("model",),
    "evaluation": ("evaluation", "model", "data"),
    "mapping": ("mapping", "model", "data"),
    "serving": (
        *("serving", "mapping", "model"),
        *("data.answers", "data.endpoint", "data.connection", "data.replies", "data.peel"),
    ),
    # what a row says is read alike at import and in training
    "data": ("data", "model.errors", "model.files", "model.images", "model.row_forms"),
}


def inside(name, rooms):
    return any(name == room or name.startswith(room + ".") for room in rooms)


def test_imports_run_downhill():
    """scripts -> evaluation -> model; in model: training, assistant -> family -> images."""
    uphill = []
    for name, path in modules().items():
        # a script that drives the trainer, and its first step
        if name in ("data.synthetic.make_tiny_base", "data.synthetic.tiny_encoder"):
            continue
        room = next(room for room in DOWNHILL if inside(name, [room]))
        for target in imports(path):
            if not inside(target, DOWNHILL[room]):
                uphill.append(f"{name} imports {target}")
    assert not uphill


def test_no_import_circles():
    """What modules import while they are imported themselves."""
    graph = {name: imports(path, top_level=True) for name, path in modules().items()}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail, name])
        if name in done:
            return
        trail.append(name)
        for target in sorted(graph[name]):
            visit(target)
        trail.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)
