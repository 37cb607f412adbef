"""Many streams on one thread: in each round every stream that has something to do takes a step, all of them together.

A step is a frame, or the beginning of an answer, or a token more. So a long answer holds up no camera, a stream with
much to do no other one, and what is ready at the same time can share a pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..bundle import Bundle
from ..errors import StreamError
from ..stream import PVCStream
from .handle import Busy, QueueLimits, StreamHandle
from .turns import Counts, Step, is_ready, next_step

GATHER_S = 0.003
"""How long a round waits for streams that have nothing to do yet."""


class Together(Protocol):
    """How the steps of several streams are taken."""

    @property
    def bundle(self) -> Bundle:
        """That the streams must be made of."""

    @property
    def most(self) -> int:
        """Steps at once."""

    def run(self, steps: Sequence[Step]) -> None:
        """Take each, of streams that are all different. A step raises nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneByOne:
    """One after another, each as if it were alone."""

    bundle: Bundle
    most: int = 1

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step()


class Scheduler:
    """Its thread is the only one that touches a stream, but for the moment in which `open` makes one.

    counts  of what was done
    """

    def __init__(self, together: Together, *, max_streams: int, gather_s: float = GATHER_S) -> None:
        """`max_streams` may be open at once: each has caches of its own, which serve the next one when it is closed.

        Raises StreamError if that is less than one.
        """
        if max_streams < 1:
            raise StreamError(f"max_streams is {max_streams}", expected="at least 1")
        self.max_streams, self.counts = max_streams, Counts()
        self._together, self._gather_s = together, gather_s
        self._changed = threading.Condition()
        self._handles: list[StreamHandle] = []  # whoever has had a turn lately is at the end
        self._spare: dict[Options, list[PVCStream]] = {}
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
        self._thread.start()

    @property
    def bundle(self) -> Bundle:
        return self._together.bundle

    @property
    def handles(self) -> tuple[StreamHandle, ...]:
        """Those that are open."""
        with self._changed:
            return tuple(self._handles)

    def open(self, *, limits: QueueLimits | None = None, saved: str | None = None, **options: Any) -> StreamHandle:
        """A stream with the options of PVCStream; or, with `saved`, one that goes on where that file was written.

        Raises Busy if as many are open as may be, StreamError once the scheduler is closed, and what PVCStream raises.
        """
        with self._changed:
            if self._is_closing:
                raise StreamError("this scheduler is closed", fix="open the stream elsewhere")
            if len(self._handles) >= self.max_streams:
                raise Busy(
                    f"{len(self._handles)} streams are open", expected=f"{self.max_streams} or fewer",
                    fix="close one, or allow more where this was started", retry_after_s=5.0,
                )  # fmt: skip
            stream = self._stream(saved, options)
            handle = StreamHandle(
                stream, options=options, limits=limits or QueueLimits(), changed=self._changed,
                is_spare=saved is None,
            )  # fmt: skip
            self._handles.append(handle)
        return handle

    def close(self, *, drain_s: float = 0.0) -> bool:
        """Open nothing more, give what waits so long to be done, and end. Returns whether all of it was done."""
        with self._changed:
            self._is_closing = True
            is_done = self._changed.wait_for(lambda: not any(map(is_ready, self._handles)), timeout=drain_s)
            for handle in self._handles:
                handle.is_closed = True
            self._has_ended = True
            self._changed.notify_all()
        self._thread.join()
        return is_done

    def _stream(self, saved: str | None, options: dict[str, Any]) -> PVCStream:
        """One that was closed, if it had these options; else a new one, in place of one that had others."""
        key = _key(options)
        if saved is None and self._spare.get(key):
            return self._spare[key].pop()
        while len(self._handles) + sum(map(len, self._spare.values())) >= self.max_streams:
            next(filter(None, self._spare.values())).pop()
        return PVCStream(self.bundle, **options) if saved is None else PVCStream.open(saved, self.bundle)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                self._let_go()
                if self._has_ended:
                    return
                if self._gather_s > 0:
                    self._changed.wait_for(self._is_gathered, timeout=self._gather_s)
                steps = self._next_steps()
            started = time.monotonic()
            self._together.run(steps)
            self.counts.busy_s += time.monotonic() - started
            self.counts.rounds += bool(steps)
            self.counts.steps += len(steps)
            with self._changed:
                self._changed.notify_all()  # whoever waits for it to be drained

    def _has_work(self) -> bool:
        return self._has_ended or any(handle.is_closed or is_ready(handle) for handle in self._handles)

    def _is_gathered(self) -> bool:
        num_ready = sum(map(is_ready, self._handles))
        return num_ready >= min(self._together.most, len(self._handles))

    def _next_steps(self) -> list[Step]:
        ready = [handle for handle in self._handles if is_ready(handle)][: self._together.most]
        self._handles = [handle for handle in self._handles if handle not in ready] + ready
        return [step for handle in ready if (step := next_step(handle, self.counts)) is not None]

    def _let_go(self) -> None:
        """Of the streams that were closed."""
        for handle in [handle for handle in self._handles if handle.is_closed]:
            stream = handle.let_go()
            self._handles.remove(handle)
            if handle.is_spare:
                stream.reset()
                self._spare.setdefault(_key(handle.options), []).append(stream)
            if handle.gone.set_running_or_notify_cancel():
                handle.gone.set_result(None)


Options = tuple[tuple[str, Any], ...]


def _key(options: dict[str, Any]) -> Options:
    return tuple(sorted(options.items()))
