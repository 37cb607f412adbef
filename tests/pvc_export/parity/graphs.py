"""One graph of a model, exported once for all tests, and the weights found in its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from engines.graph_specs import graph_specs
from engines.spec import CacheUpdate, GraphSpec, Precision, Spelling, StreamLimits
from pvc_export.graphs.modules import graph_module, model_shape
from pvc_export.graphs.precision import cast_model
from pvc_export.parity.graph_file import GraphFile
from pvc_export.parity.weights import HeldWeights, held_weights, weights_of
from pvc_ref import PVC

from ...conftest import ExportGraph


@dataclass(frozen=True, kw_only=True)
class Form:
    """The options for exporting one graph of a model."""

    name: str
    precision: Precision = "fp32"
    spelling: Spelling = "concat"
    cache_update: CacheUpdate = "rows"
    streams: int = 1
    islands: tuple[str, ...] = ()
    num_times: int | None = None

    def spec(self, model: PVC) -> GraphSpec:
        limits = StreamLimits(window=4, context=512, streams=self.streams, num_times=self.num_times)
        shape = model_shape(model.config)
        return graph_specs(shape, limits, self.precision, self.spelling, cache_update=self.cache_update)[self.name]

    def file(self, model: PVC, folder: Path, export: ExportGraph) -> Path:
        path, spec = folder / f"{self.name}.onnx", self.spec(model)
        export(graph_module(cast_model(model, self.precision, self.islands), spec, self.spelling), spec, path)
        return path

    def held(self, model: PVC, path: Path) -> HeldWeights:
        """Return which of the model's weights the file contains, correct or wrong."""
        spec = self.spec(model)
        manifest = SimpleNamespace(graphs={self.name: spec}, precision=self.precision, islands=self.islands)
        return held_weights(GraphFile(path, self.name), weights_of(manifest, model)[self.name])  # type: ignore[arg-type]
