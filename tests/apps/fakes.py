"""A scripted camera: it delivers frames, fails, disappears and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import pytest

from apps.addresses import Address
from apps.capture import Captured
from apps.devices import FPS
from apps.synthetic import KnownScene, Shown
from engines import Answer, Bundle, PVCStream
from engines.synthetic import Frame


def picture(value: int, *, height: int = 48, width: int = 64) -> Frame:
    """Return a picture of grey level 8 * value, so that a frame's mean identifies it."""
    return np.full((height, width, 3), 8 * value, np.uint8)


class FakeCapture:
    """cv2.VideoCapture's methods over a list of frames; None is a failed read. After the last frame every read fails.

    With `gate`, a read after the last frame sets `is_empty` and waits for the gate to open.
    """

    def __init__(
        self,
        frames: Iterable[Frame | None] = (),
        *,
        opens: bool = True,
        fps: float = 30.0,
        gate: Event | None = None,
    ) -> None:
        self.frames, self.opens, self.properties = list(frames), opens, {FPS: fps}
        self.gate, self.is_empty, self.is_released = gate, Event(), False

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def read(self) -> tuple[bool, Frame | None]:
        assert not self.is_released
        if not self.frames:
            self.is_empty.set()
            if self.gate is not None:
                assert self.gate.wait(20)
            return False, None
        frame = self.frames.pop(0)
        return frame is not None, frame

    def get(self, prop: int) -> float:
        return self.properties[prop]

    def release(self) -> None:
        self.is_released = True


class FakeVideo:
    """A device that waits for its reader, as a file does: pictures 0, 1, 2, ... at the given times."""

    name, waits, notice, num_reconnects, damage = "clip.mp4", True, "", 0, None
    fps: float | None = 30.0

    def __init__(self, times_s: Iterable[float]) -> None:
        self.left, self.is_closed = list(enumerate(times_s)), False

    def read(self) -> Shown | None:
        if not self.left:
            return None
        value, time_s = self.left.pop(0)
        return Shown(picture(value), time_s=time_s)

    def close(self) -> None:
        self.is_closed = True


class FakeFactory:
    """Return the captures in order, one per opening."""

    def __init__(self, *captures: FakeCapture) -> None:
        self.captures, self.num_opened = captures, 0

    def __call__(self, address: Address) -> FakeCapture:
        self.num_opened += 1
        return self.captures[self.num_opened - 1]


def trained(bundle: Bundle, *, trained_frames: int = 16) -> Bundle:
    """The same bundle, with a manifest that declares it trained."""
    model = replace(bundle.manifest.model, random_weights=False)
    return replace(bundle, manifest=replace(bundle.manifest, trained_frames=trained_frames, model=model))


def answers(monkeypatch: pytest.MonkeyPatch, reply_to: Callable[[str], str]) -> list[str]:
    """Make every stream answer with `reply_to(question)`. Returns a list that collects the questions."""
    asked: list[str] = []

    def begin(self: PVCStream, question: str, **_: Any) -> FakeAnswering:
        asked.append(question)
        return FakeAnswering(reply_to(question))

    monkeypatch.setattr(PVCStream, "begin", begin)
    return asked


class FakeAnswering:
    """Give the answer word by word."""

    def __init__(self, text: str) -> None:
        self.words, self.num_said, self.is_cut = text.split(" "), 0, False
        self.answer: Answer | None = None

    @property
    def text(self) -> str:
        return " ".join(self.words[: self.num_said])

    def step(self) -> bool:
        self.num_said += 1
        if self.num_said == len(self.words):
            self.answer = Answer(
                text=self.text, token_ids=(1,), finished=True, vision_ms=0.0, prefill_ms=1.0, decode_ms=2.0, margin=1.5
            )
        return self.answer is not None


def scenes(*lengths: int, fps: float = 4.0) -> Iterator[Captured]:
    """Frames of scenes with these lengths. Scene i's question is 'Which is i?', and 'It is i.' is the right answer."""
    index = 0
    for scene, num_frames in enumerate(lengths):
        for frame_index in range(num_frames):
            known = KnownScene(
                question=f"Which is {scene}?", answer=f"It is {scene}.", topic="count" if scene % 2 else "event",
                frame_index=frame_index, num_frames=num_frames,
            )  # fmt: skip
            yield Captured(bgr=picture(scene), index=index, time_s=index / fps, captured_at=0.0, scene=known)
            index += 1
