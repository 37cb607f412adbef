"""float16 on a CPU, operation by operation: computed in float32, and the result rounded to float16.

torch's CPU kernels round too, but multiply float16 matrices up to a thousand times slower than float32 ones (10 s for
one temporal attention at 1025 positions; bfloat16 is fast). Here matmuls are summed in float32 and rounded once, as
tensor cores do it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
PRODUCTS = {
    ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default, ATEN.convolution.default,
}  # fmt: skip


class Float16Products(TorchDispatchMode):
    """In this context, float16 matmuls and convolutions run in float32 and their results are rounded."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not any(_is_half(arg) for arg in args):
            return func(*args, **kwargs)
        return func(*(arg.float() if _is_half(arg) else arg for arg in args), **kwargs).half()


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float16
