"""How the next token of an answer is chosen: the likeliest one, or one at random among the likely ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import StreamError
from .memory import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a token is chosen. Raises StreamError for numbers that no choice can follow.

    temperature  0: always the likeliest. Else the logits are divided by it, so above 1 rare tokens come more often
    top_p        of the likeliest tokens as many as have this probability together; the others never come
    seed         the same one gives the same answer to the same question; None: another one each time
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise StreamError(f"temperature is {self.temperature}", expected="0, the likeliest token, or more")
        if not 0 < self.top_p <= 1:
            raise StreamError(f"top_p is {self.top_p}", expected="more than 0 and at most 1")


GREEDY = Sampling()


class Sampler:
    """Chooses the tokens of one answer. With temperature 0 no number is drawn."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = sampling.seed
        self._random = np.random.default_rng(None if seed is None else seed % 2**64)

    def choose(self, logits: Array) -> int:
        """A token id, of float logits (V,)."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        tokens, shares = nucleus(logits, self._sampling)
        # The first whose share is reached; the last one should rounding leave the sum below 1.
        at = int(np.searchsorted(shares.cumsum(), self._random.random(), side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def nucleus(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """The tokens that may be chosen, likeliest first, and the probability of each; the temperature is above 0.

    The token with which top_p is reached is one of them, so there is always one.
    """
    with np.errstate(over="ignore"):  # to minus infinity, which is as unlikely as it should be
        scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order])
    shares = weights / weights.sum()
    num_kept = len(shares)
    if sampling.top_p < 1:
        num_kept = min(int(np.searchsorted(shares.cumsum(), sampling.top_p, side="left")) + 1, num_kept)
    return order[:num_kept], shares[:num_kept] / shares[:num_kept].sum()
