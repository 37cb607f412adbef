"""Backgrounds of the shapes: plain colours, gradients, soft noise, and pictures with the statistics of photographs.

No photographs are used, so nothing has to be licensed or downloaded. Fallen leaves (opaque, textured, unsaturated
patches of every size, one over another) have the edges, occlusions and spectrum of natural images; see Lee, Mumford
and Huang, "Occlusion models for natural images", IJCV 2001.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

Image = np.ndarray[Any, np.dtype[np.uint8]]
TEXTURE_SIZE = 176  # a frame shows a crop
NUM_TEXTURES = 320
"""Textures 0..255 are for training, 256..319 for held-out clips."""
NUM_TRAINING_TEXTURES = 256


def sample_background(rng: np.random.Generator, size: int, *, held_out: bool) -> Image:
    """Draw a background (size, size, 3) uint8 RGB: a third plain or a gradient, the others textured."""
    draw = rng.random()
    if draw < 0.22:
        image = np.empty((size, size, 3), dtype=np.uint8)
        image[:] = rng.integers(0, 256, 3) if rng.random() < 0.5 else rng.integers(0, 256)
        return image
    if draw < 0.34:
        return _gradient(rng, size)
    first, count = (NUM_TRAINING_TEXTURES, NUM_TEXTURES) if held_out else (0, NUM_TRAINING_TEXTURES)
    picture = texture(int(rng.integers(first, count)))
    side = int(rng.uniform(0.45, 1.0) * TEXTURE_SIZE)
    x, y = rng.integers(0, TEXTURE_SIZE - side + 1, 2)
    crop: Any = np.rot90(picture[y : y + side, x : x + side], int(rng.integers(4)))
    crop = crop[:, :: int(rng.choice([-1, 1]))]
    crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_LINEAR)
    gain, offset = rng.uniform(0.45, 1.1), rng.uniform(-30, 30)
    lift = max(offset, 0.0) + (1 - gain) * rng.uniform(20, 140)
    return np.asarray(cv2.convertScaleAbs(crop, alpha=gain, beta=lift), dtype=np.uint8)


def _gradient(rng: np.random.Generator, size: int) -> Image:
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.float32)
    corners += (corners.mean(-1, keepdims=True) - corners) * rng.uniform(0, 0.8)
    smooth = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(smooth, 0, 255), dtype=np.uint8)


@lru_cache(maxsize=NUM_TEXTURES)
def texture(index: int) -> Image:
    """Texture `index` of the pool, (TEXTURE_SIZE, TEXTURE_SIZE, 3) uint8 RGB; the same on every machine."""
    rng = np.random.default_rng([20411, index])
    image = _clouds(rng) if index % 4 == 0 else _leaves(rng)
    return np.clip(image, 0, 255).astype(np.uint8)


def _spectrum(rng: np.random.Generator, exponent: float) -> Any:
    """Noise (TEXTURE_SIZE, TEXTURE_SIZE) with amplitude 1/f^exponent, zero mean and unit standard deviation."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(TEXTURE_SIZE), np.fft.rfftfreq(TEXTURE_SIZE), indexing="ij"))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(rng.normal(size=(TEXTURE_SIZE, TEXTURE_SIZE))) / frequency**exponent
    noise = np.fft.irfft2(waves, s=(TEXTURE_SIZE, TEXTURE_SIZE))
    return (noise / noise.std()).astype(np.float32)


def _clouds(rng: np.random.Generator) -> Any:
    grey = _spectrum(rng, rng.uniform(0.8, 1.6))
    color = np.stack([_spectrum(rng, 1.4) for _ in range(3)], axis=-1)
    return rng.uniform(60, 180) + rng.uniform(15, 45) * grey[..., None] + rng.uniform(3, 18) * color


def _leaves(rng: np.random.Generator) -> Any:
    """Draw patches of every size, large ones rare, with differing shades, then grain and light over all."""
    image = np.empty((TEXTURE_SIZE, TEXTURE_SIZE, 3), dtype=np.uint8)
    image[:] = _dull_color(rng)
    for _ in range(int(rng.integers(60, 220))):
        radius = 4.0 * (1 - rng.random()) ** -0.7
        radius = min(radius, 70.0)
        corners = int(rng.integers(5, 11))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = radius * rng.uniform(0.5, 1.3, corners) * np.array([1.0, rng.uniform(0.35, 1.0)])[:, None]
        points = rng.uniform(-10, TEXTURE_SIZE + 10, 2) + (reach * np.stack([np.cos(angles), np.sin(angles)])).T
        cv2.fillPoly(image, [np.rint(points * 16).astype(np.int32)], _dull_color(rng), cv2.LINE_AA, shift=4)
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6)).astype(np.float32)
    grain = _spectrum(rng, rng.uniform(0.3, 1.0))[..., None] * rng.uniform(4, 16)
    light = 1 + 0.25 * _spectrum(rng, 2.0)[..., None] * rng.uniform(0, 0.6)
    return (soft + grain) * light


def _dull_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw a grey, brown, green or skin-like shade, never as saturated as a shape."""
    grey = rng.uniform(35, 205)
    tint = rng.normal(0, 1, 3)
    tint -= tint.mean()
    r, g, b = (int(np.clip(grey + value, 0, 255)) for value in tint * rng.uniform(0, 26))
    return r, g, b
