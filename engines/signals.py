"""Ctrl-C and SIGTERM: a signal is first noted, then raised as KeyboardInterrupt where that does no harm.

Why noted: native code drops a KeyboardInterrupt that arrives in one of its callbacks (an engine builder's logger), and
torch's exporter turns one into errors of its own. Code that works in stages calls `check` between them.
Why not always raised: a recording must not be left half written. A live view calls `defer` and allows an interrupt only
while the model computes, which leaves a stream unchanged.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Cut:
    """The outcome: set if a signal cut the block short."""

    short: bool = False


class Signals:
    """The signals that arrived at this process. Until `defer` is called, they raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._raises, self._second_kills = True, False

    def install(self, *, second_kills: bool) -> None:
        """Take over the signals. For a command line only, not for a library's users.

        second_kills   the second signal ends the process immediately; otherwise it raises like the first
        """
        self._second_kills = second_kills
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    @property
    def requested(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int | None:
        """128 + the signal's number, or None if none arrived."""
        return None if self.number is None else 128 + self.number

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal arrived, even if its exception was lost."""
        if self.requested:
            raise KeyboardInterrupt

    def defer(self) -> None:
        """From now on, signals are only noted."""
        self._raises = False

    @contextmanager
    def interruptible(self) -> Iterator[Cut]:
        """Inside, a signal raises KeyboardInterrupt, which is caught here: check `cut.short` afterwards.

        with signals.interruptible() as cut:
            stream.push(frame)
        if cut.short: ...
        """
        cut, before, self._raises = Cut(), self._raises, True
        try:
            yield cut
        except KeyboardInterrupt:
            if not self.requested:
                raise
            cut.short = True
        finally:
            self._raises = before

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if self._second_kills:
            for other in SIGNALS:
                signal.signal(other, signal.SIG_DFL)
        if self._raises:
            raise KeyboardInterrupt
