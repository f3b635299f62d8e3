"""How far are the val pictures of a caption set from its train pictures? The same linear classifier on its split and on random ones.

    python benchmarks/split.py --data data/UCM

--data holds dataset.json and images/. A picture is described by its colours and edges (evaluation/baselines.py), its class is the
scene that most of its sentences name. Random splits have as many pictures in each part as the given one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from networks import PROJECT, table

from evaluation.baselines import descriptor
from evaluation.hallucination import truth
from model.images.reading import read_image

RANDOM, DECAY = 5, 1e-3  # splits; weight of the squared weights


def accuracy(features, classes, train):
    """Percent of the pictures outside the mask `train` that a linear classifier fitted to those inside it gets right."""
    centre, scale = features[train].mean(0), features[train].std(0) + 1e-3
    features = (features - centre) / scale
    layer = torch.nn.Linear(features.size(1), int(classes.max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300)

    def step():
        optimizer.zero_grad()
        loss = (
            torch.nn.functional.cross_entropy(layer(features[train]), classes[train])
            + DECAY * layer.weight.square().sum()
        )
        loss.backward()
        return loss

    optimizer.step(step)
    with torch.no_grad():
        return 100 * (layer(features[~train]).argmax(1) == classes[~train]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=PROJECT / "data" / "UCM",
        help="folder of the caption set (data/UCM)",
    )
    args = parser.parse_args()
    images = json.loads((args.data / "dataset.json").read_text(encoding="utf-8-sig"))["images"]
    known = [
        (image, scene)
        for image in images
        if image["split"] in ("train", "val")
        and (scene := truth([sentence["raw"] for sentence in image["sentences"]]).scene)
    ]
    features = torch.from_numpy(
        np.stack(
            [descriptor(read_image(args.data / "images" / image["filename"])) for image, _ in known]
        )
    ).float()
    names = sorted({scene for _, scene in known})
    classes = torch.tensor([names.index(scene) for _, scene in known])
    train = torch.tensor([image["split"] == "train" for image, _ in known])
    torch.manual_seed(0)
    others = [accuracy(features, classes, train[torch.randperm(len(train))]) for _ in range(RANDOM)]
    rows = [
        ("the given one", f"{accuracy(features, classes, train):.1f}"),
        (f"{RANDOM} random ones", f"{min(others):.1f} to {max(others):.1f}"),
    ]
    table([{"split": split, "val pictures right, %": right} for split, right in rows])


if __name__ == "__main__":
    main()
