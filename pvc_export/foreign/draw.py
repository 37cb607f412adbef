"""How the inputs of a graph that are no states are drawn: from a seed, others at each level and step.

floats      normal, or uniform within a bound
integers    every value of their bound once before any comes again, both ends first: a table has its last row read
            as well as its first, and all of them where the stream is long enough
masks       0 or 1, but no row of them hides everything (a row lies along the last axis)
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
"""Values of a bound that are drawn without repetition; from more of them a repetition is rare."""
APART = 9973
"""Steps between what one level draws and what the next one does."""


class Moment(NamedTuple):
    """When an input is drawn: the same in each check, and for no other input, level or step."""

    seed: int
    level: str
    step: int
    name: str = ""

    @property
    def own_seed(self) -> int:
        """Of the input: two of a kind that were drawn alike could be exchanged unseen."""
        return crc32(self.name.encode()) + self.seed

    def rng(self) -> np.random.Generator:
        return np.random.default_rng((self.own_seed, ord(self.level), self.step))


def draw(shape: tuple[int, ...], dtype: str, bound: Bound | None, moment: Moment, *, hides: int | None = None) -> Array:
    """One input, of its dtype. Integers and bool have a bound; of floats, None stands for normal values.

    hides  for a mask, the one of 0 and 1 that hides
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
        if not 1 < high - low < MOST_IN_ORDER:  # of two values, a turn would make every other one the opposite
            values = rng.integers(low, high, shape, dtype=np.int64, endpoint=True)
        else:
            values = low + _in_turn(int(np.prod(shape)), high - low + 1, moment, rng).reshape(shape)
    return np.asarray(values).astype(dtype)


def _in_turn(count: int, num_values: int, moment: Moment, rng: np.random.Generator) -> Array:
    """So many of 0..num_values - 1: what a step draws goes on where the step before ended."""
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
    """All values in an order of its own; the first turn of a stream begins with both ends."""
    order: Array = np.random.default_rng((seed, num_values, abs(turn), int(turn < 0))).permutation(num_values)
    if turn == 0:
        ends = [0, num_values - 1] if num_values > 1 else [0]
        order = np.concatenate([ends, order[(order != ends[0]) & (order != ends[-1])]])
    return order


def _mask(shape: tuple[int, ...], hides: int, rng: np.random.Generator) -> Array:
    """0 or 1, and the first of every row shown, so that a causal mask on top of it leaves something as well."""
    values: Array = rng.integers(0, 1, shape, endpoint=True)
    values[..., :1] = 1 - hides
    return values
