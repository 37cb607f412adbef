"""Options for streams without an end: a server's cameras cannot be restarted when a context is full."""

from __future__ import annotations

from typing import Any

from engines.bundle import Bundle
from engines.errors import StreamError
from engines.stream import PVCStream


def endless(bundle: Bundle, *, reserve: int) -> dict[str, Any]:
    """Options of a PVCStream that re-anchors and keeps `reserve` context rows free for a question at any time.

    Raises StreamError for a model that cannot re-anchor, or whose context is too small.
    """
    options: dict[str, Any] = {"clock": "reanchor", "reserve": reserve}
    PVCStream(bundle, **options)
    return options


def as_endless_as_can_be(bundle: Bundle, *, reserve: int) -> dict[str, Any]:
    """As `endless`; for a bundle that cannot re-anchor, no options: the stream ends when its context is full."""
    try:
        return endless(bundle, reserve=reserve)
    except StreamError:
        return {}
