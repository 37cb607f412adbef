"""Parsing of sizes, and the memory of this process and this machine."""

from __future__ import annotations

import re
from pathlib import Path

SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:([KMGT])(I?B)?|B)?", re.IGNORECASE)
DECIMAL = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, *, option: str) -> int:
    """'1.5GiB' or '1.5G' -> 1610612736, '1.5GB' -> 1500000000; a bare number is bytes. Raises ValueError with `option`.

    G is 1024**3, as in the memory limits of systemd and docker; GB is 1000**3. Case does not matter.
    """
    match = SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        number, prefix, rest = match.groups()
        units = DECIMAL if rest and rest.upper() == "B" else BINARY
        size = int(float(number) * (units[prefix.upper()] if prefix else 1))
    if size < 1:
        raise ValueError(f"{option} is '{text}', expected a size such as 2GiB, 900MiB, 2G or 2000000000")
    return size


def resident_bytes() -> int | None:
    """Memory of this process in RAM now; None if the system does not report it (read from /proc)."""
    return _bytes_in("/proc/self/status", "VmRSS")


def peak_bytes() -> int | None:
    """Peak of resident_bytes, since the start or since it was reset."""
    return _bytes_in("/proc/self/status", "VmHWM")


def available_bytes() -> int | None:
    """RAM still available to a process; None if the system does not report it."""
    return _bytes_in("/proc/meminfo", "MemAvailable")


def _bytes_in(file: str, field: str) -> int | None:
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
