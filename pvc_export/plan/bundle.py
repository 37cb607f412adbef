"""Sizes of a bundle that does not exist yet: each graph and engine, the other files, and a stream's state."""

from __future__ import annotations

from dataclasses import dataclass

from pvc_ref import PVC

from ..bundles.export import ExportRequest
from ..graphs.precision import cast_model
from .engine_files import engine_bytes
from .graph_files import graph_bytes, layers_of, weight_bytes
from .memory import StateBytes, activation_bytes, state_bytes

REPORT_BYTES, REPORT_BYTES_A_LAYER = 1_000_000, 90_000
"""Size of the check's report, as a page and as JSON, and of the manifest."""
TOKEN_BYTES = 70
"""Size of a token and its merge in tokenizer.json, used if there is no tokenizer yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphPlan:
    """Bytes of one graph: its files, the weights in them, its engine (even if the bundle has none), and a pass's
    activations."""

    files: int
    weights: int
    engine: int
    activations: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BundlePlan:
    """`state`: of one stream. `engine_names`: the graphs that have an engine in the bundle."""

    graphs: dict[str, GraphPlan]
    engine_names: tuple[str, ...]
    other_files: int
    state: StateBytes

    @property
    def graph_files(self) -> int:
        return sum(graph.files for graph in self.graphs.values())

    @property
    def engines(self) -> int:
        return sum(self.graphs[name].engine for name in self.engine_names)

    @property
    def total(self) -> int:
        return self.graph_files + self.engines + self.other_files


def plan_bundle(model: PVC, request: ExportRequest, *, tokenizer_bytes: int | None) -> BundlePlan:
    """Sizes of the files that `export` would write. `model` may be on `meta`.

    tokenizer_bytes  size of the bundle's tokenizer.json; None if there is no tokenizer yet
    Raises ModelError for an invalid island.
    """
    target, config = request.target, model.config
    specs = request.graph_specs(config)
    cast = cast_model(model, request.precision, request.islands)
    graphs = {
        name: GraphPlan(
            files=graph_bytes(cast, spec, target),
            weights=weight_bytes(cast, spec),
            engine=engine_bytes(cast, spec, streams=request.limits.streams) if name != "embed" else 0,
            activations=activation_bytes(config, spec, request.limits),
        )
        for name, spec in specs.items()
    }
    num_layers = sum(layers_of(config, name) for name in specs)
    tokenizer = config.llm.vocab_size * TOKEN_BYTES if tokenizer_bytes is None else tokenizer_bytes
    return BundlePlan(
        graphs=graphs,
        engine_names=target.engine_graphs,
        other_files=REPORT_BYTES + REPORT_BYTES_A_LAYER * num_layers + tokenizer,
        state=state_bytes(config, specs, request.limits, request.clock),
    )
