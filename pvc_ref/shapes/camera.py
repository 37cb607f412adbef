"""Camera effects on a clean picture: blur, noise, light, white balance, a shaking hand, JPEG.

A clip has one condition. Noise and shake are drawn for every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .backgrounds import Image

_NOISE_SIZE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """One condition. The defaults change nothing.

    blur        Gaussian sigma in pixels of a 112 px frame, scaled for other sizes
    noise       standard deviation, on a scale of 0..255
    brightness  factor
    balance     factors for red, green and blue
    shade       how much darker one side is than the other, and the direction (radians)
    shake       standard deviation of the position, in pixels of a 112 px frame
    jpeg        quality, or None
    """

    blur: float = 0.0
    noise: float = 0.0
    brightness: float = 1.0
    balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shade: tuple[float, float] = (0.0, 0.0)
    shake: float = 0.0
    jpeg: int | None = None


CLEAN = Camera()
CONDITIONS: dict[str, Camera] = {
    "clean": CLEAN,
    "blur": Camera(blur=1.0),
    "jpeg": Camera(jpeg=50),
    "noise": Camera(noise=15.0),
    "dark": Camera(brightness=0.5),
    "bright": Camera(brightness=1.5),
    "warm": Camera(balance=(1.15, 1.0, 0.8)),
    "cold": Camera(balance=(0.85, 1.0, 1.15)),
    "shake": Camera(shake=1.5),
}
"""Named conditions for the evaluation."""


def sample_camera(rng: np.random.Generator) -> Camera:
    """Draw a condition for training: nearly a third are clean, the others mix several effects."""
    if rng.random() < 0.3:
        return CLEAN

    def sometimes(chance: float, value: float, otherwise: float) -> float:
        return value if rng.random() < chance else otherwise

    red, blue = np.exp(rng.normal(0, 0.12)), np.exp(rng.normal(0, 0.12))
    return Camera(
        blur=sometimes(0.4, rng.uniform(0.3, 1.4), 0.0),
        noise=sometimes(0.45, rng.uniform(2, 20), 0.0),
        brightness=sometimes(0.5, float(np.exp(rng.uniform(np.log(0.4), np.log(1.6)))), 1.0),
        balance=(float(red), 1.0, float(blue)) if rng.random() < 0.45 else (1.0, 1.0, 1.0),
        shade=(sometimes(0.3, rng.uniform(0.1, 0.5), 0.0), rng.uniform(0, 2 * np.pi)),
        shake=sometimes(0.4, rng.uniform(0.3, 2.0), 0.0),
        jpeg=int(rng.uniform(30, 96)) if rng.random() < 0.35 else None,
    )


def photograph(frames: list[Image], camera: Camera, rng: np.random.Generator) -> list[Image]:
    """Apply the camera's effects to frames, each (S, S, 3) uint8 RGB."""
    if camera == CLEAN:
        return frames
    light = _light(camera, frames[0].shape[0])
    return [_expose(frame, camera, light, rng) for frame in frames]


def _light(camera: Camera, size: int) -> Any:
    """Factors (S, S, 3) or (3,) float32 for brightness, white balance and uneven light."""
    factors = np.asarray(camera.balance, dtype=np.float32) * np.float32(camera.brightness)
    depth, direction = camera.shade
    if depth == 0.0:
        return factors
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = 1 + depth * (np.cos(direction) * ramp[None, :] + np.sin(direction) * ramp[:, None])
    return slope[..., None].astype(np.float32) * factors


def _expose(frame: Any, camera: Camera, light: Any, rng: np.random.Generator) -> Image:
    scale = frame.shape[0] / 112
    if camera.shake > 0:
        shift = rng.normal(0, camera.shake * scale, 2)
        move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], dtype=np.float32)
        frame = cv2.warpAffine(frame, move, frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    if camera.blur > 0:
        frame = cv2.GaussianBlur(frame, (0, 0), camera.blur * scale)
    if camera.noise > 0 or np.any(light != 1):
        exposed = frame * light
        if camera.noise > 0:
            exposed += camera.noise * _noise(rng, frame.shape[0])
        frame = np.clip(exposed + 0.5, 0, 255).astype(np.uint8)
    if camera.jpeg is not None:
        _, packed = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.jpeg])
        decoded: Any = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        frame = decoded[..., ::-1]
    return np.ascontiguousarray(frame)


_GRAIN = np.random.default_rng(7).standard_normal((_NOISE_SIZE, _NOISE_SIZE, 3), dtype=np.float32)


def _noise(rng: np.random.Generator, size: int) -> Any:
    """Unit noise (size, size, 3): a random window of a fixed sheet, which is much faster than drawing new noise."""
    if size > _NOISE_SIZE // 2:
        return rng.standard_normal((size, size, 3), dtype=np.float32)
    x, y = rng.integers(0, _NOISE_SIZE - size, 2)
    return _GRAIN[y : y + size, x : x + size] * np.float32(rng.choice([-1.0, 1.0]))
