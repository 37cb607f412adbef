"""Attention that a compiler can't make one kernel of, for versions of TensorRT that miscompile the one they make.

The first key's part of the sum is added outside of the product with the others: p_1 v_1 + [p_2 .. p_S] [v_2 .. v_S].
A fused kernel computes one product of all probabilities with all values, and this is none, in any order of operations
and however a compiler moves transposes, casts or a softmax that is written out. The price is one more rounding.
What else was tried is in docs/log.md, 2026-11-30; why this is a spelling at all in docs/decisions/0019.
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
    """The reference's `attention`, of two keys or more."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(upcast(scores), dim=-1).to(v.dtype)
    return weights[..., :1] * v[..., :1, :] + weights[..., 1:] @ v[..., 1:, :]


def unfused(module: ModuleT, parts: Collection[Fusable]) -> ModuleT:
    """A copy whose attention of these kinds is spelled so. It shares every weight; the module itself for none."""
    classes = tuple(one for part in parts for one in KINDS[part])
    if not classes:
        return module
    copy = copy_with(module, lambda weight: weight)
    for part in copy.modules():
        if isinstance(part, classes):
            # An attribute of its own, since every subclass has it: joined, coded, in place.
            part.mix = unfused_attention  # type: ignore[assignment]
    return copy
