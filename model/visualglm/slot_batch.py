"""VisualGLM's answers to many people: rows join and leave at any token, within a memory limit.

A row that finds no room, or has to leave because memory runs out, is paused: it is read again,
with what it has generated, when there is room. Its answer goes on as if nothing had happened.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from model.errors import UserError
from model.next_token import make_generators, token_limits
from model.running_batch import Advance, Joined, Question, RunningBatch, weights_for
from model.visualglm.answer_text import AnswerText
from model.visualglm.generate import banned_ids, next_tokens
from model.visualglm.prompt import Rendered
from model.visualglm.slots import Slots

# Steps without running out of memory after which one row more is tried
STEPS_TO_REGROW = 200
# Tokens, padding included, of the rows that are read in one pass: those under way wait for it
READ_AT_ONCE = 1024


@dataclass(eq=False)
class _Row:
    key: int
    question: Question
    prompt: Rendered
    limit: int  # tokens that the answer may have
    text: AnswerText
    generators: list[torch.Generator]  # one
    generated: torch.Tensor  # [1, limit]; the first `count` are there
    count: int = 0

    @property
    def ids(self):
        return [*self.prompt.ids, *self.text.ids]


@dataclass
class _Lane:
    """The rows that use the same weights: those of the slots, in their order."""

    untuned: bool
    slots: Slots
    rows: list[_Row] = field(default_factory=list)


class SlotBatch(RunningBatch):
    """memory: limit of the KV cache in bytes, None: without. Raises UserError if it is too small.

    max_rows: rows that are computed together; fewer for a while where memory runs out.
    """

    def __init__(self, family: Any, max_rows: int, memory: int | None = None):
        self.family = family
        self.max_rows = max_rows
        self.memory = memory
        self._row_limit = max_rows
        self._good_steps = 0
        self._next_key = 0
        self._lanes: dict[bool, _Lane] = {}
        self._paused: list[_Row] = []  # those that were there first come first
        self._is_full = False  # rows found no room at the last step
        self._check_memory()

    def _check_memory(self):
        length = self.family.network.config.max_sequence_length
        least = self._lane(False).slots.bytes_for(1, length)
        if self.memory is not None and self.memory < least:
            raise UserError(
                f"a KV cache of {self.memory / 2**20:.0f} MB: one answer of {length} tokens takes "
                f"{least / 2**20:.0f} MB; allow at least that"
            )

    def _lane(self, untuned):
        if untuned not in self._lanes:
            with weights_for(self.family, untuned):
                self._lanes[untuned] = _Lane(untuned, Slots(self.family.network))
        return self._lanes[untuned]

    @property
    def _active(self):
        return sum(len(lane.rows) for lane in self._lanes.values())

    def __len__(self):
        return self._active + len(self._paused)

    def takes(self, question):
        return not self._is_full and len(self) < self._row_limit

    def add(self, question):
        sampling = question.sampling
        prompt = self.family.render_question(
            question.sample, question.image is not None, sampling, question.english
        )
        context = self.family.network.config.max_sequence_length
        (limit,) = token_limits([prompt.length], sampling, context)
        device = self.family.device
        self._next_key += 1
        row = _Row(
            key=self._next_key,
            question=question,
            prompt=prompt,
            limit=limit,
            text=AnswerText(self.family.tokenizer),
            generators=make_generators(1, device, sampling.seed),
            generated=torch.zeros(1, limit, dtype=torch.long, device=device),
        )
        self._paused.append(row)
        return Joined(row.key, prompt.length, (prompt.dropped, prompt.shortened))

    def remove(self, key):
        self._paused = [row for row in self._paused if row.key != key]
        self._is_full = self._is_full and bool(self._paused)
        for lane in self._lanes.values():
            for index, row in enumerate(lane.rows):
                if row.key == key:
                    self._leave(lane, index)
                    return

    def _leave(self, lane, index):
        lane.slots.leave(index)
        lane.rows[index] = lane.rows[-1]
        lane.rows.pop()

    @torch.inference_mode()
    def step(self):
        """A token of each row, and the first one of rows that were paused."""
        advances = []
        for lane in list(self._lanes.values()):
            with weights_for(self.family, lane.untuned):
                advances += self._step(lane)
        if self._paused:
            with weights_for(self.family, self._paused[0].question.untuned):
                advances += self._resume()
        self._is_full = bool(self._paused)
        self._regrow()
        return advances

    # A token of all rows

    def _step(self, lane):
        self._make_room(lane)
        while lane.rows:
            try:
                logits = lane.slots.step([row.text.ids[-1] for row in lane.rows])
                return self._sample(lane, list(lane.rows), logits)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._row_limit = max(1, self._active - 1)
                self._good_steps = 0
                if self._active == 1:
                    (row,) = lane.rows
                    self.remove(row.key)
                    return [Advance(row.key, error=error)]
            # Beyond the handler: the error holds what its frames held
            self._pause_youngest(lane)
        return []

    def _make_room(self, lane):
        """Pause rows until the cache may grow by a token."""
        while lane.rows and not self._fits(lane, len(lane.rows), max(lane.slots.lengths) + 1):
            self._pause_youngest(lane)

    def _fits(self, lane, rows, length):
        if self.memory is None or rows == self._active == 1:
            return True
        total = lane.slots.bytes_for(rows, length)
        for other in self._lanes.values():
            if other is not lane and other.rows:
                total += other.slots.bytes_for(len(other.rows), max(other.slots.lengths) + 1)
        return total <= self.memory

    def _pause_youngest(self, lane):
        index = max(range(len(lane.rows)), key=lambda index: lane.rows[index].key)
        row = lane.rows[index]
        self._leave(lane, index)
        self._paused.append(row)
        self._paused.sort(key=lambda row: row.key)

    def _regrow(self):
        self._good_steps += 1
        if self._row_limit < self.max_rows and self._good_steps >= STEPS_TO_REGROW:
            self._row_limit += 1
            self._good_steps = 0

    # A row begins, or goes on

    def _resume(self):
        """As many of those that wait as there is room for, of the same weights as the first."""
        lane = self._lane(self._paused[0].question.untuned)
        rows = self._next_rows(lane)
        del self._paused[: len(rows)]
        if not rows:
            return []
        full = [row for row in rows if row.limit == 0]
        advances = [Advance(row.key, tokens=0, ended=True, truncated=True) for row in full]
        rows = [row for row in rows if row.limit]
        return advances + (self._join(lane, rows) if rows else [])

    def _next_rows(self, lane):
        rows = []
        longest, width = max(lane.slots.lengths, default=0), 0
        for row in self._paused:
            if row.question.untuned != lane.untuned:
                break
            width = max(width, len(row.ids))
            longest = max(longest, width)
            count = self._active + len(rows)
            fits = self._fits(lane, len(lane.rows) + len(rows) + 1, longest + 1)
            if count and (count >= self._row_limit or not fits):
                break
            if rows and (len(rows) + 1) * width > READ_AT_ONCE:
                break
            rows.append(row)
        return rows

    def _join(self, lane, rows):
        """Read rows in one pass -> their next tokens; one by one where that fails."""
        others = self._active
        try:
            images = self.family.image_arguments(
                [row.prompt for row in rows], [row.question.image for row in rows]
            )
            prefixes = [row.prompt.prefix for row in rows]
            logits = lane.slots.join([row.ids for row in rows], prefixes, **images)
        except Exception as error:  # noqa: BLE001 -- one person's question ends nobody else's
            if len(rows) == 1:
                return self._not_joined(rows[0], error, others)
        else:
            lane.rows += rows
            return self._sample(lane, rows, logits)
        # Beyond the handler: the error holds what its frames held
        advances = []
        for index, row in enumerate(rows):
            advances += self._join(lane, [row])
            if row in self._paused:
                self._paused[1:1] = rows[index + 1 :]
                break
        return advances

    def _not_joined(self, row, error, others):
        """A row that finds no memory beside others waits for it; any other error ends it."""
        if not others or not is_out_of_memory(error):
            return [Advance(row.key, error=error)]
        self._row_limit, self._good_steps = others, 0
        self._paused.insert(0, row)
        return []

    # What the logits make of the rows

    def _sample(self, lane, rows, logits):
        """The next token of rows of the lane from logits [R, V]; those that end leave it."""
        tokens, failures = [], {}
        for row, row_logits in zip(rows, logits[:, None]):
            try:
                tokens.append(self._next_token(row, row_logits))
            except Exception as error:  # noqa: BLE001 -- logits that are no numbers, for one
                failures[row.key] = error
                tokens.append(torch.zeros(1, dtype=torch.long, device=logits.device))
        advances = []
        for row, token in zip(rows, torch.cat(tokens).tolist()):
            failure = failures.get(row.key)
            advance = Advance(row.key, error=failure) if failure else self._append(row, token)
            if advance.ended or advance.error:
                self.remove(row.key)
            advances.append(advance)
        return advances

    def _next_token(self, row, logits):
        question = row.question
        token = next_tokens(
            logits,
            row.generated[:, : row.count],
            question.sampling,
            row.generators,
            eop=self.family.tokenizer.eop,
            banned=banned_ids(question.english),
        )  # [1]
        row.generated[:, row.count] = token
        return token

    def _append(self, row, token):
        if token == self.family.tokenizer.eop:
            return Advance(row.key, row.text.last_piece(), row.count, ended=True)
        row.count += 1
        row.text.append(token)
        if row.count < row.limit:
            return Advance(row.key, row.text.next_piece(), row.count)
        return Advance(row.key, row.text.last_piece(), row.count, ended=True, truncated=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory, on a device or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
