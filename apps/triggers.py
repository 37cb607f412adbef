"""When the standing question is asked: again and again, when the picture changes, or when somebody says so.

Dimension key:  M tokens of a frame   E their width
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Embeds = NDArray[np.float32]
CALM_SHARE = 0.5
"""Of the threshold: a frame that differs by less from the one before it is calm."""
RESTLESS_PAUSES = 10
"""Pauses after which a picture that was never calm is asked about all the same, if it differs."""


class Trigger(Protocol):
    """Called on the session's thread. time_s is the source's; embeds (M, E) float32 are what the model got to see."""

    def due(self, time_s: float, embeds: Embeds) -> bool:
        """Whether to ask now. Called once for every frame that the model saw, in order."""

    def asked(self, time_s: float, embeds: Embeds) -> None:
        """The question was asked about the frames up to this one, whoever wanted it."""

    def reset(self) -> None:
        """Forget all: another source, or time begins anew."""


class Schedule:
    """Every so many seconds of video, 0 being every frame; the first time when that many have passed."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._due_s: float | None = None

    def due(self, time_s: float, embeds: Embeds) -> bool:
        if self._due_s is None:
            self._due_s = time_s + self._every_s
        return time_s >= self._due_s

    def asked(self, time_s: float, embeds: Embeds) -> None:
        self._due_s = time_s + self._every_s

    def reset(self) -> None:
        self._due_s = None


class OnChange:
    """When a frame differs from the one that was last asked about by a threshold or more.

    Distance  the mean over the M tokens of 1 - cos(token, the same token of the other frame): 0 the same, 2 opposite.
              By token and not of the frames' means, as a token stands for a part of the picture: what comes in moves
              some tokens a lot, which a mean of all would hide, and two things that change places would cancel out.
    Pause     at least pause_s between two questions, and before the first one.
    Noise     a change counts if the picture was calm in between: some frame since the last question differed by less
              than half the threshold from the frame before it. Rain or a dark camera's noise, as far from the frame
              before as from the one asked about, would ask after every pause; it does so after every tenth one.
    """

    def __init__(self, threshold: float, *, pause_s: float) -> None:
        self.distance = 0.0  # of the newest frame, for those who choose a threshold
        self._threshold, self._pause_s = threshold, pause_s
        self.reset()

    def reset(self) -> None:
        self._asked_about: Embeds | None = None
        self._before: Embeds | None = None
        self._since_s: float | None = None  # the last question, or the first frame
        self._was_calm = False

    def due(self, time_s: float, embeds: Embeds) -> bool:
        unit = _unit(embeds)
        if self._since_s is None:
            self._since_s = time_s
        if self._before is not None and _distance(unit, self._before) < CALM_SHARE * self._threshold:
            self._was_calm = True
        self._before = unit
        waited_s = time_s - self._since_s
        if self._asked_about is None:
            return waited_s >= self._pause_s
        self.distance = _distance(unit, self._asked_about)
        if self.distance < self._threshold or waited_s < self._pause_s:
            return False
        return self._was_calm or waited_s >= RESTLESS_PAUSES * self._pause_s

    def asked(self, time_s: float, embeds: Embeds) -> None:
        self._asked_about = self._before = _unit(embeds)
        self._since_s, self._was_calm, self.distance = time_s, False, 0.0


class OnTrigger:
    """When somebody says so: `fire`, from any thread, or SIGUSR1. Several before the next frame are one question."""

    def __init__(self) -> None:
        self._is_due = False

    def fire(self) -> None:
        self._is_due = True

    def install(self) -> str:
        """Listen to SIGUSR1; from the main thread only. Returns how to send it; empty on a system without signals."""
        number = getattr(signal, "SIGUSR1", None)
        if number is None:
            return ""
        signal.signal(number, self._on_signal)
        return f"kill -USR1 {os.getpid()}"

    def due(self, time_s: float, embeds: Embeds) -> bool:
        return self._is_due

    def asked(self, time_s: float, embeds: Embeds) -> None:
        self._is_due = False

    def reset(self) -> None:
        self._is_due = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.fire()


def _unit(embeds: Embeds) -> Embeds:
    """A copy whose tokens have length 1, and 0 where they had."""
    lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
    return np.asarray(embeds / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _distance(first: Embeds, second: Embeds) -> float:
    """Of unit tokens (M, E); 2, the most there is, between frames that have another number of them."""
    if first.shape != second.shape:
        return 2.0
    return 1.0 - float(np.einsum("me,me->m", first, second).mean())
