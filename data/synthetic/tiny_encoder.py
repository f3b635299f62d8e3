"""Teach the image encoder of the tiny base to see before it learns any language.

From each image it predicts the phrases of the image's description, all at once. Source: Joulin et
al. 2016, Learning Visual Features from Large Weakly Supervised Data. A language model alone hardly
teaches its encoder: it learns to write first, and the little that an image then adds to its loss
is little to learn from.
"""

import random
import re
from collections import Counter

import torch
import torch.nn.functional as F
from tqdm import tqdm

from model.images import read_image
from model.visualglm.pixels import to_pixels

LENGTHS = (2, 3, 4)  # characters of a phrase
COMMON = (0.004, 0.4)  # least and greatest share of the descriptions that hold a phrase
BATCH = 32  # images
RATE, HEAD_RATE, WEIGHT_DECAY = 8e-4, 1e-3, 0.1
WARMUP = 0.1  # share of the steps
PATCH_DROPOUT = 0.7
SAID = 20  # about how many phrases a description has: brings the loss to one of a few words


def phrases(text):
    """Every 2 to 4 characters of a text that stand between its punctuation."""
    found = set()
    for part in re.split("[，。]", text):
        for length in LENGTHS:
            found.update(part[i : i + length] for i in range(len(part) - length + 1))
    return found


def common_phrases(texts):
    counts = Counter(phrase for text in texts for phrase in phrases(text))
    low, high = (share * len(texts) for share in COMMON)
    return sorted(phrase for phrase, count in counts.items() if low < count < high)


def feature_count(config):
    """Numbers that the encoder makes of an image."""
    return config["image_length"] * config["qformer_args"]["hidden_size"]


def train_encoder(family, described, steps, seed=1):
    """Train the vision tower and Q-Former of a family; returns the mean loss of the last tenth.

    family: VisualGLMFamily on the CPU; described: [(image's path, its description), ...].
    """
    words = common_phrases([text for _, text in described])
    index = {word: place for place, word in enumerate(words)}
    network = family.network
    family.add_method({"name": "full", "parts": ["vision", "qformer"]}, device=family.device)
    family.configure_training(patch_dropout=PATCH_DROPOUT)
    trained = [p for p in network.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    head = torch.nn.Linear(feature_count(family.config), len(words))
    groups = [{"params": trained, "lr": RATE}, {"params": head.parameters(), "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [RATE, HEAD_RATE], total_steps=steps, pct_start=WARMUP
    )

    size = family.config["eva_args"]["image_size"]
    rng, losses = random.Random(seed), []
    network.train()
    for _ in tqdm(range(steps), desc="encoder", unit="step", disable=None):
        batch = rng.sample(described, min(BATCH, len(described)))
        said = torch.zeros(len(batch), len(words))
        for row, (_, text) in enumerate(batch):
            said[row, [index[phrase] for phrase in phrases(text) if phrase in index]] = 1
        pixels = torch.stack([to_pixels(read_image(path), size) for path, _ in batch])
        features = network.image_features(pixels).flatten(1)
        loss = F.binary_cross_entropy_with_logits(head(features), said) * len(words) / SAID
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    network.eval()
    family.configure_training()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
