"""The training set: samples rendered once, their images read when a row is asked for.

Of a set that stays on the disk, rows are read and rendered where they are used as well.
"""

import random
import re
from functools import cached_property
from itertools import chain

import numpy as np
import torch

from model.errors import UserError
from model.images import augment
from model.row_store import sample_keys
from model.rows import load_image
from model.training.signals import ignore_signals

# Words of rows whose images must not be rotated; an English word by its beginning
DIRECTION = re.compile(
    r"[左右南北横竖斜]|东(?!西)|(?<!东)西|对角|水平|[上下顶底][方部侧边端半角]|"
    r"(?<![a-z])(?:left|right|north|south|east|west|top|bottom|upper|lower|diagonal|horizontal|"
    r"vertical)",
    re.I,
)
# Words of rows whose images must keep their hues
COLOR = re.compile(
    r"[红橙黄绿青蓝紫粉棕褐灰黑白金银]|色|"
    r"(?<![a-z])(?:red|orange|yellow|green|blue|purple|violet|pink|brown|beige|tan(?![a-z])|gold|"
    r"silver|gr[ae]y|black|whit|cyan|turquoise|colou?r)",
    re.I,
)

SAMPLED = 256  # rows of a streamed set by which the tokens of the others are estimated


class RowDataset(torch.utils.data.Dataset):
    """Samples -> training items of a family; made by `rendered_dataset`.

    rows: the rendered samples; cache: a filled FeatureCache in place of the images; augmentation:
    (seed, least share of each side) of random changes, see images/augment.py; None: no changes.
    Index i + n * len(dataset) is row i in epoch n: augmentation is resampled every epoch, and a
    resumed epoch sees the same. Rows that name a direction are not rotated, those that name colors
    keep their hues.
    lengths: tokens of each row; mean_targets: trained tokens of a row; has_image: of each row;
    cut: what a limit shortened of the rows, in words, or "".
    """

    def __init__(self, family, samples, rows, cache=None, augmentation=None):
        self.family = family
        self.samples = samples
        self.rows = rows
        self.cache = cache
        self.augmentation = augmentation
        self.lengths = np.array([row.length for row in rows])
        self.mean_targets = float(np.mean([row.target_tokens for row in rows]))
        cut = sum(row.cut for row in rows)
        self.cut = f"{cut} rows" if cut else ""

    @cached_property
    def has_image(self):
        return sample_keys(self.samples)[:, 0] != 0

    def with_images(self, samples):
        """The same rows with the images of other samples, for the image ablation."""
        return RowDataset(self.family, samples, self.rows, self.cache, self.augmentation)

    def __len__(self):
        return len(self.samples)

    def _rendered(self, index):
        return self.samples[index], self.rows[index]

    def __getitem__(self, index):
        sample, row = self._rendered(index % len(self))
        if not sample.image:
            return self.family.encode(row, None)
        if self.cache:
            return self.family.encode_features(row, self.cache.read(sample.image))
        image = load_image(sample.image)
        if self.augmentation:
            image = self._augmented(image, sample, index)
        return self.family.encode(row, image)

    def _augmented(self, image, sample, index):
        seed, least_share = self.augmentation
        text = "\n".join(chain(*sample.history, (sample.question, sample.answer)))
        return augment(
            image,
            random.Random(f"{seed} {index}"),
            least_share,
            rotate=not DIRECTION.search(text),
            color_jitter=not COLOR.search(text),
        )


class StreamedDataset(RowDataset):
    """The same of model.row_store.StoredSamples, each row rendered where it is used.

    lengths are estimated from the characters, by rows that are drawn and rendered.
    """

    def __init__(self, family, samples, limits, augmentation=None):
        drawn = random.Random(0).sample(range(len(samples)), min(len(samples), SAMPLED))
        rows = [family.render(samples[index], limits) for index in drawn]
        super().__init__(family, [samples[index] for index in drawn], rows, None, augmentation)
        if self.cut:
            self.cut = f"{self.cut} of {len(rows)} that were drawn"
        self.limits = limits
        self.samples, self.rows = samples, None
        self.lengths = self._estimated(drawn, self.lengths)

    def _estimated(self, drawn, tokens):
        """[N] tokens: linear in the characters of a row and in whether it has an image."""
        facts = np.stack([np.ones(len(self)), self.samples.characters, self.has_image], axis=1)
        weights = np.linalg.lstsq(facts[drawn], tokens, rcond=None)[0]
        return np.maximum(1, facts @ weights).astype(np.int32)

    def _rendered(self, index):
        sample = self.samples[index]
        return sample, self.family.render(sample, self.limits)


def rendered_dataset(family, samples, limits, cache=None, augmentation=None, sharded=None):
    """Render samples once -> RowDataset. Raises UserError.

    limits: family.Limits; sharded: that of engine.Processes, None: this process renders all.
    """

    def render(share):
        return [family.render(sample, limits) for sample in share]

    rows = sharded(render, samples) if sharded else render(samples)
    return RowDataset(family, samples, rows, cache, augmentation)


def make_loader(dataset, batches, workers):
    """What yields the collated batches whose indices `batches` lists.

    workers: processes that read ahead; 0: this one reads.
    """
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dataset.family.collate,
        persistent_workers=workers > 0,
        # A forked worker shares the network's memory, another would get a copy of it
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_start_worker if workers else None,
        # A generator of its own: drawing from the global one would shift what dropout draws after
        # a resume
        generator=torch.Generator(),
    )


def batches_of(loader):
    """The batches of a loader; a UserError of its workers arrives as they raised it."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError as error:
            # That of a worker comes with its traceback before it
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        yield batch


def _start_worker(number):
    # Ctrl-C and the like reach every process of a terminal or job: the trainer decides
    ignore_signals()
