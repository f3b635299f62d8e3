"""The READMEs are checked: paths exist, options exist, both languages show the same commands."""

import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from data.synthetic import captions
from evaluation.hallucination import hallucinated, truth

PROJECT = Path(__file__).resolve().parent.parent
READMES = sorted(
    file.relative_to(PROJECT).as_posix()
    for folder in (PROJECT, PROJECT / "data")
    for file in folder.glob("README*.md")
)


def commands(name):
    """(script, words after it) of every command in the code blocks of a README."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text.replace("\n> ", "\n"), re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            for index, word in enumerate(words):
                if word.endswith((".py", ".sh")):
                    yield word, words[index + 1 :]
                    break


def python_of(script):
    """The Python script that reads the options: a shell script hands its own through."""
    return (PROJECT / script).with_suffix(".py")


@cache
def options(script):
    """The options that a script's --help names."""
    target = python_of(script)
    if not target.is_file():
        return set()
    result = subprocess.run(
        [sys.executable, target, "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[A-Za-z][\w-]*", result.stdout))


def has_option(script, option):
    """Whether --help names it, or does so with the other spelling that Parser accepts."""
    target = python_of(script)
    if not target.is_file():
        return False
    if "from command_line import" not in target.read_text(encoding="utf-8"):
        return option in options(script)
    return option.replace("_", "-") in {name.replace("_", "-") for name in options(script)}


@pytest.mark.parametrize("name", READMES)
def test_commands_name_real_scripts_and_options(name):
    found = list(commands(name))
    assert found
    for script, words in found:
        assert (PROJECT / script).is_file(), f"{name}: {script}"
        unknown = set()
        for word in words:
            option = word.split("=")[0]
            if option.startswith("--") and not has_option(script, option):
                unknown.add(option)
        assert not unknown, f"{name}: {script} has no {unknown}"


