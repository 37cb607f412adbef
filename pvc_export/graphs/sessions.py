"""Graphs of a reference model, exported and opened for a check or a benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from engines.graph_specs import graph_specs
from engines.session import OrtSession, Session
from engines.spec import Part, Quantization, State, StreamLimits
from engines.target import Target
from pvc_ref import PVC

from .hollow import hollow
from .lean import export_lean
from .modules import graph_module, model_shape
from .onnx_file import export_graph
from .quantize import Quantizer, prepared


def open_graphs(
    model: PVC,
    names: Sequence[str],
    target: Target,
    limits: StreamLimits,
    folder: Path,
    *,
    threads: int | None = None,
    quantization: Mapping[Part, Quantization] | None = None,
    int8_states: Collection[State] = (),
) -> dict[str, Session]:
    """Export some graphs of a float32 model in the spelling of `target`, and open them on the CPU.

    They are written to `folder`, which must contain only graphs of this model: an existing graph is opened, not
    exported again.
    """
    shape = model_shape(model.config)
    specs = graph_specs(
        shape, limits, "fp32", target.spelling, cache_update=target.update_of(int8_states), quantization=quantization,
        int8_states=int8_states,
    )  # fmt: skip
    quantizer = Quantizer.of(model, quantization, "fp32") if quantization else None
    bare = hollow(model, keep_clock=limits.num_times is not None) if quantization else model
    source = prepared(bare, quantization or {}, None, int8_states)
    sessions: dict[str, Session] = {}
    for name in names:
        path = folder / f"{name}.onnx"
        if not path.exists():
            module = graph_module(source, specs[name], target.spelling)
            if quantizer is None:
                export_graph(module, specs[name], path)
            else:
                export_lean(module, specs[name], path, quantizer.stored, quantizer=quantizer)
        sessions[name] = OrtSession(path, specs[name], threads=threads)
    return sessions
