"""The baseline: VisualGLM as the upstream scripts train it. Random weights.

SwissArmyTransformer's own model classes, attention, activation and LoRA.
Shapes: B rows, T tokens, P image patches + 1, Q image slots, V vocabulary.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace

from networks import folder_config, load_tokenizer, rendered

from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import torch
    import torch.nn.functional as F

from model.devices import DTYPES
from model.visualglm.sat import BaseMixin, BaseModel, LoraMixin, ensure_model_parallel_group

# isort: split
# After model.visualglm.sat, which closes SAT's optional packages: alone it does not import.
from sat.model.official.chatglm_model import ChatGLMModel
from sat.model.official.vit_model import ViTModel

SOURCE, TARGET = 64, 256  # tokens of every row, padding included
IGNORED = -100  # label of a token that is not trained


class Norm(BaseMixin):
    def __init__(self, width):
        super().__init__()
        self.ln_vision = torch.nn.LayerNorm(width)

    def final_forward(self, hidden, **kwargs):
        return self.ln_vision(hidden)


class Tower(ViTModel):
    """[B, 3, height, width] -> [B, P, width]"""

    def __init__(self, args, **kwargs):
        super().__init__(args, activation_func=F.gelu, **kwargs)
        self.del_mixin("cls")
        self.add_mixin("cls", Norm(args.hidden_size))

    def forward(self, pixels):
        return super().forward(
            input_ids=pixels.new_zeros(pixels.size(0), 1, dtype=torch.long),
            position_ids=None,
            attention_mask=pixels.new_ones(1, 1),
            image=pixels,
        )[0]


class Queries(BaseModel):
    """[B, P, width] -> [B, Q, width]"""

    def __init__(self, args, **kwargs):
        super().__init__(args, activation_func=F.gelu, **kwargs)
        self.transformer.position_embeddings = None

    def final_forward(self, hidden, **kwargs):
        return hidden

    def position_embedding_forward(self, position_ids, **kwargs):
        return None

    def forward(self, image):
        count = self.transformer.word_embeddings.num_embeddings
        queries = torch.arange(count, device=image.device).expand(image.size(0), -1)
        return super().forward(
            input_ids=queries,
            position_ids=None,
            attention_mask=image.new_ones(1, 1, 1, count),
            encoder_outputs=image,
            cross_attention_mask=image.new_ones(1, 1, 1, image.size(1)),
        )[0]


class Images(BaseMixin):
    """Encodes the images of a step and puts them between the embeddings of the words around."""

    def __init__(self, config, device, **kwargs):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.vit = Tower(arguments(config["eva_args"], device), **kwargs)
        self.model.qformer = Queries(arguments(config["qformer_args"], device), **kwargs)
        self.model.glm_proj = torch.nn.Linear(
            config["qformer_args"]["hidden_size"], config["hidden_size"]
        )

    def word_embedding_forward(self, input_ids, pixels=None, image_start=0, **kwargs):
        words = self.transformer.word_embeddings
        if pixels is None:
            return words(input_ids)
        image = self.model.glm_proj(self.model.qformer(self.model.vit(pixels)))  # [B, Q, width]
        before = words(input_ids[:, :image_start])
        after = words(input_ids[:, image_start + image.size(1) :])
        return torch.cat((before, image, after), dim=1)


def arguments(config, device):
    """A part of a `model_config.json` as the arguments SAT reads."""
    more = {"skip_init": False, "use_gpu_initialization": device == "cuda"}
    return SimpleNamespace(**config | more)


def network(config, device="cpu", dtype=torch.float32):
    """SAT's ChatGLM with an image encoder; config: a parsed `model_config.json`.

    Tensors have VisualGLM's names. Called with input_ids [B, T], pixels and image_start: the first
    thing it returns is the logits [B, T, V]. It is in evaluation mode, as SAT's dropout needs CUDA
    even where it is 0.
    """
    ensure_model_parallel_group()
    model = ChatGLMModel(arguments(config, device), params_dtype=dtype)
    model.add_mixin("eva", Images(config, device, params_dtype=dtype))
    return model.to(device=device, dtype=dtype).eval()


def padded(rows, pad):
    """Rendered rows -> input_ids and labels [B, SOURCE + TARGET], int64.

    rows: see model.visualglm.prompt; labels are IGNORED where nothing is trained.
    """
    width = SOURCE + TARGET
    input_ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for ids, label, row in zip(input_ids, labels, rows):
        ids[: len(row.ids)] = torch.tensor(row.ids)
        label[row.prefix : len(row.ids)] = torch.tensor(row.ids[row.prefix :])
    return input_ids, labels


def add_lora(model, layers, rank):
    """LoRA on all layers of the language model, every other parameter frozen -> its parameters."""
    model.add_mixin("lora", LoraMixin(layers, rank), reinit=True)
    model.requires_grad_(False)
    trained = [p for name, p in model.named_parameters() if "matrix_" in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def train(config, rows, batch_size, steps, rank, device="cpu", dtype=torch.float32):
    """Train LoRA on random pixels. Returns the seconds of each step."""
    model = network(config, device, dtype)
    trained = add_lora(model, config["num_layers"], rank)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95))
    height, width = config["eva_args"]["image_size"]

    seconds = []
    for step in range(steps):
        batch = [rows[(step * batch_size + i) % len(rows)] for i in range(batch_size)]
        input_ids, labels = padded(batch, config["pad_token_id"])
        input_ids, labels = input_ids.to(device), labels.to(device)
        pixels = torch.randn(batch_size, 3, height, width, device=device, dtype=dtype)

        start = time.perf_counter()
        outputs = model(input_ids=input_ids, pixels=pixels, image_start=batch[0].image_start)
        logits = outputs[0].float()
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    parser = Parser("Train the baseline on random pixels; print the seconds of each step.")
    add = parser.add_argument
    add(
        "base",
        type=Path,
        help="folder with model_config.json and the vocabulary; its weights are not read",
    )
    add("rows", type=Path, help="row file")
    add("--batch-size", type=int, default=4, help="rows a step (%(default)s)")
    add("--steps", type=int, default=5, help="steps to time (%(default)s)")
    add("--rank", type=int, default=10, help="rank of LoRA (%(default)s)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add(
        "--dtype",
        default="float32",
        choices=DTYPES,
        help="of weights and activations (%(default)s)",
    )
    args = parser.parse_args()

    config = folder_config(args.base)
    rows = rendered(args.rows, load_tokenizer(config, args.base), config)
    seconds = train(
        config, rows, args.batch_size, args.steps, args.rank, args.device, DTYPES[args.dtype]
    )
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
