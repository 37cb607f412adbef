"""Threads and matrix products that suit a small model on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_products(num_threads: int = 1) -> Iterator[None]:
    """One thread, and oneDNN for matrix products, until the end of the block.

    Not less exact on a CPU: MKL uses half of the vector width on processors of other makers than its own, and oneDNN,
    which the word "medium" selects, all of it (106 against 240 GFLOP/s with the same float32 result; docs/log.md).
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads)
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
