"""Precision is a property of the graph: the weights are cast here, and nothing later changes a dtype.

Unusual: the float32 islands are not listed here. The reference's own layers upcast where docs/numerics.md says so;
this module only keeps the *weights* of those islands in float32, so that they are not rounded on the way.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from engines.spec import Precision
from pvc_ref import PVC
from pvc_ref.layers import LayerNorm, RMSNorm
from pvc_ref.temporal import TimeEmbedding

TORCH_DTYPE: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ISLANDS = (LayerNorm, RMSNorm, TimeEmbedding)
"""Modules whose weights stay float32; the reason for each is a row of docs/numerics.md."""


def cast_model(model: PVC, precision: Precision) -> PVC:
    """`model` with its weights in `precision`, those of the float32 islands excepted.

    A new module that shares every weight whose dtype stays: at 8B a second copy would not fit beside the first.
    """
    dtype = TORCH_DTYPE[precision]
    kept = {id(p) for module in model.modules() if isinstance(module, ISLANDS) for p in module.parameters()}
    # What deepcopy finds in its memo it does not copy.
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        stays = id(parameter) in kept or parameter.dtype == dtype
        memo[id(parameter)] = parameter if stays else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return copy.deepcopy(model, memo)
