"""Fine-tune VisualGLM on remote-sensing image-text pairs: LoRA, P-tuning v2, or all parameters (`--mode pretrain`).

One process on a CPU or GPU, or several: `bash finetune_RemoteGLM.sh`, `torchrun` or `deepspeed` start it alike.
Writes checkpoints/<experiment-name>/: <step>/ (an adapter or full checkpoint each, with all that `--resume` needs), latest,
best, loss.png, metrics.jsonl. The same command with --resume goes on exactly where the last whole step was saved.
"""

import dataclasses
import importlib.util
import json
import logging
import math
import os
import shlex
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

if not torch.cuda.is_available():
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # said before its import, or DeepSpeed warns that it guesses
import deepspeed  # noqa: E402

from cli_demo import Parser
from model.errors import UserError
from model.files import sha256
from model.rows import check_images, load_rows
from model.training.dataset import RowDataset
from model.training.feature_cache import BLANK, VisionCache
from model.training.log import Log, Meter, make_trackers, memory_gb
from model.training.run_folder import RunFolder
from model.training.sampler import Batches, plan_epoch
from model.training.validation import Validation, make_loader, to_device
from model.visualglm import loading as checkpoint
from model.visualglm.network import PARTS
from model.visualglm.quantization import to_nf4
from model.visualglm.sat import leave_process_group

PROJECT = Path(__file__).resolve().parent


def option(default, help, **more):
    kind = (
        {"default_factory": lambda: list(default)}
        if isinstance(default, list)
        else {"default": default}
    )
    return dataclasses.field(**kind, metadata={"help": help, **more})


def default_of(field):
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


