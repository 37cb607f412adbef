"""Bytes of a graph's files, .onnx and .data together: its weights, its constants, and its nodes.

A node takes about 300 bytes with its names and notes (graphs/notes.py). Layers of one kind have the same nodes, so each
takes a fixed number of bytes. The figures are fitted to exports by torch 2.13, onnxscript 0.7, and off by at most 1 %
of them. Whether data is in the .onnx or in the .data file does not matter here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engines.spec import GraphSpec, Inputs
from engines.target import Target
from pvc_ref import PVC, PVCConfig

from ..graphs.modules import graph_parameters
from ..graphs.quantize import is_coded


@dataclass(frozen=True, slots=True)
class Nodes:
    """Bytes of nodes: in the graph, per layer, and per head of a layer if attention is written head by head."""

    graph: int
    layer: int = 0
    head: int = 0


@dataclass(frozen=True, slots=True)
class Products:
    """Number of matmuls in a graph, and in each of its layers, after those with the same input are joined."""

    graph: int = 0
    layer: int = 0


# Keys: graph; spelling, cache update or kind of compressor; whether the graph is narrower than float32, which adds
# casts.
NODES: dict[tuple[str, str, bool], Nodes] = {
    ("trunk", "split", False): Nodes(5463, 10243, 3320),
    ("trunk", "split", True): Nodes(6372, 13005, 4408),
    ("trunk", "concat", False): Nodes(6372, 17183),
    ("trunk", "concat", True): Nodes(6601, 20657),
    ("temporal", "split", False): Nodes(5200, 47500, 3471),
    ("temporal", "split", True): Nodes(8776, 53915, 4669),
    ("temporal", "concat", False): Nodes(8736, 49261),
    ("temporal", "concat", True): Nodes(8894, 56124),
    ("compressor", "pvc", False): Nodes(18827),
    ("compressor", "pvc", True): Nodes(20432),
    ("compressor", "pixel_shuffle", False): Nodes(6045),
    ("compressor", "pixel_shuffle", True): Nodes(7087),
    ("compressor", "pool", False): Nodes(4761),
    ("compressor", "pool", True): Nodes(5024),
    ("compressor", "conv", False): Nodes(7068),
    ("compressor", "conv", True): Nodes(8100),
    ("compressor", "q_former", False): Nodes(8786, 26360),
    ("compressor", "q_former", True): Nodes(10688, 32064),
    ("llm", "aliased", False): Nodes(17221, 32543),
    ("llm", "aliased", True): Nodes(19189, 35327),
    ("llm", "grows", False): Nodes(18220, 24258),
    ("llm", "grows", True): Nodes(20906, 28176),
    ("llm", "rows", False): Nodes(18675, 36863),
    ("llm", "rows", True): Nodes(20600, 40911),
    ("embed", "", False): Nodes(986),
    ("embed", "", True): Nodes(986),
    ("head", "", False): Nodes(1595),
    ("head", "", True): Nodes(2073),
}
TABLE_SAVES = {"temporal": Nodes(2658, 3592), "compressor": Nodes(4210)}
"""Saved if the clock is a table, which has fewer nodes."""
BATCH_ADDS = {
    "trunk": Nodes(1816, 221), "temporal": Nodes(1676, 683), "compressor": Nodes(312), "embed": Nodes(104),
    "head": Nodes(106), "llm": Nodes(6810, 955),
}  # fmt: skip
"""Added for a batch of several streams: the batch is dynamic and the graph reads its size. For the LLM, when its cache
is updated in place."""
CODES_ADD: dict[Inputs, int] = {"float": 270, "blocks": 270, "tensor": 1060, "rows": 1480, "static": 2110}
ZERO_POINTS_ADD = 130
"""Added per matmul with a quantised matrix: its nodes, by the form of its input, and constants."""
STATES_ADD = {("temporal", False): 15708, ("temporal", True): 19827, ("llm", False): 15546, ("llm", True): 20198}
"""Added per layer whose keys and values are cached in int8. Keys: graph; whether it is narrow."""
PRODUCTS = {
    "trunk": Products(layer=4), "temporal": Products(layer=9), "llm": Products(layer=4), "head": Products(1),
}  # fmt: skip
"""Matmuls of graphs whose weights may be quantised. The compressor's depend on its kind."""
COMPRESSOR_PRODUCTS = {"pvc": Products(5), "q_former": Products(1, layer=7)}
MLP_PRODUCTS = Products(2)
"""Matmuls of the other kinds of compressor."""
NO_LAYERS = 2266
"""The temporal graph of a model without temporal layers, which passes its features on."""


