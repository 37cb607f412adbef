"""What a session counts, as of one frame: what a page draws, and what /metrics gives out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Filled by the session's thread for each frame that it took, whether or not the model saw it. Counts only grow.

    source             its name, without a password
    paused             frames are taken, and the model does not see them
    frame, time_s      index of the newest frame, and its time on the source's own timeline
    num_processed      frames that the model saw; num_dropped those that came while it was busy
    num_stale          of those taken, how many showed a picture that had been black or the same for long
    still              what is said of such a picture; empty if it is alive
    fps                model frames per second over the last frames
    latency_ms         of the newest frame, from its capture until it was in the context; None before the first
    answer_latency_ms  of the newest answer, from the capture of its newest frame until its last token; None before it
    num_rollovers      how often the stream went on from its last frames, or was started again
    num_reconnects     how often the source was lost and found again
    context_rows       rows of the LLM's cache that are taken, of context_limit
    queues             what waits, by name: commands, webhooks, pictures of a recording
    resident_bytes     memory of this process; None where the system does not tell
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
        """By the source, while somebody looked."""
        return self.num_processed + self.num_dropped

    def to_json(self) -> dict[str, Any]:
        """Its fields and num_seen, fit for JSON but for a number that is not finite."""
        return asdict(self) | {"num_seen": self.num_seen, "queues": dict(self.queues)}
