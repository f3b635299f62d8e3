"""Which images of a set are kept, and which split each is in: by a seed, not by their order."""

import hashlib
import heapq
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data.caption_sets import SPLITS
from data.image_check import digest_of, find
from data.sentences import images_of, sentences_of
from data.stage import listed
from model.errors import UserError

# threads that read images
READERS = 8


class Choice:
    """What --sample and --split make of a set: read once before, to know all its images."""

    def __init__(self, opened, args):
        self.names = self.splits = None
        if not args.sample and not args.split:
            return
        files = opened()
        # {name: digest of an image that the set holds, None of a file}
        names, with_split = {}, []
        for image in images_of(files):
            if files.has_captions and not sentences_of(image):
                continue
            names[image["filename"]] = image["content"].digest if "content" in image else None
            if "split" in image:
                with_split.append(image["filename"])
        if args.split and with_split:
            raise UserError(
                f"{files.name} has splits of its own ({len(with_split)} images, such as "
                f"{with_split[0]}): leave --split out"
            )
        if args.sample:
            self.names = sampled(names, args.sample, args.seed)
            names = {name: names[name] for name in names if name in self.names}
        if args.split:
            folder = args.images or files.folder
            self.splits = split_by_content(names, folder, args.split, args.seed)

    def keeps(self, image):
        return self.names is None or image["filename"] in self.names

    def with_split(self, image):
        if self.splits is None:
            return image
        return {**image, "split": self.splits[image["filename"]]}


def _place(seed, name):
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()


def sampled(names, number, seed):
    """`number` of distinct names: with one more, the others stay."""
    return set(heapq.nsmallest(number, set(names), key=lambda name: _place(seed, name)))


def split_by_content(images, folder, shares, seed):
    """{name: split} of images; those with the same bytes are in one split.

    images: {name: digest, None: a file in this folder}; shares: of train, val and test, in
    percent. Raises UserError naming images that are missing.
    """
    files = {name: find(name, [folder]) for name, digest in images.items() if digest is None}
    missing = [name for name, file in files.items() if file is None]
    if missing:
        raise UserError(
            f"--split keeps copies of an image together, so it reads them: {len(missing)} of "
            f"{len(files)} are not in {folder}: {listed(missing)}; name their folder by --images"
        )
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(digest_of, files.values())
        digests = dict(zip(files, tqdm(digests, total=len(files), unit="image", disable=None)))
    copies = defaultdict(list)
    for name, digest in images.items():
        copies[digest or digests[name]].append(name)

    groups = sorted(copies.values(), key=lambda group: _place(seed, min(group)))
    return _assigned(groups, len(images), shares)


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
