"""A base of random weights, and this project's scripts on it, each in a process of its own."""

import json
import random
import sys
import time
from dataclasses import dataclass

import torch
from networks import PROJECT
from processes import as_words, logged_steps, watch

# Tokens of UCM's 1,890 Chinese captions in ChatGLM's vocabulary: the middles of 20 equal shares,
# 33 on average.
ANSWER_TOKENS = (11, 14, 16, 19, 21, 23, 25, 27, 28, 31, 33, 35, 37, 40, 42, 45, 48, 51, 55, 66)
RANK = 10
PASSES = 5  # of the measurement of the matmul rate, over the weights four times each
REPEATS = 4


class Bench:
    """What all measurements on one base share. A family of bases is a subclass.

    question: of every row; image_side: of every image, in pixels; layers, width, inner: of the
    language model.
    """

    question: str
    image_side = 256
    layers: int
    width: int
    inner: int

    def __init__(self, folder, threads, device="cpu", dtype="float32"):
        self.folder = folder
        self.base = folder / "base"
        self.threads = threads
        self.device = device
        self.dtype = dtype

    def answer(self, chance, tokens):
        """Random text of so many tokens. chance: a random.Random."""
        raise NotImplementedError

    def rows(self, name, count, images):
        """Write count rows over so many images; returns the file.

        Texts are the same in every run, images never, so that no cache knows them.
        """
        folder = self.folder / name
        folder.mkdir()
        write_images(folder, images, self.image_side)

        chance = random.Random(0)
        lengths = [chance.choice(ANSWER_TOKENS) for _ in range(count)]
        rows = []
        for index, tokens in enumerate(lengths):
            answer = self.answer(chance, tokens)
            rows.append({"img": f"{index % images}.tif", "prompt": self.question, "label": answer})
        file = folder / "rows.json"
        file.write_text(json.dumps(rows))
        return file

    def run_of(self, file):
        """The folder of the training on a row file."""
        return self.folder / "runs" / file.parent.name

    def ours(self, file, batch_size, interval, dtype, length, method="lora", more=()):
        """Train with the project's script -> Run.

        It writes a reading every interval steps and saves once, at the end. length: {"--epochs" or
        "--train-iters": number}; more: words of the command.
        """
        options = {
            "--from-pretrained": self.base,
            "--train-data": file,
            "--batch-size": batch_size,
            "--method": method,
            "--lora-rank": RANK,
            "--device": self.device,
            "--dtype": dtype,
            "--vision-cache": self.folder / "vision-cache",
            "--log-interval": interval,
            "--save-interval": sys.maxsize,
            "--save": self.folder / "runs",
            "--experiment-name": file.parent.name,
        }
        command = [sys.executable, PROJECT / "finetune_RemoteGLM.py"]
        command += [*as_words(options | length), *more]
        return watch(command, self.threads, lambda: logged_steps(self.run_of(file)))

    def matmul_rate(self, rows, dtype):
        """Operations per second of F.linear over x [rows, width], w [inner, width].

        That of the best pass; dtype: torch's.
        """
        x = torch.randn(rows, self.width, dtype=dtype, device=self.device)
        weights = []  # more than a cache holds
        for _ in range(self.layers):
            weights.append(torch.randn(self.inner, self.width, dtype=dtype, device=self.device))

        fastest = float("inf")
        for _ in range(PASSES):
            start = time.perf_counter()
            for weight in weights * REPEATS:
                torch.nn.functional.linear(x, weight)
            if self.device == "cuda":
                torch.cuda.synchronize()
            fastest = min(fastest, time.perf_counter() - start)
        del x, weights
        torch.cuda.empty_cache()
        return REPEATS * self.layers * 2 * rows * self.width * self.inner / fastest

    def matmul_shape(self):
        return f"[{self.inner}, {self.width}]"


@dataclass
class Work:
    """What a LoRA step must compute."""

    operations: float  # per image
    tokens: float  # of an image's row, on average
    formula: str  # the same in words


def lora_work(blocks, head, tokens, answers):
    """-> Work. blocks, head: weights; tokens of a row, answers: tokens of its answer."""
    operations = 4 * (blocks * tokens + head * answers)
    formula = (
        f"An image must cost 4 x ({blocks / 1e6:.1f} M weights of the language model's blocks "
        f"x {tokens:.1f} tokens + {head / 1e6:.1f} M of the head x {answers:.1f} answer "
        f"tokens) = {operations / 1e9:.1f} GFLOP: 2 forward, 2 backward through frozen "
        "weights, no weight gradients; attention products, LoRA, norms and the vision tower "
        "are left out."
    )
    return Work(operations, tokens, formula)


def write_images(folder, count, side):
    """Images of noise, other ones in every run."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng()
    for index in range(count):
        pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.tif")
