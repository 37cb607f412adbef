"""A camera that knows its scenes: the labelled world of pvc_ref.shapes, rendered live, one scene after another.

Note: time stands still here between scenes. A scene's question is asked at its last frame, which is then held for as
long as a person needs to read the answer. The world is imported when it is first shown, so that a device without it
still has its cameras.
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
HOLD_S = 1.5  # that the last frame of a scene stays, for reading


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownScene:
    """The scene that a rendered frame is of, and the question about it, to be asked at its last frame.

    answer       the right one; None if the world has none for this question
    topic        of the world's own question; None for a person's
    frame_index  in the scene, from 0
    num_frames   of the scene
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
        """How long this frame stays beyond the period of its rate."""
        return HOLD_S if self.is_last else 0.0


class Shown(NamedTuple):
    """What a device reads: a frame, its scene, and its time since the first one, where known.

    picture  (H, W, 3) uint8 BGR, or what makes it, so that a frame that is dropped costs no conversion
    """

    picture: Frame | Callable[[], Frame]
    scene: KnownScene | None = None
    time_s: float | None = None

    @property
    def bgr(self) -> Frame:
        return self.picture() if callable(self.picture) else self.picture


class SyntheticDevice:
    """Frames of the world (size, size, 3) uint8 BGR and the scene of each, all from a seed, without an end."""

    name, waits, notice, num_reconnects, damage = SYNTHETIC, True, "", 0, None
    fps: float | None = FPS

    def __init__(self, *, seed: int = 0, question: str | None = None, size: int = SIZE) -> None:
        """`question` is asked of every scene; None asks each scene one of its own. Raises BackendUnavailable."""
        self._shown = _watch(seed, question, size)

    def read(self) -> Shown | None:
        return next(self._shown)

    def close(self) -> None:
        self._shown = iter(())


def _watch(seed: int, asked: str | None, size: int) -> Iterator[Shown]:
    """The import fails here, at once, and not at the first frame."""
    try:
        from pvc_ref.shapes import answer_to, question_of, watch
    except ImportError as error:
        raise BackendUnavailable(
            f"--source {SYNTHETIC} needs pvc_ref, OpenCV and Pillow: {error}",
            cause="pvc_ref is a part of this package that a device's kit may lack",
            fix="install the whole package, and pip install opencv-python; or show something else: --source 0, or a "
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