@pytest.mark.parametrize("name", READMES)
def test_links_and_paths(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        assert ((PROJECT / name).parent / target).is_file() or (PROJECT / target).is_file(), (
            f"{name}: {target}"
        )
    for flag in re.findall(r"`(--[A-Za-z][\w-]*)", text):
        scripts = [
            "finetune_RemoteGLM.py",
            "cli_demo.py",
            "web_demo.py",
            "evaluate_RemoteGLM.py",
            "data/transform.py",
            "data/translation_en2zh.py",
            "data/generate_prompt.py",
            "data/synthetic/demo_scenes.py",
            "benchmarks/effect.py",
        ]
        assert any(has_option(script, flag) for script in scripts), f"{name}: no script has {flag}"


def test_the_layout_tree_is_the_layout():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## 目录\n\n```\n(.*?)```", text, re.S).group(1)
    listed = set(re.findall(r"[\w/.]+\.(?:py|sh)\b", tree))
    in_rooms = {file.name for file in (PROJECT / "model").rglob("*.py")}
    for room in ("data/synthetic", "serving"):
        in_rooms |= {file.name for file in (PROJECT / room).glob("*.py")}
    for name in listed:
        assert (PROJECT / name).exists() or name in in_rooms, name
    for room in (PROJECT / "model").iterdir():
        if room.is_dir() and room.name != "__pycache__":
            assert f"  {room.name}/" in tree, f"README's tree lacks model/{room.name}/"
    for file in [*PROJECT.glob("*.py"), *PROJECT.glob("*.sh"), *(PROJECT / "model").glob("*.py")]:
        assert file.name in listed or file.name in ("__init__.py", "errors.py"), (
            f"README's tree lacks {file.name}"
        )


@pytest.mark.parametrize("name", [name for name in READMES if name.endswith("_en.md")])
def test_both_languages_show_the_same_commands(name):
    """With the same options and values."""
    english = {(script, *words) for script, words in commands(name)}
    chinese = {(script, *words) for script, words in commands(name.replace("_en.md", ".md"))}
    assert chinese == english
    if name == "README_en.md":
        assert {("demo.sh",), ("test.sh",)} <= chinese


def test_inference_requirements_are_a_subset():
    """requirements.txt includes the other file, which lacks deepspeed and SwissArmyTransformer."""
    lean = (PROJECT / "requirements_wo_ds.txt").read_text()
    names = set(re.findall(r"^([\w-]+)[=<>]", lean, re.M))
    assert "torch" in names and not names & {"deepspeed", "SwissArmyTransformer"}
    whole = (PROJECT / "requirements.txt").read_text()
    assert {"transformers", "peft"} <= names
    assert "-r requirements_wo_ds.txt" in whole and {
        "deepspeed",
        "SwissArmyTransformer",
    } <= set(re.findall(r"^([\w-]+)[=<>]", whole, re.M))
    tests = (PROJECT / "requirements_test.txt").read_text()
    assert "-r requirements.txt" in tests
    assert not re.search(r"^(pytest|playwright|pycocoevalcap|ruff|mypy)\b", whole, re.M)
    for line in (lean + whole + tests).splitlines():
        if re.match(r"[\w-]+[=<>]", line):
            assert re.search(r"(==|<)\d[\w.]*.*  #|>=.*  #", line), f"no bound or no reason: {line}"


def test_each_script_installs_what_it_needs_once(tmp_path):
    """demo.sh never the tests' packages, and nothing after test.sh has installed both;
    a changed file is installed again.
    """
    (tmp_path / ".ci").mkdir()
    shutil.copy(PROJECT / ".ci" / "venv.sh", tmp_path / ".ci")
    for name in ("requirements.txt", "requirements_wo_ds.txt", "requirements_test.txt"):
        (tmp_path / name).write_text("")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def installed(script):
        beginning = (PROJECT / script).read_text().partition(". .ci/venv.sh\n")[0]
        (line,) = [line for line in beginning.splitlines() if "requirements" in line] or [""]
        command = ["bash", "-euc", f"{line}\n. .ci/venv.sh"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return re.findall(r"installing (\S+)", run.stdout)

    assert [installed("demo.sh"), installed("demo.sh")] == [["requirements.txt"], []]
    assert [installed("test.sh"), installed(".ci/check.sh")] == [["requirements_test.txt"], []]
    assert installed("demo.sh") == []
    (tmp_path / "requirements_test.txt").write_text("pytest")
    assert [installed("test.sh"), installed("demo.sh")] == [["requirements_test.txt"], []]


def test_shown_answers_are_chosen_by_the_rule_and_judged():
    """images/answers.json: the first test image of each scene, what its captions say, and what an
    answer says beyond them; README shows the first as demo.sh prints it.
    """
    shown = json.loads((PROJECT / "images" / "answers.json").read_text(encoding="utf-8"))
    assert [entry["img"] for entry in shown] == [
        f"{scene}_test_000.tif" for scene in captions.SCENES
    ]
    for entry, scene in zip(shown, captions.SCENES):
        facts = captions.facts(scene, random.Random(f"1/{scene}/test/0"))
        reference = captions.describe_zh(facts)
        known = truth([reference, *captions.describe_en(facts)])
        assert entry["reference"] == reference
        for system in ("base", "tuned"):
            invented = [entry[system][o.start : o.end] for o in hallucinated(entry[system], known)]
            assert entry["invented"][system] == invented, entry["img"]

    demo = (PROJECT / "demo.sh").read_text()
    assert "--seed" not in re.search(r"demo_scenes.py --output.*", demo)[0]
    image = re.search(r"^image=data/demo/images/(.*)$", demo, re.M)[1]
    assert image == shown[0]["img"]
    for name in ("README.md", "README_en.md"):
        text = (PROJECT / name).read_text(encoding="utf-8")
        lines = (image, f"微调前：{shown[0]['base']}", f"RemoteGLM：{shown[0]['tuned']}")
        assert "\n".join(("data/demo/images/" + lines[0], *lines[1:])) in text


@pytest.mark.parametrize("name", ["data/README.md", "data/README_en.md"])
def test_requests_name_the_model_that_vllm_serves(name):
    """A server answers 404 to the name of another model, in every round."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    [served] = re.findall(r"vllm run-batch .*--model (\S+)", text)
    asked = []
    for _, words in commands(name):
        if "--export-batch" in words or "--import-batch" in words:
            asked.append(words[words.index("--model") + 1] if "--model" in words else None)
    assert asked == [served] * 2
