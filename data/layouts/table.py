"""CSV or TSV with a column of captions and one of paths or addresses; Parquet is in arrow.py."""

import csv

from data.faults import Fault, got
from data.layouts import arrow
from data.layouts.content import by_image, check_names, checked_columns
from data.layouts.pairs import image_of
from data.records import text_file

SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t|"


def recognises(content):
    return content.path.suffix.lower() in SUFFIXES


def read(content):
    if arrow.recognises(content):
        return arrow.read(content)
    names, records = _csv(content.path)
    check_names(content.path, names)
    image_key, caption_keys = checked_columns(content, names, *content.keys(names))

    def rows():
        for where, record in records():
            if isinstance(record, dict):
                record = image_of(record, image_key, caption_keys)
            yield where, record

    return by_image(rows)


def _csv(path):
    """(names of the columns, a function that yields (where, {column: text}))."""
    with text_file(path) as file:
        header = file.readline()
    delimiter = max(DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])

    def records():
        with text_file(path) as file:
            # strict: a quote that is never closed would hide all lines after it
            rows = csv.DictReader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            while True:
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    row = Fault("not CSV", f": {error}")
                if row is None:
                    return
                yield f"line {rows.line_num}", _row_or_fault(row, names)

    return names, records


def _row_or_fault(row, names):
    if isinstance(row, Fault):
        return row
    if None in row.values() or None in row:
        return got(f"{len(names)} columns", len(_cells(row)))
    zero = next((name for name, cell in row.items() if "\0" in cell), None)
    return got(f"a text in {zero!r}, no zero bytes", row[zero]) if zero else row


def _cells(row):
    surplus = row.get(None, [])
    return [cell for name, cell in row.items() if name is not None and cell is not None] + surplus
