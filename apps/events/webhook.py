"""Delivery of events to an http(s) address, each as a POST of its JSON."""

from __future__ import annotations

import http.client
import re
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from apps.lines import to_line
from apps.listeners import Event
from engines.errors import BackendUnavailable

from .delivery import NotDelivered

AUTHORIZATION = "PVC_WEBHOOK_AUTHORIZATION"
"""The environment variable sent as the header Authorization, such as 'Bearer abc'."""
TIMEOUT_S = 10.0
PASSING = (408, 429)  # the 4xx codes worth another attempt: Request Timeout, Too Many Requests


def check_webhook(url: str) -> None:
    """Raise ValueError unless the URL is an http(s) address to post to."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # the port is not a number
        is_http = False
    if not is_http or re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii():
        raise ValueError("--webhook is not an http(s) address; expected one such as https://example.org/hook")
    if "@" in parts.netloc:
        raise ValueError(
            f"--webhook contains a user or a password; put it in the environment variable {AUTHORIZATION} instead"
        )


class Webhook:
    """A Sink. Its name shows only the host, since a path may contain a secret."""

    def __init__(self, url: str, *, authorization: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """timeout_s: for the connection, and for each part of the reply. Raises ValueError as check_webhook does, and
        BackendUnavailable for an authorization that is not a valid header."""
        check_webhook(url)
        if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
            raise BackendUnavailable(
                f"the environment variable {AUTHORIZATION} contains characters that an HTTP header may not",
                expected="one line of ASCII, such as 'Bearer abc'",
                fix=f"set it again: export {AUTHORIZATION}='Bearer ...'",
            )
        self.name = f"webhook {urlsplit(url).netloc}"
        self._url, self._timeout_s = url, timeout_s
        self._headers = {"Content-Type": "application/json", "User-Agent": "pvc-live"}
        if authorization:
            self._headers["Authorization"] = authorization
        self._opener = build_opener(_NoRedirect)

    def send(self, event: Event) -> None:
        request = Request(self._url, data=to_line(event.to_json()), headers=self._headers, method="POST")
        try:
            self._opener.open(request, timeout=self._timeout_s).close()
        except HTTPError as error:
            error.close()
            is_final = error.code < 500 and error.code not in PASSING
            raise NotDelivered(f"the server replied {error.code} {error.reason}", is_final=is_final) from error
        except URLError as error:
            raise NotDelivered(f"no connection: {error.reason}", is_final=False) from error
        except (OSError, http.client.HTTPException) as error:
            raise NotDelivered(f"no reply: {str(error) or type(error).__name__}", is_final=False) from error

    def close(self) -> None:
        pass


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects: a POST would become a GET without the event, and send the authorization to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None
