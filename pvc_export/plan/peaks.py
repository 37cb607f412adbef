"""Peak memory and time of an export, its build, its check and a run on a CPU: formulas fitted to measurements.

A peak is the largest resident size of a process (Linux's VmHWM), packages included. The formulas are meant to be a
little too high: `python -m pvc_export.studies.plan` prints both, and docs/performance.md has the table. Times are rough
and from that machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.spec import GRAPH_NAMES
from engines.threads import LARGE_BYTES, SMALL_BYTES
from pvc_ref import PVC

from ..bundles.export import ExportRequest
from ..graphs.joined import PARTS
from ..graphs.machine import is_small
from ..parity.by_layer.check import BYTES_A_WEIGHT
from .bundle import BundlePlan
from .graph_files import layers_of, widened_bytes

MEASURED_ON = "2 slow cores"
MB = 1_000_000

PACKAGES, BUILDER = 310 * MB, 115 * MB
"""The imported packages: torch, onnx, onnxscript and the rest; TensorRT-RTX."""
TRACING, TRACING_A_LAYER = 165 * MB, 8 * MB
"""Memory of the exporter besides weights; the second per layer of the deepest graph."""
BUILDING, BUILDING_A_BYTE = 155 * MB, 3.3
"""Memory of the builder besides weights, and its number of copies of the weights of the graph that it builds."""
WRITING, WRITING_NARROW = 2.1, 1.15
"""For a large model: copies of the largest matrix while it is written, in float32 bytes."""
CHECKING, CHECKING_A_LAYER, CHECKING_A_BYTE = 285 * MB, 16 * MB, 2.5
"""A check's sessions, recordings and graphs; its copies of the reference's and graphs' weights, in float32."""
CHECKING_LARGE, CHECKING_LARGE_BYTE = 100 * MB, 1.1
"""For a large model: an added constant, and a factor on the memory that a check requires to load the whole model."""
BY_LAYER_VISION, BY_LAYER_HEAD, BY_LAYER_ROWS = 5.1, 3.0, 24
"""For a check layer by layer: copies of each side's largest matrix, in float32 bytes, and of a frame's rows."""
RUNTIME, RUNTIME_A_LAYER = 92 * MB, 1_200_000
"""Python, numpy, ONNX Runtime and tokenizers without torch; the nodes that ONNX Runtime has prepared, per layer."""
WIDENING = 0.45
"""Share of a narrow file's weights that stays in memory alongside their float32 copy."""

WRITE_BYTES_A_S, BUILD_BYTES_A_S, CHECK_BYTES_A_S, BY_LAYER_BYTES_A_S = 100 * MB, 115 * MB, 12 * MB, 18 * MB
"""Throughputs for the 8B model's vision side, and for the whole model layer by layer (docs/performance.md, 'Export and
build at full size' and 'Checkpoints that do not fit in memory')."""
EXPORT_S_A_LAYER, BUILD_S_A_LAYER, CHECK_S, CHECK_S_A_LAYER = 1.5, 0.4, 20.0, 5.0
"""Seconds added to these, per layer or per check, from small models on cores shared with other programs."""
RUN_S, RUN_PRODUCTS_A_S = 0.01, 70e9
"""Per frame: resizing and calls; and one core's float32 multiplications per second (164 to 182 GFLOP/s,
docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Peak RAM of a process during a step, in bytes, and its duration in seconds."""

    peak: int
    seconds: float


