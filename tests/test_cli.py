"""The terminal chat and the evaluation as a user starts them."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli_demo
import evaluate_RemoteGLM as evaluation
import export_RemoteGLM
from model import Sampling, checkpoint, load_assistant, read_image

PROJECT = Path(__file__).resolve().parent.parent
GREEDY = ["--temperature", "0", "--max_length", "60", "--device", "cpu"]


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory):
    """An adapter whose answers differ from its base's."""
    from test_checkpoint import LORA, save_adapter
    folder = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(folder, tiny_checkpoint, LORA)
    return folder


def answer(folder, question, image, history=(), **more):
    sampling = Sampling(temperature=0, max_length=60)
    return "".join(load_assistant(folder, device="cpu").stream(question, image, history, sampling, **more))


def test_one_shot(adapter, tiny_checkpoint, rows, capsys):
    path = str(rows / "images/0.tif")
    image = read_image(path)
    cli_demo.main(["--from_pretrained", str(adapter), "--image", path, "--base", *GREEDY])
    before, after = answer(tiny_checkpoint, "有什么？", image), answer(adapter, "有什么？", image)
    assert capsys.readouterr().out == f"微调前：{before}\nRemoteGLM：{after}\n" and before != after
    cli_demo.main(["--from_pretrained", str(adapter), "--image", path, "--prompt", "红色吗？", "--json", "--base", *GREEDY])
    assert json.loads(capsys.readouterr().out) == {
        "image": path, "prompt": "红色吗？", "base_answer": answer(tiny_checkpoint, "红色吗？", image),
        "answer": answer(adapter, "红色吗？", image)}
    cli_demo.main(["--from_pretrained", str(adapter), "--prompt", "你好", *GREEDY])  # without an image: plain text
    assert capsys.readouterr().out == f"RemoteGLM：{answer(adapter, '你好', None)}\n"


