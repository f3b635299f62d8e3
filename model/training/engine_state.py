"""The state of DeepSpeed's engine in files that hold numbers only: safetensors, with JSON in it.

DeepSpeed's own checkpoints are pickles, and reading one runs whatever code it names. Here a tree of
dicts and lists, as optimizers describe themselves, becomes the tensors of a safetensors file and a
JSON text in its header, in which {"tensor": name} takes the place of each.
"""

import json
from contextlib import contextmanager

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScalerBase
from safetensors import safe_open
from safetensors.torch import save_file

from model.files import parse_json

TRAINED = "trained.safetensors"  # the trained parameters in the network's dtype
# Only DeepSpeed's universal checkpoints need it, and it names classes
LEFT_OUT = "param_slice_mappings"
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


def optimizer_file(rank):
    return f"optimizer-{rank}.safetensors"


def save_engine(engine, folder, rank):
    """Write this process's share of the state into the folder. Raises OSError, SafetensorError.

    Without ZeRO that is everything in the first process, nothing in the others.
    """
    if rank and not engine.zero_optimization():
        return
    with _partitioned(engine):
        write_tree(folder / optimizer_file(rank), _engine_tree(engine))
    # With stage 3 they are made of the optimizer's float32 copies
    if rank == 0 and engine.zero_optimization_stage() < 3:
        trained = {name: _stored(tensor) for name, tensor in _trained(engine.module).items()}
        save_file(trained, folder / TRAINED)


def _engine_tree(engine):
    optimizer = engine.optimizer.state_dict()
    optimizer.pop(LEFT_OUT, None)
    return {
        "optimizer": optimizer,
        "schedule": engine.lr_scheduler.state_dict(),
        "counters": {name: getattr(engine, name) for name in COUNTERS},
    }


def _trained(network):
    """Trained parameters and buffers by name."""
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name not in frozen}


def read_engine(engine, folder, rank):
    """What `save_engine` wrote for this process -> (tree, trained tensors by name).

    Raises OSError, SafetensorError, ValueError, KeyError, TypeError.
    """
    stage = engine.zero_optimization_stage()
    tree = read_tree(folder / optimizer_file(rank if stage else 0))
    return tree, read_tensors(folder / TRAINED) if stage < 3 else {}


def restore_engine(engine, state, rank, world):
    """Put the engine where `save_engine` left it. state: of `read_engine`.

    Raises LookupError, RuntimeError, TypeError, ValueError where it does not fit the engine.
    """
    tree, trained = state
    engine.module.load_state_dict(trained, strict=False)
    optimizer = tree["optimizer"]
    with _partitioned(engine):
        if engine.zero_optimization():
            _restore_scaler(engine.optimizer, optimizer)
            states = [None] * world
            states[rank] = optimizer
            engine.optimizer.load_state_dict(states, load_from_fp32_weights=True)
        else:
            engine.optimizer.load_state_dict(optimizer)
    engine.lr_scheduler.load_state_dict(tree["schedule"])
    for name in COUNTERS:
        setattr(engine, name, tree["counters"][name])


def follow_schedule(engine, step):
    """The learning rate that the engine's own schedule, not a restored one, has at a step."""
    schedule = engine.lr_scheduler
    groups = schedule.optimizer.param_groups
    for group, highest, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = highest * factor(step)
    schedule._last_lr = [group["lr"] for group in groups]


@contextmanager
def _partitioned(engine):
    """A context in which no weight that stage 3 partitions is gathered."""
    is_partitioned = engine.zero_optimization_stage() == 3
    if is_partitioned:
        engine.optimizer.checkpoint_event_prologue()
    yield
    if is_partitioned:
        engine.optimizer.checkpoint_event_epilogue()


def _restore_scaler(optimizer, saved):
    """ZeRO's optimizers take the loss scaler itself: theirs, with the saved numbers."""
    scaler = optimizer.loss_scaler
    vars(scaler).update(saved["loss_scaler"])
    saved["loss_scaler"] = scaler


def write_tree(path, tree):
    """A tree of dicts, lists, numbers, texts and tensors -> a safetensors file."""
    tensors = {}
    text = json.dumps(_packed(tree, "", tensors))
    save_file(tensors, path, metadata={"tree": text})


def read_tree(path):
    """What `write_tree` wrote. Raises OSError, SafetensorError, ValueError, KeyError, TypeError."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {})["tree"]
    return _unpacked(parse_json(text), read_tensors(path))


def read_tensors(path):
    """name -> tensor, in memory of its own: what is memory-mapped changes with its file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}


def _stored(tensor):
    return tensor.detach().cpu().contiguous()


def _packed(value, name, tensors):
    if torch.is_tensor(value):
        tensors[name] = _stored(value)
        return {"tensor": name}
    if isinstance(value, LossScalerBase):
        numbers = {key: v for key, v in vars(value).items() if isinstance(v, (int, float))}
        return _packed(numbers, name, tensors)
    if isinstance(value, dict):
        return {key: _packed(v, f"{name}.{key}", tensors) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(v, f"{name}.{index}", tensors) for index, v in enumerate(value)]
    return value


def _unpacked(value, tensors):
    if isinstance(value, list):
        return [_unpacked(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"tensor"}:
        return tensors[value["tensor"]]
    # Optimizers number their parameters, JSON's keys are texts
    return {int(key) if key.isdigit() else key: _unpacked(v, tensors) for key, v in value.items()}
