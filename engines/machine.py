"""Which machine this is, so that an engine built elsewhere is known as such.

Unusual: a bundle never says which machine made it, or whoever reads one could write that into an engine of their own.
It holds a signature, made of the engine's hash and this machine's id, which is not public.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
from pathlib import Path

SOURCES = (Path("/etc/machine-id"), Path("/proc/device-tree/serial-number"))


def machine_id() -> str:
    """16 hex digits, the same after a restart. Not to be written into anything that leaves the machine: see sign."""
    for path in SOURCES:
        try:
            content = path.read_bytes().strip(b"\0\n ")
        except OSError:
            continue
        if content:
            return _digest(content)
    return _digest(platform.node().encode())


def sign(sha256: str) -> str:
    """This machine's signature of a file with that hash, 32 hex digits. As secret as the machine id is, no more."""
    return hmac.new(machine_id().encode(), sha256.encode(), hashlib.sha256).hexdigest()[:32]


def _digest(content: bytes) -> str:
    return hashlib.sha256(b"pvc-streaming-export" + content).hexdigest()[:16]
