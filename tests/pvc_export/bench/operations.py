"""Closed formulas for the operations of one streaming step, to compare torch's counts with.

Only matrix products and the patch convolution count. A multiplication and an addition count as two operations.
"""

from __future__ import annotations

from pvc_ref import PVCConfig
from pvc_ref.config import LLMConfig


def linear(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def step_flops(config: PVCConfig, *, window: int) -> int:
    """One new frame that sees window - 1 past ones: trunk, temporal layers, and compressor `pvc` or `pixel_shuffle`."""
    vision, num_tokens, out = config.vision, config.compressor.num_tokens, config.llm.hidden_size
    rows, width = vision.num_positions, vision.hidden_size
    embedding = linear(vision.num_patches, 3 * vision.patch_size**2, width)
    in_frame = 4 * linear(rows, width, width) + 2 * linear(rows, rows, width)  # qkv and proj; scores and values
    feed_forward = 2 * linear(rows, width, vision.mlp_size)
    over_time = 4 * linear(rows, width, width) + 2 * linear(rows, window, width)
    temporal = over_time + _modulation(rows, vision.sinusoid_size, width)
    layers = vision.num_layers * (in_frame + feed_forward) + vision.num_temporal_layers * temporal
    wide = vision.num_patches // num_tokens * width
    mlp = linear(num_tokens, wide, out) + linear(num_tokens, out, out)
    modulation = _modulation(num_tokens, vision.sinusoid_size, wide) if config.compressor.kind == "pvc" else 0
    return embedding + layers + mlp + modulation


def ingest_flops(config: LLMConfig, *, num_rows: int, num_past: int) -> int:
    """New rows after past ones in all layers, without logits. Masked scores count, since they are computed."""
    width, visible = config.hidden_size, num_past + num_rows
    q_size, kv_size = config.num_heads * config.attention_head_dim, config.num_kv_heads * config.attention_head_dim
    projections = 2 * linear(num_rows, width, q_size) + 2 * linear(num_rows, width, kv_size)  # q and o, k and v
    attention = 2 * linear(num_rows, visible, q_size)  # scores and values
    return config.num_layers * (projections + attention + 3 * linear(num_rows, width, config.mlp_size))


def _modulation(rows: int, sinusoid_size: int, width: int) -> int:
    """AdaLN for every row, and the embedding of the frame's single time."""
    return 4 * linear(rows, width, width) + linear(1, sinusoid_size, width) + linear(1, width, width)
