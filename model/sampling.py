"""How the next token of an answer is chosen, for every family."""

from dataclasses import dataclass

from model.errors import UserError

# Least and greatest value of a setting; None: no greatest
LIMITS = {
    "max_length": (2, None),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, None),
    "repetition_penalty": (0.01, 100),
    "seed": (0, 2**63 - 1),
}
# Logits divided by less than this could overflow, and hardly any other token would be sampled
LEAST_TEMPERATURE = 1e-5


def limit_problem(name, value):
    """What is wrong with a setting's value, or None."""
    low, high = LIMITS[name]
    if high is None:
        return None if value >= low else f"must be at least {low}"
    # Not the other way round: nan is neither below nor above
    return None if low <= value <= high else f"must be at least {low} and at most {high}"


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer; the defaults are VisualGLM's. Raises UserError beyond LIMITS.

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

    def __post_init__(self):
        for name in LIMITS:
            value = getattr(self, name)
            problem = None if value is None else limit_problem(name, value)
            if problem:
                raise UserError(f"{name} {value}: {problem}")

    @property
    def greedy(self):
        return self.temperature < LEAST_TEMPERATURE or self.top_p == 0 or self.top_k == 1
