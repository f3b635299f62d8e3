"""What computes: the process group, AdamW, the learning-rate schedule and DeepSpeed's engine."""

import logging
import math
import os
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from model.errors import UserError
from model.training.slurm import ranks

if not torch.cuda.is_available():
    # Before DeepSpeed's import, or it warns that it guesses
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed  # noqa: E402  (see above)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self):
        return self.rank == 0

    def say(self, *words):
        """Print a line, from the main process alone, without disturbing a progress bar."""
        if self.is_main:
            tqdm.write(" ".join(map(str, words)))

    def any(self, flag):
        """Whether the flag is set in any process."""
        if self.world == 1:
            return bool(flag)
        value = torch.tensor(float(bool(flag)), device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return bool(value.item())

    def sum(self, number):
        """An int, added over all processes."""
        if self.world == 1:
            return number
        value = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(value)
        return int(value.item())

    def from_main(self, number):
        """An int of the main process, in all of them."""
        if self.world == 1:
            return number
        value = torch.tensor(number, device=self.device)
        torch.distributed.broadcast(value, 0)
        return int(value.item())

    @contextmanager
    def together(self):
        """A context that all processes leave well, or none.

        The UserError of the first that has one is raised there; the others end in silence, instead
        of waiting for it. Within the context none may wait for another after an error.
        """
        error = None
        try:
            yield
        except UserError as caught:
            error = caught
        failed = self._first(error is not None)
        if failed == self.rank:
            raise error
        if failed < self.world:
            raise SystemExit(1)

    def sharded(self, work, items):
        """work(items), sharded by rank: what it makes of each item, all of it in every process.

        work: list of items -> list of as many results, which can be pickled. A UserError of one
        process is raised in all of them.
        """
        if self.world == 1:
            return work(items)
        results, error = [], None
        try:
            results = work(items[self.rank :: self.world])
        except UserError as caught:
            error = str(caught)
        shares = [None] * self.world
        torch.distributed.all_gather_object(shares, (results, error))
        for _, error in shares:
            if error is not None:
                raise UserError(error)

        merged = [None] * len(items)
        for rank, (results, _) in enumerate(shares):
            merged[rank :: self.world] = results
        return merged

    def _first(self, flag):
        """The first process whose flag is set; their number where none is."""
        own = self.rank if flag else self.world
        if self.world == 1:
            return own
        value = torch.tensor(own, device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MIN)
        return int(value.item())


def is_first_failure():
    """Whether no process of this run has failed before: what one has said need not be repeated.

    Before the processes know each other: whether this is the first of its machine.
    """
    distributed = torch.distributed
    if not distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    if distributed.get_world_size() == 1:
        return True
    try:
        store = distributed.distributed_c10d._get_default_store()
        return store.add("failed", 1) == 1
    except RuntimeError:  # who kept the store has left
        return False


def leave(reason):
    """sys.exit(reason) where a run has not come to its end.

    Trap: where other processes have gone, torch may abort at Python's end, and then the run seems
    to have been killed.
    """
    distributed = torch.distributed
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        sys.exit(reason)
    is_text = isinstance(reason, str)
    if is_text:
        print(reason, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if is_text else reason or 0)


def start_processes(device):
    """Join the process group that the launcher describes, or make one of this process alone."""
    # It warns of an optimizer class it does not know: ours
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    alone = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port,
    }
    slurm = ranks(os.environ)
    for name, value in (alone | slurm).items():
        os.environ.setdefault(name, str(value))
    if slurm and os.environ["RANK"] == "0":
        tqdm.write(
            "task 0 of {WORLD_SIZE} of a SLURM step, waits for the others at "
            "{MASTER_ADDR}:{MASTER_PORT}".format_map(os.environ)
        )

    # An inference-only op that DeepSpeed would compile with g++ on every CPU machine
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    cuda = device.type == "cuda"
    if cuda:
        # SLURM may show each task its own GPU alone
        index = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


class CheckedAdamW(torch.optim.AdamW):
    """AdamW that never lets a NaN or Inf gradient reach the weights: it skips and counts the step.

    skipped: such steps in all; in_a_row: since the last good one.
    """

    skipped = 0
    in_a_row = 0

    @torch.no_grad()
    def step(self, closure=None):
        if self._is_bad():
            self.skipped += 1
            self.in_a_row += 1
            return None
        self.in_a_row = 0
        return super().step(closure)

    def _is_bad(self):
        """Whether a gradient of any process is NaN or Inf."""
        gradients = []
        for group in self.param_groups:
            gradients += [p.grad for p in group["params"] if p.grad is not None]
        bad = torch.zeros((), device=torch.get_default_device())
        if gradients:
            norms = torch.stack(torch._foreach_norm(gradients))
            bad = (~torch.isfinite(norms).all()).float()
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        return bool(bad.item())


def learning_rate_factor(options, total_steps):
    """step -> share of the highest learning rate: linear warm-up, then the chosen decay to 0."""
    warmup_steps = max(1, round(options.warmup * total_steps))

    def factor(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        left = max(0, total_steps - step) / max(1, total_steps - warmup_steps)
        if options.lr_decay_style == "constant":
            return 1.0
        if options.lr_decay_style == "linear":
            return left
        return 0.5 - 0.5 * math.cos(math.pi * left)

    return factor


def make_engine(options, network, total_steps, dtype):
    """DeepSpeed's engine around the trained parameters -> (engine, CheckedAdamW)."""
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = CheckedAdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_eps,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, learning_rate_factor(options, total_steps)
    )
    config = {
        "train_micro_batch_size_per_gpu": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gradient_clipping": options.clip_grad,
        "fp16": {"enabled": dtype == torch.float16},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": _zero(options, sum(p.numel() for p in trained)),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
    }
    engine, *_ = deepspeed.initialize(
        model=network,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,
        config=config,
    )
    return engine, optimizer


def _zero(options, trained_parameters):
    """DeepSpeed's settings of ZeRO."""
    # Larger buckets only cost memory and zeroing
    size = min(trained_parameters, 500_000_000)
    zero = {
        "stage": options.zero_stage,
        "reduce_bucket_size": size,
        "allgather_bucket_size": size,
    }
    if options.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if options.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return zero


def leave_process_group(family):
    """End torch.distributed; without it some runs of several processes abort at exit."""
    torch.distributed.barrier()
    family.close()
    torch.distributed.destroy_process_group()
