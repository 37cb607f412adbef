"""What a session says while it runs, and at its end."""

from __future__ import annotations

import json
import sys
from typing import Any

from engines.errors import PVCError


class Log:
    """Lines for a person: on standard output, or on standard error if that belongs to --json."""

    def __init__(self, *, as_json: bool) -> None:
        self._file = sys.stderr if as_json else sys.stdout
        self._last_notice = ""

    def say(self, text: str) -> None:
        print(printable(text), file=self._file, flush=True)

    def notice(self, text: str) -> None:
        """Say it once for as long as it stays the same."""
        if text and text != self._last_notice:
            self.say(text)
        self._last_notice = text


def printable(text: str) -> str:
    """Random models say control characters; a terminal must not obey them."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def describe(summary: dict[str, Any]) -> list[str]:
    """The summary for a person: one line of figures, one of where the recording is."""
    counts = (
        f"{summary['ended']}: {summary['num_seen']} frames seen, {summary['num_processed']} processed, "
        f"{summary['num_dropped']} dropped; {summary['fps']:.1f} fps, latency median "
        f"{summary['latency_median_ms']:.1f} ms, p95 {summary['latency_p95_ms']:.1f} ms; "
        f"{summary['num_answers']} answers; context started again {summary['num_restarts']} times, source found again "
        f"{summary['num_reconnects']} times"
    )
    recording = summary["recording"]
    if recording is None:
        return [counts]
    recorded = (
        f"recorded {recording['path']}: {recording['num_frames']} frames, {recording['duration_s']:.1f} s at "
        f"{recording['fps']:.2f} fps"
    )
    return [counts, recorded]


def print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, allow_nan=False), flush=True)


def error_fields(error: PVCError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


def fail(error: PVCError, *, as_json: bool) -> int:
    """Say what went wrong on standard error, and as an object on standard output with --json. Returns the exit code."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    if as_json:
        print_json(error_fields(error))
    return error.exit_code
