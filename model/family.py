"""A family of networks: what the rest of the house knows of one, and which a folder belongs to.

The trainer and the assistant hold a `Family` and nothing of its inside; batch answers, evaluation
and pages hold an assistant. A new family is a subclass of it and one line in FAMILIES; what is not
listed there belongs to the family on transformers, which knows a hundred types of networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from model.errors import UserError
from model.files import PROJECT, read_json, sha256
from model.find import find_checkpoint
from model.rows import Sample
from model.sampling import Sampling
from model.weight_files import (
    ADAPTER,
    CARD,
    CONFIG,
    PEFT_CONFIG,
    adapter_file,
    read_card,
)

if TYPE_CHECKING:
    from model.running_batch import RunningBatch

# model_type in a folder's configuration -> "module:class", imported when a folder asks for it
FAMILIES = {
    "visualglm": "model.visualglm.family:VisualGLMFamily",
    "chatglm": "model.visualglm.family:VisualGLMFamily",  # as Hugging Face's folder calls it
}
DEFAULT_FAMILY = "visualglm"  # SwissArmyTransformer's folders name no model_type
HF_FAMILY = "model.hf.family:HFFamily"
MANIFEST = "complete.json"  # hashes of a saved training step, see training/run_folder.py
EFFECT_RATIO = 4  # between an adapter's effect now and after training: dtype and bits change it
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """Length limits of a training row in tokens; None: no limit. Image tokens are never cut."""

    max_source: int | None = None  # image, earlier rounds and question
    max_target: int | None = None  # answer
    english: bool = False  # frame of the question


@dataclass(frozen=True)
class FeatureSpec:
    """What the frozen vision part makes of one image: the same in every epoch, so it is cached."""

    shape: tuple[int, ...] | None  # None: a dict of tensors, by name, whose shapes may differ
    dtype: torch.dtype
    cache_key: str  # differs where weights or preprocessing differ
    estimated_bytes: int = 0  # of an image, where the shape does not say it


class Returning:
    """Iterates over a generator and keeps in `value` what it returns."""

    def __init__(self, generator: Iterable):
        self.generator = generator
        self.value: Any = None

    def __iter__(self):
        self.value = yield from self.generator


class Family(ABC):
    """One loaded network with its tokenizer and image processing.

    network(**batch) of a collated batch is (logits or None, mean loss over the trained tokens).
    A rendered row has `length` and `target_tokens` (in tokens) and `cut` (a limit left something
    out). Every method that reads a user's file or option raises UserError.
    Keys of the card that others read: "method" and "base" (of an adapter), "prompt" (the question
    it was trained on), "english" (the frame of that), "quantization" (such weights cannot be
    trained), "effect" (see `effect`; of an adapter).
    """

    parts: ClassVar[tuple[str, ...]]  # what can be trained in full, by name
    vision_parts: ClassVar[tuple[str, ...]]  # those of them that cached features depend on
    lora_targets: ClassVar[tuple[str, ...]]
    methods: ClassVar[tuple[str, ...]]  # of lora, qlora, ptuning, full
    formats: ClassVar[tuple[str, ...]]  # of `export`

    network: torch.nn.Module
    card: dict[str, Any]  # what the checkpoint says of itself; {} of a plain base
    device: torch.device
    dtype: torch.dtype

    # Opening

    @classmethod  # noqa: B027  (most families know their own types)
    def check_config(cls, config: dict[str, Any], path: Path) -> None:
        """UserError where the family cannot open a network of this configuration, read from path.

        A first look, for a type of networks; `open` checks the rest.
        """

    @classmethod
    @abstractmethod
    def open(
        cls,
        folder: Path,
        *,
        tokenizer: str | Path | None = None,
        device: torch.device,
        dtype: torch.dtype | str | None = None,
        bits: int | None = None,
        vision_on_cpu: bool = False,
    ) -> "Family":
        """A base or a full checkpoint.

        tokenizer: a file, or a folder that has one; dtype: "stored" keeps the folder's, None
        chooses; bits: 8 or 4 quantizes; vision_on_cpu: the vision part visits a GPU layer by layer,
        as it is only needed to fill the feature cache.
        """

    @classmethod
    @abstractmethod
    def from_config(
        cls,
        config: Path,
        *,
        tokenizer: str | Path | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Family":
        """A network with randomly initialised weights, to train from scratch."""

    @abstractmethod
    def load_adapter(
        self, method: dict[str, Any], tensors: dict[str, torch.Tensor], source: str
    ) -> None:
        """Add the modules of the method and put their tensors, on the network's device and dtype.

        tensors: by the names that `save` wrote; source: their folder, for the UserError that lists
        what is missing or does not fit. Leaves the network in evaluation mode.
        method: as `add_method` returned it, and under "peft" the configuration of an adapter of
        PEFT.
        """

    def limit_pixels(self, least: int | None, most: int | None) -> None:
        """Bound the pixels of an image as the network sees it; None leaves a bound as it is.

        A saved checkpoint keeps the bounds. Raises UserError where images have one size.
        """
        raise UserError(
            "--max_pixels and --min_pixels: images of this base have one fixed size; leave them out"
        )

    def image_note(self) -> str:
        """What an image takes, for the start lines of a training; "" where there is no choice."""
        return ""

    @property
    @abstractmethod
    def base_fingerprint(self) -> str:
        """Distinguishes the weights of the base that was opened.

        The same whatever its layout, dtype or quantization, and with an adapter over it.
        """

    # Training

    @abstractmethod
    def add_method(
        self, method: dict[str, Any], *, device: torch.device, nf4: bool = False
    ) -> dict[str, Any]:
        """Add what the method trains, mark those parameters as trainable, all others as frozen.

        method: name lora with rank, alpha, layers (None: all), dropout, targets; name ptuning with
        length; name full. "parts": parts trained in full beside an adapter, with full the only
        ones ([]: all). nf4: the frozen linear layers in 4 bits; the network was then opened on the
        CPU and moves to `device` here. Under "peft", as for `load_adapter`, where the modules are,
        whatever else is said. Returns the method as `load_adapter` needs it, for the card.
        """

    def start_from(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Give the trained parameters the values of an adapter, by the names that `save` writes.

        source: its folder, for the UserError that names what does not fit.
        """
        trained = self.trained_tensors()
        wrong = sorted(set(trained) ^ set(tensors))
        for name in set(trained) & set(tensors):
            if trained[name].shape != tensors[name].shape:
                wrong.append(name)
        if wrong:
            raise UserError(
                f"{source}: {len(wrong)} tensors are not those of its method "
                f"({', '.join(wrong[:3])}); copy it again"
            )
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors[name])

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """The trained parameters by the names that `save` writes of an adapter."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}

    @abstractmethod
    def configure_training(
        self,
        *,
        activation_checkpointing: bool = False,
        patch_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        compile_layers: bool = False,
    ) -> None:
        """How the network computes while it is in training mode.

        patch_dropout: share of an image's patches left out; label_smoothing: share of the target
        that goes to all tokens.
        """

    @abstractmethod
    def render(self, sample: Sample, limits: Limits) -> Any:
        """The text of a training row as ids, the loss on its answer; the image is not opened."""

    @abstractmethod
    def encode(self, row: Any, image: Image.Image | None) -> Any:
        """A rendered row and its RGB image -> one training item."""

    @abstractmethod
    def encode_features(self, row: Any, features: Any) -> Any:
        """The same with cached features in the image's place."""

    @abstractmethod
    def collate(self, items: list[Any]) -> dict[str, Any]:
        """Items -> a batch for `network`; tensors in it are moved to the device by the trainer."""

    @abstractmethod
    def target_tokens(self, batch: dict[str, Any]) -> int:
        """Trained tokens of a batch, over which its loss is the mean."""

    @abstractmethod
    def activation_bytes(self, tokens: float, target_tokens: float) -> float:
        """About what a micro-batch of so many tokens keeps for its backward pass."""

    def feature_spec(self) -> FeatureSpec | None:
        """None where the vision part is trained, or makes nothing that can be cached."""
        return None

    def image_features(self, images: Sequence[Image.Image]) -> Any:
        """RGB images -> features [I, *feature_spec().shape], or a dict of each image's."""
        raise NotImplementedError

    def drop_vision(self) -> None:
        """Free what only makes features; from now on rows come with theirs."""
        raise NotImplementedError

    @abstractmethod
    def save(self, folder: Path, card: dict[str, Any]) -> None:
        """Write a checkpoint folder, which appears complete or not at all.

        By card["method"] all weights, or the trained tensors alone, in files that `weight_files`
        or `adapter_file` find, under the names that `load_adapter` takes; the card in CARD; where
        it is no adapter of PEFT a configuration with this family's model_type; and what `open`
        needs of the tokenizer.
        """

    def effect(self, question: str | None = None) -> float | None:
        """How much the adapter changes the logits of an answer; None where that is not measured.

        question: that of the row it is measured on, None: that of the card. All processes together.
        """
        return None

    def close(self) -> None:  # noqa: B027  (most families hold nothing)
        """Release process groups of its own, before torch.distributed ends."""

    # Answering

    @property
    @abstractmethod
    def has_adapter(self) -> bool:
        """Whether there is something that `untuned` switches off."""

    @abstractmethod
    def untuned(self) -> AbstractContextManager[None]:
        """Context in which the base answers, as if nothing had been fine-tuned."""

    @abstractmethod
    def prepare_to_answer(self) -> str:
        """Give the weights their fastest form, after which they cannot be trained or saved.

        Returns a fingerprint of the weights, an adapter's included.
        """

    @abstractmethod
    def generate(
        self,
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        sampling: Sampling,
        *,
        english: bool = False,
        stream: bool = False,
        on_cut: Callable[[int, int, int], None] | None = None,
    ) -> Generator[list[str], None, list[bool] | None]:
        """Answer a batch of questions; yields for each a further piece of its answer, maybe "".

        Returns for each whether the length limit ended its answer; None where that is not known.

        images: one for each sample, RGB or None; of a sample only question and history are read.
        stream: pieces as they come, else all at once at the end. Where a dialogue does not fit,
        its oldest rounds are left out, then the question's end, and on_cut(index, rounds, tokens)
        is called before the first piece.
        """

    def seen(self, image: Image.Image) -> Image.Image | None:
        """An RGB image as the network sees it, for people; None where that is not known."""
        return None

    def score(
        self,
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        texts: Sequence[Sequence[str]],
        *,
        english: bool = False,
    ) -> list[list[float]] | None:
        """How likely each answer begins with each of its texts: natural log probabilities.

        texts: at least one for each sample, which is asked as by `generate`. None where the family
        does not say.
        """
        return None

    def open_batch(self, max_rows: int, memory: int | None = None) -> "RunningBatch":
        """Where questions of many people are answered together, max_rows at a time.

        memory: limit of what it keeps of them on the device, in bytes. Here rows begin together; a
        family whose rows can join at any token has a batch of its own. Raises UserError.
        """
        from model.running_batch import GeneratedBatch

        return GeneratedBatch(self, max_rows)

    # For other programs

    @classmethod
    @abstractmethod
    def export(cls, folder: Path, form: str, output: Path, **options: Any) -> list[str]:
        """Write a checkpoint folder in one of `formats`. options: as for open_checkpoint.

        Returns what the user should know of what was written, line by line.
        """


