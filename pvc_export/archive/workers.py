"""Rows from several worker processes of this machine, each with the bundle opened once. Only this process writes."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from engines.errors import BackendUnavailable, PVCError

from .answering import Answerer, died
from .job import Job, Video
from .table import Row

OPENED: Row = {}
"""A worker's first message."""
TRIES = 2
"""A video that ends its process is tried once more: the system may have needed the memory for something else."""


def rows_here(job: Job, digest: str, videos: Sequence[Video]) -> Iterator[Row]:
    """Rows of all videos, one after another, in this process. Raises the errors of Answerer."""
    answerer = Answerer(job, digest)
    for video in videos:
        yield answerer.row(video)


def rows_of_workers(job: Job, digest: str, videos: Sequence[Video], *, num_workers: int) -> Iterator[Row]:
    """Rows of all videos, in order of completion. A killed worker does not end the run.

    Raises the errors of Answerer in a worker, and BackendUnavailable if a worker ends before its first video.
    """
    waiting = deque((video, 1) for video in videos)
    workers = [Worker(job, digest) for _ in range(min(num_workers, len(videos)))]
    try:
        while waiting or any(worker.video for worker in workers):
            for worker in workers:
                if worker.video is None and waiting:
                    worker.give(*waiting.popleft())
            busy = {worker.pipe: worker for worker in workers if worker.video is not None}
            for pipe in wait(list(busy)):
                worker = busy[cast("Connection[Any, Any]", pipe)]
                video, tries = worker.video, worker.tries
                assert video is not None
                found = worker.take()
                if isinstance(found, PVCError):
                    raise found
                if found == OPENED:
                    continue
                if found is not None:
                    yield found
                    continue
                worker.require_opened()
                workers[workers.index(worker)] = Worker(job, digest)
                if tries < TRIES:
                    waiting.append((video, tries + 1))
                else:
                    yield died(video, digest, worker.how_it_ended())
    finally:
        for worker in workers:
            worker.close()


class Worker:
    """A worker process, and the video that it is working on."""

    def __init__(self, job: Job, digest: str) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would share whatever ONNX Runtime has opened
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=work, args=(theirs, job, digest), daemon=True)
        self._process.start()
        theirs.close()
        self.video: Video | None = None
        self.tries, self.is_open = 0, False

    def give(self, video: Video, tries: int) -> None:
        self.video, self.tries = video, tries
        with suppress(OSError):  # it has ended, which `take` detects
            self.pipe.send(video)

    def take(self) -> Row | PVCError | None:
        """The worker's next message: OPENED first, then a row or an error; None if the worker has ended."""
        try:
            found = cast("Row | PVCError", self.pipe.recv())
        except (EOFError, OSError):
            self._process.join()
            found = None
        if found == OPENED:
            self.is_open = True
        else:
            self.video = None
        return found

    def require_opened(self) -> None:
        """For a worker that has ended: raise BackendUnavailable if that was before its first video."""
        if not self.is_open:
            raise BackendUnavailable(
                f"a worker ended while it opened the bundle: {self.how_it_ended()}",
                cause="too little memory for so many workers", fix="give fewer with --workers",
            )  # fmt: skip

    def how_it_ended(self) -> str:
        code = self._process.exitcode or 0
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def work(pipe: Connection[Any, Any], job: Job, digest: str) -> None:
    """A worker's main loop. It ends when the other end of the pipe is closed, also if the run was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    try:
        try:
            answerer = Answerer(job, digest)
            pipe.send(OPENED)
            while True:
                pipe.send(answerer.row(pipe.recv()))
        except PVCError as error:
            pipe.send(error)
        except MemoryError:
            pipe.send(BackendUnavailable("a worker has too little memory", fix="give fewer with --workers"))
    except (EOFError, OSError):
        return
