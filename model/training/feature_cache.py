"""What the frozen vision tower and Q-Former say of each picture, computed once and kept on disk.

One file a picture, [Q, width] in the training dtype (32 x 768 in bfloat16: 49 kB) and a checksum, named by the hash of the
picture's bytes, the base's fingerprint and how pixels are made; so runs and processes share it. Between runs it may be removed.
"""

import hashlib
import os
import re
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from model.errors import UserError
from model.images import read_image
from model.visualglm.pixels import MEAN, STD, to_pixels

NAME = re.compile("[0-9a-f]{64}")
SPARE = 200e6  # bytes left free on the disk
BLANK = "blank"  # in place of a picture's bytes: a picture of the mean colour


class VisionCache:
    """Features by picture. pictures: paths; shape: (Q, width) of one; mark: what the weights are told apart by."""

    def __init__(self, folder, pictures, *, shape, dtype, image_size, mark, threads=8):
        self.folder, self.shape, self.dtype, self.image_size = (
            Path(folder),
            shape,
            dtype,
            image_size,
        )
        self.bytes = shape[0] * shape[1] * dtype.itemsize
        made = f"{mark} {shape} {dtype} {image_size} {MEAN} {STD}".encode()

        def name(picture):
            content = BLANK.encode() if picture == BLANK else picture.read_bytes()
            return hashlib.sha256(made + hashlib.sha256(content).digest()).hexdigest()

        everything = [*pictures, BLANK]
        with ThreadPoolExecutor(threads) as pool:
            try:
                self.files = {
                    p: self.folder / n[:2] / n
                    for p, n in zip(everything, pool.map(name, everything))
                }
            except OSError as error:
                raise UserError(f"image {error.filename}: {error.strerror}") from None
        first = {
            file: picture for picture, file in reversed(self.files.items())
        }  # the same bytes under two names are one picture
        with ThreadPoolExecutor(threads) as pool:
            whole = list(pool.map(self._whole, first))
        self.missing = [
            picture for (file, picture), there in zip(first.items(), whole) if not there
        ]

    def _whole(self, file):
        try:
            return self._content(file) is not None
        except OSError:
            return False

    def _content(self, file):
        """The bytes of a file, None where they are not what was written."""
        content = bytearray(file.read_bytes())
        whole = (
            len(content) == self.bytes + 4
            and zlib.crc32(content[:-4]).to_bytes(4, "big") == content[-4:]
        )
        return content[:-4] if whole else None

    def room(self):
        """Can the disk hold what is missing? Raises UserError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free >= len(self.missing) * self.bytes + SPARE
        except OSError as error:
            raise UserError(
                f"vision cache {self.folder} cannot be written: {error.strerror}; name another folder by --vision_cache, "
                "or `off`"
            ) from None

    @torch.inference_mode()
    def fill(self, network, pictures, batch=16, progress=iter):
        """Encode pictures (a part of `missing`) and store what comes out."""
        chunks = [pictures[i : i + batch] for i in range(0, len(pictures), batch)]
        with ThreadPoolExecutor(4) as pool:
            for chunk in progress(chunks):
                pixels = torch.stack(list(pool.map(self._pixels, chunk)))
                for picture, features in zip(
                    chunk, network.image_features(pixels).to(self.dtype).cpu()
                ):
                    file = self.files[picture]
                    scratch = file.with_name(f".{file.name}.{os.getpid()}")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    content = features.contiguous().view(torch.uint8).numpy().tobytes()
                    scratch.write_bytes(content + zlib.crc32(content).to_bytes(4, "big"))
                    os.replace(scratch, file)

    def _pixels(self, picture):
        if picture == BLANK:
            return torch.zeros(3, *self.image_size)
        return to_pixels(read_image(picture), self.image_size)

    def read(self, picture):
        """[Q, width]. Raises UserError where the file has gone since the run began."""
        try:
            content = self._content(self.files[picture])
        except OSError:
            content = None
        if content is None:
            raise UserError(
                f"vision cache: {self.files[picture]} was removed or damaged while the run needed it; start it again with --resume"
            )
        return torch.frombuffer(content, dtype=self.dtype).view(self.shape)

    def prune(self, limit, idle=86400):
        """Remove what has not been used for longest until the folder holds at most `limit` bytes; never what a run used in the
        last `idle` seconds, nor files that are not the cache's own."""
        for file in self.files.values():
            os.utime(file)
        found = sorted(
            (file.stat().st_mtime, file)
            for file in self.folder.glob("??/*")
            if NAME.fullmatch(file.name) and file.is_file()
        )
        over = sum(file.stat().st_size for _, file in found) - limit
        for used, file in found:
            if over <= 0 or used > time.time() - idle:
                break
            over -= file.stat().st_size
            file.unlink()
