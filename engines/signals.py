"""Ctrl-C and SIGTERM as the way to end a live view: what was recorded is completed first.

Unusual: a signal raises KeyboardInterrupt only where the model computes, which leaves a stream as it was; everywhere
else it is noted, so that no file is left half written. A second signal ends the process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What came of the signals of this process. Until `defer` is called, they raise."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._raises = True

    def install(self) -> None:
        """Take over the signals. For the command line only."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def requested(self) -> bool:
        return self.number is not None

    def defer(self) -> None:
        """From now on, signals are only noted."""
        self._raises = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises KeyboardInterrupt, which is swallowed here; ask `requested` afterwards."""
        before, self._raises = self._raises, True
        try:
            yield
        except KeyboardInterrupt:
            if not self.requested:
                raise
        finally:
            self._raises = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if self._raises:
            raise KeyboardInterrupt
