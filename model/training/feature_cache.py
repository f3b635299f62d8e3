"""Cached vision features: what a frozen vision part makes of each image, computed once, on disk.

One file an image, in the training dtype (VisualGLM in bfloat16: 32 x 768, 49 kB) with a checksum
(features of no one shape as safetensors), named by the hash of the image's bytes and of what makes
the features; so runs and processes share them. Between runs the folder may be removed.
"""

import hashlib
import os
import re
import shutil
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load, save
from tqdm import tqdm

from model.errors import UserError
from model.files import replacing
from model.images import open_file, reader_of
from model.rows import BLANK, check_images, load_image

NAME = re.compile("[0-9a-f]{64}")
SPARE = 200e6  # bytes left free on the disk
CHECKSUM = 4  # bytes at a file's end


class FeatureCache:
    """Features by image. spec: a FeatureSpec; `scan` says which are missing, `fill` makes them.

    files: image -> its file; missing: images whose features are to be made.
    """

    def __init__(self, folder, spec, threads=8):
        self.folder = Path(folder)
        self.spec = spec
        self.threads = threads
        self.files = {}
        self.missing = []

    @property
    def bytes(self):
        """Of one image's features, about where they have no one shape."""
        if self.spec.shape is None:
            return self.spec.estimated_bytes
        return torch.Size(self.spec.shape).numel() * self.spec.dtype.itemsize

    def scan(self, images, sharded=None):
        """Hash the images (paths) and look which features are there, and the blank image's.

        sharded: that of engine.Processes, None: this process does it all.
        """
        everything = [*images, BLANK]
        with ThreadPoolExecutor(self.threads) as pool:

            def each(function, items):
                def work(share):
                    return list(pool.map(function, share))

                return sharded(work, items) if sharded else work(items)

            names = each(self._name, everything)
            self.files = {
                image: self.folder / name[:2] / name for image, name in zip(everything, names)
            }
            # The same bytes under two names are one image
            first = {}
            for image, file in self.files.items():
                first.setdefault(file, image)
            intact = each(self._is_intact, list(first))
        self.missing = [image for image, there in zip(first.values(), intact) if not there]
        return self

    def _name(self, image):
        try:
            content = b"blank" if image == BLANK else _bytes_of(image)
        except OSError as error:
            raise UserError(f"image {error.filename}: {error.strerror}") from None
        key = f"{self.spec.cache_key} {reader_of()}"
        made = key.encode() + hashlib.sha256(content).digest()
        return hashlib.sha256(made).hexdigest()

    def _is_intact(self, file):
        try:
            return self._content(file) is not None
        except OSError:
            return False

    def _content(self, file):
        """The bytes of a file, None where they are not what was written."""
        content = bytearray(file.read_bytes())
        if self.spec.shape is not None and len(content) != self.bytes + CHECKSUM:
            return None
        features, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        return features if checksum == _checksum(features) else None

    def has_space(self):
        """Whether the disk can hold what is missing. UserError where nothing can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._unwritable(error) from None
        return free >= len(self.missing) * self.bytes + SPARE

    def fill(self, encode, images, batch=16, progress=iter):
        """Make and store the features of images (a part of `missing`).

        encode: PIL images -> features, as Family.image_features; progress: wraps the iterable of
        batches (tqdm).
        """
        chunks = [images[i : i + batch] for i in range(0, len(images), batch)]
        with ThreadPoolExecutor(self.threads) as pool:
            for chunk in progress(chunks):
                features = encode(list(pool.map(load_image, chunk)))
                for image, own in zip(chunk, features):
                    self._write(self.files[image], own)

    def _bytes_of(self, features):
        if self.spec.shape is None:
            kept = {name: tensor.cpu().contiguous() for name, tensor in features.items()}
            return save(kept)
        features = features.to(self.spec.dtype).cpu().contiguous()
        return features.view(torch.uint8).numpy().tobytes()

    def _write(self, file, features):
        content = self._bytes_of(features)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Not synced: a file that a power cut damaged is made again
            with replacing(file, "wb", sync=False) as new:
                new.write(content + _checksum(content))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error):
        return UserError(
            f"feature cache {self.folder} cannot be written: {error.strerror}; name another "
            "folder by --vision_cache, or `off`"
        )

    def read(self, image):
        """Features [*shape], or a dict of them.

        Raises UserError where the file has gone since the run began.
        """
        file = self.files[image]
        try:
            content = self._content(file)
        except OSError:
            content = None
        if content is None:
            raise UserError(
                f"feature cache: {file} was removed or damaged while the run needed it; start it "
                "again with --resume"
            )
        if self.spec.shape is None:
            return load(bytes(content))
        return torch.frombuffer(content, dtype=self.spec.dtype).view(self.spec.shape)

    def prune(self, limit, idle=86400):
        """LRU eviction until the folder holds at most `limit` bytes.

        Never what a run used in the last `idle` seconds, nor files that are not the cache's own.
        """
        for file in self.files.values():
            with suppress(FileNotFoundError):  # removed by another run, which `read` reports
                os.utime(file)
        found = []
        for file in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):
                if NAME.fullmatch(file.name) and file.is_file():
                    status = file.stat()
                    found.append((status.st_mtime, status.st_size, file))
        over = sum(size for _, size, _ in found) - limit
        for used, size, file in sorted(found):
            if over <= 0 or used > time.time() - idle:
                break
            over -= size
            file.unlink(missing_ok=True)


def _bytes_of(image):
    with open_file(image) as file:
        return file.read()


def _checksum(content):
    return zlib.crc32(content).to_bytes(CHECKSUM, "big")


def uses_feature_cache(options, family):
    """Whether images and the parts that see them stay as they are, so that each is seen once."""
    if options.vision_cache == "off" or options.augment or options.patch_dropout:
        return False
    trained = set(options.trainable)
    if options.method == "full":
        trained = trained or set(family.parts)
    elif options.method != "ptuning":
        trained |= set(options.lora_targets)
    return not trained & set(family.vision_parts)


def open_feature_cache(options, family, samples, source, processes):
    """Cached features of all images of the samples, or None where each step computes them.

    Images that no cache has seen are checked first. source: the row file, for messages. Raises
    UserError.
    """
    cache = _scanned_cache(options, family, samples, processes)
    unchecked = samples
    if cache:
        missing = set(cache.missing)
        unchecked = [sample for sample in samples if sample.image in missing]
    check_images(unchecked, source, sharded=processes.sharded)
    if cache:
        _fill_sharded(cache, family, processes)
        if processes.is_main:
            cache.prune(options.vision_cache_gb * 1e9)
    return cache


def _scanned_cache(options, family, samples, processes):
    """The cache with the list of what it lacks, or None, and a line that says why."""
    images = sorted({sample.image for sample in samples if sample.image})
    if not images or options.vision_cache == "off":
        return None
    spec = family.feature_spec()
    if options.augment or options.patch_dropout:
        processes.say("images or their patches vary: they are encoded in every step")
        return None
    if spec is None:
        processes.say("features cannot be cached: images are encoded in every step")
        return None

    cache = FeatureCache(options.vision_cache, spec).scan(images, processes.sharded)
    # A process that looks later, when another has begun to write, finds less
    if not processes.any(not cache.has_space()):
        return cache
    processes.say(
        f"the disk of {cache.folder} is too full for {len(cache.missing):,} images of "
        f"{cache.bytes / 1e3:.0f} kB: the vision part runs in every step instead"
    )
    return None


def _fill_sharded(cache, family, processes):
    """Encode the images that the cache lacks, sharded by rank."""
    if not cache.missing:
        return
    start = time.perf_counter()

    def progress(chunks):
        return tqdm(
            chunks,
            desc="encoding images",
            unit="batch",
            disable=not processes.is_main,
            mininterval=1 if sys.stderr.isatty() else 30,
        )

    def fill(share):
        cache.fill(family.image_features, share, progress=progress)
        return share

    processes.sharded(fill, cache.missing)
    processes.say(
        f"encoded {len(cache.missing):,} images once, in {time.perf_counter() - start:.1f} s; "
        f"kept in {cache.folder}"
    )
