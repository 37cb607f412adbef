"""Health of a session: frames arrive, and the engine processes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..capture import Captured
from ..figures import Figures
from ..listeners import Event
from ..overlay import Status
from ..watchdog import Watchdog


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A health report. reason: why the session is unhealthy; empty if it is healthy."""

    reason: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        return not self.reason

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.is_well, "reason": self.reason or None, **self.details}


class Health:
    """A Listener with `counted`, like the hub. `report` may be called on any thread."""

    def __init__(self, watchdog: Watchdog, *, num_viewers: Callable[[], int] = lambda: 0) -> None:
        self._watchdog, self._num_viewers = watchdog, num_viewers
        self._figures: Figures | None = None
        self._notice = ""
        self._has_ended = self._has_frames = False

    def saw(self, captured: Captured, status: Status) -> None:
        self._has_frames, self._notice = True, status.notice

    def said(self, question: str, text: str) -> None:
        pass

    def happened(self, event: Event, captured: Captured) -> None:
        self._has_ended = event.kind == "end"

    def counted(self, figures: Figures) -> None:
        self._figures = figures

    def close(self) -> None:
        self._has_ended = True

    def report(self) -> Report:
        figures = self._figures
        details: dict[str, Any] = {"viewers": self._num_viewers()}
        if figures is not None:
            details |= {
                "source": figures.source, "paused": figures.paused, "frame": figures.frame,
                "fps": round(figures.fps, 2), "num_processed": figures.num_processed,
                "num_dropped": figures.num_dropped, "num_answers": figures.num_answers,
            }  # fmt: skip
        if self._notice:
            details["notice"] = self._notice
        return Report(reason=self._reason(), details=details)

    def _reason(self) -> str:
        if self._has_ended:
            return "the session ended"
        hang = self._watchdog.look()
        if hang is not None:
            return str(hang)
        if not self._has_frames:
            return "no frame yet"
        return "" if self._figures is None else self._figures.still
