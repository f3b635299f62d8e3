"""What the frozen vision tower and Q-Former say of each picture, computed once and kept on disk.

One file a picture, [Q, width] in the training dtype (32 x 768 in bfloat16: 49 kB), named by the hash of the picture's bytes,
the base's fingerprint and how pixels are made; so it may be shared by runs and processes, and removed at any time.
"""
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from .errors import UserError
from .images import MEAN, STD, read_image, to_pixels

SPARE = 200e6  # bytes left free on the disk
BLANK = "blank"  # in place of a picture's bytes: a picture of the mean colour


class VisionCache:
    """Features by picture. pictures: paths; shape: (Q, width) of one; mark: what the weights are told apart by."""

    def __init__(self, folder, pictures, *, shape, dtype, image_size, mark, threads=8):
        self.folder, self.shape, self.dtype, self.image_size = Path(folder), shape, dtype, image_size
        self.bytes = shape[0] * shape[1] * dtype.itemsize
        made = f"{mark} {shape} {dtype} {image_size} {MEAN} {STD}".encode()

        def name(picture):
            content = BLANK.encode() if picture == BLANK else picture.read_bytes()
            return hashlib.sha256(made + hashlib.sha256(content).digest()).hexdigest()

        everything = [*pictures, BLANK]
        with ThreadPoolExecutor(threads) as pool:
            try:
                self.files = {p: self.folder / n[:2] / n for p, n in zip(everything, pool.map(name, everything))}
            except OSError as error:
                raise UserError(f"image {error.filename}: {error.strerror}") from None
        first = {file: picture for picture, file in reversed(self.files.items())}  # the same bytes under two names are one picture
        self.missing = [picture for file, picture in first.items() if not self._whole(file)]

    def _whole(self, file):
        try:
            return file.stat().st_size == self.bytes
        except OSError:
            return False

    def room(self):
        """Can the disk hold what is missing? Raises UserError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free >= len(self.missing) * self.bytes + SPARE
        except OSError as error:
            raise UserError(f"vision cache {self.folder} cannot be written: {error.strerror}; name another folder by --vision_cache, "
                            "or `off`") from None

    @torch.inference_mode()
    def fill(self, network, pictures, batch=16, progress=iter):
        """Encode pictures (a part of `missing`) and store what comes out."""
        chunks = [pictures[i:i + batch] for i in range(0, len(pictures), batch)]
        with ThreadPoolExecutor(4) as pool:
            for chunk in progress(chunks):
                pixels = torch.stack(list(pool.map(self._pixels, chunk)))
                for picture, features in zip(chunk, network.image_features(pixels).to(self.dtype).cpu()):
                    file = self.files[picture]
                    scratch = file.with_name(f".{file.name}.{os.getpid()}")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    scratch.write_bytes(features.contiguous().view(torch.uint8).numpy().tobytes())
                    os.replace(scratch, file)

    def _pixels(self, picture):
        if picture == BLANK:
            return torch.zeros(3, *self.image_size)
        return to_pixels(read_image(picture), self.image_size)

    def read(self, picture):
        """[Q, width]"""
        return torch.frombuffer(bytearray(self.files[picture].read_bytes()), dtype=self.dtype).view(self.shape)

    def prune(self, limit):
        """Remove what has not been used for longest until the folder holds at most `limit` bytes; never what this run uses."""
        own = set(self.files.values())
        for file in own:
            os.utime(file)
        others = sorted((f for f in self.folder.glob("??/*") if f not in own), key=lambda f: f.stat().st_mtime)
        over = sum(f.stat().st_size for f in (*others, *own)) - limit
        for file in others:
            if over <= 0:
                break
            over -= file.stat().st_size
            file.unlink()
