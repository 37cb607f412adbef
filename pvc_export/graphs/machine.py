"""How much of this machine a model takes: whether it is small, and how many threads it is worth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

LARGEST_FP64 = 20_000_000
"""Parameters of a small model. Beyond, float64 would take minutes and twice the reference's memory."""


def is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST_FP64


def fitting_threads(model: nn.Module) -> AbstractContextManager[None]:
    """One torch thread for a small model: its operations gain nothing from a second, and on a busy machine each waits
    for it (0.4 s a frame of `tiny` in place of 0.02)."""
    return torch_threads(1) if is_small(model) else nullcontext()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
