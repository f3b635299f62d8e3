"""Fine-tune VisualGLM on remote-sensing image-text pairs: LoRA, P-tuning v2, or all parameters (`--mode pretrain`).

One process on a CPU or GPU, or several: `bash finetune_RemoteGLM.sh`, `torchrun` or `deepspeed` start it alike.
Writes checkpoints/<experiment-name>/: <step>/ (an adapter or full checkpoint each), latest, loss.png, log.jsonl.
"""
import argparse
import dataclasses
import json
import logging
import math
import os
import random
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # said before its import, or DeepSpeed warns that it guesses
import deepspeed  # noqa: E402

from model import checkpoint
from model.errors import UserError
from model.quantization import to_nf4
from model.rows import RowDataset, check_images, collate, load_rows
from model.sat_import import leave_process_group

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PROJECT = Path(__file__).resolve().parent


def option(default, help, **more):
    return dataclasses.field(default=default, metadata={"help": help, **more})


@dataclass
class Options:
    """The only source of options: each field is --field-name and --field_name."""
    # What to train on
    dataset: str = option("UCM", "set whose rows data/generate_prompt.py wrote: names the default row files")
    train_data: str = option("", "training rows, JSON or JSONL; empty: data/<dataset>/<dataset>-prompt-train.json")
    valid_data: str = option("", "held-out rows; empty: the -val file beside the training rows, if there")
    image_root: str = option("", "folder of relative images; empty: beside the row file, then the project root")
    max_source_length: int = option(0, "tokens of image and question together; 0: no limit")
    max_target_length: int = option(256, "tokens of an answer; longer ones are cut, counted and reported")
    english: bool = option(False, "frame questions with Q: / A: instead of 问： / 答：")
    num_workers: int = option(-1, "processes that read images; -1: 4 with a GPU, else 0")
    # What to train
    from_pretrained: str = option("visualglm-6b", "base (or a full checkpoint to go on from): a folder, or a name to look up "
                                                  "in SAT_HOME and the Hugging Face and ModelScope caches")
    download: str = option("", "where to fetch a base from that is not found", choices=("huggingface", "modelscope"),
                           nargs="?", const="huggingface")
    model_config: str = option("", "model_config.json of a network to make from nothing; with --mode pretrain")
    tokenizer: str = option("", "vocabulary file; empty: ice_text.model in the checkpoint folder")
    mode: str = option("finetune", "finetune trains an adapter, pretrain all parameters", choices=("finetune", "pretrain"))
    use_lora: bool = option(False, "train LoRA (the default of --mode finetune)")
    use_ptuning: bool = option(False, "train P-tuning v2 prefixes instead of LoRA")
    use_qlora: bool = option(False, "LoRA over frozen weights in 4 bits (NF4): less memory, slower")
    lora_rank: int = option(10, "rank r of LoRA")
    lora_alpha: float = option(1.0, "LoRA is scaled by alpha / r")
    lora_dropout: float = option(0.0, "dropout on LoRA's input, 0 to 1")
    layer_range: list = option(None, "language-model layers that get LoRA: `0 14` lists two, `0-13` is a range; "
                                     "default: all", nargs="+")
    pre_seq_len: int = option(4, "prefix length of P-tuning v2")
    # How to train
    epochs: float = option(0.0, "passes over the training rows; 0: as --train-iters says, else 3")
    train_iters: int = option(0, "optimizer steps; 0: as --epochs says")
    batch_size: int = option(4, "rows per process and step")
    lr: float = option(1e-4, "highest learning rate")
    lr_decay_style: str = option("cosine", "after warm-up", choices=("constant", "linear", "cosine"))
    warmup: float = option(0.02, "share of the steps in which the rate rises from 0")
    weight_decay: float = option(0.01, "AdamW's decay of matrices; biases and norms have none")
    clip_grad: float = option(0.1, "gradient norm is clipped to this; 0: not")
    zero_stage: int = option(0, "ZeRO stage: what processes share", choices=(0, 1, 2))
    fp16: bool = option(False, "float16 with loss scaling; the default on a GPU without bfloat16")
    bf16: bool = option(False, "bfloat16; the default on a GPU that has it (a CPU's is float32)")
    checkpoint_activations: bool = option(False, "recompute layers in the backward pass: less memory, slower")
    device: str = option("", "cuda or cpu; empty: cuda where there is one")
    seed: int = option(1234, "of initial weights, row order and swapped images")
    # What to report and keep
    experiment_name: str = option("RemoteGLM", "folder under --save")
    save: str = option(str(PROJECT / "checkpoints"), "folder of experiments")
    save_interval: int = option(0, "save every so many steps; 0: only at the end")
    eval_interval: int = option(0, "validate every so many steps; 0: once an epoch")
    eval_batch_size: int = option(8, "rows per process in validation")
    eval_iters: int = option(0, "validation batches per process; 0: all")
    log_interval: int = option(10, "steps between loss readings")
    model_parallel_size: int = option(1, "must be 1")


