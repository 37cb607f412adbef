"""Facts about this machine and process, for manifests, reports and figures: packages, processor, memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package -> version, without those that are not installed."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cpu_name() -> str:
    """The processor's name, on Linux with family and model: the name alone may not show the generation."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts:
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def restart_peak() -> None:
    """Reset this process's peak memory in Linux's statistics; does nothing elsewhere."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Make glibc return freed memory to the system; does nothing elsewhere.

    By itself, glibc returns memory only from the end of its heap. In the check of an 8B model, arrays of a few MB, some
    of which stayed, left 4 GB of holes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def this_machine() -> str:
    """The machine that runs a check, as text."""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
