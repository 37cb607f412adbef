"""The contract between exporter and runtime: what each graph takes, returns and remembers.

A GraphSpec is the only place where the name of an input, an output or a dynamic dimension is spelled. The exporter
names its ONNX file by it, the builder makes its optimization profiles from it, a session binds by it, and the runtime
places cache rows by its StateSpecs.
A graph returns only what is new. The runtime owns every cache: it places the new rows itself, or, where the target has
an operator for it, binds the cache as input and output at one address, and the graph writes rows in place.

Dimension key:  B streams   S pixels a side   N positions: class token and patches   C vision width   W window
                M tokens a frame   E LLM width   H heads   K key/value heads   D head dim   V vocabulary
                S (of a cache) LLM rows it can hold
Dynamic dims:   batch (1..streams)   rows (new LLM rows in one pass)   past (LLM rows fed from the cache)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from .errors import SpecError

Precision = Literal["fp32", "fp16", "bf16"]
Spelling = Literal["concat", "split"]
"""How attention is written down. The target decides, by measurement; the numbers are the same.

concat  join ring and new row, then one attention; ring (B, W, N, H, D): TensorRT fuses it and reads the ring in place
split   join the scores, never the caches; ring (B, N, H, W, D): ONNX Runtime's CPU copies nothing. Within a frame, head
        by head: scores stay in the CPU's cache. An LLM cache that is written in place: over the rows that are there
"""
CacheUpdate = Literal["rows", "aliased"]
"""How new rows of the LLM get into its cache. The target decides, by what its compiler has (docs/decisions/0006).

rows     the graph returns them, the runtime copies them in; the past is fed in buckets, cache (B, S, K, D), opset 20
aliased  the graph scatters them into the cache it was given, cache (B, K, S, D), opset 24; one decoded token copies
         nothing. The whole capacity is fed, masked by the index that is written to; spelled `split`, only what is there
"""
Dim = int | str
"""A fixed size, the name of a dynamic dimension, or a sum of such names: 'past+rows'."""

Part = Literal["vision", "llm", "head"]
"""What of a model can be held in few bits: the products of everything that a frame passes on its way to the LLM, of
the LLM its layers, and its head. That not in four: they cost as much as in all layers together (docs/numerics.md)."""
Fusable = Literal["spatial", "temporal", "llm"]
"""Attention that becomes one kernel, unless --unfuse says otherwise: within a frame, over the ring, and the LLM's."""
State = Literal["ring", "cache"]
"""What of a stream's state can be held in eight bits: the keys and values of the temporal ring, and of the LLM."""
Method = Literal["round", "search"]
"""How the codes of a block are found. The scale and the zero point decide, for each value takes the nearest code.

round   the block's largest value is the largest code
search  of that scale and some smaller ones, the one that leaves the least squared error
"""
Inputs = Literal["float", "blocks", "rows", "tensor", "static"]
"""What a product with codes computes in.

float   the graph's dtype: codes stand for weights, and nothing but those is rounded
blocks  whole numbers where the runtime likes: the graph says `float`, and ONNX Runtime's CPU may round each block of
        each row that it is fed to eight bits, by its own largest value. Twice as fast as `float` at one row
rows    whole numbers: each row that it is fed is rounded to eight bits, by its own largest value, as it comes
tensor  the same with one scale for all that it is fed in a pass: faster, and coarser where rows differ in size
static  the same with one scale for ever, found ahead on frames (calibration). The graph has a QuantizeLinear and a
        DequantizeLinear before the product, and another of its codes: what TensorRT makes one kernel of
"""

