"""Many streams on one thread: in each round, every stream with work to do takes one step, all of them together.

A step is a frame, the beginning of an answer, or one more token. So a long answer delays no camera, a busy stream
delays no other, and steps that are ready at the same time can share a pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..bundle import Bundle
from ..errors import StreamError
from ..stream import PVCStream
from .handle import Busy, QueueLimits, StreamHandle
from .turns import Counts, Step, is_ready, next_step

GATHER_S = 0.003
"""Time that a round waits for streams without work."""


class Together(Protocol):
    """A way to run the steps of several streams."""

    @property
    def bundle(self) -> Bundle:
        """The bundle to create the streams from."""

    @property
    def most(self) -> int:
        """Largest number of steps per round."""

    def run(self, steps: Sequence[Step]) -> None:
        """Run each step; all belong to different streams. A step raises nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneByOne:
    """Runs steps one after another, each as if it were alone."""

    bundle: Bundle
    most: int = 1

    def run(self, steps: Sequence[Step]) -> None:
        for step in steps:
            step()


class Scheduler:
    """Runs streams on its thread, the only one that creates, runs and releases them.

    counts  totals of what was done
    """

    def __init__(self, together: Together, *, max_streams: int, gather_s: float = GATHER_S) -> None:
        """At most `max_streams` are open at a time: each has its caches, which are reused once it is closed.

        Raises StreamError if max_streams is below 1.
        """
        if max_streams < 1:
            raise StreamError(f"max_streams is {max_streams}", expected="at least 1")
        self.max_streams, self.counts = max_streams, Counts()
        self._together, self._gather_s = together, gather_s
        self._changed = threading.Condition()
        self._handles: list[StreamHandle] = []  # least recently run first
        self._spare: dict[Options, list[PVCStream]] = {}
        self._opening: list[_Opening] = []
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)
        self._thread.start()

    @property
    def bundle(self) -> Bundle:
        return self._together.bundle

    @property
    def handles(self) -> tuple[StreamHandle, ...]:
        """The open streams."""
        with self._changed:
            return tuple(self._handles)

    def open(self, *, limits: QueueLimits | None = None, saved: str | None = None, **options: Any) -> StreamHandle:
        """Open a stream with the options of PVCStream or, with `saved`, resume the one saved in that file. Waits for
        the current round.

        Raises Busy if max_streams are open, StreamError once the scheduler is closed, and what PVCStream raises.
        """
        opening = _Opening(limits=limits or QueueLimits(), saved=saved, options=options)
        with self._changed:
            if self._is_closing:
                raise _closed()
            num_open = len(self._handles) + len(self._opening)
            if num_open >= self.max_streams:
                raise Busy(
                    f"{num_open} streams are open", expected=f"{self.max_streams} or fewer",
                    fix="close one, or start the program with a higher limit", retry_after_s=5.0,
                )  # fmt: skip
            self._opening.append(opening)
            self._changed.notify_all()
        return opening.handle.result()

    def close(self, *, drain_s: float = 0.0) -> bool:
        """Accept no more streams, give waiting work `drain_s` seconds, then end. Returns whether all was done."""
        with self._changed:
            self._is_closing = True
            is_done = self._changed.wait_for(lambda: not any(map(is_ready, self._handles)), timeout=drain_s)
            for handle in self._handles:
                handle.is_closed = True
            self._has_ended = True
            self._changed.notify_all()
        self._thread.join()
        return is_done

    def _run(self) -> None:
        try:
            self._take_rounds()
        finally:  # whatever ended the rounds, no caller waits forever
            with self._changed:
                self._is_closing = self._has_ended = True
                for handle in self._handles:
                    handle.is_closed = True
                self._let_go()
                for opening in self._opening:
                    opening.handle.set_exception(_closed())
                self._changed.notify_all()

    def _take_rounds(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._has_ended:
                    return
                self._let_go()
            while self._opening:
                self._open(self._opening[0])
            with self._changed:
                if self._gather_s > 0 and any(map(is_ready, self._handles)):
                    self._changed.wait_for(self._is_gathered, timeout=self._gather_s)
                steps = self._next_steps()
            if steps:
                started = time.monotonic()
                self._together.run(steps)
                self.counts.busy_s += time.monotonic() - started
                self.counts.rounds += 1
                self.counts.steps += len(steps)
            with self._changed:
                self._changed.notify_all()  # wakes `close`, which waits for the queues to empty

    def _has_work(self) -> bool:
        asked = self._has_ended or bool(self._opening)
        return asked or any(handle.is_closed or is_ready(handle) for handle in self._handles)

    def _open(self, opening: _Opening) -> None:
        """Open a stream without holding the lock: allocating large caches takes time."""
        try:
            stream = self._stream(opening.saved, opening.options)
        except BaseException as error:
            with self._changed:
                self._opening.remove(opening)
            opening.handle.set_exception(error)
            return
        handle = StreamHandle(
            stream, options=opening.options, limits=opening.limits, changed=self._changed,
            is_spare=opening.saved is None,
        )  # fmt: skip
        with self._changed:
            self._opening.remove(opening)
            self._handles.append(handle)
        opening.handle.set_result(handle)

    def _stream(self, saved: str | None, options: dict[str, Any]) -> PVCStream:
        """Reuse a closed stream with these options; otherwise create one, replacing a spare with other options."""
        key = _key(options)
        if saved is None and self._spare.get(key):
            return self._spare[key].pop()
        while len(self._handles) + sum(map(len, self._spare.values())) >= self.max_streams:
            next(filter(None, self._spare.values())).pop()
        return PVCStream(self.bundle, **options) if saved is None else PVCStream.open(saved, self.bundle)

    def _is_gathered(self) -> bool:
        num_ready = sum(map(is_ready, self._handles))
        return num_ready >= min(self._together.most, len(self._handles))

    def _next_steps(self) -> list[Step]:
        ready = [handle for handle in self._handles if is_ready(handle)][: self._together.most]
        self._handles = [handle for handle in self._handles if handle not in ready] + ready
        return [step for handle in ready if (step := next_step(handle, self.counts)) is not None]

    def _let_go(self) -> None:
        """Release the closed streams."""
        for handle in [handle for handle in self._handles if handle.is_closed]:
            stream = handle.let_go()
            self._handles.remove(handle)
            if handle.is_spare:
                stream.reset()
                self._spare.setdefault(_key(handle.options), []).append(stream)
            if handle.gone.set_running_or_notify_cancel():
                handle.gone.set_result(None)


Options = tuple[tuple[str, Any], ...]


@dataclass(kw_only=True, slots=True, eq=False)
class _Opening:
    """A stream that a caller is waiting for."""

    limits: QueueLimits
    saved: str | None
    options: dict[str, Any]
    handle: Future[StreamHandle] = field(default_factory=Future)


def _closed() -> StreamError:
    return StreamError("this scheduler is closed", fix="open the stream elsewhere")


def _key(options: dict[str, Any]) -> Options:
    return tuple(sorted(options.items()))
