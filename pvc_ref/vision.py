"""InternViT: the patch embedding and the layers that see one frame at a time (the trunk).

    x := x + ls1 * MHA(LN(x));   x := x + ls2 * MLP(LN(x))        pre-norm, LayerScale, no final norm

Frames arrive as uint8 RGB and are normalised here, so that an exported graph takes camera pixels.
Source: InternVL2's vision tower; weights keep its names (checkpoint/tensor_names.py).
Dimension key:  B frames   S frame size   G patches per side   N positions: class token and G * G patches
                C width   H heads   D head dim
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import VisionConfig
from .errors import InputError
from .layers import MLP, LayerNorm, attention
from .preprocess import IMAGENET_MEAN, IMAGENET_STD


class Trunk(nn.Module):
    """The part without time: embeddings and the first num_trunk_layers layers. Equal frames have equal features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(SpatialLayer(config) for _ in range(config.num_trunk_layers))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 RGB -> (B, N, C). Raises InputError for any other shape or dtype."""
        size = self.image_size
        if frames.dtype != torch.uint8 or frames.shape[1:] != (size, size, 3):
            raise InputError(
                f"frames are {tuple(frames.shape)} {frames.dtype}",
                expected=f"(B, {size}, {size}, 3) torch.uint8 RGB",
                fix="resize with pvc_ref.preprocess.resize_frame",
            )
        x = self.embeddings(normalize_frames(frames, self.embeddings.patch_embedding.weight.dtype))
        for layer in self.layers:
            x = layer(x)
        return x


class SpatialLayer(nn.Module):
    """One InternViT layer. `TemporalLayer` inserts temporal attention between its two steps."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = SpatialAttention(config)
        self.ls1 = nn.Parameter(torch.ones(config.hidden_size))
        self.norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.mlp_size, config.hidden_size)
        self.ls2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.feed_forward(self.attend_in_frame(x))

    def attend_in_frame(self, x: Tensor) -> Tensor:
        return x + self.ls1 * self.attn(self.norm1(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.ls2 * self.mlp(self.norm2(x))


class SpatialAttention(nn.Module):
    """Multi-head attention within a frame. The fused qkv has rows (3, H, D)."""

    mix = staticmethod(attention)

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).chunk(3, dim=-1)  # 3 x (B, N, C)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in qkv)  # each (B, H, N, D)
        out = self.mix(q, k, v)  # (B, H, N, D)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, N, H, D) -> (B, N, C)


class Embeddings(nn.Module):
    """Patches by strided convolution, preceded by the class token, plus learned position embeddings."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, config.num_positions, config.hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, C), patches row by row."""
        grid = self.patch_embedding(pixels)  # (B, C, G, G)
        patches = grid.flatten(2).transpose(1, 2)  # (B, N - 1, C)
        class_token = self.class_embedding.expand(patches.shape[0], -1, -1)  # (B, 1, C)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding


def normalize_frames(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) in `dtype`, ImageNet-normalised in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    mean = torch.tensor(IMAGENET_MEAN, dtype=wide, device=frames.device)
    std = torch.tensor(IMAGENET_STD, dtype=wide, device=frames.device)
    return ((frames.to(wide) / 255.0 - mean) / std).permute(0, 3, 1, 2).to(dtype)
