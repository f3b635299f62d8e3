"""Answers to many questions: in batches, each kept in a file as soon as it is there, so that a second run goes on."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from model.errors import UserError
from model.images.reading import read_image
from model.visualglm.generate import Sampling

BEGINNING = b'{"img": '  # of every line


class AnswerFile:
    """JSON lines, appended to: {"img", "prompt", "history", "label", "cut", "answer" or "error", "settings"}.

    "cut" says what the length limit left out: {"rounds": oldest ones of the history, "tokens": of the question's end}.
    A last line torn by a crash is cut off. Raises UserError where the file cannot be written or holds something else.
    """

    def __init__(self, path):
        self.path, self.entries = Path(path), []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab+")
            self._file.seek(0)
            lines = self._file.read().splitlines(keepends=True)
        except OSError as error:
            raise UserError(f"output {path} cannot be written: {error.strerror}") from None
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if (
                isinstance(entry, dict)
                and "prompt" in entry
                and ("answer" in entry or "error" in entry)
            ):
                self.entries.append(entry)
            elif (
                entry is None
                and not line.endswith(b"\n")
                and BEGINNING.startswith(line[: len(BEGINNING)])
            ):
                self._file.truncate(
                    self._file.tell() - len(line)
                )  # torn; only the last line has no end
            else:
                raise UserError(
                    f"output {path}: line {number} is no answer of an earlier run; name another file"
                )
        if self.entries and lines[-1].endswith(b"}"):
            self._file.write(b"\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def append(self, entries):
        try:
            self._file.write(
                "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
            )
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"output {self.path} cannot be written: {error.strerror}; make room, the same command goes "
                "on"
            ) from None
        self.entries += entries


def _key(entry, settings):
    return json.dumps(
        [entry.get("img"), entry["prompt"], entry.get("history"), settings], sort_keys=True
    )


def answer_rows(
    assistant,
    samples,
    file,
    *,
    checkpoint,
    base=False,
    sampling=Sampling(),
    english=False,
    bands=None,
    batch_size=16,
    progress=iter,
):
    """The question of each sample (see rows.py) -> its entry in `file`, an AnswerFile; a list in the samples' order.

    What the file answers already, asked about the same image with the same history, of the same weights and settings, is
    not asked again. A picture that cannot be read gives an entry with "error", which a later run asks again.
    checkpoint: the name it goes by in the entries; base: switch the adapter off; bands: see read_image; progress: wraps the
    iterable of batches (tqdm). Raises UserError.
    """
    settings = {
        "checkpoint": str(checkpoint),
        "fingerprint": assistant.fingerprint,
        "english": english,
        "system": "base" if base or assistant.is_base else "tuned",
        "bands": bands,
    } | asdict(sampling)
    known = {
        _key(entry, entry.get("settings")): entry for entry in file.entries if "answer" in entry
    }
    entries = []
    for sample in samples:
        entries.append({"img": sample.image and str(sample.image), "prompt": sample.question})
        if sample.history:
            entries[-1]["history"] = [list(pair) for pair in sample.history]
        if sample.answer:
            entries[-1]["label"] = sample.answer
    keys = [_key(entry, settings) for entry in entries]
    asked_once = {
        key: pair
        for key, *pair in zip(reversed(keys), reversed(samples), reversed(entries))
        if key not in known
    }
    left = list(asked_once.values())[::-1]

    def read(pair):
        """The picture, None without one, or what is wrong with it."""
        try:
            return pair[0].image and read_image(pair[0].image, bands)
        except UserError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        for start in progress(range(0, len(left), batch_size)) if left else ():
            batch = left[start : start + batch_size]
            asked, images = [], []
            for (sample, entry), image in zip(batch, pool.map(read, batch)):
                if isinstance(image, UserError):
                    entry["error"] = str(image)
                else:
                    asked.append((sample, entry))
                    images.append(image)

            def cut(index, rounds, tokens):
                asked[index][1]["cut"] = {"rounds": rounds, "tokens": tokens}

            try:
                with assistant.untuned() if base else nullcontext():
                    texts = (
                        assistant.answer_batch(
                            [sample.question for sample, _ in asked],
                            images,
                            sampling,
                            english,
                            [sample.history for sample, _ in asked],
                            cut,
                        )
                        if asked
                        else []
                    )
            except torch.OutOfMemoryError:
                raise UserError(
                    f"the GPU has too little memory for {len(asked)} rows together; lower --batch-size, the "
                    "same command goes on"
                ) from None
            for (_, entry), text in zip(asked, texts):
                entry["answer"] = text
            for _, entry in batch:
                entry["settings"] = settings
            file.append([entry for _, entry in batch])
    return [known[key] if key in known else asked_once[key][1] for key in keys]
