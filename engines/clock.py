"""The clock of a stream: what happens once it has seen as many frames as its model was trained on.

A frame's time is its absolute index, so a stream that runs for days reaches times that never occurred in training.
"""

from __future__ import annotations

from typing import Literal, get_args

from .errors import StreamError
from .manifest import Manifest

Clock = Literal["reanchor", "run-on"]
"""Behaviour of a stream at the manifest's `trained_frames`.

reanchor  it restarts with its last frames: their trunk features are replayed with times 0, 1, .. into a spare ring, and
          the LLM's context holds those frames and nothing older. From there on it is bit-identical to a fresh stream
          that was pushed those frames
run-on    time continues: the temporal window slides and the LLM keeps everything, at times the model never saw
"""
DEFAULT_CLOCK: Clock = "run-on"
"""The better choice for the bundled model: cheaper, and more correct answers late in a stream (see its model card)."""
DEFAULT_RETAIN = 8
"""Frames that a re-anchor replays: as many as a window of the default size can see."""


def resolve_clock(manifest: Manifest, clock: Clock | None, retain: int | None) -> tuple[Clock, int]:
    """The clock of a stream, and the number of frames it retains (0 if time runs on).

    None selects the default clock: DEFAULT_CLOCK, but run-on for a model that cannot re-anchor, and reanchor for a
    bundle with a fixed table of times. None retains DEFAULT_RETAIN frames, or as many as fit.
    Raises StreamError if the clock is unknown or this model cannot use it, and if `retain` is out of range.
    """
    window, trained = manifest.limits.window, manifest.trained_frames
    most = min(window, trained - 1)
    can_reanchor = manifest.time_mode == "absolute" and most >= 1
    default: Clock = (
        "run-on" if not can_reanchor else DEFAULT_CLOCK if manifest.limits.num_times is None else "reanchor"
    )
    chosen: Clock = default if clock is None else clock
    if chosen not in get_args(Clock):
        raise StreamError(f"clock is {chosen!r}", expected=f"one of {', '.join(get_args(Clock))}")
    if chosen == "run-on":
        if retain is not None:
            raise StreamError(
                f"retain is {retain}, but the clock is 'run-on', which replays nothing",
                expected="retain together with clock='reanchor'",
                fix="pass clock='reanchor', or leave retain out",
            )
        return chosen, 0
    if not can_reanchor:
        raise StreamError(
            f"clock is 'reanchor', but this model's time mode is '{manifest.time_mode}' and it was trained on "
            f"{trained} frames",
            expected="time mode 'absolute' and at least 2 trained frames: a replay must leave a time for a new frame",
            fix="leave the clock out, or choose 'run-on'",
        )
    if retain is not None and not 1 <= retain <= most:
        raise StreamError(
            f"retain is {retain}",
            expected=f"1 to {most}: the window holds {window} frames, and one of the {trained} times the model was "
            "trained on must be left for a new frame",
            fix="retain fewer, or export with a larger --window",
        )
    return chosen, min(DEFAULT_RETAIN, most) if retain is None else retain
