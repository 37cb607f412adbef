"""The ways in which a documented command counts as run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Words = Mapping[str, str]

NAMES: Words = {
    "FOLDER": "checkpoint",
    "CHECKPOINT_FOLDER": "checkpoint",
    "MODEL": "checkpoint",
    "BUNDLE": "build/shapes",
    "OLD_BUNDLE": "build/shapes",
    "/opt/pvc/bundle": "build/shapes",
    "0": "clip.mp4",
    "/dev/video0": "clip.mp4",
    "rtsp://CAMERA/PATH": "clip.mp4",
    "rtsp://USER:PASSWORD@CAMERA/PATH": "clip.mp4",
    "https://example.org/hook": "http://127.0.0.1:9/hook",
    "mqtt://pvc@broker/home/door": "mqtt://pvc@127.0.0.1:9/home/door",
    "CHECKOUT": "checkout",
    "MODELS": "build/models",
    "/shared/streams": "streams",
    "pkg.module:Model": "docs/examples/counter.py:Counter",
    "model.onnx": "counter.onnx",
}
"""What stands in the sandbox for the words that a page leaves to its reader."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """For real. says: words of its output, in this order; makes: files that are there afterwards.

    names   beyond NAMES; a word may become several
    adds    at the end, to make it end sooner or show it without a screen
    after   commands that must have run before
    alone   a check of the stream alone, which takes a tenth of the time; with PVC_DOCS=all of everything
    """

    says: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    code: int = 0
    names: Words = field(default_factory=dict)
    adds: str = ""
    after: tuple[str, ...] = ()
    alone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Heavy:
    """Up to the function that begins the work of minutes, whose arguments are looked at; with PVC_DOCS=all for real.

    begins  the function, "module.name"
    asks    attributes of its arguments by dotted name, as text
    small   added for real, so that it is over in a minute; None: never for real, but in `elsewhere`
    """

    begins: str
    asks: Words = field(default_factory=dict)
    names: Words = field(default_factory=dict)
    small: str | None = None
    elsewhere: str = ""
    makes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """A server in a process: it says `says`, answers every Asked of it, and ends with 0 at SIGINT."""

    says: str
    adds: str = "--port 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Asked of a running server, in the order of the table."""

    server: str
    says: tuple[str, ...] = ()
    names: Words = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Not here, and why; a test file or a make target stands for it."""

    why: str
    by: str


Way = Run | Heavy | Serve | Asked | Elsewhere
Table = Mapping[str, Way]


def value_of(arguments: Any, dotted: str) -> str:
    """The attribute of whichever argument has it; a path below the working directory as from there."""
    first, *rest = dotted.split(".")
    (found,) = (getattr(argument, first) for argument in arguments if hasattr(argument, first))
    for name in rest:
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return str(found).removeprefix(f"{Path.cwd()}/")
