"""The synthetic source: labelled scenes of pvc_ref.shapes, rendered live, one after another.

Note: time stands still between scenes. A scene's question is asked at its last frame, which is then held long enough to
read the answer. pvc_ref is imported on first use, so that a device without it can still use cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engines.errors import BackendUnavailable
from engines.synthetic import Frame

SYNTHETIC = "synthetic"
FPS, SIZE = 4.0, 448
HOLD_S = 1.5  # how long a scene's last frame stays, so that the answer can be read


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownScene:
    """The scene of a rendered frame, and the question to ask at the scene's last frame.

    answer       the right answer; None if it is unknown for this question
    topic        topic of the scene's own question; None for a person's question
    frame_index  index in the scene, from 0
    num_frames   frames in the scene
    """

    question: str
    answer: str | None
    topic: str | None
    frame_index: int
    num_frames: int

    @property
    def is_first(self) -> bool:
        return self.frame_index == 0

    @property
    def is_last(self) -> bool:
        return self.frame_index == self.num_frames - 1

    @property
    def hold_s(self) -> float:
        """How long this frame stays in addition to its frame period."""
        return HOLD_S if self.is_last else 0.0


class Shown(NamedTuple):
    """A frame read from a device, with its scene and its time since the first frame, if known.

    picture  (H, W, 3) uint8 BGR, or a function that makes it, so that a dropped frame costs no conversion
    """

    picture: Frame | Callable[[], Frame]
    scene: KnownScene | None = None
    time_s: float | None = None

    @property
    def bgr(self) -> Frame:
        return self.picture() if callable(self.picture) else self.picture


class SyntheticDevice:
    """Endless frames (size, size, 3) uint8 BGR with their scenes, all from a seed."""

    name, waits, notice, num_reconnects, damage = SYNTHETIC, True, "", 0, None
    fps: float | None = FPS

    def __init__(self, *, seed: int = 0, question: str | None = None, size: int = SIZE) -> None:
        """`question` is asked about every scene; with None each scene has its own. Raises BackendUnavailable."""
        self._shown = _watch(seed, question, size)

    def read(self) -> Shown | None:
        return next(self._shown)

    def close(self) -> None:
        self._shown = iter(())


def _watch(seed: int, asked: str | None, size: int) -> Iterator[Shown]:
    """The frames; a missing import raises here, not at the first frame."""
    try:
        from pvc_ref.shapes import answer_to, question_of, watch
    except ImportError as error:
        raise BackendUnavailable(
            f"--source {SYNTHETIC} needs pvc_ref, OpenCV and Pillow: {error}",
            cause="pvc_ref is part of this package, but a device's kit may lack it",
            fix="install the whole package and pip install opencv-python; or use another source: --source 0, or a "
            "video file",
        ) from error

    def frames() -> Iterator[Shown]:
        num_scenes = 0
        for shown in watch(seed, size=size):
            if shown.frame_index == 0:
                own = question_of(shown.clip, seed + num_scenes)
                num_scenes += 1
            scene = KnownScene(
                question=asked or own.text,
                answer=answer_to(shown.clip.scene, asked) if asked else own.answer,
                topic=None if asked else own.topic,
                frame_index=shown.frame_index,
                num_frames=len(shown.clip.frames),
            )
            yield Shown(np.ascontiguousarray(shown.frame[..., ::-1]), scene)

    return frames()
