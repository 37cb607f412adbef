"""Faults for the export of a float16 bundle: a missing island, and layers that overflow.

They change the weights of the reference, which stays the judge in float32, or patch the reference's code so that only
float16 models are affected. Overflowing layers are scaled up and back down, so in float32 the model is the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pvc_ref import PVC
from pvc_ref.layers import LayerNorm

from .runtime_patches import replaces

OUTLIER = 300.0  # as in trained vision transformers; its square overflows float16
HUGE = 2.0**17


@replaces(LayerNorm, "forward")
def norms_without_island(forward: Callable[..., Tensor], norm: LayerNorm, x: Tensor) -> Tensor:
    """Compute mean and variance in the dtype of the input."""
    if x.dtype != torch.float16:
        return forward(norm, x)
    centered = x - x.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is None or norm.bias is None:
        return normed
    return normed * norm.weight.to(x.dtype) + norm.bias.to(x.dtype)


@torch.no_grad()
def with_outliers(model: PVC) -> None:
    """Set one channel of every position to 300."""
    model.trunk.embeddings.position_embedding[..., 7] = OUTLIER


@torch.no_grad()
def with_loud_values(model: PVC) -> None:
    """Scale up the values of the second layer's attention."""
    attention = model.get_submodule("trunk.layers.1.attn")
    value_rows = slice(-attention.get_parameter("proj.weight").shape[1], None)
    for name in ("qkv.weight", "qkv.bias"):
        attention.get_parameter(name)[value_rows] *= HUGE
    attention.get_parameter("proj.weight").div_(HUGE)


@torch.no_grad()
def with_a_loud_adaln(model: PVC) -> None:
    """Scale up the scales and shifts of the compressor's AdaLN."""
    for name in ("w4.weight", "w4.bias", "w6.weight", "w6.bias"):
        model.get_parameter(f"compressor.adaln.{name}").mul_(HUGE)
    model.get_parameter("compressor.mlp.fc1.weight").div_(HUGE)


@torch.no_grad()
def with_a_loud_swiglu(model: PVC) -> None:
    """Scale up the ungated half of the second LLM layer's MLP."""
    model.get_parameter("llm.layers.1.mlp.up_proj.weight").mul_(4 * HUGE)
    model.get_parameter("llm.layers.1.mlp.down_proj.weight").div_(4 * HUGE)


@torch.no_grad()
def with_an_overflow(model: PVC) -> None:
    """Scale the first MLP's result up and back down: the same model, except in float16."""
    for name in ("mlp.fc2.weight", "mlp.fc2.bias"):
        model.get_parameter(f"trunk.layers.0.{name}").mul_(HUGE)
    model.get_parameter("trunk.layers.0.ls2").div_(HUGE)
