"""Keys and values that a stream remembers in eight bits: codes, and a scale for each row and head.

A row is rounded as it is made, so that the frame or the token that it belongs to sees what later ones will see.
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
    """Codes, int8 (..., D), and scales, float32 (..., 1), in place of a tensor of keys or values.

    No tuple: a float32 island casts every tensor that it finds in one.
    """

    codes: Tensor
    scales: Tensor

    @staticmethod
    def of(x: Tensor) -> EightBitRows:
        """Every row of a head is whole numbers -127..127 times a scale of its own."""
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
        """The values."""
        return (self.codes.to(self.scales.dtype) * self.scales).to(dtype)


def rounded_rows(x: Tensor) -> Tensor:
    """Keys or values (..., D) as they are remembered."""
    return EightBitRows.of(x).to(x.dtype)


class RoundedTemporalAttention(TemporalAttention):
    """The reference of a ring in eight bits."""

    stands_for = TemporalAttention

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return q, rounded_rows(k), rounded_rows(v)


class RoundedCausalAttention(CausalAttention):
    """The reference of an LLM cache in eight bits."""

    stands_for = CausalAttention

    def rows(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().rows(x, rope)
        return q, rounded_rows(k), rounded_rows(v)


ROUNDED: dict[State, tuple[type[nn.Module], type[nn.Module]]] = {
    "ring": (TemporalAttention, RoundedTemporalAttention), "cache": (CausalAttention, RoundedCausalAttention),
}  # fmt: skip
"""The attention that makes a state's rows, and that which rounds them."""


def round_states(model: PVC, states: Collection[State]) -> PVC:
    """A copy that remembers these in eight bits. It shares every weight; the model itself where there are none."""
    return spelled(model, dict(ROUNDED[state] for state in states))


def joined_states(tensors: Sequence[Tensor]) -> list[tuple[Any, Any]]:
    """A graph's states as keys and values of each layer, tensors or EightBitRows, by the order of its spec: key, value,
    key, value, ..., and behind codes their scales."""
    if not tensors or tensors[0].dtype != torch.int8:
        return list(zip(tensors[0::2], tensors[1::2], strict=True))
    half = len(tensors) // 2
    rows = [EightBitRows(*pair) for pair in zip(tensors[:half], tensors[half:], strict=True)]
    return list(zip(rows[0::2], rows[1::2], strict=True))


def split_states(pairs: Sequence[tuple[Any, Any]]) -> list[Tensor]:
    """The reverse."""
    rows = [row for pair in pairs for row in pair]
    if not rows or isinstance(rows[0], Tensor):
        return rows
    return [row.codes for row in rows] + [row.scales for row in rows]
