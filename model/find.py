"""Where checkpoints and vocabularies lie on a disk, and how to fetch what is not there.

A name such as `visualglm-6b` is looked up in this order: a folder of that path, `$SAT_HOME`, the Hugging Face cache,
the ModelScope cache. Nothing touches the network unless a download is asked for.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from model.errors import UserError
from model.files import read_json
import re

CONFIG, CARD, FULL, ADAPTER = (
    "model_config.json",
    "remoteglm.json",
    "model.safetensors",
    "adapter.safetensors",
)
CONFIGS = (
    "model_config.json",
    "config.json",
)  # of SAT's and this project's folders, of Hugging Face's
VOCABULARY = "ice_text.model"
BASE = "visualglm-6b"  # the name people know
HUGGINGFACE, MODELSCOPE = (
    ("THUDM", "zai-org"),
    ("ZhipuAI",),
)  # who publishes VisualGLM-6B and ChatGLM-6B there
HUBS = ("huggingface", "modelscope")
FILES = ("*.bin", "*.safetensors", "*.json", VOCABULARY)


def _repositories(name, owners):
    return [name] if "/" in name else [f"{owner}/{name}" for owner in owners]


def _sat_home():
    return Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()


def _huggingface_cache():
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _modelscope_cache():
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def places(name):
    """Folders where a checkpoint of this name would lie, best first; of a Hugging Face cache, its current snapshot."""
    yield _sat_home() / name.rpartition("/")[2]
    for repository in _repositories(name, HUGGINGFACE):
        folder = _huggingface_cache() / ("models--" + repository.replace("/", "--"))
        main = folder / "refs" / "main"
        yield folder / "snapshots" / main.read_text().strip() if main.is_file() else folder
    for repository in _repositories(name, MODELSCOPE):
        owner, _, model = repository.partition("/")
        for part in ("models", "", "hub/models", "hub"):  # what its releases have called the folder
            for spelled in dict.fromkeys((model, model.replace(".", "___"))):
                yield _modelscope_cache() / part / owner / spelled


def _has_checkpoint(folder):
    return any((folder / config).is_file() for config in CONFIGS)


def _is_whole(folder):
    try:
        return bool(weight_files(folder))
    except UserError:
        return False


def _not_found(name, looked):
    lines = [
        f"checkpoint {name!r} not found. Looked for a folder at:",
        *(f"  {place}" for place in looked),
    ]
    archive = _sat_home() / f"{name}.zip"
    if archive.is_file():
        with open(archive, "rb") as file:
            whole = file.read(2) == b"PK"
        lines.append(
            f"{archive} is there: unpack it, `unzip {archive} -d {archive.parent}`"
            if whole
            else f"{archive} is no archive ({archive.stat().st_size} bytes, perhaps the page of an error): fetch it again"
        )
    repository = _repositories(name, HUGGINGFACE)[0]
    mirror = _repositories(name.rpartition("/")[2], MODELSCOPE)[0]
    lines += [
        "With a network: the same command with --download (from Hugging Face; HF_ENDPOINT names a mirror, such as "
        "HF_ENDPOINT=https://hf-mirror.com) or --download modelscope.",
        "Without one: on a machine that has it, run",
        f"  pip install huggingface_hub && hf download {repository} --local-dir {repository.rpartition('/')[2]}",
        f"  (or: pip install modelscope && modelscope download {mirror} --local_dir {mirror.rpartition('/')[2]})",
        f"carry the folder here and name it: its path, or the name {name} once it lies in {_sat_home()}.",
    ]
    return "\n".join(lines)


def find_checkpoint(name, download=None):
    """The folder of a checkpoint: a path, or a name that is looked up; an experiment stands for what its `latest` names.

    download: one of HUBS to fetch what is nowhere. Raises UserError that says where it looked and what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if _has_checkpoint(path):
            return path
        latest = path / "latest"
        step = path / latest.read_text(errors="replace").strip() if latest.is_file() else path
        if step != path and _has_checkpoint(step):
            return step
        raise UserError(
            f"checkpoint {name}: not a checkpoint; expected {CONFIGS[0]} or {CONFIGS[1]} in the folder, or a `latest` that names a "
            "saved step"
        )
    if path.exists():
        raise UserError(
            f"checkpoint {name}: a file; expected the folder with {CONFIGS[0]} and the weights"
        )
    name = str(name)
    looked = [path]
    if not (
        path.is_absolute() or name.startswith((".", "~", "checkpoints/")) or name.count("/") > 1
    ):  # then it is only a path
        looked += places(name)
        for place in looked[1:]:
            if _has_checkpoint(place) and (
                download is None or _is_whole(place)
            ):  # else the download goes on
                return place
    if download is None or len(looked) == 1:
        if name.rpartition("/")[2] == BASE and len(looked) > 1:
            raise UserError(_not_found(name, looked))
        raise UserError(
            f"checkpoint {name}: no such folder"
            + (
                ", nor one of that name in SAT_HOME and the Hugging Face and ModelScope caches"
                if len(looked) > 1
                else ""
            )
            + f"; train one (finetune_RemoteGLM.sh), or name a base such as {BASE} or "
            "model/tiny/base"
        )
    return {"huggingface": _from_huggingface, "modelscope": _from_modelscope}[download](name)