def family_of(folder: Path) -> type[Family]:
    """The family that a checkpoint folder, or a configuration file, belongs to."""
    path = Path(folder)
    if path.is_dir():
        path = path / (CONFIG if (path / CONFIG).is_file() else "config.json")
    config = read_json(path, "network configuration", dict)
    name = config.get("model_type", DEFAULT_FAMILY)
    if not isinstance(name, str):
        raise UserError(f"{path}: model_type {name!r}, expected a name; copy it again")
    module, _, kind = FAMILIES.get(name, HF_FAMILY).partition(":")
    family = getattr(import_module(module), kind)
    family.check_config(config, path)
    return family


def open_checkpoint(
    name: str | Path,
    *,
    base: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bits: int | None = None,
    download: str | None = None,
    pixels: tuple[int | None, int | None] = (None, None),
) -> Family:
    """A base, a full checkpoint or an adapter: a folder, or a name to look up. Raises UserError.

    base: where an adapter's base lies, if it has moved; tokenizer: a vocabulary file; device:
    "cuda", "mps", "cpu"; dtype: a name of DTYPES, or "stored"; bits: 8 or 4; download:
    "huggingface" or "modelscope"; pixels: least and most of an image, see limit_pixels. None
    chooses, or does without.
    """
    folder = find_checkpoint(name, download)
    device = choose_device(device)
    dtype = named_dtype(dtype)
    if adapter_file(folder) is None:
        family = family_of(folder).open(
            folder, tokenizer=tokenizer, device=device, dtype=dtype, bits=bits
        )
    else:
        family = _open_adapter(folder, base, tokenizer, device, dtype, bits, download)
    if any(pixels):
        family.limit_pixels(*pixels)
    return family