@dataclass
class Options:
    """The only source of options: each field is --field-name and --field_name."""

    # What to train on
    dataset: str = option(
        "UCM", "set whose rows data/generate_prompt.py wrote: names the default row files"
    )
    train_data: str = option(
        "", "training rows, JSON or JSONL; empty: data/<dataset>/<dataset>-prompt-train.json"
    )
    valid_data: str = option(
        "", "held-out rows; empty: the -val file beside the training rows, if there"
    )
    image_root: str = option(
        "", "folder of relative images; empty: beside the row file, then the project root"
    )
    max_source_length: int = option(0, "tokens of image and question together; 0: no limit")
    max_target_length: int = option(
        256, "tokens of an answer; longer ones are cut, counted and reported"
    )
    english: bool = option(False, "frame questions with Q: / A: instead of 问： / 答：")
    num_workers: int = option(-1, "processes that read images; -1: 4 with a GPU, else 0")
    augment: float = option(
        0.0,
        "turn, mirror, crop, stretch, relight and tint training pictures at random, otherwise in every epoch; keep this share of "
        "each side at least (0.8 if none is named). Rows that speak of a direction are not turned, those of colours not "
        "tinted; no vision cache then",
        nargs="?",
        const=0.8,
    )
    patch_dropout: float = option(
        0.0,
        "leave this share of a picture's patches out of each training step, at random: less to compute and to learn by "
        "heart; for a vision part that is trained, no vision cache then",
    )
    label_smoothing: float = option(
        0.0, "share of each target that goes to all tokens alike: fewer rows are learnt by heart"
    )
    vision_cache: str = option(
        str(PROJECT / "checkpoints" / "vision-cache"),
        "folder of what the frozen vision tower says of each "
        "picture, computed once; off: computed in every step",
    )
    vision_cache_gb: float = option(20.0, "what was used longest ago is removed beyond this size")
    # What to train
    from_pretrained: str = option(
        "visualglm-6b",
        "base (or a full checkpoint to go on from): a folder, or a name to look up "
        "in SAT_HOME and the Hugging Face and ModelScope caches",
    )
    download: str = option(
        "",
        "where to fetch a base from that is not found",
        choices=("huggingface", "modelscope"),
        nargs="?",
        const="huggingface",
    )
    model_config: str = option(
        "", "model_config.json of a network to make from nothing; with --mode pretrain"
    )
    tokenizer: str = option("", "vocabulary file; empty: ice_text.model in the checkpoint folder")
    mode: str = option(
        "finetune",
        "finetune trains an adapter, pretrain all parameters",
        choices=("finetune", "pretrain"),
    )
    use_lora: bool = option(False, "train LoRA (the default of --mode finetune)")
    use_ptuning: bool = option(False, "train P-tuning v2 prefixes instead of LoRA")
    use_qlora: bool = option(False, "LoRA over frozen weights in 4 bits (NF4): less memory, slower")
    lora_rank: int = option(10, "rank r of LoRA")
    lora_alpha: float = option(1.0, "LoRA is scaled by alpha / r")
    lora_dropout: float = option(0.0, "dropout on LoRA's input, 0 to 1")
    lora_targets: list = option(
        ["attention"],
        "what gets LoRA: attention and mlp of the language model, vision (attention of the "
        "whole tower), projection",
        nargs="+",
        choices=checkpoint.LORA_TARGETS,
    )
    layer_range: list = option(
        None,
        "language-model layers that get LoRA: `0 14` lists two, `0-13` is a range; default: all",
        nargs="+",
    )
    pre_seq_len: int = option(4, "prefix length of P-tuning v2")
    train: list = option(
        [],
        "with an adapter: parts that are trained in full beside it",
        nargs="+",
        choices=("vision", "qformer", "projection"),
    )
    freeze: list = option(
        [], "with --mode pretrain: parts that stay as they are", nargs="+", choices=tuple(PARTS)
    )
    # How to train
    epochs: float = option(0.0, "passes over the training rows; 0: as --train-iters says, else 3")
    train_iters: int = option(0, "optimizer steps; 0: as --epochs says")
    batch_size: int = option(4, "rows per process and pass")
    gradient_accumulation_steps: int = option(1, "passes per optimizer step")
    lr: float = option(1e-4, "highest learning rate")
    lr_decay_style: str = option(
        "cosine", "after warm-up", choices=("constant", "linear", "cosine")
    )
    warmup: float = option(0.02, "share of the steps in which the rate rises from 0")
    adam_beta1: float = option(0.9, "AdamW's decay of the mean gradient")
    adam_beta2: float = option(0.95, "AdamW's decay of the mean squared gradient")
    adam_eps: float = option(1e-8, "AdamW's epsilon")
    weight_decay: float = option(0.01, "AdamW's decay of matrices; biases and norms have none")
    clip_grad: float = option(0.1, "gradient norm is clipped to this; 0: not")
    zero_stage: int = option(
        0,
        "ZeRO: what processes share: 0 nothing, 1 optimizer state, 2 gradients, 3 weights",
        choices=(0, 1, 2, 3),
    )
    offload: bool = option(
        False, "keep optimizer state (and with --zero-stage 3 weights) in CPU memory"
    )
    fp16: bool = option(False, "float16 with loss scaling; the default on a GPU without bfloat16")
    bf16: bool = option(False, "bfloat16; the default on a GPU that has it (a CPU's is float32)")
    checkpoint_activations: bool = option(
        False, "recompute layers in the backward pass: less memory, slower"
    )
    compile: bool = option(
        False, "compile the language model's layers (torch.compile): slow start, faster steps"
    )
    device: str = option("", "cuda or cpu; empty: cuda where there is one")
    seed: int = option(1234, "of initial weights, row order and swapped images")
    # What to report and keep
    experiment_name: str = option("RemoteGLM", "folder under --save")
    save: str = option(str(PROJECT / "checkpoints"), "folder of experiments")
    resume: bool = option(
        False, "go on, with the same settings, from the experiment's last whole step"
    )
    overwrite: bool = option(False, "begin anew where the experiment's folder holds a run already")
    save_interval: int = option(
        0, "save every so many steps; 0: whenever validated, and at the end"
    )
    keep: int = option(3, "saved steps to keep beside the best one; 0: all")
    eval_interval: int = option(0, "validate every so many steps; 0: once an epoch")
    eval_batch_size: int = option(8, "rows per process in validation")
    eval_iters: int = option(0, "validation batches per process; 0: all")
    early_stopping: int = option(0, "stop after so many validations without a lower loss; 0: never")
    log_interval: int = option(10, "steps between loss readings")
    report: list = option(
        [], "also write measures for these", nargs="+", choices=("tensorboard", "wandb")
    )
    model_parallel_size: int = option(1, "must be 1")


# Flags of the ancestor's launch script that nothing depends on any more: accepted, named in one line at start.
LEGACY = {
    "--resume-dataloader": (0, "row order is a function of seed and epoch"),
    "--skip-init": (0, "loaded weights are never initialised first"),
    "--distributed-backend": (1, "nccl on GPUs, gloo on CPUs"),
    "--split": (1, "splits come from the row files"),
    "--local_rank": (1, "the launcher's environment says it"),
}


