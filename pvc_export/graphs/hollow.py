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

    keep_clock  leave the time embeddings their values, as a table of them needs
    """
    emptied = set[int]()
    for module in model.modules():
        if type(module) in JOINED:  # all parts of a joined product or none
            emptied |= {id(part.weight) for part in module.children() if isinstance(part, nn.Linear)}
        if isinstance(module, PRODUCTS) and module.weight.numel() > SMALL:
            emptied.add(id(module.weight))
    if keep_clock:
        clocks = (module for module in model.modules() if isinstance(module, TimeEmbedding))
        emptied -= {id(weight) for clock in clocks for weight in clock.parameters()}

    def weight_of(weight: Tensor) -> Tensor:
        return nn.Parameter(weight.detach().to("meta"), requires_grad=False) if id(weight) in emptied else weight

    return copy_with(model, weight_of)


def filled(module: ModuleT) -> ModuleT:
    """A copy whose parameters on `meta` are one number each, which stands at every place of the matrix."""

    def weight_of(weight: Tensor) -> Tensor:
        if not weight.is_meta:
            return weight
        return nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), requires_grad=False)

    return copy_with(module, weight_of)
