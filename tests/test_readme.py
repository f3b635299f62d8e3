"""The READMEs are checked: paths exist, options exist, both languages show the same commands."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README_en.md", "data/README.md"]


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


@cache
def options(script):
    """The options that a script's --help names; a shell script hands its own through to Python."""
    target = PROJECT / script
    if target.suffix == ".sh":
        target = target.with_suffix(".py")
    if not target.is_file():
        return set()
    result = subprocess.run(
        [sys.executable, target, "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[A-Za-z][\w-]*", result.stdout))


@pytest.mark.parametrize("name", READMES)
def test_commands_name_real_scripts_and_options(name):
    found = list(commands(name))
    assert found
    for script, words in found:
        assert (PROJECT / script).is_file(), f"{name}: {script}"
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - options(script)
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
        ]
        assert any(flag in options(script) for script in scripts), f"{name}: no script has {flag}"


def test_the_layout_tree_is_the_layout():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"## 目录\n\n```\n(.*?)```", text, re.S).group(1)
    listed = set(re.findall(r"[\w/.]+\.(?:py|sh)\b", tree))
    for name in listed:
        assert (
            (PROJECT / name).exists()
            or (PROJECT / "model" / name).exists()
            or (PROJECT / "model/tiny" / name).exists()
        ), name
    for file in [*PROJECT.glob("*.py"), *PROJECT.glob("*.sh"), *(PROJECT / "model").glob("*.py")]:
        assert file.name in listed or file.name in ("__init__.py", "errors.py"), (
            f"README's tree lacks {file.name}"
        )


def test_both_languages_show_the_same_commands():
    chinese, english = (sorted({script for script, _ in commands(name)}) for name in READMES[:2])
    assert chinese == english
    assert {"demo.sh", "test.sh"} <= set(chinese)


def test_inference_requirements_are_a_subset():
    """requirements.txt includes the other file, which lacks deepspeed and SwissArmyTransformer."""
    lean = (PROJECT / "requirements_wo_ds.txt").read_text()
    names = set(re.findall(r"^([\w-]+)[=<>]", lean, re.M))
    assert "torch" in names and not names & {"deepspeed", "SwissArmyTransformer"}
    whole = (PROJECT / "requirements.txt").read_text()
    assert "-r requirements_wo_ds.txt" in whole and {
        "deepspeed",
        "SwissArmyTransformer",
        "transformers",
        "peft",
    } <= set(re.findall(r"^([\w-]+)[=<>]", whole, re.M))
    for line in (lean + whole).splitlines():
        if re.match(r"[\w-]+[=<>]", line):
            assert re.search(r"(==|<)\d[\w.]*.*  #|>=.*  #", line), f"no bound or no reason: {line}"
