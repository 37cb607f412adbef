"""What the command line of pvc-serve says."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engines.bundle import Runtime
from engines.many.handle import QueueLimits, WhenFull

from ..web.options import WebOptions, add_address
from .limits import MIB, Limits
from .local import LocalLimits

PORT, CONNECTIONS, DRAIN_S = 8000, 256, 30.0
TOKEN_VARIABLE = "PVC_SERVE_TOKEN"
POSITIVE = (
    "--sessions", "--idle", "--answers", "--waiting", "--queue", "--rate", "--max-body", "--max-pixels", "--max-frames",
    "--max-tokens", "--memory",
)  # fmt: skip
DESCRIPTION = """\
Serve a bundle as OpenAI's chat completions, and as streams that remember what
their cameras showed.

Clients of OpenAI's interface take http://HOST:PORT/v1 as their base URL.
SIGTERM and Ctrl-C refuse new requests, finish those that run, and end; a second
one kills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """A server whose parts do not contradict each other. Raises ValueError, by option.

    web          where it is served, and as which host names
    memory_bytes that the caches of all streams may take; None: as many as there are
    connections  at once; drain_s: that what runs may take, once the server is to end
    """

    bundle: Path
    web: WebOptions
    limits: Limits
    local: LocalLimits
    memory_bytes: int | None = None
    connections: int = CONNECTIONS
    drain_s: float = DRAIN_S
    runtime: Runtime = "auto"
    trust_engines: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("--connections", self.connections, 1, 65536), ("--drain", self.drain_s, 0, 86400),
            ("--threads", 1 if self.threads is None else self.threads, 1, 1024),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ValueError(f"{option} {value:g} is not between {low} and {high}")


def make_parser(prog: str = "pvc-serve") -> ArgumentParser:
    """Every option."""
    parser = ArgumentParser(
        prog=prog, usage="%(prog)s [OPTIONS] [BUNDLE]", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    bundle = "Folder made by pvc-export or make demo. [default: build/demo]"
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, default=Path("build/demo"), help=bundle)
    _add_address(parser)
    _add_streams(parser)
    _add_limits(parser)
    _add_runtime(parser)
    return parser


def _add_address(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("where it is served").add_argument
    add_address(add, what="it", port=PORT, variable=TOKEN_VARIABLE)
    add("--connections", metavar="N", type=int, default=CONNECTIONS, help=f"At once. [default: {CONNECTIONS}]")
    add(
        "--drain", metavar="SECONDS", type=float, default=DRAIN_S,
        help=f"That running requests may take once the server is to end. [default: {DRAIN_S:.0f}]",
    )  # fmt: skip


def _add_streams(parser: ArgumentParser) -> None:
    add, usual = parser.add_argument_group("streams").add_argument, LocalLimits()
    add(
        "--sessions", metavar="N", type=int, default=usual.sessions,
        help=f"Streams with memory that may be open at once; each has caches of its own. [default: {usual.sessions}]",
    )  # fmt: skip
    add(
        "--idle", metavar="SECONDS", type=float, default=usual.idle_s,
        help=f"After which a session that nobody uses is closed. [default: {usual.idle_s:.0f}]",
    )  # fmt: skip
    add(
        "--answers", metavar="N", type=int, default=usual.answers,
        help=f"Questions without a session that are answered at once. [default: {usual.answers}]",
    )  # fmt: skip
    add("--waiting", metavar="N", type=int, default=usual.waiting, help=f"That may wait. [default: {usual.waiting}]")
    add(
        "--memory", metavar="MIB", type=float,
        help="That the caches of all streams may take: where --sessions would take more, there are fewer. "
        "[default: no limit]",
    )  # fmt: skip
    add(
        "--queue", metavar="FRAMES", type=int, default=usual.queue.frames,
        help=f"Frames of a session that may wait for the model. [default: {usual.queue.frames}]",
    )  # fmt: skip
    add(
        "--when-full", choices=get_args(WhenFull), default=usual.queue.when_full,
        help="What happens to a frame that finds as many waiting: the oldest is dropped, or the new one is refused "
        f"with 429. [default: {usual.queue.when_full}]",
    )  # fmt: skip


def _add_limits(parser: ArgumentParser) -> None:
    add, usual = parser.add_argument_group("limits of a client").add_argument, Limits()
    add(
        "--rate", metavar="N", type=float, default=usual.rate,
        help=f"Requests a second, and twice as many at once. [default: {usual.rate:.0f}]",
    )  # fmt: skip
    add(
        "--max-body", metavar="MIB", type=float, default=usual.body_bytes / MIB,
        help=f"Of a request. [default: {usual.body_bytes // MIB}]",
    )  # fmt: skip
    add(
        "--max-pixels", metavar="N", type=int, default=usual.picture_pixels,
        help=f"Of a picture, width x height. [default: {usual.picture_pixels}, 8K]",
    )  # fmt: skip
    add(
        "--max-frames", metavar="N", type=int, default=usual.video_frames,
        help=f"Of a video. [default: {usual.video_frames}]",
    )  # fmt: skip
    add(
        "--max-tokens", metavar="N", type=int, default=usual.answer_tokens,
        help=f"Of an answer. [default: {usual.answer_tokens}]",
    )  # fmt: skip


def _add_runtime(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("what runs the bundle").add_argument
    add(
        "--runtime", choices=get_args(Runtime), default="auto",
        help="'target' is what the bundle was made for, 'cpu' ONNX Runtime, 'auto' what can run here. [default: auto]",
    )  # fmt: skip
    add(
        "--trust-engines", action="store_true",
        help="Load engines that another machine built. They are executable code.",
    )  # fmt: skip
    add(
        "--threads", metavar="N", type=int,
        help="Threads of each graph on the CPU. [default: 1 for small graphs, else all]",
    )  # fmt: skip


def options_of(told: Namespace) -> ServeOptions:
    """Raises ValueError, by option, for what no server can do."""
    for option in POSITIVE:
        value = getattr(told, option.removeprefix("--").replace("-", "_"))
        if value is not None and not value > 0:
            raise ValueError(f"{option} {value:g} is not more than 0")
    limits = Limits(
        rate=told.rate, burst=max(1, round(2 * told.rate)), body_bytes=round(told.max_body * MIB),
        picture_pixels=told.max_pixels, video_frames=told.max_frames, answer_tokens=told.max_tokens,
        default_frames=min(Limits().default_frames, told.max_frames),
    )  # fmt: skip
    local = LocalLimits(
        sessions=told.sessions, answers=told.answers, waiting=told.waiting, idle_s=told.idle,
        queue=QueueLimits(frames=told.queue, when_full=told.when_full),
    )  # fmt: skip
    return ServeOptions(
        bundle=told.bundle, web=WebOptions(host=told.host, port=told.port, served_as=tuple(told.served_as)),
        limits=limits, local=local, connections=told.connections, drain_s=told.drain, runtime=told.runtime,
        trust_engines=told.trust_engines, threads=told.threads,
        memory_bytes=None if told.memory is None else round(told.memory * MIB),
    )  # fmt: skip
