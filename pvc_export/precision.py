"""Precision is a property of the graph: the weights are cast here, and nothing later changes a dtype.

Unusual: the float32 islands are not listed here. The reference's own layers upcast where docs/numerics.md says so;
this module only keeps the *weights* of those islands in float32, so that they are not rounded on the way.
"""

from __future__ import annotations

import copy

import torch

from engines.spec import Precision
from pvc_ref import PVC
from pvc_ref.layers import LayerNorm, RMSNorm
from pvc_ref.temporal import TimeEmbedding

TORCH_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}
ISLANDS = (LayerNorm, RMSNorm, TimeEmbedding)
"""Modules whose weights stay float32; the reason for each is a row of docs/numerics.md."""


def cast_model(model: PVC, precision: Precision) -> PVC:
    """A copy of `model` with its weights in `precision`, those of the float32 islands excepted."""
    model = copy.deepcopy(model).to(TORCH_DTYPE[precision])
    for module in model.modules():
        if isinstance(module, ISLANDS):
            module.float()
    return model
