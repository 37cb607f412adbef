"""Temporal attention in the last layers of the ViT: each position attends to itself in earlier frames.

    TE = W2 SiLU(W1 t~);  t~ = sinusoid of the frame time                     one TimeEmbedding per layer
    AdaLN(x; z) = gamma(z) * LN(x) + beta(z);  gamma(z) = W4 SiLU(W3 z);  beta(z) = W6 SiLU(W5 z)
    x := x + ls1 * S-MHA(LN(x));   x := x + alpha * T-MHA(AdaLN(x; x + TE));   x := x + ls2 * MLP(LN(x))

Attention runs over time, per position; positions are mixed only in vision.py. Time enters through TE alone, so the
order of the keys carries no meaning: a cache of keys and values needs a mask but no order.
Source: PVC (arXiv 2412.09613), progressive encoding. Cosines before sines and a period of 10000 follow
the diffusion transformers whose AdaLN PVC adopts; the released checkpoint must confirm both.
Dimension key:  B streams   T frames   P past frames   N positions   C width   H heads   D head dim
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .layers import LayerNorm, attention, visible_to_bias, wave_frequencies
from .vision import SpatialLayer

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one temporal layer, each (B, frames, N, H, D)."""

SINUSOID_PERIOD = 10_000.0


class TemporalEncoder(nn.Module):
    """The temporal layers: trunk features in, patch features (without the class token) and new cache rows out."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TemporalLayer(config) for _ in range(config.num_temporal_layers))

    def forward(
        self, x: Tensor, times: Tensor, past: Sequence[KeyValue] | None, bias: Tensor
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run T new frames after P past ones.

        x     (B, T, N, C) trunk features
        times (B, T) frame times
        past  keys and values of every layer, each (B, P, N, H, D), in any order of frames; None when P is 0
        bias  (B or 1, T, P + T), 0 where frame t may look and MASKED elsewhere; every frame must see itself
        Returns features (B, T, N - 1, C) and the new keys and values of every layer, each (B, T, N, H, D).
        """
        new: list[KeyValue] = []
        for layer_index, module in enumerate(self.layers):
            layer = cast(TemporalLayer, module)
            x, rows = layer.step(x, times, None if past is None else past[layer_index], bias)
            new.append(rows)
        return x[:, :, 1:], new


class TemporalLayer(SpatialLayer):
    """An InternViT layer with temporal attention between its two steps."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.time_embedding = TimeEmbedding(config.sinusoid_size, config.hidden_size)
        self.adaln = AdaLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attn = TemporalAttention(config)
        self.alpha = nn.Parameter(torch.zeros(config.hidden_size))

    def step(self, x: Tensor, times: Tensor, past: KeyValue | None, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """x (B, T, N, C), times (B, T), past (B, P, N, H, D), bias (B or 1, T, P + T)."""
        x = self.attend_in_frame(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        time = self.time_embedding(times).to(x.dtype)[:, :, None]  # (B, T, 1, C)
        attended, new = self.temporal_attn(self.adaln(x, x + time), past, bias)
        return self.feed_forward(x + self.alpha * attended), new


class TemporalAttention(nn.Module):
    """Attention of each position over the frames of its stream."""

    mix = staticmethod(attention)

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, past: KeyValue | None, bias: Tensor) -> tuple[Tensor, KeyValue]:
        """x (B, T, N, C), past (B, P, N, H, D), bias (B or 1, T, P + T) -> (B, T, N, C) and the new keys and values."""
        q, k, v = self.project(x)
        return self.attend(q, (k, v), past, bias), (k, v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, N, C) -> queries, keys and values, each (B, T, N, H, D)."""
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)) for y in self.qkv(x).chunk(3, dim=-1))
        return q, k, v

    def attend(self, q: Tensor, new: KeyValue, past: KeyValue | None, bias: Tensor) -> Tensor:
        """q and new (B, T, N, H, D), past (B, P, N, H, D) -> (B, T, N, C)."""
        k, v = new  # (B, P + T, N, H, D)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
        q, k, v = (y.permute(0, 2, 3, 1, 4) for y in (q, k, v))  # each (B, N, H, frames, D)
        out = self.mix(q, k, v, bias[:, None, None])  # (B, N, H, T, D)
        joined: Tensor = self.proj(out.permute(0, 3, 1, 2, 4).flatten(3))  # (B, T, N, H, D) -> (B, T, N, C)
        return joined


class AdaLayerNorm(nn.Module):
    """gamma(z) * LN(x) + beta(z), where LN has no weights."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(size, eps=eps, affine=False)
        self.w3 = nn.Linear(size, size)
        self.w4 = nn.Linear(size, size)
        self.w5 = nn.Linear(size, size)
        self.w6 = nn.Linear(size, size)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        of_gamma, of_beta = self.hidden(z)
        gamma, beta = self.w4(of_gamma), self.w6(of_beta)
        return gamma * self.norm(x) + beta

    def hidden(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """SiLU(W3 z) and SiLU(W5 z)."""
        return F.silu(self.w3(z)), F.silu(self.w5(z))


class TimeEmbedding(nn.Module):
    """TE = W2 SiLU(W1 sinusoid(t)). Computed in the dtype of its weights, which stay float32 in a 16-bit model."""

    def __init__(self, sinusoid_size: int, size: int) -> None:
        super().__init__()
        self.sinusoid_size = sinusoid_size
        self.w1 = nn.Linear(sinusoid_size, size)
        self.w2 = nn.Linear(size, size)

    def forward(self, times: Tensor) -> Tensor:
        """Times (...) -> (..., size)."""
        waves = sinusoid(times.to(torch.promote_types(self.w1.weight.dtype, torch.float32)), self.sinusoid_size)
        return self.w2(F.silu(self.w1(waves.to(self.w1.weight.dtype))))


def sinusoid(times: Tensor, size: int) -> Tensor:
    """Times (...) -> (..., size): cosines, then sines, of time * 10000^(-i / (size/2)). In times' dtype."""
    angles = times[..., None] * wave_frequencies(size // 2, SINUSOID_PERIOD, times)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def window_bias(num_frames: int, window: int | None, *, like: Tensor) -> Tensor:
    """(1, T, T) in like's dtype and device: frame t sees frames max(0, t - window + 1)..t; None means 0..t."""
    index = torch.arange(num_frames, device=like.device)
    age = index[:, None] - index[None, :]
    visible = (age >= 0) & (age < (num_frames if window is None else window))
    return visible_to_bias(visible[None], like.dtype)
