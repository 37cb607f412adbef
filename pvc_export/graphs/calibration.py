"""One scale for ever of what each product is fed, chosen by the values that came on frames.

    value = code * scale, codes -128..127: a value beyond the largest code is cut off, and a small one loses its digits

So a scale is a choice between the two, and there are several ways to make it (engines/spec.py, CalibrationMethod).
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
"""Largest values that `error` tries, as parts of the largest that came."""


class Magnitudes:
    """How often values of each size came: a histogram of |x| from 0 on, whose bins double in width as larger ones come.

    Memory does not grow with what is added.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        self._width, self._largest = 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """Values of any shape, finite."""
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
        """The scale by one of the methods, exact in `dtype`, and a normal number there. Of nothing but zeros: 1."""
        reach = {"max": self._all, "percentile": self._nearly_all, "error": self._least_error}[method]()
        scale = max(reach / LARGEST_CODE, torch.finfo(dtype).tiny) if reach else 1.0
        return float(torch.tensor(scale, dtype=torch.float64).to(dtype))

    def cost(self, scale: float) -> float:
        """What rounding by a scale does to all that came: root mean square error over root mean square."""
        errors = self._errors(torch.tensor([scale], dtype=torch.float64))
        squares = (self._middles().square() * self._counts).sum()
        return float((errors[0] / squares).sqrt()) if squares else 0.0

    def _middles(self) -> Tensor:
        """Of the bins. Of the widest codes a bin is at most a sixteenth."""
        return (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5) * self._width

    def _errors(self, scales: Tensor) -> Tensor:
        """The summed squared error by each scale, if every value stood in the middle of its bin."""
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
    """What the products with these weights are fed, while it lasts."""
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
