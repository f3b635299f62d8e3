"""The terminal chat and the evaluation as a user starts them."""

import argparse
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
import unicodedata
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import fork_server
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_web import free_port

import cli_demo
import evaluate_RemoteGLM
import export_RemoteGLM
import web_demo
from command_line import Parser
from model import Assistant, Sampling, UserError, load_assistant, read_image
from model.assistant import DEFAULT_PROMPT
from model.errors import printable
from model.weight_files import CARD, CONFIG, FULL
from serving import terminal

PROJECT = Path(__file__).resolve().parent.parent
SAT_FIXTURE = PROJECT / "tests/fixtures/visualglm-sat"
GREEDY = ["--temperature", "0", "--max_length", "60", "--device", "cpu"]
TRUNCATED = "注意：回答到了长度上限（--max_length）就停下了\n"  # so are the answers to these rows


def chat(folder, *options):
    """The terminal chat, as it is started with a checkpoint."""
    cli_demo.main(["--from_pretrained", str(folder), *map(str, options)])


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory):
    """An adapter whose answers differ from its base's."""
    from test_checkpoint import LORA, save_adapter

    folder = tmp_path_factory.mktemp("adapter") / "a"
    save_adapter(folder, tiny_checkpoint, LORA)
    return folder


def answer(folder, question, image, history=(), **more):
    sampling = Sampling(temperature=0, max_length=60)
    return "".join(
        load_assistant(folder, device="cpu").stream(question, image, history, sampling, **more)
    )


def shown(text):
    """As a terminal gets it: a random network also says control characters."""
    kept = [
        char if char in "\n\t" or unicodedata.category(char) != "Cc" else f"\\x{ord(char):02x}"
        for char in text
    ]
    return "".join(kept)


def test_one_shot(adapter, tiny_checkpoint, rows, capsys):
    path = str(rows / "images/0.tif")
    image = read_image(path)
    chat(adapter, "--image", path, "--base", *GREEDY)
    before, after = answer(tiny_checkpoint, "有什么？", image), answer(adapter, "有什么？", image)
    said = f"微调前：{shown(before)}\nRemoteGLM：{shown(after)}\n"
    assert capsys.readouterr().out == said and before != after

    chat(adapter, "--image", path, "--prompt", "红色吗？", "--json", "--base", *GREEDY)
    assert json.loads(capsys.readouterr().out) == {
        "image": path,
        "prompt": "红色吗？",
        "base_answer": answer(tiny_checkpoint, "红色吗？", image),
        "base_truncated": True,  # this network finds no end within 60 tokens
        "answer": answer(adapter, "红色吗？", image),
        "truncated": True,
    }

    chat(adapter, "--prompt", "你好", *GREEDY)  # without an image: plain text
    assert capsys.readouterr().out == f"RemoteGLM：{shown(answer(adapter, '你好', None))}\n"


def test_sampling_options_reach_the_engine(adapter, rows, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "model.Assistant.stream",
        lambda self, q, image, history, sampling, english, on_cut: (
            seen.append((q, sampling, english)) or iter("x")
        ),
    )
    sampling = "--max_length 99 --top_p 0.7 --top_k 9 --temperature 0.5 --repetition_penalty 1.1"
    options = f"{sampling} --seed 3 --english --prompt_en Where? --dtype bfloat16 --device cpu"
    chat(adapter, "--image", rows / "images/0.tif", *options.split())
    assert seen == [
        (
            "Where?",
            Sampling(
                max_length=99, top_p=0.7, top_k=9, temperature=0.5, repetition_penalty=1.1, seed=3
            ),
            True,
        )
    ]
    assert capsys.readouterr().out == "RemoteGLM: x\n"


def test_the_limits_of_sampling_hold_everywhere(adapter, rows, capsys):
    """What no division survives is greedy, and nan never reaches the network."""
    for temperature in ("1e-45", "1e-7"):
        chat(adapter, "--prompt", "你好", "--max_length", 30, "--temperature", temperature)
        assert capsys.readouterr().out
    assert Sampling(temperature=1e-45).greedy and not Sampling(temperature=1e-3).greedy
    for setting in ({"temperature": float("nan")}, {"top_p": 2}, {"seed": -1}, {"max_length": 1}):
        with pytest.raises(UserError, match=f"^{next(iter(setting))} .*: must be at least"):
            Sampling(**setting)
    defaults = vars(cli_demo.parse([]))
    assert cli_demo.sampling_of(cli_demo.parse([])) == Sampling()
    assert defaults["top_k"] == Sampling.top_k