def parse(argv=None):
    """Command line -> Options; contradictions are refused here, all in one message."""
    parser = Parser(__doc__)
    for field in dataclasses.fields(Options):
        meta, value = dict(field.metadata), default_of(field)
        flags = list(dict.fromkeys(("--" + field.name.replace("_", "-"), "--" + field.name)))
        if isinstance(value, bool):
            parser.add_argument(*flags, dest=field.name, action="store_true", help=meta["help"])
            continue
        if value not in ("", None, []):
            meta["help"] += f" (default: {' '.join(value) if isinstance(value, list) else value})"
        plain = isinstance(value, (str, int, float))
        parser.add_argument(
            *flags,
            dest=field.name,
            default=value,
            **({"type": type(value)} if plain else {}),
            **meta,
        )
    for flag, (values, why) in LEGACY.items():
        dest = flag.strip("-").replace("-", "_")
        parser.add_argument(
            *dict.fromkeys((flag, "--" + dest)),
            dest=f"legacy {flag}",
            help=f"no effect: {why}",
            **({"nargs": 1, "metavar": "VALUE"} if values else {"action": "store_true"}),
        )
    given = vars(parser.parse_args(argv))
    unused = [flag for flag in LEGACY if given.pop(f"legacy {flag}") and flag != "--local_rank"]
    options = Options(**given)
    problems = list(contradictions(options))
    if problems:
        parser.error("; ".join(problems))
    return options, unused


def contradictions(o):
    for name, value in vars(o).items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"--{name} {value}: must be a finite number"
    if o.model_parallel_size != 1:
        yield f"--model-parallel-size {o.model_parallel_size}: only 1 is supported (SAT's LoRA is wrong beyond it)"
    if o.epochs and o.train_iters:
        yield "--epochs and --train-iters exclude each other: give one"
    if o.fp16 and o.bf16:
        yield "--fp16 and --bf16 exclude each other: give one"
    if o.use_ptuning and (o.use_lora or o.use_qlora):
        yield "--use_ptuning and --use_lora or --use_qlora exclude each other: give one"
    if o.mode == "pretrain" and (o.use_lora or o.use_qlora or o.use_ptuning):
        yield "--mode pretrain trains all parameters: leave --use_lora, --use_qlora and --use_ptuning out"
    if o.model_config and o.mode != "pretrain":
        yield "--model_config makes a network from nothing, which only --mode pretrain can train"
    if o.mode == "pretrain" and o.train:
        yield "--mode pretrain trains all parameters: name what not to train by --freeze"
    if o.mode == "finetune" and o.freeze:
        yield "--freeze goes with --mode pretrain; an adapter leaves everything frozen but what --train names"
    if o.resume and o.overwrite:
        yield "--resume and --overwrite exclude each other: give one"
    if o.offload and not o.zero_stage:
        yield "--offload needs --zero-stage 1, 2 or 3"
    if o.use_qlora and o.zero_stage == 3:
        yield "--use_qlora and --zero-stage 3 exclude each other: 4-bit weights cannot be partitioned"
    for package in o.report:
        if importlib.util.find_spec(package) is None:
            yield f"--report {package} needs its package: pip install {package}"
    for name in (
        "batch_size",
        "eval_batch_size",
        "lora_rank",
        "log_interval",
        "pre_seq_len",
        "lr",
        "gradient_accumulation_steps",
        "vision_cache_gb",
    ):
        if getattr(o, name) <= 0:
            yield f"--{name} {getattr(o, name)}: must be above 0"
    for name in (
        "train_iters",
        "epochs",
        "warmup",
        "eval_interval",
        "save_interval",
        "eval_iters",
        "keep",
        "early_stopping",
        "max_source_length",
        "max_target_length",
        "weight_decay",
        "clip_grad",
        "lora_dropout",
        "adam_beta1",
        "adam_beta2",
        "augment",
        "patch_dropout",
        "label_smoothing",
    ):
        if getattr(o, name) < 0:
            yield f"--{name} {getattr(o, name)}: must not be below 0"
    for name in (
        "lora_dropout",
        "patch_dropout",
        "label_smoothing",
        "adam_beta1",
        "adam_beta2",
        "warmup",
    ):
        if getattr(o, name) >= 1:
            yield f"--{name} {getattr(o, name)}: must be below 1"
    if o.augment > 1:
        yield f"--augment {o.augment}: a share of each side, at most 1"
    if not o.vision_cache:
        yield "--vision_cache is empty: name a folder, or off"
    try:
        if o.layer_range and not layers(o.layer_range):
            raise ValueError
    except ValueError:
        yield f"--layer_range {' '.join(o.layer_range)}: expected numbers (0 14) or a range (0-13)"


def layers(words):
    """`["0", "14"]` -> [0, 14] (upstream's list form); `["0-13"]` -> [0, ..., 13]."""
    found = []
    for word in words:
        first, _, last = str(word).partition("-")
        found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


def row_files(o):
    """The training and validation row files; no validation file: None."""
    train = Path(o.train_data or PROJECT / "data" / o.dataset / f"{o.dataset}-prompt-train.json")
    if o.valid_data:
        return train, Path(o.valid_data)
    beside = train.with_name(train.name.replace("-train", "-val"))
    return train, beside if beside != train and beside.is_file() else None


