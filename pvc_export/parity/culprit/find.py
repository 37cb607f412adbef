"""Search for the culprit: the first operation of a bundle that is wrong on the reference's inputs, and why.

Every graph is fed the reference's values (inputs.py), cut into the reference's operations (pieces.py), and checked from
its beginning. An operation that rounds its inputs, its weights and its result is off by a few units of roundoff. The
worst over the measured models was 6.4, so more than LIMIT is a fault. Computing the operation again in float32 shows
the kind of fault: if it is right then, precision is the cause and a float32 island repairs it; if it is still wrong,
the graph computes something else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

import onnx

from engines.bundle import graph_path
from engines.manifest import Manifest
from engines.memory import Array
from engines.spec import GRAPH_NAMES
from engines.target import load_target

from ...graphs.joined import part_at
from ...graphs.models import LoadedModel
from ...graphs.modules import graph_module, layer_name
from ...graphs.onnx_file import export_graph
from ...graphs.precision import can_be_island
from ..bfloat16_on_cpu import widen
from .inputs import ExpectedCall, expected_calls, float32_specs, reference_stream
from .pieces import LARGEST, Piece, align, evaluate, measure_pieces, origins, overflowing_weights
from .record import Culprit

LIMIT = 32.0
"""The allowed error of one operation in units of roundoff. Measured: at most 6.4, over the operations of `tiny` and
`shapes` in float16, both spellings, x86-64 CPU, ONNX Runtime 1.32, 2026-11-26."""
LIMIT_OF_CODES = 128.0
"""The same for a narrow graph whose inputs are rounded to int8: a value that the dtype moved may take the next code.
Measured: at most 52, over the matmuls of `tiny` in float16, by row and by tensor, x86-64 CPU, ONNX Runtime 1.32,
2026-11-29."""
ROOM = 4.0
"""Headroom: the result of an island must stay below the largest value of its dtype by this factor."""


def find_culprit(
    folder: Path, loaded: LoadedModel, *, graphs: Sequence[str] = GRAPH_NAMES, scratch: Path | None = None
) -> Culprit | None:
    """The first wrong operation of the bundle's graphs, in the order in which a frame and its text pass them.

    graphs  the graphs to search; begin with the first that failed a check
    Returns None if every operation is right on the reference's inputs. Then the runtime feeds the graphs other inputs,
    or the fault is in a weight's last bits or in a cache.
    """
    manifest = Manifest.load(folder)
    recording = reference_stream(manifest, loaded)
    with tempfile.TemporaryDirectory(prefix="pvc-culprit-", dir=scratch) as own:
        for graph in (name for name in GRAPH_NAMES if name in graphs and name != "embed"):
            twin = _export_twin(manifest, loaded, graph, Path(own))
            for call in expected_calls(manifest, loaded, graph, recording):
                found = _first_wrong(folder, manifest, loaded, call, twin, Path(own))
                if found is not None:
                    return found
    return None


def _export_twin(manifest: Manifest, loaded: LoadedModel, graph: str, scratch: Path) -> Path:
    """Export the same graph of the reference in float32."""
    spec, spelling = float32_specs(manifest)[graph], load_target(manifest.target).spelling
    path = scratch / "twin" / f"{graph}.onnx"
    path.parent.mkdir(exist_ok=True)
    export_graph(graph_module(loaded.model, spec, spelling), spec, path)
    return path


def _first_wrong(
    folder: Path, manifest: Manifest, loaded: LoadedModel, call: ExpectedCall, twin: Path, scratch: Path
) -> Culprit | None:
    path = _on_a_cpu(folder / graph_path(call.graph), manifest, scratch)
    pieces, truth = pieces_of(path, twin, call.feeds)
    limit = LIMIT_OF_CODES if manifest.rounding == "int8" and manifest.precision != "fp32" else LIMIT
    wrong = next((piece for piece in pieces if not piece.error <= limit), None)
    if wrong is None:
        return None
    (again,) = measure_pieces(path, {wrong.name: wrong.origin}, truth, widen=True)
    # In a narrow graph, precision can also be the cause in a float32 piece that rounds inside and returns float32.
    is_right_when_wide = again.error <= LIMIT or bool(overflowing_weights(path, wrong))
    is_precision = manifest.precision != "fp32" and is_right_when_wide
    layer = part_at(loaded.model, layer_name(call.graph, wrong.origin.scope), wrong.channel)
    return Culprit(
        graph=call.graph,
        where=call.where,
        layer=layer,
        operation=wrong.origin.operation,
        nodes=wrong.nodes,
        line=wrong.origin.line,
        dtype=wrong.dtype,
        error=wrong.error,
        limit=limit,
        symptom=_symptom(wrong, limit),
        peak=wrong.peak,
        largest=LARGEST[wrong.dtype],
        is_precision=is_precision,
        island=_island(manifest, loaded, call.graph, layer, wrong, pieces) if is_precision else None,
    )


def _symptom(wrong: Piece, limit: float) -> str:
    if wrong.num_nonfinite:
        return f"{wrong.num_nonfinite} values are NaN or infinite"
    if wrong.error == inf:
        return "a mask, an index or a zero differs"
    return f"off by {wrong.error:.0f} units of {wrong.dtype} roundoff (limit {limit:.0f})"


def pieces_of(path: Path, twin: Path, feeds: Mapping[str, Array]) -> tuple[list[Piece], dict[str, Array]]:
    """Measure every operation of a graph. Also returns the reference values, under the graph's names."""
    model = onnx.load(path, load_external_data=False)
    pairs = align(model, onnx.load(twin, load_external_data=False))
    values = evaluate(twin, pairs.values(), feeds)
    truth = dict(feeds) | {name: values[there] for name, there in pairs.items()}
    known = {name: origin for name, origin in origins(model).items() if name in pairs}
    return measure_pieces(path, known, truth), truth


def _on_a_cpu(path: Path, manifest: Manifest, scratch: Path) -> Path:
    """The graph, or for bfloat16 a copy that computes in float32 and rounds to bfloat16."""
    if manifest.precision != "bf16":
        return path
    wide = scratch / path.name
    if not wide.exists():
        widen(path, wide)
    return wide


def _island(
    manifest: Manifest, loaded: LoadedModel, graph: str, layer: str, wrong: Piece, pieces: Sequence[Piece]
) -> str | None:
    """The innermost module around the operation that can be an island and whose result fits in the bundle's dtype."""
    largest = LARGEST[manifest.precision] / ROOM
    parts = layer.split(".")
    for name in (".".join(parts[:count]) for count in range(len(parts), 0, -1)):
        inside = [p for p in pieces if f"{layer_name(graph, p.origin.scope)}.".startswith(f"{name}.")] or [wrong]
        if name not in manifest.islands and can_be_island(loaded.model, name) and inside[-1].peak <= largest:
            return name
    return None
