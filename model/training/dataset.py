"""Training rows -> tokenized items with their images -> padded batches."""

import random
import re
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from model.images import augment, read_image
from model.visualglm.pixels import to_pixels
from model.visualglm.prompt import render

# Words of rows whose pictures must not be turned, and of those that must keep their hues; an English word by its beginning
DIRECTION = re.compile(
    r"[左右南北横竖斜]|东(?!西)|(?<!东)西|对角|水平|[上下顶底][方部侧边端半角]|"
    r"(?<![a-z])(?:left|right|north|south|east|west|top|bottom|upper|lower|diagonal|horizontal|vertical)",
    re.I,
)
COLOUR = re.compile(
    r"[红橙黄绿青蓝紫粉棕褐灰黑白金银]|色|(?<![a-z])(?:red|orange|yellow|green|blue|purple|violet|pink|brown|beige|tan(?![a-z])|gold|"
    r"silver|gr[ae]y|black|whit|cyan|turquoise|colou?r)",
    re.I,
)


class RowDataset(torch.utils.data.Dataset):
    """Samples -> {"row": Rendered, "pixels": [3, height, width] or "features": [Q, width]}.

    cache: a filled VisionCache in place of the pictures. lengths and targets: tokens and trained tokens of each row.
    augment: (seed, share) of pictures varied at random, see images.augment; None: as they are. Index i + n * len(dataset) is row i in epoch n, each
    epoch varied otherwise and a resumed one as before. Rows that speak of a direction are not turned, those of colours keep their hues.
    """

    def __init__(
        self,
        samples,
        tokenizer,
        config,
        *,
        max_source=None,
        max_target=None,
        english=False,
        cache=None,
        augment=None,
    ):
        self.samples, self.image_size, self.cache, self.augment = (
            samples,
            config["eva_args"]["image_size"],
            cache,
            augment,
        )
        self.rows, self.cut = [], 0
        for s in samples:
            row = render(
                tokenizer,
                s.question,
                s.answer,
                history=s.history,
                english=english,
                max_source=max_source,
                image_slots=config["image_length"] if s.image else 0,
                max_target=max_target,
            )
            self.cut += row.cut
            self.rows.append(
                replace(row, ids=np.array(row.ids, dtype=np.int32))
            )  # a list of ints takes eight times the memory
        self.lengths = np.array([len(row.ids) for row in self.rows])
        self.targets = np.array([len(row.target_positions) for row in self.rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        sample = self.samples[index % len(self)]
        item, image = {"row": self.rows[index % len(self)]}, sample.image
        if image and self.cache:
            item["features"] = self.cache.read(image)
        elif image:
            picture = read_image(image)
            if self.augment is not None:
                said = "\n".join(chain(*sample.history, (sample.question, sample.answer)))
                seed, share = self.augment
                picture = augment(
                    picture,
                    random.Random(f"{seed} {index}"),
                    share,
                    rotate=not DIRECTION.search(said),
                    color_jitter=not COLOUR.search(said),
                )
            item["pixels"] = to_pixels(picture, self.image_size)
        return item


def collate(items):
    """Samples -> the arguments of the network's forward pass, rows padded at their end to the longest of the batch."""
    rows = [item["row"] for item in items]
    width = max(len(row.ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for line, row in zip(ids, rows):
        line[: len(row.ids)] = row.ids
    batch = {
        "input_ids": torch.from_numpy(ids),
        "prefix": torch.tensor([row.prefix for row in rows]),
        "target_positions": torch.tensor(
            [i * width + t for i, row in enumerate(rows) for t in row.target_positions]
        ),
        "targets": torch.tensor(
            [int(row.ids[t + 1]) for row in rows for t in row.target_positions]
        ),
    }
    for kind in ("pixels", "features"):
        shown = [i for i, item in enumerate(items) if kind in item]
        if shown:
            batch[kind] = torch.stack([items[i][kind] for i in shown])
            batch["image_rows"] = torch.tensor(shown)
            batch["image_start"] = rows[shown[0]].image_start
    return batch
