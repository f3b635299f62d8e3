"""Which images of a set are kept, and which split each is in: by a seed, not by their order."""

import hashlib
import heapq
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data.caption_sets import SPLITS
from data.image_check import digest_of, find
from data.stage import listed
from model.errors import UserError

# threads that read images
READERS = 8


def _place(seed, name):
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()


def sampled(names, number, seed):
    """`number` of distinct names: with one more, the others stay."""
    return set(heapq.nsmallest(number, set(names), key=lambda name: _place(seed, name)))


def split_by_content(names, folder, shares, seed):
    """{name: split} of images in this folder; those with the same bytes are in one split.

    shares: of train, val and test, in percent. Raises UserError naming images that are missing.
    """
    files = {name: find(name, [folder]) for name in names}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise UserError(
            f"--split keeps copies of an image together, so it reads them: {len(missing)} of "
            f"{len(files)} are not in {folder}: {listed(missing)}; name their folder by --images"
        )
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(digest_of, files.values())
        digests = tqdm(digests, total=len(files), unit="image", disable=None)
        copies = defaultdict(list)
        for name, digest in zip(files, digests):
            copies[digest].append(name)

    groups = sorted(copies.values(), key=lambda group: _place(seed, min(group)))
    return _assigned(groups, len(files), shares)


def _assigned(groups, total, shares):
    """The splits, filled one after the other up to their shares of all images."""
    ends = [total * sum(shares[: number + 1]) / 100 for number in range(len(SPLITS))]
    splits, number, done = {}, 0, 0
    for group in groups:
        # by the middle of a group: its images go together
        while done + len(group) / 2 > ends[number]:
            number += 1
        for name in group:
            splits[name] = SPLITS[number]
        done += len(group)
    return splits
