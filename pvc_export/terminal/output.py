"""Errors of the operating system, in the words of this program."""

from __future__ import annotations

import shutil
import tempfile

from engines.errors import BackendUnavailable, BundleError, PVCError


def system_error(error: OSError) -> PVCError:
    """What the operating system refused, outside the places that say more of it."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return BundleError(
            f"{error}", cause="a file cannot be read or written there", fix="look at its path, owner and permissions"
        )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    return BackendUnavailable(
        f"{error}",
        cause=f"a full disk: temporary files go to {folder}, where {free:.1f} GiB are free",
        fix="free some space, or name another folder: TMPDIR=FOLDER pvc-export ...",
    )
