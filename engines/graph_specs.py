"""The six graphs of a model: every tensor, dynamic dimension, cache and fused attention, from its sizes and limits.

Dimension key and dynamic dimensions: see spec.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import gcd, prod
from typing import Literal, get_args

from .spec import (
    FLOAT_OF,
    GRAPHS_OF,
    ITEM_BYTES,
    SCALE,
    CacheUpdate,
    Dim,
    DimRange,
    Fusable,
    FusedAttention,
    GraphSpec,
    ModelShape,
    Part,
    Precision,
    Quantization,
    Spelling,
    State,
    StateSpec,
    StreamLimits,
    TensorSpec,
)

STEP = 64
"""If a graph is fed only the rows in use, its cache grows by this many rows. If the size changed with every token,
the runtime could not reuse the previous token's buffers. And a softmax turns many masked rows into denormal numbers,
which cost a CPU ten times as much as others."""


def graph_specs(
    shape: ModelShape,
    limits: StreamLimits,
    precision: Precision,
    spelling: Spelling = "concat",
    *,
    cache_update: CacheUpdate = "rows",
    quantization: Mapping[Part, Quantization] | None = None,
    int8_states: Collection[State] = (),
    unfused: Mapping[str, tuple[Fusable, ...]] | None = None,
) -> dict[str, GraphSpec]:
    """The six graphs of a model by name, in the order in which a frame and then its text pass through them.

    int8_states  parts of a stream's state stored as int8 codes, with a scale per row and head
    unfused      graph -> attention in it that no compiler may fuse
    """
    quantized = {graph: how for part, how in (quantization or {}).items() for graph in GRAPHS_OF[part]}
    real = FLOAT_OF[precision]
    ring, cache = ("int8" if state in int8_states else real for state in get_args(State))
    specs = (
        *_vision_specs(shape, limits, real, spelling, ring=ring),
        *_language_specs(shape, limits, real, cache_update, cache=cache, grows=spelling == "split"),
    )
    of_graph, loose = attention_of(shape), unfused or {}
    return {
        spec.name: replace(
            spec,
            fused_attention=_fused(
                of_graph.get(spec.name, {}), loose.get(spec.name, ()), precision=precision, cache_update=cache_update
            ),
            profiles=spec.profiles or ((spec.dims,) if spec.dims else ()),
            quantization=quantized.get(spec.name),
            unfused=loose.get(spec.name, ()),
        )
        for spec in specs
    }


def attention_of(shape: ModelShape) -> dict[str, dict[Fusable, int]]:
    """Graphs with attention, and the number of each kind."""
    found: dict[str, dict[Fusable, int]] = {
        "trunk": {"spatial": shape.num_trunk_layers},
        "temporal": {"spatial": shape.num_temporal_layers, "temporal": shape.num_temporal_layers},
        "compressor": {"spatial": shape.num_compressor_attentions},
        "llm": {"llm": shape.num_llm_layers},
    }
    return {graph: kinds for graph, kinds in found.items() if any(kinds.values())}


def unfused_graphs(shape: ModelShape, parts: Collection[Fusable]) -> dict[str, tuple[Fusable, ...]]:
    """These parts in each graph, as `graph_specs(unfused=...)` takes them."""
    found = {graph: tuple(kind for kind in kinds if kind in parts) for graph, kinds in attention_of(shape).items()}
    return {graph: kinds for graph, kinds in found.items() if kinds}


def _fused(
    kinds: Mapping[Fusable, int], unfused: Collection[Fusable], *, precision: Precision, cache_update: CacheUpdate
) -> FusedAttention:
    """The fused attention required of a graph with these numbers of each kind."""
    num = {kind: 0 if kind in unfused else count for kind, count in kinds.items()}
    # No compiler fuses float32 attention over many rows; all of them do over one row.
    over_rows = 0 if precision == "fp32" else num.get("spatial", 0) + num.get("llm", 0)
    over_one = num.get("temporal", 0) + (num.get("llm", 0) if cache_update == "aliased" else 0)
    return FusedAttention(gemm=over_rows, gemv=over_one)


def _vision_specs(
    shape: ModelShape, limits: StreamLimits, real: str, spelling: Spelling, *, ring: str
) -> tuple[GraphSpec, ...]:
    tensor, batch = _batched(limits)
    trunk_features = tensor("trunk_features", real, shape.num_positions, shape.vision_width)
    features = tensor("features", real, shape.num_positions - 1, shape.vision_width)
    frame_time = tensor("frame_time", "float32")
    slot_mask = tensor("slot_mask", "bool", limits.window)
    row = (shape.num_positions, shape.vision_heads, shape.vision_head_dim)
    layout = "BWNHD" if spelling == "concat" else "BNHWD"
    rings = _states(shape.num_temporal_layers, ring, layout=layout, slot="W", order="ring", row=row)
    sizes = dict(zip("NHD", row, strict=True)) | {"W": limits.window}
    past = (
        tensor(state.input, state.dtype, *((sizes | {"D": _width(state, row)})[axis] for axis in layout[1:]))
        for state in rings
    )
    new = (tensor(state.output, state.dtype, *row[:-1], _width(state, row)) for state in rings)
    frame = tensor("frame", "uint8", shape.image_size, shape.image_size, 3)
    frame_embeds = tensor("frame_embeds", real, shape.num_frame_tokens, shape.llm_width)
    return (
        GraphSpec(name="trunk", inputs=(frame,), outputs=(trunk_features,), dims=batch),
        GraphSpec(
            name="temporal",
            inputs=(trunk_features, frame_time, slot_mask, *past),
            outputs=(features, *new),
            dims=batch,
            states=rings,
            num_times=limits.num_times,
        ),
        GraphSpec(
            name="compressor",
            inputs=(features, frame_time),
            outputs=(frame_embeds,),
            dims=batch,
            num_times=limits.num_times,
        ),
    )


def _language_specs(
    shape: ModelShape, limits: StreamLimits, real: str, cache_update: CacheUpdate, *, cache: str, grows: bool
) -> tuple[GraphSpec, ...]:
    tensor, batch = _batched(limits)
    rows = {"rows": DimRange(min=1, opt=min(shape.num_frame_tokens, limits.chunk), max=limits.chunk)}
    input_ids = tensor("input_ids", "int64", "rows")
    inputs_embeds = tensor("inputs_embeds", real, "rows", shape.llm_width)
    hidden = tensor("hidden", real, 1, shape.llm_width)
    logits = tensor("logits", "float32", shape.vocab_size)
    return (
        GraphSpec(name="embed", inputs=(input_ids,), outputs=(inputs_embeds,), dims={**batch, **rows}),
        _llm_spec(shape, limits, real, cache_update, rows, cache=cache, grows=grows),
        GraphSpec(name="head", inputs=(hidden,), outputs=(logits,), dims=batch),
    )


def _llm_spec(
    shape: ModelShape,
    limits: StreamLimits,
    real: str,
    cache_update: CacheUpdate,
    rows: dict[str, DimRange],
    *,
    cache: str,
    grows: bool,
) -> GraphSpec:
    """The LLM layers, with the profiles that measured best (docs/decisions/0006).

    rows     one profile: decode's query heads are rows of one attention, so one row gets the same kernel as many
    aliased  a second profile for one row, where attention reads the cache in place. Its batch goes to at least two, so
             it is dynamic even for one stream: for exactly one row every weight would be stored in a second layout
    grows    the graph is fed an aliased cache only up to a multiple of STEP: attention covers all that it is fed
    """
    aliased, streams = cache_update == "aliased", limits.streams
    tensor, batch = _batched(limits, always=aliased)
    row = (shape.num_kv_heads, shape.llm_head_dim)
    caches = _states(
        shape.num_llm_layers, cache, layout="BKSD" if aliased else "BSKD", slot="S", order="linear", row=row,
        update=cache_update,
    )  # fmt: skip
    dims = {**batch, **rows}
    heads: tuple[Dim, ...] = (row[0], "past" if grows else limits.context) if aliased else ("past", row[0])
    new_heads: tuple[Dim, ...] = heads if aliased else ("rows", row[0])
    place = tensor("write_index", "int64") if aliased else tensor("attention_mask", "int64", "past+rows")
    if grows and aliased:
        step = gcd(STEP, limits.context)
        usual = min(-(-(rows["rows"].opt + 1) // step) * step, limits.context)
        dims["past"] = DimRange(min=step, opt=usual, max=limits.context)
    elif not aliased:
        dims["past"] = DimRange(min=limits.bucket, opt=limits.bucket, max=limits.context)
    decode = {"rows": DimRange(min=1, opt=1, max=1), "batch": DimRange(min=1, opt=streams, max=max(streams, 2))}
    return GraphSpec(
        name="llm",
        inputs=(
            tensor("inputs_embeds", real, "rows", shape.llm_width),
            tensor("position_ids", "int64", "rows"),
            place,
            *(tensor(state.input, state.dtype, *heads, _width(state, row)) for state in caches),
        ),
        outputs=(
            tensor("hidden", real, 1, shape.llm_width),
            *(tensor(state.output, state.dtype, *new_heads, _width(state, row)) for state in caches),
        ),
        dims=dims,
        profiles=(dims, dims | decode) if aliased else (dims,),
        states=caches,
    )


def _batched(limits: StreamLimits, *, always: bool = False) -> tuple[Callable[..., TensorSpec], dict[str, DimRange]]:
    """A function that makes tensors with a batch as first dimension: fixed for one stream, dynamic for several."""
    dynamic = always or limits.streams > 1
    dim: Dim = "batch" if dynamic else 1
    ranges = {"batch": DimRange(min=1, opt=limits.streams, max=limits.streams)} if dynamic else {}

    def tensor(name: str, dtype: str, *dims: Dim) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=(dim, *dims))

    return tensor, ranges


def _states(
    num_layers: int,
    dtype: str,
    *,
    layout: str,
    slot: str,
    order: Literal["ring", "linear"],
    row: tuple[int, ...],
    update: CacheUpdate = "rows",
) -> tuple[StateSpec, ...]:
    """Keys and values of every layer; if they are codes, all their scales follow."""
    kinds: dict[str, tuple[Literal["values", "codes", "scales"], ...]] = {"int8": ("codes", "scales")}
    new = "present" if update == "aliased" else "new"
    return tuple(
        StateSpec(
            input=f"past.{name}",
            output=f"{new}.{name}",
            dtype="float32" if holds == "scales" else dtype,
            layout=layout,
            slot_axis=layout.index(slot),
            order=order,
            row_bytes=prod(row[:-1]) * 4 if holds == "scales" else prod(row) * ITEM_BYTES[dtype],
            update=update,
            holds=holds,
        )
        for holds in kinds.get(dtype, ("values",))
        for layer in range(num_layers)
        for part in ("key", "value")
        for name in [f"{layer}.{part}" + (SCALE if holds == "scales" else "")]
    )


def _width(state: StateSpec, row: tuple[int, ...]) -> int:
    """The last dimension of a state; scales have 1, since a head's values share one scale."""
    return 1 if state.holds == "scales" else row[-1]
