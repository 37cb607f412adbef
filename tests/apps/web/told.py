"""Frames, events and figures as a session would send them, for tests of the page."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from apps.browser import Limits, decode_jpeg
from apps.capture import Captured
from apps.figures import Figures
from apps.listeners import Event, EventKind
from apps.overlay import Status
from apps.web.pictures import to_jpeg

from ..fakes import picture


def captured(value: int = 1, *, height: int = 48, width: int = 64) -> Captured:
    """A grey frame whose mean identifies it."""
    return Captured(bgr=picture(value, height=height, width=width), index=value, time_s=float(value), captured_at=0.0)


def status(question: str = "What happens?", *, notice: str = "") -> Status:
    return Status(figures=(), question=question, reply=None, random_weights=False, notice=notice)


def event(kind: EventKind = "rollover", text: str = "context full", **more: Any) -> Event:
    return Event(kind=kind, text=text, frame=7, time_s=0.7, **more)


def answered(question: str, answer: str) -> Event:
    return event("answer", answer, question=question, answer=answer)


def figures(**more: Any) -> Figures:
    usual: dict[str, Any] = {
        "source": "camera 0", "frame": 3, "time_s": 0.3, "num_processed": 3, "num_dropped": 1, "fps": 10.0,
        "latency_ms": 40.0, "context_rows": 12, "context_limit": 64,
    }  # fmt: skip
    return Figures(**usual | more)


def jpeg(*, height: int = 48, width: int = 64, value: int = 5) -> bytes:
    return to_jpeg(picture(value, height=height, width=width), width=4000, quality=80)


def noise(size: int = 700) -> Captured:
    """A frame that compresses badly: its JPEG has hundreds of kB."""
    pixels = np.random.default_rng(5).integers(0, 256, (size, size, 3), np.uint8)
    return Captured(bgr=pixels, index=0, time_s=0.0, captured_at=0.0)


def brightness(picture: bytes) -> int:
    """Return the value of the `captured` frame that a JPEG shows."""
    return round(float(decode_jpeg(picture, Limits()).mean()) / 8)


def read(message: str) -> tuple[str, Any]:
    told = json.loads(message)
    return told["type"], told.get("value")
