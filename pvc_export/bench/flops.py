"""How many floating-point operations one streaming step of vision side or LLM takes, from its configuration.

Unusual: only products of matrices and the patch convolution count, a multiplication and an addition as two. So a share
of a GEMM peak is a share of what is possible; softmax, norms and GELU are part of the time but not of the work.
"""

from __future__ import annotations

from pvc_ref import PVCConfig
from pvc_ref.config import LLMConfig


def step_flops(config: PVCConfig, *, window: int) -> int:
    """Operations of one new frame that sees window - 1 past ones: trunk, temporal layers and compressor.

    Raises ValueError for a compressor other than `pvc` and `pixel_shuffle`, which nobody has counted.
    """
    vision = config.vision
    rows, width = vision.num_positions, vision.hidden_size
    embedding = _linear(vision.num_patches, 3 * vision.patch_size**2, width)
    in_frame = 4 * _linear(rows, width, width) + 2 * _linear(rows, rows, width)  # qkv and proj; scores and values
    feed_forward = 2 * _linear(rows, width, vision.mlp_size)
    over_time = 4 * _linear(rows, width, width) + 2 * _linear(rows, window, width)
    temporal = over_time + _adaln(rows, width) + _time_embedding(vision.sinusoid_size, width)
    layers = vision.num_layers * (in_frame + feed_forward) + vision.num_temporal_layers * temporal
    return embedding + layers + _compressor(config)


def ingest_flops(config: LLMConfig, *, num_rows: int, num_past: int) -> int:
    """Operations of new rows behind past ones in all layers, without logits. Masked scores count: they are computed."""
    width, visible = config.hidden_size, num_past + num_rows
    q_size, kv_size = config.num_heads * config.attention_head_dim, config.num_kv_heads * config.attention_head_dim
    projections = 2 * _linear(num_rows, width, q_size) + 2 * _linear(num_rows, width, kv_size)  # q and o, k and v
    attention = 2 * _linear(num_rows, visible, q_size)  # scores and values
    return config.num_layers * (projections + attention + 3 * _linear(num_rows, width, config.mlp_size))


def _compressor(config: PVCConfig) -> int:
    kind, num_tokens, out = config.compressor.kind, config.compressor.num_tokens, config.llm.hidden_size
    if kind not in ("pvc", "pixel_shuffle"):
        raise ValueError(f"the operations of compressor '{kind}' are not counted; expected pvc or pixel_shuffle")
    width = config.vision.num_patches // num_tokens * config.vision.hidden_size
    mlp = _linear(num_tokens, width, out) + _linear(num_tokens, out, out)
    if kind == "pixel_shuffle":
        return mlp
    return mlp + _adaln(num_tokens, width) + _time_embedding(config.vision.sinusoid_size, width)


def _adaln(rows: int, width: int) -> int:
    return 4 * _linear(rows, width, width)


def _time_embedding(sinusoid_size: int, width: int) -> int:
    return _linear(1, sinusoid_size, width) + _linear(1, width, width)


def _linear(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns
