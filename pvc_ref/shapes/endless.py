"""The endless world: a stream of short scenes with a cut between them and known answers.

A scene lasts a few frames. Ask at its last frame, when everything has happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from .camera import Camera
from .clips import HELD_OUT, Clip, Frames, make_clip
from .questions import Question

HANDHELD = Camera(noise=3.0, shake=0.4)
"""A decent camera: a little noise and a little shake."""
SCENE_LENGTHS = (6, 7, 8)
_SEEDS_PER_WORLD = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldFrame:
    """One frame (S, S, 3) uint8 RGB of an endless world.

    clip         the scene that the frame belongs to
    frame_index  its index in that scene, from 0
    """

    frame: Frames
    clip: Clip
    frame_index: int

    @property
    def is_last(self) -> bool:
        """Whether the scene ends with this frame, so that its questions can be asked."""
        return self.frame_index == len(self.clip.frames) - 1


def watch(seed: int = 0, *, size: int = 448) -> Iterator[WorldFrame]:
    """Yield endless frames, determined by `seed`."""
    rng = np.random.default_rng([seed, 77])
    for index in count():
        num_frames = int(rng.choice(SCENE_LENGTHS))
        clip = make_clip(
            seed * _SEEDS_PER_WORLD + index, num_frames=num_frames, split=HELD_OUT, camera=HANDHELD, size=size
        )
        for frame_index, frame in enumerate(clip.frames):
            yield WorldFrame(frame=frame, clip=clip, frame_index=frame_index)


def question_of(clip: Clip, seed: int) -> Question:
    """Draw one of a clip's questions. The topic is drawn first, so that no topic is rare."""
    rng = np.random.default_rng([seed, 78])
    topics = sorted({question.topic for question in clip.questions})
    topic = topics[int(rng.integers(len(topics)))]
    of_topic = [question for question in clip.questions if question.topic == topic]
    return of_topic[int(rng.integers(len(of_topic)))]