def costs(model: PVC, request: ExportRequest, bundle: BundlePlan, *, stored: bool) -> dict[str, Cost]:
    """Cost of each step, in order: export, build if there are engines, check, and a run of one stream in ONNX Runtime
    on a CPU. A run's seconds are those of one frame.

    stored  whether a large model's weights stay in their files
    """
    weights = {name: graph.weights for name, graph in bundle.graphs.items()}
    layers = {name: layers_of(model.config, name) for name in weights}
    num_bytes, num_layers = sum(weights.values()), sum(layers.values())
    builds, narrow = request.target.builder is not None, request.precision != "fp32"
    reference = 4 * sum(parameter.numel() for parameter in model.parameters())
    if is_small(model):
        held, writing = reference + (num_bytes if narrow else 0), max(weights.values())
        checked = int(CHECKING_A_BYTE * reference)
    else:
        held, writing, checked = _large(model, reference, narrow=narrow, stored=stored)
    packages = PACKAGES + (BUILDER if builds else 0)
    making = packages + held + TRACING + TRACING_A_LAYER * max(layers.values())
    found = {"export": Cost(making + writing, EXPORT_S_A_LAYER * num_layers + num_bytes / WRITE_BYTES_A_S)}
    if builds:
        largest = max(weights[name] for name in bundle.engine_names)
        built = sum(weights[name] for name in bundle.engine_names)
        found["build"] = Cost(
            making + BUILDING + int(BUILDING_A_BYTE * largest),
            BUILD_S_A_LAYER * num_layers + built / BUILD_BYTES_A_S,
        )
    checking = packages + checked + CHECKING + CHECKING_A_LAYER * num_layers
    found["check"] = Cost(checking, CHECK_S + CHECK_S_A_LAYER * num_layers + reference / CHECK_BYTES_A_S)
    if stored and not is_small(model):
        found["check by layer"] = Cost(
            packages + CHECKING + _by_layer(model, row_bytes=bundle.state.ring // request.limits.window),
            CHECK_S + reference / BY_LAYER_BYTES_A_S,
        )
    found["run"] = Cost(_run_peak(model, request, bundle), RUN_S + _frame_products(model) / RUN_PRODUCTS_A_S)
    return found


def _large(model: PVC, reference: int, *, narrow: bool, stored: bool) -> tuple[int, int, int]:
    """For a large model: bytes held throughout, bytes to write one weight, and bytes for a check of the whole model.

    A matrix joined from several weights is read, joined and transposed, each briefly in memory (graphs/lean.py).
    """
    joined = {parts[0]: len(parts) for parts in PARTS.values()}
    parameters = [(name.split(".")[-2], parameter) for name, parameter in model.named_parameters()]
    largest = max(4 * parameter.numel() * joined.get(owner, 1) for owner, parameter in parameters)
    small = sum(4 * parameter.numel() for _, parameter in parameters if parameter.dim() < 2)
    writing = int(largest * (WRITING_NARROW if narrow else WRITING))
    checked = CHECKING_LARGE + int(CHECKING_LARGE_BYTE * BYTES_A_WEIGHT * reference / 4)
    return small if stored else reference, writing, checked


def _by_layer(model: PVC, *, row_bytes: int) -> int:
    """Memory of a check that reads each matrix when needed: copies of the largest, and the rows of eight frames."""
    sizes = {name: 4 * parameter.numel() for name, parameter in model.named_parameters()}
    head = max(size for name, size in sizes.items() if name.startswith("llm."))
    vision = max(size for name, size in sizes.items() if not name.startswith("llm."))
    return int(max(BY_LAYER_HEAD * head, BY_LAYER_VISION * vision)) + BY_LAYER_ROWS * row_bytes


def _run_peak(model: PVC, request: ExportRequest, bundle: BundlePlan) -> int:
    passes = sum(graph.activations for graph in bundle.graphs.values())
    return cpu_runtime(model) + cpu_weights(model, request, bundle) + bundle.state.total + passes


def cpu_runtime(model: PVC) -> int:
    """Memory of a process that runs a bundle in ONNX Runtime on a CPU, without weights, states and activations."""
    return RUNTIME + RUNTIME_A_LAYER * sum(layers_of(model.config, name) for name in GRAPH_NAMES)


def cpu_weights(model: PVC, request: ExportRequest, bundle: BundlePlan) -> int:
    """Memory of the weights in ONNX Runtime on a CPU. It widens narrow weights when it opens a graph, and copies a
    matrix into a new layout. A narrow graph of medium size is slow there, so it is opened twice to choose its number of
    threads (engines/threads.py)."""
    weights = sum(widened_bytes(model, spec) for spec in request.graph_specs(model.config).values())
    weights += max(4 * parameter.numel() for parameter in model.parameters())
    if request.precision != "fp32":
        files = [graph.weights for graph in bundle.graphs.values()]
        tried = max((size for size in files if SMALL_BYTES <= size <= LARGE_BYTES), default=0)
        weights += int(WIDENING * sum(files)) + 2 * tried
    return weights


def _frame_products(model: PVC) -> int:
    """Multiplications by weights per frame: per position on the vision side, per token in the LLM. Attention's matmuls
    without weights are left out."""
    config = model.config
    per_row = {
        "trunk": config.vision.num_positions,
        "temporal": config.vision.num_positions,
        "compressor": config.compressor.num_tokens,
        "llm.layers": config.compressor.num_tokens,
    }
    return sum(
        rows * parameter.numel()
        for name, parameter in model.named_parameters()
        for part, rows in per_row.items()
        if name.startswith(f"{part}.") and parameter.dim() > 1
    )
