"""The graphs of a reference, exported here and now: what the structure of a bundle's graphs is held against.

Tracing a large model is minutes of Python on one core, in which a check computes other things. So another process does
it meanwhile (`ahead`), where the model is large.

    python -m pvc_export.parity.fresh   what that process runs: it is told by its parent, over stdin, what to export
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
    """The graphs of a reference as manifests say that they were exported, each of them once; of a large model without
    its matrices (is_hollow, by default where it is one). Kept in `folder`: for checks that follow each other."""

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
        """Within it, another process exports the graphs of a large model, if they are not there yet."""
        if self._is_hollow and not all(_key(name, manifest) in self._made for name in manifest.graphs):
            self._worker = _Worker(self._hollow(manifest), manifest, self._new_folder())
        try:
            yield
        finally:
            if self._worker is not None:
                self._worker.stop()
                self._worker = None

    def graph(self, name: str, manifest: Manifest) -> GraphFile:
        """One of them. Raises BuildError if it cannot be exported here."""
        key = _key(name, manifest)
        if key not in self._made:
            done = self._worker.path(name, manifest) if self._worker is not None else None
            # What the other process could not do is done here, and says why it fails.
            self._made[key] = GraphFile(done or self._export(name, manifest), name)
        return self._made[key]

    def _export(self, name: str, manifest: Manifest) -> Path:
        path = self._new_folder() / f"{name}.onnx"
        export_one(self._model(manifest), name, manifest, path, is_hollow=self._leaves_out(manifest))
        return path

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _leaves_out(self, manifest: Manifest) -> bool:
        """Whether matrices have no values in the fresh graphs: codes never have."""
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
    """A process that exports all graphs of a manifest from a hollow model, into `folder`."""

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
        """The file of one graph, once all are there; None if the process failed, or exports those of another bundle."""
        if manifest != self._manifest or self._process.wait() != 0:
            return None
        return self._folder / f"{name}.onnx"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def _key(name: str, manifest: Manifest) -> tuple[object, ...]:
    """What a graph depends on."""
    spelling = load_target(manifest.target).spelling
    spec = json.dumps(manifest.graphs[name].to_json())
    return spelling, manifest.precision, manifest.islands, spec, _found_ahead(manifest)


def _found_ahead(manifest: Manifest) -> tuple[tuple[str, object], ...]:
    found = manifest.calibration
    return () if found is None else (*found.scales.items(), *found.smoothing.items())


def export_one(model: PVC, name: str, manifest: Manifest, path: Path, *, is_hollow: bool) -> None:
    """Write a graph of a model that was cast already. Raises BuildError if it cannot be exported here."""
    spec = manifest.graphs[name]
    module = graph_module(model, spec, load_target(manifest.target).spelling)
    if is_hollow:
        export_hollow(filled(module), spec, path)
    else:
        export_graph(module, spec, path)


def main() -> None:
    model, manifest, folder = pickle.load(sys.stdin.buffer)  # its parent wrote it
    model = cast_model(model, manifest.precision, manifest.islands)
    for name in manifest.graphs:
        export_one(model, name, manifest, folder / f"{name}.onnx", is_hollow=True)


if __name__ == "__main__":
    main()
