"""Which way many streams of a bundle take their steps."""

from __future__ import annotations

from ..bundle import Bundle
from ..memory import HostMemory
from ..threads import num_cores
from .passes import Passes, has_greenlet
from .scheduler import OneByOne, Together
from .side_by_side import SideBySide


def together_for(bundle: Bundle, *, max_streams: int) -> Together:
    """In one pass where the bundle was exported for several streams and the package greenlet is there; else side by
    side on a CPU of several cores, if its graphs have one thread each; else one by one.

    max_streams  that may exist at once
    """
    if bundle.manifest.limits.streams > 1 and has_greenlet():
        return Passes(bundle, max_streams=max_streams)
    on_host = all(isinstance(session.memory, HostMemory) for session in bundle.sessions.values())
    if on_host and num_cores() > 1 and set(bundle.threads.values()) <= {1}:
        return SideBySide(bundle)
    return OneByOne(bundle=bundle)