# Flags of the ancestor's launch script that nothing depends on any more: accepted, named in one line at start.
LEGACY = {
    "--resume-dataloader": (0, "row order is a function of seed and epoch"),
    "--skip-init": (0, "loaded weights are never initialised first"),
    "--distributed-backend": (1, "nccl on GPUs, gloo on CPUs"),
    "--split": (1, "splits come from the row files"),
    "--local_rank": (1, "the launcher's environment says it"),
}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; all options: --help\n")  # the usage of 40 options hides the error


def parse(argv=None):
    """Command line -> Options; contradictions are refused here, all in one message."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Options):
        meta = dict(field.metadata)
        flags = list(dict.fromkeys(("--" + field.name.replace("_", "-"), "--" + field.name)))
        if isinstance(field.default, bool):
            parser.add_argument(*flags, dest=field.name, action="store_true", help=meta["help"])
        else:
            kind = {} if field.default is None else {"type": type(field.default)}
            parser.add_argument(*flags, dest=field.name, default=field.default, **kind, **meta)
    for flag, (values, why) in LEGACY.items():
        dest = flag.strip("-").replace("-", "_")
        parser.add_argument(*dict.fromkeys((flag, "--" + dest)), dest=f"legacy {flag}", help=f"no effect: {why}",
                            **({"nargs": 1} if values else {"action": "store_true"}))
    given = vars(parser.parse_args(argv))
    unused = [flag for flag in LEGACY if given.pop(f"legacy {flag}") and flag != "--local_rank"]
    options = Options(**given)
    problems = list(contradictions(options))
    if problems:
        parser.error("; ".join(problems))
    return options, unused


def contradictions(o):
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
    for name in ("batch_size", "eval_batch_size", "lora_rank", "log_interval", "pre_seq_len", "lr"):
        if getattr(o, name) <= 0:
            yield f"--{name} {getattr(o, name)}: must be above 0"
    try:
        layers(o.layer_range or [])
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
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port}.items():
        os.environ.setdefault(name, str(value))
    # An inference-only op that DeepSpeed would compile with g++ on every CPU machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def make_network(o, device, dtype):
    """(network ready to train, tokenizer, config, what the card says of method and base)"""
    tokenizer = o.tokenizer or None
    if o.model_config:
        network, words, config = checkpoint.build(o.model_config, tokenizer, device, dtype)
        return network, words, config, {"method": {"name": "full"}, "base": None}
    network, words, stored = checkpoint.load_base(o.from_pretrained, tokenizer, device, str(dtype).removeprefix("torch."),
                                                  download=o.download or None)
    config = stored.config
    if stored.adapter or "quantization" in stored.card:
        raise UserError(f"{stored.folder} is not a base to train on: it holds {stored.method['name'] if stored.method else 'quantized weights'}; "
                        "merge it first (export_RemoteGLM.py --format sat), or name the base itself")
    if o.mode == "pretrain":
        method = {"name": "full"}
    else:
        network.requires_grad_(False)
        if o.use_ptuning:
            method = {"name": "ptuning", "length": o.pre_seq_len}
        else:
            chosen = layers(o.layer_range) if o.layer_range else list(range(config["num_layers"]))
            method = {"name": "lora", "rank": o.lora_rank, "alpha": o.lora_alpha, "layers": chosen,
                      "dropout": o.lora_dropout}
        checkpoint.add_method(network, method)
        if o.use_qlora:
            to_nf4(network)
        trained = set(checkpoint.adapter_names(network))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)
    return network, words, config, {"method": method, "base": {"path": checkpoint.portable(o.from_pretrained),
                                                               "fingerprint": stored.fingerprint()}}


def make_engine(o, network, total, dtype):
    """DeepSpeed's engine around the trained parameters, AdamW and the learning-rate schedule."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": o.weight_decay},
              {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=o.lr, betas=(0.9, 0.95))
    rise = max(1, round(o.warmup * total))

    def rate(step):
        if step < rise:
            return (step + 1) / rise
        left = (total - step) / max(1, total - rise)
        return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[o.lr_decay_style]

    size = min(sum(p.numel() for p in trained), 500_000_000)  # larger buckets only cost memory and zeroing
    engine, *_ = deepspeed.initialize(
        model=network, optimizer=optimizer, lr_scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        dist_init_required=False, config={
            "train_micro_batch_size_per_gpu": o.batch_size, "gradient_clipping": o.clip_grad,
            "fp16": {"enabled": dtype == torch.float16}, "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_optimization": {"stage": o.zero_stage, "reduce_bucket_size": size, "allgather_bucket_size": size},
            "zero_force_ds_cpu_optimizer": False, "steps_per_print": sys.maxsize})
    return engine