def _open_adapter(folder, base, tokenizer, device, dtype, bits, download):
    card = adapter_card(folder)
    base_folder = base_of_adapter(folder, base, download)
    _check_manifest(folder)
    family = family_of(base_folder).open(
        base_folder, tokenizer=tokenizer or folder, device=device, dtype=dtype, bits=bits
    )
    check_base(folder, family, base_folder)
    family.load_adapter(card["method"], adapter_tensors(folder), f"adapter {folder}")
    family.card = card
    _check_effect(family, f"adapter {folder}")
    return family


def _check_effect(family, source):
    """UserError for an adapter that loads and yet does not do what it did after its training."""
    effect = family.effect()
    if effect is None:
        return
    if effect == 0:
        raise UserError(
            f"{source}: it changes no answer of its base: none of its weights is active; copy it "
            "again, or name its own base with --base_path"
        )
    expected = family.card.get("effect")
    if expected and not expected / EFFECT_RATIO < effect < expected * EFFECT_RATIO:
        raise UserError(
            f"{source}: it changes the logits of its base by {effect:.3g}, expected {expected:.3g} "
            "as after training; its configuration or the base's is not the same: copy them again"
        )


def adapter_card(folder: Path) -> dict[str, Any]:
    """The card of an adapter; of one that another program wrote as PEFT, what its files say.

    Raises UserError.
    """
    card = read_card(folder)
    peft = None
    if (folder / PEFT_CONFIG).is_file():
        peft = read_json(folder / PEFT_CONFIG, "adapter configuration", dict)
    if peft is not None and not card:
        card = _card_of_peft(folder, peft)
    if not card.get("base") or not card.get("method"):
        raise UserError(
            f"adapter {folder}: {CARD} does not say what its base is; copy the folder again"
        )
    if peft is not None:
        card["method"] = card["method"] | {"peft": peft}
    return card


