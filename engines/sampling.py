"""Choice of an answer's next token: the likeliest one, or a random one among the likely ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import StreamError
from .memory import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Parameters for choosing a token. Raises StreamError for values out of range.

    temperature  0: always the likeliest. Otherwise the logits are divided by it, so values above 1 favour rare tokens
    top_p        choose among the likeliest tokens whose probabilities add up to this
    seed         the same seed gives the same answer to the same question; None: a different one each time
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise StreamError(f"temperature is {self.temperature}", expected="0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise StreamError(f"top_p is {self.top_p}", expected="above 0 and at most 1")


GREEDY = Sampling()


class Sampler:
    """Chooses the tokens of one answer. Temperature 0 draws no random number."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else seed % 2**64)

    def choose(self, logits: Array) -> int:
        """Return a token id, from float logits (V,)."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        tokens, shares = nucleus(logits, self._sampling)
        # The first token whose cumulative share exceeds the draw; the last if rounding leaves the sum below 1.
        at = int(np.searchsorted(shares.cumsum(), self._random.random(), side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def nucleus(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """The candidate tokens, likeliest first, and their probabilities, for a temperature above 0.

    The token that reaches top_p is included, so there is always at least one.
    """
    with np.errstate(over="ignore"):  # overflows to minus infinity: probability 0
        scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order])
    shares = weights / weights.sum()
    num_kept = len(shares)
    if sampling.top_p < 1:
        num_kept = min(int(np.searchsorted(shares.cumsum(), sampling.top_p, side="left")) + 1, num_kept)
    return order[:num_kept], shares[:num_kept] / shares[:num_kept].sum()
