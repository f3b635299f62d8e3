"""The rows of a run: which files, what is in them, and what they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from model.errors import UserError
from model.files import PROJECT, sha256
from model.row_store import StoredSamples, is_shards, sample_keys
from model.rows import Sample, load_rows


@dataclass
class Inputs:
    """What a run reads, checked before anything heavy."""

    train_file: Path
    samples: Sequence[Sample]
    valid_samples: list[Sample]
    fingerprints: list[str | None]  # of the rows of both
    notes: list[str]  # what was not read of the files

    @property
    def is_streamed(self):
        return isinstance(self.samples, StoredSamples)

    @cached_property
    def keys(self):
        """Of training and validation samples, see sample_keys."""
        return sample_keys(self.samples), sample_keys(self.valid_samples)

    @property
    def images(self):
        """How many different ones."""
        shown = np.concatenate([keys[:, 0] for keys in self.keys])
        return np.unique(shown[shown != 0]).size


def read_inputs(options):
    """The row files that the options name. Raises UserError."""
    default = PROJECT / "data" / options.dataset / f"{options.dataset}-prompt-train.json"
    train_file = Path(options.train_data or default)
    beside = train_file.with_name(train_file.name.replace("-train", "-val"))
    valid_file = None
    if options.valid_data:
        valid_file = Path(options.valid_data)
    elif beside != train_file and (beside.is_file() or any(beside.parent.glob(beside.name))):
        valid_file = beside
    notes = []
    samples, fingerprint = read_samples(train_file, options, notes, options.stream)
    valid_samples, valid_fingerprint = [], None
    if valid_file:
        try:
            valid_samples, valid_fingerprint = read_samples(valid_file, options, notes)
        except UserError as error:
            if options.valid_data:
                raise
            notes.append(f"no validation by the rows beside --train-data: {error}")
    if isinstance(samples, StoredSamples):
        notes.append(
            "training rows stay on the disk: their images are read and encoded in every step, and "
            "not opened before"
        )
    if options.early_stopping and not valid_samples:
        raise UserError(
            f"--early-stopping {options.early_stopping} needs validation rows: name them with "
            "--valid-data"
        )
    fingerprints = [fingerprint, valid_fingerprint]
    return Inputs(train_file, samples, list(valid_samples), fingerprints, notes)


def read_samples(path, options, notes, stream=False):
    """(the samples of a row file or of shards, hash of the rows). Raises UserError."""
    if stream or is_shards(path):
        samples = StoredSamples(path, options.image_root, notes)
        return samples, samples.fingerprint[:16]
    return load_rows(path, options.image_root, notes=notes), sha256(path)[:16]


def say_overlap(inputs, say):
    """Say how many validation rows also are training rows, which makes their loss too low."""
    keys, valid_keys = inputs.keys
    same = int(np.isin(valid_keys[:, 1], keys[:, 1]).sum())
    shown = keys[keys[:, 0] != 0, 0]
    seen = int(np.isin(valid_keys[:, 0], shown).sum())
    if seen or same:
        say(
            f"warning: of {len(inputs.valid_samples)} validation rows {same} are also training "
            f"rows, and {seen} show a training image: the validation loss is too low by that"
        )
