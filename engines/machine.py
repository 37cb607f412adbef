"""Which machine this is, so that what it builds is known as its own, and nothing else is.

Unusual: a bundle never says which machine made it, or whoever reads one could write that into an engine of their own.
It holds signatures, made with this machine's id, which is not public. What they are of: engines/provenance.py.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
import secrets
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


def sign(statement: str) -> str:
    """This machine's signature of a text, 32 hex digits. As secret as the machine id is, no more."""
    return hmac.new(machine_id().encode(), statement.encode(), hashlib.sha256).hexdigest()[:32]


def make_mark() -> str:
    """'salt.signature': tells this machine, and no other, that it was here. Each is another one, so that nobody sees
    which bundles come from one machine."""
    salt = secrets.token_hex(8)
    return f"{salt}.{_sign_salt(salt)}"


def is_own_mark(mark: str) -> bool:
    """Whether this machine made the mark."""
    salt, _, signature = mark.partition(".")
    return hmac.compare_digest(signature.encode(), _sign_salt(salt).encode())


def _sign_salt(salt: str) -> str:
    return sign(f"made here {salt}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(b"pvc-streaming-export" + content).hexdigest()[:16]
