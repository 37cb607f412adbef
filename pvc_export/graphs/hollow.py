"""A large model without its matrices' values: it exports to the same graph with almost no memory, in little time.

A bundle's structure is compared with a fresh export (parity/structure.py), which does not need the matrices' values,
because the graph does not depend on them. Small tensors keep their values, because the exporter joins equal small
constants and omits a zero bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pvc_ref import PVC
from pvc_ref.temporal import TimeEmbedding

from .joined import JOINED
from .precision import ModuleT, copy_with

SMALL = 1024
"""Number of values up to which onnx-ir's DeduplicateInitializersPass joins equal constants."""
PRODUCTS = (nn.Linear, nn.Conv2d, nn.Embedding)


def hollow(model: PVC, *, keep_clock: bool) -> PVC:
    """Return a copy with its large matrices on the device `meta`; it shares all other weights.

    keep_clock  keep the values of the time embeddings, which a clock table needs, reading them from files if necessary
    """
    emptied = set[int]()
    for module in model.modules():
        if type(module) in JOINED:  # all parts of a joined matmul or none
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
    """Return a copy with its weights read from files into memory; it shares the others.

    Only weights whose names begin with one of `parts` are read.
    """
    names = {id(weight): name for name, weight in model.named_parameters() if weight.is_meta and name.startswith(parts)}
    copy = copy_with(
        model, lambda weight: _parameter(model.weight(names[id(weight)])) if id(weight) in names else weight
    )
    if not any(weight.is_meta for weight in copy.parameters()):
        copy.stored = None
    return copy


def _clock_weights(model: PVC) -> dict[int, str]:
    """Map the ids of the time embeddings' weights to their names."""
    clocks = [f"{name}." for name, module in model.named_modules() if isinstance(module, TimeEmbedding)]
    return {id(weight): name for name, weight in model.named_parameters() if name.startswith(tuple(clocks))}


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def filled(module: ModuleT) -> ModuleT:
    """Return a copy whose parameters on `meta` are one number each, expanded to the whole matrix."""

    def weight_of(weight: Tensor) -> Tensor:
        if not weight.is_meta:
            return weight
        return _parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape))

    return copy_with(module, weight_of)
