"""The contract between exporter and runtime: each graph's inputs, outputs and states.

A GraphSpec is the only place where the name of an input, an output or a dynamic dimension is spelled. The exporter
names tensors of its ONNX file by it, the builder makes its optimization profiles from it, a session binds by it, and
the runtime places cache rows by its StateSpecs.
A graph returns only what is new. The runtime owns every cache. It places the new rows itself or, if the target has an
operator for it, binds the cache as input and output at one address, and the graph writes the rows in place.

Dimension key:  B streams   S pixels per side   N positions: class token and patches   C vision width   W window
                M tokens per frame   E LLM width   H heads   K key/value heads   D head dim   V vocabulary
                S (of a cache) LLM rows it can hold
Dynamic dims:   batch (1..streams)   rows (new LLM rows in one pass)   past (LLM rows fed from the cache)
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from .errors import SpecError

Precision = Literal["fp32", "fp16", "bf16"]
Spelling = Literal["concat", "split"]
"""Spelling of attention in ONNX. Chosen per target, by measurement; the results are the same.

concat  join ring and new row, then one attention; ring (B, W, N, H, D): TensorRT fuses it and reads the ring in place
split   join the scores, never the caches; ring (B, N, H, W, D): ONNX Runtime's CPU copies nothing. Within a frame, head
        by head, so that scores stay in the CPU's cache. An LLM cache written in place: only over the rows in use
"""
CacheUpdate = Literal["rows", "aliased"]
"""Update of the LLM's cache with new rows. Chosen per target, by what its compiler supports (docs/decisions/0006).

rows     the graph returns them, the runtime copies them in; the past is fed in buckets, cache (B, S, K, D), opset 20
aliased  the graph scatters them into the cache it was given, cache (B, K, S, D), opset 24; decoding a token copies
         nothing. The whole capacity is fed, masked by the write index; spelled `split`, only the rows in use
"""
Dim = int | str
"""A fixed size, the name of a dynamic dimension, or a sum of such names: 'past+rows'."""

Part = Literal["vision", "llm", "head"]
"""Parts of a model that can be quantised: the matmuls of the graphs a frame passes on its way to the LLM, the LLM's
layers, and its head. Not the head to int4: that costs as much accuracy as all layers together (docs/numerics.md)."""
Fusable = Literal["spatial", "temporal", "llm"]
"""Attention that becomes one kernel, unless --unfuse forbids it: within a frame, over the ring, and the LLM's."""
State = Literal["ring", "cache"]
"""Parts of a stream's state that can be int8: keys and values of the temporal ring, and of the LLM."""
Method = Literal["round", "search"]
"""Choice of a block's scale and zero point, which determine its codes: each value takes the nearest code.

round   the block's largest value becomes the largest code
search  among that scale and some smaller ones, the one with the least squared error
"""
Inputs = Literal["float", "blocks", "rows", "tensor", "static"]
"""Arithmetic of a matmul with codes.

float   the graph's dtype: codes stand for weights, and nothing else is rounded
blocks  integers, if the runtime chooses so: the graph is as for `float`, but ONNX Runtime's CPU may round each block of
        each input row to int8, scaled by the block's largest value. Twice as fast as `float` at one row
rows    integers: each input row is rounded to int8 at run time, scaled by the row's largest value
tensor  the same with one scale for the whole input of a pass: faster, but coarser if rows differ in size
static  the same with one constant scale, found on frames beforehand (calibration). The graph has a QuantizeLinear and a
        DequantizeLinear before the matmul, and a DequantizeLinear for its codes, which TensorRT turns into one kernel
"""

CalibrationMethod = Literal["error", "max", "percentile"]
"""Choice of the one scale of a matmul's inputs from the values seen on frames (pvc_export/graphs/calibration.py).

error       the least squared error over all values
max         the largest value becomes the largest code
percentile  all but one in ten thousand fit
"""

Rounding = Literal["fp32", "fp16", "bf16", "int8"]
"""The coarsest rounding in the graphs of a bundle."""

