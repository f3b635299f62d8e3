"""Where checkpoints are looked for, what is reported when they are not found, and downloads.

Downloads from Hugging Face are tested against a local server.
"""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import pytest

from model import UserError, find
from model.visualglm.tokenizer import VOCABULARY, find_vocabulary
from model.weight_files import weight_files

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty caches."""
    monkeypatch.chdir(tmp_path)
    for name, folder in (("SAT_HOME", "sat"), ("HF_HOME", "hf"), ("MODELSCOPE_CACHE", "ms")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    # huggingface_hub reads the environment once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    return tmp_path


def put(folder, config="config.json"):
    folder.mkdir(parents=True)
    (folder / config).write_text("{}")
    return folder


def test_order(home):
    """Each later place is only taken while the earlier ones are empty."""
    snapshot = home / "hf/hub/models--zai-org--visualglm-6b"
    last_first = [put(home / "ms/models/ZhipuAI/visualglm-6b"), put(snapshot / "snapshots/abc")]
    (snapshot / "refs").mkdir()
    (snapshot / "refs/main").write_text("abc")
    assert find.find_checkpoint("visualglm-6b") == last_first[1]
    shutil.rmtree(snapshot)
    assert find.find_checkpoint("visualglm-6b") == last_first[0]
    assert find.find_checkpoint("ZhipuAI/visualglm-6b") == last_first[0]
    other = put(home / "sat/visualglm-6b", "model_config.json")
    assert (
        find.find_checkpoint("visualglm-6b") == find.find_checkpoint("THUDM/visualglm-6b") == other
    )
    here = put(home / "visualglm-6b")
    assert find.find_checkpoint("visualglm-6b").resolve() == here


def test_snapshot_that_is_current(home):
    for revision in ("old", "new"):
        put(home / "hf/hub/models--THUDM--visualglm-6b/snapshots" / revision)
    (home / "hf/hub/models--THUDM--visualglm-6b/refs").mkdir()
    (home / "hf/hub/models--THUDM--visualglm-6b/refs/main").write_text("new")
    assert find.find_checkpoint("visualglm-6b").name == "new"


@pytest.mark.parametrize(
    "variable, folder",
    [("HF_HOME", "hub"), ("HF_HUB_CACHE", "."), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_where_the_hugging_face_cache_is(home, variable, folder):
    """Each in a process of its own, since the client reads the environment when it is imported."""
    snapshot = put(home / "cache" / folder / "models--zai-org--visualglm-6b/snapshots/abc")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")

    code = "from model import find; print(find.find_checkpoint('visualglm-6b').resolve())"
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {variable: str(home / "cache"), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(snapshot.resolve()), done.stderr


def test_partial_snapshot_is_found_and_named_incomplete(home):
    """Loading says which files are missing, better than that there is no checkpoint."""
    repository = home / "hf/hub/models--THUDM--visualglm-6b"
    snapshot = put(repository / "snapshots" / ("c" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c" * 40)
    (snapshot / "model-00001-of-00002.safetensors").touch()
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    # what the client keeps beside a download: the files that the whole repository has
    (repository / "trees").mkdir()
    tree = {name: {"size": 2, "blob_id": "0" * 40} for name in ["config.json", *files.values()]}
    tree = {"format_version": 1, "files": tree}
    (repository / "trees" / f"{'c' * 40}.json").write_text(json.dumps(tree))

    assert find.find_checkpoint("visualglm-6b") == snapshot
    with pytest.raises(UserError, match="1 of 2 weight files are missing .*00002-of-00002"):
        weight_files(snapshot)


def test_not_found(home):
    with pytest.raises(UserError) as caught:
        find.find_checkpoint("visualglm-6b")
    message = str(caught.value)
    for words in (
        str(home / "sat/visualglm-6b"),
        str(home / "hf/hub/models--THUDM--visualglm-6b"),
        "models--zai-org--visualglm-6b",
        str(home / "ms/models/ZhipuAI/visualglm-6b"),
        "--download",
        "HF_ENDPOINT",
        "hf download THUDM/visualglm-6b",
        "modelscope download ZhipuAI/visualglm-6b",
    ):
        assert words in message


@pytest.mark.parametrize(
    "content, words",
    [(b"<html>moved</html>", "is no archive (18 bytes"), (b"PK\x03\x04", "unpack it, `unzip")],
)
def test_archive_in_place_of_the_folder(home, content, words):
    (home / "sat").mkdir()
    (home / "sat/visualglm-6b.zip").write_bytes(content)
    with pytest.raises(UserError) as caught:
        find.find_checkpoint("visualglm-6b")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["checkpoints/nothing", "./visualglm-6b", "/no/such/folder", "a/b/c"]
)
def test_a_path_is_not_looked_up(home, name):
    put(home / "sat" / name.rpartition("/")[2])
    for download in (None, "huggingface"):
        with pytest.raises(UserError, match="no such folder; train one"):
            find.find_checkpoint(name, download)


def test_other_names_are_looked_up_too(home):
    with pytest.raises(
        UserError,
        match="checkpoint mine: no such folder, nor one of that name in SAT_HOME.*; train one",
    ):
        find.find_checkpoint("mine")
    put(home / "sat/mine")
    assert find.find_checkpoint("mine") == home / "sat/mine"


def test_file_instead_of_folder(home):
    (home / "weights.pt").touch()
    with pytest.raises(UserError, match="a file; expected the folder"):
        find.find_checkpoint(home / "weights.pt")


def test_vocabulary(home):
    folder = put(home / "base")
    with pytest.raises(
        UserError, match="not found: looked at .*base.*and 12 cache folders.*--tokenizer"
    ):
        find_vocabulary(folder)

    cached = put(home / "sat/chatglm-6b") / VOCABULARY
    cached.touch()
    assert find_vocabulary(folder) == cached
    (folder / VOCABULARY).touch()
    assert find_vocabulary(folder) == folder / VOCABULARY

    assert find_vocabulary(folder, cached) == find_vocabulary(folder, cached.parent) == cached
    with pytest.raises(UserError, match="not found"):
        find_vocabulary(folder, home / "nothing")


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub's client asks of a hub, for one repository.

    The next `cuts` large answers break off after `cut_after` bytes.
    """

    repository, files, served, cut_after, cuts = "THUDM/visualglm-6b", {}, [], None, 0

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            if parts[2:4] != self.repository.split("/"):
                return self.send_error(404)
            listing = {
                "id": self.repository,
                "sha": "c" * 40,
                "siblings": [{"rfilename": name} for name in self.files],
            }
            if "tree" in parts:
                listing = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in self.files.items()
                ]
            return self.reply(
                200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body
            )
        name = parts[-1]
        if name not in self.files:
            return self.send_error(404)
        data = self.files[name]
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": "c" * 40,
            "Accept-Ranges": "bytes",
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if body:
            self.served.append((name, start))
        self.reply(206 if start else 200, data[start:], headers, body)

    def reply(self, status, data, headers, body):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            if len(data) > 1000 and self.cuts:
                type(self).cuts -= 1
                data, self.close_connection = data[: self.cut_after], True
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(home, monkeypatch):
    """A hub on 127.0.0.1.

    The client reads its address when it is imported, so each download is a process of its own.
    """

    class Here(Hub):
        files = {
            "config.json": b"{}",
            "README.md": b"not wanted",
            VOCABULARY: b"words",
            "model.safetensors": bytes(range(256)) * 48_000,
        }
        served = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Here.url = f"http://127.0.0.1:{server.server_port}"
    yield Here
    server.shutdown()


