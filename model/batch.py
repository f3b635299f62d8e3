"""Answers to many questions, in batches, each kept in a file as soon as it is there."""

import json
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial

from model.errors import NoAnswerError, UserError
from model.images import PRIVATE, ImageError, read_image
from model.sampling import Sampling

READERS = 4  # threads that read images
# What an entry has beside its question
RESULT_KEYS = ("cut", "truncated", "answer", "error", "refused", "settings")


def answer_rows(
    assistant,
    samples,
    file,
    *,
    checkpoint,
    base=False,
    sampling=None,
    english=None,
    bands=None,
    batch_size=16,
    allow_private_hosts=False,
    progress=iter,
):
    """Ask the question of each sample (see rows.py); returns the entries in the samples' order.

    file: an open AnswerFile. What it answers already, asked about the same image with the same
    history, of the same weights and settings, is not asked again; rows that ask the same are asked
    once, and those with a label have a line for each label. An image that cannot be read, or to
    which a server has no answer, gives an entry with "error", which a later run asks again.
    checkpoint: the name it goes by in the entries; base: switch the adapter off; english: None for
    the language it was trained in; bands: see read_image; batch_size: rows computed together, of a
    server questions under way; allow_private_hosts: fetch addresses in private networks, too;
    progress: wraps the iterable of batches (tqdm). Raises UserError.
    """
    sampling = sampling or Sampling()
    english = assistant.english if english is None else english
    settings = {
        "checkpoint": str(checkpoint),
        "fingerprint": assistant.fingerprint,
        "english": english,
        "system": "base" if base or assistant.is_base else "tuned",
        "bands": bands,
    } | asdict(sampling)
    lines = _Lines(file)
    entries = []
    known = []
    pending = {}
    for sample in samples:
        entry = _entry_of(sample)
        entries.append(entry)
        key = _key(entry, settings)
        if key in lines.answered:
            _copy_result(lines.answered[key], entry)
            known.append((key, entry))
        else:
            pending.setdefault(key, []).append((sample, entry))
    lines.append(known)

    groups = list(pending.items())
    size, at_a_time = (1, batch_size) if assistant.is_remote else (batch_size, 1)
    batches = [groups[start : start + size] for start in range(0, len(groups), size)]
    read = partial(_read, bands=bands, allow_private_hosts=allow_private_hosts)
    with ThreadPoolExecutor(READERS) as readers, assistant.untuned() if base else nullcontext():

        def answer(batch):
            asked = [group[0] for _, group in batch]
            images = list(readers.map(read, (sample for sample, _ in asked)))
            _answer(assistant, asked, images, sampling, english)

        answered = _as_completed(answer, batches, at_a_time)
        for _, batch in zip(progress(batches) if batches else (), answered):
            for key, group in batch:
                first = group[0][1]
                first["settings"] = settings
                for _, other in group[1:]:
                    _copy_result(first, other)
                lines.append((key, entry) for _, entry in group)
    return entries


def _as_completed(work, items, at_a_time):
    """Work on so many items at a time; yields each one as soon as it is done.

    A UserError of one is raised when those under way are done as well: they may be paid for.
    """
    if at_a_time == 1:
        for item in items:
            work(item)
            yield item
        return

    pool = ThreadPoolExecutor(at_a_time)
    begun = {pool.submit(work, item): item for item in items}
    problem = None
    try:
        for future in as_completed(begun):
            if future.cancelled():
                continue
            try:
                future.result()
            except UserError as error:
                problem = problem or error
                for other in begun:
                    other.cancel()
                continue
            yield begun[future]
    finally:
        # Whoever is interrupted does not wait for answers
        pool.shutdown(wait=False, cancel_futures=True)
    if problem:
        raise problem


@contextmanager
def enough_memory(count):
    """A context that answers `count` rows; a GPU too small for them becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        # By its name: a server's answers need no torch
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise UserError(
            f"the GPU has too little memory for {count} rows together; lower --batch-size, "
            "the same command continues"
        ) from None


class _Lines:
    """The lines of an AnswerFile by what they answer: one for each label, or one without.

    answered: key -> an entry with its answer.
    """

    def __init__(self, file):
        self.file = file
        self.answered = {}
        self._labels = {}
        for entry in file.entries:
            if isinstance(entry.get("answer"), str):
                key = _key(entry, entry.get("settings"))
                self.answered[key] = entry
                self._labels.setdefault(key, set()).add(entry.get("label"))

    def append(self, pairs):
        """Write the entries of (key, entry) pairs that have no line yet."""
        new = []
        for key, entry in pairs:
            labels = self._labels.setdefault(key, set())
            label = entry.get("label")
            if label in labels or (label is None and labels):
                continue
            labels.add(label)
            new.append(entry)
        if new:
            self.file.append(new)


def _copy_result(source, target):
    for key in RESULT_KEYS:
        if key in source:
            target[key] = source[key]


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
    except ImageError as error:
        if error.kind == PRIVATE:
            return UserError(f"{error} (for a file that you trust: --allow-private-hosts)")
        return error
    except UserError as error:
        return error


def _answer(assistant, batch, images, sampling, english):
    """Put "answer" or "error", "cut" and "truncated" into the entries of (sample, entry) pairs."""
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

    def note_truncated(index):
        asked[index][1]["truncated"] = True

    try:
        with enough_memory(len(asked)):
            answers = assistant.answer_batch(
                [sample.question for sample, _ in asked],
                readable,
                sampling,
                english,
                [sample.history for sample, _ in asked],
                note_cut,
                note_truncated,
            )
    except NoAnswerError as error:
        for _, entry in asked:
            entry["error"] = str(error)
            if error.is_refused:
                entry["refused"] = True
        return
    for (_, entry), answer in zip(asked, answers):
        entry["answer"] = answer
