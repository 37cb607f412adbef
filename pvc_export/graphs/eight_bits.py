"""Linear layers whose input is rounded to eight bits as it comes: the reference of a bundle that computes so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import Inputs
from pvc_ref.layers import upcast

LARGEST_CODE = 127.0
SMALLEST_SCALE = 1e-30
"""Of a row of zeros."""


def row_scales(x: Tensor) -> Tensor:
    """Of each row of x (..., C) the scale by which its largest value is the largest code, (..., 1)."""
    return (x.abs().amax(-1, keepdim=True) / LARGEST_CODE).clamp_min(SMALLEST_SCALE)


class EightBitLinear(nn.Linear):
    """A linear layer that rounds its input. Its weight is what codes stand for."""

    block: int | None
    """Values along the input that share a scale of its weight."""
    scale: float | None
    """Of its input, where that has one for ever."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.rounded(upcast(x))
        weight = self.weight.to(rounded.dtype)
        if rounded.dtype == x.dtype:
            return F.linear(rounded, weight, self.bias)
        y = F.linear(rounded, weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def rounded(self, x: Tensor) -> Tensor:
        """x (..., C), in the values that codes stand for."""
        raise NotImplementedError


class RowsLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Every row is whole numbers -127..127 times a scale of its own."""
        scale = row_scales(x)
        return (x / scale).round() * scale


class BlocksLinear(RowsLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Every block of a row is whole numbers -127..127 times a scale of its own: ONNX Runtime's MatMulNBits."""
        assert self.block is not None
        blocks: Tensor = super().rounded(x.unflatten(-1, (-1, self.block)))
        return blocks.flatten(-2)


class TensorLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """All rows of one frame, x (..., N, C), are whole numbers 0..255 less a zero point, times one scale: what
        ONNX's DynamicQuantizeLinear makes of a pass, which is one frame. A clip has as many scales as frames."""
        low, high = x.amin((-2, -1), keepdim=True).clamp_max(0), x.amax((-2, -1), keepdim=True).clamp_min(0)
        scale = torch.where(high == low, 1.0, (high - low) / 255)
        zero_point = (-low / scale).clamp(0, 255).round()
        return (((x / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale


class StaticLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Whole numbers -128..127 times the one scale; what lies beyond them is cut off."""
        assert self.scale is not None
        codes: Tensor = (x / self.scale).round()
        return codes.clamp(-LARGEST_CODE - 1, LARGEST_CODE) * self.scale


ROUNDED: dict[Inputs, type[EightBitLinear]] = {
    "blocks": BlocksLinear, "rows": RowsLinear, "tensor": TensorLinear, "static": StaticLinear,
}  # fmt: skip


def round_inputs(layer: nn.Module, inputs: Inputs, *, block: int | None = None, scale: float | None = None) -> None:
    """From here on a linear layer rounds its input."""
    layer.__class__ = ROUNDED[inputs]
    assert isinstance(layer, EightBitLinear)
    layer.block, layer.scale = block, scale
