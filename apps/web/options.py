"""What a command line says of the page. Without the packages that serve it."""

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
    """A page whose parts do not contradict each other. Raises ValueError, by option.

    port           0 takes one that is free
    served_as      names under which a reverse proxy, or the network, knows this machine
    viewers        that may look at once
    picture_fps    pictures per second at most, picture_width pixels at most, and quality of JPEG
    files          folder whose videos the page may switch to; None for none
    no_frame_s, hang_s  after which a silent source, a silent session is unhealthy
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
            raise ValueError(f"--port {self.port} is no port; expected 0 to 65535")
        for name in self.served_as:
            if not name or "/" in name or ":" in name:
                raise ValueError(f"--served-as '{name}' is no host name; expected one such as cam.example.org")
        if not 1 <= self.viewers <= 100:
            raise ValueError(f"--viewers {self.viewers} is not between 1 and 100")
        if not 0.1 <= self.picture_fps <= 60:
            raise ValueError(f"--web-fps {self.picture_fps:g} is not between 0.1 and 60")
        if not 64 <= self.picture_width <= 3840:
            raise ValueError(f"--web-width {self.picture_width} is not between 64 and 3840")
        if self.files is not None and not self.files.is_dir():
            raise ValueError(f"--web-files {self.files} is no folder")
        for option, value in (("--no-frame-after", self.no_frame_s), ("--hang-after", self.hang_s)):
            if not 1 <= value <= 86400:
                raise ValueError(f"{option} {value:g} is not between 1 and 86400 seconds")

    @property
    def is_local(self) -> bool:
        """Nobody but this machine can reach it: loopback, and no proxy that passes others on."""
        return is_loopback(self.host) and not self.served_as

    def token(self, environment: Mapping[str, str] | None = None, *, variable: str = TOKEN_VARIABLE) -> str | None:
        """Of the environment; else a new one where others can reach the page; else None.

        Raises ValueError for one that could be guessed.
        """
        given = (os.environ if environment is None else environment).get(variable)
        if given is not None and (len(given) < SHORTEST_TOKEN or not given.isascii() or not given.isprintable()):
            raise ValueError(
                f"{variable} must have {SHORTEST_TOKEN} or more characters of ASCII; for a new one: "
                "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        return given or (None if self.is_local else secrets.token_urlsafe())


def is_loopback(host: str) -> bool:
    """'localhost', 127.0.0.1 and its net, ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_options(parser: ArgumentParser) -> None:
    """A group of their own; `web_options` reads them."""
    add = parser.add_argument_group("the page").add_argument
    add("--web", action="store_true", help="Serve a page: picture, answers, events, health and metrics.")
    add_address(add, what="the page", port=PORT, variable=TOKEN_VARIABLE)
    add("--viewers", metavar="N", type=int, default=VIEWERS, help=f"That may look at once. [default: {VIEWERS}]")
    add(
        "--web-fps", metavar="FPS", type=float, default=PICTURE_FPS,
        help=f"Pictures per second on the page, at most. [default: {PICTURE_FPS:.0f}]",
    )  # fmt: skip
    add(
        "--web-width", metavar="PIXELS", type=int, default=PICTURE_WIDTH,
        help=f"Width of pictures on the page, at most. [default: {PICTURE_WIDTH}]",
    )  # fmt: skip
    add("--web-files", metavar="FOLDER", type=Path, help="Videos here may be chosen on the page. [default: none]")
    add(
        "--no-frame-after", metavar="SECONDS", type=float, default=NO_FRAME_S,
        help=f"A source that is silent, or shows the same, for so long is unhealthy. [default: {NO_FRAME_S:.0f}]",
    )  # fmt: skip
    add(
        "--hang-after", metavar="SECONDS", type=float, default=HANG_S,
        help=f"So is a session; longer than an answer takes to its first token. [default: {HANG_S:.0f}]",
    )  # fmt: skip


def add_address(add: Callable[..., Any], *, what: str, port: int, variable: str) -> None:
    """Where something is served, by the `add_argument` of a group; `variable` of the environment has its token."""
    add(
        "--host", metavar="HOST", default=HOST,
        help=f"Address to serve on. Beyond this machine it needs the token that is printed, or that of "
        f"{variable}. [default: {HOST}]",
    )  # fmt: skip
    add("--port", metavar="PORT", type=int, default=port, help=f"[default: {port}; 0 takes a free one]")
    add(
        "--served-as", metavar="NAME", action="append", default=[],
        help=f"A host name under which a reverse proxy serves {what}. May be given again.",
    )  # fmt: skip


def web_options(told: Namespace) -> WebOptions | None:
    """None without --web. Raises ValueError as WebOptions does, and for options of a page without --web."""
    found = {
        "host": told.host, "port": told.port, "served_as": tuple(told.served_as), "viewers": told.viewers,
        "picture_fps": told.web_fps, "picture_width": told.web_width, "files": told.web_files,
        "no_frame_s": told.no_frame_after, "hang_s": told.hang_after,
    }  # fmt: skip
    if not told.web:
        if WebOptions(**found) != WebOptions():
            raise ValueError("--host, --port and the other options of a page need --web")
        return None
    return WebOptions(**found)
