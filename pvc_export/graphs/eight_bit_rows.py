"""Cached keys and values in int8: codes, and a scale for each row and head.

A row is rounded when it is computed, so that its own frame or token sees the same values as later ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engines.spec import State
from pvc_ref import PVC
from pvc_ref.layers import upcast
from pvc_ref.llm import CausalAttention
from pvc_ref.temporal import TemporalAttention

from .eight_bits import row_scales
from .precision import spelled


@dataclass(frozen=True, slots=True)
class EightBitRows:
    """Keys or values as codes, int8 (..., D), and scales, float32 (..., 1).

    Not a tuple: a float32 island casts every tensor in a tuple.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def of(x: Tensor) -> EightBitRows:
        """Round each row of a head to integers -127..127 times a scale for that row."""
        wide = upcast(x)
        scales = row_scales(wide)
        return EightBitRows((wide / scales).round().to(torch.int8), scales)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.codes.dtype

    def to(self, dtype: torch.dtype) -> Tensor:
        """Dequantise to `dtype`."""
        return (self.codes.to(self.scales.dtype) * self.scales).to(dtype)


def rounded_rows(x: Tensor) -> Tensor:
    """Round keys or values (..., D) as the cache stores them."""
    return EightBitRows.of(x).to(x.dtype)


class RoundedTemporalAttention(TemporalAttention):
    """The reference for a ring in int8."""

    stands_for = TemporalAttention

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return q, rounded_rows(k), rounded_rows(v)


class RoundedCausalAttention(CausalAttention):
    """The reference for an LLM cache in int8."""

    stands_for = CausalAttention

    def rows(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().rows(x, rope)
        return q, rounded_rows(k), rounded_rows(v)


ROUNDED: dict[State, tuple[type[nn.Module], type[nn.Module]]] = {
    "ring": (TemporalAttention, RoundedTemporalAttention), "cache": (CausalAttention, RoundedCausalAttention),
}  # fmt: skip
"""State -> the attention class that produces its rows, and the subclass that rounds them."""


def round_states(model: PVC, states: Collection[State]) -> PVC:
    """Return a copy with these states in int8, which shares every weight; the model itself for no states."""
    return spelled(model, dict(ROUNDED[state] for state in states))


def joined_states(tensors: Sequence[Tensor]) -> list[tuple[Any, Any]]:
    """Group a graph's states into (key, value) per layer, as tensors or EightBitRows.

    They are in the order of the spec: key, value, key, value, ...; scales follow after all codes.
    """
    if not tensors or tensors[0].dtype != torch.int8:
        return list(zip(tensors[0::2], tensors[1::2], strict=True))
    half = len(tensors) // 2
    rows = [EightBitRows(*pair) for pair in zip(tensors[:half], tensors[half:], strict=True)]
    return list(zip(rows[0::2], rows[1::2], strict=True))


def split_states(pairs: Sequence[tuple[Any, Any]]) -> list[Tensor]:
    """The inverse of `joined_states`."""
    rows = [row for pair in pairs for row in pair]
    if not rows or isinstance(rows[0], Tensor):
        return rows
    return [row.codes for row in rows] + [row.scales for row in rows]
