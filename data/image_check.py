"""Every picture of a set is opened once: missing, unreadable, truncated, of a wrong size, a duplicate.

Pictures are decoded in threads (Pillow decodes outside Python's lock). What was found is kept in CACHE beside the output, by
path, size in bytes and modification time, so that the next run opens only what changed; the file may be removed at any time.
"""

import hashlib
import io
import json
import os
import struct
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from data.caption_sets import CAPTION_SETS, SPLITS
from data.records import write_records

CACHE = ".image-check.jsonl"
# what Pillow raises on a damaged file
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error)
HUGE = (
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # over 90 megapixels: a mosaic, or a damaged header
SIGNATURES = (
    b"II*\0",
    b"MM\0*",
    b"\x89PNG",
    b"\xff\xd8\xff",
)  # a cut TIFF may have lost its directory, not its first bytes
LEAST_SIDE, MOST_SIDES = (
    8,
    10,
)  # pixels; the longer side over the shorter: beyond them it is no picture to describe


@dataclass(frozen=True)
class Use:
    """A row's picture: `img` as the row names it, the known set it belongs to or None, its split or None."""

    img: str
    dataset: str | None
    split: str | None


def find(img, folders):
    """The file of an `img`, the first of the folders that has it, or None. An absolute `img` ignores the folders."""
    return next((folder / img for folder in folders if (folder / img).is_file()), None)


def examine(path):
    """Decode a picture: {"digest", "width", "height"} or {"digest", "kind", "text"} of what is wrong with it."""
    data = path.read_bytes()
    found = {"digest": hashlib.md5(data, usedforsecurity=False).hexdigest()}
    kind = "unreadable"
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = "truncated"  # it has a header: what fails from here on is the rest
            image.load()
            return found | {"width": image.width, "height": image.height}
    except HUGE as error:
        kind, text = "wrong size", str(error)
    except UnidentifiedImageError:
        kind = "truncated" if data.startswith(SIGNATURES) else "unreadable"
        text = f"{len(data)} bytes, " + (
            "only the beginning" if kind == "truncated" else "not a picture that Pillow knows"
        )
    except DAMAGED as error:
        text = f"{type(error).__name__}: {error}"
    return found | {"kind": kind, "text": " ".join(text.split())[:100]}


def read_cache(path):
    """{(path, bytes, mtime in ns): entry}; whatever is no entry is left out, it costs one more look."""
    known = {}
    for line in (
        path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ()
    ):
        try:
            entry = json.loads(line)
            if ("width" in entry) != ("kind" in entry) and isinstance(entry["digest"], str):
                known[entry["path"], entry["bytes"], entry["mtime"]] = entry
        except (ValueError, TypeError, KeyError):
            pass
    return known


def examine_all(paths, cache_path):
    """{path: what examine() found} of all files, from the cache where it knows them; it is written whatever happens."""
    cache, found, new = read_cache(cache_path), {}, 0
    keys = {}
    for path in paths:
        stat = path.stat()
        keys[path] = str(path), stat.st_size, stat.st_mtime_ns
        if keys[path] in cache:
            found[path] = cache[keys[path]]
    left = [path for path in paths if path not in found]

    def look(path):
        try:
            return {**dict(zip(("path", "bytes", "mtime"), keys[path])), **examine(path)}
        except OSError as error:  # no permission, a disk that fails: not to be remembered
            return {"kind": "unreadable", "text": error.strerror or str(error)}

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with warnings.catch_warnings(), tqdm(total=len(left), unit="image", disable=None) as bar:
            warnings.simplefilter(
                "ignore"
            )  # corrupt EXIF data and the like do not keep pixels from being read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for path, entry in zip(left, pool.map(look, left)):
                found[path] = entry
                if "path" in entry:
                    cache[keys[path]] = entry
                    new += 1
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        if new:
            current = {
                key[0]: entry for key, entry in cache.items()
            }  # the last of a path: what it was before is gone
            write_records(cache_path, current.values())
    return found


def size_problem(entry, dataset):
    """What is wrong with the size of a picture of this set (None: any), or None."""
    size = entry["width"], entry["height"]
    if min(size) < LEAST_SIDE or max(size) > MOST_SIDES * min(size):
        return "{}x{} pixels".format(*size)
    if dataset and not CAPTION_SETS[dataset].fits_size(size):
        other = next(
            (f", as {name} has" for name, known in CAPTION_SETS.items() if known.size == size), ""
        )
        return "{}x{} pixels{}; {} has {}x{}".format(
            *size, other, dataset, *CAPTION_SETS[dataset].size
        )
    return None


def check_images(uses, folders, cache_path, keep_duplicates=False):
    """What is wrong with the pictures of the rows.

    uses: Use of every row, in order; folders: where relative ones are looked for.
    Returns ({kind: {img: text}}, leaks): the rows to drop by kind, and the pictures that stand in several splits, as
    [(split, other split, [img in the first, ...])]. Of equal bytes under several names the copy that is held out stays (test
    before val before train), so that dropping the others also takes them out of training; with keep_duplicates all stay.
    """
    problems = {
        kind: {} for kind in ("missing", "unreadable", "truncated", "wrong size", "duplicate")
    }
    files = {}
    for use in uses:
        if use.img not in files:
            files[use.img] = find(use.img, folders)
            if files[use.img] is None:
                problems["missing"][use.img] = use.img
    found = examine_all(list(dict.fromkeys(path for path in files.values() if path)), cache_path)
    copies = defaultdict(list)
    for use in uses:
        path = files[use.img]
        if path is None or any(use.img in bad for bad in problems.values()):
            continue
        entry = found[path]
        text = size_problem(entry, use.dataset) if "width" in entry else entry["text"]
        if text:
            problems[entry.get("kind", "wrong size")][use.img] = f"{path} ({text})"
        else:
            copies[entry["digest"]].append(use)
    leaks = defaultdict(dict)
    for group in copies.values():
        held_out = sorted(
            group, key=lambda use: -SPLITS.index(use.split) if use.split else 0
        )  # the first of a split first
        for use in held_out[1:]:
            if use.split != held_out[0].split:
                leaks[use.split, held_out[0].split][use.img] = None
            if not keep_duplicates and files[use.img] != files[held_out[0].img]:
                problems["duplicate"].setdefault(use.img, f"{use.img} (bytes of {held_out[0].img})")
    return problems, [(*splits, list(names)) for splits, names in leaks.items()]
