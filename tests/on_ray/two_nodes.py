"""Sixteen streams on a Ray cluster of two nodes, while replicas and a node die, are added and are replaced.

python -m pytest --noconftest tests/on_ray/two_nodes.py (needs Ray), or make ray, which makes the environment and the
bundle first. The bundle is named by the environment variable SHAPES_BUNDLE, else build/browser.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.serving.limits import Limits
from apps.serving.local import LocalLimits
from apps.serving.ray_app import ClusterOptions, serve_on_ray
from apps.serving.ray_replica import ReplicaOptions
from apps.web.options import WebOptions
from engines import open_bundle

from . import add_node, one_node
from .cameras import PERIOD_S, Camera

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

ROOT = Path(__file__).parents[2]
BUNDLE = Path(os.environ.get("SHAPES_BUNDLE", ROOT / "build/browser")).absolute()
pytestmark = [
    pytest.mark.skipif(
        not (BUNDLE / "manifest.json").exists(), reason=f"{BUNDLE} is not a bundle; make one: make browser"
    )
]
NUM_STREAMS, EVERY, SETTLE_S, CALM_S, CALM_MS = 16, 5, 120.0, 6.0, 2000.0
TRUE_SHARE = 0.8
"""Smallest share of true answers. The model gets nine of ten right when nothing dies."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with one_node() as nodes:
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        serve.shutdown()
        ray.shutdown()


@dataclass(kw_only=True)
class Deployed:
    """A deployment on the cluster, and the actions of a test on it."""

    nodes: Any
    worker: Any
    options: ClusterOptions
    handle: Any = None

    def deploy(self, **changes: Any) -> None:
        """Deploy, and return once all replicas are ready."""
        self.options = replace(self.options, **changes)
        self.handle = serve_on_ray(self.options)

    def replicas(self) -> list[dict[str, Any]]:
        """Return each replica's id, sessions and process."""
        found: list[dict[str, Any]] = self.handle.broadcast("facts").results(timeout_s=20)
        return found

    def kill_a_replica(self) -> str:
        """Kill the replica with the most sessions."""
        most = max(self.replicas(), key=lambda each: len(each["sessions"]))
        os.kill(most["pid"], signal.SIGKILL)
        return f"{len(most['sessions'])} sessions"

    def kill_the_node(self) -> str:
        on_it = [each for each in self.replicas() if each["node"] == self.worker.node_id]
        self.nodes.remove_node(self.worker, allow_graceful=False)
        return f"{sum(len(each['sessions']) for each in on_it)} sessions"

    def add_a_node(self) -> None:
        """Add a node, and return once it runs a replica in place of the dead one's."""
        self.worker = add_node(self.nodes)
        until = time.monotonic() + SETTLE_S
        while len(self.replicas()) < self.options.replicas:
            assert time.monotonic() < until, "the replica did not come back in time"
            time.sleep(0.2)


@pytest.fixture
def deployed(cluster: Any, tmp_path: Path) -> Deployed:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = add_node(cluster)
    limits = LocalLimits(sessions=NUM_STREAMS, answers=1)
    replica = ReplicaOptions(
        bundle=BUNDLE, snapshots=str(tmp_path / "snapshots"), every=EVERY, limits=limits, threads=1
    )
    options = ClusterOptions(
        replica=replica, cpus=1, web=WebOptions(port=port), limits=Limits(rate=10_000, burst=20_000)
    )
    return Deployed(nodes=cluster, worker=worker, options=options)


