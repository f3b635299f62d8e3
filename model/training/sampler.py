"""Which rows each process reads at each step."""

import random

ALIKE = 8  # tokens


def plan_epoch(lengths, size, seed, epoch, pool=8):
    """Rows of every optimizer step of an epoch: lists of `size` indices.

    A function of its arguments alone, so that any number of processes and a resumed run take the same steps. Rows of alike
    length stand together (sorted within `pool` steps' worth of shuffled rows), steps in random order. Alike is what differs by
    less than ALIKE tokens: sorted exactly, a step of short answers would hold few different ones. Every row comes once; the last
    step is filled up from the epoch's first rows.
    """
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order += [order[i % len(order)] for i in range(-len(order) % size)]
    steps = []
    for start in range(0, len(order), size * pool):
        alike = sorted(order[start : start + size * pool], key=lambda i: lengths[i] // ALIKE)
        steps += [alike[i : i + size] for i in range(0, len(alike), size)]
    rng.shuffle(steps)
    return steps


class Batches:
    """Sampler of one process's batches: from each planned step its share, `parts` of them, from step `start` of an epoch on.

    plan: epoch -> steps (see plan_epoch) of `count` rows; indices count on through the epochs (see RowDataset).
    """

    def __init__(self, plan, count, batch_size, parts, rank, world):
        self.plan, self.count, self.batch_size, self.parts, self.rank, self.world = (
            plan,
            count,
            batch_size,
            parts,
            rank,
            world,
        )
        self.epoch, self.start = 0, 0

    def __iter__(self):
        for rows in self.plan(self.epoch)[self.start :]:
            for part in range(self.parts):
                first = (part * self.world + self.rank) * self.batch_size
                yield [
                    row + self.epoch * self.count for row in rows[first : first + self.batch_size]
                ]


def check_batches(count, batch_size, rank, world):
    """Batches of held-out rows for one process: (rows, counted); as many for each process, the surplus ones not counted."""
    batches = [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]
    own = batches[rank::world]
    return [(rows, True) for rows in own] + [(batches[0], False)] * (
        -(-len(batches) // world) - len(own)
    )
