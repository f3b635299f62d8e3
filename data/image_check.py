"""Every image of a set is read once: missing, unreadable, truncated, wrong size, duplicate.

Images are read as training reads them, in threads (decoders work outside Python's lock). What was
found is kept in CACHE beside the output, by path, size in bytes and modification time, so that the
next run opens only what changed; the file may be removed at any time.
"""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from data.caption_sets import CAPTION_SETS, SPLITS
from data.records import write_records
from model.files import parse_json

CACHE = ".image-check.jsonl"
KINDS = ("missing", "unreadable", "truncated", "wrong size", "duplicate")
# a shorter side in pixels, or a longer side over the shorter one, that no image to describe has
LEAST_SIDE, MOST_ASPECT = 8, 10


@dataclass(frozen=True)
class Use:
    """A row's image: `img` as the row names it, its known set or None, its split or None."""

    img: str
    dataset: str | None
    split: str | None


def find(img, folders):
    """The file of an `img`, or member of a tar, in the first of the folders that has it, or None.

    An absolute `img` ignores the folders. Raises UserError for a tar that cannot be read.
    """
    # only here: it loads numpy
    from model.images import exists

    for folder in folders:
        if exists(folder / img):
            return folder / img
    return None


def digest_of(path):
    """Of the bytes of an image: equal ones are copies. Raises OSError."""
    from model.images import open_file

    with open_file(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def examine(path, bands=None):
    """Read an image: {"digest", "width", "height"}, or what is wrong: {"digest", "kind", "text"}.

    bands: see read_image. Raises OSError where the file cannot be read at all, and ImageError
    where a package is missing that may read it: the image is not to blame.
    """
    # only here: it loads numpy
    from model.images import NEEDS_RASTERIO, TOO_LARGE, ImageError, read_image, stamp

    digest = digest_of(path)
    try:
        width, height = read_image(path, bands).info["original_size"]
    except ImageError as error:
        if error.kind == NEEDS_RASTERIO:
            raise
        kind = "wrong size" if error.kind == TOO_LARGE else error.kind
        text = f"{stamp(path)[0]} bytes, {str(error).removeprefix(f'image {path}: ')}"
        return {"digest": digest, "kind": kind, "text": text}
    return {"digest": digest, "width": width, "height": height}


def read_cache(path, reader):
    """{(path, bytes, mtime in ns): entry} of what this reader found.

    Whatever is no entry is left out: its image is opened again.
    """
    if not path.exists():
        return {}
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = parse_json(line)
            is_entry = ("width" in entry) != ("kind" in entry) and isinstance(entry["digest"], str)
            if is_entry and entry["reader"] == reader:
                known[entry["path"], entry["bytes"], entry["mtime"]] = entry
        except (ValueError, TypeError, KeyError):
            pass
    return known


def examine_all(paths, cache_path, bands=None):
    """{path: what examine() found}, from the cache (None: there is none) where it knows them.

    The cache is written whatever happens.
    """
    from model.images import reader_of, stamp

    reader = reader_of(bands)
    cache = read_cache(cache_path, reader) if cache_path else {}
    found, keys, new = {}, {}, 0
    for path in paths:
        keys[path] = str(path), *stamp(path)
        if keys[path] in cache:
            found[path] = cache[keys[path]]
    left = [path for path in paths if path not in found]

    pool = ThreadPoolExecutor(os.cpu_count())
    results = pool.map(partial(_examined, bands=bands), left)
    try:
        with tqdm(total=len(left), unit="image", disable=None) as bar:
            for path, entry in zip(left, results):
                if "digest" in entry:
                    name, size, mtime = keys[path]
                    known = {"path": name, "bytes": size, "mtime": mtime, "reader": reader}
                    entry = {**known, **entry}
                    cache[keys[path]] = entry
                    new += 1
                found[path] = entry
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        if new and cache_path:
            # the last entry of a path: what it was before is gone
            current = {entry["path"]: entry for entry in cache.values()}
            write_records(cache_path, current.values())
    return found


def _examined(path, bands):
    """examine(), or without a digest why the file cannot be read: that is not to be remembered."""
    try:
        return examine(path, bands)
    except OSError as error:
        return {"kind": "unreadable", "text": error.strerror or str(error)}


def size_problem(entry, dataset):
    """What is wrong with the size of an image of this set (None: any), or None."""
    width, height = size = entry["width"], entry["height"]
    text = f"{width}x{height} pixels"
    if min(size) < LEAST_SIDE or max(size) > MOST_ASPECT * min(size):
        return text
    if not dataset or CAPTION_SETS[dataset].fits_size(size):
        return None

    expected = "{}x{}".format(*CAPTION_SETS[dataset].size)
    for name, known in CAPTION_SETS.items():
        if known.size == size:
            return f"{text}, as {name} has; {dataset} has {expected}"
    return f"{text}; {dataset} has {expected}"


def check_images(uses, folders, cache_path, keep_duplicates=False, bands=None):
    """What is wrong with the images of the rows.

    uses: Use of every row, in order; folders: where relative ones are looked for; bands: see
    read_image.

    Returns ({kind: {img: text}}, leaks): the rows to drop by kind, and the images that stand in
    several splits as [(split, other split, [img in the first, ...])]. Of equal bytes under several
    names the copy of the last split stays (test before val before train), so that dropping the
    others also takes them out of training; with keep_duplicates all stay.
    """
    problems = {kind: {} for kind in KINDS}
    files = {}
    for use in uses:
        if use.img not in files:
            files[use.img] = find(use.img, folders)
            if files[use.img] is None:
                problems["missing"][use.img] = use.img
    distinct_files = dict.fromkeys(path for path in files.values() if path)
    entries = examine_all(list(distinct_files), cache_path, bands)

    copies = defaultdict(list)
    for use in uses:
        if any(use.img in bad for bad in problems.values()):
            continue
        path = files[use.img]
        entry = entries[path]
        text = size_problem(entry, use.dataset) if "width" in entry else entry["text"]
        if text:
            problems[entry.get("kind", "wrong size")][use.img] = f"{path} ({text})"
        else:
            copies[entry["digest"]].append(use)

    leaks = defaultdict(dict)
    for group in copies.values():
        # stable: of one split the first comes first
        kept, *others = sorted(group, key=_split_rank, reverse=True)
        for use in others:
            if use.split != kept.split:
                leaks[use.split, kept.split][use.img] = None
            if not keep_duplicates and files[use.img] != files[kept.img]:
                problems["duplicate"].setdefault(use.img, f"{use.img} (bytes of {kept.img})")
    return problems, [(*splits, list(names)) for splits, names in leaks.items()]


def _split_rank(use):
    return SPLITS.index(use.split) if use.split else 0
