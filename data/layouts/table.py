"""CSV, TSV or Parquet with a column of captions and one of paths or addresses."""

import csv
from collections import Counter

from data.faults import Fault, got
from data.layouts.content import by_image
from data.layouts.pairs import image_of
from data.records import text_file
from model.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t|"
# rows of a Parquet file held at a time
BATCH = 1024


def recognises(content):
    return content.path.suffix.lower() in SUFFIXES


def read(content):
    is_parquet = content.path.suffix.lower() == ".parquet"
    names, records = (_parquet if is_parquet else _csv)(content.path)
    if not any(name.strip() for name in names):
        raise UserError(
            f"{content.path} has no columns: it is empty, or its first line is, where their names "
            "stand"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{content.path}: columns of the same name, rename one: {', '.join(twice)}")
    image_key, caption_keys = checked_columns(content, names, *content.keys(names))
    columns = [image_key, *caption_keys]
    if "split" in names:
        columns.append("split")

    def rows():
        for where, record in records(columns):
            if isinstance(record, dict):
                record = image_of(record, image_key, caption_keys)
            yield where, record

    return by_image(rows)


def checked_columns(content, names, image_key, caption_keys):
    """(column of the images, those of the captions). Raises UserError where one is not known."""
    missing = []
    if not image_key:
        missing.append(f"images by --image-column {content.image_key or ''}".rstrip())
    if not caption_keys:
        missing.append(f"captions by --caption-column {content.caption_key or ''}".rstrip())
    if missing:
        raise UserError(
            f"{content.path}: its columns are {', '.join(names)}; name the one of "
            f"{' and of '.join(missing)}"
        )
    return image_key, caption_keys


def _csv(path):
    """(names of the columns, a function that yields (where, {column: text}))."""
    with text_file(path) as file:
        header = file.readline()
    delimiter = max(DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])

    def records(columns):
        with text_file(path) as file:
            # strict: a quote that is never closed would hide all lines after it
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
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


def _parquet(path):
    """The same of a Parquet file. Raises UserError."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file, or not whole: {error}") from None

    def records(columns):
        number = 0
        try:
            for batch in file.iter_batches(BATCH, columns=columns):
                for record in batch.to_pylist():
                    yield f"row {number}", record
                    number += 1
        except (ArrowException, OSError) as error:
            raise UserError(f"{path}: row {number}: {error}") from None

    return file.schema_arrow.names, records
