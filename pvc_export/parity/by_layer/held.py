"""A reference whose matrices are in files: each is read when its module is called, or for a whole layer at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...terminal.facts import give_back
from ..rounding import Reference


@contextmanager
def read_when_called(reference: Reference) -> Iterator[None]:
    """In this context, both sides can compute: a module reads its matrix before it runs, and frees it afterwards."""
    hooks = []
    for name, module in _stored(reference, ""):
        for side in (module, reference.twin.get_submodule(name)):
            loan = _Loan(reference, f"{name}.weight", side)
            hooks += [side.register_forward_pre_hook(loan.begin), side.register_forward_hook(loan.end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Loan:
    """The matrix of one module, in memory only while it runs. One that is in memory anyway is left alone."""

    def __init__(self, reference: Reference, name: str, module: nn.Module) -> None:
        self._reference, self._name, self._empty = reference, name, _weight(module)
        self._dtype = getattr(module, "dtype", torch.float32)  # a twin's is cast when read, so only one copy exists
        self._is_running = False

    def begin(self, module: nn.Module, _: Any) -> None:
        self._is_running = _weight(module).is_meta
        if self._is_running:
            _set(module, self._reference.model.weight(self._name).to(self._dtype))

    def end(self, module: nn.Module, *_: Any) -> None:
        if self._is_running:
            _set(module, self._empty)


@contextmanager
def held(reference: Reference, part: str, *, cast: bool = False) -> Iterator[None]:
    """In this context, the matrices of a part of the model are in memory, once for both sides.

    cast  give the twin separate copies, cast once, for many short calls that would each cast all matrices
    """
    empty = list[tuple[nn.Module, Tensor]]()
    try:
        for name, module in _stored(reference, part):
            twin = reference.twin.get_submodule(name)
            values = nn.Parameter(reference.model.weight(f"{name}.weight"), requires_grad=False)
            empty += [(side, _weight(side)) for side in (module, twin)]
            for side in (module, twin):
                _set(side, values)
            if cast and hasattr(twin, "is_cast"):
                _set(twin, _cast(values, reference.dtype))
                twin.is_cast = True  # type: ignore[assignment]
        yield
    finally:
        for module, weight in empty:
            _set(module, weight)
            if hasattr(module, "is_cast"):
                module.is_cast = False  # type: ignore[assignment]
        give_back()


def _stored(reference: Reference, part: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a part whose matrix is in a file, with their names in the model."""
    for inner, module in reference.model.get_submodule(part).named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.is_meta:
            yield ".".join(filter(None, (part, inner))), module


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _set(module: nn.Module, weight: Tensor) -> None:
    module.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values as the twin computes with them: float16 matmuls run in float32 on a CPU."""
    narrow = values.to(dtype)
    return narrow.float() if dtype == torch.float16 else narrow
