"""A Service with its streams on the replicas of a Ray cluster. A session's id determines its replica.

A dying replica's running calls are lost. Those that are safe to repeat (frames with an index, and calls that change
nothing) are sent again until another replica has taken over the stream.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from engines.errors import PVCError, StreamError
from engines.many.handle import Busy

from .kept import Leaving
from .kept_service import new_id
from .service import Opened, Piece, Pushed, Wanted

PAUSE_S = 0.1


class RayService:
    """Methods are called on one event loop, as for every Service."""

    def __init__(
        self, handle: Any, *, model_id: str, patience_s: float = 60.0, lost: tuple[type[Exception], ...] | None = None
    ) -> None:
        """handle: Ray's handle of the Replica deployment. patience_s: time after which a call without a replica fails.
        lost: errors raised when a call's replica dies; by default, Ray's errors."""
        self._handle, self._model_id, self._patience_s = handle, model_id, patience_s
        self._lost = errors_of_ray() if lost is None else lost

    @property
    def model_id(self) -> str:
        return self._model_id

    async def open(self, session_id: str | None = None) -> Opened:
        session_id = session_id or new_id()
        opened: Opened = await self._call("open", session_id, again=True)
        return opened

    async def push(self, session_id: str, picture: bytes, frame_index: int | None = None) -> Pushed:
        pushed: Pushed = await self._call("push", session_id, picture, frame_index, again=frame_index is not None)
        return pushed

    async def close(self, session_id: str) -> None:
        await self._call("close", session_id, again=True)

    def ask(self, session_id: str, wanted: Wanted) -> AsyncGenerator[Piece, None]:
        return self._pieces("ask", session_id, wanted, session=session_id, again=not wanted.keep)

    def complete(self, frames: tuple[bytes, ...], wanted: Wanted) -> AsyncGenerator[Piece, None]:
        return self._pieces("complete", frames, wanted, session=None, again=True)

    async def _call(self, method: str, session: str, *args: Any, again: bool) -> Any:
        """Call a replica and return its result. again: the call may be repeated. Raises what the replica returns as an
        error."""
        call = self._handle.options(method_name=method, session_id=session)
        until = time.monotonic() + self._patience_s
        while True:
            try:
                found = await call.remote(session, *args)
            except self._lost as error:
                _give_up(error, is_over=not again or time.monotonic() > until, again=again)
            else:
                if not isinstance(found, PVCError):
                    return found
                if not isinstance(found, Leaving) or time.monotonic() > until:
                    raise found
            await asyncio.sleep(PAUSE_S)

    async def _pieces(self, method: str, *args: Any, session: str | None, again: bool) -> AsyncGenerator[Piece, None]:
        routed = {} if session is None else {"session_id": session}
        call = self._handle.options(method_name=method, stream=True, **routed)
        until, has_begun = time.monotonic() + self._patience_s, False
        while True:
            pieces = call.remote(*args)
            try:
                async for piece in pieces:
                    if isinstance(piece, Leaving) and not has_begun and time.monotonic() < until:
                        break
                    if isinstance(piece, PVCError):
                        raise piece
                    has_begun = True
                    yield piece
                else:
                    return
            except self._lost as error:
                _give_up(error, is_over=has_begun or not again or time.monotonic() > until, again=again)
            finally:
                pieces.cancel()  # no effect on a finished one
            await asyncio.sleep(PAUSE_S)


def errors_of_ray() -> tuple[type[Exception], ...]:
    """Ray's errors for a process or machine that ended or is not ready yet."""
    errors = importlib.import_module("ray.exceptions")
    serving = importlib.import_module("ray.serve.exceptions")
    return (
        errors.RayActorError, errors.NodeDiedError, errors.WorkerCrashedError, errors.OwnerDiedError,
        serving.DeploymentUnavailableError, serving.ReplicaUnavailableError,
    )  # fmt: skip


def _give_up(error: BaseException, *, is_over: bool, again: bool) -> None:
    if not is_over:
        return
    if again:
        raise Busy("this stream's replica was lost", fix="send the request again", retry_after_s=1.0) from error
    raise StreamError(
        "this stream's replica was lost, and it is unknown whether the request was carried out",
        cause="its process or machine ended", fix="send frames with frame_index, so that they can be sent again safely",
    ) from error  # fmt: skip
