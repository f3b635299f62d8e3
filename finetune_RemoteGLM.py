"""Fine-tune a vision-language model on remote-sensing image-text pairs.

LoRA, QLoRA, P-tuning v2 or all parameters (--method). One process on a CPU or GPU, or several:
`bash finetune_RemoteGLM.sh`, `torchrun` or `deepspeed` start it alike.
Writes checkpoints/<experiment-name>/: <step>/ (an adapter or full checkpoint each, with all that
--resume needs), latest, best, loss.png, metrics.jsonl. The same command with --resume continues
exactly where the last complete step was saved.
"""

import dataclasses
import math
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from model.training.allocator import start_without_caches
from model.training.signals import leave_on_signals

if __name__ == "__main__":
    start_without_caches()
    leave_on_signals("finetune_RemoteGLM.py")  # also while the imports below take their seconds

import numpy as np
import torch

from command_line import Parser
from model.errors import UserError
from model.family import (
    Limits,
    adapter_card,
    adapter_tensors,
    base_of_adapter,
    check_base,
    choose_device,
    family_of,
    named_dtype,
    portable_path,
)
from model.files import PROJECT, sha256
from model.find import find_checkpoint
from model.row_store import StoredSamples, is_shards, sample_keys
from model.rows import Sample, load_rows
from model.training.arguments import read_arguments
from model.training.dataset import StreamedDataset, make_loader, rendered_dataset
from model.training.engine import (
    deepspeed,
    is_first_failure,
    leave_process_group,
    make_engine,
    start_processes,
)
from model.training.feature_cache import open_feature_cache, uses_feature_cache
from model.training.log import Log
from model.training.loop import Plan, Trainer
from model.training.memory import estimated_memory, memory_problem
from model.training.options import IGNORED, layers, like_adapter, without_effect
from model.training.resume import Progress, resume, step_bytes
from model.training.run_folder import RunFolder
from model.training.sampler import DistributedBatchSampler, plan_epoch
from model.training.validation import make_validation, shuffled_rows
from model.weight_files import adapter_file

QUESTIONS = 10_000  # rows among which the most frequent question is looked for


def parse(argv=None):
    """Command line -> (Options, flags without effect). Contradictions end it in one message."""
    return read_arguments(Parser(__doc__), argv)


@dataclass
class Inputs:
    """What a run reads, checked before anything heavy."""

    train_file: Path
    samples: Sequence[Sample]
    valid_samples: list[Sample]
    fingerprints: list[str | None]  # of the rows of both
    notes: list[str]  # what was not read of the files

    @property
    def is_streamed(self):
        return isinstance(self.samples, StoredSamples)

    @cached_property
    def keys(self):
        """Of training and validation samples, see sample_keys."""
        return sample_keys(self.samples), sample_keys(self.valid_samples)

    @property
    def images(self):
        """How many different ones."""
        shown = np.concatenate([keys[:, 0] for keys in self.keys])
        return np.unique(shown[shown != 0]).size


def read_inputs(options):
    """The row files that the options name. Raises UserError."""
    default = PROJECT / "data" / options.dataset / f"{options.dataset}-prompt-train.json"
    train_file = Path(options.train_data or default)
    beside = train_file.with_name(train_file.name.replace("-train", "-val"))
    valid_file = None
    if options.valid_data:
        valid_file = Path(options.valid_data)
    elif beside != train_file and (beside.is_file() or any(beside.parent.glob(beside.name))):
        valid_file = beside
    notes = []
    samples, fingerprint = read_samples(train_file, options, notes, options.stream)
    valid_samples, valid_fingerprint = [], None
    if valid_file:
        valid_samples, valid_fingerprint = read_samples(valid_file, options, notes)
    if isinstance(samples, StoredSamples):
        notes.append(
            "training rows stay on the disk: their images are read and encoded in every step, and "
            "not opened before"
        )
    if options.early_stopping and not valid_samples:
        raise UserError(
            f"--early-stopping {options.early_stopping} needs validation rows: name them with "
            "--valid-data"
        )
    fingerprints = [fingerprint, valid_fingerprint]
    return Inputs(train_file, samples, list(valid_samples), fingerprints, notes)


