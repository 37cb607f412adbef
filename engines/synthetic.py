"""Rendered frames for use without a video or camera: coloured discs and bars cross a textured background.

Seeded, so every machine renders the same pixels; camera-sized, so that the resize is exercised too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

Frame = np.ndarray[Any, np.dtype[np.uint8]]
WIDTH, HEIGHT = 192, 144


def render_clip(num_frames: int | None, *, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Iterator[Frame]:
    """Yield num_frames frames (height, width, 3) uint8 BGR; endless if it is None.

    A longer clip begins with the frames of a shorter one.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    background = _texture(rng, x / width, y / height)
    shapes = [_Shape(rng, width, height) for _ in range(3)]
    for t in count() if num_frames is None else range(num_frames):
        image = background.copy()
        for shape in shapes:
            cover = shape.coverage(x, y, t)[..., None]
            image = image * (1 - cover) + shape.color * cover
        image += rng.normal(0.0, 2.0, image.shape).astype(np.float32)  # sensor noise: no two frames are equal
        yield np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, x: Any, y: Any) -> Any:
    """Three colour channels of smooth waves, between 40 and 170."""
    waves = [np.sin(2 * np.pi * (x * rng.uniform(0.5, 3) + y * rng.uniform(0.5, 3) + rng.uniform())) for _ in range(3)]
    return np.stack([105 + 60 * wave for wave in waves], axis=-1).astype(np.float32)


class _Shape:
    """A disc or a bar that moves in a straight line and re-enters on the other side."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.size = np.array([width, height], dtype=np.float32)
        self.start = rng.uniform(0, 1, 2) * self.size
        self.step = rng.uniform(-0.06, 0.06, 2) * self.size
        self.radius = rng.uniform(0.08, 0.2) * height
        self.is_disc = bool(rng.integers(2))
        self.color = rng.integers(0, 256, 3).astype(np.float32)

    def coverage(self, x: Any, y: Any, t: int) -> Any:
        """Share of each pixel that the shape covers, 0 to 1, with a soft edge of one pixel."""
        center = (self.start + t * self.step) % self.size
        dx, dy = np.abs(x - center[0]), np.abs(y - center[1])
        distance = np.hypot(dx, dy) if self.is_disc else np.maximum(dx * 0.5, dy)
        return np.clip(self.radius - distance + 0.5, 0.0, 1.0)
