"""Saving a step with all that an exact resume needs, and resuming from it.

A step's folder holds the adapter or full checkpoint and state/: what engine_state.py writes of the
optimizer, random state of each process, and progress.json. No file of it is a pickle.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from model.errors import UserError
from model.files import read_json
from model.training.engine_state import (
    follow_schedule,
    read_engine,
    read_tensors,
    restore_engine,
    save_engine,
)
from model.training.options import from_saved

STATE = "state"  # folder of a step
PROGRESS = "progress.json"
# Of what progress.json must hold beside COMPARED
KINDS = {"options": dict, "world": int, "best": dict | None, "waited": int}

# What a resumed run must share with the one it continues, or it would go somewhere else
FIXED = (
    "method",
    "dtype",
    "augment",
    "patch_dropout",
    "label_smoothing",
    "model_config",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_targets",
    "layer_range",
    "pre_seq_len",
    "trainable",
    "max_source_length",
    "max_target_length",
    "max_pixels",
    "min_pixels",
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
)
# Of the run beside its options: key in progress.json -> name in a message
COMPARED = {
    "rows per step": "rows per step",
    "steps": "steps",
    "training rows": "training rows",
    "held-out rows": "validation rows",  # the key of the first released runs
}


def random_file(rank):
    return f"random-{rank}.safetensors"


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    best: dict[str, Any] | None = None  # {"step", "loss"} of the lowest validation loss
    waited: int = 0  # validations in a row without a lower one


def check_resumable(before, now, world, parts):
    """UserError that names what differs between the saved run and this one, and the way on.

    before, now: what progress.json holds of them; parts: those of the network's family.
    """
    was = from_saved(before["options"], parts)
    new = from_saved(now["options"], parts)
    changed = []
    for name in FIXED:
        saved, chosen = getattr(was, name), getattr(new, name)
        # Earlier versions saved no dtype where none had been chosen
        if saved != chosen and not (name == "dtype" and saved == ""):
            keeps = ""
            if name == "english":
                keeps = f" ({'--english' if saved else '--no-english'} keeps it)"
            changed.append(f"--{name} {saved} -> {chosen}{keeps}")
    for key, name in COMPARED.items():
        if before[key] != now[key] and not (key == "steps" and _extends(before, now)):
            hint = _way_on(key, before, now, new, world)
            changed.append(f"{name} {before[key]} -> {now[key]}{hint}")
    if before["base"] != now["base"]:
        changed.append(f"base {before['base']} -> {now['base']} (fingerprint)")
    if changed:
        raise UserError(
            f"--resume cannot continue with other settings: {'; '.join(changed)}; name another "
            "--experiment-name for a new run (its --from_pretrained may be a saved step of this "
            "one)"
        )

    other_stage = was.zero_stage != new.zero_stage
    other_world = before["world"] != world and was.zero_stage
    if other_stage or other_world:
        raise UserError(
            f"--resume: the run was saved by {before['world']} process(es) with --zero-stage "
            f"{was.zero_stage}; only stage 0 can continue with another number (now {world}, stage "
            f"{new.zero_stage}): start {before['world']} process(es) (NUM_GPUS={before['world']}) "
            f"with --zero-stage {was.zero_stage}"
        )


def _extends(before, now):
    """Whether more steps were asked for explicitly."""
    return bool(now["options"].get("extend")) and now["steps"] > before["steps"]


def _way_on(key, before, now, options, world):
    """The option that helps where `key` of the two runs differs; "" where none does."""
    if key == "rows per step":
        per_pass = options.batch_size * world
        if before[key] % per_pass == 0:
            count = before[key] // per_pass
            return f" (--gradient-accumulation-steps {count} makes them the same)"
        return f" (--batch-size x {world} process(es) x --gradient-accumulation-steps)"
    if key == "steps" and now[key] > before[key]:
        return " (--extend trains on to them)"
    if key == "steps":
        return f" (--train-iters {before[key]})"
    return ""


def save_step(run, family, engine, processes, card, state, progress):
    """Write a step's folder and publish it. card, state: of the run; progress: where it stands.

    Raises UserError in one process where any of them cannot write; the others end with it.
    """
    step = progress.step
    folder = run.scratch(step)
    saved = _saved_parameters(family, card)
    partitioned = engine.zero_optimization_stage() == 3
    with processes.together(), deepspeed.zero.GatheredParameters(saved, enabled=partitioned):
        if processes.is_main:
            family.save(folder, card | {"step": step})

    with processes.together(), run.writing(step):
        (folder / STATE).mkdir(exist_ok=True)
        save_engine(engine, folder / STATE, processes.rank)
        random_state = {"cpu": torch.get_rng_state()}
        if processes.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state()
        save_file(random_state, folder / STATE / random_file(processes.rank))

    with processes.together(), run.writing(step):
        if processes.is_main:
            text = json.dumps(state | vars(progress))
            (folder / STATE / PROGRESS).write_text(text, encoding="utf-8")
            run.publish(step)


def _saved_parameters(family, card):
    """All of a full checkpoint, else the trained ones."""
    full = card["method"]["name"] == "full"
    return [p for p in family.network.parameters() if full or p.requires_grad]


def step_bytes(family, card):
    """What a saved step takes on the disk, about."""
    saved = sum(p.numel() for p in _saved_parameters(family, card))
    trained = sum(p.numel() for p in family.network.parameters() if p.requires_grad)
    # The weights; those that are trained once more, with AdamW's moments and a copy in float32
    return (saved + trained) * family.dtype.itemsize + trained * 12


def resume(run, family, engine, processes, state):
    """Put the run where its newest intact step left it -> Progress. Raises UserError."""
    step = _newest_intact(run, processes)
    folder = run.folder / str(step) / STATE
    with processes.together():
        saved = read_progress(folder)
        check_resumable(saved, state, processes.world, family.parts)
        # A process that the saved run did not have takes the first one's state
        rank = processes.rank if processes.rank < saved["world"] else 0
        with _readable(folder):
            engine_state = read_engine(engine, folder, processes.rank)
            random_state = read_tensors(folder / random_file(rank))
    with _readable(folder):
        restore_engine(engine, engine_state, processes.rank, processes.world)
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state and torch.cuda.is_available():
            torch.cuda.set_rng_state(random_state["cuda"])
    processes.say(f"resumed at step {step}")
    if _extends(saved, state):
        follow_schedule(engine, step)
        processes.say(
            f"extended from {saved['steps']} to {state['steps']} steps: the learning rate goes on "
            f"at {engine.get_lr()[0]:.3g}, as in a run of that many steps"
        )
    return Progress(step, saved["best"], saved["waited"])


def read_progress(folder):
    """progress.json of a step's state folder. Raises UserError."""
    if (folder / "engine").is_dir():
        raise UserError(
            f"{folder.parent} was saved by an earlier version, which kept the optimizer's state in "
            "pickles: reading them could run foreign code. Train on from its weights as a new run: "
            f"--from_pretrained {folder.parent} --experiment-name another"
        )
    saved = read_json(folder / PROGRESS, "state of the run", dict)
    missing = [key for key in (*COMPARED, *KINDS) if key not in saved]
    wrong = [key for key, kind in KINDS.items() if not isinstance(saved.get(key), kind)]
    best = saved.get("best")
    if isinstance(best, dict) and not {"step", "loss"} <= set(best):
        wrong.append("best")
    if missing or wrong:
        raise UserError(
            f"state of the run {folder / PROGRESS}: {', '.join(missing or wrong)} missing or of "
            "another kind; start again with --overwrite"
        )
    return saved


@contextmanager
def _readable(folder):
    """A context in which files of a step that do not fit the network raise UserError."""
    try:
        yield
    except (
        OSError,
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{folder} cannot be resumed from ({reason}); start again with --overwrite, or train "
            f"on from its weights: --from_pretrained {folder.parent}"
        ) from None


def _newest_intact(run, processes):
    """The step to resume from, the same for all processes: the first one looks."""
    step = 0
    with processes.together():
        if processes.is_main:
            step = _look_for_intact(run, processes.say)
    return processes.from_main(step)


def _look_for_intact(run, say):
    for step in reversed(run.steps()):
        damaged = run.damage(step)
        if damaged is None:
            return step
        say(f"{run.folder / str(step)} is damaged ({damaged}): going back one step")
    raise UserError(
        f"{run.folder} holds no complete step to resume from; start again with --overwrite"
    )