def read_samples(path, options, notes, stream=False):
    """(the samples of a row file or of shards, hash of the rows). Raises UserError."""
    if stream or is_shards(path):
        samples = StoredSamples(path, options.image_root, notes)
        return samples, samples.fingerprint[:16]
    return load_rows(path, options.image_root, notes=notes), sha256(path)[:16]


def prepare_run(options):
    """The run's folder -> (RunFolder, steps that are in it). Raises UserError."""
    run = RunFolder(Path(options.save) / options.experiment_name).prepare()
    base = Path(options.from_pretrained)
    if base.is_dir() and base.resolve().is_relative_to(run.folder.resolve()):
        raise UserError(
            f"--from_pretrained {base} lies in the folder that this run writes, {run.folder}; "
            "name another --experiment-name"
        )
    existing_steps = run.steps()
    if existing_steps and not (options.resume or options.overwrite):
        raise UserError(
            f"{run.folder} holds a run already, at step {existing_steps[-1]}: continue with "
            "--resume, name another --experiment-name, or start again with --overwrite"
        )
    return run, existing_steps


def training_dtype(options, device):
    """torch.dtype of weights and activations."""
    if device.type != "cuda":
        if options.dtype == "float16":
            print("--dtype float16 needs a GPU: training in float32 on the CPU", file=sys.stderr)
            return torch.float32
        return named_dtype(options.dtype or "float32")
    if options.dtype:
        return named_dtype(options.dtype)
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def open_base(options, device, dtype):
    """The network to train, with its method added -> (Family, what its card says of both)."""
    adapter = None
    if options.model_config:
        family = family_of(options.model_config).from_config(
            options.model_config, tokenizer=options.tokenizer, device=device, dtype=dtype
        )
        base = None
    else:
        folder = find_checkpoint(options.from_pretrained, options.download or None)
        named = options.from_pretrained
        if adapter_file(folder):
            adapter = folder
            base_path, download = options.base_path or None, options.download or None
            named = folder = base_of_adapter(adapter, base_path, download)
        kind = family_of(folder)
        family = kind.open(
            folder,
            tokenizer=options.tokenizer or adapter,
            # 4-bit weights are made on the CPU and moved: the GPU never holds the full ones
            device=torch.device("cpu") if options.method == "qlora" else device,
            dtype=dtype,
            vision_on_cpu=uses_feature_cache(options, kind),
        )
        refuse_finished(folder, family)
        if options.max_pixels or options.min_pixels:
            family.limit_pixels(options.min_pixels or None, options.max_pixels or None)
        path = portable_path(folder) if Path(named).is_dir() else named
        base = {"path": path, "fingerprint": family.base_fingerprint}

    check_choices(options, family)
    method = requested_method(options, adapter)
    method = family.add_method(method, device=device, nf4=options.method == "qlora")
    if adapter:
        check_base(adapter, family, folder)
        family.start_from(adapter_tensors(adapter), f"adapter {adapter}")
    family.configure_training(
        activation_checkpointing=options.checkpoint_activations,
        patch_dropout=options.patch_dropout,
        label_smoothing=options.label_smoothing,
        compile_layers=options.compile,
    )
    return family, {"base": base, "method": method}


def refuse_finished(folder, family):
    """UserError for a folder that is no base to train on."""
    if family.has_adapter:
        raise UserError(
            f"{folder} is no base to train on: it holds {family.card['method']['name']}; merge it "
            "first (export_RemoteGLM.py --format sat), or name the base itself"
        )
    if "quantization" in family.card:
        raise UserError(
            f"{folder} is no base to train on: its weights are quantized; name the checkpoint "
            "they were made from (--method qlora trains in 4 bits)"
        )


