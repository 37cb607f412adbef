"""Triggers of the standing question: on a schedule, when the picture changes, or on request.

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
"""Share of the threshold: a frame that differs by less from the previous frame is calm."""
RESTLESS_PAUSES = 10
"""Number of pauses after which a changed picture triggers the question even if it was never calm."""


class Trigger(Protocol):
    """Called on the session's thread. time_s: the source's time; embeds (M, E) float32: the frame's tokens."""

    def due(self, time_s: float, embeds: Embeds) -> bool:
        """Whether to ask now. Called once per frame the model saw, in order."""

    def asked(self, time_s: float, embeds: Embeds) -> None:
        """Note that the question was asked about the frames up to this one, for any reason."""

    def reset(self) -> None:
        """Forget everything: the source was switched, or time restarts."""


class Schedule:
    """Asks every every_s seconds of video (0: every frame); the first time after every_s."""

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
    """Asks when a frame differs by the threshold or more from the frame of the last question.

    Distance  mean over the M tokens of 1 - cos(token, the same token of the other frame): 0 equal, 2 opposite.
              Per token instead of between the frames' means, since a token represents a part of the picture: a new
              object changes some tokens a lot, which a mean would hide, and two objects swapping places would cancel.
    Pause     at least pause_s between two questions, and before the first one.
    Noise     a change counts only if the picture was calm since the last question: some frame differed from the
              previous one by less than half the threshold. Rain or a dark camera's noise differs as much from the
              previous frame as from the last question's frame; without this rule it would trigger after every pause,
              with it only after every tenth one.
    """

    def __init__(self, threshold: float, *, pause_s: float) -> None:
        self.distance = 0.0  # distance of the newest frame, for choosing a threshold
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
    """Asks on request: `fire` from any thread, or SIGUSR1. Several requests before the next frame are one question."""

    def __init__(self) -> None:
        self._is_due = False

    def fire(self) -> None:
        self._is_due = True

    def install(self) -> str:
        """Handle SIGUSR1; call on the main thread only. Returns the command that sends it; '' without signals."""
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
    """A copy with tokens scaled to length 1; zero tokens stay zero."""
    lengths = np.linalg.norm(embeds, axis=1, keepdims=True)
    return np.asarray(embeds / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _distance(first: Embeds, second: Embeds) -> float:
    """Distance of unit tokens (M, E); 2, the maximum, for frames with different numbers of tokens."""
    if first.shape != second.shape:
        return 2.0
    return 1.0 - float(np.einsum("me,me->m", first, second).mean())
