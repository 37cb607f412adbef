"""A replica of a Ray cluster: one bundle's streams, on one GPU or a share of the CPUs.

Note: errors meant for the client are returned, not raised. Ray would wrap a raised one, and log a traceback for each
frame that arrives too early.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engines import open_bundle
from engines.bundle import Runtime
from engines.errors import PVCError
from engines.many.choose import together_for
from engines.many.scheduler import Scheduler

from .handover import Snapshots
from .kept import EVERY, KeptStreams
from .kept_service import KeptService
from .local import LocalLimits, session_options
from .service import Opened, Piece, Pushed, Wanted
from .stores import open_store

T = TypeVar("T")
TRIES, ASK_S = 20, 5.0
log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaOptions:
    """Options of a replica. bundle, snapshots: paths or addresses valid on every machine; every: frames between two
    snapshots; wait_s: time a living owner gets to release a stream."""

    bundle: Path
    snapshots: str
    every: int = EVERY
    wait_s: float = 5.0
    limits: LocalLimits = field(default_factory=LocalLimits)
    runtime: Runtime = "auto"
    trust_engines: bool = False
    threads: int | None = None


class Replica:
    """The deployment: RayService calls every method, with the session's id as Ray's session id."""

    def __init__(self, options: ReplicaOptions) -> None:
        self._replicas = _Replicas()
        bundle = open_bundle(
            options.bundle, runtime=options.runtime, trust_engines=options.trust_engines, threads=options.threads
        )
        snapshots = Snapshots(open_store(options.snapshots), owner=self._replicas.own)
        num_streams = options.limits.streams
        self._scheduler = Scheduler(together_for(bundle, max_streams=num_streams), max_streams=num_streams)
        self.kept = KeptStreams(
            self._scheduler, snapshots, every=options.every, most=options.limits.sessions, limits=options.limits.queue,
            is_alive=self._replicas.is_alive, ask_owner=self._replicas.ask, wait_s=options.wait_s, say=log.warning,
            **session_options(bundle),
        )  # fmt: skip
        self._service = KeptService(self._scheduler, self.kept, limits=options.limits)

    async def open(self, session: str) -> Opened | PVCError:
        return await _told(self._service.open(session))

    async def push(self, session: str, picture: bytes, frame_index: int | None) -> Pushed | PVCError:
        return await _told(self._service.push(session, picture, frame_index))

    async def close(self, session: str) -> None | PVCError:
        return await _told(self._service.close(session))

    async def ask(self, session: str, wanted: Wanted) -> AsyncIterator[Piece | PVCError]:
        async for piece in _all_told(self._service.ask(session, wanted)):
            yield piece

    async def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncIterator[Piece | PVCError]:
        async for piece in _all_told(self._service.complete(frames, wanted)):
            yield piece

    async def let_go(self, session: str, owner: str) -> bool:
        """Release a session to another replica, which takes it over from `owner`. Returns whether it was here."""
        return owner == self._replicas.own and await self.kept.release(session)

    async def facts(self) -> dict[str, Any]:
        """Facts for tests and for debugging."""
        return {
            "replica": self._replicas.own, "node": self._replicas.node, "pid": os.getpid(),
            "sessions": self.kept.sessions, "steps": self._scheduler.counts.steps,
        }  # fmt: skip

    def __del__(self) -> None:
        """Ray calls this once no requests are routed here and the running ones are done."""
        if hasattr(self, "_service"):
            self.kept.release_all()
            self._scheduler.close()


class _Replicas:
    """The replicas of this deployment. own: this replica's id; node: its machine's id."""

    def __init__(self) -> None:
        self._ray, self._serve = importlib.import_module("ray"), importlib.import_module("ray.serve")
        context = self._serve.get_replica_context()
        self.own = str(context.replica_id.unique_id)
        self.node = str(self._ray.get_runtime_context().get_node_id())
        self._names = str(self._ray.get_runtime_context().get_actor_name() or "").removesuffix(self.own)
        self._handle = self._serve.get_deployment_handle(context.deployment, context.app_name)
        self._asking = set[asyncio.Future[None]]()  # keeps the tasks from being garbage-collected

    def is_alive(self, owner: str) -> bool:
        try:
            self._ray.get_actor(f"{self._names}{owner}", namespace="serve")
        except ValueError:
            return False
        return True

    async def ask(self, session: str, owner: str) -> None:
        """Ask the owner to release a session, without waiting. An owner being stopped is not reached, but releases it
        anyway."""
        task = asyncio.ensure_future(self._ask(session, owner))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, session: str, owner: str) -> None:
        for _ in range(TRIES):  # a new handle does not know every replica yet
            calls = self._handle.broadcast("let_go", session, owner)
            try:
                found = await calls.results_async(timeout_s=ASK_S, return_exceptions=True)
            except Exception as error:  # if a replica ends meanwhile, Ray may raise almost anything
                log.warning(f"replica {owner} cannot be asked to release stream {session!r}: {error}")
                return
            if any(let_go is True for let_go in found):
                return
            await asyncio.sleep(0.1)


async def _told(work: Awaitable[T]) -> T | PVCError:
    try:
        return await work
    except PVCError as error:
        return error.with_traceback(None)


async def _all_told(pieces: AsyncGenerator[Piece, None]) -> AsyncIterator[Piece | PVCError]:
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece
    except PVCError as error:
        yield error.with_traceback(None)
