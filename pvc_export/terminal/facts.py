"""What every figure and manifest says of its making: the time, the machine, the packages installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from datetime import datetime, timezone


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, without those that are not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def this_machine() -> str:
    """What computes a check, in words."""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
