"""The held-out loss: does it need the right picture?"""

import random

import torch

from model.rows import swap_images
from model.training.dataset import collate
from model.training.sampler import check_batches


class Validation:
    """Held-out rows: their loss per answer token over all processes, with the right picture, a blank one and another one.

    dataset_of: samples -> RowDataset; blank: what stands for a blank picture, pixels or features; most: batches of one process, 0: all.
    """

    def __init__(self, samples, dataset_of, blank, *, batch_size, most, rank, world, workers, seed):
        random.Random(seed).shuffle(
            samples
        )  # row files are ordered by class: the first `most` batches must see all classes
        plan = check_batches(len(samples), batch_size, rank, world)[: most or None]
        self.counted, self.blank = [counted for _, counted in plan], blank
        self.loaders = {
            "real": make_loader(dataset_of(samples), [rows for rows, _ in plan], workers)
        }
        if len({sample.image for sample in samples if sample.image}) > 1:
            self.loaders["swapped"] = make_loader(
                dataset_of(swap_images(samples, seed)), [rows for rows, _ in plan], workers
            )

    def __call__(self, network, device):
        """{"real": loss, "blank": ..., "swapped": ...}; the last two only where there are pictures to compare."""
        losses = {
            name: self._loss(network, loader, device) for name, loader in self.loaders.items()
        }
        if "swapped" in losses:
            losses["blank"] = self._loss(network, self.loaders["real"], device, self.blank)
        return losses

    @torch.no_grad()
    def _loss(self, network, loader, device, blank=None):
        network.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for batch, counted in zip(loader, self.counted):
            batch = to_device(batch, device)
            for kind in {"pixels", "features"} & set(batch) if blank is not None else ():
                batch[kind] = blank.to(batch[kind]).expand_as(batch[kind])
            tokens = batch["targets"].numel() * counted
            total += torch.tensor(
                [network(**batch)[1].item() * tokens, tokens], dtype=torch.float64
            )
        network.train()
        total = total.to(device)
        torch.distributed.all_reduce(total)
        return (total[0] / total[1]).item()


def make_loader(dataset, batches, workers):
    """A RowDataset and the indices of each batch -> what yields the batches, read by so many processes ahead of time."""
    # A generator of its own: drawing from the global one would shift what dropout draws after a resume.
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


def to_device(batch, device):
    return {
        key: value.to(device, non_blocking=True) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }
