"""Random values for a graph's inputs that are not states: drawn from a seed, different at each level and step.

floats      normal, or uniform within a bound
integers    every value of the bound once before any repeats, both ends first: a table's first and last rows are read
            at the start, and all rows if the stream is long enough
masks       0 or 1, but no row hides everything (a row lies along the last axis)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from engines.memory import Array

Bound = tuple[float, float]
"""Smallest and largest value of an input, both included."""
MOST_IN_ORDER = 2**22
"""Largest number of values drawn without repetition; with more, repetitions are rare anyway."""
APART = 9973
"""Offset in steps between the draws of one level and the next."""


class Moment(NamedTuple):
    """The moment of a draw. Equal moments draw equal values, in every check; different ones draw different values."""

    seed: int
    level: str
    step: int
    name: str = ""

    @property
    def own_seed(self) -> int:
        """Seed of this input. If two inputs of one kind had the same values, swapping them would go unnoticed."""
        return crc32(self.name.encode()) + self.seed

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.own_seed, ord(self.level), self.step))


def draw(shape: tuple[int, ...], dtype: str, bound: Bound | None, moment: Moment, *, hides: int | None = None) -> Array:
    """One input, in its dtype. Integers and bool need a bound; for floats, None means normal values.

    hides  for a mask: the value, 0 or 1, that hides
    """
    values: Any
    rng = moment.rng()
    if bound is None:
        values = rng.standard_normal(shape)
    elif np.dtype(dtype).kind == "f":
        values = rng.uniform(*bound, shape)
    elif hides is not None and shape and bound == (0, 1):
        values = _mask(shape, hides, rng)
    else:
        low, high = int(bound[0]), int(bound[1])
        if not 1 < high - low < MOST_IN_ORDER:  # with two values, taking turns would make them alternate
            values = rng.integers(low, high, shape, dtype=np.int64, endpoint=True)
        else:
            values = low + _in_turn(int(np.prod(shape)), high - low + 1, moment, rng).reshape(shape)
    return np.asarray(values).astype(dtype)


def _in_turn(count: int, num_values: int, moment: Moment, rng: np.random.Generator) -> Array:
    """`count` values of 0..num_values - 1. Each step continues where the previous one ended."""
    if count >= num_values or not count:
        more = rng.integers(0, num_values, max(count - num_values, 0))
        return rng.permutation(np.concatenate([np.arange(min(count, num_values)), more]))
    places = np.arange(count) + (moment.step + APART * (ord(moment.level) - ord("D"))) * count
    first, last = (_turn(num_values, moment.own_seed, int(place) // num_values) for place in (places[0], places[-1]))
    return np.where(
        places // num_values == places[0] // num_values, first[places % num_values], last[places % num_values]
    )


@lru_cache(maxsize=8)
def _turn(num_values: int, seed: int, turn: int) -> Array:
    """All values in an order specific to this turn; a stream's first turn begins with both ends."""
    order: Array = np.random.default_rng((seed, num_values, abs(turn), int(turn < 0))).permutation(num_values)
    if turn == 0:
        ends = [0, num_values - 1] if num_values > 1 else [0]
        order = np.concatenate([ends, order[(order != ends[0]) & (order != ends[-1])]])
    return order


def _mask(shape: tuple[int, ...], hides: int, rng: np.random.Generator) -> Array:
    """0 or 1, with the first position of every row visible, so that a causal mask on top still leaves something."""
    values: Array = rng.integers(0, 1, shape, endpoint=True)
    values[..., :1] = 1 - hides
    return values
