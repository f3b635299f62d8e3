"""Parquet files, and Arrow files of Hugging Face, with the images inside or their paths.

As published: train-00000-of-00003.parquet and test-00000-of-00001.parquet. As saved to disk:
data-00000-of-00023.arrow and so on, perhaps in folders of splits. XLRS-Bench's captions: {"image":
{"bytes", "path"}, "question", "answer": [caption, ...]}. An Arrow file is read where it lies
(mmap), of a Parquet file a page or row group is held at a time.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from data.caption_sets import SPLITS, split_of
from data.faults import got
from data.image_check import digest_of
from data.layouts.content import by_image, check_names, checked_columns, split_in, with_captions
from data.layouts.pairs import image_of
from model.errors import UserError
from model.files import damage, replacing

SUFFIXES = (".arrow", ".parquet")
# train-00000-of-00003-0123456789abcdef.parquet: datasets wrote a hash as well
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?")
# rows of a Parquet file held at a time: each may have a large image
BATCH = 16
# what the bytes of an image begin with, and the ending of its file
SIGNATURES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
    b"\0\0\0\x0cjP": ".jp2",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
}


@dataclass(frozen=True)
class Embedded:
    """The bytes of an image inside a table, as a value of pyarrow."""

    value: object

    @property
    def buffer(self):
        """What open().write and hashlib take, without a copy."""
        return self.value.as_buffer()

    @property
    def start(self):
        return self.buffer[:8].to_pybytes()

    @property
    def ending(self):
        """That of its file, None for what is no image."""
        start = self.start
        return next((end for sign, end in SIGNATURES.items() if start.startswith(sign)), None)

    @cached_property
    def digest(self):
        """Of its bytes: equal ones are copies."""
        return hashlib.md5(self.buffer, usedforsecurity=False).hexdigest()

    def is_at(self, path):
        """Whether it is there as a file. Raises UserError where another image is."""
        if not path.is_file():
            return False
        if path.stat().st_size == self.buffer.size and digest_of(path) == self.digest:
            return True
        raise UserError(
            f"{path} is there already and another image than the one to be written, perhaps of "
            f"another set: choose another folder by --output, or remove {path.parent}"
        )

    def write(self, path):
        """Write it to a file, whole or not at all, unless it is there already."""
        if self.is_at(path):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # not synced: a lost image is written again
        with replacing(path, "wb", sync=False) as file:
            file.write(self.buffer)


def files_of(path):
    """The files of a folder, or of the folders in it."""
    if not path.is_dir():
        return [path]
    for depth in ("*", "*/*", "*/*/*"):
        for suffix in SUFFIXES:
            # datasets keeps what it has computed beside its files
            found = [one for one in path.glob(depth + suffix) if not one.name.startswith("cache-")]
            if found:
                return sorted(found)
    return []


def recognises(content):
    path = content.path
    return bool(files_of(path)) if path.is_dir() else path.suffix.lower() in SUFFIXES


def read(content):
    files = files_of(content.path)
    if not files:
        raise UserError(f"{content.path} has no *.arrow or *.parquet: name the folder of them")
    if content.path.is_dir():
        _refuse_gaps(files)
    splits = {file: _split(file) for file in files}
    # the one part of a set that is published in one part says nothing about its use
    if len(set(splits.values())) == 1:
        splits = {}

    return by_image(lambda: _images(content, files, splits))


def _split(file):
    """The split that the name of a part says, or that of its folder; None for none."""
    part = PART.fullmatch(file.stem)
    split = split_in(part[1] if part else file.stem) or split_of(file.parent.name)
    return split if split in SPLITS else None


def _images(content, files, splits):
    """Yield (where, image or Fault) of the rows; equal images of a split have one name."""
    name = _set_name(content.path)
    # {(split, digest of an image): its number}
    numbers = {}
    number = 0
    for file in files:
        for row, image in enumerate(_rows(content, file)):
            if isinstance(image, dict) and splits.get(file):
                image.setdefault("split", splits[file])
            if isinstance(image, dict) and "content" in image:
                key = image.get("split"), image["content"].digest
                first = numbers.setdefault(key, number)
                image["filename"] = f"{name}/{first:06d}{image['content'].ending}"
            yield f"{file.name} row {row}", image
            number += 1


def _rows(content, file):
    """Yield the image of each row, or its Fault. Raises UserError."""
    pyarrow = _pyarrow(file)
    row = 0
    try:
        schema, batches = _table(file)
        columns, keys = _keys(content, file, schema)
        for batch in batches(columns):
            for values in zip(*(batch.column(name) for name in columns)):
                yield _image(dict(zip(columns, values)), *keys)
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        kind = _kind(file)
        what = damage(file) or f": {error}; it is no {kind} file, or not whole: download it again"
        raise UserError(f"{file}: row {row}{what}") from None


def _kind(file):
    return "Parquet" if file.suffix.lower() == ".parquet" else "Arrow"


def _pyarrow(file):
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"{file}: reading {_kind(file)} files needs pyarrow: pip install pyarrow"
        ) from None
    return pyarrow


def _table(file):
    """(schema, a function: names of columns -> batches of rows). Raises ArrowException, OSError."""
    from pyarrow import ArrowException, ipc, memory_map
    from pyarrow.parquet import ParquetFile

    if _kind(file) == "Parquet":
        # memory holds one page: by default all the images of a row group
        reader = ParquetFile(file, memory_map=True, pre_buffer=False)
        return reader.schema_arrow, lambda columns: reader.iter_batches(BATCH, columns=columns)
    source = memory_map(str(file))
    try:
        stream = ipc.open_stream(source)
        return stream.schema, lambda columns: stream
    except ArrowException:
        source.seek(0)
        reader = ipc.open_file(source)
    parts = range(reader.num_record_batches)
    return reader.schema, lambda columns: map(reader.get_batch, parts)


def _keys(content, file, schema):
    """(columns to read, (that of the image, those of the captions)). Raises UserError."""
    check_names(file, schema.names)
    image, captions = content.keys(schema.names)
    inside = [name for name in schema.names if _holds_images(schema.field(name).type)]
    if inside and not content.image_key:
        image, _ = content.keys(inside)
        image = image or inside[0]
    # answers to "Describe the image in detail."; one text would be that of any question
    if not captions and not content.caption_key and _is_list(schema, "answer"):
        captions = ["answer"]
    image, captions = checked_columns(content, schema.names, image, captions)
    columns = [image, *captions]
    if "split" in schema.names and "split" not in columns:
        columns.append("split")
    return columns, (image, captions)


def _is_list(schema, name):
    from pyarrow import types

    return name in schema.names and types.is_list(schema.field(name).type)


def _holds_images(kind):
    """Whether a column of this type has the bytes of images: alone, in HF's struct, in a list."""
    from pyarrow import types

    if types.is_list(kind):
        return _holds_images(kind.value_type)
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _image(values, image_key, caption_keys):
    """The image of a row, {column: value of pyarrow}, or its Fault; one inside has a "content"."""
    content = _embedded(values[image_key])
    record = {name: value.as_py() for name, value in values.items() if name != image_key}
    if content is None:
        record[image_key] = values[image_key].as_py()
        return image_of(record, image_key, caption_keys)
    if content.ending is None:
        return got(f"the bytes of an image in {image_key!r}", content.start)
    # its name follows, by the images before it
    return with_captions({"filename": "", "content": content}, record, caption_keys)


def _embedded(value):
    """The image inside a value, None where there is none."""
    from pyarrow import types

    if types.is_list(value.type) and value.is_valid and len(value) == 1:
        [value] = value.values
    if not value.is_valid or not _holds_images(value.type) or types.is_list(value.type):
        return None
    if types.is_struct(value.type):
        value = value["bytes"]
    return Embedded(value) if value.is_valid else None


def _refuse_gaps(files):
    """Raises UserError where parts of the set are missing."""
    seen = {}
    for file in files:
        part = PART.fullmatch(file.stem)
        if part:
            seen.setdefault((file.parent, part[1], part[3], file.suffix), set()).add(int(part[2]))
    missing = []
    for (folder, name, total, suffix), numbers in seen.items():
        for number in sorted(set(range(int(total))) - numbers):
            missing.append(f"{folder.name}/{name}-{number:05d}-of-{total}{suffix}")
    if missing:
        raise UserError(
            f"{files[0].parent}: {len(missing)} files of the set are missing ({missing[0]}): "
            f"download them as well, or name one {files[0].suffix} to read it alone"
        )


def _set_name(path):
    """What the folder of its images is called: not as a split, which would be taken for one."""
    path = path.resolve()
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return path.parent.name if split_of(stem) in SPLITS else stem
