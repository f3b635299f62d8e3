"""Saving a step with all that an exact resume needs, and resuming from it.

A step's folder holds the adapter or full checkpoint and state/: optimizer, schedule, loss scaler
(DeepSpeed's files), random state of each process, and progress.json.
"""

import json
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch

from model.errors import UserError
from model.training.options import from_saved

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


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    best: dict[str, Any] | None = None  # {"step", "loss"} of the lowest validation loss
    waited: int = 0  # validations in a row without a lower one


def check_resumable(before, now, world, parts):
    """UserError that names what differs between the saved run and this one.

    before, now: what progress.json holds of them; parts: those of the network's family.
    """
    was = from_saved(before["options"], parts)
    new = from_saved(now["options"], parts)
    changed = []
    for name in FIXED:
        if getattr(was, name) != getattr(new, name):
            changed.append(f"--{name} {getattr(was, name)} -> {getattr(new, name)}")
    for key, name in COMPARED.items():
        if before[key] != now[key]:
            changed.append(f"{name} {before[key]} -> {now[key]}")
    if before["base"] != now["base"]:
        changed.append(f"base {before['base']} -> {now['base']} (fingerprint)")
    if changed:
        raise UserError(
            f"--resume cannot continue with other settings: {'; '.join(changed)}; name another "
            "--experiment-name for a new run"
        )

    other_stage = was.zero_stage != new.zero_stage
    other_world = before["world"] != world and was.zero_stage
    if other_stage or other_world:
        raise UserError(
            f"--resume: the run was saved by {before['world']} process(es) with --zero-stage "
            f"{was.zero_stage}; only stage 0 can continue with another number (now {world}, stage "
            f"{new.zero_stage})"
        )


def save_step(run, family, engine, processes, card, state, progress):
    """Write a step's folder and publish it. card, state: of the run; progress: where it stands."""
    step = progress.step
    folder = run.scratch(step)
    saved = _saved_parameters(family, card)
    partitioned = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(saved, enabled=partitioned):
        if processes.is_main:
            family.save(folder, card | {"step": step})
    torch.distributed.barrier()

    engine.save_checkpoint(
        str(folder / "state"),
        tag="engine",
        client_state={},
        save_latest=False,
        exclude_frozen_parameters=True,
    )
    random_state = {"cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        random_state["cuda"] = torch.cuda.get_rng_state()
    torch.save(random_state, folder / "state" / f"random-{processes.rank}.pt")
    torch.distributed.barrier()

    if processes.is_main:
        saved = state | vars(progress)
        (folder / "state" / "progress.json").write_text(json.dumps(saved))
        run.publish(step)
    torch.distributed.barrier()


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
    folder = run.folder / str(step) / "state"
    saved = json.loads((folder / "progress.json").read_text())
    check_resumable(saved, state, processes.world, family.parts)
    engine.load_checkpoint(str(folder), tag="engine", load_module_strict=False)

    # A process that the saved run did not have takes the first one's state
    rank = processes.rank if processes.rank < saved["world"] else 0
    random_state = torch.load(folder / f"random-{rank}.pt", weights_only=True)
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_state["cuda"])
    processes.say(f"resumed at step {step}")
    return Progress(step, saved["best"], saved["waited"])


def _newest_intact(run, processes):
    for step in reversed(run.steps()):
        damaged = run.damage(step)
        if damaged is None:
            return step
        place = run.folder / str(step)
        processes.say(f"{place} is damaged ({damaged}): going back one step")
    raise UserError(
        f"{run.folder} holds no complete step to resume from; start again with --overwrite"
    )
