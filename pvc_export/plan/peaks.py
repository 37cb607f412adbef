"""Peak memory and time of an export, its build, its check and a run on a CPU: formulas, fitted to measured ones.

A peak is what a process has in RAM at most (Linux's VmHWM), packages included, and is meant to be a little too high:
`python -m pvc_export.studies.plan` prints both, and docs/performance.md has the table. Times are of that machine,
rough.
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
"""torch, onnx, onnxscript and the rest, imported; TensorRT-RTX, imported."""
TRACING, TRACING_A_LAYER = 165 * MB, 8 * MB
"""What the exporter holds beside weights; of the deepest graph for each layer."""
BUILDING, BUILDING_A_BYTE = 155 * MB, 3.3
"""What the builder holds beside weights, and copies of those of the graph that it builds."""
WRITING, WRITING_NARROW = 2.1, 1.15
"""Of a large model, copies of the largest product while it is written, in bytes of float32."""
CHECKING, CHECKING_A_LAYER, CHECKING_A_BYTE = 285 * MB, 16 * MB, 2.5
"""Sessions, recordings and graphs of a check; weights of the reference and of its graphs, in float32."""
CHECKING_LARGE, CHECKING_LARGE_BYTE = 100 * MB, 1.1
"""Of a large model, beside that, and of what a check asks for before it takes the whole into memory."""
BY_LAYER_VISION, BY_LAYER_HEAD, BY_LAYER_ROWS = 5.1, 3.0, 24
"""Of a check layer by layer, copies of the largest matrix of each side, in bytes of float32, and of a frame's rows."""
RUNTIME, RUNTIME_A_LAYER = 92 * MB, 1_200_000
"""Python, numpy, ONNX Runtime and tokenizers without torch; nodes that ONNX Runtime has prepared."""
WIDENING = 0.45
"""Of a narrow file's weights, what is left in memory beside their float32."""

WRITE_BYTES_A_S, BUILD_BYTES_A_S, CHECK_BYTES_A_S, BY_LAYER_BYTES_A_S = 100 * MB, 115 * MB, 12 * MB, 18 * MB
"""Throughputs at the 8B model's vision side, and of all of it layer by layer (docs/performance.md, 'Export and build at
full size' and 'Checkpoints that do not fit in memory')."""
EXPORT_S_A_LAYER, BUILD_S_A_LAYER, CHECK_S, CHECK_S_A_LAYER = 1.5, 0.4, 20.0, 5.0
"""Beside them, of small models, on cores that other programs share."""
RUN_S, RUN_PRODUCTS_A_S = 0.01, 70e9
"""Of a frame: resizing and calls, and multiplications of one core in float32 (164 to 182 GFLOP/s,
docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The most bytes that a process holds in RAM during a step, and its seconds."""

    peak: int
    seconds: float


def costs(model: PVC, request: ExportRequest, bundle: BundlePlan, *, stored: bool) -> dict[str, Cost]:
    """Of each step, in order: export, build where there are engines, check, and a run of one stream in ONNX Runtime on
    a CPU, whose seconds are those of a frame.

    stored  whether the weights stay in their files, if it is a large model
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
    """Of a large model: bytes held all the time, those of a weight as it is written, and those of a check of the whole.

    A product of several weights is read, joined and transposed, each in memory for a moment (graphs/lean.py).
    """
    joined = {parts[0]: len(parts) for parts in PARTS.values()}
    parameters = [(name.split(".")[-2], parameter) for name, parameter in model.named_parameters()]
    largest = max(4 * parameter.numel() * joined.get(owner, 1) for owner, parameter in parameters)
    small = sum(4 * parameter.numel() for _, parameter in parameters if parameter.dim() < 2)
    writing = int(largest * (WRITING_NARROW if narrow else WRITING))
    checked = CHECKING_LARGE + int(CHECKING_LARGE_BYTE * BYTES_A_WEIGHT * reference / 4)
    return small if stored else reference, writing, checked


def _by_layer(model: PVC, *, row_bytes: int) -> int:
    """Of a check that reads each matrix when it is needed: copies of the largest, and rows of eight frames at once."""
    sizes = {name: 4 * parameter.numel() for name, parameter in model.named_parameters()}
    head = max(size for name, size in sizes.items() if name.startswith("llm."))
    vision = max(size for name, size in sizes.items() if not name.startswith("llm."))
    return int(max(BY_LAYER_HEAD * head, BY_LAYER_VISION * vision)) + BY_LAYER_ROWS * row_bytes


def _run_peak(model: PVC, request: ExportRequest, bundle: BundlePlan) -> int:
    passes = sum(graph.activations for graph in bundle.graphs.values())
    return cpu_runtime(model) + cpu_weights(model, request, bundle) + bundle.state.total + passes


def cpu_runtime(model: PVC) -> int:
    """What a process that runs a bundle in ONNX Runtime on a CPU takes beside weights, states and activations."""
    return RUNTIME + RUNTIME_A_LAYER * sum(layers_of(model.config, name) for name in GRAPH_NAMES)


def cpu_weights(model: PVC, request: ExportRequest, bundle: BundlePlan) -> int:
    """ONNX Runtime's CPU widens narrow weights as it opens a graph, and lays a matrix out anew. A graph of middling
    size that is slow, as narrow ones are there, is opened twice, to try its threads (engines/threads.py)."""
    weights = sum(widened_bytes(model, spec) for spec in request.graph_specs(model.config).values())
    weights += max(4 * parameter.numel() for parameter in model.parameters())
    if request.precision != "fp32":
        files = [graph.weights for graph in bundle.graphs.values()]
        tried = max((size for size in files if SMALL_BYTES <= size <= LARGE_BYTES), default=0)
        weights += int(WIDENING * sum(files)) + 2 * tried
    return weights


def _frame_products(model: PVC) -> int:
    """Multiplications of one frame, in its weights' products: of the vision side for each position, of the LLM for each
    token. Attention's own are left out."""
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
