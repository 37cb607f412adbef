"""Layers of a compiled engine, as its builder or inspector lists them, and the gate that checks them.

A successful build does not show what was built: an attention may have fallen apart, a ring may be copied every frame, a
matrix may have stayed in float32. The gate counts exactly, and a list that cannot be read also fails.
Note: without a GPU, TensorRT-RTX cannot inspect an engine, but it prints every layer while building one. Neither format
is documented. The log format is that of TensorRT-RTX 1.7, observed here. The other is that of TensorRT 10 and its
IEngineInspector, as printed in torch-tensorrt's documentation, where constants are listed among the inputs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .errors import BuildError
from .spec import ITEM_BYTES, GraphSpec

NAME_LINE = re.compile(r"^Name: (.+?), LayerType: (\w+)", re.MULTILINE)
OF_PROFILE = re.compile(r" \[profile \d+\]$")
"""Marks a graph's inputs of a second or later optimization profile in a list."""
OPAQUE_NODE = "ForeignNode["
"""Name, in a list, of a subgraph whose kernels are not shown."""
TENSOR_START = "{ Name: "
TENSOR = re.compile(
    r"\{ Name: (.+?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\][^{}]*?(?:Format/)?Datatype: ([^,{}]*[^,{} ])"
)
NARROW = re.compile(r"\b(half|b?fp?(16|8)|bfloat16|u?int\d+|bool)\b", re.IGNORECASE)
"""Dtypes other than float32, in all spellings: 'Half', or 'Row major linear FP16 format' before TensorRT 10."""
CODES = {4: re.compile(r"\bu?int4\b", re.IGNORECASE), 8: re.compile(r"\bint8\b", re.IGNORECASE)}
"""Dtypes of int4 and int8 weights."""
SECTIONS = ("Inputs: [", "Constants: [", "Outputs: [")

RTX_FORMAT = "the detailed list that TensorRT-RTX 1.7 and TensorRT 10 print"
INSPECTOR_FORMAT = "the detailed list of TensorRT 10's IEngineInspector, as JSON"
TESTED = "use a version of the compiler that was tested: see constraints.txt"

GEMM_ATTENTION = "_gemm_mha"  # many query rows: within a frame, and in the LLM
GEMV_ATTENTION = "_gemv_mha"  # one query row: over time
SLACK_VALUES, SLACK_SHARE = 2048, 0.01
"""Allowance for float32 constants that are not weights: for normalisation, frequencies, scale factors, padding."""

Constant = tuple[str, str, int]
"""Name, dtype as the compiler spells it, number of values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLayer:
    """One kernel: the tensors it reads and writes, and its constants."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[Constant, ...]
    outputs: tuple[str, ...] = ()


def parse_layers(log: str) -> tuple[EngineLayer, ...]:
    """Every layer listed in a build log. Raises BuildError if there is none or one cannot be read."""
    lines = [line for line in log.splitlines() if NAME_LINE.match(line)]
    if not lines:
        raise _unreadable("the build log lists no layers, so the engine cannot be checked", expected=RTX_FORMAT)
    return _find_constants(_parse_line(line) for line in lines)


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Every layer of IEngineInspector's JSON, LayerInformationFormat.JSON. Raises BuildError as parse_layers does."""
    try:
        layers = [_parse_entry(entry) for entry in json.loads(text)["Layers"]]
    except (ValueError, KeyError, TypeError) as error:
        what = f"the engine inspector's list of layers cannot be read: {error!r} in {text[:200]!r}"
        raise _unreadable(what, expected=INSPECTOR_FORMAT) from error
    if not layers:
        what = "the engine inspector lists no layers, so the engine cannot be checked"
        raise _unreadable(what, expected=INSPECTOR_FORMAT)
    return _find_constants(layers)


Parsed = tuple[EngineLayer, tuple[Constant, ...] | None]
"""A layer, and its inputs as (name, dtype, size) for lists that do not separate constants from tensors."""


def _parse_line(line: str) -> Parsed:
    named = NAME_LINE.match(line)
    places = [line.find(section) for section in SECTIONS]
    if named is None or places[0] < 0 or places[2] < places[0]:
        raise _unreadable(f"a layer of the build log cannot be read: {line[:200]!r}", expected=RTX_FORMAT)
    inputs_end = places[1] if places[1] > 0 else places[2]
    inputs = _parse_tensors(line[places[0] : inputs_end])
    layer = EngineLayer(
        name=named[1],
        kind=named[2],
        inputs=tuple(name for name, _, _ in inputs),
        constants=_parse_tensors(line[places[1] : places[2]]) if places[1] > 0 else (),
        outputs=tuple(name for name, _, _ in _parse_tensors(line[places[2] :])),
    )
    return layer, inputs