def find_vocabulary(folder, given=None):
    """The vocabulary file: as given, else in the checkpoint folder, else where ChatGLM-6B and VisualGLM-6B are kept.

    Raises UserError that names the places.
    """
    looked = (
        [Path(given)]
        if given
        else [Path(folder), *(p for name in (BASE, "chatglm-6b") for p in places(name))]
    )
    for place in looked:
        place = place / VOCABULARY if place.is_dir() else place
        if place.is_file():
            return place
    raise UserError(
        f"vocabulary {VOCABULARY} not found: looked at {', '.join(map(str, looked[:3]))}"
        + (f" and {len(looked) - 3} cache folders" if len(looked) > 3 else "")
        + f"; put the file (2.7 MB, part of THUDM/chatglm-6b) into the checkpoint folder or name it with --tokenizer"
    )


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_huggingface(name):
    """Fetch a repository into the Hugging Face cache; files that are there whole are not fetched again. Returns its folder."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"HF_ENDPOINT={endpoint}: expected an address that begins with https:// or http://"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = _repositories(name, HUGGINGFACE)[0]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OSError,
        ValueError,
    ) as error:  # the last for a name no repository has
        raise UserError(
            f"download of {repository} from {endpoint} failed "
            f"({str(error).splitlines()[0]}); run it again to go on, or name a mirror with HF_ENDPOINT"
        ) from None
    damaged = []
    for file in folder.iterdir():
        blob = file.resolve()
        if (
            len(blob.name) == 64 and sha256(blob) != blob.name
        ):  # large files are stored under their own hash
            blob.unlink()
            damaged.append(file.name)
    if damaged:
        raise UserError(
            f"download of {repository}: {', '.join(damaged)} arrived damaged and was removed; run it again"
        )
    return folder


def _from_modelscope(name):
    """Fetch a repository into the ModelScope cache; its client resumes and compares hashes. Returns its folder."""
    if importlib.util.find_spec("modelscope") is None:
        raise UserError("--download modelscope needs its client: pip install modelscope")
    repository = _repositories(name, MODELSCOPE)[0]
    folder = _modelscope_cache() / "models" / repository
    # As a command: the names inside the client change from release to release.
    status = subprocess.run(
        [
            sys.executable,
            "-m",
            "modelscope.cli.cli",
            "download",
            repository,
            "--local_dir",
            str(folder),
            "--include",
            *FILES,
        ]
    ).returncode
    if status:
        raise UserError(
            f"download of {repository} from ModelScope failed (its client ended with {status}); run it again to go on"
        )
    return folder


def weight_files(folder):
    """The weight files of a folder, all of them or UserError."""
    if (folder / CONFIG).is_file():
        if (folder / FULL).is_file():
            return [folder / FULL]
        try:
            tag = (folder / "latest").read_text(errors="replace").strip()
        except FileNotFoundError:
            raise UserError(
                f"checkpoint {folder}: no weights; expected {FULL}, or SAT's `latest` and "
                "<step>/mp_rank_00_model_states.pt"
            ) from None
        step = folder / (str(int(tag)) if tag.isdigit() else tag)
        if (step / "mp_rank_01_model_states.pt").exists():
            raise UserError(
                f"checkpoint {step}: split for model parallelism; merge its parts with SAT first"
            )
        return [step / "mp_rank_00_model_states.pt"]
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        present = sorted(folder.glob(pattern))
        index = folder / f"{pattern.replace('*', '')}.index.json"
        if index.is_file():
            wanted = sorted(
                set(read_json(index, "list of weight files", dict).get("weight_map", {}).values())
            )
            if not wanted:
                raise UserError(
                    f"checkpoint {folder}: {index.name} lists no weight files; fetch it again"
                )
            missing = [name for name in wanted if not (folder / name).is_file()]
            if missing:
                raise UserError(
                    f"checkpoint {folder}: {len(missing)} of {len(wanted)} weight files are missing "
                    f"({', '.join(missing[:5])}); fetch them again"
                )
            return [folder / name for name in wanted]
        if present:
            if re.search(r"-\d+-of-", present[0].name):
                raise UserError(
                    f"checkpoint {folder}: {index.name}, the list of its {len(present)} weight files, is missing; "
                    "fetch it again"
                )
            return present
    raise UserError(
        f"checkpoint {folder}: no weights; expected model*.safetensors or pytorch_model*.bin beside config.json"
    )