CalibrationMethod = Literal["error", "max", "percentile"]
"""How the one scale of a product's inputs is chosen, of the values seen on frames (pvc_export/graphs/calibration.py).

error       the least squared error over all of them
max         the largest becomes the largest code
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
    num_times  frame times that the graphs know, 0 .. num_times - 1, as a table; None: any, computed
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
                fix=f"the next one is {-(-self.context // self.bucket) * self.bucket}",
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
                f"graph '{graph}': tensor '{self.name}' is {array.dtype} {tuple(array.shape)}",
                expected=f"{self.dtype} ({shape})",
            )


SCALE = ".scale"
"""What the name of a state of scales ends with, behind that of its codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateSpec:
    """One cache: which tensors carry it and how its rows are placed.

    input, output  the graph reads the cache as `input` and returns the new rows, or the whole cache, as `output`
    layout         letters of the dimension key, one per axis; slot_axis is where rows go
    order          ring: frame t goes to slot t % W.  linear: row p goes to index p
    update         rows: the runtime copies the returned rows into the cache
                   aliased: the graph has written them; input and output must be bound to one address
    row_bytes      bytes of one new row of one stream
    reset          the value of a fresh cache: zero, since even a masked NaN would stay NaN
    holds          values; or codes of eight bits, of which each row and head has a scale; or those scales, float32
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
        """A linear cache, or rows of one, as (B, rows, K, D) whatever its layout. A view."""
        return np.moveaxis(array, self.slot_axis, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DimRange:
    """Smallest, typical and largest size of a dynamic dimension."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedAttention:
    """Fused attention kernels that an engine must have: `gemm` for many query rows, `gemv` for one (over time, decode).

    Over all of its optimization profiles together, since a compiler lists them together.
    """

    gemm: int = 0
    gemv: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How the weights of a part's products are held. A product whose input is no multiple of the block stays as it is.

    bits         4: ONNX's DequantizeLinear of int4 codes, or of uint4 ones where there are zero points
                 8: int8 codes, multiplied with inputs of eight bits
    block        values along the input that share a scale, and a zero point; None: all that make one output
    zero_points  each block has the code that means 0; without, codes are signed and 0 means 0
    inputs       what the product computes in
    wide_codes   codes of eight bits that a CPU multiplies go to 127 and not to 64: one that adds such products in 16
                 bits cuts them off, without a word (session.py)
    """

    bits: int = 4
    block: int | None
    zero_points: bool
    method: Method
    inputs: Inputs = "float"
    wide_codes: bool = False

    def __post_init__(self) -> None:
        if self.block is not None and (self.block < 16 or self.block & (self.block - 1)):
            raise SpecError(f"a block of {self.block} values", expected="a power of two, at least 16")
        if self.method not in get_args(Method):
            raise SpecError(f"quantization by '{self.method}'", expected=f"one of {', '.join(get_args(Method))}")
        of_four = self.bits == 4 and self.block is not None and self.inputs in ("float", "blocks")
        fed_eight = self.inputs in ("rows", "tensor", "static")
        of_eight = self.bits == 8 and self.block is None and not self.zero_points and fed_eight
        if not (of_four or of_eight):
            raise SpecError(
                f"{self.bits} bits, block {self.block}, zero points {self.zero_points}, inputs {self.inputs}",
                expected="4 bits in blocks and inputs in floating point, or 8 bits of both and one scale an output",
            )

    @property
    def rounds_inputs(self) -> bool:
        return self.inputs != "float"

    @property
    def is_integer(self) -> bool:
        """Whether the graph itself multiplies whole numbers, by MatMulInteger, and scales what comes of it in float32.
        In the others codes stand for values in the graph's dtype, and a runtime may or may not join that with the
        product."""
        return self.inputs in ("rows", "tensor")

    def fits(self, num_inputs: int) -> bool:
        """Whether a product of so many inputs can be held so."""
        return self.block is None or num_inputs % self.block == 0


def is_smoothed(quantization: Mapping[Part, Quantization]) -> bool:
    """Whether what is large in the inputs of the LLM's products moves into their weights (graphs/smoothing.py)."""
    return "llm" in quantization and quantization["llm"].bits == 8


def is_calibrated(quantization: Mapping[Part, Quantization]) -> bool:
    """Whether something of it is found ahead, by running the model."""
    return is_smoothed(quantization) or any(how.inputs == "static" for how in quantization.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec:
    """One graph. Order of inputs and outputs is the order in the ONNX file.

    dims      what the runtime may feed
    profiles  what an engine is compiled for, one optimization profile each; the last that fits is the one to use
    num_times  as in StreamLimits; None too for a graph without a clock
    quantization  how its products hold their weights; None in the graph's own dtype
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

    def profile_index(self, sizes: dict[str, int]) -> int:
        """The last profile in which every dynamic dimension has its size. Raises SpecError if none fits."""
        for index in reversed(range(len(self.profiles))):
            if all(rng.min <= sizes[name] <= rng.max for name, rng in self.profiles[index].items()):
                return index
        raise SpecError(
            f"graph '{self.name}': sizes {sizes} fit in none of its profiles", expected=f"sizes of {self.profiles}"
        )

    @property
    def real_dtype(self) -> str:
        """What it computes in, but for its float32 islands."""
        return next(x.dtype for x in (*self.inputs, *self.outputs) if x.dtype in FLOAT_OF.values())

    @property
    def aliases(self) -> dict[str, str]:
        """Outputs that must lie where an input lies: the caches that the graph updates in place."""
        return {state.output: state.input for state in self.states if state.update == "aliased"}

    @property
    def row_states(self) -> tuple[StateSpec, ...]:
        """The states that hold keys and values, by layer, without the scales of some."""
        return tuple(state for state in self.states if state.holds != "scales")

    def state_bytes(self, limits: StreamLimits) -> int:
        """Bytes of one stream's caches."""
        slots = {"ring": limits.window, "linear": limits.context}
        return sum(state.row_bytes * slots[state.order] for state in self.states)

    @property
    def row_bytes(self) -> int:
        """What one new frame or row of a stream writes into its caches."""
        return sum(state.row_bytes for state in self.states)

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
                dims=_ranges(data["dims"]),
                profiles=tuple(_ranges(profile) for profile in data["profiles"]),
                states=tuple(StateSpec(**s) for s in data["states"]),
                fused_attention=FusedAttention(**data["fused_attention"]),
                num_times=data.get("num_times"),  # bundles before it compute any time
                quantization=Quantization(**found) if (found := data.get("quantization")) else None,
                unfused=tuple(data.get("unfused", ())),
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
    raise SpecError(f"graph '{graph}' has no tensor '{name}'", expected=f"one of {', '.join(t.name for t in tensors)}")


def _ranges(data: dict[str, Any]) -> dict[str, DimRange]:
    return {name: DimRange(**rng) for name, rng in data.items()}


def _tensor_from_json(data: dict[str, Any]) -> TensorSpec:
    return TensorSpec(name=data["name"], dtype=data["dtype"], shape=tuple(data["shape"]))