def graph_bytes(model: PVC, spec: GraphSpec, target: Target) -> int:
    """Size of a graph's files. `model` is cast (graphs/precision.py), and may be on `meta`."""
    config, num_layers = model.config, layers_of(model.config, spec.name)
    if spec.name == "temporal" and not num_layers:
        return NO_LAYERS
    variant = variant_of(config, spec, target)
    parts = [NODES[spec.name, variant, is_narrow(spec)]]
    if not spec.aliases and "batch" in spec.dims:
        parts.append(BATCH_ADDS[spec.name])
    num_bytes = weight_bytes(model, spec) + constant_bytes(config, spec, variant)
    for part in parts:
        num_bytes += part.graph + num_layers * (part.layer + part.head * config.vision.num_heads)
    if (how := spec.quantization) is not None:
        added = CODES_ADD[how.inputs] + (ZERO_POINTS_ADD if how.zero_points else 0)
        products = _products(config, spec.name)
        num_bytes += (products.graph + products.layer * num_layers) * added
    if spec.row_states != spec.states:
        num_bytes += num_layers * STATES_ADD[spec.name, is_narrow(spec)]
    if spec.num_times is not None:
        num_bytes -= TABLE_SAVES[spec.name].graph + num_layers * TABLE_SAVES[spec.name].layer
    return num_bytes


def _products(config: PVCConfig, graph: str) -> Products:
    if graph == "compressor":
        return COMPRESSOR_PRODUCTS.get(config.compressor.kind, MLP_PRODUCTS)
    return PRODUCTS[graph]


def weight_bytes(model: PVC, spec: GraphSpec) -> int:
    return sum(held_bytes(name, weight, spec) for name, weight in graph_parameters(model, spec).items())


def widened_bytes(model: PVC, spec: GraphSpec) -> int:
    """Size of a graph's weights with everything except codes in float32, as in ONNX Runtime on a CPU."""
    return sum(
        held_bytes(name, weight, spec) if spec.quantization and is_coded(name, weight, spec) else 4 * weight.numel()
        for name, weight in graph_parameters(model, spec).items()
    )


def held_bytes(name: str, weight: Tensor, spec: GraphSpec) -> int:
    """Size of a weight in the graph. Codes take half a byte or one byte each; each block has a scale and, with zero
    points, half a byte."""
    how = spec.quantization
    if how is None or not is_coded(name, weight, spec):
        return bytes_of(weight)
    num_blocks = weight.numel() // (how.block or weight.shape[1])
    scale_bytes = 4 if how.is_integer else weight.element_size()
    return weight.numel() * how.bits // 8 + num_blocks * scale_bytes + (num_blocks // 2 if how.zero_points else 0)


def bytes_of(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def is_narrow(spec: GraphSpec) -> bool:
    """Whether a graph computes in less than float32."""
    return any(tensor.dtype in ("float16", "bfloat16") for tensor in (*spec.inputs, *spec.outputs))


def variant_of(config: PVCConfig, spec: GraphSpec, target: Target) -> str:
    """The form of a graph, as used in NODES."""
    if spec.name in ("trunk", "temporal"):
        return target.spelling
    grows = bool(spec.aliases) and "past" in spec.dims
    return {
        "compressor": config.compressor.kind,
        "llm": "grows" if grows else "aliased" if spec.aliases else "rows",
    }.get(spec.name, "")


def layers_of(config: PVCConfig, graph: str) -> int:
    """Number of repeated layers in a graph."""
    vision = config.vision
    return {
        "trunk": vision.num_trunk_layers,
        "temporal": vision.num_temporal_layers,
        "compressor": config.compressor.num_q_former_layers if config.compressor.kind == "q_former" else 0,
        "llm": config.llm.num_layers,
    }.get(graph, 0)


def constant_bytes(config: PVCConfig, spec: GraphSpec, variant: str) -> int:
    """Size of constants that are not weights: clock frequencies, ones for a norm without weights, cache row indices."""
    vision = config.vision
    clock = 2 * vision.sinusoid_size if spec.num_times is None else 0
    num_tokens = config.compressor.num_tokens
    match spec.name:
        case "temporal":
            return clock + 4 * vision.hidden_size
        case "compressor" if config.compressor.kind == "pvc":
            return clock + 4 * vision.num_patches // num_tokens * vision.hidden_size
        case "compressor" if config.compressor.kind == "pool":
            return 4 * num_tokens * vision.num_patches
        case "llm" if variant == "aliased":
            context = spec.input(spec.states[0].input).shape[spec.states[0].slot_axis]
            return 8 * int(context)
    return 0
