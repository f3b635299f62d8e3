"""Generation: the prompt in one pass, then one token a step, sampled and streamed as ids.

Shapes as in network.py; K tokens that may be sampled, n tokens generated so far. Nothing inside a
step waits for the device except reading the sampled ids.
"""

from collections.abc import Generator

import torch

from model import next_token
from model.sampling import Sampling
from model.visualglm.decoder import Decoder
from model.visualglm.network import VisualGLM

DEFAULT_SAMPLING = Sampling()
CHINESE_IDS = slice(63823, 130000)  # of ChatGLM's vocabulary: banned if the answer is English


def banned_ids(english: bool) -> slice | None:
    """The ids that an answer never has."""
    return CHINESE_IDS if english else None


# Repetition penalty: https://arxiv.org/abs/1909.05858
def filter_logits(
    logits: torch.Tensor, generated: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may come next, from logits [B, V]: ids [B, K] and their weights, best first.

    generated [B, n]: the tokens so far.
    """
    if sampling.repetition_penalty != 1:
        penalized = logits.gather(1, generated) / sampling.repetition_penalty  # [B, n]
        logits = logits.scatter(1, generated, penalized)
    return next_token.filter_logits(logits, sampling)


def next_tokens(
    logits: torch.Tensor,
    generated: torch.Tensor,
    sampling: Sampling,
    generators: list[torch.Generator],
    *,
    eop: int,
    banned: slice | None = None,
) -> torch.Tensor:
    """The next ids [B] from logits [B, V], which are changed.

    generated [B, n]: the tokens so far; banned: a slice of ids that are never sampled.
    """
    logits = logits.float()
    if banned is not None:
        logits[:, banned] = -torch.inf
    if generated.size(1) < sampling.min_new_tokens:
        logits[:, eop] = -torch.inf
    ids, weights = filter_logits(logits, generated, sampling)
    return next_token.sample(ids, weights, generators)


@torch.inference_mode()
def generate(
    network: VisualGLM,
    prompts: list[list[int]],
    *,
    eop: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    banned: slice | None = None,
    image_embeds: torch.Tensor | None = None,
    image_rows: torch.Tensor | None = None,
    image_start: int = 0,
) -> Generator[list[int | None], None, list[bool]]:
    """Continue each prompt; yields a list of B ids a step until all rows have ended.

    A row that has ended has None; its `<eop>` is not yielded. Returns for each row whether its
    length limit ended it.

    prompts: B lists of ids that end with `<sop>`; banned: a slice of ids that are never sampled;
    image_embeds [I, Q, D]: of the rows image_rows [I] (default: all), whose slots begin at
    image_start.
    """
    lengths = [len(prompt) for prompt in prompts]
    limits = next_token.token_limits(lengths, sampling, network.config.max_sequence_length)
    max_new_tokens = max(limits)
    if max_new_tokens == 0:
        return [True] * len(prompts)

    device = network.device
    generators = next_token.make_generators(len(prompts), device, sampling.seed)
    padded = [prompt + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
    generated = torch.zeros(len(prompts), max_new_tokens, dtype=torch.long, device=device)
    unfinished = [limit > 0 for limit in limits]
    truncated = [True] * len(prompts)

    # The last token is sampled and not read.
    decoder = Decoder(network, lengths, max_new_tokens - 1)
    ids = torch.tensor(padded, device=device)  # [B, T]
    logits = decoder.prefill(ids, image_embeds, image_rows, image_start)  # [B, V]
    for step in range(max_new_tokens):
        token = next_tokens(
            logits, generated[:, :step], sampling, generators, eop=eop, banned=banned
        )  # [B]
        generated[:, step] = token
        new = token.tolist()
        for row, limit in enumerate(limits):
            if step >= limit:
                unfinished[row] = False
            elif new[row] == eop:
                unfinished[row] = truncated[row] = False
        if not any(unfinished):
            return truncated

        yield [i if active else None for i, active in zip(new, unfinished)]
        if step + 1 < max_new_tokens:
            logits = decoder.step(token)
    return truncated
