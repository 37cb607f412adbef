"""A large model without the values of its matrices: it exports to the same graph, and takes no memory and little time.

Of a fresh export that a bundle's structure is held against (parity/structure.py) the matrices' values are not needed:
what a graph looks like does not depend on them. What is small keeps its values, for the exporter joins equal small
constants and leaves out a bias of zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvc_ref import PVC
from pvc_ref.temporal import TimeEmbedding

from .joined import JOINED
from .precision import ModuleT, copy_with

SMALL = 1024
"""Values of a constant up to which onnx-ir's DeduplicateInitializersPass joins equal ones."""
PRODUCTS = (nn.Linear, nn.Conv2d, nn.Embedding)


def hollow(model: PVC, *, keep_clock: bool) -> PVC:
    """A copy whose large matrices are on the device `meta`; it shares all other weights.

    keep_clock  give the time embeddings their values, as a table of them needs, even where they lie in a file
    """
    emptied = set[int]()
    for module in model.modules():
        if type(module) in JOINED:  # all parts of a joined product or none
            emptied |= {id(part.weight) for part in module.children() if isinstance(part, nn.Linear)}
        if isinstance(module, PRODUCTS) and module.weight.numel() > SMALL:
            emptied.add(id(module.weight))
    clock = _clock_weights(model) if keep_clock else {}

    def weight_of(weight: Tensor) -> Tensor:
        if id(weight) in clock:
            return _parameter(model.weight(clock[id(weight)])) if weight.is_meta else weight
        return _parameter(weight.detach().to("meta")) if id(weight) in emptied else weight

    return copy_with(model, weight_of)


def in_memory(model: PVC, parts: tuple[str, ...] = ("",)) -> PVC:
    """A copy with the weights that lie in files; it shares those that do not. `parts`: of names that begin so, and the
    others stay where they are."""
    names = {id(weight): name for name, weight in model.named_parameters() if weight.is_meta and name.startswith(parts)}
    copy = copy_with(
        model, lambda weight: _parameter(model.weight(names[id(weight)])) if id(weight) in names else weight
    )
    if not any(weight.is_meta for weight in copy.parameters()):
        copy.stored = None
    return copy


def _clock_weights(model: PVC) -> dict[int, str]:
    """The weights of the time embeddings: id -> name."""
    clocks = [f"{name}." for name, module in model.named_modules() if isinstance(module, TimeEmbedding)]
    return {id(weight): name for name, weight in model.named_parameters() if name.startswith(tuple(clocks))}


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def filled(module: ModuleT) -> ModuleT:
    """A copy whose parameters on `meta` are one number each, which stands at every place of the matrix."""

    def weight_of(weight: Tensor) -> Tensor:
        if not weight.is_meta:
            return weight
        return _parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape))

    return copy_with(module, weight_of)
