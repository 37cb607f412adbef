"""Ctrl-C and SIGTERM: a signal is noted first, and raised as KeyboardInterrupt where that does no harm.

Why a note: native code drops a KeyboardInterrupt that arrives in one of its callbacks (an engine builder's logger), and
torch's exporter turns one into errors of its own. Whoever works in stages calls `check` between them.
Why not always raised: a recording must not be left half written. A live view calls `defer`, and lets itself be cut
short only where the model computes, which leaves a stream as it was.
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
    """Whether a signal cut the block short."""

    short: bool = False


class Signals:
    """What came of the signals of this process. Until `defer` is called, they raise KeyboardInterrupt."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._raises, self._second_kills = True, False

    def install(self, *, second_kills: bool) -> None:
        """Take over the signals. For a command line only, not for a library's users.

        second_kills   the second signal ends the process at once; else it raises like the first
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
        """Raise KeyboardInterrupt if a signal arrived, whatever became of its exception."""
        if self.requested:
            raise KeyboardInterrupt

    def defer(self) -> None:
        """From now on, signals are only noted."""
        self._raises = False

    @contextmanager
    def interruptible(self) -> Iterator[Cut]:
        """Inside, a signal raises KeyboardInterrupt, which goes no further than here: look at `cut.short` afterwards.

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
