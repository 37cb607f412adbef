"""What a command says at its end: one JSON object, or one message and an exit code. Never a traceback."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from typing import Any

from engines.errors import BackendUnavailable, BundleError, PVCError


def print_json(data: dict[str, Any]) -> None:
    print(json.dumps(_finite(data), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: both become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    """Random models say control characters; a terminal must not obey them."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def system_error(error: OSError) -> PVCError:
    """What the operating system refused, outside the places that say more of it."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return BundleError(f"{error}. A file cannot be read or written there; look at its path, owner and permissions")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    return BackendUnavailable(
        f"{error}. Likely a full disk: temporary files go to {folder}, where {free:.1f} GiB are free. Free some space, "
        "or name another folder: TMPDIR=FOLDER pvc-export ..."
    )


def fail(error: PVCError) -> int:
    """Say what went wrong: a message on standard error, and with --json an object on standard output."""
    kind = type(error).__name__
    print(f"{kind}: {error}", file=sys.stderr)
    if "--json" in sys.argv[1:]:
        print_json({"error": kind, "message": str(error), "exit_code": error.exit_code})
    return error.exit_code
