"""Notifications to systemd for a service of Type=notify: ready and alive, sent as a plain datagram.

Source of the protocol: sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class Systemd:
    """Sends to the socket in NOTIFY_SOCKET; without one it does nothing. A failed send is not an error."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """environment: None means this process's environment."""
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # abstract namespace
        own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        limit_us = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(limit_us) / 1e6 if own and self._address and limit_us.isdecimal() else None
        """The unit's WatchdogSec: the longest time between two signs of life; None without a watchdog."""

    def ready(self) -> None:
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """status: one line for `systemctl status`."""
        self._send(f"WATCHDOG=1\nSTATUS={' '.join(status.split())}")

    def troubled(self, status: str) -> None:
        """Send a status without a sign of life; systemd then restarts the service."""
        self._send(f"STATUS={' '.join(status.split())}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address or not hasattr(socket, "AF_UNIX"):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(1.0)
                channel.sendto(message.encode(), self._address)
        except OSError:
            pass  # systemd misses a sign of life and acts on that