def test_sampling_options_reach_the_engine(adapter, rows, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("model.Assistant.stream", lambda self, q, image, history, sampling, english: seen.append((q, sampling, english)) or iter("x"))
    cli_demo.main(["--from_pretrained", str(adapter), "--image", str(rows / "images/0.tif"), "--english", "--prompt_en", "Where?",
                   "--max_length", "99", "--top_p", "0.7", "--top_k", "9", "--temperature", "0.5", "--repetition_penalty", "1.1",
                   "--seed", "3", "--dtype", "bfloat16", "--device", "cpu"])
    assert seen == [("Where?", Sampling(max_length=99, top_p=0.7, top_k=9, temperature=0.5, repetition_penalty=1.1, seed=3), True)]
    assert capsys.readouterr().out == "RemoteGLM: x\n"


def test_dialogue(adapter, rows, monkeypatch, capsys):
    """clear, a wrong path, a second round, plain text, stop; the first question is the one it was trained on."""
    red, green = str(rows / "images/0.tif"), str(rows / "images/1.tif")
    typed = iter(["nowhere.tif", red, "红色吗？", "clear", f"'{green}'", "clear", "", "你好", "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt="": print(prompt, end="") or next(typed))
    cli_demo.main(["--from_pretrained", str(adapter), *GREEDY])
    said = re.findall("RemoteGLM：(.*?)\n(?:用户：|请输入)", out := capsys.readouterr().out, re.S)
    image = read_image(red)
    first = answer(adapter, "有什么？", image)
    assert said == [first, answer(adapter, "红色吗？", image, [("有什么？", first)]), answer(adapter, "有什么？", read_image(green)),
                    answer(adapter, "你好", None)]
    assert "错误：image nowhere.tif: no such file" in out and next(typed, None) is None


def test_ctrl_d_leaves(adapter, monkeypatch, capsys):
    def end(prompt=""):
        raise EOFError
    monkeypatch.setattr("builtins.input", end)
    cli_demo.main(["--from_pretrained", str(adapter), *GREEDY])
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize("argv, words", [
    (["--from_pretrained", "nowhere", "--prompt", "x"], "cli_demo.py: error: checkpoint nowhere: no such folder"),
    (["--image", "nowhere.tif"], "cli_demo.py: error: image nowhere.tif: no such file"),
    (["--image", __file__], "not a picture Pillow can read"),
    (["--prompt", "x", "--device", "tpu9", "--from_pretrained", str(PROJECT / "tests/fixtures/visualglm-sat")], "device 'tpu9' cannot be used"),
    (["--prompt", "x", "--from_pretrained", str(PROJECT / "tests/fixtures/visualglm-sat")], "vocabulary ice_text.model not found"),
    (["--prompt", "x", "--tokenizer", "no.model", "--from_pretrained", str(PROJECT / "tests/fixtures/visualglm-sat")], "looked at no.model"),
])
def test_user_errors(argv, words):
    with pytest.raises(SystemExit, match=words) as caught:
        cli_demo.main(argv)
    assert "\n" not in caught.value.code


@pytest.mark.parametrize("argv, words", [
    (["--top_p", "1.5"], "--top_p 1.5: must be at least 0 and at most 1"), (["--temperature", "-1"], "--temperature -1.0"),
    (["--max_length", "1"], "--max_length 1"), (["--repetition_penalty", "0"], "--repetition_penalty 0.0"),
    (["--json"], "--json needs --image or --prompt"),
])
def test_wrong_options(argv, words, capsys):
    with pytest.raises(SystemExit):
        cli_demo.main(argv)
    assert words in capsys.readouterr().err


def test_help_does_not_load_torch():
    code = "import sys, cli_demo\ntry: cli_demo.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True)


# What requirements_wo_ds.txt and `pip install --no-deps SwissArmyTransformer` leave out.
ABSENT = ("deepspeed", "triton", "transformers", "peft", "datasets", "wandb", "tensorboardX", "boto3", "webdataset", "matplotlib",
          "torchvision", "bitsandbytes", "requests")


def test_inference_without_deepspeed(adapter, rows, tmp_path):
    """The terminal chat in an interpreter that cannot import what inference must not need."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nABSENT = {ABSENT}\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ABSENT:\n            raise ModuleNotFoundError('No module named ' + name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n")
    code = [sys.executable, PROJECT / "cli_demo.py", "--from_pretrained", adapter, "--image", rows / "images/0.tif", *GREEDY]
    result = subprocess.run(code, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.stdout == f"RemoteGLM：{answer(adapter, '有什么？', read_image(rows / 'images/0.tif'))}\n", result.stderr
    assert result.stderr == ""


@pytest.mark.slow
def test_installation_without_deepspeed(adapter, rows, tmp_path):
    """The same in a real environment made from requirements_wo_ds.txt (downloads about 1 GB)."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", PROJECT / "requirements_wo_ds.txt"], check=True)
    subprocess.run([*pip, "--no-deps", "SwissArmyTransformer==0.4.12"], check=True)
    result = subprocess.run([tmp_path / "venv/bin/python", PROJECT / "cli_demo.py", "--from_pretrained", adapter, "--image",
                             rows / "images/0.tif", *GREEDY], capture_output=True, text=True)
    assert result.stdout.startswith("RemoteGLM：") and result.stderr == ""
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/deepspeed"))


@pytest.mark.parametrize("form", ["sat", "hf", "int8"])
def test_exported_checkpoint_answers(adapter, rows, tmp_path, form, capsys):
    """What export_RemoteGLM.py writes is talked with under its own name; the question it was trained on goes along."""
    export_RemoteGLM.main(["--from_pretrained", str(adapter), "--format", form, "--output", str(tmp_path / "out")])
    assert re.search(r"out: [\d.]+ MB, ", capsys.readouterr().out)
    cli_demo.main(["--from_pretrained", str(tmp_path / "out"), "--image", str(rows / "images/0.tif"), "--json", *GREEDY])
    said = json.loads(capsys.readouterr().out)
    assert said["prompt"] == "有什么？" and said["answer"] == answer(tmp_path / "out", "有什么？", read_image(rows / "images/0.tif"))
    if form != "int8":
        assert said["answer"] == answer(adapter, "有什么？", read_image(rows / "images/0.tif"))


def test_quantized_while_loading(adapter, rows, capsys):
    image = str(rows / "images/0.tif")
    cli_demo.main(["--from_pretrained", str(adapter), "--quant", "8", "--image", image, "--json", *GREEDY])
    assert json.loads(capsys.readouterr().out)["answer"] == "".join(
        load_assistant(adapter, device="cpu", bits=8).stream("有什么？", read_image(image), (), Sampling(temperature=0, max_length=60)))


@pytest.mark.parametrize("options, words", [
    (["--format", "peft", "--output", "EXISTS"], "exists: name a new folder"),
    (["--format", "gguf", "--output", "new"], "invalid choice: 'gguf'"),
    (["--format", "hf", "--output", "/proc/new"], "checkpoint /proc/new cannot be written"),
    (["--format", "int4", "--output", "new"], "groups of 32: a layer of this network has 48 inputs"),
], ids=["exists", "format", "unwritable", "width"])
def test_export_errors(adapter, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        export_RemoteGLM.main(["--from_pretrained", str(adapter), *(str(tmp_path) if o == "EXISTS" else o for o in options)])
    said = capsys.readouterr().err + str(caught.value)
    assert caught.value.code and re.search(words, said)
    assert not (tmp_path / "new").exists()


class TestEvaluation:
    SCENES = {"parking lot": {"zh": ["停车场"]}, "airport": {"zh": ["机场", "停机坪"]}, "baseball": {"zh": ["棒球场"]},
              "court": {"zh": ["球场"]}}

    @pytest.mark.parametrize("text, scene", [("机场旁的停车场", "airport"), ("停车场里有车", "parking lot"), ("一辆车", None),
                                             ("一个棒球场", "baseball"), ("球场和棒球场", "court")])
    def test_first_scene(self, text, scene):
        assert evaluation.first_scene(text, self.SCENES) == scene

    def test_lexicon_names_each_scene_of_the_demo(self):
        import demo_scenes
        scenes = json.loads(evaluation.LEXICON.read_text(encoding="utf-8"))["scenes"]
        named = {evaluation.first_scene(demo_scenes.SCENES[key].zh if hasattr(demo_scenes.SCENES[key], "zh") else demo_scenes.SCENES[key][1], scenes)
                 for key in demo_scenes.SCENES}
        assert len(named) == 12 and None not in named

    def test_run_and_resume(self, adapter, tiny_checkpoint, rows, tmp_path, capsys):
        argv = ["--from_pretrained", str(adapter), "--data", str(rows / "rows-val.json"), "--base", "--output", str(tmp_path),
                "--max_new_tokens", "20", "--batch-size", "2", "--device", "cpu"]
        metrics = evaluation.main(argv)
        lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["system"] for line in lines] == ["base"] * 3 + ["tuned"] * 3 and metrics["rows_with_scene"] == 2
        sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=20)
        for line in lines:
            folder = adapter if line["system"] == "tuned" else tiny_checkpoint
            alone = load_assistant(folder, device="cpu").stream(line["prompt"], read_image(line["img"]), (), sampling)
            assert line["answer"] == "".join(alone)
        out = capsys.readouterr().out
        assert " base: scene named rightly in 0 of 2 rows (0.0%)" in out and json.loads((tmp_path / "metrics.json").read_text()) == metrics

        lines[-1]["answer"] = lines[-2]["answer"] = "绿色的农田。"
        kept = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[1:]) + '{"img": "torn'
        (tmp_path / "predictions.jsonl").write_text(kept, encoding="utf-8")
        again = evaluation.main(argv)  # asks only for the missing line, believes the rest
        assert again["tuned"] == {"scene_accuracy": 0.5, "distinct_answers": 2 / 3}

    @pytest.mark.parametrize("argv, words", [
        (["--from_pretrained", "nowhere", "--data", "VAL"], "checkpoint nowhere: no such folder"),
        (["--from_pretrained", "CK", "--data", "no.json"], "rows no.json: no such file"),
        (["--from_pretrained", "CK", "--data", "VAL", "--output", "/proc/x"], "output /proc/x cannot be written"),
        (["--from_pretrained", "CK", "--data", "VAL", "--image-root", "/nowhere"], "3 of 3 wrong"),
    ])
    def test_user_errors(self, adapter, rows, argv, words):
        names = {"VAL": str(rows / "rows-val.json"), "CK": str(adapter)}
        with pytest.raises(SystemExit, match=words) as caught:
            evaluation.main([names.get(word, word) for word in argv])
        assert "\n" not in caught.value.code
