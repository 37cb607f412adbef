"""pvc-serve on a Ray cluster: streams on many GPUs or machines that survive the loss of any of them.

    python -m apps.serving.ray_app build/shapes --replicas 2 --snapshots /shared/streams

There are two deployments. Routes accepts HTTP; each PVCStreams replica has the streams whose ids hash to it (Ray's
ConsistentHashRouter without a fallback, so that no stream is routed to two replicas). Running it again with other
options changes the running cluster: more or fewer replicas, or a rolling replacement of all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import signal
import threading
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engines.errors import BackendUnavailable, PVCError
from engines.manifest import Manifest
from engines.many.handle import QueueLimits
from engines.terminal import fail

from ..watcher import require_endless
from ..web.access import Access
from ..web.options import HOST, WebOptions, host_help
from .app import make_app
from .kept import EVERY
from .limits import Limits
from .local import LocalLimits
from .options import PORT, TOKEN_VARIABLE
from .ray_replica import Replica, ReplicaOptions
from .ray_service import RayService

NAME, STREAMS, ROUTES = "pvc", "PVCStreams", "Routes"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
MOST_ONGOING = 1000
"""Concurrent calls per replica. The real limits are the queues of its streams, which report to the client when full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """Options of a cluster. replica: options of each replica; cpus, gpus: per replica, as Ray counts them.

    release  any text; if it differs from the last one, all replicas are replaced, one after another
    routes   number of HTTP replicas; token: required from clients, None if none is needed
    """

    replica: ReplicaOptions
    replicas: int = 1
    release: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    routes: int = 1
    web: WebOptions = field(default_factory=lambda: WebOptions(host=HOST, port=PORT))
    token: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for option, value in (
            ("--replicas", self.replicas),
            ("--routes", self.routes),
            ("--every", self.replica.every),
        ):
            if value < 1:
                raise ValueError(f"{option} is {value}; expected 1 or more")
        if self.cpus < 0 or self.gpus < 0:
            raise ValueError("--cpus or --gpus is negative; expected 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteOptions:
    """Options of the HTTP deployment."""

    web: WebOptions
    token: str | None
    limits: Limits
    model_id: str


class Routes:
    """The deployment that accepts HTTP: the app of pvc-serve over the replicas."""

    def __init__(self, streams: Any, options: RouteOptions) -> None:
        self._service, self._options = RayService(streams, model_id=options.model_id), options

    def __serve_build_asgi_app__(self) -> Any:
        options = self._options
        access = Access.of(options.web, token=options.token, port=options.web.port or PORT)
        return make_app(self._service, access=access, limits=options.limits)


def serve_on_ray(options: ClusterOptions) -> Any:
    """Start the deployments on the connected cluster, or update them. Returns Ray's handle of PVCStreams once all
    replicas are ready.

    Raises BackendUnavailable without Ray, BundleError for a bundle that cannot be read here, StreamError for one whose
    streams have an end.
    """
    serve = import_serve()
    manifest = Manifest.load(options.replica.bundle)
    require_endless(manifest)
    config = importlib.import_module("ray.serve.config")
    router = config.RequestRouterConfig(request_router_class=ROUTER, request_router_kwargs={"num_fallback_replicas": 0})
    serve.start(http_options={"host": options.web.host, "port": options.web.port}, proxy_location="EveryNode")
    streams = serve.deployment(Replica).options(
        name=STREAMS, num_replicas=options.replicas, max_ongoing_requests=MOST_ONGOING, request_router_config=router,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        graceful_shutdown_wait_loop_s=0.2, graceful_shutdown_timeout_s=60.0,
        health_check_period_s=2.0, health_check_timeout_s=10.0,
    )  # fmt: skip
    routes = serve.deployment(serve.ingress()(Routes)).options(
        name=ROUTES, num_replicas=options.routes, max_ongoing_requests=MOST_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    model_id = f"pvc-vision-{manifest.model.name}"
    trained = min(manifest.trained_frames, options.limits.video_frames)
    told = RouteOptions(
        web=options.web, token=options.token, limits=replace(options.limits, default_frames=trained), model_id=model_id
    )
    # Ray's Python API no longer has a public name for this; without it, scaling would restart all replicas.
    graphs = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    streams._version = _digest(options.release, options.replica, graphs)
    routes._version = _digest(options.release, told)
    serve.run(routes.bind(streams.bind(options.replica), told), name=NAME, route_prefix="/")
    return serve.get_deployment_handle(STREAMS, NAME)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def import_serve() -> Any:
    """Import Ray Serve. Raises BackendUnavailable without it."""
    try:
        importlib.import_module(ROUTER.rpartition(".")[0])
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise BackendUnavailable(
            f"a cluster needs the package ray[serve], which cannot be imported here: {error}",
            expected="Ray 2.60 or newer",
            fix="pip install 'ray[serve]>=2.60', or pip install -e '.[ray]'",
        ) from error


def make_parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, description="Serve a bundle's streams on a Ray cluster.", allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add, local = parser.add_argument, LocalLimits()
    add("bundle", metavar="BUNDLE", type=Path, help="Bundle folder from pvc-export, at the same path on every machine.")
    add(
        "--snapshots", metavar="PLACE", required=True,
        help="Folder or address (s3://...) that every machine can read and write.",
    )  # fmt: skip
    add("--every", metavar="N", type=int, default=EVERY, help="Frames between two snapshots of a stream.")
    add("--replicas", metavar="N", type=int, default=1, help="Number of replicas: one per GPU, or per share of CPUs.")
    add("--cpus", metavar="N", type=float, default=1.0, help="CPUs per replica, as Ray counts them.")
    add("--gpus", metavar="N", type=float, default=0.0, help="GPUs per replica, as Ray counts them.")
    add("--release", metavar="TEXT", default="", help="Any text; if it changes, all replicas are replaced.")
    add("--routes", metavar="N", type=int, default=1, help="Number of HTTP replicas.")
    add("--sessions", metavar="N", type=int, default=local.sessions, help="Maximum open sessions per replica.")
    add(
        "--answers", metavar="N", type=int, default=local.answers,
        help="Questions without a session answered concurrently, per replica.",
    )  # fmt: skip
    add(
        "--queue", metavar="FRAMES", type=int, default=local.queue.frames,
        help="Frames per session that may wait for the model.",
    )  # fmt: skip
    add("--host", metavar="HOST", default=HOST, help=host_help(TOKEN_VARIABLE))
    add("--port", metavar="PORT", type=int, default=PORT, help="Port on every machine of the cluster.")
    add(
        "--ray-address", metavar="ADDRESS", default="auto",
        help="Address of the Ray cluster; 'local' starts one that ends with this process.",
    )  # fmt: skip
    return parser


def options_of(told: Namespace) -> ClusterOptions:
    """The parsed options. Raises ValueError for an impossible value."""
    web = WebOptions(host=told.host, port=told.port)
    limits = LocalLimits(sessions=told.sessions, answers=told.answers, queue=QueueLimits(frames=told.queue))
    snapshots = told.snapshots if "://" in told.snapshots else str(Path(told.snapshots).absolute())
    replica = ReplicaOptions(bundle=told.bundle.absolute(), snapshots=snapshots, every=told.every, limits=limits)
    return ClusterOptions(
        replica=replica, replicas=told.replicas, release=told.release, cpus=told.cpus, gpus=told.gpus,
        routes=told.routes, web=web, token=web.token(variable=TOKEN_VARIABLE),
    )  # fmt: skip


def main(*, prog: str = "python -m apps.serving.ray_app") -> None:
    """On a local cluster serve until Ctrl-C or SIGTERM; on another one start the deployments and return."""
    parser = make_parser(prog)
    told = parser.parse_args()
    try:
        options = options_of(told)
    except ValueError as error:
        parser.error(str(error))
    try:
        serve = import_serve()
        importlib.import_module("ray").init(address=told.ray_address, log_to_driver=False, ignore_reinit_error=True)
        serve_on_ray(options)
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=False)) from None
    print(f"serving at http://{options.web.host}:{options.web.port}/v1, replicas: {options.replicas}", flush=True)
    if options.token is not None:
        print(f"Token, also used as the API key: {options.token}", flush=True)
    if told.ray_address == "local":
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        while not ended.wait(1.0):
            pass
        serve.shutdown()


if __name__ == "__main__":
    main()
