"""--pack: images and rows as WebDataset shards, NAME-train-00000.tar and so on.

Each image is one key: key.EXT, its bytes as they are, and key.json, {"img": where it came from,
"image": "key.EXT", "rows": its rows without img}: model/row_store.py reads them. The rows of the
trainer name the members, so nothing is unpacked.
A shard appears when it is whole; the files of rows, which name them, come last.
"""

import io
import json
import re
import tarfile
from collections import Counter
from contextlib import ExitStack, contextmanager

from model.errors import UserError
from model.files import replacing


def shard_name(stem, split, number):
    return f"{stem}{f'-{split}' if split else ''}-{number:05d}.tar"


class Packer(ExitStack):
    """A context; `add` puts an image with its rows into a shard and returns the name of its member.

    images: {split or None: how many there will be}; shards: of each split, with as many images
    each as can be; none is empty.
    """

    def __init__(self, output, shards, images):
        super().__init__()
        self.folder, self.stem = output.parent, output.stem
        self.shards, self.images = shards, images
        self.added = Counter()
        # {split: (number of its open shard, the tar, what closes it)}
        self.open = {}

    def add(self, split, img, file, rows):
        # only here: it loads numpy
        from model.images import open_file

        index = self.added[split]
        self.added[split] += 1
        shards = min(self.shards, self.images[split])
        name, tar = self._shard(split, index * shards // self.images[split])
        key = f"{index:08d}"
        member = key + file.suffix.lower()
        rows = [{name: value for name, value in row.items() if name != "img"} for row in rows]
        about = json.dumps({"img": img, "image": member, "rows": rows}, ensure_ascii=False)
        with open_file(file) as content:
            _add(tar, member, content.read())
        _add(tar, f"{key}.json", about.encode())
        return f"{name}/{member}"

    def _shard(self, split, number):
        """(name, tar) of a shard, opened where the one before is full."""
        if split in self.open and self.open[split][0] == number:
            return self.open[split][1:3]
        if split in self.open:
            self.open[split][3].close()
        name = shard_name(self.stem, split, number)
        shard = self.enter_context(ExitStack())
        tar = shard.enter_context(_tar(self.folder / name))
        self.open[split] = (number, name, tar, shard)
        return name, tar


def refuse_old_shards(output, shards):
    """Raises UserError where shards of an earlier run would stand beside fewer new ones."""
    pattern = re.compile(rf"{re.escape(output.stem)}(-train|-val|-test)?-(\d{{5}})\.tar")
    old = []
    for path in sorted(output.parent.glob("*.tar")):
        found = pattern.fullmatch(path.name)
        if found and int(found[2]) >= shards:
            old.append(path.name)
    if old:
        raise UserError(
            f"{output.parent} has {len(old)} more shards of an earlier run ({old[0]}): remove "
            "them, or name another --output"
        )


@contextmanager
def _tar(path):
    with replacing(path, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        yield tar


def _add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
