"""A family of networks: what the rest of the house knows of one.

The trainer and the assistant hold a `Family` and nothing of its inside; batch answers, evaluation
and pages hold an assistant. A new family is a subclass of it and one line in model/opening.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image

from model.errors import UserError
from model.rows import Sample
from model.sampling import Sampling

if TYPE_CHECKING:
    from model.running_batch import RunningBatch


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
        on_token: Callable[[int], None] | None = None,
    ) -> Generator[list[str], None, list[bool] | None]:
        """Answer a batch of questions; yields for each a further piece of its answer, maybe "".

        Returns for each whether the length limit ended its answer; None where that is not known.

        images: one for each sample, RGB or None; of a sample only question and history are read.
        stream: pieces as they come, else all at once at the end. Where a dialogue does not fit,
        its oldest rounds are left out, then the question's end, and on_cut(index, rounds, tokens)
        is called before the first piece. on_token(index) is called at each token of an answer but
        its end, where the family counts them.
        """

    def prompt_size(
        self, sample: Sample, image: Image.Image | None, sampling: Sampling, english: bool = False
    ) -> tuple[int | None, tuple[int, int]]:
        """(tokens of the prompt that `generate` reads, (rounds, tokens) that it leaves out); None
        where the family does not count them. Raises UserError where the image does not fit.
        """
        return None, (0, 0)

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
