"""The signals of a command of pvc-export, and what an interrupted one has left."""

from __future__ import annotations

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


def note_kept(what: str) -> None:
    """What an interrupted command of another kind leaves, in words."""
    global _kept
    _kept = what


def outcome() -> str:
    """What an interrupted command left, in words."""
    if _kept:
        return _kept
    if _publishing is not None:
        out, inode = _publishing
        if out.exists() and out.stat().st_ino == inode:
            return f"{out} was already published"
    return "nothing was published"