FLOAT_OF: dict[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "int8": 1, "bool": 1}
VISION_GRAPHS = ("trunk", "temporal", "compressor")
GRAPH_NAMES = (*VISION_GRAPHS, "embed", "llm", "head")
GRAPHS_OF: dict[Part, tuple[str, ...]] = {"vision": VISION_GRAPHS, "llm": ("llm",), "head": ("head",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The sizes of a model, as far as its graphs depend on them. Written by the exporter, read by the runtime."""

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

    window   W: frames that temporal attention sees, including the current one; a ring has W slots
    context  LLM rows a stream can hold
    streams  streams a session can serve in one pass
    chunk    most LLM rows in one pass; longer prompts are fed in several passes
    bucket   the LLM cache is fed in multiples of this many rows, its unused tail masked
    num_times  frame times in the graphs' table, 0 .. num_times - 1; None: any time, computed
    """

    window: int = 8
    context: int = 2048
    streams: int = 1
    chunk: int = 256
    bucket: int = 256
    num_times: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value < 1:
                raise SpecError(f"limit {name} is {value}", expected="at least 1")
        if self.context % self.bucket:
            raise SpecError(
                f"context = {self.context} is not a multiple of bucket = {self.bucket}",
                fix=f"the next multiple is {-(-self.context // self.bucket) * self.bucket}",
            )


_name = functools.cache(str)
"""A dtype's name. NumPy composes it each time, and a pass of the LLM checks a tensor per cache."""


class HasShape(Protocol):
    """An array on the host or on a GPU."""

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
        return tuple(dim if isinstance(dim, int) else sum(map(dims.__getitem__, dim.split("+"))) for dim in self.shape)

    def check(self, array: HasShape, graph: str) -> None:
        """Raise SpecError unless `array` has this dtype and, in its fixed dimensions, this shape."""
        fits = len(array.shape) == len(self.shape) and all(
            not isinstance(want, int) or want == got for want, got in zip(self.shape, array.shape, strict=True)
        )
        if _name(array.dtype) != self.dtype or not fits:
            shape = ", ".join(map(str, self.shape))
            raise SpecError(
                f"graph '{graph}': tensor '{self.name}' is {array.dtype} {tuple(array.shape)}",
                expected=f"{self.dtype} ({shape})",
            )


SCALE = ".scale"
"""Suffix of a scale state's name, after the name of its codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """One cache: its tensors, and how its rows are placed.

    input, output  the graph reads the cache as `input` and returns the new rows, or the whole cache, as `output`
    layout         letters of the dimension key, one per axis; slot_axis is the axis of the rows
    order          ring: frame t goes to slot t % W.  linear: row p goes to index p
    update         rows: the runtime copies the returned rows into the cache
                   aliased: the graph has written them; input and output must be bound to one address
    row_bytes      bytes of one new row of one stream
    reset          the value of a fresh cache: zero, since even a masked NaN would remain NaN
    holds          values; or int8 codes, with a scale per row and head; or those scales, float32
    """

    input: str
    output: str
    dtype: str
    layout: str
    slot_axis: int
    order: Literal["ring", "linear"]
    row_bytes: int
    update: CacheUpdate = "rows"
    reset: float = 0.0
    holds: Literal["values", "codes", "scales"] = "values"

    def rows(self, start: int, count: int) -> tuple[slice, ...]:
        """The index of `count` rows from `start` on, in a cache on the host."""
        return (slice(None),) * self.slot_axis + (slice(start, start + count),)

    def as_rows(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A linear cache, or rows of it, as (B, rows, K, D) whatever its layout. A view."""
        return np.moveaxis(array, self.slot_axis, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DimRange:
    """Smallest, typical and largest size of a dynamic dimension."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedAttention:
    """Fused attention kernels required in an engine: `gemm` for many query rows, `gemv` for one (over time, decode).

    Counted over all its optimization profiles, since a compiler lists them together.
    """

    gemm: int = 0
    gemv: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """Storage of the weights of a part's matmuls. A matmul whose input is not a multiple of the block stays as is.

    bits         4: ONNX's DequantizeLinear of int4 codes, or of uint4 codes with zero points
                 8: int8 codes, multiplied by int8 inputs
    block        values along the input that share a scale and a zero point; None: all values of one output
    zero_points  each block stores the code that means 0; otherwise codes are signed and 0 means 0
    inputs       arithmetic of the matmul
    wide_codes   int8 codes for CPUs go up to 127 instead of 64: a CPU that adds int8 products in 16 bits would silently
                 saturate them (wide_sums.py)
    """

    bits: int = 4
    block: int | None
    zero_points: bool
    method: Method
    inputs: Inputs = "float"
    wide_codes: bool = False

    def __post_init__(self) -> None:
        if self.block is not None and (self.block < 16 or self.block & (self.block - 1)):
            raise SpecError(f"the quantisation block has {self.block} values", expected="a power of two, at least 16")
        if self.method not in get_args(Method):
            raise SpecError(f"quantisation method '{self.method}'", expected=f"one of {', '.join(get_args(Method))}")
        of_four = self.bits == 4 and self.block is not None and self.inputs in ("float", "blocks")
        fed_eight = self.inputs in ("rows", "tensor", "static")
        of_eight = self.bits == 8 and self.block is None and not self.zero_points and fed_eight
        if not (of_four or of_eight):
            raise SpecError(
                f"int{self.bits} weights, block {self.block}, zero points {self.zero_points}, inputs {self.inputs}",
                expected="int4 weights in blocks, inputs in float; or int8 weights and inputs, one scale per output",
            )

    @property
    def rounds_inputs(self) -> bool:
        return self.inputs != "float"

    @property
    def is_integer(self) -> bool:
        """Whether the graph itself multiplies integers, with MatMulInteger, and scales the results in float32.
        Otherwise codes stand for values in the graph's dtype, and a runtime may fuse that with the matmul or not."""
        return self.inputs in ("rows", "tensor")

    def fits(self, num_inputs: int) -> bool:
        """Whether a matmul with this many inputs can be stored this way."""
        return self.block is None or num_inputs % self.block == 0


def is_smoothed(quantization: Mapping[Part, Quantization]) -> bool:
    """Whether large values in the inputs of the LLM's matmuls are moved into their weights (graphs/smoothing.py)."""
    return "llm" in quantization and quantization["llm"].bits == 8


def is_calibrated(quantization: Mapping[Part, Quantization]) -> bool:
    """Whether any part of it is found beforehand, by running the model."""
    return is_smoothed(quantization) or any(how.inputs == "static" for how in quantization.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec:
    """One graph. Order of inputs and outputs is the order in the ONNX file.

    dims      sizes that the runtime may feed
    profiles  sizes an engine is compiled for, one optimization profile each; the last one that fits is used
    num_times  as in StreamLimits; also None for a graph without a clock
    quantization  how its matmuls store their weights; None: in the graph's dtype
    unfused   attention in it that no compiler may fuse
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: dict[str, DimRange]
    profiles: tuple[dict[str, DimRange], ...] = ()
    states: tuple[StateSpec, ...] = ()
    fused_attention: FusedAttention = FusedAttention()
    num_times: int | None = None
    quantization: Quantization | None = None
    unfused: tuple[Fusable, ...] = ()

    def profile_shapes(
        self, tensor: TensorSpec, profile: dict[str, DimRange]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(min, opt, max) shapes of an input in one optimization profile."""
        low, mid, high = ({name: getattr(rng, end) for name, rng in profile.items()} for end in ("min", "opt", "max"))
        return tensor.resolve(low), tensor.resolve(mid), tensor.resolve(high)

    def sizes(self, inputs: Mapping[str, HasShape]) -> dict[str, int]:
        """The size of every dynamic dimension of these inputs, by name."""
        pairs = (zip(tensor.shape, inputs[tensor.name].shape, strict=True) for tensor in self.inputs)
        return {dim: size for pair in pairs for dim, size in pair if isinstance(dim, str)}

    def profile_index(self, sizes: dict[str, int]) -> int:
        """The last profile that fits every dynamic dimension. Raises SpecError if none does."""
        for index in reversed(range(len(self.profiles))):
            if all(rng.min <= sizes[name] <= rng.max for name, rng in self.profiles[index].items()):
                return index
        raise SpecError(
            f"graph '{self.name}': sizes {sizes} fit none of its profiles", expected=f"sizes of {self.profiles}"
        )

    @property
    def real_dtype(self) -> str:
        """The dtype it computes in, except in its float32 islands."""
        return next(x.dtype for x in (*self.inputs, *self.outputs) if x.dtype in FLOAT_OF.values())

    @property
    def aliases(self) -> dict[str, str]:
        """Outputs that must share an input's memory: the caches that the graph updates in place."""
        return {state.output: state.input for state in self.states if state.update == "aliased"}

    @property
    def row_states(self) -> tuple[StateSpec, ...]:
        """The states with keys and values, by layer, without scales."""
        return tuple(state for state in self.states if state.holds != "scales")

    def state_bytes(self, limits: StreamLimits) -> int:
        """Bytes of one stream's caches."""
        slots = {"ring": limits.window, "linear": limits.context}
        return sum(state.row_bytes * slots[state.order] for state in self.states)

    @property
    def row_bytes(self) -> int:
        """Bytes that one new frame or row of a stream writes into its caches."""
        return sum(state.row_bytes for state in self.states)

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, self.name)

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, self.name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> GraphSpec:
        """The inverse of to_json. Raises SpecError for invalid data."""
        try:
            return GraphSpec(
                name=data["name"],
                inputs=tuple(TensorSpec(**t | {"shape": tuple(t["shape"])}) for t in data["inputs"]),
                outputs=tuple(TensorSpec(**t | {"shape": tuple(t["shape"])}) for t in data["outputs"]),
                dims=_ranges(data["dims"]),
                profiles=tuple(_ranges(profile) for profile in data["profiles"]),
                states=tuple(StateSpec(**s) for s in data["states"]),
                fused_attention=FusedAttention(**data["fused_attention"]),
                num_times=data.get("num_times"),  # absent in older bundles, which compute any time
                quantization=Quantization(**found) if (found := data.get("quantization")) else None,
                unfused=tuple(data.get("unfused", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"this is not a graph specification: {error}") from error


def _named(tensors: tuple[TensorSpec, ...], name: str, graph: str) -> TensorSpec:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise SpecError(f"graph '{graph}' has no tensor '{name}'", expected=f"one of {', '.join(t.name for t in tensors)}")


def _ranges(data: dict[str, Any]) -> dict[str, DimRange]:
    return {name: DimRange(**rng) for name, rng in data.items()}
