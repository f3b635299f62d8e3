"""The training loop."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from model.devices import to_device
from model.errors import UserError
from model.family import Family
from model.training.dataset import RowDataset, batches_of
from model.training.engine import CheckedAdamW, Processes
from model.training.log import Log, Meter, memory_gb
from model.training.options import Options
from model.training.resume import Progress, save_step, step_bytes
from model.training.run_folder import RunFolder
from model.training.sampler import DistributedBatchSampler
from model.training.signals import NotedSignals
from model.training.validation import Validation

MAX_BAD_STEPS = 10  # in a row with NaN or Inf gradients before a run is given up


@dataclass(frozen=True)
class Plan:
    """rows_per_step: the global batch size of one optimizer step."""

    rows_per_step: int
    steps_per_epoch: int
    total_steps: int


@dataclass
class Trainer:
    """One run from where it stands to its last step.

    sampler, loader: of this process's micro-batches of the dataset; validation: None without
    validation rows; log: None but in the main process; card, state: what is saved with each step;
    start_time: of the process, on the clock of time.perf_counter.
    """

    options: Options
    family: Family
    processes: Processes
    run: RunFolder
    plan: Plan
    dataset: RowDataset
    sampler: DistributedBatchSampler
    loader: torch.utils.data.DataLoader
    validation: Validation | None
    engine: Any  # DeepSpeed's
    optimizer: CheckedAdamW
    log: Log | None
    card: dict[str, Any]
    state: dict[str, Any]
    progress: Progress
    start_time: float
    meter: Meter = field(default_factory=Meter)
    signals: list[int] = field(default_factory=list)  # received by this process
    is_stopping: bool = False  # a process received one: the step under way is finished first
    resumed_step: int = 0
    saved_step: int = 0
    effect: float | None = None  # of the adapter at the saved step, see Family.effect

    @property
    def eval_interval(self):
        return self.options.eval_interval or self.plan.steps_per_epoch

    @property
    def save_interval(self):
        return self.options.save_interval or self.eval_interval

    @property
    def stopped_early(self):
        patience = self.options.early_stopping
        return bool(patience) and self.progress.waited >= patience

    @property
    def is_finished(self):
        return self.progress.step >= self.plan.total_steps or self.stopped_early

    def fit(self):
        """Train to the end, to an early stop, or to a signal. Raises UserError."""
        if self.validation and self.progress.step == 0:
            self.validate()
        self.family.network.train()
        self.meter.restart()
        with NotedSignals(self.signals), self._progress_bar() as bar:
            while not self.is_finished and not self.is_stopping:
                self._fit_epoch(bar)

    def _fit_epoch(self, bar):
        epoch, start = divmod(self.progress.step, self.plan.steps_per_epoch)
        self.sampler.epoch = epoch
        self.sampler.start = start
        batches = batches_of(self.loader)
        for rows in self.sampler.plan(epoch)[start:]:
            micro_batches = self._read(batches)
            learning_rate = self.train_step(rows, micro_batches)
            bar.update()
            step = self.progress.step
            self._check_gradients()
            if step % self.options.log_interval == 0 or step == self.plan.total_steps:
                self._report(learning_rate, bar)

            self.is_stopping = self.processes.any(self.signals)
            is_last = step == self.plan.total_steps
            if self.validation and (is_last or step % self.eval_interval == 0):
                self.validate()
            is_over = self.is_finished or self.is_stopping
            if is_over or step % self.save_interval == 0:
                self.save()
            if is_over:
                return

    def _read(self, batches):
        """The micro-batches of a step. UserError in one process where any cannot read its own."""
        with self.processes.together():
            return [next(batches) for _ in range(self.options.gradient_accumulation_steps)]

    def train_step(self, rows, micro_batches):
        """One optimizer step on the planned rows of all processes -> its learning rate."""
        target_tokens = [self.family.target_tokens(batch) for batch in micro_batches]
        total_target_tokens = self.processes.sum(sum(target_tokens))
        accumulation_steps = len(micro_batches)
        for batch, tokens in zip(micro_batches, target_tokens):
            batch = to_device(batch, self.processes.device)
            loss = self.engine(**batch)[1]
            # The mean over the target tokens of the whole step; DeepSpeed would average the means
            # of micro-batches and processes
            share = tokens / total_target_tokens
            self.engine.backward(loss * share * self.processes.world * accumulation_steps)
            learning_rate = self.engine.get_lr()[0]  # of this step, which the next line ends
            self.engine.step()
            self.meter.add_loss(loss.detach() * share)

        self.progress.step += 1
        images = int(self.dataset.has_image[rows].sum())
        self.meter.add_step(images, int(self.dataset.lengths[rows].sum()))
        return learning_rate

    def validate(self):
        """Measure, print and log the validation loss, and whether it is the lowest so far."""
        losses = self.validation()
        step = self.progress.step
        line = f"step {step}: validation loss {losses['real']:.4f}"
        for name in ("blank", "shuffled"):
            if name in losses:
                line += f", with {name} images {losses[name]:.4f}"
        self.processes.say(line)

        best = self.progress.best
        # A first loss of NaN is never the best: nothing would be below it
        if best is None or not best["loss"] <= losses["real"]:
            self.progress.best = {"step": step, "loss": losses["real"]}
            self.progress.waited = 0
        else:
            self.progress.waited += 1
        if self.log:
            self.log.note(step, valid=losses)
            self.log.draw()
        self.meter.restart()

    def save(self):
        """Save the step under way, and remove what need not be kept. Raises UserError."""
        with self.processes.together():
            self.run.check_space(step_bytes(self.family, self.card))
        state = self.state | {"skipped": self.optimizer.skipped}
        self.effect = self.family.effect(self.card["prompt"])
        if self.effect is not None:
            self.card["effect"] = self.effect
        save_step(
            self.run, self.family, self.engine, self.processes, self.card, state, self.progress
        )
        step, best = self.progress.step, self.progress.best
        if self.processes.is_main:
            self.run.drop(set(self.run.replaced()) - {step})
            self.run.replace([])
            self.log.draw()
            if best and best["step"] == step:
                self.run.point("best", step)
            if self.options.keep:
                self.run.keep(self.options.keep, step, best and best["step"])
            self.processes.say(f"saved {self.run.folder / str(step)}")
        self.saved_step = step
        self.meter.restart()

    def _check_gradients(self):
        if self.optimizer.in_a_row < MAX_BAD_STEPS:
            return
        raise UserError(
            f"the gradient was NaN or Inf in {MAX_BAD_STEPS} steps in a row, up to step "
            f"{self.progress.step}: none of them reached the weights; lower --lr (now "
            f"{self.options.lr:g}), set --clip-grad, or train in --dtype float32 or bfloat16"
        )

    def _report(self, learning_rate, bar):
        step = self.progress.step
        metrics = self.meter.read() | {
            "lr": learning_rate,
            "epoch": round(step / self.plan.steps_per_epoch, 3),
            "memory_gb": round(memory_gb(self.processes.device), 2),
            "seconds": round(time.perf_counter() - self.start_time, 2),
            "skipped": self.optimizer.skipped,
        }
        bar.set_postfix_str(
            "loss {loss:.3f}, lr {lr:.2e}, {images_per_s:.1f} images/s, "
            "{tokens_per_s:.0f} tokens/s, {memory_gb:.1f} GB".format(**metrics)
        )
        if self.log:
            self.log.note(step, **metrics)

    def _progress_bar(self):
        return tqdm(
            total=self.plan.total_steps,
            initial=self.progress.step,
            disable=not self.processes.is_main,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 30,
        )
