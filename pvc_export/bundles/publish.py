"""Publishing: from a temporary folder to a published bundle, in one step that a kill or power cut cannot split.

Note: the old bundle and the new one exchange their names in a single system call, so the name always refers to one of
them. The next export to the same place removes what a killed export left, or resumes from it (resume.py). A lock that
ends with its process distinguishes it from the folder of a running export.

    .NAME-export-PID-RANDOM/   the temporary folder; PID is for people who wonder whose it is
        lock                   kept open and locked by the process
        bundle/                the new bundle, and after the exchange the old one
        old/                   the old bundle, if names cannot be exchanged
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

FULL = (errno.ENOSPC, errno.EDQUOT, None)  # None: numpy, which writes the weights, sets no errno


def refuse_to_replace_what_is_no_bundle(out: Path) -> None:
    """Raise BundleError unless `out` is free or a bundle of any version. Having a manifest.json is not enough."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    listed = listed_files(out) if out.is_dir() else None
    if listed is None:
        raise BundleError(
            f"{out} exists and is not a bundle, so it was not replaced",
            fix="choose another folder with -o, or remove it",
        )
    strangers = sorted(list_files(out) - listed)
    if strangers:
        raise BundleError(
            f"{out} is a bundle with other files in it, so it was not replaced: {', '.join(strangers[:4])}",
            fix="move those files, or choose another folder with -o",
        )


@contextmanager
def staging(out: Path, refuse: Callable[[Path], None] = refuse_to_replace_what_is_no_bundle) -> Iterator[Path]:
    """An empty folder that is renamed to `out` when the block ends, and removed if the block raises.

    refuse  raises BundleError if `out` must not be replaced: called before the block and once more after it
    Raises the errors of `refuse`, and BackendUnavailable if nothing can be written.
    """
    out = out.resolve()  # follows a link, so that it is still a link afterwards; and gives '.' a name
    try:
        refuse(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        holder, lock = _make_holder(out)
        _take_the_place_of_dead_exports(holder, out)
    except OSError as error:
        raise _no_room(f"cannot write next to {out}, where a bundle is prepared: {error}", out, error) from error
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
    """A new temporary folder next to `out`, and the open lock file that marks it as ours while this process lives."""
    while True:
        holder = Path(tempfile.mkdtemp(prefix=f".{out.name}-export-{os.getpid()}-", dir=out.parent))
        if (lock := _open_lock(holder)) is not None:
            if _take(lock) is not False:
                return holder, lock
            os.close(lock)
        # Another export cleaned up between these lines, and removed the new folder as that of a dead export.


def _take_the_place_of_dead_exports(holder: Path, out: Path) -> None:
    """Remove the leftovers of dead exports, except finished graphs, which this export may reuse."""
    for other in _dead_exports(out):
        inherit(other, holder)
        _remove_holder(other, out)


def _dead_exports(out: Path) -> Iterator[Path]:
    """Temporary folders next to `out` whose process is gone, each locked while the caller uses it."""
    ours = re.compile(rf"\.{re.escape(out.name)}-export-\d+-[a-z0-9_]{{8}}")
    for other in [path for path in out.parent.iterdir() if ours.fullmatch(path.name)]:
        if (lock := _open_lock(other)) is not None:
            try:
                if _take(lock):
                    yield other
            finally:
                os.close(lock)


def _open_lock(holder: Path) -> int | None:
    """Open a temporary folder's lock file, creating it if needed. None if the folder is gone or not ours."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return os.open(holder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return None


def _take(lock: int) -> bool | None:
    """Lock an open file until it is closed or this process ends, for whatever reason.

    False if another process has it, None if the file system has no locks. Process ids would not do: they are reused,
    and mean nothing in another container or on another machine with the same network disk.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return os.fstat(lock).st_nlink > 0  # else the folder was removed between opening and locking


def require_room(out: Path, num_bytes: int) -> None:
    """Raise BackendUnavailable unless `num_bytes` are free at `out`. Called before minutes of work."""
    out = out.resolve()
    folder = next(path for path in out.parents if path.exists())
    free = shutil.disk_usage(folder).free
    with suppress(OSError):
        left = (path for dead in _dead_exports(out) for path in dead.rglob("*") if path.is_file())
        free += sum(path.stat().st_size for path in left)  # it is removed, or taken over
    if free < num_bytes:
        raise BackendUnavailable(
            f"{size_text(free)} are free at {folder}, but the bundle takes {size_text(num_bytes)}. Nothing was written",
            expected="disk space for the weights of its graphs and of the engines built from them",
            fix="free disk space, or choose another folder with -o",
        )


def _no_room(what: str, out: Path, error: OSError) -> BackendUnavailable:
    """The error for a failed write, with its likely cause."""
    if error.errno in FULL:
        folder = next(path for path in out.parents if path.exists())
        free = size_text(shutil.disk_usage(folder).free)
        cause, mend = f"the disk or your quota is full: {free} are free at {folder}", "free disk space"
    else:
        cause, mend = "you may not write to the folder, or the disk is failing", "fix that"
    return BackendUnavailable(what, cause=cause, fix=f"{mend}, or choose another folder with -o")
