"""Fresh exports of the reference's graphs, with which the structure of a bundle's graphs is compared.

Tracing a large model takes minutes of Python on one core. So for a large model another process does it (`ahead`), while
the check computes other things.

    python -m pvc_export.parity.fresh   run by that process; its parent sends the job over stdin
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.manifest import Manifest
from engines.target import load_target
from pvc_ref import PVC

from ..graphs.eight_bit_rows import round_states
from ..graphs.hollow import filled, hollow
from ..graphs.machine import is_small
from ..graphs.modules import graph_module
from ..graphs.onnx_file import export_graph, export_hollow
from ..graphs.precision import cast_model
from ..graphs.quantize import prepared
from .graph_file import GraphFile


class FreshGraphs:
    """A reference's graphs, each exported once, as a manifest describes. Kept in `folder` for later checks.

    is_hollow: without the values of the matrices; the default for a large model.
    """

    def __init__(self, model: PVC, folder: Path, *, is_hollow: bool | None = None) -> None:
        self._source, self._folder = model, folder
        self._is_hollow = (model.stored is not None or not is_small(model)) if is_hollow is None else is_hollow
        self._cast: dict[tuple[object, ...], PVC] = {}
        self._made: dict[tuple[object, ...], GraphFile] = {}
        self._worker: _Worker | None = None

    @staticmethod
    @contextmanager
    def of(model: PVC, scratch: Path | None) -> Iterator[FreshGraphs]:
        """In a temporary folder in `scratch`, by default the system's."""
        with tempfile.TemporaryDirectory(prefix="pvc-fresh-", dir=scratch) as folder:
            yield FreshGraphs(model, Path(folder))

    @contextmanager
    def ahead(self, manifest: Manifest) -> Iterator[None]:
        """While the context is open, another process exports the missing graphs of a large model."""
        if self._is_hollow and not all(_key(name, manifest) in self._made for name in manifest.graphs):
            self._worker = _Worker(self._hollow(manifest), manifest, self._new_folder())
        try:
            yield
        finally:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def graph(self, name: str, manifest: Manifest) -> GraphFile:
        """Return one graph. Raises BuildError if it cannot be exported here."""
        key = _key(name, manifest)
        if key not in self._made:
            done = self._worker.path(name, manifest) if self._worker is not None else None
            # If the other process failed, export here, so that the error is raised in this process.
            self._made[key] = GraphFile(done or self._export(name, manifest), name)
        return self._made[key]

    def _export(self, name: str, manifest: Manifest) -> Path:
        path = self._new_folder() / f"{name}.onnx"
        export_one(self._model(manifest), name, manifest, path, is_hollow=self._leaves_out(manifest))
        return path

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _leaves_out(self, manifest: Manifest) -> bool:
        """Whether the matrices of the fresh graphs have no values; quantised ones never have."""
        return self._is_hollow or bool(manifest.quantization)

    def _hollow(self, manifest: Manifest) -> PVC:
        bare = hollow(self._source, keep_clock=manifest.limits.num_times is not None)
        return prepared(bare, manifest.quantization, manifest.calibration, manifest.int8_states)

    def _model(self, manifest: Manifest) -> PVC:
        is_hollow = self._leaves_out(manifest)
        has_table = manifest.limits.num_times is not None
        key = manifest.precision, manifest.islands, has_table, is_hollow, manifest.int8_states, _found_ahead(manifest)
        if key not in self._cast:
            source = self._hollow(manifest) if is_hollow else round_states(self._source, manifest.int8_states)
            self._cast[key] = cast_model(source, manifest.precision, manifest.islands)
        return self._cast[key]


class _Worker:
    """A process that exports all graphs of a manifest from a hollow model into `folder`."""

    def __init__(self, model: PVC, manifest: Manifest, folder: Path) -> None:
        self._manifest, self._folder = manifest, folder
        (folder / "job").write_bytes(pickle.dumps((model, manifest, folder)))
        with (folder / "job").open("rb") as job:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=job,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def path(self, name: str, manifest: Manifest) -> Path | None:
        """Wait for the process and return a graph's file; None if it failed or its job was another manifest."""
        if manifest != self._manifest or self._process.wait() != 0:
            return None
        return self._folder / f"{name}.onnx"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _key(name: str, manifest: Manifest) -> tuple[object, ...]:
    """Everything that a graph's export depends on."""
    spelling = load_target(manifest.target).spelling
    spec = json.dumps(manifest.graphs[name].to_json())
    return spelling, manifest.precision, manifest.islands, spec, _found_ahead(manifest)


def _found_ahead(manifest: Manifest) -> tuple[tuple[str, object], ...]:
    found = manifest.calibration
    return () if found is None else (*found.scales.items(), *found.smoothing.items())


def export_one(model: PVC, name: str, manifest: Manifest, path: Path, *, is_hollow: bool) -> None:
    """Export one graph of an already cast model. Raises BuildError if it cannot be exported here."""
    spec = manifest.graphs[name]
    module = graph_module(model, spec, load_target(manifest.target).spelling)
    if is_hollow:
        export_hollow(filled(module), spec, path)
    else:
        export_graph(module, spec, path)


def main() -> None:
    model, manifest, folder = pickle.load(sys.stdin.buffer)  # written by the parent
    model = cast_model(model, manifest.precision, manifest.islands)
    for name in manifest.graphs:
        export_one(model, name, manifest, folder / f"{name}.onnx", is_hollow=True)


if __name__ == "__main__":
    main()
