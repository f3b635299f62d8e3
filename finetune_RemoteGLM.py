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
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path

from command_line import Parser, output_may_fail
from model.training.allocator import start_without_caches
from model.training.arguments import read_arguments
from model.training.signals import leave_on_signals

if __name__ == "__main__":
    start_without_caches()
    # The imports below take seconds: signals, --help and wrong options are answered before
    leave_on_signals("finetune_RemoteGLM.py")
    read_arguments(Parser(__doc__))

import torch

from model.devices import choose_device
from model.errors import UserError
from model.family import Limits
from model.training.base import as_resolved, open_base, training_dtype
from model.training.dataset import StreamedDataset, make_loader, rendered_dataset
from model.training.engine import (
    deepspeed,
    is_first_failure,
    leave,
    leave_process_group,
    make_engine,
    start_processes,
)
from model.training.feature_cache import open_feature_cache
from model.training.inputs import read_inputs, say_overlap
from model.training.log import Log
from model.training.loop import Plan, Trainer
from model.training.memory import estimated_memory, memory_problem
from model.training.options import IGNORED, without_effect
from model.training.resume import Progress, resume, step_bytes
from model.training.run_folder import RunFolder
from model.training.sampler import DistributedBatchSampler, plan_epoch
from model.training.validation import make_validation, shuffled_rows

QUESTIONS = 10_000  # rows among which the most frequent question is looked for


def parse(argv=None):
    """Command line -> (Options, flags without effect). Contradictions end it in one message."""
    return read_arguments(Parser(__doc__), argv)


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
        with output_may_fail():
            return train(options, ignored)
    except SystemExit as error:
        leave(error.code)
    except UserError as error:
        message = str(error)
    except RuntimeError as error:
        message = memory_problem(str(error))
        if message:
            message = "; ".join([message, *getattr(error, "__notes__", ())])
        # Where another process has failed, this one only lost its connection
        if not message and is_first_failure():
            raise
    leave(f"finetune_RemoteGLM.py: error: {message}" if is_first_failure() else 1)


if __name__ == "__main__":
    main()
