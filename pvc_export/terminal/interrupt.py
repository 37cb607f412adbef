"""Ctrl-C and SIGTERM, remembered: an interrupt must end a command even where a library swallows the exception.

Unusual: native code drops a KeyboardInterrupt that arrives in one of its callbacks (an engine builder's logger), and
torch's exporter turns one into errors of its own. So the handler raises as usual and also takes a note, which every
stage reads.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

_received: int | None = None
_publishing: tuple[Path, int] | None = None


def install() -> None:
    """Take over SIGINT and SIGTERM of this process. For the command line only, not for a library's users."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)


def check() -> None:
    """Raise KeyboardInterrupt if a signal arrived, whatever became of its exception."""
    if _received is not None:
        raise KeyboardInterrupt


def exit_code() -> int | None:
    """128 + the signal's number, or None if none arrived."""
    return None if _received is None else 128 + _received


def note_publishing(folder: Path, out: Path) -> None:
    """`folder` is about to take the name `out`: an interrupt may strike in the very call that renames it."""
    global _publishing
    _publishing = out, folder.stat().st_ino


def outcome() -> str:
    """What an interrupted command left, in words."""
    if _publishing is not None:
        out, inode = _publishing
        if out.exists() and out.stat().st_ino == inode:
            return f"{out} was already published"
    return "nothing was published"


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    raise KeyboardInterrupt
