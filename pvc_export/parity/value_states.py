"""Conversion of states in codes to values, the form in which the reference keeps them, and back.

A check feeds a graph the reference's state and compares the state it returns with the reference's. If the bundle keeps
its state in codes, both go through here. A stream run by the runtime (`recorded_stream`) keeps its codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from engines.bundle import Bundle
from engines.memory import Array, Tensor
from engines.session import Session
from engines.spec import SCALE, GraphSpec

from ..graphs.eight_bits import LARGEST_CODE, SMALLEST


def has_codes(spec: GraphSpec) -> bool:
    return spec.row_states != spec.states


def of_values(spec: GraphSpec) -> GraphSpec:
    """The spec of the same graph with values as states."""
    if not has_codes(spec):
        return spec
    scales = {name for state in spec.states if state.holds == "scales" for name in (state.input, state.output)}
    codes = {name for state in spec.states if state.holds == "codes" for name in (state.input, state.output)}
    inputs, outputs = (
        tuple(replace(t, dtype="float32") if t.name in codes else t for t in tensors if t.name not in scales)
        for tensors in (spec.inputs, spec.outputs)
    )
    states = tuple(
        replace(state, dtype="float32", holds="values", row_bytes=4 * state.row_bytes) for state in spec.row_states
    )
    return replace(spec, inputs=inputs, outputs=outputs, states=states)


def decoded(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs or outputs of a graph with float32 values instead of codes and scales."""
    found = dict(tensors)
    for name in [name for name in found if f"{name}{SCALE}" in found]:
        found[name] = found[name].astype(np.float32) * found.pop(f"{name}{SCALE}")
    return found


def encoded(spec: GraphSpec, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs of a graph with codes and scales instead of values, for the states that it takes as codes."""
    found = dict(tensors)
    for state in spec.row_states if has_codes(spec) else ():
        wide = found[state.input].astype(np.float32)
        scales = np.maximum(np.abs(wide).max(-1, keepdims=True) / np.float32(LARGEST_CODE), np.float32(SMALLEST))
        found[state.input] = np.rint(wide / scales).astype(np.int8)
        found[f"{state.input}{SCALE}"] = scales
    return found


class ValueSession:
    """A session that takes and returns values where its graph has codes. It converts on the host."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.spec, self.memory, self.computes_in = of_values(session.spec), session.memory, session.computes_in

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own, memory = self._session.spec, self.memory
        host = {name: memory.to_host(tensor) for name, tensor in inputs.items()}
        fed = encoded(own, host)
        outputs = decoded({name: memory.to_host(t) for name, t in self._session.run(fed).items()})
        for output, name in self.spec.aliases.items():  # written in place
            host[name][...] = outputs[output]
            outputs[output] = host[name]
        return dict(outputs)


def values_of(session: Session) -> Session:
    """The session itself, or if it has codes, one that takes and returns values."""
    return ValueSession(session) if has_codes(session.spec) else session


def with_values(bundle: Bundle) -> Bundle:
    """A bundle whose sessions take and return values."""
    return replace(bundle, sessions={name: values_of(session) for name, session in bundle.sessions.items()})
