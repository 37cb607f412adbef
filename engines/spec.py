"""The contract between exporter and runtime: what each graph takes, returns and remembers.

A GraphSpec is the only place where the name of an input, an output or a dynamic dimension is spelled. The exporter
names its ONNX file by it, the builder makes its optimization profile from it, a session binds by it, and the runtime
places cache rows by its StateSpecs.
Unusual: a graph returns only what is new. It never returns a cache; the runtime owns every cache and puts new rows in.

Dimension key:  B streams   S pixels a side   N positions: class token and patches   C vision width   W window
                M tokens a frame   E LLM width   H heads   K key/value heads   D head dim   V vocabulary
Dynamic dims:   batch (1..streams)   rows (new LLM rows in one pass)   past (LLM rows fed from the cache)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from .errors import SpecError

Precision = Literal["fp32", "fp16", "bf16"]
Spelling = Literal["concat", "split"]
"""How attention in the ViT is written down. The target decides, by measurement; the numbers are the same.

concat  join ring and new row, then one attention; ring (B, W, N, H, D): TensorRT fuses it and reads the ring in place
split   join the scores, never the caches; ring (B, N, H, W, D): ONNX Runtime's CPU copies nothing. Within a frame, head
        by head: scores stay in the CPU's cache
"""
Dim = int | str
"""A fixed size, the name of a dynamic dimension, or a sum of such names: 'past+rows'."""

FLOAT_OF: dict[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "bool": 1}
VISION_GRAPHS = ("trunk", "temporal", "compressor")
GRAPH_NAMES = (*VISION_GRAPHS, "embed", "llm", "head")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes of a model, as far as its graphs show them. Written by the exporter, read by the runtime."""

    image_size: int
    num_positions: int
    vision_width: int
    num_trunk_layers: int
    num_temporal_layers: int
    vision_heads: int
    vision_head_dim: int
    num_frame_tokens: int
    num_compressor_attentions: int
    llm_width: int
    num_llm_layers: int
    num_kv_heads: int
    llm_head_dim: int
    vocab_size: int
    max_positions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamLimits:
    """Capacities, chosen once at export and fixed in every graph and cache.

    window   W: frames that temporal attention sees, the current one included; so a ring keeps W slots
    context  LLM rows a stream can hold
    streams  streams a session can serve in one pass
    chunk    most LLM rows in one pass; longer prompts are fed in pieces
    bucket   the LLM cache is fed in multiples of this many rows, its unused tail masked
    """

    window: int = 8
    context: int = 2048
    streams: int = 1
    chunk: int = 256
    bucket: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise SpecError(f"limit {name} is {value}, expected at least 1")
        if self.context % self.bucket:
            raise SpecError(
                f"context = {self.context} is not a multiple of bucket = {self.bucket}; "
                f"the next one is {-(-self.context // self.bucket) * self.bucket}"
            )


