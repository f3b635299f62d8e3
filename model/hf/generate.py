"""Generation by transformers, its tokens handed on as they come.

transformers has no generator: it runs in a thread of its own, which ends with the last token or
when nobody wants more. Tokens are sampled by this project's rule, one random generator a row.
Shapes: B rows, T tokens so far, V words of the vocabulary.
"""

import queue
import threading
from collections.abc import Generator
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from model.next_token import filter_logits, make_generators, sample, token_limits
from model.sampling import Sampling


class _Sampler(transformers.LogitsProcessor):
    """Leaves of each row's words the one that was sampled, which a greedy search then takes."""

    def __init__(self, sampling, generators):
        self.sampling = sampling
        self.generators = generators

    def __call__(self, input_ids, scores):
        ids, weights = filter_logits(scores.float(), self.sampling)
        token = sample(ids, weights, self.generators)  # [B]
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0)


class _Limits(transformers.StoppingCriteria):
    """Ends each row at its own limit, and all of them when the caller has left."""

    def __init__(self, prompt_length, limits, left):
        self.prompt_length = prompt_length
        self.limits = limits
        self.left = left

    def __call__(self, input_ids, scores, **options):
        generated = input_ids.size(1) - self.prompt_length
        over = self.left.is_set()
        ended = [over or generated >= limit for limit in self.limits]
        return torch.tensor(ended, device=input_ids.device)


class _Tokens(BaseStreamer):
    """Puts the ids of each step into a queue."""

    def __init__(self, steps):
        self.steps = steps
        self.is_prompt = True

    def put(self, value):
        if not self.is_prompt:
            self.steps.put(value.reshape(-1).tolist())
        self.is_prompt = False

    def end(self):
        self.steps.put(None)


def _settings(sampling, limits, end_ids, pad):
    """Greedy, with nothing of the base's own generation_config.json."""
    return transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_length=None,
        max_new_tokens=max(limits),
        min_new_tokens=sampling.min_new_tokens,
        eos_token_id=list(end_ids),
        pad_token_id=pad,
        use_cache=True,
    )


def generate(
    model: Any,
    inputs: dict[str, torch.Tensor],
    *,
    end_ids: list[int],
    pad: int,
    sampling: Sampling,
    context_length: int,
) -> Generator[list[int | None], None, list[bool]]:
    """Continue each prompt; yields a list of B ids a step until all rows have ended.

    A row that has ended has None; its end token is not yielded. Returns for each row whether its
    length limit ended it.

    inputs: of the processor, padded at their beginning, on the device.
    """
    lengths = inputs["attention_mask"].sum(1).tolist()
    limits = token_limits(lengths, sampling, context_length)
    truncated = [True] * len(lengths)
    if max(limits) == 0:
        return truncated

    device = inputs["input_ids"].device
    processors: list[transformers.LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        penalty = transformers.RepetitionPenaltyLogitsProcessor(
            sampling.repetition_penalty, prompt_ignore_length=inputs["input_ids"].size(1)
        )
        processors.append(penalty)
    if not sampling.greedy:
        processors.append(_Sampler(sampling, make_generators(len(limits), device, sampling.seed)))
    left = threading.Event()
    steps = _in_thread(
        model,
        left,
        **inputs,
        generation_config=_settings(sampling, limits, end_ids, pad),
        logits_processor=transformers.LogitsProcessorList(processors),
        stopping_criteria=[_Limits(inputs["input_ids"].size(1), limits, left)],
    )

    unfinished = [limit > 0 for limit in limits]
    try:
        for number, tokens in enumerate(steps):
            for row, token in enumerate(tokens):
                if number >= limits[row]:
                    unfinished[row] = False
                elif unfinished[row] and token in end_ids:
                    unfinished[row] = truncated[row] = False
            if any(unfinished):
                yield [t if active else None for t, active in zip(tokens, unfinished)]
    finally:
        steps.close()
    return truncated


def _in_thread(model, left, **arguments):
    """Yield the ids [B] of each step of model.generate; leaving early ends it."""
    steps = queue.Queue()  # of lists of ids, an exception, or None at the end

    @torch.inference_mode()
    def run():
        try:
            model.generate(**arguments, streamer=_Tokens(steps))
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits)
            steps.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        left.set()
        thread.join()
