"""Thread and matmul settings for a small model on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fast_products() -> Iterator[None]:
    """Use one thread, and oneDNN for matmuls, until the end of the block.

    On a CPU "medium" does not reduce precision: it selects oneDNN instead of MKL. On non-Intel processors, MKL uses
    half of the vector width and oneDNN all of it (106 against 240 GFLOP/s, same float32 result; docs/log.md).
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
