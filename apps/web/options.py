"""The page's command-line options. Needs none of the packages that serve the page."""

from __future__ import annotations

import ipaddress
import os
import secrets
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN_VARIABLE = "PVC_LIVE_TOKEN"
SHORTEST_TOKEN = 16
HOST, PORT, VIEWERS, PICTURE_FPS, PICTURE_WIDTH, NO_FRAME_S, HANG_S = "127.0.0.1", 8080, 8, 12.0, 960, 30.0, 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WebOptions:
    """Consistent options of a page. Raises ValueError, naming the option.

    port           0 takes a free one
    served_as      host names of this machine at a reverse proxy or in the network
    viewers        maximum concurrent viewers
    picture_fps    maximum pictures per second; picture_width: maximum in pixels; quality: of the JPEGs
    files          folder with videos the page may switch to; None for none
    no_frame_s, hang_s  seconds after which a silent source, or a silent session, is unhealthy
    """

    host: str = HOST
    port: int = PORT
    served_as: tuple[str, ...] = ()
    viewers: int = VIEWERS
    picture_fps: float = PICTURE_FPS
    picture_width: int = PICTURE_WIDTH
    quality: int = 80
    files: Path | None = None
    no_frame_s: float = NO_FRAME_S
    hang_s: float = HANG_S

    def __post_init__(self) -> None:
        if not self.host.strip():
            raise ValueError("--host is empty; expected an address of this machine, such as 127.0.0.1")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}; expected 0 to 65535")
        for name in self.served_as:
            if not name or "/" in name or ":" in name:
                raise ValueError(f"--served-as '{name}' is not a host name; expected one such as cam.example.org")
        if not 1 <= self.viewers <= 100:
            raise ValueError(f"--viewers is {self.viewers}; expected 1 to 100")
        if not 0.1 <= self.picture_fps <= 60:
            raise ValueError(f"--web-fps is {self.picture_fps:g}; expected 0.1 to 60")
        if not 64 <= self.picture_width <= 3840:
            raise ValueError(f"--web-width is {self.picture_width}; expected 64 to 3840")
        if self.files is not None and not self.files.is_dir():
            raise ValueError(f"--web-files {self.files} is not a folder")
        for option, value in (("--no-frame-after", self.no_frame_s), ("--hang-after", self.hang_s)):
            if not 1 <= value <= 86400:
                raise ValueError(f"{option} is {value:g}; expected 1 to 86400 seconds")

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it: a loopback address, and no reverse proxy."""
        return is_loopback(self.host) and not self.served_as

    def token(self, environment: Mapping[str, str] | None = None, *, variable: str = TOKEN_VARIABLE) -> str | None:
        """The token from the environment; else a new one if other machines can reach the page; else None.

        Raises ValueError for one that could be guessed.
        """
        given = (os.environ if environment is None else environment).get(variable)
        if given is not None and (len(given) < SHORTEST_TOKEN or not given.isascii() or not given.isprintable()):
            raise ValueError(
                f"{variable} is too short or not printable ASCII; expected {SHORTEST_TOKEN} or more characters. For a "
                "new one: "
                "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        return given or (None if self.is_local else secrets.token_urlsafe())


def is_loopback(host: str) -> bool:
    """True for 'localhost', 127.0.0.0/8 and ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_options(parser: ArgumentParser) -> None:
    """Add the group of page options; `web_options` reads them."""
    add = parser.add_argument_group("web page").add_argument
    add("--web", action="store_true", help="Serve a web page with picture, answers, events, health and metrics.")
    add_address(add, what="the page", port=PORT, variable=TOKEN_VARIABLE)
    add("--viewers", metavar="N", type=int, default=VIEWERS, help=f"Maximum concurrent viewers. [default: {VIEWERS}]")
    add(
        "--web-fps", metavar="FPS", type=float, default=PICTURE_FPS,
        help=f"Maximum pictures per second on the page. [default: {PICTURE_FPS:.0f}]",
    )  # fmt: skip
    add(
        "--web-width", metavar="PIXELS", type=int, default=PICTURE_WIDTH,
        help=f"Maximum picture width on the page. [default: {PICTURE_WIDTH}]",
    )  # fmt: skip
    add(
        "--web-files", metavar="FOLDER", type=Path,
        help="Folder with videos that viewers may choose on the page. [default: none]",
    )  # fmt: skip
    add(
        "--no-frame-after", metavar="SECONDS", type=float, default=NO_FRAME_S,
        help="Report a source as unhealthy if it sends no frame, or the same picture, for this long. "
        f"[default: {NO_FRAME_S:.0f}]",
    )  # fmt: skip
    add(
        "--hang-after", metavar="SECONDS", type=float, default=HANG_S,
        help="Report the session as hanging after this long without progress; must exceed the time to an answer's "
        f"first token. [default: {HANG_S:.0f}]",
    )  # fmt: skip


def host_help(variable: str) -> str:
    return (
        "Address to serve on. If other machines can reach it, clients need a token: the environment variable "
        f"{variable}, or a new one that is printed."
    )


def add_address(add: Callable[..., Any], *, what: str, port: int, variable: str) -> None:
    """Add the address options to a group by its `add_argument`; the environment `variable` has the token."""
    add("--host", metavar="HOST", default=HOST, help=f"{host_help(variable)} [default: {HOST}]")
    add("--port", metavar="PORT", type=int, default=port, help=f"Port to serve on; 0: a free one. [default: {port}]")
    add(
        "--served-as", metavar="NAME", action="append", default=[],
        help=f"A host name under which a reverse proxy serves {what}. Repeatable.",
    )  # fmt: skip


def web_options(told: Namespace) -> WebOptions | None:
    """The page's options; None without --web. Raises ValueError as WebOptions does, and for page options without
    --web."""
    found = {
        "host": told.host, "port": told.port, "served_as": tuple(told.served_as), "viewers": told.viewers,
        "picture_fps": told.web_fps, "picture_width": told.web_width, "files": told.web_files,
        "no_frame_s": told.no_frame_after, "hang_s": told.hang_after,
    }  # fmt: skip
    if not told.web:
        if WebOptions(**found) != WebOptions():
            raise ValueError("--host, --port and the other options of the web page need --web")
        return None
    return WebOptions(**found)
