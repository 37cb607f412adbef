"""Identity of this machine, so that it recognises what it built itself.

Note: a bundle never contains the machine's id; otherwise anyone with a bundle could write it into their own engines. It
contains signatures made with this id, which is not public. What is signed: engines/provenance.py.
"""

from __future__ import annotations

import hashlib
import hmac
import platform
import secrets
from pathlib import Path

SOURCES = (Path("/etc/machine-id"), Path("/proc/device-tree/serial-number"))


def machine_id() -> str:
    """16 hex digits, unchanged by a restart. Never write it into anything that leaves the machine: see sign."""
    for path in SOURCES:
        try:
            content = path.read_bytes().strip(b"\0\n ")
        except OSError:
            continue
        if content:
            return _digest(content)
    return _digest(platform.node().encode())


def sign(statement: str) -> str:
    """This machine's signature of a text, 32 hex digits. Only as secret as the machine id."""
    return hmac.new(machine_id().encode(), statement.encode(), hashlib.sha256).hexdigest()[:32]


def make_mark() -> str:
    """'salt.signature': a mark that only this machine recognises. Each is different, so that bundles
    from the same machine cannot be linked."""
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
