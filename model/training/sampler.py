"""Which rows each process reads in each step."""

import random

BUCKET = 8  # tokens by which lengths in one bucket may differ


def plan_epoch(lengths, size, seed, epoch, pool=8):
    """Rows of every optimizer step of an epoch: lists of `size` indices, bucketed by length.

    A function of its arguments alone, so that any number of processes and a resumed run take the
    same steps. Within `pool` steps' worth of shuffled rows, those of similar length stand together;
    the steps come in random order. Similar is what shares a bucket: sorted exactly, a step of short
    answers would hold few different ones. Every row comes once; the last step is filled up from the
    epoch's first rows.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order += [order[i % len(order)] for i in range(-len(order) % size)]
    steps = []
    for start in range(0, len(order), size * pool):
        rows = sorted(order[start : start + size * pool], key=lambda row: lengths[row] // BUCKET)
        steps += [rows[i : i + size] for i in range(0, len(rows), size)]
    rng.shuffle(steps)
    return steps


class DistributedBatchSampler:
    """The micro-batches of one process, sharded by rank from the planned steps of an epoch.

    plan: epoch -> steps (see plan_epoch); rows: how many the data set has; indices continue
    through the epochs (see RowDataset). epoch, start: from which step of which epoch on.
    """

    def __init__(self, plan, rows, batch_size, accumulation_steps, rank, world):
        self.plan = plan
        self.rows = rows
        self.batch_size = batch_size
        self.accumulation_steps = accumulation_steps
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.start = 0

    def __iter__(self):
        offset = self.epoch * self.rows
        for step in self.plan(self.epoch)[self.start :]:
            for part in range(self.accumulation_steps):
                first = (part * self.world + self.rank) * self.batch_size
                yield [row + offset for row in step[first : first + self.batch_size]]


def validation_batches(rows, batch_size, rank, world):
    """Batches of one process: (indices, counted).

    Each process gets as many, since they compute together; surplus ones are not counted.
    """
    batches = []
    for start in range(0, rows, batch_size):
        batches.append(list(range(start, min(start + batch_size, rows))))
    own = [(batch, True) for batch in batches[rank::world]]
    most = -(-len(batches) // world)
    return own + [(batches[0], False)] * (most - len(own))