def start_processes(cuda):
    """Join the process group that the launcher describes, or make one of this process alone."""
    logging.getLogger("DeepSpeed").setLevel(
        logging.ERROR
    )  # it warns of an optimizer class it does not know: ours
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        os.environ.setdefault(name, str(value))
    # An inference-only op that DeepSpeed would compile with g++ on every CPU machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


PATIENCE = 10  # steps in a row without a finite gradient before a run is given up


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that never lets a gradient that is not finite reach the weights: such a step is left out and counted."""

    skipped = in_a_row = 0

    @torch.no_grad()
    def step(self, closure=None):
        grads = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        bad = (
            (~torch.isfinite(torch.stack(torch._foreach_norm(grads))).all()).float()
            if grads
            else torch.zeros(())
        )
        bad = bad.to(torch.get_default_device() if not grads else grads[0].device)
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if bad.item():
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return None
        self.in_a_row = 0
        return super().step(closure)


def make_network(o, device, dtype):
    """(network with its trained parameters marked, tokenizer, config, what the card says of method and base)"""
    tokenizer = o.tokenizer or None
    if o.model_config:
        network, words, config = checkpoint.build(o.model_config, tokenizer, device, dtype)
        card = {"method": {"name": "full"}, "base": None}
    else:
        # 4-bit weights are made on the CPU and moved: the GPU never holds the full ones.
        network, words, stored = checkpoint.load_base(
            o.from_pretrained,
            tokenizer,
            torch.device("cpu") if o.use_qlora else device,
            str(dtype).removeprefix("torch."),
            download=o.download or None,
            encoder_on_cpu=uses_vision_cache(o),
        )
        config = stored.config
        if stored.adapter or "quantization" in stored.card:
            raise UserError(
                f"{stored.folder} is no base to train on: "
                + (
                    f"it holds {stored.method['name']}; merge it first (export_RemoteGLM.py --format sat), or name the base itself"
                    if stored.method
                    else "its weights are quantized; name the checkpoint they were made from (--use_qlora trains in 4 bits)"
                )
            )
        card = {
            "base": {
                "path": checkpoint.portable(o.from_pretrained),
                "fingerprint": stored.fingerprint(),
            }
        }
    if o.mode == "pretrain":
        card["method"] = {"name": "full"}
        network.requires_grad_(True)
        frozen = set(checkpoint.part_names(network, o.freeze))
        trained = {name for name, _ in network.named_parameters() if name not in frozen}
    else:
        if o.use_ptuning:
            method = {"name": "ptuning", "length": o.pre_seq_len}
        else:
            chosen = layers(o.layer_range) if o.layer_range else list(range(config["num_layers"]))
            method = {
                "name": "lora",
                "rank": o.lora_rank,
                "alpha": o.lora_alpha,
                "layers": chosen,
                "dropout": o.lora_dropout,
                "targets": o.lora_targets,
            }
        if o.use_qlora:
            to_nf4(network, device)
        network.to(device)
        checkpoint.add_method(network, method)
        card["method"] = method | ({"parts": o.train} if o.train else {})
        trained = {*checkpoint.adapter_names(network), *checkpoint.part_names(network, o.train)}
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in trained)
    if not trained:
        raise UserError("nothing is left to train: --freeze names every part")
    return network, words, config, card


def uses_vision_cache(o):
    """Are vision tower, Q-Former and pictures always the same, so that each picture needs them only once?"""
    changing = {"vision", "qformer"} & {
        *o.train,
        *(o.lora_targets if not o.use_ptuning else ()),
        *(set(PARTS) - set(o.freeze) if o.mode == "pretrain" else ()),
    }
    return o.vision_cache != "off" and not changing and not o.augment and not o.patch_dropout


def make_engine(o, network, total, dtype):
    """DeepSpeed's engine around the trained parameters, AdamW and the learning-rate schedule."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": o.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = CheckedAdamW(
        [g for g in groups if g["params"]],
        lr=o.lr,
        betas=(o.adam_beta1, o.adam_beta2),
        eps=o.adam_eps,
    )
    rise = max(1, round(o.warmup * total))

    def rate(step):
        if step < rise:
            return (step + 1) / rise
        left = max(0, total - step) / max(1, total - rise)
        return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[
            o.lr_decay_style
        ]

    size = min(
        sum(p.numel() for p in trained), 500_000_000
    )  # larger buckets only cost memory and zeroing
    zero = {"stage": o.zero_stage, "reduce_bucket_size": size, "allgather_bucket_size": size}
    if o.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        zero |= {"offload_param": {"device": "cpu"}} if o.zero_stage == 3 else {}
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": o.batch_size,
            "gradient_accumulation_steps": o.gradient_accumulation_steps,
            "gradient_clipping": o.clip_grad,
            "fp16": {"enabled": dtype == torch.float16},
            "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_optimization": zero,
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
        },
    )
    return engine, optimizer