class HasShape(Protocol):
    """An array of the host or of a GPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output: its name, dtype and shape."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def resolve(self, dims: dict[str, int]) -> tuple[int, ...]:
        """The shape with every dynamic dimension replaced by its size."""
        return tuple(evaluate(dim, dims) for dim in self.shape)

    def check(self, array: HasShape, graph: str) -> None:
        """Raise SpecError unless `array` has this dtype and, in its fixed dims, this shape."""
        fits = len(array.shape) == len(self.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(self.shape, array.shape, strict=True)
        )
        if str(array.dtype) != self.dtype or not fits:
            shape = ", ".join(map(str, self.shape))
            raise SpecError(
                f"graph '{graph}': tensor '{self.name}' is {array.dtype} {tuple(array.shape)}, expected {self.dtype} "
                f"({shape})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """One cache: which tensors carry it and how its rows are placed.

    input, output  the graph reads the cache as `input` and returns the new rows as `output`
    layout         letters of the dimension key, one an axis; slot_axis is where rows go
    order          ring: frame t goes to slot t % W.  linear: row p goes to index p
    update         rows: the runtime copies the returned rows into the cache
    row_bytes      bytes of one new row of one stream
    reset          the value of a fresh cache: zero, since even a masked NaN would stay NaN
    """

    input: str
    output: str
    dtype: str
    layout: str
    slot_axis: int
    order: Literal["ring", "linear"]
    row_bytes: int
    update: Literal["rows"] = "rows"
    reset: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DimRange:
    """Smallest, typical and largest size of a dynamic dimension."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedAttention:
    """Fused attention kernels that an engine must have: `gemm` for many query rows, `gemv` for one (over time)."""

    gemm: int = 0
    gemv: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec:
    """One graph. Order of inputs and outputs is the order in the ONNX file."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[str, DimRange]
    states: tuple[StateSpec, ...] = ()
    fused_attention: FusedAttention = FusedAttention()

    def profile(self, tensor: TensorSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(min, opt, max) shapes of an input, for an optimization profile."""
        low, mid, high = ({name: getattr(rng, end) for name, rng in self.dims.items()} for end in ("min", "opt", "max"))
        return tensor.resolve(low), tensor.resolve(mid), tensor.resolve(high)

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, self.name)

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, self.name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> GraphSpec:
        """The inverse of to_json. Raises SpecError for anything else."""
        try:
            return GraphSpec(
                name=data["name"],
                inputs=tuple(_tensor_from_json(t) for t in data["inputs"]),
                outputs=tuple(_tensor_from_json(t) for t in data["outputs"]),
                dims={name: DimRange(**rng) for name, rng in data["dims"].items()},
                states=tuple(StateSpec(**s) for s in data["states"]),
                fused_attention=FusedAttention(**data["fused_attention"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"this is not a graph specification: {error}") from error


def evaluate(dim: Dim, dims: dict[str, int]) -> int:
    """The size of one dimension, given the sizes of the dynamic ones."""
    return dim if isinstance(dim, int) else sum(dims[name] for name in dim.split("+"))


def _named(tensors: tuple[TensorSpec, ...], name: str, graph: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise SpecError(f"graph '{graph}' has no tensor '{name}'; it has {', '.join(t.name for t in tensors)}")


def _tensor_from_json(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(name=data["name"], dtype=data["dtype"], shape=tuple(data["shape"]))


def graph_specs(
    shape: ModelShape, limits: StreamLimits, precision: Precision, spelling: Spelling = "concat"
) -> dict[str, GraphSpec]:
    """The six graphs of a model, by name, in the order in which a frame and then its text pass through them."""
    real = FLOAT_OF[precision]
    specs = (*_vision_specs(shape, limits, real, spelling), *_language_specs(shape, limits, real))
    # No compiler fuses float32 attention over many rows; over one row all do.
    rows = 0 if precision == "fp32" else 1
    fused = {
        "trunk": FusedAttention(gemm=rows * shape.num_trunk_layers),
        "temporal": FusedAttention(gemm=rows * shape.num_temporal_layers, gemv=shape.num_temporal_layers),
        "compressor": FusedAttention(gemm=rows * shape.num_compressor_attentions),
        "llm": FusedAttention(gemm=rows * shape.num_llm_layers),
    }
    return {spec.name: replace(spec, fused_attention=fused.get(spec.name, FusedAttention())) for spec in specs}


def _vision_specs(shape: ModelShape, limits: StreamLimits, real: str, spelling: Spelling) -> tuple[GraphSpec, ...]:
    tensor, batch = _batched(limits)
    trunk_features = tensor("trunk_features", real, shape.num_positions, shape.vision_width)
    features = tensor("features", real, shape.num_positions - 1, shape.vision_width)
    frame_time = tensor("frame_time", "float32")
    slot_mask = tensor("slot_mask", "bool", limits.window)
    row = (shape.num_positions, shape.vision_heads, shape.vision_head_dim)
    layout = "BWNHD" if spelling == "concat" else "BNHWD"
    rings = _states(shape.num_temporal_layers, real, layout=layout, slot="W", order="ring", row=row)
    sizes = dict(zip("NHD", row, strict=True)) | {"W": limits.window}
    past = (tensor(state.input, real, *(sizes[axis] for axis in layout[1:])) for state in rings)
    new = (tensor(state.output, real, *row) for state in rings)
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
        ),
        GraphSpec(name="compressor", inputs=(features, frame_time), outputs=(frame_embeds,), dims=batch),
    )


def _language_specs(shape: ModelShape, limits: StreamLimits, real: str) -> tuple[GraphSpec, ...]:
    tensor, batch = _batched(limits)
    rows = {"rows": DimRange(min=1, opt=min(shape.num_frame_tokens, limits.chunk), max=limits.chunk)}
    buckets = {"past": DimRange(min=limits.bucket, opt=limits.bucket, max=limits.context)}
    input_ids = tensor("input_ids", "int64", "rows")
    inputs_embeds = tensor("inputs_embeds", real, "rows", shape.llm_width)
    position_ids = tensor("position_ids", "int64", "rows")
    attention_mask = tensor("attention_mask", "int64", "past+rows")
    hidden = tensor("hidden", real, 1, shape.llm_width)
    row = (shape.num_kv_heads, shape.llm_head_dim)
    caches = _states(shape.num_llm_layers, real, layout="BSKD", slot="S", order="linear", row=row)
    past = (tensor(state.input, real, "past", *row) for state in caches)
    new = (tensor(state.output, real, "rows", *row) for state in caches)
    return (
        GraphSpec(name="embed", inputs=(input_ids,), outputs=(inputs_embeds,), dims={**batch, **rows}),
        GraphSpec(
            name="llm",
            inputs=(inputs_embeds, position_ids, attention_mask, *past),
            outputs=(hidden, *new),
            dims={**batch, **rows, **buckets},
            states=caches,
        ),
        GraphSpec(
            name="head",
            inputs=(hidden,),
            outputs=(tensor("logits", "float32", shape.vocab_size),),
            dims=batch,
        ),
    )


def _batched(limits: StreamLimits) -> tuple[Callable[..., TensorSpec], dict[str, DimRange]]:
    """A maker of tensors whose first dimension is the batch: fixed for one stream, dynamic for several."""
    dim: Dim = "batch" if limits.streams > 1 else 1
    ranges = {"batch": DimRange(min=1, opt=limits.streams, max=limits.streams)} if limits.streams > 1 else {}

    def tensor(name: str, dtype: str, *dims: Dim) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=(dim, *dims))

    return tensor, ranges


def _states(
    num_layers: int, dtype: str, *, layout: str, slot: str, order: Literal["ring", "linear"], row: tuple[int, ...]
) -> tuple[StateSpec, ...]:
    row_bytes = int(np.prod(row)) * ITEM_BYTES[dtype]
    return tuple(
        StateSpec(
            input=f"past.{layer}.{part}",
            output=f"new.{layer}.{part}",
            dtype=dtype,
            layout=layout,
            slot_axis=layout.index(slot),
            order=order,
            row_bytes=row_bytes,
        )
        for layer in range(num_layers)
        for part in ("key", "value")
    )
