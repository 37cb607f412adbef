"""pvc-serve: the server's command line.

Exit codes: 0 ended by SIGTERM or Ctrl-C with all running requests finished, 1 some requests were cut off, 2 usage,
4 environment, 6 bad input (engines/errors.py).
"""

from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from engines import open_bundle
from engines.errors import PVCError, StreamError
from engines.many.choose import together_for
from engines.many.scheduler import Scheduler
from engines.terminal import did_you_mean, fail

from ..watcher import require_endless
from ..web.access import Access
from ..web.server import Server, bind, require_packages
from .app import make_app
from .heads import timed_protocol
from .local import LocalService, fitting, stream_bytes
from .metrics import Metrics
from .options import TOKEN_VARIABLE, ServeOptions, make_parser, options_of
from .work import Work

ENDED, CUT = 0, 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(*, prog: str = "pvc-serve") -> None:
    """Entry point: errors meant for users become one message and an exit code, never a traceback."""
    parser = make_parser(prog)
    options = _options(parser)
    try:
        raise SystemExit(serve(options))
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=False)) from None


def serve(options: ServeOptions) -> int:
    """Serve until a signal. Returns the exit code; raises PVCError if it cannot start."""
    with open_server(options) as serving:
        stop = _at_a_signal()  # before the address is out: whoever reads it may send one at once
        print(f"Serving {serving.model_id} at {serving.url}", flush=True)
        if serving.token is not None:
            print(f"Token, also used as the API key: {serving.token}", flush=True)
        while not stop.wait(1.0):  # on some systems an unlimited wait would keep Python from calling handlers
            pass
        print(f"Shutting down: refusing new requests, finishing {serving.work.num_running} running ones.", flush=True)
        return ENDED if serving.drain(options.drain_s) else CUT


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A running server. url: the base URL for OpenAI clients."""

    model_id: str
    url: str
    token: str | None
    work: Work
    scheduler: Scheduler

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the running ones. Returns whether they finished in time."""
        self.work.refuse_more()
        return self.work.wait(timeout_s)


@contextmanager
def open_server(options: ServeOptions) -> Iterator[Serving]:
    """A running server inside the block. Raises BackendUnavailable if a package is missing or the port is in use,
    what open_bundle raises, and ValueError for a guessable token."""
    require_packages("pvc-serve")
    token = options.web.token(variable=TOKEN_VARIABLE)
    listening = bind(options.web.host, options.web.port)
    try:
        port = int(listening.getsockname()[1])
        bundle = open_bundle(
            options.bundle, runtime=options.runtime, trust_engines=options.trust_engines, threads=options.threads
        )
        require_endless(bundle.manifest)
        local = fitting(options.local, bundle, options.memory_bytes)
        scheduler = Scheduler(together_for(bundle, max_streams=local.streams), max_streams=local.streams)
    except BaseException:
        listening.close()
        raise
    service = LocalService(scheduler, limits=local)
    work, metrics = Work(), Metrics()
    add_gauges(metrics, service, scheduler)
    app = make_app(
        service, access=Access.of(options.web, token=token, port=port), metrics=metrics, work=work,
        limits=replace(options.limits, default_frames=min(bundle.manifest.trained_frames, options.limits.video_frames)),
    )  # fmt: skip
    server = Server(app, listening, max_message=1, connections=options.connections, http=timed_protocol())
    try:
        server.start()
        url = f"http://{_shown(options.web.host)}:{port}/v1"
        yield Serving(model_id=service.model_id, url=url, token=token, work=work, scheduler=scheduler)
    finally:
        server.close()
        scheduler.close()


def add_gauges(metrics: Metrics, service: LocalService, scheduler: Scheduler) -> None:
    """Add the gauges of this process's streams."""
    counts = scheduler.counts
    metrics.gauges |= {
        "pvc_sessions": ("Open sessions.", lambda: service.num_sessions),
        "pvc_sessions_limit": ("Maximum open sessions.", lambda: service.limits.sessions),
        "pvc_streams": ("Open streams, including those without a session.", lambda: len(scheduler.handles)),
        "pvc_waiting": ("Waiting frames and questions.", lambda: sum(each.num_waiting for each in scheduler.handles)),
        "pvc_stream_bytes": ("Size of one session's caches.", lambda: stream_bytes(scheduler.bundle)),
        "pvc_busy_seconds": ("Time the model has computed.", lambda: counts.busy_s),
    }  # fmt: skip


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _at_a_signal() -> threading.Event:
    """An event that the first signal sets; a second one kills the process."""
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        came.set()

    for number in SIGNALS:
        signal.signal(number, note)
    return came


def _options(parser: ArgumentParser) -> ServeOptions:
    """The options; exits with code 2 and a message if they are wrong."""
    told, unknown = parser.parse_known_args()
    if unknown:
        known = ["--" + name.replace("_", "-") for name in vars(told) if name != "bundle"]
        parser.error(f"unknown option: {' '.join(unknown)}. {did_you_mean(unknown[0], known)}".rstrip())
    try:
        options = options_of(told)
        options.web.token(variable=TOKEN_VARIABLE)
    except (ValueError, StreamError) as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    main(prog=f"python -m {__spec__.name}")
