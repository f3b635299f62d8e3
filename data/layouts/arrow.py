"""Data sets of Hugging Face as saved to disk: Arrow files with the images inside.

A folder with data-00000-of-00023.arrow and so on, perhaps in folders of splits; XLRS-Bench's
captions: {"image": {"bytes", "path"}, "question", "answer": [caption, ...]}. Files are read where
they lie (mmap), an image's bytes only where it is written.
"""

import hashlib
import re
from dataclasses import dataclass

from data.caption_sets import SPLITS, split_of
from data.faults import Fault, got
from data.layouts.content import with_captions
from data.layouts.pairs import image_of
from data.layouts.table import checked_columns
from model.errors import UserError
from model.files import damage, replacing

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.arrow")
# what the bytes of an image begin with, and the ending of its file
SIGNATURES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
}


@dataclass(frozen=True)
class Embedded:
    """The bytes of an image inside a table, as a value of pyarrow that has not been read yet."""

    value: object

    @property
    def buffer(self):
        """What open().write and hashlib take, without a copy."""
        return self.value.as_buffer()

    def start(self):
        return self.buffer[:8].to_pybytes()

    def digest(self):
        """Of its bytes: equal ones are copies."""
        return hashlib.md5(self.buffer, usedforsecurity=False).hexdigest()

    def write(self, path):
        """Write it to a file, whole or not at all, unless it is there already."""
        if path.is_file() and path.stat().st_size == self.buffer.size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # not synced: a lost image is written again
        with replacing(path, "wb", sync=False) as file:
            file.write(self.buffer)


def files_of(path):
    """The Arrow files of a folder, or of the folders in it."""
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.arrow")) or sorted(path.glob("*/*.arrow"))


def recognises(content):
    return content.path.suffix == ".arrow" or (
        content.path.is_dir() and bool(files_of(content.path))
    )


def read(content):
    files = files_of(content.path)
    if not files:
        raise UserError(f"{content.path} has no *.arrow: name the folder that holds them")
    _refuse_gaps(files)
    name = _set_name(content.path)
    # the one part of a set that is published in one part says nothing about its use
    splits = {file.parent: split_of(file.parent.name) for file in files}
    number = 0
    for file in files:
        split = splits[file.parent] if len(splits) > 1 else None
        keys = None
        for row, record in enumerate(_records(file)):
            keys = keys or _keys(content, record)
            image = _image(record, *keys, f"{name}/{number:06d}")
            if split in SPLITS and not isinstance(image, Fault):
                image["split"] = split
            yield f"{file.name} row {row}", image
            number += 1


def _keys(content, record):
    """The columns of the image and of the captions. Raises UserError."""
    image, captions = content.keys(record)
    inside = [name for name, value in record.items() if isinstance(value, Embedded)]
    if inside and not content.image_key:
        image = inside[0]
    # answers to "Describe the image in detail."; one text would be that of any question
    if isinstance(record.get("answer"), list) and not captions and not content.caption_key:
        captions = ["answer"]
    return checked_columns(content, list(record), image, captions)


def _image(record, image_key, caption_keys, name):
    """The image of a record, with its "content" where it is inside; or its Fault."""
    content = record[image_key]
    if not isinstance(content, Embedded):
        return image_of(record, image_key, caption_keys)
    for start, ending in SIGNATURES.items():
        if content.start().startswith(start):
            image = {"filename": name + ending, "content": content}
            return with_captions(image, record, caption_keys)
    return got(f"the bytes of an image in {image_key!r}", content.start())


def _refuse_gaps(files):
    """Raises UserError where parts of the set are missing."""
    missing = []
    seen = {file.relative_to(file.parent.parent).as_posix() for file in files}
    for file in files:
        found = PART.fullmatch(file.name)
        for number in range(int(found[3]) if found else 0):
            name = f"{file.parent.name}/{found[1]}-{number:05d}-of-{found[3]}.arrow"
            if name not in seen and name not in missing:
                missing.append(name)
    if missing and len(files) > 1:
        raise UserError(
            f"{files[0].parent}: {len(missing)} files of the set are missing ({missing[0]}): "
            "download them as well, or name one .arrow to read it alone"
        )


def _set_name(path):
    """What the folder of its images is called: not as a split, which would be taken for one."""
    path = path.resolve()
    stem = path.name.removesuffix(".arrow")
    return path.parent.name if split_of(stem) in SPLITS else stem


def _records(file):
    """Yield {column: value} of an Arrow file, an image inside as Embedded. Raises UserError."""
    try:
        from pyarrow import ArrowException, ipc, memory_map
    except ImportError:
        raise UserError(f"{file}: reading Arrow files needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        source = memory_map(str(file))
        try:
            batches = ipc.open_stream(source)
        except ArrowException:
            source.seek(0)
            reader = ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        for batch in batches:
            for index in range(batch.num_rows):
                yield {name: _value(batch.column(name)[index]) for name in batch.schema.names}
                number += 1
    except (ArrowException, OSError) as error:
        what = damage(file) or f": {error}; it is no Arrow file, or not whole: download it again"
        raise UserError(f"{file}: row {number}{what}") from None


def _value(scalar):
    """A value, but the bytes of an image as Embedded."""
    from pyarrow import types

    if types.is_struct(scalar.type) and scalar.type.get_field_index("bytes") >= 0:
        if scalar.is_valid and scalar["bytes"].is_valid:
            return Embedded(scalar["bytes"])
    if types.is_binary(scalar.type) or types.is_large_binary(scalar.type):
        return Embedded(scalar) if scalar.is_valid else None
    return scalar.as_py()
