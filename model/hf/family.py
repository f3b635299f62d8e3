"""Every image-text model of transformers with a chat template, as a family: see model/family.py."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from model.answer_text import streamed
from model.devices import to_device
from model.errors import UserError
from model.family import Family, FeatureSpec
from model.files import replacing_folder
from model.float_products import widen_products, widens
from model.hf import adapter, processor
from model.hf.answer_text import AnswerText
from model.hf.export import export_merged
from model.hf.features import drop, encode, takes_features
from model.hf.generate import generate
from model.hf.inputs import Inputs
from model.hf.loading import fingerprint_of, load_model, read_config
from model.hf.network import Network
from model.hf.quantization import pack, quantize, to_nf4
from model.hf.score import score
from model.hf.types import check_type, names_of
from model.images import image_size
from model.opening import open_checkpoint
from model.quantization import QuantizedLinear, chosen_bits
from model.sampling import Sampling
from model.text_scores import Tree
from model.weight_files import CARD, PEFT_CONFIG, fingerprint, read_card

ANSWER_SHARE = 8  # one part in so many of the length limit is kept free of the prompt
PROBE = "?"  # a question, where a checkpoint does not know its own
SIDES = (256, 768, 1536)  # of images that the start line names


class HFFamily(Family):
    """network: model/hf/network.py around a model of transformers; processor: its own.

    folder: that of the base; files: that of the processor.
    """

    parts = ("vision", "projector", "language")
    vision_parts = ("vision", "projector")
    lora_targets = adapter.LORA_TARGETS
    methods = ("lora", "qlora", "full")
    formats = ("hf", "int8", "int4")

    def __init__(self, model, loaded, folder, files, base_fingerprint, card=None):
        """loaded: the processor; files: the folder that it is from."""
        self.network = Network(model)
        self.processor = loaded
        self.folder = folder
        self.card = card or {}
        self.files = files
        self._base_fingerprint = base_fingerprint
        self._recomputes = False  # activations, see configure_training
        self._probe_features = None  # of the probe's image, where the vision part is dropped
        self.inputs = Inputs(loaded, self._end_ids())
        self.prompts = self.inputs.prompts
        if not read_card(files):  # ours have their bounds in their files
            self.limit_pixels(None, None)

    def _end_ids(self):
        ends = self.network.base.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        own = self.processor.tokenizer.eos_token_id
        return list(dict.fromkeys([*ends, *([] if own is None else [own])]))

    @property
    def device(self):
        return self.network.device

    @property
    def dtype(self):
        return self.network.dtype

    @property
    def base_fingerprint(self):
        return self._base_fingerprint

    @property
    def _peft(self):
        """peft's model around the network's, or None."""
        model = self.network.model
        return model if hasattr(model, "peft_config") else None

    # Opening

    @classmethod
    def check_config(cls, config, path):
        check_type(config, path)

    @classmethod
    def open(cls, folder, *, tokenizer=None, device, dtype=None, bits=None, vision_on_cpu=False):
        folder = Path(folder)
        files = Path(tokenizer) if tokenizer else folder
        if not processor.has_processor(files):
            files = folder
        config, card = read_config(folder), read_card(folder)
        bits = chosen_bits(card, bits, f"checkpoint {folder}")
        loaded = processor.load_processor(files, config)
        mark = card.get("fingerprint") or fingerprint_of(folder)
        if bits is None or "quantization" in card:
            model = load_model(folder, config, device, dtype)
        else:
            # Quantized on the way to the device, which never holds the whole weights
            model = load_model(folder, config, torch.device("cpu"), dtype)
            quantize(model, bits, device)
            model.to(device)
        return cls(model, loaded, folder, files, mark, card)

    @classmethod
    def from_config(cls, config, *, tokenizer, device, dtype):
        path = Path(config)
        files = Path(tokenizer) if tokenizer else path.parent
        parsed = read_config(path)
        loaded = processor.load_processor(files, parsed)
        model = transformers.AutoModelForImageTextToText.from_config(parsed, dtype=dtype)
        model.generation_config.eos_token_id = loaded.tokenizer.eos_token_id
        mark = fingerprint(model.state_dict())
        return cls(model.to(device), loaded, path.parent, files, mark)

    def load_adapter(self, method, tensors, source):
        if "peft" not in method:
            raise UserError(
                f"{source}: no {PEFT_CONFIG} beside its weights, so it is none of such a base; "
                "name the base it was trained on"
            )
        base = self.network.base
        self.network.model = adapter.add_foreign(base, method["peft"], self.dtype, source)
        adapter.fill(self._peft, tensors, source)
        self.network.eval()

    def limit_pixels(self, least, most):
        self.inputs.limit_pixels(least, most)

    def image_note(self):
        counts = []
        for side in SIDES:
            tokens = 1 + self.inputs.image_tokens((side, side))
            counts.append(f"{tokens} at {side} x {side}")
        return f"tokens of an image: {', '.join(counts)} (--max_pixels, --min_pixels)"

    # Training

    def add_method(self, method, *, device, nf4=False):
        base = self.network.base
        parts = method.get("parts", [])
        method = {key: value for key, value in method.items() if key != "parts" or value}
        if method["name"] == "full":
            names = [name for name, _ in base.named_parameters()]
            trained = set(names_of(names, parts)) if parts else set(names)
            for name, parameter in base.named_parameters():
                parameter.requires_grad_(name in trained)
            base.to(device)
            method = {"name": "full"}
        else:
            if nf4:
                to_nf4(base, device)
            base.to(device)
            method = self._add_lora(method)
        if widens(device, self.dtype):
            widen_products(base)
        return method

    def _add_lora(self, method):
        """Returns the method as a card keeps it."""
        base = self.network.base
        if "peft" in method:
            stored = method["peft"]
            own = {"inference_mode": False, "lora_dropout": method["dropout"]}
            source = f"{PEFT_CONFIG} of the adapter"
            self.network.model = adapter.add_foreign(base, stored | own, self.dtype, source)
            return {key: value for key, value in method.items() if key != "peft"}
        self.network.model = adapter.add_lora(base, method, self.dtype)
        if method["layers"] is None:
            method["layers"] = list(range(adapter.depth(base)))
        return method

    def start_from(self, tensors, source):
        adapter.fill(self._peft, tensors, source)

    def trained_tensors(self):
        if self._peft is None:
            return super().trained_tensors()
        return adapter.tensors_of(self._peft)

    def configure_training(
        self,
        *,
        activation_checkpointing=False,
        patch_dropout=0.0,
        label_smoothing=0.0,
        compile_layers=False,
    ):
        for option, value in (("--patch-dropout", patch_dropout), ("--compile", compile_layers)):
            if value:
                raise UserError(f"{option} is not there for this base: leave it out")
        self.network.label_smoothing = label_smoothing
        self._recomputes = activation_checkpointing
        if activation_checkpointing:
            # Not the reentrant kind: with frozen embeddings it would lose all gradients
            options = {"use_reentrant": False}
            self.network.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def render(self, sample, limits):
        image_tokens = None
        if sample.image:
            image_tokens = self.inputs.image_tokens(_size_of(sample.image))
        return self.prompts.row(
            sample.question,
            sample.answer,
            history=sample.history,
            image_tokens=image_tokens,
            max_source=limits.max_source,
            max_target=limits.max_target,
        )

    def encode(self, row, image):
        return self.inputs.item(row, image)

    def encode_features(self, row, features):
        return self.inputs.item_of_features(row, features)

    def collate(self, items):
        return self.inputs.collate(items)

    def target_tokens(self, batch):
        return batch["targets"].numel()

    def activation_bytes(self, tokens, target_tokens):
        config = self.network.base.config.get_text_config()
        width = config.hidden_size
        # About what a decoder layer with a gated MLP keeps of a token
        layer = 10 * width + 4 * (getattr(config, "intermediate_size", None) or 4 * width)
        kept = config.num_hidden_layers * layer
        if self._recomputes:
            # Of each layer its input, and all of the one that is computed again
            kept = config.num_hidden_layers * width + layer
        # The head with its gradient in float32
        return tokens * kept * self.dtype.itemsize + target_tokens * config.vocab_size * 12

    @torch.no_grad()
    def feature_spec(self):
        base = self.network.base
        trained = [name for name, p in base.named_parameters() if p.requires_grad]
        if names_of(trained, self.vision_parts) or not takes_features(base):
            return None
        # What a class does with features is its own: none are cached where it makes a difference
        row = self.prompts.row(PROBE, PROBE, image_tokens=0)
        image = probe_image()
        (features,) = self.image_features([image])
        losses = []
        for item in (self.encode(row, image), self.encode_features(row, features)):
            batch = to_device(self.collate([item]), self.device)
            losses.append(self.network(**batch)[1].item())
        if not math.isclose(*losses, rel_tol=1e-3):
            return None
        size = sum(tensor.nbytes for tensor in features.values())
        made_by = (self.base_fingerprint, self.dtype, self.inputs.bounds, transformers.__version__)
        return FeatureSpec(None, self.dtype, " ".join(map(str, made_by)), 4 * size)

    @torch.inference_mode()
    def image_features(self, images):
        def process(shown):
            texts = [self.prompts.text((), PROBE, True)]
            inputs = self.inputs.of_texts(texts, shown).to(self.device)
            return self.network.as_inputs(inputs)

        return encode(self.network.base, process, images)

    def drop_vision(self):
        base = self.network.base
        (self._probe_features,) = self.image_features([probe_image()])
        drop([base.get_submodule(n) for n in adapter.whole_modules(base, self.vision_parts)])

    def save(self, folder, card):
        with _new_checkpoint(folder) as new:
            if card["method"]["name"] == "full":
                self.network.base.save_pretrained(new)
            else:
                base = card.get("base") or {}
                adapter.write(self._peft, new, base.get("path"))
            processor.copy_files(self.files, new, self.inputs.bounds)
            text = json.dumps(card, indent=2, ensure_ascii=False)
            (new / CARD).write_text(text, encoding="utf-8")

    # Answering

    @property
    def has_adapter(self):
        return self._peft is not None

    @contextmanager
    def untuned(self):
        if self._peft is None:
            yield
            return
        with self._peft.disable_adapter():
            yield

    @torch.no_grad()
    def effect(self, question=None):
        if self._peft is None:
            return None
        was_training = self.network.training
        self.network.eval()
        tuned = self.probe(question)
        with self.untuned():
            change = tuned - self.probe(question)
        self.network.train(was_training)
        return rms(change)

    @torch.no_grad()
    def probe(self, question=None):
        """Logits [V] of the first token of an answer about an image that is made here."""
        row = self.prompts.row(question or self.card.get("prompt", PROBE), PROBE, image_tokens=0)
        item = self.encode(row, probe_image())
        if self._probe_features:
            item = self.encode_features(row, self._probe_features)
        logits, _ = self.network(**to_device(self.collate([item]), self.device))
        return logits[0].float()

    def prepare_to_answer(self):
        self.network.eval()
        pack(self.network)
        if widens(self.device, self.dtype):
            widen_products(self.network)
        tensors = adapter.tensors_of(self._peft) if self._peft else {}
        return f"{self.base_fingerprint}-{fingerprint(tensors)}-{self._bits or self.dtype}"

    @property
    def _bits(self):
        """Of weights in the form that folders store; None: there are none."""
        layers = [m for m in self.network.modules() if isinstance(m, QuantizedLinear)]
        return layers[0].bits if layers else None

    @torch.inference_mode()
    def generate(
        self, samples, images, sampling, *, english=False, stream=False, on_cut=None, on_token=None
    ):
        rows = []
        for index, (sample, image) in enumerate(zip(samples, images)):
            row = self._question(sample, image, sampling)
            rows.append(row)
            if row.cut and on_cut:
                on_cut(index, row.dropped, row.shortened)

        inputs = self.inputs.of_texts([row.text for row in rows], images, "left").to(self.device)
        steps = generate(
            self.network.model,
            self.network.as_inputs(inputs),
            end_ids=self.prompts.end_ids,
            pad=self.inputs.pad,
            sampling=sampling,
            context_length=self._context_length,
        )
        texts = [AnswerText(self.processor.tokenizer) for _ in rows]
        return (yield from streamed(steps, texts, stream, on_token))

    def prompt_size(self, sample, image, sampling, english=False):
        row = self._question(sample, image, sampling)
        return row.length, (row.dropped, row.shortened)

    @torch.inference_mode()
    def score(self, samples, images, texts, *, english=False):
        return [self._scores(*row) for row in zip(samples, images, texts)]

    def _scores(self, sample, image, texts):
        """Of one question: the trunk of the texts stands behind it as if it were the answer."""
        tree = Tree.of([self.prompts.beginning(text) for text in texts])
        trunk = np.array(tree.ids[: tree.trunk], dtype=np.int32)
        row = replace(self._question(sample, image, Sampling()), target=trunk)
        batch = to_device(self.collate([self.encode(row, image)]), self.device)
        inputs = {name: batch[name] for name in batch if not name.startswith("target")}
        return score(self.network, inputs, tree, self.prompts.pieces.endings)

    @property
    def _context_length(self):
        return self.network.base.config.get_text_config().max_position_embeddings

    def _question(self, sample, image, sampling):
        limit = min(sampling.max_length, self._context_length)
        return self.prompts.row(
            sample.question,
            history=sample.history,
            image_tokens=None if image is None else self.inputs.image_tokens(image.size),
            max_source=limit - limit // ANSWER_SHARE,
        )

    # For other programs

    @classmethod
    def export(cls, folder, form, output, **options):
        family = open_checkpoint(folder, **options)
        if family._bits:
            raise UserError(
                f"checkpoint {folder} is quantized already, or its base is; name the one that it "
                "was made from"
            )
        bits = int(form[3:]) if form.startswith("int") else None
        with _new_checkpoint(output) as new:
            export_merged(family, new, f"checkpoint {folder}", bits)
        return []


def rms(change):
    return change.pow(2).mean().sqrt().item()


def probe_image():
    """A small image with colors and edges, the same everywhere."""
    rows, columns = np.mgrid[:64, :64]
    pixels = np.stack((rows * 4, columns * 4, (rows // 8 + columns // 8) % 2 * 255), -1)
    return Image.fromarray(pixels.astype(np.uint8))


def _size_of(source):
    """(width, height) of an image that is not decoded; of one that is unreadable the usual."""
    try:
        return image_size(source)
    except UserError:  # whoever reads it says so
        return SIDES[0], SIDES[0]


@contextmanager
def _new_checkpoint(folder):
    """A folder to write into, which appears complete or not at all. Raises UserError."""
    try:
        with replacing_folder(folder) as new:
            yield new
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"checkpoint {folder} cannot be written: {reason}") from None
