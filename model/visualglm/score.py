"""How likely answers begin with given texts: one pass over the prompts, one over all texts.

The branches of a row's texts see the prompt, the trunk and themselves: see model/text_scores.py.
Shapes as in decoder.py; K tokens of a row's trunk and branches, padded.
"""

import torch

from model.text_scores import Tree, text_scores
from model.visualglm.decoder import Decoder
from model.visualglm.network import VisualGLM
from model.visualglm.tokenizer import Tokenizer


@torch.inference_mode()
def score(
    network: VisualGLM,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    **image_arguments,
) -> list[list[float]]:
    """The log probability of each text as the beginning of the answer to its prompt.

    prompts: ids that end with `<sop>`; texts: for each prompt at least one, as ids;
    image_arguments: those of Decoder.prefill.
    """
    device = network.device
    trees = [Tree.of(of_row) for of_row in texts]
    width = max(1, *(len(tree.ids) for tree in trees))  # K
    shape = (len(trees), width)
    ids = torch.zeros(shape, dtype=torch.long)
    places = torch.zeros(shape, dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # [B, K, K]
    for row, tree in enumerate(trees):
        count = len(tree.ids)
        ids[row, :count] = torch.tensor(tree.ids)
        places[row, :count] = torch.tensor(tree.places)
        visible[row, :count, :count] = tree.visible()

    lengths = [len(prompt) for prompt in prompts]
    padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    decoder = Decoder(network, lengths, width, places.to(device))
    first = decoder.prefill(torch.tensor(padded, device=device), **image_arguments)  # [B, V]
    hidden = decoder.read(ids.to(device), visible.to(device))  # [B, K, D]
    scores = []
    for row, tree in enumerate(trees):
        # A row at a time: its logits are K times the vocabulary
        logits = torch.cat((first[row, None], decoder.stack.head(hidden[row, : len(tree.ids)])))
        after = logits.float().log_softmax(-1)
        scores.append(text_scores(tree, after, tokenizer.endings))
    return scores
