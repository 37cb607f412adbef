"""Publishes a finished folder under its final name in one step, which a kill or a power cut cannot split."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def publish(folder: Path, out: Path) -> None:
    """Give a finished folder the name `out`. An existing bundle of that name is moved to folder.parent."""
    if out.exists():
        if _exchange(folder, out):
            return
        # Not Linux, or a file system that cannot exchange names, such as NFS. Between the two renames neither bundle
        # has the name. The caller restores the old bundle: after an error in this run, or in the next run if this
        # process is killed.
        out.rename(folder.parent / "old")
    folder.rename(out)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; False if the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    # ctypes passes plain integers as int, which is right for all of renameat2's arguments except the two strings.
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def link(source: Path, target: Path) -> None:
    """Link a file into a folder, which is created if necessary; copy it if the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync(path: Path) -> None:
    """Return once the file's content, or the folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
