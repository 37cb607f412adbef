"""A second implementation of PVC's vision side, straight from the equations: numpy, float64, loops, no pvc_ref code.

    spatial   x := x + ls1 * S-MHA(LN(x))                          per frame
    temporal  x := x + alpha * T-MHA(AdaLN(x; x + TE))             last layers, per position, causal over frames
    ffn       x := x + ls2 * FFN(LN(x))
    compressor  x~ = space_to_depth(x);  v = MLP(AdaLN(x~; x~ + TE'))
    AdaLN(x, z) = gamma(z) * LN(x) + beta(z);  gamma(z) = W4 SiLU(W3 z);  beta(z) = W6 SiLU(W5 z)
    TE = W2 SiLU(W1 t~);  t~ = sinusoid of the frame time, cosines then sines, period 10000

Source: PVC (arXiv 2412.09613), sections 3.2 and 3.3; InternVL2's vision tower for the spatial part.
Dimension key:  T frames   S pixels per side   G patches per side   N positions, class token first   C width   H heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pvc_ref import VisionConfig

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def encode_clip(
    w: Weights, vision: VisionConfig, frames: NDArray[np.uint8], *, tokens_a_side: int, window: int | None
) -> Array:
    """Frames (T, S, S, 3) uint8 RGB of one stream, frame t at time t -> (T, tokens_a_side^2, LLM width)."""
    x = np.stack([embed_frame(w, frame, vision.patch_size) for frame in frames])  # (T, N, C)
    for i in range(vision.num_trunk_layers):
        layer = f"trunk.layers.{i}"
        x = spatial_step(w, layer, x, vision)
        x = feed_forward_step(w, layer, x, vision)
    for i in range(vision.num_temporal_layers):
        layer = f"temporal.layers.{i}"
        x = spatial_step(w, layer, x, vision)
        x = temporal_step(w, layer, x, vision, window=window)
        x = feed_forward_step(w, layer, x, vision)
    return np.stack([compress(w, frame[1:], t, vision, tokens_a_side) for t, frame in enumerate(x)])


def embed_frame(w: Weights, frame: NDArray[np.uint8], patch_size: int) -> Array:
    """One frame -> (N, C): the class token, then the patches row by row, each plus its position."""
    pixels = (frame / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    kernel = w["trunk.embeddings.patch_embedding.weight"]  # (C, 3, patch_size, patch_size)
    positions = [w["trunk.embeddings.class_embedding"][0, 0]]
    for top in range(0, len(frame), patch_size):
        for left in range(0, len(frame), patch_size):
            patch = pixels[top : top + patch_size, left : left + patch_size]
            positions.append(np.einsum("crij,ijr->c", kernel, patch) + w["trunk.embeddings.patch_embedding.bias"])
    return np.stack(positions) + w["trunk.embeddings.position_embedding"][0]


def spatial_step(w: Weights, layer: str, x: Array, vision: VisionConfig) -> Array:
    out = x.copy()
    for t in range(len(x)):
        normed = affine_layer_norm(w, f"{layer}.norm1", x[t], vision.layer_norm_eps)
        q, k, v = np.split(linear(w, f"{layer}.attn.qkv", normed), 3, axis=-1)
        attended = np.stack([attend(q[n], k, v, vision.num_heads) for n in range(len(normed))])
        out[t] += w[f"{layer}.ls1"] * linear(w, f"{layer}.attn.proj", attended)
    return out


def temporal_step(w: Weights, layer: str, x: Array, vision: VisionConfig, *, window: int | None) -> Array:
    normed = np.empty_like(x)
    for t in range(len(x)):
        time = time_embedding(w, f"{layer}.time_embedding", t, vision.sinusoid_size)
        normed[t] = ada_layer_norm(w, f"{layer}.adaln", x[t], x[t] + time, vision.layer_norm_eps)
    q, k, v = np.split(linear(w, f"{layer}.temporal_attn.qkv", normed), 3, axis=-1)
    out = x.copy()
    for t in range(len(x)):
        first = 0 if window is None else max(0, t - window + 1)
        for n in range(x.shape[1]):
            attended = attend(q[t, n], k[first : t + 1, n], v[first : t + 1, n], vision.num_heads)
            out[t, n] += w[f"{layer}.alpha"] * linear(w, f"{layer}.temporal_attn.proj", attended)
    return out


def feed_forward_step(w: Weights, layer: str, x: Array, vision: VisionConfig) -> Array:
    normed = affine_layer_norm(w, f"{layer}.norm2", x, vision.layer_norm_eps)
    return x + w[f"{layer}.ls2"] * mlp(w, f"{layer}.mlp", normed)


def compress(w: Weights, patches: Array, time: int, vision: VisionConfig, tokens_a_side: int) -> Array:
    """The patches (G * G, C) of one frame -> its tokens, row by row."""
    x = space_to_depth(patches, tokens_a_side)
    embedded = time_embedding(w, "compressor.time_embedding", time, vision.sinusoid_size)
    return mlp(w, "compressor.mlp", ada_layer_norm(w, "compressor.adaln", x, x + embedded, 1e-5))


def space_to_depth(patches: Array, tokens_a_side: int) -> Array:
    """(G * G, C) -> (tokens, patches per token * C): a token is its square of patches, concatenated row by row."""
    grid = math.isqrt(len(patches))
    side = grid // tokens_a_side
    tokens = []
    for token_row in range(tokens_a_side):
        for token_column in range(tokens_a_side):
            square = []
            for row in range(side):
                for column in range(side):
                    square.append(patches[(token_row * side + row) * grid + token_column * side + column])
            tokens.append(np.concatenate(square))
    return np.stack(tokens)


def attend(q: Array, k: Array, v: Array, num_heads: int) -> Array:
    """One query (C,) over keys and values (rows, C) -> (C,), head by head."""
    out = []
    for q_h, k_h, v_h in zip(*(np.split(y, num_heads, axis=-1) for y in (q, k, v)), strict=True):
        scores = k_h @ q_h / math.sqrt(len(q_h))
        weights = np.exp(scores - scores.max())
        out.append(weights / weights.sum() @ v_h)
    return np.concatenate(out)


def time_embedding(w: Weights, name: str, time: int, sinusoid_size: int) -> Array:
    half = sinusoid_size // 2
    angles = [time / 10000 ** (i / half) for i in range(half)]
    waves = np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return linear(w, f"{name}.w2", silu(linear(w, f"{name}.w1", waves)))


def ada_layer_norm(w: Weights, name: str, x: Array, z: Array, eps: float) -> Array:
    gamma = linear(w, f"{name}.w4", silu(linear(w, f"{name}.w3", z)))
    beta = linear(w, f"{name}.w6", silu(linear(w, f"{name}.w5", z)))
    return gamma * layer_norm(x, eps) + beta


def affine_layer_norm(w: Weights, name: str, x: Array, eps: float) -> Array:
    return layer_norm(x, eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)


def mlp(w: Weights, name: str, x: Array) -> Array:
    return linear(w, f"{name}.fc2", gelu(linear(w, f"{name}.fc1", x)))


def linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
