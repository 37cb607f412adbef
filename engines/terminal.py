"""Output of a command, for a terminal or for a program. Works without typer and rich, which a device lacks."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from .errors import BackendUnavailable, BundleError, PVCError
from .wrapping import fitted_to


def printable(text: str) -> str:
    """Replace control characters: random models produce them, and a terminal must not obey them."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def print_json(data: dict[str, Any]) -> None:
    """One line of JSON on standard output. NaN and infinity, which JSON lacks, become null."""
    print(json.dumps(finite(data), ensure_ascii=False, allow_nan=False), flush=True)


def finite(value: Any) -> Any:
    """The same data with null instead of NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(error: PVCError | OSError, *, as_json: bool, summary: dict[str, Any] | None = None) -> int:
    """Print an error and return its exit code: one line per sentence on standard error. With `as_json` also its fields
    as an object on standard output, after those of a summary."""
    if isinstance(error, OSError):
        error = _of_the_system(error)
    print(fitted_to(sys.stderr, f"error: {error}"), file=sys.stderr)
    if as_json:
        print_json((summary or {}) | error.to_json())
    return error.exit_code


def _of_the_system(error: OSError) -> PVCError:
    """The error for an OSError that no other place explains better."""
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return BundleError(
            f"{error}", cause="a file there cannot be read or written", fix="check its path, owner and permissions"
        )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / 2**30
    return BackendUnavailable(
        f"{error}",
        cause=f"a full disk: temporary files go to {folder}, where {free:.1f} GiB are free",
        fix="free some space, or put another folder before the command: TMPDIR=FOLDER",
    )


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """ "Did you mean 'shapes'?" for the nearest known name; empty if none is close. `cutoff` is difflib's."""
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"Did you mean '{near[0]}'?" if near else ""


def one_of(option: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is known. Raises ValueError with the nearest known name."""
    if name not in known:
        raise ValueError(
            f"{option} is '{name}', expected one of {', '.join(known)}. {did_you_mean(name, known)}".rstrip()
        )
    return name
