"""A reference whose matrices lie in files: each is read when its module is called, or for a whole layer at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..rounding import Reference


@contextmanager
def read_when_called(reference: Reference) -> Iterator[None]:
    """Within it, both sides compute: a module reads its matrix before it runs, and forgets it afterwards."""
    hooks = []
    for name, module in _stored(reference, ""):
        for side in (module, reference.twin.get_submodule(name)):
            loan = _Loan(reference, f"{name}.weight", _weight(side))
            hooks += [side.register_forward_pre_hook(loan.begin), side.register_forward_hook(loan.end)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Loan:
    """The matrix of one module, there only while that runs; one that is held anyway is let be."""

    def __init__(self, reference: Reference, name: str, empty: Tensor) -> None:
        self._reference, self._name, self._empty = reference, name, empty
        self._is_running = False

    def begin(self, module: nn.Module, _: Any) -> None:
        self._is_running = _weight(module).is_meta
        if self._is_running:
            _set(module, nn.Parameter(self._reference.model.weight(self._name), requires_grad=False))

    def end(self, module: nn.Module, *_: Any) -> None:
        if self._is_running:
            _set(module, self._empty)


@contextmanager
def held(reference: Reference, part: str) -> Iterator[None]:
    """Within it, the matrices of a part of the model are in memory, once for both sides."""
    empty = list[tuple[nn.Module, Tensor]]()
    try:
        for name, module in _stored(reference, part):
            values = nn.Parameter(reference.model.weight(f"{name}.weight"), requires_grad=False)
            for side in (module, reference.twin.get_submodule(name)):
                empty.append((side, _weight(side)))
                _set(side, values)
        yield
    finally:
        for module, weight in empty:
            _set(module, weight)


def _stored(reference: Reference, part: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a part whose matrix lies in a file, by their names in the model."""
    for inner, module in reference.model.get_submodule(part).named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.is_meta:
            yield ".".join(filter(None, (part, inner))), module


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _set(module: nn.Module, weight: Tensor) -> None:
    module.weight = weight