def _card_of_peft(folder, peft):
    """What adapter_config.json says, as a card."""
    if peft.get("peft_type") != "LORA":
        raise UserError(
            f"adapter {folder}: {PEFT_CONFIG} has peft_type {peft.get('peft_type')!r}, expected "
            "LORA"
        )
    method = {"name": "lora"}
    for key, name in (("rank", "r"), ("alpha", "lora_alpha")):
        if name in peft:
            method[key] = peft[name]
    base = {"path": peft.get("base_model_name_or_path"), "fingerprint": None}
    return {"base": base, "method": method}


def base_of_adapter(
    folder: Path, given: str | Path | None = None, download: str | None = None
) -> Path:
    """The folder of an adapter's base: as given, else where the card says, from here or there.

    Raises UserError.
    """
    base = given
    if base is None:
        base = adapter_card(folder)["base"]["path"]
        if not base:
            raise UserError(
                f"adapter {folder}: it does not say what its base is; name it with --base_path"
            )
        for place in (PROJECT / base, folder / base):
            if place.is_dir():
                base = place
                break
    try:
        found = find_checkpoint(base, download)
    except UserError as error:
        advice = "name it with --base_path. " if given is None else ""
        raise UserError(f"adapter {folder}: its base is not at {base}; {advice}{error}") from None
    if adapter_file(found):
        raise UserError(f"adapter {folder}: {found} is an adapter, too, not its base")
    return found


def _check_manifest(folder):
    """An adapter that a training run saved must be what the run wrote."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    file = adapter_file(folder)
    if read_json(manifest, "list of hashes", dict).get(file.name) != sha256(file):
        raise UserError(
            f"adapter {folder}: {file.name} is not what training wrote (its hash differs from "
            f"{MANIFEST}); copy it again"
        )


def check_base(folder: Path, family: Family, base_folder: Path) -> None:
    """UserError unless the family, opened from base_folder, is what an adapter was trained on."""
    expected = adapter_card(folder)["base"]["fingerprint"]
    if expected is not None and family.base_fingerprint != expected:
        raise UserError(
            f"adapter {folder}: {base_folder} is not the base it was trained on (fingerprint "
            f"{family.base_fingerprint}, expected {expected}); name the right one with --base_path"
        )


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """name -> tensor of an adapter, in its dtype. Raises UserError."""
    path = adapter_file(folder) or folder / ADAPTER
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"adapter {folder}: {path.name} cannot be read ({error}); copy it again"
        ) from None


def export_checkpoint(name: str | Path, form: str, output: Path, **options) -> list[str]:
    """`Family.export` of a checkpoint found by its name. Raises UserError."""
    folder = find_checkpoint(name, options.get("download"))
    configured = folder
    if adapter_file(folder) and not (folder / CONFIG).is_file():
        configured = base_of_adapter(folder, options.get("base"), options.get("download"))
    family = family_of(configured)
    if form not in family.formats:
        known = ", ".join(family.formats)
        raise UserError(f"--format {form}: this checkpoint can be written as {known}")
    return family.export(folder, form, output, **options)


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """torch.device of a name; None takes the first of cuda, mps, cpu that works."""
    if name is None:
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}); try cpu") from None
    return device


def named_dtype(name: str | torch.dtype | None) -> torch.dtype | str | None:
    """torch.dtype of a name; None, "stored" and a torch.dtype as they are."""
    if name is None or name == "stored" or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise UserError(f"dtype {name!r}: expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def to_device(batch, device):
    """A batch with its tensors, also those in lists, on the device."""
    if torch.is_tensor(batch):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch


def portable_path(folder: str | Path) -> str:
    """How a card names a base: relative to the project if it lies inside; else its whole path."""
    path = Path(folder).resolve()
    if path.is_relative_to(PROJECT):
        return str(path.relative_to(PROJECT))
    return str(path)
