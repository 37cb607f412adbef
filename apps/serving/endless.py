"""Streams that take frames for ever: what a server's cameras need, which nobody starts again when a context is full."""

from __future__ import annotations

from typing import Any

from engines.bundle import Bundle
from engines.errors import StreamError
from engines.stream import PVCStream


def endless(bundle: Bundle, *, reserve: int) -> dict[str, Any]:
    """The options of a PVCStream that re-anchors, and leaves `reserve` context rows free for a question at any time.

    Raises StreamError for a model that cannot re-anchor, or whose context is too small for that.
    """
    options: dict[str, Any] = {"clock": "reanchor", "reserve": reserve}
    PVCStream(bundle, **options)
    return options


def as_endless_as_can_be(bundle: Bundle, *, reserve: int) -> dict[str, Any]:
    """The same; for a bundle that cannot, the options of a stream that ends where its context is full: none."""
    try:
        return endless(bundle, reserve=reserve)
    except StreamError:
        return {}