def check_choices(options, family):
    """UserError for methods, parts or LoRA targets that this family of networks does not have."""
    for name, chosen, known in (
        ("--method", [options.method], family.methods),
        ("--trainable", options.trainable, family.parts),
        ("--lora_targets", options.lora_targets, family.lora_targets),
    ):
        unknown = [value for value in chosen if value not in known]
        if unknown:
            raise UserError(f"{name} {unknown[0]}: expected {', '.join(known)}")


def requested_method(options, adapter=None):
    """The options as a method of family.add_method; adapter: folder of one to start from."""
    own = adapter_card(adapter)["method"] if adapter else {}
    if "peft" in own:  # it says itself where its modules are, see options.like_adapter
        return own | {"dropout": options.lora_dropout}
    if options.method == "full":
        return {"name": "full", "parts": options.trainable}
    if options.method == "ptuning":
        return {"name": "ptuning", "length": options.pre_seq_len, "parts": options.trainable}
    return {
        "name": "lora",
        "rank": options.lora_rank,
        "alpha": options.lora_alpha,
        "layers": layers(options.layer_range) if options.layer_range else None,
        "dropout": options.lora_dropout,
        "targets": options.lora_targets,
        "parts": options.trainable,
    }


def say_overlap(inputs, say):
    """Say how many validation rows also are training rows, which makes their loss too low."""
    keys, valid_keys = inputs.keys
    same = int(np.isin(valid_keys[:, 1], keys[:, 1]).sum())
    shown = keys[keys[:, 0] != 0, 0]
    seen = int(np.isin(valid_keys[:, 0], shown).sum())
    if seen or same:
        say(
            f"warning: of {len(inputs.valid_samples)} validation rows {same} are also training "
            f"rows, and {seen} show a training image: the validation loss is too low by that"
        )


def say_plan(trainer, inputs, method, total_parameters, memory):
    """The start lines: what is trained, on what, how."""
    options, family, plan = trainer.options, trainer.family, trainer.plan
    dataset, say = trainer.dataset, trainer.processes.say
    trained = sum(p.numel() for p in family.network.parameters() if p.requires_grad)
    tokens = float(dataset.lengths.mean())
    shown = float(dataset.has_image.mean())
    settings = {name: value for name, value in method.items() if name != "name"}
    say(
        f"{options.experiment_name}: trains {method['name']} {settings or ''} {trained:,} "
        f"parameters, {total_parameters - trained:,} frozen; {trainer.processes.device}, "
        f"{str(family.dtype).removeprefix('torch.')}, {trainer.processes.world} process(es), "
        f"about {memory.total:.1f} GB each"
    )
    line = (
        f"{len(dataset):,} rows, {len(inputs.valid_samples):,} validation rows, "
        f"{inputs.images:,} images; {plan.total_steps:,} steps of {plan.rows_per_step} rows "
        f"(~{tokens * plan.rows_per_step:.0f} tokens, ~{shown * plan.rows_per_step:.0f} images)"
    )
    if dataset.cut:
        line += (
            f"; {dataset.cut} cut by --max_source_length {options.max_source_length} or "
            f"--max_target_length {options.max_target_length} (a cut answer trains no end)"
        )
    say(line)
    if shown and family.image_note():
        say(family.image_note())


def make_plan(options, rows, world):
    rows_per_step = options.batch_size * world * options.gradient_accumulation_steps
    steps_per_epoch = math.ceil(rows / rows_per_step)
    total_steps = options.train_iters or math.ceil((options.epochs or 3) * steps_per_epoch)
    return Plan(rows_per_step, steps_per_epoch, total_steps)


