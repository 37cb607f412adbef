"""What a compiler really made: the layers of an engine, read back from its own build log, and the gate on them.

A build that succeeds says nothing of what it became: an attention that fell apart, a ring that is copied every frame,
a matrix left in float32. The gate counts exactly, and a list that cannot be read fails as well.
Unusual: TensorRT-RTX on a machine without a GPU cannot inspect an engine, but prints every layer while it builds one.
The format is undocumented; it is that of TensorRT-RTX 1.7.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .errors import BuildError
from .spec import GraphSpec

NAME_LINE = re.compile(r"^Name: (.+?), LayerType: (\w+)")
TENSOR = re.compile(r"\{ Name: (.+?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
SECTIONS = ("Inputs: [", "Constants: [", "Outputs: [")

GEMM_ATTENTION = "_gemm_mha"  # many query rows: within a frame, and in the LLM
GEMV_ATTENTION = "_gemv_mha"  # one query row: over time
SLACK_VALUES, SLACK_SHARE = 2048, 0.01
"""Float32 constants that are no weights: normalisation constants, frequencies, scale factors, padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLayer:
    """One kernel: the tensors that it reads, and its constants as (name, dtype, number of values)."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, str, int], ...]


def parse_layers(log: str) -> tuple[EngineLayer, ...]:
    """Every layer that a build log lists. Raises BuildError if there is none or one cannot be read."""
    layers = tuple(_parse_line(line) for line in log.splitlines() if NAME_LINE.match(line))
    if not layers:
        raise BuildError(
            "the build log lists no layers, so nothing can be said of the engine. Expected the detailed list of "
            "TensorRT-RTX 1.7; another version may print it otherwise. Install the tested one: see constraints.txt"
        )
    return layers


def _parse_line(line: str) -> EngineLayer:
    named = NAME_LINE.match(line)
    places = [line.find(section) for section in SECTIONS]
    if named is None or places[0] < 0 or places[2] < places[0]:
        raise BuildError(f"a layer of the build log cannot be read: {line[:200]!r}. Expected TensorRT-RTX 1.7's format")
    inputs_end = places[1] if places[1] > 0 else places[2]
    constants = TENSOR.findall(line[places[1] : places[2]]) if places[1] > 0 else []
    return EngineLayer(
        name=named[1],
        kind=named[2],
        inputs=tuple(name for name, _, _ in TENSOR.findall(line[places[0] : inputs_end])),
        constants=tuple((name, dtype, _num_values(dims)) for name, dims, dtype in constants),
    )


def _num_values(dims: str) -> int:
    count = 1
    for size in dims.split(","):
        count *= int(size or 1)
    return count


def count_attention(layers: tuple[EngineLayer, ...]) -> dict[str, int]:
    """How many fused attention kernels of each kind the engine has."""
    kinds = Counter(kind for layer in layers for kind in (GEMM_ATTENTION, GEMV_ATTENTION) if kind in layer.name)
    return {"gemm": kinds[GEMM_ATTENTION], "gemv": kinds[GEMV_ATTENTION]}


def check_layers(layers: tuple[EngineLayer, ...], spec: GraphSpec, *, num_float32_weights: int | None) -> None:
    """Raise BuildError unless the engine is what its graph asked for.

    1. exactly the fused attention kernels that the spec names
    2. every ring is read by one kernel, and that is a fused attention
    3. no more float32 constants than the islands' weights; None for a float32 graph, where all are
    """
    found = count_attention(layers)
    expected = {"gemm": spec.fused_attention.gemm, "gemv": spec.fused_attention.gemv}
    if found != expected:
        raise BuildError(
            f"the engine of '{spec.name}' has {found['gemm']} fused attention kernels over rows and {found['gemv']} "
            f"over one row, expected {expected['gemm']} and {expected['gemv']}. An attention fell apart into loose "
            "kernels: its spelling in the graph is not one that this compiler fuses"
        )
    for state in spec.states:
        readers = [layer.name for layer in layers if state.input in layer.inputs]
        if state.order == "ring" and (len(readers) != 1 or GEMV_ATTENTION not in readers[0]):
            raise BuildError(
                f"the engine of '{spec.name}' reads the ring '{state.input}' in {readers or 'no kernel'}, expected one "
                "fused attention. The whole ring is copied for every frame, or not used at all"
            )
    if num_float32_weights is not None:
        wide = {name: count for layer in layers for name, dtype, count in layer.constants if dtype == "Float"}
        if sum(wide.values()) > num_float32_weights * (1 + SLACK_SHARE) + SLACK_VALUES:
            largest = max(wide, key=lambda name: wide[name])
            raise BuildError(
                f"the engine of '{spec.name}' holds {sum(wide.values())} float32 values, but the islands have "
                f"{num_float32_weights} weights; the largest is '{largest}' with {wide[largest]}. A matrix was left in "
                "float32: cast its weights before the export"
            )