def _parse_tensors(section: str) -> tuple[Constant, ...]:
    """Every tensor of one section, as (name, dtype, size). One that cannot be read raises: it would escape the gate."""
    found = tuple((name, dtype, _num_values(dims)) for name, dims, dtype in TENSOR.findall(section))
    if len(found) != section.count(TENSOR_START):
        unread = section.count(TENSOR_START) - len(found)
        what = f"{unread} tensors of a layer in the build log cannot be read: {section[:300]!r}"
        raise _unreadable(what, expected=RTX_FORMAT)
    return found


def _parse_entry(entry: dict[str, Any]) -> Parsed:
    def dtype(tensor: dict[str, Any]) -> str:
        return str(tensor["Datatype"] if "Datatype" in tensor else tensor["Format/Datatype"])

    def size(tensor: dict[str, Any]) -> int:
        return _num_values(",".join(map(str, tensor["Dimensions"])))

    layer = EngineLayer(
        name=entry["Name"],
        kind=entry["LayerType"],
        inputs=tuple(tensor["Name"] for tensor in entry["Inputs"]),
        constants=tuple((tensor["Name"], dtype(tensor), size(tensor)) for tensor in entry.get("Constants", ())),
        outputs=tuple(tensor["Name"] for tensor in entry["Outputs"]),
    )
    return layer, tuple((tensor["Name"], dtype(tensor), size(tensor)) for tensor in entry["Inputs"])


def _find_constants(parsed: Iterable[Parsed]) -> tuple[EngineLayer, ...]:
    """If a list names no constants, they are the inputs that no layer produces."""
    found = list(parsed)
    layers = [layer for layer, _ in found]
    if any(layer.constants for layer in layers):
        return tuple(layers)
    made = {name for layer in layers for name in layer.outputs}
    return tuple(
        replace(layer, constants=tuple(entry for entry in inputs or () if entry[0] not in made))
        for layer, inputs in found
    )


def _unreadable(what: str, *, expected: str) -> BuildError:
    cause = "this version uses another list format, or the engine was not built with ProfilingVerbosity.DETAILED"
    return BuildError(what, expected=expected, cause=cause, fix=TESTED)


def _num_values(dims: str) -> int:
    """Number of values. A size of -1 depends on the input and counts as 1."""
    count = 1
    for size in dims.split(","):
        count *= abs(int(size or 1))
    return count


def count_attention(layers: tuple[EngineLayer, ...]) -> dict[str, int]:
    """Number of fused attention kernels of each kind in the engine."""
    kinds = Counter(kind for layer in layers for kind in (GEMM_ATTENTION, GEMV_ATTENTION) if kind in layer.name)
    return {"gemm": kinds[GEMM_ATTENTION], "gemv": kinds[GEMV_ATTENTION]}


@dataclass(frozen=True, kw_only=True, slots=True)
class WideAttention:
    """Attention requested in float32 inside a narrower graph (--island): a compiler may fuse it or not, and may copy
    its ring or cache into another layout for it.

    num_rows  attentions over many rows;  states  inputs of the rings and caches they read
    """

    num_rows: int = 0
    states: frozenset[str] = frozenset()


NO_WIDE_ATTENTION = WideAttention()


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A graph's requirements on its engine: the spec, and facts about the cast model it was made from.

    num_float32_weights  None for a float32 graph, where all weights are float32
    num_codes            weights stored as codes
    """

    spec: GraphSpec
    num_weights: int
    num_float32_weights: int | None
    num_codes: int
    wide: WideAttention = NO_WIDE_ATTENTION

    def hold(self, layers: tuple[EngineLayer, ...]) -> None:
        """Raise BuildError unless an engine with these layers is what the graph requires."""
        check_layers(
            layers, self.spec, num_float32_weights=self.num_float32_weights, num_weights=self.num_weights,
            num_codes=self.num_codes, wide=self.wide,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All fields except the spec, which is in the manifest."""
        return {
            "num_weights": self.num_weights,
            "num_float32_weights": self.num_float32_weights,
            "num_codes": self.num_codes,
            "wide_rows": self.wide.num_rows,
            "wide_states": sorted(self.wide.states),
        }

    @staticmethod
    def from_json(data: dict[str, Any], spec: GraphSpec) -> Asked:
        """The inverse of to_json. Raises KeyError or TypeError for invalid data."""
        wide = WideAttention(num_rows=data["wide_rows"], states=frozenset(data["wide_states"]))
        numbers = {key: data[key] for key in ("num_weights", "num_float32_weights", "num_codes")}
        return Asked(spec=spec, wide=wide, **numbers)


