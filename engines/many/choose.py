"""Chooses how several streams of a bundle are run."""

from __future__ import annotations

from ..bundle import Bundle
from ..memory import HostMemory
from ..threads import num_cores
from .passes import Passes, has_greenlet
from .scheduler import OneByOne, Together
from .side_by_side import SideBySide


def together_for(bundle: Bundle, *, max_streams: int) -> Together:
    """One shared pass if the bundle was exported for several streams and the package greenlet is installed; otherwise
    side by side on a CPU with several cores, if its graphs use one thread each; otherwise one by one.

    max_streams  largest number of streams at the same time
    """
    if bundle.manifest.limits.streams > 1 and has_greenlet():
        return Passes(bundle, max_streams=max_streams)
    on_host = all(isinstance(session.memory, HostMemory) for session in bundle.sessions.values())
    if on_host and num_cores() > 1 and set(bundle.threads.values()) <= {1}:
        return SideBySide(bundle)
    return OneByOne(bundle=bundle)
