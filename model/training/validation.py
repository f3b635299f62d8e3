"""Validation loss, and the image ablation: does the network need the right image?"""

import random

import torch

from model.devices import to_device
from model.rows import blank_images, shuffle_images
from model.training.dataset import batches_of, make_loader
from model.training.sampler import validation_batches


class Validation:
    """Loss per answer token over all processes, with the right, blank and shuffled images.

    loaders: name of the images -> loader of the same rows; counted: of each batch, whether its loss
    counts in this process. Made by `make_validation`.
    """

    def __init__(self, family, processes, loaders, counted):
        self.family = family
        self.processes = processes
        self.loaders = loaders
        self.counted = counted

    def __call__(self):
        """{"real": loss, "blank": ..., "shuffled": ...}; only "real" without images to compare."""
        return {name: self._loss(loader) for name, loader in self.loaders.items()}

    @torch.no_grad()
    def _loss(self, loader):
        network = self.family.network
        network.eval()
        total_loss, total_tokens = 0.0, 0
        for batch, counted in zip(batches_of(loader), self.counted):
            batch = to_device(batch, self.processes.device)
            loss = network(**batch)[1].item()
            if counted:
                tokens = self.family.target_tokens(batch)
                total_loss += loss * tokens
                total_tokens += tokens
        network.train()

        total = torch.tensor([total_loss, total_tokens], dtype=torch.float64)
        total = total.to(self.processes.device)
        torch.distributed.all_reduce(total)
        return (total[0] / total[1]).item()


def shuffled_rows(samples, seed):
    """Row files are ordered by class: the first batches of a shuffled copy see all classes."""
    samples = list(samples)
    random.Random(seed).shuffle(samples)
    return samples


def make_validation(dataset, processes, options, workers):
    """The validation of a RowDataset whose samples `shuffled_rows` has ordered."""
    plan = validation_batches(
        len(dataset), options.eval_batch_size, processes.rank, processes.world
    )
    if options.eval_iters:
        plan = plan[: options.eval_iters]
    batches = [rows for rows, _ in plan]

    shown = {"real": dataset.samples}
    if len({sample.image for sample in dataset.samples if sample.image}) > 1:
        shown["blank"] = blank_images(dataset.samples)
        shown["shuffled"] = shuffle_images(dataset.samples, options.seed)
    loaders = {}
    for name, samples in shown.items():
        loaders[name] = make_loader(dataset.with_images(samples), batches, workers)
    counted = [is_counted for _, is_counted in plan]
    return Validation(dataset.family, processes, loaders, counted)
