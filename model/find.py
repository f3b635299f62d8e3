"""Where checkpoints lie on a disk, and how to download what is not there.

A name such as `visualglm-6b` is looked up in this order: a folder of that path, `$SAT_HOME`, the
Hugging Face cache, the ModelScope cache. Nothing uses the network unless a download is asked for.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError
from model.files import sha256
from model.weight_files import CONFIG, HF_CONFIG, PEFT_CONFIG, named_step, weight_files

# Any of them makes a folder a checkpoint: of SAT's and this project's folders, of Hugging Face's,
# of an adapter of PEFT.
CONFIGS = (CONFIG, HF_CONFIG, PEFT_CONFIG)
# What a download takes: weights, configurations, chat templates, vocabularies of sentencepiece and
# of BPE
FILES = ("*.bin", "*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")

# Names without an owner -> who publishes them, the first of them for downloads:
# visualglm-6b is THUDM/visualglm-6b, zai-org/visualglm-6b and ZhipuAI/visualglm-6b.
HUGGINGFACE_OWNERS = ("THUDM", "zai-org")
MODELSCOPE_OWNERS = ("ZhipuAI",)
# The base that error messages name as an example
BASE = "visualglm-6b"


def find_checkpoint(name: str | os.PathLike, download: str | None = None) -> Path:
    """The folder of a checkpoint.

    name: a path, or a name that is looked up; the folder of an experiment means the step that its
    `latest` names. download: "huggingface" or "modelscope", where to fetch what is not found, or
    not found whole.

    Raises UserError that says where it looked and what to do.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _checkpoint_in(path, name)
    if path.exists():
        raise UserError(
            f"checkpoint {name}: a file; expected the folder with {CONFIG} and the weights"
        )

    name = str(name)
    if _is_only_a_path(name):
        raise UserError(f"checkpoint {name}: no such folder; {_advice()}")
    for place in places(name):
        # What is incomplete is for a download to complete; without one, loading says what it lacks.
        if _has_config(place) and (download is None or _is_complete(place)):
            return place

    if download == "huggingface":
        return _from_huggingface(name)
    if download == "modelscope":
        return _from_modelscope(name)
    if name.rpartition("/")[2] == BASE:
        raise UserError(_not_found(name))
    raise UserError(
        f"checkpoint {name}: no such folder, nor one of that name in SAT_HOME and the "
        f"Hugging Face and ModelScope caches; {_advice()}"
    )


def places(name: str) -> Iterator[Path]:
    """Folders where a checkpoint of this name may lie, best first, whether they exist or not.

    In the Hugging Face cache it is the current snapshot, whole or not.
    """
    yield _sat_home() / name.rpartition("/")[2]

    for repository in _repositories(name, HUGGINGFACE_OWNERS):
        yield _huggingface_folder(repository)

    for repository in _repositories(name, MODELSCOPE_OWNERS):
        owner, _, model = repository.partition("/")
        # what its releases have called the folder, and how some of them spell a dot
        for part in ("models", "", "hub/models", "hub"):
            for spelled in dict.fromkeys((model, model.replace(".", "___"))):
                yield _modelscope_cache() / part / owner / spelled


def _checkpoint_in(folder: Path, name: str | os.PathLike) -> Path:
    """The folder itself, or its step that `latest` names; name: what the user called it."""
    if _has_config(folder):
        return folder
    latest = folder / "latest"
    if latest.is_file():
        step = named_step(folder)
        if _has_config(step):
            return step
    raise UserError(
        f"checkpoint {name}: not a checkpoint; expected {CONFIG} or {HF_CONFIG} in the folder, "
        "or a `latest` that names a saved step"
    )


def _is_only_a_path(name: str) -> bool:
    """Whether this cannot be the name of a checkpoint, with or without its owner."""
    if Path(name).is_absolute() or name.startswith((".", "~", "checkpoints/")):
        return True
    return name.count("/") > 1


def _has_config(folder: Path) -> bool:
    return any((folder / config).is_file() for config in CONFIGS)


def _is_complete(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except UserError:
        return False


def _repositories(name: str, owners: tuple[str, ...]) -> list[str]:
    if "/" in name:
        return [name]
    return [f"{owner}/{name}" for owner in owners]


def _sat_home() -> Path:
    return Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()


def _modelscope_cache() -> Path:
    return Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()


def _huggingface_folder(repository: str) -> Path:
    """The current snapshot of a repository in the cache; its folder there if it has none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    try:
        # No patterns: an incomplete snapshot is found too, and weight_files says what it lacks.
        return Path(snapshot_download(repository, local_files_only=True, allow_patterns=[]))
    # ValueError: a name that no repository can have
    except (LocalEntryNotFoundError, ValueError):
        folder = repo_folder_name(repo_id=repository, repo_type="model")
        return Path(constants.HF_HUB_CACHE).expanduser() / folder


def _advice() -> str:
    return f"train one (finetune_RemoteGLM.sh), or name a base such as {BASE} or model/tiny/base"


def _not_found(name: str) -> str:
    """The message for a published checkpoint: where it was looked for, and how to get it."""
    lines = [f"checkpoint {name!r} not found. Looked for a folder at:", f"  {Path(name)}"]
    lines += [f"  {place}" for place in places(name)]

    archive = _sat_home() / f"{name}.zip"
    if archive.is_file():
        lines.append(_archive_advice(archive))

    repository = _repositories(name, HUGGINGFACE_OWNERS)[0]
    model = repository.rpartition("/")[2]
    mirror = _repositories(model, MODELSCOPE_OWNERS)[0]
    lines += [
        "With a network: the same command with --download (from Hugging Face; HF_ENDPOINT names a "
        "mirror, such as HF_ENDPOINT=https://hf-mirror.com) or --download modelscope.",
        "Without one: on a machine that has it, run",
        f"  pip install huggingface_hub && hf download {repository} --local-dir {model}",
        f"  (or: pip install modelscope && modelscope download {mirror} --local_dir {model})",
        f"carry the folder here and name it: its path, or the name {name} once it lies in "
        f"{_sat_home()}.",
    ]
    return "\n".join(lines)


def _archive_advice(archive: Path) -> str:
    """What to do with the zip file that SAT downloads and unpacks by itself."""
    with open(archive, "rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        return f"{archive} is there: unpack it, `unzip {archive} -d {archive.parent}`"
    return (
        f"{archive} is no archive ({archive.stat().st_size} bytes, perhaps the page of an error): "
        "fetch it again"
    )


def _from_huggingface(name: str) -> Path:
    """Download a repository into the Hugging Face cache and return its folder.

    The client continues broken downloads and fetches only what is not there.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    # Trap: the client crashes on an address without a scheme.
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"HF_ENDPOINT={endpoint}: expected an address that begins with https:// or http://"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = _repositories(name, HUGGINGFACE_OWNERS)[0]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(FILES)))
    # ValueError: a name that no repository can have
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"download of {repository} from {endpoint} failed ({str(error).splitlines()[0]}); "
            "run it again to continue, or name a mirror with HF_ENDPOINT"
        ) from None

    damaged = _remove_damaged(folder)
    if damaged:
        raise UserError(
            f"download of {repository}: {', '.join(damaged)} arrived damaged and was removed; "
            "run it again"
        )
    return folder


def _remove_damaged(snapshot: Path) -> list[str]:
    """Remove the files of a snapshot whose content is not what their hash says; their names."""
    damaged = []
    for file in snapshot.iterdir():
        blob = file.resolve()
        # Large files are stored under their own SHA-256, small ones under git's shorter hash.
        if len(blob.name) == 64 and sha256(blob) != blob.name:
            blob.unlink()
            damaged.append(file.name)
    return damaged


def _from_modelscope(name: str) -> Path:
    """Download a repository into the ModelScope cache and return its folder.

    The client continues broken downloads and compares hashes.
    """
    if importlib.util.find_spec("modelscope") is None:
        raise UserError("--download modelscope needs its client: pip install modelscope")
    repository = _repositories(name, MODELSCOPE_OWNERS)[0]
    folder = _modelscope_cache() / "models" / repository

    # As a command: the names inside the client change from release to release.
    client = [sys.executable, "-m", "modelscope.cli.cli"]
    arguments = ["download", repository, "--local_dir", str(folder), "--include", *FILES]
    status = subprocess.run(client + arguments).returncode
    if status:
        raise UserError(
            f"download of {repository} from ModelScope failed (its client ended with {status}); "
            "run it again to continue"
        )
    return folder
