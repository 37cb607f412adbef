"""The printed text of a session, while it runs and at its end."""

from __future__ import annotations

import sys
from typing import Any

from engines.terminal import printable
from engines.wrapping import fitted_to

from .meters import Meter
from .score import share
from .watcher import Reply, Watcher

MARKS = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}"}


class Log:
    """Prints lines for the user: on standard output, or on standard error if --json uses standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self._file = sys.stderr if as_json else sys.stdout
        self._last_notice = ""
        self.notices: list[str] = []  # all notices, for --json

    def say(self, text: str) -> None:
        print(fitted_to(self._file, printable(text)), file=self._file, flush=True)

    def notice(self, text: str) -> None:
        """Print a notice once, until it changes."""
        if text and text != self._last_notice:
            self.say(text)
            self.notices.append(text)
        self._last_notice = text


def figures(meter: Meter, watcher: Watcher, score: str, frame_index: int) -> tuple[str, ...]:
    """The figures for the overlay: the score first, if there is one."""
    found = (
        score,
        f"{meter.fps:.1f} fps",
        f"latency {meter.latency_ms:.0f} ms",
        f"dropped {meter.num_dropped}",
        f"frame {frame_index}",
        f"context {watcher.context_rows}/{watcher.context}",
        f"rollovers {watcher.num_rollovers}" if watcher.num_rollovers else "",
    )
    return tuple(filter(None, found))


def describe_reply(reply: Reply, score: str) -> str:
    """One line of the log; with question, truth and score if the source knows the truth."""
    head = f"{reply.time_s:9.1f} s  frame {reply.frame_index:<6} "
    grade = reply.grade
    if grade.truth is None:
        return head + reply.text
    told = f"{head}{reply.question} -> {reply.text}  "
    if grade.is_right is None:
        return f"{told}truth: {grade.truth}"
    return f"{told}{MARKS[grade.is_right]} truth: {grade.truth}  {score}"


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary for the user: a line of figures, a line of scores, and a line about the recording."""
    counts = (
        f"{summary['ended']}: {summary['num_seen']} frames seen, {summary['num_processed']} processed, "
        f"{summary['num_dropped']} dropped; {summary['fps']:.1f} fps, latency median "
        f"{summary['latency_median_ms']:.1f} ms, p95 {summary['latency_p95_ms']:.1f} ms; "
        f"{summary['num_answers']} answers; context used up {summary['num_rollovers']} times, source reconnected "
        f"{summary['num_reconnects']} times"
    )
    lines, score, recording = [counts], summary["score"], summary["recording"]
    if score["num_graded"]:
        parts = {"right": score, **score["by_topic"]}.items()
        lines.append("; ".join(f"{name} {share(part['num_right'], part['num_graded'])}" for name, part in parts))
    if recording is not None:
        lines.append(
            f"recorded {recording['path']}: {recording['num_frames']} frames, {recording['duration_s']:.1f} s at "
            f"{recording['fps']:.2f} fps"
        )
    return lines
