"""Benchmark variants that run in another process and its own environment (worker.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import BackendUnavailable
from engines.memory import Array
from pvc_export.bench.rounds import Clocked

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Elsewhere(AbstractContextManager["Elsewhere"]):
    """A process that runs steps on request. versions, facts: its description of itself, sent once it is ready.

    Raises BackendUnavailable if the process ends before it replies; its output is on standard error.
    """

    def __init__(self, python: Path, module: str, arguments: Sequence[str]) -> None:
        read, write = os.pipe()
        command = [str(python), "-m", module, str(write), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=[write], env=os.environ | ONE_THREAD
        )
        os.close(write)
        self._answers = os.fdopen(read, "rb")
        ready = self._answer()
        self.versions: dict[str, str] = ready["versions"]
        self.facts: dict[str, Any] = ready["facts"]

    def step(self, name: str) -> Callable[[], Clocked]:
        def run() -> Clocked:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
            answer = self._answer()
            size = int(np.prod(answer["shape"]))
            values: Array = np.frombuffer(self._answers.read(4 * size), np.float32)
            return Clocked(result=values.reshape(answer["shape"]), seconds=answer["seconds"])

        return run

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            code = self._process.wait()
            raise BackendUnavailable(
                f"the peer process ended with exit code {code} before it replied",
                fix="install the packages it needs: make peers",
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()