def download(hub, name="visualglm-6b", **env):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom model import UserError, find\n"
        "try: print(find.find_checkpoint(sys.argv[2], 'huggingface'))\n"
        "except UserError as error: sys.exit(f'error: {error}')"
    )
    defaults = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "*",
    }
    env = os.environ | defaults | env
    return subprocess.run(
        [sys.executable, "-c", code, str(PROJECT), name],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_download(home, hub):
    done = download(hub)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert {file.name for file in folder.iterdir()} == set(hub.files) - {"README.md"}
    assert find.find_checkpoint("visualglm-6b") == folder  # from now on without a network


def test_a_base_of_transformers_by_its_name(home, hub, monkeypatch):
    """Downloaded it answers; by the same name it then is found, in ModelScope's cache as well."""
    from hf_checkpoints import write_checkpoint
    from PIL import Image

    from model import Sampling, load_assistant

    name = hub.repository = "Qwen/Qwen3-VL-4B-Instruct"
    base = write_checkpoint("qwen3_vl", home / "written")
    wanted = {file.name: file.read_bytes() for file in base.iterdir()}
    monkeypatch.setattr(hub, "files", wanted | {"model.gguf": b"not wanted"})
    done = download(hub, name)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == wanted

    def answer(checkpoint):
        sampling = Sampling(temperature=0, max_new_tokens=4)
        assistant = load_assistant(checkpoint, device="cpu")
        return assistant.answer_batch(["这是哪里？"], [Image.new("RGB", (64, 64))], sampling)

    expected = answer(base)
    assert answer(name) == expected
    shutil.rmtree(home / "hf")
    with pytest.raises(UserError, match="no such folder, nor one of that name"):
        load_assistant(name)
    shutil.copytree(base, home / "ms/models" / name)
    assert answer(name) == expected


def test_broken_connection_continues_at_its_byte(home, hub):
    hub.cut_after, hub.cuts = 11_000_000, 1
    done = download(hub)
    assert done.returncode == 0, done.stderr
    starts = [start for name, start in hub.served if name == "model.safetensors"]
    # the second time from what the client had written by then
    assert starts[0] == 0 and len(starts) == 2 and starts[1] >= 10 << 20


def test_broken_download_continues_at_its_file(home, hub):
    hub.cut_after, hub.cuts = 70_000, 99
    assert download(hub).returncode != 0
    assert VOCABULARY in [name for name, _ in hub.served]
    hub.cuts = 0
    hub.served.clear()
    done = download(hub)
    assert done.returncode == 0, done.stderr
    assert {name for name, _ in hub.served} == {"model.safetensors"}


def test_damaged_download_is_removed(home, hub):
    assert download(hub).returncode == 0
    snapshot = home / "hf/hub/models--THUDM--visualglm-6b/snapshots" / ("c" * 40)
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    # incomplete: fetched again
    (snapshot / "config.json").unlink()
    done = download(hub)
    assert (
        done.returncode != 0
        and "model.safetensors arrived damaged and was removed; run it again" in done.stderr
    )
    assert download(hub).returncode == 0


def test_unreachable_hub(home, hub):
    done = download(hub, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert (
        "error: download of THUDM/visualglm-6b from http://127.0.0.1:9 failed" in done.stderr
        and "HF_ENDPOINT" in done.stderr
    )


def test_modelscope_client_is_missing_or_fails(home, monkeypatch):
    monkeypatch.setattr(find.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install modelscope"):
        find.find_checkpoint("visualglm-6b", "modelscope")
    monkeypatch.undo()


def test_modelscope(home, monkeypatch):
    """The client's command line, played by a program of the same name.

    It gets the repository, the folder and the files.
    """
    package = home / "site/modelscope/cli"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "cli.py").write_text(
        "import json, pathlib, sys\nargs = sys.argv[1:]\n"
        "if 'fail' in ' '.join(args): sys.exit(3)\n"
        "folder = pathlib.Path(args[args.index('--local_dir') + 1])\nfolder.mkdir(parents=True)\n"
        "(folder / 'config.json').write_text(json.dumps(args))"
    )
    monkeypatch.setenv("PYTHONPATH", str(home / "site"))
    monkeypatch.syspath_prepend(str(home / "site"))
    folder = find.find_checkpoint("visualglm-6b", "modelscope")
    args = json.loads((folder / "config.json").read_text())
    assert args[:2] == ["download", "ZhipuAI/visualglm-6b"] and args[
        args.index("--include") + 1 :
    ] == list(find.FILES)
    assert find.find_checkpoint("visualglm-6b") == folder
    with pytest.raises(UserError, match="download of ZhipuAI/fail from ModelScope failed"):
        find.find_checkpoint("fail", "modelscope")


class Scope(http.server.BaseHTTPRequestHandler):
    """What ModelScope's client asks of its hub, for any repository.

    wrong: a file that arrives with another content than its hash says.
    """

    files, served, wrong = {}, [], None

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.endswith("/repo"):
            name = urllib.parse.parse_qs(query)["FilePath"][0]
            self.served.append(name)
            data = self.files[name]
            if name == self.wrong:
                data = data[::-1]
            return self.reply(data)
        listed = []
        if path.endswith("/repo/files"):
            for name, data in self.files.items():
                digest = hashlib.sha256(data).hexdigest()
                listed.append({"Path": name, "Name": name, "Type": "blob", "Size": len(data)})
                listed[-1] |= {"Sha256": digest, "Revision": "r", "CommittedDate": 1}
        self.reply(json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode())

    def reply(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def scope(home, monkeypatch):
    """A hub of ModelScope on 127.0.0.1, to which its client is sent."""

    class Here(Scope):
        files = {
            "config.json": b"{}",
            "README.md": b"not wanted",
            "chat_template.jinja": b"template",
            "model.safetensors": bytes(range(256)) * 48_000,
        }
        served = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    yield Here
    server.shutdown()


def test_modelscopes_own_client(scope):
    """Only what is wanted, once; a damaged file is none."""
    pytest.importorskip("modelscope", reason="requirements_test.txt installs it")
    folder = find.find_checkpoint("Qwen/Qwen3-VL-4B-Instruct", "modelscope")
    wanted = set(scope.files) - {"README.md"}
    assert {name for name in wanted if (folder / name).read_bytes() == scope.files[name]} == wanted
    assert not (folder / "README.md").exists() and sorted(scope.served) == sorted(wanted)
    assert find.find_checkpoint("Qwen/Qwen3-VL-4B-Instruct", "modelscope") == folder
    assert len(scope.served) == len(wanted)

    scope.wrong = "model.safetensors"
    with pytest.raises(UserError, match="download of ZhipuAI/visualglm-6b from ModelScope failed"):
        find.find_checkpoint("visualglm-6b", "modelscope")