def check_layers(
    layers: tuple[EngineLayer, ...],
    spec: GraphSpec,
    *,
    num_float32_weights: int | None,
    num_weights: int | None = None,
    num_codes: int = 0,
    wide: WideAttention = NO_WIDE_ATTENTION,
) -> None:
    """Raise BuildError unless the engine is what its graph requires. States in `wide` are exempt from rules 1 and 2.

    1. exactly the fused attention kernels that the spec names
    2. every ring is read by one kernel, which is a fused attention or converts its codes to values; unfused attention
       may use any number of kernels
       every LLM cache is read once per pass (rows), or updated in place and read only by attention (check_caches)
    3. no more float32 constants than the islands' weights; None for a float32 graph, where all are float32.
       A constant whose dtype cannot be read counts as float32
    4. as many constants as the graph has weights, if num_weights is known: a list without the weights shows nothing
       about their dtype
    5. num_codes constants of that bit width, in every profile: a compiler may widen them ahead of time
    Rules 3 to 5 apply only if weights are listed at all
    """
    if spec.unfused and num_float32_weights is not None:
        # If unfused kernels join rows in the space for a new row, TensorRT-RTX 1.7 lists that space as a constant.
        of_islands = [state for state in spec.states if state.input in wide.states]
        num_float32_weights += sum(state.row_bytes // ITEM_BYTES[state.dtype] for state in of_islands)
    spec = replace(spec, states=tuple(state for state in spec.states if state.input not in wide.states))
    _check_attention(layers, spec, wide)
    for state in spec.states:
        readers = [layer.name for layer in layers if state.input in layer.inputs]
        is_laid_out = state.holds != "values"  # a separate kernel converts codes to values
        if readers and "temporal" in spec.unfused:
            continue
        if state.order == "ring" and (len(readers) != 1 or not (is_laid_out or GEMV_ATTENTION in readers[0])):
            raise BuildError(
                f"the engine of '{spec.name}' reads the ring '{state.input}' in {readers or 'no kernel'}",
                expected="one kernel, which converts codes to values" if is_laid_out else "one fused attention",
                cause="the whole ring is copied for every frame, or not used at all",
                fix=TESTED,
            )
    check_caches(layers, spec)
    if shows_weights(layers, spec):
        _check_constants(layers, spec, num_float32_weights, num_weights)
        _check_codes(layers, spec, num_codes)


def _check_attention(layers: tuple[EngineLayer, ...], spec: GraphSpec, wide: WideAttention) -> None:
    """Rule 1 of check_layers."""
    found = count_attention(layers)
    expected = {"gemm": spec.fused_attention.gemm, "gemv": spec.fused_attention.gemv}
    loose = {"gemm": wide.num_rows, "gemv": len(wide.states) // 2}  # a key and a value each
    if spec.unfused and any(found[kind] > expected[kind] for kind in expected):
        raise BuildError(
            f"the engine of '{spec.name}' has {found['gemm']} fused attention kernels over many rows and "
            f"{found['gemv']} over one row, although its {' and '.join(spec.unfused)} attention should be unfused",
            expected=f"{expected['gemm']} and {expected['gemv']}",
            cause="this compiler fuses even the spelling that no tested compiler fuses, so --unfuse has no effect",
            fix="keep the attention in float32, which is not fused over many rows: --island MODULE, such as "
            "trunk.layers.0.attn; and report the compiler's version",
        )
    if not all(expected[kind] - loose[kind] <= found[kind] <= expected[kind] for kind in expected):
        raise BuildError(
            f"the engine of '{spec.name}' has {found['gemm']} fused attention kernels over many rows and "
            f"{found['gemv']} over one row",
            expected=f"{expected['gemm']} and {expected['gemv']}",
            cause="an attention was split into separate kernels: this compiler does not fuse its spelling in the graph",
            fix=TESTED,
        )


def shows_weights(layers: tuple[EngineLayer, ...], spec: GraphSpec) -> bool:
    """False for TensorRT-RTX 1.4, which lists kernels but no weights. A list with only some of them is suspect."""
    return any(not _is_input(name, spec) for layer in layers for name, _, _ in layer.constants)


def _is_input(name: str, spec: GraphSpec) -> bool:
    """If a list names no constants, the graph's own inputs are also among those that no layer produces."""
    return OF_PROFILE.sub("", name) in {tensor.name for tensor in spec.inputs}


def check_caches(layers: tuple[EngineLayer, ...], spec: GraphSpec) -> None:
    """Raise BuildError unless every linear cache is used as its update type requires, in every optimization profile.

    rows     one kernel reads it, arranging old and new rows for the attention; no other kernel touches the cache
             (unfused attention may use any number of kernels per pass)
    aliased  one kernel writes new rows into it, in place. Over one row (decode) only the fused attention reads it, so
             nothing copies it. Over many rows, compilers seen so far copy keys and values into their kernel's layout
             once per pass; float32 attention over many rows is not fused and not judged
    """
    is_loose = "llm" in spec.unfused
    for index, profile in enumerate(spec.profiles):
        suffix = f" [profile {index}]" if index else ""
        one_row = "rows" in profile and profile["rows"].max == 1
        for state in (state for state in spec.states if state.order == "linear"):
            names = {f"{name}{suffix}" for name in (state.input, state.output)}
            users = [layer for layer in layers if names & set(layer.inputs)]
            if state.update == "rows":
                wanted, found = "one kernel that reads it", [layer.name for layer in users]
                good = len(users) == 1 or (bool(users) and is_loose)
            else:
                writers = [layer.name for layer in users if names & set(layer.outputs)]
                readers = [layer.name for layer in users if not names & set(layer.outputs)]
                wanted, found = "one kernel that writes it and one that reads it", [*writers, *readers]
                good = len(writers) == 1 and (len(readers) == 1 or (bool(readers) and not spec.fused_attention.gemm))
                if one_row and not is_loose:
                    wanted = "one kernel that writes it, and only fused attention that reads it"
                    good = len(writers) == 1 and len(readers) == 1 and GEMV_ATTENTION in readers[0]
            if not good:
                raise BuildError(
                    f"the engine of '{spec.name}' uses the cache '{state.input}' in {found or 'no kernel'}{suffix}",
                    expected=wanted,
                    cause="the whole cache is copied on every pass, or not used at all",
                    fix=TESTED,
                )


def _check_constants(
    layers: tuple[EngineLayer, ...], spec: GraphSpec, num_float32_weights: int | None, num_weights: int | None
) -> None:
    """Rules 3 and 4 of check_layers."""
    times = max(len(spec.profiles), 1)  # each profile lists its own constants
    found = [[one for one in set(layer.constants) if not _is_input(one[0], spec)] for layer in layers]
    constants = {name: (dtype, count) for of_layer in found for name, dtype, count in of_layer}
    # Summed by layer, not by name: a list may name a constant of two profiles once or twice.
    listed = sum(count for of_layer in found for _, _, count in of_layer)
    if num_weights is not None and listed < times * num_weights * (1 - SLACK_SHARE):
        raise BuildError(
            f"the engine of '{spec.name}' lists {listed} constants, so its precision cannot be checked",
            expected=f"the graph's {num_weights} weights, once for each of {times} profiles",
            cause="this version uses another list format",
            fix=TESTED,
        )
    if num_float32_weights is not None:
        float32 = {name: count for name, (dtype, count) in constants.items() if not NARROW.search(dtype)}
        if sum(float32.values()) > times * (num_float32_weights * (1 + SLACK_SHARE) + SLACK_VALUES):
            largest = max(float32, key=lambda name: float32[name])
            raise BuildError(
                f"the engine of '{spec.name}' has {sum(float32.values())} float32 values in {times} profiles; the "
                f"largest constant is '{largest}' with {float32[largest]}",
                expected=f"the {num_float32_weights} weights of its float32 islands",
                cause="a matrix was left in float32",
                fix="cast its weights before the export, or declare it an island: --island MODULE",
            )


def _check_codes(layers: tuple[EngineLayer, ...], spec: GraphSpec, num_codes: int) -> None:
    """Rule 5 of check_layers."""
    if spec.quantization is None:
        return
    bits, wanted = spec.quantization.bits, max(len(spec.profiles), 1) * num_codes
    if (found := count_codes(layers, bits)) < wanted:
        raise BuildError(
            f"the engine of '{spec.name}' has {found} int{bits} weights",
            expected=f"{wanted}: all the weights that its graph stores this way, once for each profile",
            cause=f"this compiler widens int{bits} weights ahead of time, so that they save nothing",
            fix=f"export without --int{bits}, or use a compiler version that was tested: see constraints.txt",
        )


def count_codes(layers: tuple[EngineLayer, ...], bits: int) -> int:
    """Number of int4 or int8 weights in the engine, over all profiles."""
    return sum(count for layer in layers for _, dtype, count in set(layer.constants) if CODES[bits].search(dtype))
