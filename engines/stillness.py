"""Detects a picture that stays black or unchanged for long: a lens cap, a dead cable, a camera that hangs.

"Black" and its two seconds are FFmpeg's blackdetect. Its freezedetect also waits two seconds, which suits television; a
view of an empty room or a slide stays unchanged for longer, hence five here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLACK_S, UNCHANGED_S = 2.0, 5.0
DARK, DARK_SHARE = 25, 0.98
"""A point is black up to this level of 255 in every channel; a picture is black if this share of its points is."""
CHANGE, CHANGE_SHARE = 12, 0.0005
"""A point has changed if it differs by more than a codec changes a still picture; a picture has changed if this share
of its points has: an object of 10 by 10 points that moves in a picture of 448 by 448 is noticed."""
POINTS = 448  # most points sampled along each side


class Stillness:
    """Examines frames as they arrive. Durations are from a frame to the last one like it."""

    def __init__(self, *, unchanged_s: float = UNCHANGED_S) -> None:
        """unchanged_s: time after which an unchanged picture is reported."""
        self._patience_s = unchanged_s
        self.black_s = self.unchanged_s = 0.0  # the longest so far
        self.is_all_black = False
        self._black_since: float | None = None
        self._same_since = 0.0
        self._first_of_same: NDArray[np.int16] | None = None

    def add(self, bgr: NDArray[np.uint8], time_s: float) -> str:
        """The message for the current picture, (H, W, 3) uint8: constant while it lasts, empty if all is well."""
        height, width, _ = bgr.shape
        points = bgr[:: -(-height // POINTS), :: -(-width // POINTS)].astype(np.int16)
        is_black = bool((_largest(points) <= DARK).mean() >= DARK_SHARE)
        self.is_all_black = is_black and (self.is_all_black or self._first_of_same is None)
        self._black_since = (time_s if self._black_since is None else self._black_since) if is_black else None
        if self._first_of_same is None or self._has_changed(points):
            self._first_of_same, self._same_since = points, time_s
        black_s = 0.0 if self._black_since is None else time_s - self._black_since
        same_s = time_s - self._same_since
        self.black_s, self.unchanged_s = max(self.black_s, black_s), max(self.unchanged_s, same_s)
        if black_s >= BLACK_S:
            return f"the picture has been black since {self._black_since:.1f} s"
        return f"the picture has not changed since {self._same_since:.1f} s" if same_s >= self._patience_s else ""

    def summary(self) -> list[str]:
        """Messages for the end: whether the picture was black or unchanged for long."""
        said = []
        if self.is_all_black:
            said.append("every picture is black")
        elif self.black_s >= BLACK_S:
            said.append(f"the picture is black for {self.black_s:.1f} s")
        if self.unchanged_s >= self._patience_s:
            said.append(f"the picture does not change for {self.unchanged_s:.1f} s")
        return said

    def to_json(self) -> dict[str, float]:
        return {"black_s": round(self.black_s, 3), "unchanged_s": round(self.unchanged_s, 3)}

    def _has_changed(self, points: NDArray[np.int16]) -> bool:
        first = self._first_of_same
        if first is None or first.shape != points.shape:
            return True
        return bool((_largest(np.abs(points - first)) > CHANGE).mean() > CHANGE_SHARE)


def _largest(points: NDArray[np.int16]) -> NDArray[np.int16]:
    """Maximum of each point's three channels, (H, W). Five times as fast as a maximum over an axis of three."""
    largest: NDArray[np.int16] = np.maximum(np.maximum(points[..., 0], points[..., 1]), points[..., 2])
    return largest
