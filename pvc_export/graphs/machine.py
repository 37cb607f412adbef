"""Model size relative to this machine: whether a model is small, and how many threads to give it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

LARGEST_FP64 = 20_000_000
"""Most parameters of a small model. Above it, float64 would take minutes and twice the reference's memory."""


def is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST_FP64


def fitting_threads(model: nn.Module) -> AbstractContextManager[None]:
    """Use one torch thread for a small model.

    A second thread does not speed up its operations, and on a busy machine each operation waits for it (0.4 s per frame
    of `tiny` instead of 0.02).
    """
    return torch_threads(1) if is_small(model) else nullcontext()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
