"""Linear layers that round their input to int8: the reference for a bundle with int8 matmuls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import Inputs
from pvc_ref.layers import upcast

LARGEST_CODE = 127.0
STEP = 1 / LARGEST_CODE
SMALLEST = 1e-30
"""Scale, and largest value, of an all-zero row."""


def row_scales(x: Tensor) -> Tensor:
    """Scale (..., 1) of each row of x (..., C), with which its largest value is the largest code."""
    return (x.abs().amax(-1, keepdim=True) / LARGEST_CODE).clamp_min(SMALLEST)


class EightBitLinear(nn.Linear):
    """A linear layer that rounds its input. Its weight has the values of the codes."""

    block: int | None
    """Number of values along the input that share a weight scale."""
    scale: float | None
    """Static scale of its input, if there is one."""

    def forward(self, x: Tensor) -> Tensor:
        rounded = self.rounded(upcast(x))
        weight = self.weight.to(rounded.dtype)
        if rounded.dtype == x.dtype:
            return F.linear(rounded, weight, self.bias)
        y = F.linear(rounded, weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def rounded(self, x: Tensor) -> Tensor:
        """Round x (..., C) to the values of codes."""
        raise NotImplementedError


class RowsLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Round each row, divided by its largest value, to integers -127..127 times 1 / 127."""
        largest = x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST)
        step: Tensor = x.new_tensor(STEP)  # dividing by a number, torch may multiply by its reciprocal
        rounded: Tensor = (x / largest / step).round() * step * largest
        return rounded


class BlocksLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Round each block of a row to integers -127..127 times a scale per block, as MatMulNBits does."""
        assert self.block is not None
        blocks: Tensor = x.unflatten(-1, (-1, self.block))
        scale = row_scales(blocks)
        return ((blocks / scale).round() * scale).flatten(-2)


class TensorLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Round the rows of each frame, x (..., N, C), to integers 0..255 minus a zero point, times a scale.

        ONNX's DynamicQuantizeLinear does this for a pass, which is one frame. A clip has one scale per frame.
        """
        low, high = x.amin((-2, -1), keepdim=True).clamp_max(0), x.amax((-2, -1), keepdim=True).clamp_min(0)
        scale = torch.where(high == low, 1.0, (high - low) / 255)
        zero_point = (-low / scale).clamp(0, 255).round()
        return (((x / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale


class StaticLinear(EightBitLinear):
    def rounded(self, x: Tensor) -> Tensor:
        """Round to integers -128..127 times the static scale; values over that range are clipped."""
        assert self.scale is not None
        codes: Tensor = (x / self.scale).round()
        return codes.clamp(-LARGEST_CODE - 1, LARGEST_CODE) * self.scale


ROUNDED: dict[Inputs, type[EightBitLinear]] = {
    "blocks": BlocksLinear, "rows": RowsLinear, "tensor": TensorLinear, "static": StaticLinear,
}  # fmt: skip


def round_inputs(layer: nn.Module, inputs: Inputs, *, block: int | None = None, scale: float | None = None) -> None:
    """Make a linear layer round its input, in place."""
    layer.__class__ = ROUNDED[inputs]
    assert isinstance(layer, EightBitLinear)
    layer.block, layer.scale = block, scale
