"""How far are the val images of a caption set from its train images?

    python benchmarks/split.py --data data/UCM

The same linear classifier on the set's split and on random ones with as many images in each part.
--data holds dataset.json and images/. An image is described by its colors and edges
(evaluation/baselines.py); its class is the scene that most of its sentences name.
"""

from pathlib import Path

from networks import PROJECT, need_caption_set, table

from command_line import Parser, ctrl_c_ends_at_once

with ctrl_c_ends_at_once():
    import numpy as np
    import torch

from data.sentences import caption_set, sentences_of
from evaluation.baselines import descriptor
from evaluation.hallucination import truth
from model.errors import UserError
from model.images.reading import read_image

RANDOM_SPLITS = 5
WEIGHT_DECAY = 1e-3  # L2 penalty


def accuracy(features, classes, train):
    """Accuracy in % on the images outside the mask `train` of a linear classifier fitted to those
    inside it.

    features: float [images, D]; classes: int64 [images]; train: bool [images].
    """
    mean = features[train].mean(0)
    deviation = features[train].std(0) + 1e-3
    features = (features - mean) / deviation
    layer = torch.nn.Linear(features.size(1), int(classes.max()) + 1)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=300)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(features[train]), classes[train])
        loss = loss + WEIGHT_DECAY * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(step)
    with torch.no_grad():
        predicted = layer(features[~train]).argmax(1)
    return 100 * (predicted == classes[~train]).float().mean().item()


def load_set(data):
    """(features, classes, train mask) of the train and val images whose sentences name a scene.

    Raises UserError.
    """
    features, scenes, train = [], [], []
    for image in caption_set(data / "dataset.json"):
        if image.get("split") not in ("train", "val"):
            continue
        scene = truth(sentences_of(image)).scene
        if scene:
            features.append(descriptor(read_image(data / "images" / image["filename"])))
            scenes.append(scene)
            train.append(image["split"] == "train")
    if len(set(train)) < 2:
        raise UserError(
            f"{data / 'dataset.json'}: {sum(train)} train and {len(train) - sum(train)} val images "
            "have a sentence that names a scene; expected some of both"
        )

    names = sorted(set(scenes))
    classes = [names.index(scene) for scene in scenes]
    return torch.from_numpy(np.stack(features)).float(), torch.tensor(classes), torch.tensor(train)


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=PROJECT / "data" / "UCM",
        help="folder of the caption set (data/UCM)",
    )
    args = parser.parse_args()
    need_caption_set(parser, args.data, "dataset.json", "images")
    try:
        features, classes, train = load_set(args.data)
    except UserError as error:
        parser.error(f"--data {error}")

    torch.manual_seed(0)
    random_splits = []
    for _ in range(RANDOM_SPLITS):
        shuffled = train[torch.randperm(len(train))]
        random_splits.append(accuracy(features, classes, shuffled))
    given = accuracy(features, classes, train)

    head = "accuracy on val images, %"
    lowest, highest = min(random_splits), max(random_splits)
    table(
        [
            {"split": "the given one", head: f"{given:.1f}"},
            {"split": f"{RANDOM_SPLITS} random ones", head: f"{lowest:.1f} to {highest:.1f}"},
        ]
    )


if __name__ == "__main__":
    main()
