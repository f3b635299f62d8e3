"""The files of rows that generate_prompt.py writes: one of all rows and one for each split."""

from collections import Counter
from contextlib import ExitStack, contextmanager

from data import exports, toolkits
from data.records import record_writer

# endings of files that are not as the output is by default
SUFFIXES = {"ms-swift": ".jsonl", **toolkits.SUFFIXES}


def part_of(output, part):
    """rows.json, "val" -> rows-val.json; None: the file of all rows."""
    if part is None:
        return output
    return output.with_name(f"{output.stem}-{part}{output.suffix}")


class RowFiles(ExitStack):
    """A context; all files or none appear at its end. written: {split, None for all: rows}.

    form: of exports.FORMATS or toolkits.SUFFIXES.
    """

    def __init__(self, output, form):
        super().__init__()
        self.output, self.form = output, form
        self.written = Counter()
        self.writers = {}

    def add(self, split, img, file, rounds):
        """A row: img as it names its image, file: where that is, for forms that hold images."""
        parts = [None]
        # a folder of datasets has its splits in it
        if split and self.form != "hf":
            parts.append(split)
        for part in parts:
            if part not in self.writers:
                opened = self._opened(part_of(self.output, part))
                self.writers[part] = self.enter_context(opened)
            self.writers[part](img, file, rounds, split)
            self.written[part] += 1

    def _opened(self, path):
        if self.form in toolkits.WRITERS:
            return toolkits.WRITERS[self.form](path)
        return _rows(path, self.form)


@contextmanager
def _rows(path, form):
    with record_writer(path) as write:

        def write_row(img, file, rounds, split):
            write(exports.row(form, img, rounds))

        yield write_row
