"""How the next token of an answer is chosen, for every family."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer; the defaults are VisualGLM's.

    temperature 0, top_p 0 or top_k 1 is greedy. The repetition penalty of VisualGLM is SAT's rule:
    the logit of a token generated before is divided by it, whatever its sign (transformers
    multiplies negative ones instead).
    """

    max_length: int = 2048  # prompt and answer together, in tokens
    max_new_tokens: int | None = None
    min_new_tokens: int = 0  # before so many the answer does not end
    temperature: float = 0.8
    top_p: float = 0.4
    top_k: int = 100  # 0: no limit
    repetition_penalty: float = 1.2
    seed: int | None = None

    @property
    def greedy(self):
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1
