"""How likely answers begin with given texts, by any class of transformers that keeps a cache.

One pass over the prompt and the trunk of its texts (see model/text_scores.py); then the branches
side by side from copies of its cache, token by token, because not every class can continue a cache
by several tokens at once.

Shapes: K tokens of the trunk and the branches, N branches, V words of the vocabulary.
"""

import copy
import inspect
from typing import Any

import torch

from model.hf.network import Network
from model.text_scores import Endings, Tree, text_scores

SIDE_BY_SIDE = 8  # branches, each with a copy of the prompt's keys and values


@torch.inference_mode()
def score(network: Network, inputs: dict[str, Any], tree: Tree, endings: Endings) -> list[float]:
    """The log probability of each text of a tree as the beginning of the answer.

    inputs: of the processor, on the device: one row, its prompt with the tree's trunk behind it.
    """
    _forget_positions(network.base)
    length = inputs["input_ids"].size(1)
    known = 1 + tree.trunk
    with network.logits_at(torch.arange(length - known, length, device=network.device)):
        output = network.model(**network.as_inputs(inputs), use_cache=True)
    first = output.logits[0].float().log_softmax(-1)  # [known, V]
    after = first.new_zeros(1 + len(tree.ids), first.size(-1))  # [1 + K, V]
    after[:known] = first

    branches = [path[tree.trunk : -1] for path in tree.paths]
    branches = [branch for branch in branches if branch]
    cache = getattr(output, _cache_name(network.base))
    for start in range(0, len(branches), SIDE_BY_SIDE):
        some = branches[start : start + SIDE_BY_SIDE]
        _continue(network, copy.deepcopy(cache), tree, some, after)
    return text_scores(tree, after, endings)


def _continue(network, cache, tree, branches, after):
    """Put what follows the tokens of branches, which stand behind one cached row, into `after`."""
    cache.reorder_cache(torch.zeros(len(branches), dtype=torch.long, device=network.device))
    for place in range(max(map(len, branches))):
        # A branch that has ended repeats its last token, and nobody reads what follows
        tokens = [branch[min(place, len(branch) - 1)] for branch in branches]
        ids = torch.tensor([[tree.ids[token]] for token in tokens], device=network.device)  # [N, 1]
        known = {_cache_name(network.base): cache}
        output = network.model(input_ids=ids, use_cache=True, **known)
        steps = output.logits[:, -1].float().log_softmax(-1)  # [N, V]
        for branch, token, step in zip(branches, tokens, steps):
            if place < len(branch):
                after[token + 1] = step


def _cache_name(model):
    """How the release of transformers calls it."""
    known = inspect.signature(model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def _forget_positions(model):
    """Classes with positions in three directions keep those of the image they saw last."""
    for module in model.modules():
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None
