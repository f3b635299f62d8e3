"""Answers to many questions, in batches, each kept in a file as soon as it is there."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import torch

from model.errors import UserError
from model.images import read_image
from model.sampling import Sampling

READERS = 4  # threads that read images


def answer_rows(
    assistant,
    samples,
    file,
    *,
    checkpoint,
    base=False,
    sampling=None,
    english=False,
    bands=None,
    batch_size=16,
    allow_private_hosts=False,
    progress=iter,
):
    """Ask the question of each sample (see rows.py); returns the entries in the samples' order.

    file: an open AnswerFile. What it answers already, asked about the same image with the same
    history, of the same weights and settings, is not asked again. An image that cannot be read
    gives an entry with "error", which a later run asks again.
    checkpoint: the name it goes by in the entries; base: switch the adapter off; bands: see
    read_image; allow_private_hosts: fetch addresses in private networks, too; progress: wraps the
    iterable of batches (tqdm). Raises UserError.
    """
    sampling = sampling or Sampling()
    settings = {
        "checkpoint": str(checkpoint),
        "fingerprint": assistant.fingerprint,
        "english": english,
        "system": "base" if base or assistant.is_base else "tuned",
        "bands": bands,
    } | asdict(sampling)
    answered = {}
    for entry in file.entries:
        if "answer" in entry:
            answered[_key(entry, entry.get("settings"))] = entry

    entries = [_entry_of(sample) for sample in samples]
    keys = [_key(entry, settings) for entry in entries]
    pending = {}
    for key, sample, entry in zip(keys, samples, entries):
        if key not in answered:
            pending.setdefault(key, (sample, entry))

    pairs = list(pending.values())
    starts = range(0, len(pairs), batch_size)
    read = partial(_read, bands=bands, allow_private_hosts=allow_private_hosts)
    with ThreadPoolExecutor(READERS) as pool:
        for start in progress(starts) if starts else ():
            batch = pairs[start : start + batch_size]
            images = list(pool.map(read, (sample for sample, _ in batch)))
            with assistant.untuned() if base else nullcontext():
                _answer(assistant, batch, images, sampling, english)
            for _, entry in batch:
                entry["settings"] = settings
            file.append([entry for _, entry in batch])
    return [answered[key] if key in answered else pending[key][1] for key in keys]


def _key(entry, settings):
    """What makes two answers the same."""
    asked = [entry.get("img"), entry["prompt"], entry.get("history"), settings]
    return json.dumps(asked, sort_keys=True)


def _entry_of(sample):
    entry = {"img": sample.image and str(sample.image), "prompt": sample.question}
    if sample.history:
        entry["history"] = [list(pair) for pair in sample.history]
    if sample.answer:
        entry["label"] = sample.answer
    return entry


def _read(sample, bands, allow_private_hosts):
    """The sample's image, None without one, or the UserError that says what is wrong with it."""
    if not sample.image:
        return None
    try:
        # An address (a str) in a file may be somebody else's choice
        if isinstance(sample.image, str) and not allow_private_hosts:
            return read_image(sample.image, bands, public_only=True)
        return read_image(sample.image, bands)
    except UserError as error:
        return error


def _answer(assistant, batch, images, sampling, english):
    """Put "answer" or "error", and what was "cut", into the entries of (sample, entry) pairs."""
    asked, readable = [], []
    for (sample, entry), image in zip(batch, images):
        if isinstance(image, UserError):
            entry["error"] = str(image)
        else:
            asked.append((sample, entry))
            readable.append(image)
    if not asked:
        return

    def note_cut(index, rounds, tokens):
        asked[index][1]["cut"] = {"rounds": rounds, "tokens": tokens}

    try:
        answers = assistant.answer_batch(
            [sample.question for sample, _ in asked],
            readable,
            sampling,
            english,
            [sample.history for sample, _ in asked],
            note_cut,
        )
    except torch.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for {len(asked)} rows together; lower --batch-size, "
            "the same command continues"
        ) from None
    for (_, entry), answer in zip(asked, answers):
        entry["answer"] = answer