def test_sixteen_streams_continue_whatever_dies(deployed: Deployed, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    cameras = [Camera(name=f"camera-{index}", seed=index) for index in range(NUM_STREAMS)]
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("scale from 1 replica to 2", lambda: deployed.deploy(replicas=2)),
        ("a replica is killed", deployed.kill_a_replica),
        ("a rolling update of both", lambda: deployed.deploy(release="the next")),
        ("the second node is killed", deployed.kill_the_node),
        ("a node comes in its place", deployed.add_a_node),
        ("scale from 2 replicas to 1", lambda: deployed.deploy(replicas=1)),
    ]

    deployed.deploy()
    address, ended = f"http://127.0.0.1:{deployed.options.web.port}", threading.Event()
    with ThreadPoolExecutor(1) as thread:  # only the main thread can add a node
        running = thread.submit(asyncio.run, watch_all(cameras, address, ended))
        try:
            calm(cameras, running)
            for name, step in steps:
                events.append(happens(name, step, cameras, running))
        finally:
            ended.set()
        running.result()
    report(events, cameras)
    assert [text for camera in cameras for text in camera.wrong] == []
    bundle = open_bundle(BUNDLE, threads=1)
    assert [text for camera in cameras for text in camera.differing(bundle)] == []
    asked = [each for camera in cameras for each in camera.asked]
    assert sum(each.said == each.truth for each in asked) >= TRUE_SHARE * len(asked)
    for camera in cameras:
        assert camera.have == sorted(set(camera.have)) and not set(camera.have) & set(camera.lost)
        assert sorted([*camera.have, *camera.lost]) == list(range(len(camera.pictures)))  # present, or reported lost
    by_name = {event["what"]: event for event in events}
    killed = ("a replica is killed", "the second node is killed")
    for name, event in by_name.items():
        assert event["frames_lost"] == 0 or name in killed, event
    for name in killed:
        assert by_name[name]["sessions"] != "0 sessions"
        assert by_name[name]["most_lost_of_a_stream"] <= EVERY + 3  # a snapshot may be in progress


async def watch_all(cameras: list[Camera], address: str, ended: threading.Event) -> None:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=address, timeout=90.0, limits=limits) as client:
        await asyncio.gather(*(camera.run(client, ended) for camera in cameras))


def happens(name: str, step: Callable[[], Any], cameras: list[Camera], running: Future[None]) -> dict[str, Any]:
    """Run one step, and return its effect on the streams once all of them run smoothly again."""
    before, since = [len(camera.lost) for camera in cameras], time.monotonic()
    told = step()
    done_s = time.monotonic() - since
    calm(cameras, running, since=time.monotonic())
    lost = [len(camera.lost) - at for camera, at in zip(cameras, before, strict=True)]
    gaps = sorted(camera.longest_gap_s(since - 2, time.monotonic()) for camera in cameras)
    return {
        "what": name, "sessions": told or "", "step_s": round(done_s, 1),
        "median_gap_s": round(gaps[len(gaps) // 2], 2), "longest_gap_s": round(gaps[-1], 2),
        "frames_lost": sum(lost), "most_lost_of_a_stream": max(lost),
    }  # fmt: skip


def calm(cameras: list[Camera], running: Future[None], *, since: float = 0.0) -> None:
    """Wait until every stream had replies for a while after `since`, none of them late."""
    until = time.monotonic() + SETTLE_S
    while True:
        time.sleep(0.5)
        if running.done():
            running.result()
        now = time.monotonic()
        assert now < until, "the streams did not recover in time"
        if now > since + CALM_S + 1 and all(is_calm(camera, now) for camera in cameras):
            return


def is_calm(camera: Camera, now: float) -> bool:
    recent = [took_ms for at, took_ms in camera.answered if at > now - CALM_S]
    return len(recent) >= 0.5 * CALM_S / PERIOD_S and max(recent) < CALM_MS


def report(events: list[dict[str, Any]], cameras: list[Camera]) -> None:
    """Print the figures for docs/serve-ray.md."""
    asked = [each for camera in cameras for each in camera.asked]
    took = sorted(took_ms for camera in cameras for _, took_ms in camera.answered)
    summary = {
        "streams": len(cameras), "frames": sum(len(camera.pictures) for camera in cameras),
        "lost": sum(len(camera.lost) for camera in cameras), "answers": len(asked),
        "true": sum(each.said == each.truth for each in asked),
        "retries": sum((camera.retries for camera in cameras), Counter[str]()),
        "repeated": sum(camera.num_repeated for camera in cameras), "frame_ms_median": round(took[len(took) // 2], 1),
        "frame_ms_p99": round(took[int(0.99 * len(took))], 1), "ray": ray.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    print()
    for event in [*events, summary]:
        print(json.dumps(event))