def train(options, ignored=()):
    """Run the training that the options describe -> the run's folder. Raises UserError."""
    start_time = time.perf_counter()
    device = choose_device(options.device or None)
    dtype = training_dtype(options, device)
    options = as_resolved(options, dtype)
    inputs = read_inputs(options)
    if inputs.is_streamed:
        options = dataclasses.replace(options, stream=True, vision_cache="off")
    run, existing_steps = prepare_run(options)

    processes = start_processes(device)
    with processes.together():
        if processes.is_main:
            begin(run, existing_steps, options, processes.say)
    unused = without_effect(options)
    if unused:
        names = ", ".join(f"--{name}" for name in unused)
        processes.say(f"no effect with --method {options.method}: {names}")
    if ignored:
        reasons = ", ".join(f"{flag} ({IGNORED[flag][1]})" for flag in ignored)
        processes.say("no effect any more:", reasons)
    for note in inputs.notes:
        processes.say(note)
    say_overlap(inputs, processes.say)

    torch.manual_seed(options.seed)
    family, card = open_base(options, processes.device, dtype)
    total_parameters = sum(p.numel() for p in family.network.parameters())
    samples = list(inputs.valid_samples)
    if not inputs.is_streamed:
        samples += inputs.samples
    cache = open_feature_cache(options, family, samples, inputs.train_file, processes)
    if cache and card["method"]["name"] != "full":
        family.drop_vision()

    trainer = make_trainer(
        options, family, processes, run, inputs, cache, card, existing_steps, start_time
    )
    memory = estimated_memory(family, trainer.dataset, options.batch_size)
    say_plan(trainer, inputs, card["method"], total_parameters, memory)
    try:
        trainer.fit()
    except RuntimeError as error:
        if memory_problem(str(error)):
            error.add_note(memory.advice(options))
        raise
    return finish(trainer)


def as_resolved(options, dtype):
    """The options with what an empty one or an adapter to start from decides. Raises UserError."""
    name = str(dtype).removeprefix("torch.")
    options = dataclasses.replace(options, dtype=name)
    if options.model_config:
        return options
    try:
        folder = find_checkpoint(options.from_pretrained)
    except UserError:
        if Path(options.from_pretrained).expanduser().is_dir():
            raise
        return options  # open_base fetches it, or says that it is not there
    if not adapter_file(folder):
        return options
    return like_adapter(options, adapter_card(folder)["method"], folder)


def begin(run, existing_steps, options, say):
    """Lock the run's folder, and mark what is replaced there. Raises UserError."""
    run.lock(say)
    if options.overwrite:
        run.replace(sorted({*run.replaced(), *existing_steps}))
    elif options.resume and not existing_steps:
        say(f"--resume: {run.folder} holds no saved step to resume from: starting from step 0")


def make_trainer(options, family, processes, run, inputs, cache, card, existing_steps, start_time):
    """Data, engine and log around the network, put where the run stands."""
    limits = Limits(
        options.max_source_length or None,
        options.max_target_length or None,
        options.english,
    )
    augmentation = (options.seed, options.augment) if options.augment else None
    sharded = processes.sharded
    if inputs.is_streamed:
        dataset = StreamedDataset(family, inputs.samples, limits, augmentation)
    else:
        dataset = rendered_dataset(family, inputs.samples, limits, cache, augmentation, sharded)
    workers = options.num_workers
    if workers < 0:
        workers = 4 if processes.device.type == "cuda" else 0
    plan = make_plan(options, len(dataset), processes.world)

    @lru_cache(1)
    def planned(epoch):
        return plan_epoch(dataset.lengths, plan.rows_per_step, options.seed, epoch)

    sampler = DistributedBatchSampler(
        planned,
        len(dataset),
        options.batch_size,
        options.gradient_accumulation_steps,
        processes.rank,
        processes.world,
    )
    validation = None
    if inputs.valid_samples:
        valid_samples = shuffled_rows(inputs.valid_samples, options.seed)
        valid_dataset = rendered_dataset(family, valid_samples, limits, cache, sharded=sharded)
        validation = make_validation(valid_dataset, processes, options, workers)

    engine, optimizer = make_engine(options, family.network, plan.total_steps, family.dtype)
    with processes.together():
        run.check_space(step_bytes(family, card))
    card |= run_card(options, inputs)
    state = run_state(options, inputs, plan, processes.world, card["base"])
    progress = Progress()
    if options.resume and existing_steps:
        progress = resume(run, family, engine, processes, state)
    if progress.step == 0:
        torch.manual_seed(options.seed + processes.rank)  # dropout differs between processes
    log = None
    if processes.is_main:
        log = Log(run.folder, say=processes.say).open(progress.step)
        log.track(options.report, options.experiment_name, card["options"])
    return Trainer(
        options=options,
        family=family,
        processes=processes,
        run=run,
        plan=plan,
        dataset=dataset,
        sampler=sampler,
        loader=make_loader(dataset, sampler, workers),
        validation=validation,
        engine=engine,
        optimizer=optimizer,
        log=log,
        card=card,
        state=state,
        progress=progress,
        start_time=start_time,
        resumed_step=progress.step,
        saved_step=progress.step,
    )


