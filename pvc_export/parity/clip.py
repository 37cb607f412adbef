"""Default clip of checks and demos: rendered frames, and a few from a real camera.

Rendered: engines/synthetic.py, in a camera's size, so that the resize is checked too. Real: red pandas from PVC's own
example (real_frames/).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from engines.synthetic import Frame, render_clip

__all__ = ["QUESTION", "Frame", "check_clip", "real_frames", "render_clip"]
QUESTION = "What do you see?"
"""The question that a check asks about its clip."""
REAL_FRAMES = Path(__file__).with_name("real_frames")


def check_clip(num_frames: int) -> list[Frame]:
    """A clip whose first half is rendered and whose second half is real: frames (H, W, 3) uint8 BGR."""
    real = real_frames()
    num_rendered = num_frames - num_frames // 2
    return [*render_clip(num_rendered), *(real[i % len(real)] for i in range(num_frames - num_rendered))]


def real_frames() -> list[Frame]:
    """Six frames (320, 180, 3) uint8 BGR from a real camera: three scenes, two frames of the first two."""
    images = (Image.open(path) for path in sorted(REAL_FRAMES.glob("*.jpg")))
    return [np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]) for image in images]
