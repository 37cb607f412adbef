"""A session's figures at one frame, for the page and for /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Filled by the session's thread for each frame taken, whether or not the model saw it. Counts only grow.

    source             its name, without a password
    paused             frames are taken but not shown to the model
    frame, time_s      index of the newest frame, and its time on the source's timeline
    num_processed      frames the model saw; num_dropped: frames that arrived while it was busy
    num_stale          frames taken whose picture had been black or unchanged for long
    still              the message about a black or unchanged picture; empty if the picture is alive
    fps                model frames per second over the last frames
    latency_ms         newest frame: from capture until it is in the context; None before the first
    answer_latency_ms  newest answer: from capture of its newest frame to its last token; None before the first
    num_rollovers      times the stream continued from its last frames, or was restarted
    num_reconnects     times the source was lost and reconnected
    context_rows       rows of the LLM's cache in use, of context_limit
    queues             queue lengths by name: commands, webhooks, pictures of a recording
    resident_bytes     memory of this process; None if the system does not report it
    """

    source: str
    paused: bool = False
    frame: int
    time_s: float
    num_processed: int
    num_dropped: int
    num_stale: int = 0
    still: str = ""
    fps: float
    latency_ms: float | None
    answer_latency_ms: float | None = None
    num_answers: int = 0
    num_rollovers: int = 0
    num_reconnects: int = 0
    context_rows: int
    context_limit: int
    queues: Mapping[str, int] = field(default_factory=dict)
    resident_bytes: int | None = None

    @property
    def num_seen(self) -> int:
        """Frames the source delivered while the session was watching."""
        return self.num_processed + self.num_dropped

    def to_json(self) -> dict[str, Any]:
        """Its fields and num_seen, ready for JSON except for numbers that are not finite."""
        return asdict(self) | {"num_seen": self.num_seen, "queues": dict(self.queues)}