def run_card(options, inputs):
    """What a checkpoint says of the run that made it, beside its base and method."""
    count = len(inputs.samples)
    drawn = sorted(random.Random(0).sample(range(count), min(count, QUESTIONS)))
    questions = Counter(inputs.samples[index].question for index in drawn)
    return {
        "format": 2,
        "prompt": questions.most_common(1)[0][0],
        "english": options.english,
        "options": dataclasses.asdict(options),
        "versions": {"torch": torch.__version__, "deepspeed": deepspeed.__version__},
    }


def run_state(options, inputs, plan, world, base):
    """What progress.json keeps of a run, to be compared when it is resumed."""
    return {
        "options": dataclasses.asdict(options),
        "rows per step": plan.rows_per_step,
        "steps": plan.total_steps,
        "training rows": inputs.fingerprints[0],
        "held-out rows": inputs.fingerprints[1],
        "world": world,
        "base": base and base["fingerprint"],
    }


def finish(trainer):
    """The last lines, and the end of the process group -> the run's folder."""
    say, folder, progress = trainer.processes.say, trainer.run.folder, trainer.progress
    total_steps, step, best = trainer.plan.total_steps, progress.step, progress.best
    if trainer.resumed_step == total_steps:
        say(f"{folder} is finished at step {total_steps}: nothing to do")
    if trainer.stopped_early:
        say(
            f"stopped early: the validation loss was lowest at step {best['step']} "
            f"({best['loss']:.4f})"
        )
    if trainer.optimizer.skipped:
        say(f"{trainer.optimizer.skipped} steps had NaN or Inf gradients and were skipped")
    leave_process_group(trainer.family)
    if trainer.is_stopping and step < total_steps:
        say(
            f"stopped at step {trainer.saved_step} of {total_steps}; the same command with "
            "--resume continues"
        )
        raise SystemExit(128 + (trainer.signals or [15])[0])

    seconds = time.perf_counter() - trainer.start_time
    say(
        f"done in {seconds:.0f} s; losses: {folder / 'loss.png'}\n"
        f"talk with it: python cli_demo.py --from_pretrained {shlex.quote(str(folder))}"
    )
    if trainer.effect is not None:
        say(f"the adapter changes the logits of an answer by {trainer.effect:.3g} (rms)")
    if trainer.effect == 0:
        raise UserError(
            f"the adapter in {folder} does nothing: its weights did not change from where they "
            f"began; raise --lr (now {trainer.options.lr:g}) or train longer"
        )
    is_saved = best and (folder / str(best["step"])).is_dir()
    if is_saved and best["step"] != step:
        best_folder = shlex.quote(str(folder / str(best["step"])))
        say(
            "the step with the lowest validation loss: python cli_demo.py --from_pretrained "
            f"{best_folder}"
        )
    return folder


def main(argv=None):
    options, ignored = parse(argv)
    try:
        return train(options, ignored)
    except UserError as error:
        message = str(error)
    except RuntimeError as error:
        message = memory_problem(str(error))
        if message:
            message = "; ".join([message, *getattr(error, "__notes__", ())])
        # Where another process has failed, this one only lost its connection
        if not message and is_first_failure():
            raise
    sys.exit(f"finetune_RemoteGLM.py: error: {message}" if is_first_failure() else 1)


if __name__ == "__main__":
    main()