def estimated_gb(network, dataset, batch_size):
    """Weights, gradients, AdamW's state, and what one pass keeps for its backward: an estimate."""
    config = network.config
    weights = sum(p.nbytes for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    tokens = float(dataset.lengths.mean()) * batch_size
    kept = (
        tokens
        * config.num_layers
        * (10 * config.hidden_size + 2 * config.inner_hidden_size)
        * network.dtype.itemsize
    )
    logits = float(dataset.targets.mean()) * batch_size * config.vocab_size * 12
    return (weights + trained * 16 + kept + logits) / 1e9


# What a resumed run must share with the one it goes on from, or it would go somewhere else.
FIXED = (
    "mode",
    "augment",
    "patch_dropout",
    "label_smoothing",
    "model_config",
    "use_ptuning",
    "use_qlora",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "layer_range",
    "pre_seq_len",
    "train",
    "freeze",
    "max_source_length",
    "max_target_length",
    "english",
    "lr",
    "lr_decay_style",
    "warmup",
    "weight_decay",
    "clip_grad",
    "seed",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "fp16",
    "bf16",
)


def check_resumable(before, now, world):
    """UserError that names what differs between the saved run and this one."""
    was = (
        dataclasses.asdict(Options()) | before["options"]
    )  # a run of an older version lacks newer options
    changed = [
        f"--{name} {was[name]} -> {now['options'][name]}"
        for name in FIXED
        if was[name] != now["options"][name]
    ]
    changed += [
        f"{what} {before[what]} -> {now[what]}"
        for what in ("rows per step", "steps", "training rows", "held-out rows")
        if before[what] != now[what]
    ]
    if before["base"] != now["base"]:
        changed.append(f"base {before['base']} -> {now['base']} (fingerprint)")
    if changed:
        raise UserError(
            f"--resume cannot go on with other settings: {'; '.join(changed)}; name another --experiment-name for a new run"
        )
    if (
        was["zero_stage"] != now["options"]["zero_stage"]
        or before["world"] != world
        and was["zero_stage"]
    ):
        raise UserError(
            f"--resume: the run was saved by {before['world']} process(es) with --zero-stage {was['zero_stage']}; only stage 0 "
            f"can go on with another number (now {world}, stage {now['options']['zero_stage']})"
        )


def check_overlap(samples, held_out, say):
    """Say how many held-out rows also stand in the training rows, which makes their loss too good."""
    known = {(s.image, s.question, s.answer) for s in samples}
    pictures = {s.image for s in samples if s.image}
    same = sum((s.image, s.question, s.answer) in known for s in held_out)
    seen = sum(s.image in pictures for s in held_out)
    if seen or same:
        say(
            f"warning: of {len(held_out)} held-out rows {same} also stand in the training rows, and {seen} show a training picture: "
            "the held-out loss is too good by that"
        )


def fill_cache(o, cache, network, rank, world, say):
    """Encode the pictures that the cache lacks, each process its share."""
    if cache.missing:
        mine = cache.missing[rank::world]
        began = time.perf_counter()
        cache.fill(
            network,
            mine,
            progress=lambda chunks: tqdm(
                chunks,
                desc="encoding pictures",
                unit="batch",
                disable=rank > 0,
                mininterval=1 if sys.stderr.isatty() else 30,
            ),
        )
        torch.distributed.barrier()
        say(
            f"encoded {len(cache.missing):,} pictures once, in {time.perf_counter() - began:.1f} s; kept in {o.vision_cache}"
        )
    if rank == 0:
        cache.prune(o.vision_cache_gb * 1e9)


def train(o, unused):
    """Run the training that the options describe. Raises UserError before heavy work."""
    began = time.perf_counter()
    train_file, valid_file = row_files(o)
    device = checkpoint.choose_device(o.device or None)
    cuda = device.type == "cuda"
    if o.fp16 and not cuda:
        print("--fp16 needs a GPU: training in float32 on the CPU", file=sys.stderr)
    dtype = torch.bfloat16 if o.bf16 else torch.float16 if o.fp16 and cuda else torch.float32
    if cuda and not (o.bf16 or o.fp16):
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    samples = load_rows(train_file, o.image_root)
    held_out = load_rows(valid_file, o.image_root) if valid_file else []
    run = RunFolder(Path(o.save) / o.experiment_name)
    folder, found = run.folder, run.steps()
    if Path(o.from_pretrained).is_dir() and Path(o.from_pretrained).resolve().is_relative_to(
        folder.resolve()
    ):
        raise UserError(
            f"--from_pretrained {o.from_pretrained} lies in the folder that this run writes, {folder}; name another --experiment-name"
        )
    if found and not (o.resume or o.overwrite):
        raise UserError(
            f"{folder} holds a run already, at step {found[-1]}: go on with --resume, name another --experiment-name, or "
            "begin anew with --overwrite"
        )

    rank, world = start_processes(cuda)
    main_process = rank == 0
    if main_process:
        run.lock()
    say = (lambda *a: tqdm.write(" ".join(map(str, a)))) if main_process else (lambda *a: None)
    if unused:
        say("no effect any more:", ", ".join(f"{flag} ({LEGACY[flag][1]})" for flag in unused))
    check_overlap(samples, held_out, say)
    if cuda:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(o.seed)
    network, tokenizer, config, card = make_network(o, device, dtype)
    network.mixins["chatglm-layer"].checkpoint_activations = o.checkpoint_activations
    network.mixins["eva"].model.vit.transformer.embedding_dropout.share = o.patch_dropout
    network.label_smoothing = o.label_smoothing

    size_of_network = sum(p.numel() for p in network.parameters())
    pictures = sorted({sample.image for sample in samples + held_out if sample.image})
    cache, blank = None, torch.zeros(())
    if uses_vision_cache(o) and pictures:
        shape = config["qformer_args"]["vocab_size"], config["qformer_args"]["hidden_size"]
        mark = card["base"]["fingerprint"] if card["base"] else f"{o.seed} {sha256(o.model_config)}"
        cache = VisionCache(
            o.vision_cache,
            pictures,
            shape=shape,
            dtype=dtype,
            image_size=config["eva_args"]["image_size"],
            mark=mark,
        )
        found_missing = [cache.missing]
        torch.distributed.broadcast_object_list(
            found_missing, 0
        )  # one list for all: a process that looks later finds less missing
        cache.missing = found_missing[0]
        if not cache.room():
            say(
                f"the disk of {o.vision_cache} is too full for {len(cache.missing):,} pictures of {cache.bytes / 1e3:.0f} kB: the vision tower "
                "runs in every step instead"
            )
            cache = None
    elif pictures and o.vision_cache != "off":
        why = (
            "pictures or their patches vary"
            if o.augment or o.patch_dropout
            else "the vision tower or the Q-Former is trained"
        )
        say(f"{why}: they are encoded in every step")
    unknown = set(cache.missing if cache else pictures)
    check_images([sample for sample in samples + held_out if sample.image in unknown], train_file)
    if cache:
        fill_cache(o, cache, network, rank, world, say)
        blank = cache.read(BLANK)
        if card["method"]["name"] != "full":
            network.drop_encoder()

    def dataset_of(chosen, augment=None):
        return RowDataset(
            chosen,
            tokenizer,
            config,
            max_source=o.max_source_length or None,
            max_target=o.max_target_length,
            english=o.english,
            cache=cache,
            augment=augment,
        )

    dataset, workers = (
        dataset_of(samples, (o.seed, o.augment) if o.augment else None),
        o.num_workers if o.num_workers >= 0 else 4 if cuda else 0,
    )
    size = o.batch_size * world * o.gradient_accumulation_steps
    per_epoch = math.ceil(len(dataset) / size)
    total = o.train_iters or math.ceil((o.epochs or 3) * per_epoch)
    every = o.eval_interval or per_epoch
    batches = Batches(
        lambda epoch: plan_epoch(dataset.lengths, size, o.seed, epoch),
        len(dataset),
        o.batch_size,
        o.gradient_accumulation_steps,
        rank,
        world,
    )
    loader = make_loader(dataset, batches, workers)
    check = (
        Validation(
            held_out,
            dataset_of,
            blank,
            batch_size=o.eval_batch_size,
            most=o.eval_iters,
            rank=rank,
            world=world,
            workers=workers,
            seed=o.seed,
        )
        if held_out
        else None
    )
    if o.compile:
        for layer in network.transformer.layers:
            layer.compile()
    engine, optimizer = make_engine(o, network, total, dtype)
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]

    everything = (
        sum(p.numel() for p in network.parameters()) if card["method"]["name"] == "full" else 0
    )
    # An adapter or all weights; then weights again, and AdamW's two moments and master copy in float32, of what is trained.
    step_bytes = (everything + sum(p.numel() for _, p in trained)) * dtype.itemsize + sum(
        p.numel() for _, p in trained
    ) * (dtype.itemsize + 12)
    run.check_room(step_bytes)
    options = dataclasses.asdict(o)
    card |= {
        "format": 2,
        "prompt": Counter(s.question for s in samples).most_common(1)[0][0],
        "english": o.english,
        "options": options,
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
    }
    state = {
        "options": options,
        "rows per step": size,
        "steps": total,
        "training rows": sha256(train_file)[:16],
        "held-out rows": sha256(valid_file)[:16] if valid_file else None,
        "world": world,
        "base": card["base"] and card["base"]["fingerprint"],
    }
    step, best, waited = 0, None, 0
    if o.resume and found:
        step, best, waited = resume(run, engine, state, rank, world, say)
    outdated = (
        [] if o.resume else found
    )  # of the run that --overwrite replaces, once there is something in its place
    if step == 0:
        torch.manual_seed(o.seed + rank)  # dropout differs between processes

    describe(
        o,
        card,
        network,
        dataset,
        len(held_out),
        len(pictures),
        trained,
        size_of_network,
        device,
        dtype,
        world,
        size,
        total,
        say,
    )
    log = (
        Log(folder, step, make_trackers(o.report, folder, o.experiment_name, options))
        if main_process
        else None
    )

    def validate():
        nonlocal best, waited
        losses = check(network, device)
        say(
            f"step {step}: held-out loss {losses['real']:.4f}"
            + "".join(
                f", with {name} images {losses[name]:.4f}"
                for name in ("blank", "swapped")
                if name in losses
            )
        )
        better = best is None or losses["real"] < best["loss"]
        best, waited = ({"step": step, "loss": losses["real"]}, 0) if better else (best, waited + 1)
        if main_process:
            log.note(step, valid=losses)
            log.draw()

    def save():
        run.check_room(step_bytes)
        progress = state | {
            "step": step,
            "best": best,
            "waited": waited,
            "skipped": optimizer.skipped,
        }
        save_step(run, step, engine, network, trained, card, config, tokenizer, progress, rank)
        if main_process:
            run.drop(set(outdated) - {step})
            outdated.clear()
            log.draw()
            if best and best["step"] == step:
                run.point("best", step)
            if o.keep:
                run.keep(o.keep, best and best["step"])
            say(f"saved {folder / str(step)}")

    stop = []  # signals: the step under way is finished first
    handlers = {
        number: signal.signal(number, lambda number, _: stop.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    done = (
        bool(o.early_stopping) and waited >= o.early_stopping
    )  # a resumed run may have stopped early before
    if check and step == 0:
        validate()
    saved, first, meter = step, step, Meter(device)
    bar = tqdm(
        total=total,
        initial=step,
        disable=not main_process,
        unit="step",
        mininterval=1 if sys.stderr.isatty() else 30,
    )
    network.train()
    try:
        while step < total and not done:
            epoch, batches.start = divmod(step, per_epoch)
            batches.epoch = epoch
            feed = iter(loader)
            for rows in batches.plan(epoch)[batches.start :]:
                everywhere = int(
                    dataset.targets[rows].sum()
                )  # answer tokens of all processes and passes
                for _ in range(o.gradient_accumulation_steps):
                    batch = to_device(next(feed), device)
                    loss = engine(**batch)[1]
                    # The mean over the tokens of the whole step; DeepSpeed would average over passes and processes.
                    share = batch["targets"].numel() / everywhere
                    engine.backward(loss * share * world * o.gradient_accumulation_steps)
                    rate = engine.get_lr()[0]  # of this step, which the next line ends
                    engine.step()
                    meter.add(loss.detach() * share)
                step += 1
                meter.step(
                    sum(samples[i].image is not None for i in rows),
                    int(dataset.lengths[rows].sum()),
                )
                bar.update()
                if optimizer.in_a_row >= PATIENCE:
                    raise UserError(
                        f"the gradient was not finite in {PATIENCE} steps in a row, up to step {step}: none of them reached the "
                        f"weights; lower --lr (now {o.lr:g}), set --clip-grad, or train in float32 or --bf16"
                    )
                if step % o.log_interval == 0 or step == total:
                    measures = meter.read() | {
                        "lr": rate,
                        "epoch": round(step / per_epoch, 3),
                        "memory_gb": round(memory_gb(device), 2),
                        "seconds": round(time.perf_counter() - began, 2),
                        "skipped": optimizer.skipped,
                    }
                    bar.set_postfix_str(
                        "loss {loss:.3f}, lr {lr:.2e}, {images_per_s:.1f} images/s, {tokens_per_s:.0f} tokens/s, "
                        "{memory_gb:.1f} GB".format(**measures)
                    )
                    if main_process:
                        log.note(step, **measures)
                finished = step == total or agreed(bool(stop), device, world)
                if check and (step % every == 0 or step == total):
                    validate()
                    meter.restart()
                    finished |= bool(o.early_stopping) and waited >= o.early_stopping
                if finished or step % (o.save_interval or every) == 0:
                    save()
                    saved = step
                    meter.restart()
                if finished:
                    break
            if finished:
                break
    finally:
        bar.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if first == total:
        say(f"{folder} is finished at step {total}: nothing to do")
    if o.early_stopping and waited >= o.early_stopping:
        say(
            f"stopped early: the held-out loss was lowest at step {best['step']} ({best['loss']:.4f})"
        )
    if optimizer.skipped:
        say(f"{optimizer.skipped} steps had a gradient that was not finite and were left out")
    torch.distributed.barrier()
    leave_process_group()
    if stop and step < total:
        say(f"stopped at step {saved} of {total}; the same command with --resume goes on")
        raise SystemExit(128 + stop[0])
    best_folder = folder / str(best["step"]) if best and best["step"] not in (0, step) else folder
    say(
        f"done in {time.perf_counter() - began:.0f} s; losses: {folder / 'loss.png'}\n"
        f"talk with it: python cli_demo.py --from_pretrained {shlex.quote(str(folder))}"
    )
    if best_folder != folder:
        say(
            f"the step with the lowest held-out loss: python cli_demo.py --from_pretrained {shlex.quote(str(best_folder))}"
        )
    return folder


def agreed(mine, device, world):
    """Has any process been asked to stop?"""
    if world == 1:
        return mine
    flag = torch.tensor(float(mine), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def save_step(run, step, engine, network, trained, card, config, tokenizer, progress, rank):
    """The step's folder: adapter or full checkpoint, and in state/ optimizer, schedule, scaler, RNG and position of the run."""
    full = card["method"]["name"] == "full"
    chosen = network.named_parameters() if full else trained
    # Partitioned weights (ZeRO 3) are put together for this.
    with deepspeed.zero.GatheredParameters(
        [p for _, p in trained], enabled=engine.zero_optimization_stage() == 3
    ):
        if rank == 0:
            checkpoint.write_folder(
                run.scratch(step),
                card=card | {"step": step},
                config=config,
                tokenizer=tokenizer,
                tensors=dict(chosen),
            )
    torch.distributed.barrier()
    state = run.scratch(step) / "state"
    engine.save_checkpoint(
        str(state), tag="engine", client_state={}, save_latest=False, exclude_frozen_parameters=True
    )
    random_state = {"cpu": torch.get_rng_state()} | (
        {"cuda": torch.cuda.get_rng_state()} if network.device.type == "cuda" else {}
    )
    torch.save(random_state, state / f"random-{rank}.pt")
    torch.distributed.barrier()
    if rank == 0:
        (state / "progress.json").write_text(json.dumps(progress))
        run.seal(step)
    torch.distributed.barrier()


def resume(run, engine, state, rank, world, say):
    """Put the run where its newest whole step left it. Returns (step, best, validations without a better one)."""
    for step in reversed(run.steps()):
        damaged = run.damage(step)
        if damaged is None:
            break
        say(f"{run.folder / str(step)} is damaged ({damaged}): going back one step")
    else:
        raise UserError(
            f"{run.folder} holds no whole step to resume from; begin anew with --overwrite"
        )
    folder = run.folder / str(step) / "state"
    progress = json.loads((folder / "progress.json").read_text())
    check_resumable(progress, state, world)
    engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)
    own = folder / f"random-{rank if rank < progress['world'] else 0}.pt"
    random_state = torch.load(own, weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    say(f"resumed at step {step}")
    return step, progress["best"], progress["waited"]


def describe(
    o,
    card,
    network,
    dataset,
    held_out,
    pictures,
    trained,
    everything,
    device,
    dtype,
    world,
    size,
    total,
    say,
):
    """The start lines: what is trained, on what, in what."""
    what = dict(card["method"])
    count = sum(p.numel() for _, p in trained)
    tokens, shown = (
        dataset.lengths.mean(),
        sum(s.image is not None for s in dataset.samples) / len(dataset),
    )
    say(
        f"{o.experiment_name}: trains {what.pop('name')} {what or ''} {count:,} parameters, {everything - count:,} frozen; "
        f"{device}, {str(dtype).removeprefix('torch.')}, {world} process(es), about {estimated_gb(network, dataset, o.batch_size):.1f} GB each"
    )
    say(
        f"{len(dataset):,} rows, {held_out:,} held out, {pictures:,} images; {total:,} steps of {size} rows "
        f"(~{tokens * size:.0f} tokens, ~{shown * size:.0f} images)"
        + (f"; {dataset.cut} rows cut by a length limit" if dataset.cut else "")
    )


def main(argv=None):
    options, unused = parse(argv)
    try:
        return train(options, unused)
    except UserError as error:
        sys.exit(f"finetune_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
