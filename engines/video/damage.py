"""Damage in a video that can still be read: frames that are missing or decoded with faults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

CODECS_WITH_EMPTY_PACKETS = frozenset(("mpeg4", "vp8"))
"""Files of these codecs may contain packets that show nothing without being damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """Frames and time missing from a video, and faults in it.

    num_missing    frames that the header states, packets begin or a constant rate implies, but that were not decoded
    num_expected   those, plus the decoded ones
    num_faulty     decoded frames with parts that the decoder guessed
    missing_s      seconds between the actual end of its content and the end stated in the header
    complaint      the first complaint of demuxer or decoder; empty if there is none
    """

    num_missing: int
    num_expected: int
    num_faulty: int
    missing_s: float
    complaint: str

    def __str__(self) -> str:
        parts = []
        if self.num_missing:
            verb = "is" if self.num_missing == 1 else "are"
            parts.append(f"{self.num_missing} of {self.num_expected} frames {verb} missing")
        if self.missing_s > 0:
            parts.append(f"it ends {self.missing_s:.1f} s earlier than its header states; it is probably truncated")
        if self.num_faulty:
            parts.append(f"{self.num_faulty} decoded with faults")
        if self.complaint:
            parts.append(f"the decoder reports: {self.complaint}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(kw_only=True, slots=True)
class Tally:
    """Counts taken while a video is read. All times are in seconds, by the file's timestamps."""

    codec: str = ""
    times_s: list[float] = field(default_factory=list)
    last_time_s: float = -math.inf
    num_packets: int = 0
    num_decoded: int = 0
    num_late: int = 0
    num_faulty: int = 0
    num_indexed: int | None = None  # frames in an exact index, including `num_hidden`
    num_stated: int | None = None  # frames by a header that may be off by a second
    num_hidden: int = 0
    end_s: float = 0.0  # end of all content, including sound
    stated_end_s: float | None = None
    is_complete: bool = False  # read to the end, so that frames not seen by now are missing
    has_fields: bool = False  # interlaced, so that a packet may be half a frame
    complaint: str = ""
    doubt: str = ""  # ignored if no frame is missing: a demuxer also sees a gap between two recordings in one file

    def complain(self, text: str) -> None:
        self.complaint = self.complaint or text

    def period_s(self) -> float | None:
        """Time between frames, if the rate is constant apart from gaps."""
        gaps = np.diff(np.sort(np.array(self.times_s)))
        if len(gaps) < 4:
            return None
        period = float(np.median(gaps))
        # Within 2 ms, since Matroska rounds to 1 ms.
        return period if period > 0 and (np.abs(gaps - period) <= 0.002).mean() >= 0.8 else None

    def damage(self) -> Damage | None:
        """None if nothing is wrong. Before the end it reports only what is certain: faults, complaints, late frames."""
        shown = self.num_decoded - self.num_late
        expected, missing_s = self.num_decoded, 0.0
        if self.is_complete:
            missing_s = self._missing_s()
            expected = max(expected, self._stated(), self._by_rate(missing_s))
            is_hurt = bool(self.complaint or self.num_faulty or expected > shown)
            if not self.has_fields and (is_hurt or self.codec not in CODECS_WITH_EMPTY_PACKETS):
                expected = max(expected, self.num_packets)
        if not (expected > shown or missing_s or self.num_faulty or self.complaint):
            return None
        return Damage(
            num_missing=expected - shown,
            num_expected=expected,
            num_faulty=self.num_faulty,
            missing_s=round(missing_s, 3),
            complaint=self.complaint or self.doubt,
        )

    def _missing_s(self) -> float:
        """Missing seconds; 0 within a quarter second plus two frames, as headers round and sound may end anywhere."""
        if self.stated_end_s is None or not self.times_s:
            return 0.0
        if self.num_indexed is not None and self.num_packets >= self.num_indexed - self.num_hidden:
            return 0.0
        allowed = 0.25 + 2 * (self.period_s() or 0.0)
        missing = self.stated_end_s - self.end_s
        return missing if missing > allowed else 0.0

    def _stated(self) -> int:
        """Frames by the header; 0 if it does not state them or is close enough."""
        if self.num_indexed is not None:
            return self.num_indexed - self.num_hidden
        stated = (self.num_stated or 0) - self.num_hidden
        allowed = 1 / (self.period_s() or 1.0)  # one second of frames: some headers count repeated frames
        return stated if stated - self.num_packets > allowed else 0

    def _by_rate(self, missing_s: float) -> int:
        """Frames implied by a constant rate, if there is a reason to doubt that all packets arrived."""
        period = self.period_s()
        if period is None or not (self.complaint or self.doubt or self.num_faulty or self.num_late or missing_s):
            return 0
        return round((max(self.times_s) - min(self.times_s) + missing_s) / period) + 1


def hides_frame(codec: str, packet: Any) -> bool:
    """Whether a packet is only a reference and not displayed: VP8's first byte tells. Source: RFC 6386, 9.1."""
    return codec == "vp8" and not bytes(packet)[0] >> 4 & 1
