"""Static input scales of int8 matmuls, chosen from the values observed on frames.

    value = code * scale, codes -128..127: a value over the largest code is clipped, and a small value loses precision

A scale trades one for the other; engines/spec.py, CalibrationMethod, lists the methods to choose it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from engines.spec import CalibrationMethod

from .eight_bits import LARGEST_CODE

NUM_BINS = 4096
PERCENTILE = 0.9999
SHRUNK = torch.logspace(0, math.log10(0.02), 128, dtype=torch.float64)
"""Largest values tried by the method `error`, as fractions of the largest observed value."""


class Magnitudes:
    """Histogram of |x| from 0. Its bins double in width when larger values are added.

    Memory does not grow with the number of values.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        self._width, self._largest = 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """Add finite values of any shape."""
        sizes = x.detach().abs().float().flatten()
        largest = float(sizes.max())
        if largest > 0 and not self._width:
            self._width = 2.0 ** math.ceil(math.log2(largest / NUM_BINS))
        while largest > NUM_BINS * self._width:
            self._width *= 2
            self._counts = torch.cat([self._counts.unflatten(0, (-1, 2)).sum(-1), torch.zeros(NUM_BINS // 2)])
        self._largest = max(self._largest, largest)
        if self._width:
            self._counts += torch.histc(sizes, NUM_BINS, 0, NUM_BINS * self._width)

    def scale(self, method: CalibrationMethod, dtype: torch.dtype) -> float:
        """Choose the scale by a method. It is exact and normal in `dtype`, and 1 if all values are zero."""
        reach = {"max": self._all, "percentile": self._nearly_all, "error": self._least_error}[method]()
        scale = max(reach / LARGEST_CODE, torch.finfo(dtype).tiny) if reach else 1.0
        return float(torch.tensor(scale, dtype=torch.float64).to(dtype))

    def cost(self, scale: float) -> float:
        """Relative error from rounding with a scale: root mean square error over root mean square."""
        errors = self._errors(torch.tensor([scale], dtype=torch.float64))
        squares = (self._middles().square() * self._counts).sum()
        return float((errors[0] / squares).sqrt()) if squares else 0.0

    def _middles(self) -> Tensor:
        """Centres of the bins. A bin is at most a sixteenth of the widest code step."""
        return (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * self._width

    def _errors(self, scales: Tensor) -> Tensor:
        """Summed squared error for each scale, with every value at the centre of its bin."""
        codes = (self._middles() / scales[:, None]).round().clamp_max(LARGEST_CODE)
        return ((codes * scales[:, None] - self._middles()).square() * self._counts).sum(-1)

    def _all(self) -> float:
        return self._largest

    def _nearly_all(self) -> float:
        part = self._counts.cumsum(0) / self._counts.sum().clamp_min(1)
        return min(float((part < PERCENTILE).sum() + 1) * self._width, self._largest)

    def _least_error(self) -> float:
        if not self._largest:
            return 0.0
        reaches = SHRUNK * self._largest
        return float(reaches[self._errors(reaches / LARGEST_CODE).argmin()])


@contextmanager
def observed(model: nn.Module, weights: Iterable[str]) -> Iterator[dict[str, Magnitudes]]:
    """Record the inputs of the linear layers with these weights, until the end of the block."""
    found = {name: Magnitudes() for name in weights}
    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, args, sizes=sizes: sizes.add(args[0])
        )
        for name, sizes in found.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
