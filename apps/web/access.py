"""Access control of the page: a token if other machines can reach it, and no requests from other sites' pages.

Note: a site visited in a browser can make the browser send requests here, and can point its host name at this machine
(DNS rebinding). So a request must be for a served host name, and a WebSocket must come from a page of that host.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from .options import WebOptions, is_loopback

PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
COOKIE_AGE_S = 30 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """token: None if only this machine can connect. names: the served host names, in lower case.

    any_address  numeric addresses are also served, since they cannot be redirected; otherwise only loopback ones
    """

    token: str | None
    names: frozenset[str]
    any_address: bool
    cookie: str = "pvc_live"

    @staticmethod
    def of(options: WebOptions, *, token: str | None, port: int) -> Access:
        """The access rules for a server. Each port has its own cookie name, since browsers share cookies among all
        ports of a host."""
        names = {"localhost", *(name.lower() for name in options.served_as)}
        if not is_loopback(options.host):
            own = socket.gethostname().lower()
            names |= {own, f"{own.partition('.')[0]}.local", socket.getfqdn().lower(), options.host.lower()}
        return Access(
            token=token, names=frozenset(names), any_address=not is_loopback(options.host), cookie=f"pvc_live_{port}"
        )

    def serves(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        name = _hostname(host)
        if name is None:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return self.any_address or address.is_loopback

    def is_own(self, origin: str | None, host: str) -> bool:
        """Whether an Origin is a page of this server. Programs send none; browsers always send one."""
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):
            return False
        usual = ":443" if parts.scheme == "https" else ":80"
        return parts.netloc.lower().removesuffix(usual) == host.lower().removesuffix(usual)

    def knows(self, *, authorization: str = "", cookies: Mapping[str, str], query_token: str = "") -> bool:
        """Whether one of the credentials is the token."""
        if self.token is None:
            return True
        scheme, _, bearer = authorization.partition(" ")
        given = (bearer.strip() if scheme.lower() == "bearer" else "", cookies.get(self.cookie, ""), query_token)
        token = self.token.encode()
        return any(
            [hmac.compare_digest(text.encode(errors="replace"), token) for text in given]
        )  # no early exit: constant time


def _hostname(host: str) -> str | None:
    """The name or address in a Host header, without port and brackets; None if it is not a host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
