"""The signals of a command of pvc-export, and what an interrupted one has left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.signals import Signals

signals = Signals()
"""Of this process. `install` is called by the command line."""

check = signals.check

_publishing: tuple[Path, int] | None = None
_kept = ""


def note_publishing(folder: Path, out: Path) -> None:
    """`folder` is about to take the name `out`: an interrupt may strike in the very call that renames it."""
    global _publishing
    _publishing = out, folder.stat().st_ino


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """What a command of another kind leaves, in words, if it is interrupted within."""
    global _kept
    _kept = what
    try:
        yield
    except Exception:
        _kept = ""
        raise
    _kept = ""


def outcome() -> str:
    """What an interrupted command left, in words."""
    if _kept:
        return _kept
    if _publishing is not None:
        out, inode = _publishing
        if out.exists() and out.stat().st_ino == inode:
            return f"{out} was already published"
    return "nothing was published"
