"""VisualGLM as a family: see model/family.py for what each method promises."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model.answer_text import streamed
from model.errors import UserError
from model.family import Family, FeatureSpec
from model.float_products import widen_products, widens
from model.opening import open_checkpoint
from model.sampling import Sampling
from model.visualglm import export
from model.visualglm.answer_text import AnswerText
from model.visualglm.checkpoint import (
    fill_adapter,
    load_base,
    open_stored,
    write_folder,
)
from model.visualglm.config_check import check_memory
from model.visualglm.generate import banned_ids, generate
from model.visualglm.image_cache import ImageCache
from model.visualglm.layouts import read_config
from model.visualglm.lora import (
    LORA_TARGETS,
    adapter_names,
    add_method,
    merge,
    part_names,
    without_adapter,
)
from model.visualglm.network import PARTS, VisualGLM
from model.visualglm.packing import LINEAR, pack
from model.visualglm.pixels import MEAN, STD, resized, to_pixels
from model.visualglm.prompt import render
from model.visualglm.quantization import to_nf4
from model.visualglm.sat import leave_model_parallel_group
from model.visualglm.score import score
from model.visualglm.slot_batch import SlotBatch
from model.visualglm.tokenizer import Tokenizer, find_vocabulary
from model.weight_files import ADAPTER, fingerprint

ANSWER_SHARE = 8  # one part in so many of the length limit is kept free of the prompt


class VisualGLMFamily(Family):
    """network: VisualGLM; config: its parsed configuration."""

    parts = tuple(PARTS)
    vision_parts = ("vision", "qformer")
    lora_targets = LORA_TARGETS
    methods = ("lora", "qlora", "ptuning", "full")
    formats = ("sat", "hf", "peft", "int8", "int4")

    def __init__(self, network, tokenizer, config, card=None, base_fingerprint=""):
        self.network = network
        self.tokenizer = tokenizer
        self.config = config
        self.card = card or {}
        self._base_fingerprint = base_fingerprint
        self._base_values = {}  # the base's tensors of parts that were trained in full
        self._is_untuned = False
        self._image_cache = ImageCache()

    @property
    def device(self):
        return self.network.device

    @property
    def dtype(self):
        return self.network.dtype

    @property
    def base_fingerprint(self):
        return self._base_fingerprint

    # Opening

    @classmethod
    def open(cls, folder, *, tokenizer=None, device, dtype=None, bits=None, vision_on_cpu=False):
        stored = open_stored(folder)
        network, words = load_base(stored, tokenizer, device, dtype, bits, vision_on_cpu)
        family = cls(network, words, stored.config, stored.card, stored.fingerprint())
        if stored.method:
            tensors = {name: stored.read(name) for name in stored.adapter}
            family.load_adapter(stored.method, tensors, f"checkpoint {folder}")
            base = {"path": str(folder), "fingerprint": family.base_fingerprint}
            family.card = stored.card | {"method": stored.method, "base": base}
        return family

    @classmethod
    def from_config(cls, config, *, tokenizer, device, dtype):
        parsed = read_config(config)
        check_memory(parsed, config)
        words = Tokenizer(find_vocabulary(Path(config).parent, tokenizer), parsed)
        network = VisualGLM(parsed).to(device=device, dtype=dtype)
        return cls(network, words, parsed, base_fingerprint=fingerprint(network.state_dict()))

    def load_adapter(self, method, tensors, source):
        self._base_values = fill_adapter(self.network, method, tensors, source)
        self.network.eval()

    # Training

    def add_method(self, method, *, device, nf4=False):
        network = self.network
        parts = method.get("parts", [])
        if method["name"] == "full":
            trained = {name for name, _ in network.named_parameters()}
            if parts:
                trained = set(part_names(network, parts))
            method = {"name": "full"}
        else:
            if nf4:
                to_nf4(network, device)
            network.to(device)
            method = self._completed(method)
            add_method(network, method)
            trained = {*adapter_names(network), *part_names(network, parts)}
        if widens(device, network.dtype):
            widen_products(network, LINEAR)
        for name, parameter in network.named_parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(name in trained)
        return method

    def _completed(self, method):
        """The method with all layers named, and without an empty list of parts."""
        method = {key: value for key, value in method.items() if key != "parts" or value}
        if method["name"] == "lora" and method.get("layers") is None:
            method["layers"] = list(range(self.config["num_layers"]))
        return method

    def configure_training(self, **options):
        self.network.configure_training(**options)

    def render(self, sample, limits):
        row = render(
            self.tokenizer,
            sample.question,
            sample.answer,
            history=sample.history,
            image_slots=self.config["image_length"] if sample.image else 0,
            english=limits.english,
            max_source=limits.max_source,
            max_target=limits.max_target,
        )
        # A list of ints takes eight times the memory
        return replace(row, ids=np.array(row.ids, dtype=np.int32))

    def encode(self, row, image):
        if image is None:
            return {"row": row}
        return {"row": row, "pixels": to_pixels(image, self._image_size)}

    def encode_features(self, row, features):
        return {"row": row, "features": features}

    def collate(self, items):
        """Items -> the arguments of VisualGLM.forward, rows padded at their end to the longest."""
        rows = [item["row"] for item in items]
        width = max(row.length for row in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        positions, targets = [], []
        for index, row in enumerate(rows):
            ids[index, : row.length] = row.ids
            for position in row.target_positions:
                positions.append(index * width + position)
                targets.append(int(row.ids[position + 1]))

        batch = {
            "input_ids": torch.from_numpy(ids),
            "prefix": torch.tensor([row.prefix for row in rows]),
            "target_positions": torch.tensor(positions),
            "targets": torch.tensor(targets),
        }
        for kind in ("pixels", "features"):
            shown = [index for index, item in enumerate(items) if kind in item]
            if shown:
                batch[kind] = torch.stack([items[index][kind] for index in shown])
                batch["image_rows"] = torch.tensor(shown)
                batch["image_start"] = rows[shown[0]].image_start
        return batch

    def target_tokens(self, batch):
        return batch["targets"].numel()

    def activation_bytes(self, tokens, target_tokens):
        return self.network.estimated_activation_bytes(tokens, target_tokens)

    @property
    def _image_size(self):
        return self.config["eva_args"]["image_size"]

    def seen(self, image):
        return resized(image, self._image_size)

    def feature_spec(self):
        prefixes = tuple(prefix for part in self.vision_parts for prefix in PARTS[part])
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad and name.startswith(prefixes):
                return None
        shape = (
            self.config["qformer_args"]["vocab_size"],
            self.config["qformer_args"]["hidden_size"],
        )
        made_by = (self.base_fingerprint, shape, self.dtype, self._image_size, MEAN, STD)
        return FeatureSpec(shape, self.dtype, " ".join(map(str, made_by)))

    @torch.inference_mode()
    def image_features(self, images):
        return self.network.image_features(self._pixels(images))

    def _pixels(self, images):
        return torch.stack([to_pixels(image, self._image_size) for image in images])

    def drop_vision(self):
        self.network.drop_encoder()

    def save(self, folder, card):
        full = card["method"]["name"] == "full"
        tensors = {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if full or parameter.requires_grad
        }
        write_folder(
            folder, card=card, config=self.config, tokenizer=self.tokenizer, tensors=tensors
        )

    def close(self):
        leave_model_parallel_group()

    # Answering

    @property
    def has_adapter(self):
        return bool(adapter_names(self.network))

    @contextmanager
    def untuned(self):
        was_untuned = self._is_untuned
        self._is_untuned = True
        try:
            with without_adapter(self.network, self._base_values):
                yield
        finally:
            self._is_untuned = was_untuned

    def prepare_to_answer(self):
        # Before packing, which hides the weights
        mark = f"{fingerprint(self.network.state_dict())}-{self.network.bits or self.dtype}"
        pack(self.network, skip=self._base_values)
        if widens(self.network.device, self.network.dtype):
            widen_products(self.network, LINEAR)
        return mark

    @torch.inference_mode()
    def encode_images(self, images):
        """RGB images -> [I, Q, D] image embeddings."""
        return self.network.encode_images(self._pixels(images))

    def embeddings(self, images):
        """The same, of images seen lately without encoding them again."""
        return self._image_cache.embeddings(images, self._is_untuned, self.encode_images)

    def generate(
        self, samples, images, sampling, *, english=False, stream=False, on_cut=None, on_token=None
    ):
        rows = []
        for index, (sample, image) in enumerate(zip(samples, images)):
            row = self.render_question(sample, image is not None, sampling, english)
            rows.append(row)
            if row.cut and on_cut:
                on_cut(index, row.dropped, row.shortened)

        steps = generate(
            self.network,
            [row.ids for row in rows],
            eop=self.tokenizer.eop,
            sampling=sampling,
            banned=banned_ids(english),
            **self.image_arguments(rows, images),
        )
        texts = [AnswerText(self.tokenizer) for _ in rows]
        return (yield from streamed(steps, texts, stream, on_token))

    def prompt_size(self, sample, image, sampling, english=False):
        row = self.render_question(sample, image is not None, sampling, english)
        return row.length, (row.dropped, row.shortened)

    def score(self, samples, images, texts, *, english=False):
        rows = []
        for sample, image in zip(samples, images):
            rows.append(self.render_question(sample, image is not None, Sampling(), english))
        ids = [[self.tokenizer.encode(text) for text in of_row] for of_row in texts]
        prompts = [row.ids for row in rows]
        shown = self.image_arguments(rows, images)
        return score(self.network, self.tokenizer, prompts, ids, **shown)

    def image_arguments(self, rows, images):
        """The images of rendered questions (None: without) as the decoder takes them."""
        shown = [index for index, image in enumerate(images) if image is not None]
        if not shown:
            return {}
        return {
            "image_embeds": self.embeddings([images[index] for index in shown]),
            "image_rows": torch.tensor(shown, device=self.device),
            "image_start": rows[shown[0]].image_start,
        }

    def render_question(self, sample, with_image, sampling, english):
        """The prompt's ids (see prompt.py), which leave room for an answer."""
        limit = min(sampling.max_length, self.network.config.max_sequence_length)
        limit -= limit // ANSWER_SHARE
        return render(
            self.tokenizer,
            sample.question,
            history=sample.history,
            image_slots=self.config["image_length"] if with_image else 0,
            english=english,
            max_source=limit - 1,
        )

    def open_batch(self, max_rows, memory=None):
        return SlotBatch(self, max_rows, memory)

    # For other programs

    @classmethod
    def export(cls, folder, form, output, **options):
        if form.startswith("int"):
            cls._export_quantized(folder, int(form[3:]), output, options)
            return []
        family = open_checkpoint(folder, **options)
        if form == "peft":
            base = options.get("base") or (family.card.get("base") or {}).get("path")
            export.to_peft(output, family.network, base, family._base_values)
        elif form == "sat":
            export.to_sat(output, family.network, family.tokenizer, family.card)
        else:
            export.to_huggingface(output, family.network, family.tokenizer, family.card)
        return export.remarks(form, family.network, family.tokenizer)

    @classmethod
    def _export_quantized(cls, folder, bits, output, options):
        stored = None if (folder / ADAPTER).is_file() else open_stored(folder)
        if stored and "quantization" in stored.card:
            raise UserError(f"checkpoint {folder} is quantized already")
        if stored and not stored.method:  # a base is read tensor by tensor
            tensors = ((name, stored.read(name)) for name in stored.names)
            words = Tokenizer(find_vocabulary(folder, options.get("tokenizer")), stored.config)
            config, card, mark = stored.config, stored.card, stored.fingerprint()
        else:
            family = open_checkpoint(folder, **options)
            merge(family.network)
            merged = family.network.state_dict()
            tensors, words = merged.items(), family.tokenizer
            config, card, mark = family.config, family.card, fingerprint(merged)
        export.to_quantized(
            output,
            tensors,
            bits,
            config=config,
            tokenizer=words,
            card=card,
            fingerprint=mark,
        )
