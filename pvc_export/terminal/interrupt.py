"""Signal handling of pvc-export's commands, and the state that an interrupted command leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.signals import Signals

signals = Signals()
"""Signals of this process. The command line calls `install`."""

check = signals.check

_publishing: tuple[Path, int] | None = None
_kept = ""


def note_publishing(folder: Path, out: Path) -> None:
    """Note that `folder` is about to be renamed to `out`: an interrupt may arrive during that call."""
    global _publishing
    _publishing = out, folder.stat().st_ino


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Text about what remains if the command is interrupted within the block, for commands that do not publish."""
    global _kept
    _kept = what
    try:
        yield
    except Exception:
        _kept = ""
        raise
    _kept = ""


def outcome() -> str:
    """The state that an interrupted command left, as text."""
    if _kept:
        return _kept
    if _publishing is not None:
        out, inode = _publishing
        if out.exists() and out.stat().st_ino == inode:
            return f"{out} was already published"
    return "nothing was published"
