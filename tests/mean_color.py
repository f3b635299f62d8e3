"""A second family, for tests: a network that learns to name an image's mean color.

It shares nothing with VisualGLM: its images keep their own sizes, so that they cannot be stacked,
its tokens are characters, and an answer is looked up from the color alone.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from model.family import Family
from model.files import replacing_folder
from model.weight_files import ADAPTER, CARD, CONFIG, FULL

WIDTH = 16


class MeanColor(torch.nn.Module):
    """pixels: list of [3, height, width]; ids [B, T]: characters, padded with 0 -> logits, loss."""

    def __init__(self, characters):
        super().__init__()
        self.see = torch.nn.Linear(3, WIDTH)
        self.place = torch.nn.Embedding(256, WIDTH)
        self.say = torch.nn.Linear(WIDTH, characters + 1)  # 0 ends an answer
        self.adapter = None

    def forward(self, pixels, ids):
        colors = torch.stack([image.mean((1, 2)) for image in pixels])  # [B, 3]
        places = self.place(torch.arange(ids.size(1), device=ids.device))  # [T, D]
        hidden = torch.tanh(self.see(colors))[:, None] + places  # [B, T, D]
        logits = self.say(hidden)
        if self.adapter is not None:
            logits = logits + self.adapter(colors)[:, None]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids.flatten(), ignore_index=-100
        )
        return logits, loss


@dataclass
class Row:
    ids: list
    cut: bool = False

    @property
    def length(self):
        return len(self.ids)

    @property
    def target_tokens(self):
        return len(self.ids)


class MeanColorFamily(Family):
    parts = ("see", "place", "say")
    vision_parts = ("see",)
    lora_targets = ("attention",)
    methods = ("lora", "full")
    formats = ()

    def __init__(self, network, characters, card):
        self.network = network
        self.characters = characters
        self.card = card
        self._base_say = None
        self._without = False

    @property
    def device(self):
        return self.network.say.weight.device

    @property
    def dtype(self):
        return self.network.say.weight.dtype

    @classmethod
    def open(cls, folder, *, tokenizer=None, device, dtype=None, bits=None, vision_on_cpu=False):
        folder = Path(folder)
        family = cls.from_config(folder / CONFIG, tokenizer=None, device=device, dtype=dtype)
        family.network.load_state_dict(load_file(folder / FULL))
        if (folder / CARD).is_file():
            family.card = json.loads((folder / CARD).read_text())
        return family

    @classmethod
    def from_config(cls, config, *, tokenizer, device, dtype):
        characters = json.loads(Path(config).read_text())["characters"]
        return cls(MeanColor(len(characters)).to(device), characters, {})

    def load_adapter(self, method, tensors, source):
        self.network.adapter = torch.nn.Linear(3, len(self.characters) + 1)
        self.network.load_state_dict(tensors, strict=False)

    @property
    def base_fingerprint(self):
        return f"{self.network.say.weight.sum().item():.6f}"

    def add_method(self, method, *, device, nf4=False):
        self.network.requires_grad_(method["name"] == "full")
        if method["name"] == "lora":
            self.network.adapter = torch.nn.Linear(3, len(self.characters) + 1).to(device)
            torch.nn.init.zeros_(self.network.adapter.weight)
            torch.nn.init.zeros_(self.network.adapter.bias)
        return method

    def configure_training(self, **options):
        assert set(options) == {
            "activation_checkpointing",
            "patch_dropout",
            "label_smoothing",
            "compile_layers",
        }

    def render(self, sample, limits):
        ids = [self.characters.index(character) + 1 for character in sample.answer]
        return Row([*ids[: limits.max_target - 1], 0])

    def encode(self, row, image):
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
        return row, pixels

    def encode_features(self, row, features):
        raise AssertionError("images of different sizes have no features to be cached")

    def collate(self, items):
        width = max(row.length for row, _ in items)
        ids = torch.full((len(items), width), -100)
        for line, (row, _) in zip(ids, items):
            line[: row.length] = torch.tensor(row.ids)
        return {"ids": ids, "pixels": [pixels for _, pixels in items]}

    def target_tokens(self, batch):
        return int((batch["ids"] >= 0).sum())

    def activation_bytes(self, tokens, target_tokens):
        return tokens * WIDTH * 4

    def save(self, folder, card):
        full = card["method"]["name"] == "full"
        tensors = {
            name: tensor.detach().clone()
            for name, tensor in self.network.named_parameters()
            if full or tensor.requires_grad
        }
        with replacing_folder(folder) as new:
            save_file(tensors, new / (FULL if full else ADAPTER))
            (new / CARD).write_text(json.dumps(card))
            config = {"model_type": "mean_color", "characters": self.characters}
            (new / CONFIG).write_text(json.dumps(config))

    @property
    def has_adapter(self):
        return self.network.adapter is not None

    @contextmanager
    def untuned(self):
        adapter, self.network.adapter = self.network.adapter, None
        try:
            yield
        finally:
            self.network.adapter = adapter

    def prepare_to_answer(self):
        self.network.eval()
        return self.base_fingerprint + str(self.has_adapter)

    @torch.inference_mode()
    def generate(
        self, samples, images, sampling, *, english=False, stream=False, on_cut=None, on_token=None
    ):
        steps = sampling.max_new_tokens or 32
        pixels = [self.encode(None, image)[1] for image in images]
        ids = torch.zeros(len(samples), steps, dtype=torch.long)
        logits, _ = self.network(pixels, ids)
        finished = [False] * len(samples)
        for step in logits.argmax(-1).t().tolist():
            pieces = []
            for index, token in enumerate(step):
                finished[index] = finished[index] or token == 0
                pieces.append("" if finished[index] else self.characters[token - 1])
            yield pieces

    @classmethod
    def export(cls, folder, form, output, **options):
        raise AssertionError("no formats")


def write_base(folder, characters, seed=0):
    """A base of random weights that knows these characters."""
    torch.manual_seed(seed)
    family = MeanColorFamily(MeanColor(len(characters)), characters, {})
    family.network.requires_grad_(True)
    family.save(folder, {"format": 1, "method": {"name": "full"}, "base": None})
    return folder
