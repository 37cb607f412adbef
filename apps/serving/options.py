"""The command-line options of pvc-serve."""

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
Serve a bundle over HTTP: OpenAI's chat completions, and sessions that remember
their cameras' frames.

OpenAI clients use http://HOST:PORT/v1 as their base URL. On SIGTERM or Ctrl-C
the server refuses new requests, finishes the running ones and exits; a second
signal kills it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Consistent options of a server. Raises ValueError, naming the option.

    web          address to serve on, and accepted host names
    memory_bytes limit on the caches of all streams; None: no limit
    connections  concurrent connections; drain_s: time for running requests to finish at shutdown
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
                raise ValueError(f"{option} is {value:g}; expected {low} to {high}")


def make_parser(prog: str = "pvc-serve") -> ArgumentParser:
    """The parser with all options."""
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
    add = parser.add_argument_group("address and connections").add_argument
    add_address(add, what="pvc-serve", port=PORT, variable=TOKEN_VARIABLE)
    add(
        "--connections", metavar="N", type=int, default=CONNECTIONS,
        help=f"Maximum concurrent connections. [default: {CONNECTIONS}]",
    )  # fmt: skip
    add(
        "--drain", metavar="SECONDS", type=float, default=DRAIN_S,
        help=f"At shutdown, time for running requests to finish. [default: {DRAIN_S:.0f}]",
    )  # fmt: skip


def _add_streams(parser: ArgumentParser) -> None:
    add, usual = parser.add_argument_group("streams").add_argument, LocalLimits()
    add(
        "--sessions", metavar="N", type=int, default=usual.sessions,
        help=f"Maximum open sessions (streams with memory); each has its own caches. [default: {usual.sessions}]",
    )  # fmt: skip
    add(
        "--idle", metavar="SECONDS", type=float, default=usual.idle_s,
        help=f"Close a session that is unused for this long. [default: {usual.idle_s:.0f}]",
    )  # fmt: skip
    add(
        "--answers", metavar="N", type=int, default=usual.answers,
        help=f"Questions without a session that are answered concurrently. [default: {usual.answers}]",
    )  # fmt: skip
    add(
        "--waiting", metavar="N", type=int, default=usual.waiting,
        help=f"Questions without a session that may wait. [default: {usual.waiting}]",
    )  # fmt: skip
    add(
        "--memory", metavar="MIB", type=float,
        help="Memory for the caches of all streams; if --sessions needs more, fewer sessions are allowed. "
        "[default: no limit]",
    )  # fmt: skip
    add(
        "--queue", metavar="FRAMES", type=int, default=usual.queue.frames,
        help=f"Frames per session that may wait for the model. [default: {usual.queue.frames}]",
    )  # fmt: skip
    add(
        "--when-full", choices=get_args(WhenFull), default=usual.queue.when_full,
        help="When that many frames wait: drop the oldest, or refuse the new frame with 429. "
        f"[default: {usual.queue.when_full}]",
    )  # fmt: skip


def _add_limits(parser: ArgumentParser) -> None:
    add, usual = parser.add_argument_group("limits on requests").add_argument, Limits()
    add(
        "--rate", metavar="N", type=float, default=usual.rate,
        help=f"Requests per second per client; bursts may be twice as large. [default: {usual.rate:.0f}]",
    )  # fmt: skip
    add(
        "--max-body", metavar="MIB", type=float, default=usual.body_bytes / MIB,
        help=f"Maximum size of a request. [default: {usual.body_bytes // MIB}]",
    )  # fmt: skip
    add(
        "--max-pixels", metavar="N", type=int, default=usual.picture_pixels,
        help=f"Maximum picture size, width x height. [default: {usual.picture_pixels}, 8K]",
    )  # fmt: skip
    add(
        "--max-frames", metavar="N", type=int, default=usual.video_frames,
        help=f"Maximum frames per video. [default: {usual.video_frames}]",
    )  # fmt: skip
    add(
        "--max-tokens", metavar="N", type=int, default=usual.answer_tokens,
        help=f"Maximum tokens per answer. [default: {usual.answer_tokens}]",
    )  # fmt: skip


def _add_runtime(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("runtime").add_argument
    add(
        "--runtime", choices=get_args(Runtime), default="auto",
        help="'target': the runtime the bundle was exported for. 'cpu': ONNX Runtime. 'auto': what runs here. "
        "[default: auto]",
    )  # fmt: skip
    add(
        "--trust-engines", action="store_true",
        help="Load engines built on another machine. Engines are executable code.",
    )  # fmt: skip
    add(
        "--threads", metavar="N", type=int,
        help="CPU threads per graph. [default: 1 for small graphs, else all]",
    )  # fmt: skip


def options_of(told: Namespace) -> ServeOptions:
    """The parsed options. Raises ValueError, naming the option, for an impossible value."""
    for option in POSITIVE:
        value = getattr(told, option.removeprefix("--").replace("-", "_"))
        if value is not None and not value > 0:
            raise ValueError(f"{option} is {value:g}; expected more than 0")
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
