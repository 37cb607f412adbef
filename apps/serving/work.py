"""Tracking of running requests, so that a server can shut down without cutting them off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import come_again


class Work:
    """The running requests. Any thread may read, wait, and call `refuse_more`."""

    def __init__(self) -> None:
        self.num_running, self.is_draining = 0, False
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request as running. Raises Refused, with 503, during shutdown."""
        with self._changed:
            if self.is_draining:
                raise come_again("this server is shutting down", after_s=5.0, status=503, code="shutting_down")
            self.num_running += 1
        try:
            yield
        finally:
            with self._changed:
                self.num_running -= 1
                self._changed.notify_all()

    def refuse_more(self) -> None:
        """Refuse new requests; the running ones continue."""
        with self._changed:
            self.is_draining = True

    def wait(self, timeout_s: float) -> bool:
        """Wait for the running requests. Returns whether they finished in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.num_running == 0, timeout_s)