def test_the_language_of_a_run_is_that_of_its_questions(adapter, rows, tmp_path, capsys):
    """A run that was trained with --english is asked in English, its question included."""
    english = shutil.copytree(adapter, tmp_path / "english")
    card = json.loads((english / CARD).read_text())
    (english / CARD).write_text(json.dumps(card | {"english": True, "prompt": "What?"}))
    image = rows / "images/0.tif"
    for options, question, frame in (
        ([], "What?", True),
        (["--english"], "What?", True),
        (["--chinese"], DEFAULT_PROMPT, False),
        (["--prompt", "红色吗？"], "红色吗？", True),
        (["--english", "--prompt_en", "Where?"], "Where?", True),
    ):
        chat(english, "--image", image, "--json", *GREEDY, *options)
        said = json.loads(capsys.readouterr().out)
        assert said["prompt"] == question
        assert said["answer"] == answer(english, question, read_image(image), english=frame), (
            options
        )
    assert load_assistant(english, device="cpu").first_question(False) == DEFAULT_PROMPT
    exported = tmp_path / "exported"
    export_RemoteGLM.main(
        ["--from_pretrained", str(english), "--format", "sat", "--output", str(exported)]
    )
    assert load_assistant(exported, device="cpu").english


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_what_cannot_be_encoded_is_shown_escaped(adapter, rows, encoding):
    """The chat, one-shot and JSON, in a terminal or file of another encoding."""
    command = [sys.executable, PROJECT / "cli_demo.py", "--from_pretrained", adapter, *GREEDY]
    command += ["--image", rows / "images/0.tif", "--prompt", "有飞机吗？😀"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    text = answer(adapter, "有飞机吗？😀", read_image(rows / "images/0.tif"))
    for more in ([], ["--json"]):
        done = fork_server.run([*command, *more], env=environment)
        assert done.returncode == 0, done.stderr
        if more:
            assert json.loads(done.stdout)["prompt"] == "有飞机吗？😀"
        else:
            said = f"RemoteGLM：{shown(text)}\n"
            assert done.stdout == said.encode(encoding, "backslashreplace").decode(encoding)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_an_answer_that_the_limit_ended_says_so(endless, rows, tmp_path):
    options = "--temperature 0 --repetition_penalty 1 --max_length 40 --device cpu".split()
    with Terminal(tmp_path, "--from_pretrained", endless, "--prompt", "红", *options) as terminal:
        terminal.read("注意：回答到了长度上限（--max_length）就停下了")
        assert terminal.status() == 0


@pytest.mark.parametrize("base, tuned", [(False, True), (True, False), (False, False)])
def test_programs_learn_of_an_answer_that_the_limit_ended(
    adapter, monkeypatch, capsys, base, tuned
):
    """Also where no person reads along: by the note, and by the key that --input writes as well."""
    ends = []

    def stream(self, *_):
        yield "x"
        return ends.pop(0)

    monkeypatch.setattr("model.Assistant.stream", stream)
    for more in ([], ["--json"]):
        ends = [base, tuned]
        chat(adapter, "--prompt", "红", "--base", *more, *GREEDY)
        said = capsys.readouterr()
        assert said.err == TRUNCATED * (base + tuned)
    keys = {"base_truncated": base, "truncated": tuned}
    expected = {"image": None, "prompt": "红", "base_answer": "x", "answer": "x"}
    assert json.loads(said.out) == expected | {key: True for key in keys if keys[key]}


def test_dialogue(adapter, rows, monkeypatch, capsys):
    """clear, a wrong path, a second round, plain text, stop.

    The first question is the one it was trained on.
    """
    red, green = str(rows / "images/0.tif"), str(rows / "images/1.tif")
    typed = iter(
        ["nowhere.tif", red, "红色吗？", "clear", f"'{green}'", "clear", "", "你好", "stop"]
    )
    monkeypatch.setattr("builtins.input", lambda prompt="": print(prompt, end="") or next(typed))
    chat(adapter, *GREEDY)
    out = capsys.readouterr().out
    said = re.findall("RemoteGLM：(.*?)\n(?:用户：|请输入)", out, re.S)
    image = read_image(red)
    first = answer(adapter, "有什么？", image)
    answers = [
        first,
        answer(adapter, "红色吗？", image, [("有什么？", first)]),
        answer(adapter, "有什么？", read_image(green)),
        answer(adapter, "你好", None),
    ]
    assert said == [shown(text) for text in answers]
    assert "错误：图像 nowhere.tif：没有这个文件\n" in out and next(typed, None) is None


@pytest.mark.parametrize("english", [False, True])
def test_a_dialogue_says_in_its_own_language_why_there_is_no_image(
    tmp_path, monkeypatch, capsys, english
):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "page.png").write_text("<!DOCTYPE html>")
    names = ["gone\x1b.png", "", "text.png"]
    typed = iter([str(tmp_path / name) for name in names] + [str(tmp_path / "page.png"), "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    terminal.converse(SimpleNamespace(words=terminal.WORDS[english]), read_image, "")
    *most, seldom = capsys.readouterr().out.splitlines()
    says = ("没有这个文件", "是文件夹，请写出其中的一幅图像", "不是图像")
    if english:
        says = ("no such file", "a folder; name one image", "not an image Pillow can read")
    for line, name, reason in zip(most, ("gone\\x1b.png", "", "text.png"), says, strict=True):
        file = str(tmp_path / name).rstrip("/")
        begin = f"error: image {file}: " if english else f"错误：图像 {file}："
        assert line.startswith(begin + reason)
        assert english or not re.search("image|file", line.replace(file, ""))
    assert "HTML" in seldom  # said in English rather than not at all


@pytest.mark.parametrize(
    "english, said",
    [
        (False, r"注意：超出长度上限，未读入最早的 (\d) 轮对话"),
        (True, r"note: beyond the length limit and not read: the oldest rounds \((\d)\)"),
    ],
)
def test_a_dialogue_too_long_says_what_was_not_read(
    adapter, tiny_checkpoint, rows, monkeypatch, capsys, english, said
):
    """Over the network's 2048 positions, the oldest rounds are left out.

    The answers, each stopped early, are those to the dialogue without these rounds.
    """
    path, long = str(rows / "images/0.tif"), "绿色的农田在公路旁。" * 70
    asked = [long, "红" + long, "蓝" + long, "红色吗？"]
    typed = iter([path, *asked, "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    texts = []

    def begun(pieces):
        return "".join(islice(pieces, 20))

    monkeypatch.setattr(
        terminal, "say", lambda name, pieces, stoppable: texts.append(begun(pieces)) or texts[-1]
    )
    options = (
        "--temperature 0 --device cpu --base --prompt_zh 有什么？ --prompt_en 有什么？".split()
    )
    if english:
        options.append("--english")
    chat(adapter, *options)
    bases, tuned = texts[::2], texts[1::2]
    history = list(zip(["有什么？", *asked], tuned))
    # In the last rounds
    dropped = [int(re.fullmatch(said, line)[1]) for line in capsys.readouterr().err.splitlines()]
    assert all(tuned) and 2 <= len(dropped) < 5 and dropped[0] < dropped[-1]
    for folder, texts_of_it in ((tiny_checkpoint, bases), (adapter, tuned)):
        assistant = load_assistant(folder, device="cpu")
        for last, first in enumerate(dropped, 5 - len(dropped)):
            assert texts_of_it[last] == begun(
                assistant.stream(
                    history[last][0],
                    read_image(path),
                    history[first:last],
                    Sampling(temperature=0),
                    english,
                    on_cut=lambda *cut: pytest.fail(f"{cut} did not fit"),
                )
            )


@pytest.mark.parametrize(
    "more", [[], ["--json"], ["--json", "--base"]], ids=["text", "json", "base"]
)
def test_a_question_too_long_says_so_once(adapter, rows, capsys, more):
    """What was not read changes nothing, and standard output holds the answer alone."""
    expected = "注意：超出长度上限，未读入问题的末尾\n" + TRUNCATED * (1 + ("--base" in more))
    outs = []
    for end in ("红色吗？", "蓝色吗？"):
        question = "绿色的农田。" * 9 + end
        chat(adapter, "--image", rows / "images/0.tif", *GREEDY, *more, "--prompt", question)
        said = capsys.readouterr()
        assert said.err == expected
        outs.append(said.out.replace(end, ""))
    assert outs[0] == outs[1] and (not more or json.loads(outs[0])["answer"])


class Terminal:
    """cli_demo.py in a terminal of its own."""

    def __init__(self, home, *argv):
        import pty

        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ |= {
                "HOME": str(home),
                "TERM": "dumb",
                "OMP_NUM_THREADS": "1",
                "PYTHONUTF8": "1",
            }
            script = str(PROJECT / "cli_demo.py")
            os.execv(sys.executable, [sys.executable, script, *map(str, argv)])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)

    def read(self, until, again=""):
        """What is shown up to this text.

        While nothing comes, `again` is typed now and then: a Ctrl-C between two of readline's calls
        is noticed with the next key only.
        """
        data, end = b"", time.monotonic() + 90
        while until not in (shown := data.decode(errors="replace").replace("\r\n", "\n")):
            assert time.monotonic() < end, f"{until!r} did not come: {shown}"
            if select.select([self.terminal], [], [], 2)[0]:
                data += os.read(self.terminal, 1)
            else:
                self.type(again)
        return shown

    def type(self, text):
        os.write(self.terminal, text.encode())

    def status(self):
        """The exit status, once it has left."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = None
        return status


@pytest.fixture(scope="module")
def endless(tiny_checkpoint, tmp_path_factory):
    """A checkpoint that never ends an answer.

    The logit of `<eop>` is always 0, and some other one is above.
    """
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("endless") / "a")
    tensors = load_file(folder / FULL)
    eop = json.loads((folder / CONFIG).read_text())["eos_token_id"]
    tensors["mixins.chatglm-final.lm_head.weight"][eop] = 0
    save_file(tensors, folder / FULL)
    return folder


ENDLESS = "--temperature 0 --repetition_penalty 1 --max_length 2048 --device cpu".split()
IMAGE, USER = "stop 退出）：", "用户："


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_in_a_terminal(endless, rows, tmp_path):
    """Ctrl-C stops an answer, which then belongs to the dialogue, or drops a line; Ctrl-D leaves.

    The next run has the history.
    """
    image = rows / "images/0.tif"
    with Terminal(tmp_path, "--from_pretrained", endless, *ENDLESS) as terminal:
        terminal.read(IMAGE)
        terminal.type("half a na\x03")
        terminal.read(IMAGE, again="\x03")  # the line is dropped, the chat continues
        terminal.type(f"{tmp_path}\n")
        said = terminal.read(IMAGE)
        assert f"错误：图像 {tmp_path}：是文件夹，请写出其中的一幅图像\n" in said
        terminal.type(f"{image}\n")
        terminal.read("RemoteGLM：")
        time.sleep(0.3)
        terminal.type("\x03")
        stopped = terminal.read("\n" + USER).replace("^C", "").removesuffix("\n" + USER)
        assert len(stopped) > 5
        whole = "".join(
            load_assistant(endless, device="cpu").stream(
                DEFAULT_PROMPT,
                read_image(image),
                (),
                Sampling(temperature=0, repetition_penalty=1, max_length=2048),
            )
        )
        whole = printable(whole)
        assert whole.startswith(stopped) and len(whole) > len(stopped)
        terminal.type("第二问？\n")
        terminal.read("RemoteGLM：")
        terminal.type("\x03")
        terminal.read("\n" + USER)
        terminal.type("\x04")
        assert terminal.status() == 0
    assert (tmp_path / ".remoteglm_history").read_text().splitlines() == [
        str(tmp_path),
        str(image),
        "第二问？",
    ]
    with Terminal(tmp_path, "--from_pretrained", endless, *GREEDY) as terminal:
        terminal.read(IMAGE)
        terminal.type("\x10\x10\n")  # Ctrl-P, as arrow up: the line before the last
        terminal.read(USER + DEFAULT_PROMPT)
        terminal.read("\n" + USER)
        terminal.type("stop\n")
        assert terminal.status() == 0


def test_ctrl_c_ends_a_single_answer(endless, rows, tmp_path):
    with Terminal(
        tmp_path, "--from_pretrained", endless, "--image", rows / "images/0.tif", *ENDLESS
    ) as terminal:
        terminal.read("RemoteGLM：")
        terminal.type("\x03")
        assert terminal.status() == 130


INTERRUPTED = """import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "model.errors":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
"""
SCRIPTS = ["cli_demo", "evaluate_RemoteGLM", "export_RemoteGLM", "web_demo"]
SCRIPTS += [f"data/{name}" for name in ("transform", "translation_en2zh", "generate_prompt")]


WITH_TORCH = ["baseline", "peers", "quantized_layers", "qwen3_vl", "scene", "split", "train"]
WITH_TORCH = [f"benchmarks/{name}" for name in (*WITH_TORCH, "trainer_peft")]
WITH_TORCH += ["data/synthetic/make_tiny_base"]


def test_a_full_temporary_folder_among_the_imports_is_one_line(tmp_path):
    """Libraries ask for one when they are imported."""
    script = tmp_path / "script.py"
    script.write_text(
        "import command_line, tempfile\n"
        "tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "tempfile.gettempdir()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"script\.py: error: .*No usable temporary directory.*; make room\n", result.stderr
    )


@pytest.mark.parametrize(
    "script, module",
    [(name, "model.errors") for name in SCRIPTS]
    + [(name, "torch") for name in (*WITH_TORCH, "images/make")],
)
def test_ctrl_c_among_the_imports_is_no_traceback(script, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED.replace("model.errors", module))
    command = [sys.executable, PROJECT / f"{script}.py", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == -signal.SIGINT  # as a shell expects it, which says 130
    assert result.stdout == result.stderr == ""


STOPPED = """import sys

def stop(*_):
    print("flushed")
    raise KeyboardInterrupt

sys.path.insert(0, sys.argv.pop(1))
import export_RemoteGLM, model.files
model.files.sync_files = stop
export_RemoteGLM.main()
"""


@pytest.mark.parametrize("form", ["sat", "hf", "int8"])
def test_ctrl_c_ends_an_export_as_a_shell_expects_it(form, adapter, tmp_path):
    """In its last moment too: what is half written is removed, and so the status says."""
    options = ["--from_pretrained", adapter, "--format", form, "--output", tmp_path / "new"]
    result = in_python(STOPPED, PROJECT, *options)
    assert result.returncode == -signal.SIGINT and result.stdout == "flushed\n"
    assert not result.stderr and not list(tmp_path.iterdir())


CLEANS_UP = """import atexit, os, signal, sys
sys.path.insert(0, sys.argv[1])
from command_line import ctrl_c_ends_at_once
with ctrl_c_ends_at_once():
    atexit.register(os.kill, os.getpid(), signal.SIGINT)  # as a module has its own clean-up
print("all that was asked for")
"""


def test_ctrl_c_at_the_end_is_no_traceback():
    """Among the clean-up of modules, when all is done; the output is whole."""
    result = in_python(CLEANS_UP, PROJECT)
    assert (result.stdout, result.stderr) == ("all that was asked for\n", "")
    assert result.returncode == -signal.SIGINT


LOST = """import os, signal, sys, time

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                print("lost", flush=True)

sys.meta_path.insert(0, Interrupted())
"""


@pytest.mark.parametrize(
    "script",
    [
        "cli_demo.py --from_pretrained BASE --prompt x",
        "cli_demo.py --from_pretrained BASE --scene images/examples/harbour.tif --output OUTPUT",
        "evaluate_RemoteGLM.py --from_pretrained BASE --data ROWS --output OUTPUT",
        "export_RemoteGLM.py --from_pretrained BASE --format hf --output OUTPUT",
        "web_demo.py --from_pretrained BASE --port PORT",
        *(f"{name}.py --help" for name in WITH_TORCH),
    ],
    ids=lambda words: words.split(".py")[0] + ("-map" if "--scene" in words else ""),
)
def test_ctrl_c_is_not_lost_where_torch_loads(script, tiny_checkpoint, rows, tmp_path):
    """Among the imports of torch's own C code a KeyboardInterrupt is lost, or aborts the process:
    the signal itself ends it there.
    """
    (tmp_path / "sitecustomize.py").write_text(LOST)
    places = {
        "BASE": str(tiny_checkpoint),
        "ROWS": str(rows / "rows-val.json"),
        "OUTPUT": str(tmp_path / "new"),
        "PORT": str(free_port()),
    }
    words = [places.get(word, word) for word in script.split()]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, *words], cwd=PROJECT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == -signal.SIGINT and result.stdout == result.stderr == ""


PRINTS = """import sys
sys.path.insert(0, sys.argv[1])
import command_line
for _ in range(int(sys.argv[2])):
    print("line", flush=sys.argv[3] == "flushed")
"""


def printing(count, when, output):
    """What a script does that prints so many lines: a started process."""
    command = [sys.executable, "-c", PRINTS, PROJECT, str(count), when]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("when", ["flushed", "at the end"])
def test_output_that_cannot_be_written_is_one_line(when):
    with open("/dev/full", "w") as full, printing(1, when, full) as process:
        said = process.stderr.read()
    problem = "[Errno 28] No space left on device; make room"
    assert (process.returncode, said) == (1, f"-c: error: {problem}\n")


@pytest.mark.parametrize("when", ["flushed", "at the end"])
def test_a_reader_that_leaves_is_no_error(when):
    with printing(1_000_000, when, subprocess.PIPE) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""


def test_what_was_stopped_belongs_to_the_dialogue(adapter, rows, monkeypatch, capsys):
    asked = []

    def stream(self, question, image, history, sampling, english, on_cut):
        asked.append((question, list(history)))
        if question == "坏":
            raise UserError("too long")
        yield "一"
        if question == "停":
            raise KeyboardInterrupt
        yield "二"

    monkeypatch.setattr("model.Assistant.stream", stream)
    typed = iter([str(rows / "images/0.tif"), "停", "坏", "再问"])

    def type_in(prompt):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", type_in)
    chat(adapter, *GREEDY)
    assert asked == [
        ("有什么？", []),
        ("停", [("有什么？", "一二")]),
        ("坏", [("有什么？", "一二"), ("停", "一")]),
        ("再问", [("有什么？", "一二"), ("停", "一")]),
    ]
    assert capsys.readouterr().out.endswith(
        "RemoteGLM：一二\nRemoteGLM：一\n错误：too long\nRemoteGLM：一二\n\n"
    )


def test_bytes_that_are_no_text(adapter):
    """A terminal that sends another encoding than it says."""
    result = subprocess.run(
        [sys.executable, PROJECT / "cli_demo.py", "--from_pretrained", adapter, *GREEDY],
        capture_output=True,
        input="你好\n".encode("gbk") + b"stop\n",
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert result.returncode == 0 and "错误：not UTF-8" in result.stdout.decode(), (
        result.stderr.decode()
    )


WITHOUT_TORCH = """import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise AssertionError("torch is loaded")

sys.meta_path.insert(0, Block())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there words are Unicode")
@pytest.mark.parametrize(
    "script, option, shown",
    [
        ("cli_demo", "--prompt", "--prompt"),
        ("cli_demo", "--prompt_zh=", "--prompt_zh"),
        ("cli_demo", "--model", "--model"),
        ("cli_demo", "--image", "--image"),
        ("evaluate_RemoteGLM", "--description-questions ？", "--description-questions"),
        ("export_RemoteGLM", "--base_path", "--base_path"),
        ("finetune_RemoteGLM", "--experiment-name", "--experiment-name"),
        ("web_demo", "--auth=", "--auth"),
        ("data/transform", "--caption-column", "--caption-column"),
        ("data/translation_en2zh", "--model=", "--model"),
        ("data/generate_prompt", "--prompt", "--prompt"),
        ("data/synthetic/demo_scenes", "--output", "--output"),
    ],
)
def test_an_option_that_is_no_text_is_one_line(script, option, shown, tmp_path):
    """Bytes of another encoding than the locale's: they can be neither asked nor written."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    word = "有".encode("gbk")
    words = option.encode().split()
    words = [words[0] + word] if option.endswith("=") else [*words, word]
    result = subprocess.run(
        [sys.executable, PROJECT / f"{script}.py", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
    )
    name = Path(script).name
    assert re.fullmatch(
        rf"{name}.py: error: {shown} \\udcd3\\udcd0: expected text in utf-8, .*\n", result.stderr
    )
    assert result.returncode == 2 and not result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there words are Unicode")
def test_a_locale_without_chinese_is_named():
    result = subprocess.run(
        [sys.executable, PROJECT / "cli_demo.py", "--prompt", "有飞机吗？".encode()],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
    )
    assert re.search(": expected text in ascii, .*set LC_ALL", result.stderr)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_a_base_is_not_compared_with_itself(adapter, tiny_checkpoint, rows, capsys):
    options = ["--image", rows / "images/0.tif", "--base", "--prompt", "x", *GREEDY]
    expected = f"--base is left out: {tiny_checkpoint} has no adapter that could be switched off\n"
    expected += TRUNCATED
    for more in ([], ["--json"]):
        chat(tiny_checkpoint, *options, *more)
        said = capsys.readouterr()
        assert said.err == expected
        assert "微调前" not in said.out and "base_answer" not in said.out


def test_an_error_is_not_led_in_as_an_answer(adapter, rows, capsys):
    with pytest.raises(SystemExit, match="a limit of 4 tokens"):
        chat(adapter, "--image", rows / "images/0.tif", "--max_length", 5, "--device", "cpu")
    assert capsys.readouterr().out == ""


def test_bands_reach_the_reader(adapter, rows, monkeypatch):
    seen = []

    def read(source, bands=None):
        seen.append(bands)
        return read_image(source)

    monkeypatch.setattr("model.read_image", read)
    for module in ("batch", "rows"):
        monkeypatch.setattr(f"model.{module}.read_image", read)
    image, val = str(rows / "images/0.tif"), str(rows / "rows-val.json")
    bands = ["--bands", "4", "3", "2"]
    chat(adapter, "--image", image, *bands, *GREEDY)
    typed = iter([image, "stop"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    chat(adapter, *bands, *GREEDY)
    assert seen == [[4, 3, 2]] * 2

    options = "--max_new_tokens 2 --device cpu --no-controls --existence 0 --resamples 100".split()
    evaluate_RemoteGLM.main(["--from_pretrained", str(adapter), "--data", val, *bands, *options])
    # 3 images and 9 training images checked and compared, the 3 answered about and shown
    assert seen == [[4, 3, 2]] * 32

    def add_page(app, listener, engine, english, bands, **options):
        sys.exit(str(bands))

    monkeypatch.setattr(web_demo, "add_page", add_page)
    with pytest.raises(SystemExit, match=r"^\[4, 3, 2\]$"):
        web_demo.main(
            ["--from_pretrained", str(adapter), *bands, "--device", "cpu", "--port", "7899"]
        )
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the page's own handler goes with it


class TestRowsOfAFile:
    """--input, --output"""

    ROWS = [
        {"img": "images/0.tif", "prompt": "红色吗？", "label": "是"},
        {"img": "images/1.tif", "label": ""},
        {"img": "images/gone.tif", "prompt": "有什么？"},
        {"prompt": "你好"},
        {
            "img": "images/2.tif",
            "conversations": [
                {"role": "user", "content": "有什么？"},
                {"role": "assistant", "content": "一条河。"},
                {"role": "user", "content": "蓝色吗？"},
            ],
        },
        {
            "img": "images/3.tif",
            "conversations": [
                {"role": "user", "content": "有什么？"},
                {"role": "assistant", "content": "屋顶。"},
            ],
        },
    ]

    @pytest.fixture
    def argv(self, adapter, rows, tmp_path):
        """Three rows at a time, one of the images missing."""
        (rows / "questions.json").write_text(json.dumps(self.ROWS), encoding="utf-8")
        files = ["--input", str(rows / "questions.json")]
        files += ["--output", str(tmp_path / "out/answers.jsonl")]
        return ["--from_pretrained", str(adapter), *files, "--batch-size", "3", *GREEDY]

    def lines(self, argv):
        return [json.loads(line) for line in Path(argv[5]).read_bytes().splitlines()]

    def run(self, argv):
        with pytest.raises(SystemExit) as end:
            cli_demo.main(argv)
        return end.value.code

    def test_an_image_that_breaks_its_decoder_spoils_its_own_row(self, argv, rows, capsys):
        head = b"DDS " + struct.pack("<7I", 124, 0x1007, 60, 80, 0, 0, 0) + bytes(44)
        unknown = struct.pack("<8I", 32, 4, 0x21212121, *[0] * 5) + bytes(20)
        (rows / "images" / "a.dds").write_bytes(head + unknown)
        questions = [{"img": "images/a.dds"}, {"img": "images/0.tif"}]
        (rows / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        assert "1 of 2 rows have no answer" in self.run(argv)
        broken, answered = self.lines(argv)
        assert "a.dds: cannot be read (Unimplemented pixel format" in broken["error"]
        assert answered["answer"]

    def test_answers_of_one_by_one(self, argv, adapter, rows, capsys):
        assert self.run(argv) == (
            'cli_demo.py: error: 1 of 6 rows have no answer but "error"; the first: '
            f"image {rows}/images/gone.tif: no such file"
        )
        said = capsys.readouterr()
        assert said.out == f"5 answers: {argv[5]}\n" and "2/2" in said.err
        lines = self.lines(argv)
        images = [rows / row["img"] if "img" in row else None for row in self.ROWS]
        assert [line["img"] for line in lines] == [image and str(image) for image in images]
        assert [line["prompt"] for line in lines] == [
            "红色吗？",
            "有什么？",
            "有什么？",
            "你好",
            "蓝色吗？",
            "有什么？",
        ]
        assert [line.get("label") for line in lines] == ["是", None, None, None, None, "屋顶。"]
        assert (
            lines[2]["error"] == f"image {rows}/images/gone.tif: no such file"
            and "answer" not in lines[2]
        )
        assert lines[4]["history"] == [["有什么？", "一条河。"]] and "history" not in lines[5]
        for line, image in zip(lines, images):
            if "answer" in line:
                assert line["answer"] == answer(
                    adapter,
                    line["prompt"],
                    image and read_image(image),
                    line.get("history", ()),
                )

    def test_continues_after_a_crash(self, argv, rows, monkeypatch):
        """Answered rows are kept, a torn line is fixed, errors are asked again.

        Other settings are answers of their own.
        """
        self.run(argv)
        path, lines = Path(argv[5]), self.lines(argv)
        lines[0]["answer"] = "kept"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[:4])
        path.write_text(text + json.dumps(lines[4], ensure_ascii=False)[:50], encoding="utf-8")
        asked, whole = [], Assistant.answer_batch
        monkeypatch.setattr(
            Assistant,
            "answer_batch",
            lambda self, questions, *rest: asked.append(questions) or whole(self, questions, *rest),
        )
        self.run(argv)
        # With the missing image as the third of its batch
        assert asked == [["蓝色吗？", "有什么？"]]
        assert self.lines(argv) == [*lines[:4], lines[2], *lines[4:]] and path.read_text(
            encoding="utf-8"
        ).startswith(text)
        for more in (
            ["--seed", "1"],
            ["--max_length", "50"],
            ["--english"],
            ["--dtype", "bfloat16"],
            ["--prompt", "x"],
        ):
            before = len(self.lines(argv))
            asked.clear()
            self.run(argv + more)
            # Only one of the rows has no question; the missing image is written again.
            answers, written = (1, 2) if more[0] == "--prompt" else (5, 6)
            assert sum(map(len, asked)) == answers, more
            assert len(self.lines(argv)) == before + written

    def test_what_does_not_fit_is_written_beside_the_answer(
        self, argv, adapter, rows, tmp_path, capsys
    ):
        """Also where a second run finds the answers there."""
        rounds = [
            {"role": "user", "content": "绿色的农田。"},
            {"role": "assistant", "content": "蓝色的河流。"},
        ] * 5
        asked = [{"role": "user", "content": "红色吗？"}]
        (tmp_path / "rows.json").write_text(
            json.dumps(
                [
                    {"img": "images/0.tif", "conversations": rounds[:2] + asked},
                    {"img": "images/0.tif", "conversations": rounds + asked},
                    {"prompt": "绿色的农田。" * 30},
                ]
            ),
            encoding="utf-8",
        )
        argv = [*argv[:3], str(tmp_path / "rows.json"), *argv[4:], "--image-root", str(rows)]
        for _ in range(2):
            cli_demo.main(argv)
            assert (
                '2 of them to dialogues beyond the length limit: "cut" says what was not read\n'
                in capsys.readouterr().err
            )
        lines = self.lines(argv)
        left = lines[1]["cut"]["rounds"]
        assert (
            len(lines) == 3
            and "cut" not in lines[0]
            and 0 < left < 5
            and lines[1]["cut"]["tokens"] == 0
        )
        assert lines[2]["cut"]["rounds"] == 0 < lines[2]["cut"]["tokens"]
        for line, history in zip(
            lines,
            ([("绿色的农田。", "蓝色的河流。")], [("绿色的农田。", "蓝色的河流。")] * (5 - left)),
        ):
            assert line["answer"] == answer(
                adapter, "红色吗？", read_image(rows / "images/0.tif"), history
            )

    def test_rows_that_ask_the_same_have_a_line_for_each_label(
        self, argv, rows, tmp_path, monkeypatch
    ):
        """Asked once; a later run with a further label copies the answer."""
        asked, whole = [], Assistant.answer_batch
        monkeypatch.setattr(
            Assistant,
            "answer_batch",
            lambda self, questions, *rest: asked.append(questions) or whole(self, questions, *rest),
        )
        row = {"img": "images/0.tif", "prompt": "红色吗？"}
        labels = ["是", "是。", "是", None]
        argv[3] = str(tmp_path / "rows.json")
        for more, lines in (([], 2), (["对"], 3), (["对", None], 3)):
            content = [row | ({"label": label} if label else {}) for label in labels + more]
            Path(argv[3]).write_text(json.dumps(content), encoding="utf-8")
            cli_demo.main([*argv, "--image-root", str(rows)])
            written = self.lines(argv)
            assert [line["label"] for line in written] == ["是", "是。", "对"][:lines]
            assert len({line["answer"] for line in written}) == 1
        assert asked == [["红色吗？"]]

    def test_answers_that_the_limit_ended_are_marked(self, argv, endless, rows, tmp_path, capsys):
        """Each, whatever the others of its batch do; the reader of the file is told how many."""
        argv[1] = str(endless)
        argv[3] = str(tmp_path / "rows.json")
        Path(argv[3]).write_text(json.dumps([{"prompt": "红"}, {"prompt": "红色吗？" * 4}]))
        for _ in range(2):
            cli_demo.main([*argv, "--repetition_penalty", "1"])
            assert '2 answers were stopped by the length limit, --max_length: "truncated"' in (
                capsys.readouterr().err
            )
        assert [line["truncated"] for line in self.lines(argv)] == [True, True]

    def test_an_answer_that_is_null_is_asked_again(self, argv, rows, tmp_path):
        argv[3] = str(tmp_path / "rows.json")
        Path(argv[3]).write_text(json.dumps([{"prompt": "红色吗？"}]))
        cli_demo.main(argv)
        (line,) = self.lines(argv)
        Path(argv[5]).write_text(json.dumps(line | {"answer": None}) + "\n")
        cli_demo.main(argv)
        assert self.lines(argv) == [line | {"answer": None}, line]

    def test_rows_of_other_tools(self, argv, rows, tmp_path, capsys):
        argv[3] = str(tmp_path / "rows.json")
        turns = [{"from": "human", "value": "<image>\n红色吗？"}, {"from": "gpt", "value": "是"}]
        content = [{"image": "images/0.tif", "conversations": turns, "id": "7"}]
        Path(argv[3]).write_text(json.dumps(content))
        cli_demo.main([*argv, "--image-root", str(rows)])
        (line,) = self.lines(argv)
        assert (line["img"], line["prompt"], line["label"]) == (
            str(rows / "images/0.tif"),
            "红色吗？",
            "是",
        )
        assert "not used: id (1 rows)" in capsys.readouterr().err

    def test_base(self, argv, adapter, tiny_checkpoint, rows, capsys):
        self.run(argv + ["--base"])
        lines = self.lines(argv)
        assert [line["settings"]["system"] for line in lines] == ["base"] * 6 + ["tuned"] * 6
        assert (
            lines[0]["answer"]
            == answer(tiny_checkpoint, "红色吗？", read_image(rows / "images/0.tif"))
            != lines[6]["answer"]
        )
        assert capsys.readouterr().out == f"10 answers: {argv[5]}\n"

    @pytest.mark.parametrize(
        "content",
        [
            '[\n    {"img": "a.tif", "prompt": "x"}\n]',
            '[{"img": "a.tif", "prompt": "x"}]',
            '{"img": "a.tif", "prompt": "x"}\n',
            '{"img": "a.tif", "prompt": "x"}',
            "words",
            "[\n",
            '{"img": \n',
        ],
    )
    def test_a_file_of_something_else_is_not_touched(self, argv, content):
        Path(argv[5]).parent.mkdir()
        Path(argv[5]).write_text(content)
        assert re.search(
            r"answers.jsonl: line 1 is no answer of an earlier run; name another file$",
            self.run(argv),
        )
        assert Path(argv[5]).read_text() == content

    def test_too_little_memory_is_one_line(self, argv, monkeypatch):
        def refuse(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(Assistant, "answer_batch", refuse)
        advice = "lower --batch-size, the same command continues"
        assert re.search(f"too little memory for 2 rows together; {advice}$", self.run(argv))

    @pytest.mark.parametrize(
        "rows_of_it, words",
        [
            ([{"img": 5}], "row 0: img must be a path, got 5"),
            ([{"label": "x"}], "row 0: has keys label"),
            ([], "expected a list of"),
            (
                [{"img": "a.tif", "conversations": [{"role": "assistant", "content": "x"}]}],
                "expected user",
            ),
            ([{"img": "a.tif", "prompt": " "}], "row 0: has keys img, prompt"),
        ],
    )
    def test_wrong_rows(self, argv, tmp_path, rows_of_it, words):
        (tmp_path / "rows.json").write_text(json.dumps(rows_of_it))
        assert words in self.run([*argv[:3], str(tmp_path / "rows.json"), *argv[4:]])

    def test_folder_of_the_images_and_json_lines(self, argv, rows, tmp_path):
        (tmp_path / "rows.jsonl").write_text(
            json.dumps({"img": "0.tif", "prompt": "有\u2028什么？"}, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        argv[3] = str(tmp_path / "rows.jsonl")
        cli_demo.main([*argv, "--image-root", str(rows / "images")])
        (line,) = self.lines(argv)
        assert (
            line["img"] == str(rows / "images/0.tif")
            and line["prompt"] == "有\u2028什么？"
            and line["answer"]
        )


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--from_pretrained", "nowhere", "--prompt", "x"],
            "cli_demo.py: error: checkpoint nowhere: no such folder",
        ),
        (["--image", "nowhere.tif"], "cli_demo.py: error: image nowhere.tif: no such file"),
        (["--image", __file__], "not an image Pillow can read"),
        (
            ["--prompt", "x", "--device", "tpu9", "--from_pretrained", SAT_FIXTURE],
            "device 'tpu9' cannot be used",
        ),
        (
            ["--prompt", "x", "--from_pretrained", SAT_FIXTURE],
            "vocabulary ice_text.model not found",
        ),
        (
            ["--prompt", "x", "--tokenizer", "no.model", "--from_pretrained", SAT_FIXTURE],
            "looked at no.model",
        ),
    ],
)
def test_user_errors(argv, words):
    with pytest.raises(SystemExit, match=words) as caught:
        cli_demo.main(list(map(str, argv)))
    assert "\n" not in caught.value.code


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--top_p", "1.5"], "--top_p 1.5: must be at least 0 and at most 1"),
        (["--temperature", "-1"], "--temperature -1.0"),
        (["--max_length", "1"], "--max_length 1"),
        (["--repetition_penalty", "0"], "--repetition_penalty 0.0"),
        (["--temperature", "nan"], "--temperature nan: must be at least 0 and at most 100"),
        (["--temperature", "inf"], "--temperature inf: must be"),
        (["--repetition_penalty", "nan"], "--repetition_penalty nan: must be at least 0.01"),
        (["--repetition_penalty", "1e-45"], "--repetition_penalty 1e-45: must be"),
        (["--top_p", "nan"], "--top_p nan: must be"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999: must be"),
        (["--json"], "--json needs --image or --prompt"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--input", "a.json"], "--input and --output go together"),
        (["--output", "a.jsonl"], "--input and --output go together"),
        (["--input", "a.json", "--output", "b", "--image", "c"], "without --image and --json"),
    ],
)
def test_wrong_options(argv, words, capsys):
    with pytest.raises(SystemExit):
        cli_demo.main(argv)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("script", [cli_demo, evaluate_RemoteGLM, export_RemoteGLM, web_demo])
def test_an_unknown_option_is_one_line(script, capsys):
    needed = {
        evaluate_RemoteGLM: ["--data", "x"],
        export_RemoteGLM: ["--from_pretrained", "x", "--format", "hf", "--output", "x"],
    }
    with pytest.raises(SystemExit) as caught:
        script.main([*needed.get(script, []), "--nonsense", "1"])
    assert re.fullmatch(
        r".*: error: unrecognized arguments: --nonsense 1; all options: --help\n",
        capsys.readouterr().err,
    )
    assert caught.value.code == 2


NEEDED = {
    "cli_demo": ["--prompt", "x"],
    "web_demo": ["--port", "0"],
    "export_RemoteGLM": ["--from_pretrained", "x", "--format", "hf", "--output", "x"],
}


def in_python(code, *argv):
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["cli_demo", "web_demo", "export_RemoteGLM"])
def test_help_and_wrong_options_do_not_load_torch(script):
    code = (
        f"import sys, {script}\n"
        f"try: {script}.main(sys.argv[1:])\n"
        "except SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)"
    )
    assert in_python(code, "--help").returncode == 0
    assert in_python(code, *NEEDED[script], "--dtype", "int5", "--format", "x").returncode == 2


@pytest.mark.parametrize("package", ["torch", "model.errors"])
@pytest.mark.parametrize("script", ["cli_demo", "web_demo", "export_RemoteGLM"])
def test_a_missing_package_is_named(script, package, tmp_path):
    """Not the name that an except clause would have needed from it."""
    argv = {
        "cli_demo": ["--prompt", "x"],
        "web_demo": ["--port", free_port()],
        "export_RemoteGLM": ["--format", "hf", "--output", tmp_path / "new"],
    }[script]
    code = (
        f"import sys\nsys.modules[{package!r}] = None\nimport {script}\n{script}.main(sys.argv[1:])"
    )
    result = in_python(code, "--from_pretrained", SAT_FIXTURE, *argv)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last == f"ModuleNotFoundError: import of {package} halted; None in sys.modules"


class Parsed(Exception):
    """Ends a script where it would read its options."""


def parser_of(script, monkeypatch):
    """The Parser with which a script reads its options."""

    def stop(parser, *_):
        raise Parsed(parser)

    with monkeypatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(Parser, "parse_args", stop)
        script.main([])
    return caught.value.args[0]


def example_value(action):
    """A word that an option accepts."""
    if action.choices:
        return str(next(iter(action.choices)))
    if action.type in (int, float):
        return {int: "7", float: "0.5"}[action.type]
    for word in ("x", "7", '{"x": 7}'):
        with suppress(ValueError, argparse.ArgumentTypeError):
            (action.type or str)(word)
            return word
    raise AssertionError(f"no word for {action.dest}")


@pytest.mark.parametrize("script", [cli_demo, evaluate_RemoteGLM, export_RemoteGLM, web_demo])
def test_both_spellings_of_every_option(script, monkeypatch):
    parser = parser_of(script, monkeypatch)
    actions = [action for action in parser._actions if action.dest != "help"]
    for action in actions:
        action.required = False
    for action in actions:
        values = []
        if action.nargs != 0:
            count = action.nargs if isinstance(action.nargs, int) else 1
            values = [example_value(action)] * count
        expected = vars(parser.parse_args([action.option_strings[0], *values]))
        assert expected[action.dest] != action.default or action.choices or action.type, action.dest
        for option in action.option_strings:
            words = option.removeprefix("--")
            for spelled in ("--" + words.replace("_", "-"), "--" + words.replace("-", "_")):
                assert vars(parser.parse_args([spelled, *values])) == expected, spelled
                if len(values) == 1:
                    one_word = vars(parser.parse_args([f"{spelled}={values[0]}"]))
                    assert one_word == expected, spelled


# What VisualGLM must not need to answer: beyond requirements_wo_ds.txt and
# `pip install --no-deps SwissArmyTransformer`, and of it what other bases are for.
ABSENT = (
    "deepspeed",
    "triton",
    "transformers",
    "peft",
    "datasets",
    "wandb",
    "tensorboardX",
    "boto3",
    "webdataset",
    "matplotlib",
    "torchvision",
    "bitsandbytes",
    "requests",
)

# A sitecustomize.py
BLOCK = f"""
import sys
ABSENT = {ABSENT}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ABSENT:
            raise ModuleNotFoundError('No module named ' + name, name=name)
sys.meta_path.insert(0, Block())
"""


def test_inference_without_deepspeed(adapter, rows, tmp_path):
    """The terminal chat in an interpreter that cannot import what inference must not need."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    command = [sys.executable, PROJECT / "cli_demo.py", "--from_pretrained", adapter]
    command += ["--image", rows / "images/0.tif", *GREEDY]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    expected = answer(adapter, "有什么？", read_image(rows / "images/0.tif"))
    assert result.stdout == f"RemoteGLM：{expected}\n", result.stderr
    assert result.stderr == TRUNCATED


@pytest.mark.slow
def test_installation_without_deepspeed(adapter, rows, tmp_path):
    """The same in a real environment made from requirements_wo_ds.txt (downloads about 1 GB)."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [tmp_path / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", PROJECT / "requirements_wo_ds.txt"], check=True)
    subprocess.run([*pip, "--no-deps", "SwissArmyTransformer==0.4.12"], check=True)
    command = [tmp_path / "venv/bin/python", PROJECT / "cli_demo.py", "--from_pretrained", adapter]
    command += ["--image", rows / "images/0.tif", *GREEDY]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout.startswith("RemoteGLM：") and result.stderr == TRUNCATED
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/deepspeed"))


@pytest.mark.parametrize("form", ["sat", "hf", "int8"])
def test_exported_checkpoint_answers(adapter, rows, tmp_path, form, capsys):
    """What export_RemoteGLM.py writes is talked with under its own name.

    The question it was trained on goes along.
    """
    exported, image = tmp_path / "out", rows / "images/0.tif"
    export_RemoteGLM.main(
        ["--from_pretrained", str(adapter), "--format", form, "--output", str(exported)]
    )
    assert re.search(r"out: [\d.]+ MB, ", capsys.readouterr().out)
    chat(exported, "--image", image, "--json", *GREEDY)
    said = json.loads(capsys.readouterr().out)
    assert said["prompt"] == "有什么？"
    assert said["answer"] == answer(exported, "有什么？", read_image(image))
    if form != "int8":
        assert said["answer"] == answer(adapter, "有什么？", read_image(image))


def test_quantized_while_loading(adapter, rows, capsys):
    image = str(rows / "images/0.tif")
    chat(adapter, "--quant", 8, "--image", image, "--json", *GREEDY)
    assert json.loads(capsys.readouterr().out)["answer"] == "".join(
        load_assistant(adapter, device="cpu", bits=8).stream(
            "有什么？", read_image(image), (), Sampling(temperature=0, max_length=60)
        )
    )


@pytest.mark.parametrize(
    "options, words",
    [
        (["--format", "peft", "--output", "EXISTS"], "exists: name a new folder"),
        (["--format", "gguf", "--output", "new"], "invalid choice: 'gguf'"),
        (["--format", "hf", "--output", "/proc/new"], "checkpoint /proc/new cannot be written"),
        (
            ["--format", "int4", "--output", "new"],
            "groups of 32: a layer of this network has 48 inputs",
        ),
    ],
    ids=["exists", "format", "unwritable", "width"],
)
def test_export_errors(adapter, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        options = [str(tmp_path) if word == "EXISTS" else word for word in options]
        export_RemoteGLM.main(["--from_pretrained", str(adapter), *options])
    said = capsys.readouterr().err + str(caught.value)
    assert caught.value.code and re.search(words, said)
    assert not (tmp_path / "new").exists()
