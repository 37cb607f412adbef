"""Attention that a compiler cannot fuse into one kernel, for versions of TensorRT that miscompile the fused kernel.

The first key's contribution is added outside the matmul with the others: p_1 v_1 + [p_2 .. p_S] [v_2 .. v_S]. A fused
kernel computes one matmul of all probabilities with all values. This form is never that matmul, whatever the compiler
does to transposes, casts or an expanded softmax. The cost is one more rounding.
docs/log.md, 2026-11-30, lists other attempts; docs/decisions/0019 explains why this is a spelling.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from engines.spec import Fusable
from pvc_ref.compressor import QFormerLayer
from pvc_ref.layers import upcast
from pvc_ref.llm import CausalAttention
from pvc_ref.temporal import TemporalAttention
from pvc_ref.vision import SpatialAttention

from .precision import ModuleT, copy_with

KINDS: dict[Fusable, tuple[type[nn.Module], ...]] = {
    "spatial": (SpatialAttention, QFormerLayer), "temporal": (TemporalAttention,), "llm": (CausalAttention,),
}  # fmt: skip


def unfused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The reference's `attention`, for two or more keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(upcast(scores), dim=-1).to(v.dtype)
    return weights[..., :1] * v[..., :1, :] + weights[..., 1:] @ v[..., 1:, :]


def unfused(module: ModuleT, parts: Collection[Fusable]) -> ModuleT:
    """Return a copy with unfused attention of these kinds, which shares every weight; without kinds, the module."""
    classes = tuple(one for part in parts for one in KINDS[part])
    if not classes:
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in copy.modules():
        if isinstance(part, classes):
            # Set on the instance, so that it works for every subclass: joined, coded, in place.
            part.mix = unfused_attention  # type: ignore[assignment]
    return copy
