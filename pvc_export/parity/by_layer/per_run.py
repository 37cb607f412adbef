"""A session that is open while it runs, and not in between: then its weights are no memory of this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.memory import HostMemory, Memory, Tensor
from engines.session import OrtSession
from engines.spec import GraphSpec
from engines.threads import num_cores


class OpenedPerRun:
    """A graph in ONNX Runtime's CPU, as it is written: opening one is a matter of milliseconds then."""

    computes_in = "float32"

    def __init__(self, path: Path, spec: GraphSpec, *, memory: HostMemory, graph: bytes | None = None) -> None:
        self.spec = spec
        self._path, self._graph, self._host = path, graph, memory
        self.memory: Memory = memory

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What OrtSession.run does."""
        session = OrtSession(
            self._path, self.spec, memory=self._host, threads=num_cores(), graph=self._graph, as_written=True
        )
        return session.run(inputs)
