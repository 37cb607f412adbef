"""Building blocks shared by every part of the model: one attention, two norms, one MLP.

Some operations stay in float32 when the weights are float16 or bfloat16: norms, softmax, RoPE angles, time embedding
and logits. The reference marks them with `upcast`, so an exported float16 graph has the same float32 islands as the
PyTorch model, and a float64 model stays float64 throughout. docs/numerics.md gives the reason for each.
Dimension key:  B streams   L query rows   S key rows   H heads   K key/value heads   D head dim   C width
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Callable[..., Tensor]
"""`attention` or another spelling of it. Modules call it through `mix`, which pvc_export may replace in a graph."""
MASKED = -30000.0  # added to masked scores: its exp() is exactly 0, and unlike -inf it cannot produce a NaN


def upcast(x: Tensor) -> Tensor:
    """x in float32, or in its own dtype where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def wave_frequencies(count: int, period: float, like: Tensor) -> Tensor:
    """period^(-i / count) for i = 0..count - 1, as a constant in like's dtype and device.

    Computed in Python's float64 and rounded once. Runtimes differ in the last bit of exp and pow, and a frequency that
    is off by one float32 bit rotates an angle by 2e-4 at frame 4096.
    """
    return torch.tensor([period ** (-i / count) for i in range(count)], dtype=like.dtype, device=like.device)


def visible_to_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """True -> 0, False -> MASKED, in `dtype`: what `attention` adds to its scores."""
    return torch.where(visible, 0.0, MASKED).to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v. q (..., L, D), k and v (..., S, D), bias broadcastable to (..., L, S).

    q is scaled before the matmul, which keeps float16 scores in range; the softmax is an `upcast` island.
    """
    return attention_of_scaled(q * q.shape[-1] ** -0.5, k, v, bias)


def attention_of_scaled(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attention` of queries that are multiplied by 1 / sqrt(D) already."""
    scores = q @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return torch.softmax(upcast(scores), dim=-1).to(v.dtype) @ v


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, statistics in an `upcast` island. `affine=False` has no weights (AdaLN)."""

    def __init__(self, size: int, *, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size)) if affine else None
        self.bias = nn.Parameter(torch.zeros(size)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else upcast(self.weight)
        bias = None if self.bias is None else upcast(self.bias)
        return F.layer_norm(upcast(x), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, an `upcast` island."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = upcast(x)
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (normed * upcast(self.weight)).to(x.dtype)


class MLP(nn.Module):
    """Linear, erf GELU, Linear."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