def loaders(o, dataset, batch_size, rank, world, shuffle, workers):
    sampler = torch.utils.data.DistributedSampler(dataset, world, rank, shuffle=shuffle, seed=o.seed)
    return torch.utils.data.DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=collate,
                                       persistent_workers=workers > 0), sampler


def to_device(batch, device):
    return {key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for key, value in batch.items()}


def swap_images(samples, seed):
    """The same questions and answers, each with another sample's picture."""
    shown = [i for i, s in enumerate(samples) if s.image]
    random.Random(seed).shuffle(shown)
    swapped = list(samples)
    for k, i in enumerate(shown):
        others = (samples[shown[(k + step) % len(shown)]].image for step in range(1, len(shown)))
        swapped[i] = replace(samples[i], image=next((o for o in others if o != samples[i].image), samples[i].image))
    return swapped


@torch.no_grad()
def validate(network, loader, device, limit=0, blank=False):
    """Mean loss per answer token over all processes; blank shows a grey picture instead of each."""
    network.eval()
    total = torch.zeros(2, device=device, dtype=torch.float64)
    for index, batch in enumerate(loader):
        if limit and index >= limit:
            break
        batch = to_device(batch, device)
        if blank and "pixels" in batch:
            batch["pixels"] = torch.zeros_like(batch["pixels"])  # CLIP's mean colour
        loss = network(**batch)[1]
        tokens = batch["targets"].numel()
        total += torch.tensor([loss.item() * tokens, tokens], device=device, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    network.train()
    return (total[0] / total[1]).item()


def plot(log, path):
    """loss.png: training loss, held-out loss with the picture, with a blank one and with another one."""
    figure, axes = plt.subplots(figsize=(7, 4))
    train = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    axes.plot(*zip(*train), color="0.7", label="train") if train else None
    for key, style in (("real", "C0o-"), ("blank", "C1s--"), ("swapped", "C3^--")):
        points = [(entry["step"], entry["valid"][key]) for entry in log if key in entry.get("valid", {})]
        axes.plot(*zip(*points), style, label=f"held out, {key} images") if points else None
    axes.set(xlabel="step", ylabel="loss per answer token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train(o, unused):
    """Run the training that the options describe. Raises UserError before heavy work."""
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
    folder = Path(o.save) / o.experiment_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"checkpoint folder {folder} cannot be written: {error.strerror}; choose another --save") from None

    rank, world = start_processes(cuda)
    main_process = rank == 0
    say = (lambda *a: tqdm.write(" ".join(map(str, a)))) if main_process else (lambda *a: None)
    if unused:
        say("no effect any more:", ", ".join(f"{flag} ({LEGACY[flag][1]})" for flag in unused))
    if cuda:
        device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(o.seed)
    network, tokenizer, config, card = make_network(o, device, dtype)
    network.mixins["chatglm-layer"].checkpoint_activations = o.checkpoint_activations
    shape = dict(max_source=o.max_source_length or None, max_target=o.max_target_length, english=o.english)
    dataset = RowDataset(samples, tokenizer, config, **shape)
    pictures = check_images(samples + held_out, train_file)

    workers = o.num_workers if o.num_workers >= 0 else 4 if cuda else 0
    loader, sampler = loaders(o, dataset, o.batch_size, rank, world, True, workers)
    total = o.train_iters or math.ceil((o.epochs or 3) * len(loader))
    every = o.eval_interval or len(loader)
    checks = {}
    if held_out:
        random.Random(o.seed).shuffle(held_out)  # row files are ordered by class: --eval-iters must see all classes
        checks["real"], _ = loaders(o, RowDataset(held_out, tokenizer, config, **shape), o.eval_batch_size, rank, world,
                                    False, workers)
        if any(sample.image for sample in held_out):
            other = RowDataset(swap_images(held_out, o.seed), tokenizer, config, **shape)
            checks["swapped"], _ = loaders(o, other, o.eval_batch_size, rank, world, False, workers)
    engine = make_engine(o, network, total, dtype)

    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    count, frozen = sum(p.numel() for _, p in trained), sum(p.numel() for p in network.parameters() if not p.requires_grad)
    card |= {"format": 1, "prompt": Counter(s.question for s in samples).most_common(1)[0][0], "english": o.english,
             "options": dataclasses.asdict(o), "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__}}
    what = dict(card["method"])
    tokens = sum(len(row.ids) for row in dataset.rows) / len(dataset)
    say(f"{o.experiment_name}: trains {what.pop('name')} {what or ''} {count:,} parameters, {frozen:,} frozen; "
        f"{device}, {str(dtype).removeprefix('torch.')}, {world} process(es)")
    say(f"{len(samples):,} rows, {len(held_out):,} held out, {pictures:,} images; {total:,} steps of {o.batch_size * world} "
        f"rows (~{tokens * o.batch_size * world:.0f} tokens)" + (f"; {dataset.cut} rows cut by a length limit" if dataset.cut else ""))

    log, step, epoch, seen, began = [], 0, 0, 0, time.perf_counter()
    log_file = open(folder / "log.jsonl", "w", encoding="utf-8") if main_process else None

    def note(**entry):
        log.append({"step": step, **entry})
        if main_process:
            log_file.write(json.dumps(log[-1]) + "\n")
            log_file.flush()

    def draw():  # not at every reading: a plot takes longer than a small step
        if main_process:
            plot(log, folder / "loss.png")

    def check():
        if not checks:
            return
        losses = {name: validate(network, check_loader, device, o.eval_iters) for name, check_loader in checks.items()}
        if "swapped" in checks:
            losses["blank"] = validate(network, checks["real"], device, o.eval_iters, blank=True)
        say(f"step {step}: held-out loss {losses['real']:.4f}" + "".join(
            f", with {name} images {losses[name]:.4f}" for name in ("blank", "swapped") if name in losses))
        note(valid=losses)
        draw()

    def save():
        if main_process:
            target = folder / str(step)
            own = network.state_dict()
            names = own if card["method"]["name"] == "full" else [name for name, _ in trained]
            checkpoint.write_folder(target, card=card | {"step": step, "log": log[-1] if log else None}, config=config,
                                    tokenizer=tokenizer, tensors={name: own[name] for name in names})
            scratch = folder / ".latest"
            scratch.write_text(str(step))
            os.replace(scratch, folder / "latest")
            draw()
            say(f"saved {target}")

    check()
    losses, saved = [], None
    bar = tqdm(total=total, disable=not main_process, unit="step", mininterval=1 if sys.stderr.isatty() else 30)
    network.train()
    try:
        while step < total:
            sampler.set_epoch(epoch)
            for batch in loader:
                images, tokens = len(batch.get("image_rows", ())), batch["targets"].numel()
                batch = to_device(batch, device)
                everywhere = torch.tensor(float(tokens), device=device)
                torch.distributed.all_reduce(everywhere)
                loss = engine(**batch)[1]
                # Mean over the tokens of the whole global batch: DeepSpeed averages over processes, not tokens.
                engine.backward(loss * (tokens * world / everywhere))
                engine.step()
                step, seen = step + 1, seen + images * world
                losses.append(loss.detach())
                bar.update()
                if step % o.log_interval == 0 or step == total:
                    mean = torch.stack(losses).mean().item()
                    losses.clear()
                    if not math.isfinite(mean):
                        raise UserError(f"the loss is {mean} at step {step}: nothing was saved after it; lower --lr "
                                        f"(now {o.lr:g}) or train in float32 or --bf16")
                    rate = engine.get_lr()[0]
                    speed = seen / (time.perf_counter() - began)
                    bar.set_postfix_str(f"loss {mean:.3f}, lr {rate:.2e}, {speed:.1f} images/s")
                    note(loss=mean, lr=rate, images_per_s=round(speed, 2))
                if step % every == 0 or step == total:
                    check()
                if step == total or o.save_interval and step % o.save_interval == 0:
                    save()
                    saved = step
                if step == total:
                    break
            epoch += 1
    except KeyboardInterrupt:
        if step and step != saved:
            save()
        raise SystemExit(130)
    finally:
        bar.close()
        if log_file:
            log_file.close()
    torch.distributed.barrier()
    leave_process_group()
    say(f"done in {time.perf_counter() - began:.0f} s; losses: {folder / 'loss.png'}\n"
        f"talk with it: python cli_demo.py --from_pretrained {folder}")
    return folder


def main(argv=None):
    options, unused = parse(argv)
    try:
        return train(options, unused)
    except UserError as error:
        sys.exit(f"finetune_RemoteGLM.py: error: {error}")


if __name__ == "__main__":
    main()
