"""From a temporary folder to a published bundle, in one step that a kill or a power cut cannot halve.

Unusual: an old bundle and its successor exchange their names in a single system call, so the name never stands for
neither. What a killed export leaves behind is removed by the next export to the same place, or gone on with; a lock
that dies with its process tells it from the folder of an export that still runs.

    .NAME-export-PID-RANDOM/   the temporary folder; PID is for people who wonder whose it is (more in resume.py)
        lock                   held open and locked by the process
        bundle/                the new bundle, and after the exchange the old one
        old/                   the old bundle, where names cannot be exchanged
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.errors import BackendUnavailable, BundleError
from engines.manifest import list_files, listed_files
from engines.publishing import publish, sync

from ..terminal import interrupt
from ..terminal.console import size_text
from .resume import inherit

FULL = (errno.ENOSPC, errno.EDQUOT, None)  # numpy, which writes the weights, gives no code


def refuse_to_replace_what_is_no_bundle(out: Path) -> None:
    """A bundle of any version, and nothing else, may be replaced: not a folder that happens to hold a manifest.json."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    listed = listed_files(out) if out.is_dir() else None
    if listed is None:
        raise BundleError(
            f"{out} exists and is not a bundle, so it is not replaced",
            fix="choose another folder with -o, or remove it",
        )
    strangers = sorted(list_files(out) - listed)
    if strangers:
        raise BundleError(
            f"{out} is a bundle with other files in it, so it is not replaced: {', '.join(strangers[:4])}",
            fix="move them, or choose another folder with -o",
        )


@contextmanager
def staging(out: Path, refuse: Callable[[Path], None] = refuse_to_replace_what_is_no_bundle) -> Iterator[Path]:
    """An empty folder that takes the name `out` when the block ends, and disappears if the block raises.

    refuse  raises BundleError if `out` holds what may not be replaced: called before the block and once more after it
    Raises what `refuse` does, and BackendUnavailable where nothing can be written.
    """
    out = out.resolve()  # a link is followed, so that it still is one afterwards; and '.' gets a name
    try:
        refuse(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        holder, lock = _make_holder(out)
        _take_the_place_of_dead_exports(holder, out)
    except OSError as error:
        raise _no_room(f"cannot write beside {out}, where a bundle is prepared: {error}", out, error) from error
    published = False
    try:
        (holder / "bundle").mkdir()
        yield holder / "bundle"
        refuse(out)  # minutes have passed
        for path in holder.rglob("*"):
            sync(path)
        interrupt.check()
        interrupt.note_publishing(holder / "bundle", out)
        publish(holder / "bundle", out)
        published = True
        for path in (holder, out.parent):
            sync(path)
    except OSError as error:
        outcome = f"{out} was published, but a power cut may undo it" if published else "Nothing was published"
        raise _no_room(f"writing the bundle failed: {error}. {outcome}", out, error) from error
    finally:
        _remove_holder(holder, out)
        os.close(lock)


def _remove_holder(holder: Path, out: Path) -> None:
    """Remove a temporary folder, but never the only copy of a bundle."""
    with suppress(OSError):
        if (holder / "old").is_dir() and not out.exists():
            (holder / "old").rename(out)
        shutil.rmtree(holder, ignore_errors=True)


def _make_holder(out: Path) -> tuple[Path, int]:
    """A new temporary folder beside `out`, and the open file that marks it as ours for as long as we live."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f".{out.name}-export-{os.getpid()}-", dir=out.parent))
        if (lock := _open_lock(holder)) is not None:
            if _take(lock) is not False:
                return holder, lock
            os.close(lock)
        # Another export swept between the first and the last of these lines, and took the new folder for a dead one's.


def _take_the_place_of_dead_exports(holder: Path, out: Path) -> None:
    """Remove what they left behind, but for graphs that were finished: our export may go on with those."""
    for other in _dead_exports(out):
        inherit(other, holder)
        _remove_holder(other, out)


def _dead_exports(out: Path) -> Iterator[Path]:
    """Temporary folders beside `out` whose process is gone, each locked while it is looked at."""
    ours = re.compile(rf"\.{re.escape(out.name)}-export-\d+-[a-z0-9_]{{8}}")
    for other in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        if (lock := _open_lock(other)) is not None:
            try:
                if _take(lock):
                    yield other
            finally:
                os.close(lock)


def _open_lock(holder: Path) -> int | None:
    """The lock file of a temporary folder, open, made if need be; None if the folder is gone or not ours to touch."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return os.open(holder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return None


def _take(lock: int) -> bool | None:
    """Lock an open file until it is closed or this process dies, however it dies.

    False if somebody else has it, None where the file system has no locks and nobody can know. Not by process id: ids
    are used again, and mean nothing in another container or on another machine of a network disk.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return os.fstat(lock).st_nlink > 0  # else the folder was removed between opening and locking


def require_room(out: Path, num_bytes: int) -> None:
    """Raise BackendUnavailable unless that many bytes are free where `out` is to be. Asked before minutes of work."""
    out = out.resolve()
    folder = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(folder).free
    with suppress(OSError):
        left = (path for dead in _dead_exports(out) for path in dead.rglob("*") if path.is_file())
        free += sum(path.stat().st_size for path in left)  # it is removed, or taken over
    if free < num_bytes:
        raise BackendUnavailable(
            f"{size_text(free)} are free at {folder}, but the bundle takes {size_text(num_bytes)}. Nothing was done",
            expected="room for the weights of its graphs, and for the engines that are built from them",
            fix="make room, or choose another folder with -o",
        )


def _no_room(what: str, out: Path, error: OSError) -> BackendUnavailable:
    """The error for a failed write, with its likely cause."""
    if error.errno in FULL:
        folder = next(path for path in out.parents if path.exists())
        free = size_text(shutil.disk_usage(folder).free)
        cause, mend = f"the disk, or your share of it, is full: {free} are free at {folder}", "make room"
    else:
        cause, mend = "the folder is not yours to write to, or the disk is failing", "mend that"
    return BackendUnavailable(what, cause=cause, fix=f"{mend}, or choose another folder with -o")
