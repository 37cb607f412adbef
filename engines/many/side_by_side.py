"""Streams side by side: on a CPU with several cores, each takes its step on its own thread."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from ..bundle import Bundle
from ..errors import StreamError
from ..memory import HostMemory
from ..threads import num_cores
from .turns import Step

MOST = 64
"""Largest number of steps per round: a thread that is done takes the next step."""


class SideBySide(AbstractContextManager["SideBySide"]):
    """A Together. Open the bundle with threads=1; otherwise the graphs' own threads compete with these."""

    most = MOST

    def __init__(self, bundle: Bundle, *, workers: int | None = None) -> None:
        """Run `workers` steps at a time, by default as many as there are cores.

        Raises StreamError for a bundle that runs on a GPU, whose sessions handle one call at a time.
        """
        if not all(isinstance(session.memory, HostMemory) for session in bundle.sessions.values()):
            raise StreamError(
                f"{bundle.folder} runs on {bundle.runs_on}, which handles one call at a time",
                expected="a bundle that runs on the CPU",
                fix="run its streams in one pass: export it with --streams and use Passes",
            )
        self.bundle, self.workers = bundle, workers or num_cores()
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="side-by-side")

    def run(self, steps: Sequence[Step]) -> None:
        if len(steps) == 1:
            steps[0]()
            return
        for _ in self._pool.map(lambda step: step(), steps):
            pass

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown()
