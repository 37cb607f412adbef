"""Compressors: modules that turn the patches of one frame into the few tokens that the LLM sees.

    pvc   x~ = PixelShuffle(features);   v = MLP(AdaLN(x~; x~ + TE'))           1024 patches -> 64 tokens

The others are the paper's baselines. They accept any token count, so that a difference between two compressors comes
from the method and not from the token budget. Only `pvc` uses its frame's time; the others accept and ignore it.
Source: PVC (arXiv 2412.09613), adaptive compression; InternVL2's mlp1 for the shuffle and the MLP.
Dimension key:  F frames   G patches per side   P patches   C width   M tokens   R shuffled width   E LLM width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import PVCConfig, ShuffleOrder
from .layers import MLP, LayerNorm, attention
from .temporal import AdaLayerNorm, TimeEmbedding

LAYER_NORM_EPS = 1e-5  # torch's default, which InternVL2's mlp1 uses


def build_compressor(config: PVCConfig) -> nn.Module:
    """Build the compressor named by `config.compressor.kind`: (F, P, C), times (F,) -> (F, M, E)."""
    kinds = {
        "pvc": PVCCompressor,
        "pixel_shuffle": ShuffleCompressor,
        "pool": PoolCompressor,
        "conv": ConvCompressor,
        "q_former": QFormerCompressor,
    }
    return kinds[config.compressor.kind](config)


class PVCCompressor(nn.Module):
    """PixelShuffle, AdaLN on features + time embedding, MLP."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        self.rows, self.columns = config.compressor.token_grid
        self.order: ShuffleOrder = config.compressor.shuffle
        size = config.vision.num_patches // config.compressor.num_tokens * config.vision.hidden_size
        self.time_embedding = TimeEmbedding(config.vision.sinusoid_size, size)
        self.adaln = AdaLayerNorm(size, eps=LAYER_NORM_EPS)
        self.mlp = MLP(size, config.llm.hidden_size, config.llm.hidden_size)

    def forward(self, patches: Tensor, times: Tensor) -> Tensor:
        x = pixel_shuffle(patches, rows=self.rows, columns=self.columns, order=self.order)
        time = self.time_embedding(times).to(x.dtype)[:, None]  # (F, 1, R)
        return self.mlp(self.adaln(x, x + time))


class ShuffleCompressor(nn.Module):
    """PixelShuffle, LayerNorm, MLP, as in InternVL2."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        self.rows, self.columns = config.compressor.token_grid
        self.order: ShuffleOrder = config.compressor.shuffle
        size = config.vision.num_patches // config.compressor.num_tokens * config.vision.hidden_size
        self.norm = LayerNorm(size, eps=LAYER_NORM_EPS)
        self.mlp = MLP(size, config.llm.hidden_size, config.llm.hidden_size)

    def forward(self, patches: Tensor, times: Tensor) -> Tensor:
        x = pixel_shuffle(patches, rows=self.rows, columns=self.columns, order=self.order)
        return self.mlp(self.norm(x))


def pixel_shuffle(patches: Tensor, *, rows: int, columns: int, order: ShuffleOrder) -> Tensor:
    """Space to depth: (F, P, C) -> (F, rows * columns, P / (rows * columns) * C).

    A token holds its patches row by row, channels last. `v1` lists the tokens column by column: a mistake in
    InternVL's first release, kept for its checkpoints. `v2` lists them row by row.
    """
    grid = int(patches.shape[1] ** 0.5)
    down, right = grid // rows, grid // columns
    x = patches.unflatten(1, (rows, down, columns, right))  # (F, rows, down, columns, right, C)
    x = x.permute(0, 1, 3, 2, 4, 5) if order == "v2" else x.permute(0, 3, 1, 2, 4, 5)
    return x.flatten(3).flatten(1, 2)


class PoolCompressor(nn.Module):
    """Adaptive average pooling, LayerNorm, MLP. Pooling is a fixed matrix, so that any grid can be exported."""

    weights: Tensor

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        rows, columns = config.compressor.token_grid
        grid = config.vision.grid_size
        self.register_buffer("weights", pooling_matrix(grid, rows=rows, columns=columns), persistent=False)
        self.norm = LayerNorm(config.vision.hidden_size, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config.vision.hidden_size, config.llm.hidden_size, config.llm.hidden_size)

    def forward(self, patches: Tensor, times: Tensor) -> Tensor:
        return self.mlp(self.norm(self.weights.to(patches.dtype) @ patches))


def pooling_matrix(grid: int, *, rows: int, columns: int) -> Tensor:
    """(rows * columns, grid * grid): row m averages the patches of token m. Windows as in adaptive pooling."""

    def one_axis(count: int) -> Tensor:
        matrix = torch.zeros(count, grid, dtype=torch.float64)
        for index in range(count):
            start, stop = index * grid // count, -(-(index + 1) * grid // count)
            matrix[index, start:stop] = 1.0 / (stop - start)
        return matrix

    return torch.kron(one_axis(rows), one_axis(columns))


class ConvCompressor(nn.Module):
    """Strided convolution, LayerNorm, MLP."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        rows, columns = config.compressor.token_grid
        self.grid, width = config.vision.grid_size, config.vision.hidden_size
        stride = (self.grid // rows, self.grid // columns)
        self.conv = nn.Conv2d(width, width, kernel_size=stride, stride=stride)
        self.norm = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, config.llm.hidden_size, config.llm.hidden_size)

    def forward(self, patches: Tensor, times: Tensor) -> Tensor:
        x = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return self.mlp(self.norm(self.conv(x).flatten(2).transpose(1, 2)))


class QFormerCompressor(nn.Module):
    """Learned queries that attend to the patches, then a linear layer to the LLM's width."""

    def __init__(self, config: PVCConfig) -> None:
        super().__init__()
        vision = config.vision
        self.queries = nn.Parameter(torch.zeros(1, config.compressor.num_tokens, vision.hidden_size))
        self.norm = LayerNorm(vision.hidden_size, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(
            QFormerLayer(vision.hidden_size, vision.num_heads, vision.mlp_size)
            for _ in range(config.compressor.num_q_former_layers)
        )
        self.proj = nn.Linear(vision.hidden_size, config.llm.hidden_size)

    def forward(self, patches: Tensor, times: Tensor) -> Tensor:
        x = self.queries.expand(patches.shape[0], -1, -1)
        patches = self.norm(patches)
        for layer in self.layers:
            x = layer(x, patches)
        return self.proj(x)


class QFormerLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the patches, MLP; pre-norm."""

    mix = staticmethod(attention)

    def __init__(self, width: int, num_heads: int, mlp_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_proj = nn.Linear(width, width)
        self.norm2 = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_proj = nn.Linear(width, width)
        self.norm3 = LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, mlp_size, width)

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        x = x + self.self_proj(self._attend(*self.self_qkv(self.norm1(x)).chunk(3, dim=-1)))
        x = x + self.cross_proj(self._attend(self.cross_q(self.norm2(x)), *self.cross_kv(patches).chunk(2, dim=-1)))
        return x + self.mlp(self.norm3(x))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        mixed: Tensor = self.mix(q, k, v)
        return mixed.transpose(1, 2).flatten(2)
