"""Clips: frames, their scene and their questions, all determined by a seed.

clip = make_clip(seed, num_frames=8)             # a video
clip = make_clip(seed, num_frames=1)             # an image
clip.frames (T, S, S, 3) uint8 RGB;  clip.questions;  clip.scene
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .backgrounds import Image, sample_background
from .camera import CLEAN, Camera, photograph, sample_camera
from .draw import PatchLabels, Print, draw_frame, patch_labels, sample_print
from .questions import Question, questions
from .world import Scene, sample_scene

Frames = np.ndarray[Any, np.dtype[np.uint8]]
FRAME_SIZE = 112
TRAINING, HELD_OUT = 0, 1
"""Separate seed streams: no clip of one is a clip of the other, and their textures differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Frames (T, S, S, 3) uint8 RGB, the scene they show, and its questions.

    num_before  leading frames of another scene, before a cut; questions are about the scene after the cut
    labels      labels for every patch of the frames after the cut, if requested
    """

    frames: Frames
    scene: Scene
    questions: tuple[Question, ...]
    num_before: int = 0
    labels: PatchLabels | None = None

    def bgr(self) -> list[Image]:
        """The frames as a camera delivers them: separate contiguous arrays in BGR order."""
        return [np.ascontiguousarray(frame[..., ::-1]) for frame in self.frames]


def make_clip(
    seed: int,
    *,
    num_frames: int,
    split: int = HELD_OUT,
    kind: str | None = None,
    camera: Camera | None = CLEAN,
    num_before: int = 0,
    size: int = FRAME_SIZE,
    grid: int | None = None,
) -> Clip:
    """Make the clip of a seed.

    num_frames  frames of the scene; 1 makes an image
    split       TRAINING or HELD_OUT
    kind        see sample_scene
    camera      a condition; None draws one
    num_before  leading frames of another scene
    size        side of a frame in pixels
    grid        patches per side for `labels`; None omits the labels
    """
    rng = np.random.default_rng([split, seed])
    before: list[Image] = []
    if num_before:
        other = _shoot(rng, num_frames=max(num_before, 2), split=split, kind=None, camera=camera, size=size)
        before = other.frames[-num_before:]
    shot = _shoot(rng, num_frames=num_frames, split=split, kind=kind, camera=camera, size=size)
    return Clip(
        frames=np.stack([*before, *shot.frames]),
        scene=shot.scene,
        questions=tuple(questions(shot.scene, rng)),
        num_before=num_before,
        labels=None if grid is None else patch_labels(shot.scene, shot.print_, grid=grid),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shot:
    frames: list[Image]
    scene: Scene
    print_: Print | None


def _shoot(
    rng: np.random.Generator, *, num_frames: int, split: int, kind: str | None, camera: Camera | None, size: int
) -> _Shot:
    background = sample_background(rng, size, held_out=split == HELD_OUT)
    red, green, blue = (float(value) for value in background.mean((0, 1)))
    scene = sample_scene(rng, num_frames=num_frames, background=(red, green, blue), kind=kind)
    print_ = None if scene.card is None else sample_print(rng, scene.card, background)
    condition = sample_camera(rng) if camera is None else camera
    drawn = [draw_frame(background, scene, print_, index) for index in range(num_frames)]
    return _Shot(frames=photograph(drawn, condition, rng), scene=scene, print_=print_)
