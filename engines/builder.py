"""Builds an engine from an ONNX file, with TensorRT or TensorRT-RTX, as the target requires. No torch, no onnx package.

Note: TensorRT-RTX compiles ahead of time on a machine without a GPU. Precision is never a flag: networks are strongly
typed, so the dtypes in the ONNX file are the dtypes of the engine. TF32 is on by default and cleared here.
The ONNX parsers of both accept some files that are not ONNX at all and return an empty network; that is checked.
Supports TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7, by feature detection, never by comparing versions.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from .cuda import CudaRuntime, LibCudart
from .errors import EXPORT_AGAIN, BackendUnavailable, BuildError
from .gate import NAME_LINE, OPAQUE_NODE, EngineLayer, parse_inspector, parse_layers
from .spec import GraphSpec
from .target import Target, load_target, target_names

Progress = Callable[[str, float], None]
"""Called with the name of a build phase and the fraction done, 0 to 1."""

INSTALL = {"tensorrt_rtx": "pip install -e '.[rtx]'", "tensorrt": "pip install -e '.[trt]'"}
DOCTOR = "see what this machine has: pvc-export doctor, on a device python3 -m engines.device.doctor"
NOISE = re.compile(r"cudaError 35|catchCudaError|CUDA initialization failure", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineReport:
    """Result of a build: the serialized engine, and its layers as the builder listed them.

    layers        None if kernels are not visible: the list shows a whole subgraph as one opaque node, or nothing
    timing_cache  kernel timings of this and earlier builds, if requested
    """

    plan: bytes
    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    layers: tuple[EngineLayer, ...] | None
    build_s: float
    timing_cache: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """Resources of a build.

    workspace_bytes  GPU memory for trying kernels; None: as much as the runtime chooses
    timing_cache     kernel timings of earlier builds, which are not repeated, or b''; None: keep no timings
    """

    workspace_bytes: int | None = None
    timing_cache: bytes | None = None


def load_runtime(target: Target) -> ModuleType:
    """The Python package of the target's runtime.

    Raises BackendUnavailable with the command that installs it, also for a version that the target does not support.
    """
    if target.builder is None:
        raise BackendUnavailable(
            f"target '{target.name}' runs ONNX files directly, so there is no engine to build",
            fix=f"pvc-export onnx --target {target.name}, or choose a target with engines",
        )
    try:
        trt = importlib.import_module(target.builder)
    except ImportError as error:
        raise BackendUnavailable(
            f"target '{target.name}' needs the package {target.builder}, which cannot be imported ({error})",
            cause="it is not installed in this environment, or not for this version of Python",
            fix=INSTALL[target.builder],
        ) from error
    if not target.takes(trt.__version__):
        first, beyond = target.builder_versions
        # On a device suggest other device targets; elsewhere, none of those.
        others = [
            t for t in map(load_target, target_names()) if t.builder == target.builder and t.takes(trt.__version__)
        ]
        alike = [t.name for t in others if bool(t.compute_capabilities) == bool(target.compute_capabilities)]
        raise BackendUnavailable(
            f"{target.builder} {trt.__version__} is installed, which target '{target.name}' does not support",
            expected=f"{target.builder} {first} or later, but below {beyond}",
            fix=f"install a supported version ({INSTALL[target.builder]}), or choose another target: "
            f"--target {(alike or ['cuda'])[0]}",
        )
    return trt


def build_engine(
    onnx_path: Path,
    spec: GraphSpec,
    target: Target,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    cuda: CudaRuntime | None = None,
) -> EngineReport:
    """Parse, optimize and serialize one graph. `cuda` replaces this machine's GPU in tests.

    Raises BackendUnavailable without the runtime or the GPU it needs, BuildError if parsing or building fails, and
    KeyboardInterrupt if `progress` raised it: the build was cancelled.
    """
    trt = load_runtime(target)
    capabilities = compute_capabilities(target, cuda)  # first: without a GPU, TensorRT's Builder raises TypeError
    started = time.perf_counter()
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    _parse(trt, network, onnx_path, spec, log)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if target.runtime == "tensorrt_rtx":
        _set_compute_capabilities(trt, config, capabilities)
    _allow_decomposition(trt, network)
    _add_profiles(builder, config, spec)
    cache = _apply(trt, config, options or BuildOptions())
    monitor = _make_monitor(trt, progress or (lambda _, fraction: None))
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise KeyboardInterrupt
    if plan is None:
        raise BuildError(
            f"{target.builder} {trt.__version__} could not build '{spec.name}' from {onnx_path}: {log.reason()}",
            cause="the file was parsed without an error, so the builder lacks memory, or cannot compile this graph for "
            f"target '{target.name}'",
            fix=DOCTOR,
        )
    if progress is not None:
        progress("done", 1.0)
    return EngineReport(
        plan=bytes(plan),
        runtime=trt.__name__,
        runtime_version=trt.__version__,
        compute_capabilities=capabilities,
        layers=_list_layers(trt, target, log, plan),
        build_s=time.perf_counter() - started,
        timing_cache=None if cache is None else bytes(cache.serialize()),
    )


def _apply(trt: ModuleType, config: Any, options: BuildOptions) -> Any:
    """Apply the options. Returns the timing cache that the build fills, if any. A given cache that the runtime rejects,
    because it is from another GPU or version, is replaced by an empty one."""
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.timing_cache is None:
        return None
    cache = config.create_timing_cache(options.timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _network_flags(trt: ModuleType) -> int:
    """Strongly typed, and explicit batch if this version still has that flag."""
    members = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(members[name]) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if name in members)


def _parse(trt: ModuleType, network: Any, onnx_path: Path, spec: GraphSpec, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse_from_file(str(onnx_path))
    if not parsed or network.num_inputs == 0:
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or "it contains no network"
        raise BuildError(
            f"{onnx_path} cannot be read as ONNX by {trt.__name__} {trt.__version__}: {errors}. {log.reason()}",
            cause="the file is damaged, its .data file is missing, or another program wrote it",
            fix=EXPORT_AGAIN,
        )
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    if names != {tensor.name for tensor in spec.inputs}:
        raise BuildError(
            f"{onnx_path} has other inputs than its GraphSpec: {sorted(names)}",
            expected=f"{sorted(tensor.name for tensor in spec.inputs)}, as in the GraphSpec of '{spec.name}'",
            cause="it is another graph, or was made by another version of pvc-export",
            fix=EXPORT_AGAIN,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnreadNode:
    """A node that a parser cannot read: its name in the file, and the parser's message."""

    name: str
    operator: str
    reason: str


def unread_nodes(onnx_path: Path, target: Target) -> tuple[UnreadNode, ...]:
    """Nodes of a graph that the installed parser of TensorRT-RTX cannot read, found without building anything.

    For a file that cannot be read at all, no node is returned; the build reports it. Weights are not read (1 ms and no
    memory for 268 MB of them, TensorRT-RTX 1.7.1). Raises BackendUnavailable if the package is not installed.
    """
    trt = load_runtime(target)
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    parser.supports_model_v2(onnx_path.read_bytes(), str(onnx_path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return tuple(
        UnreadNode(
            name=error.node_name(), operator=error.node_operator(), reason=f"{error.code().name}: {error.desc()}"
        )
        for error in errors
        if error.node_operator()
    )


def compute_capabilities(target: Target, cuda: CudaRuntime | None = None) -> tuple[str, ...]:
    """The GPUs that engines are compiled for: TensorRT-RTX takes a list, TensorRT compiles for the GPU it finds.

    Raises BackendUnavailable if it finds none, or one that the target does not support.
    """
    if target.runtime == "tensorrt_rtx":
        return target.compute_capabilities
    found = (cuda or LibCudart()).compute_capability()
    if target.compute_capabilities and found not in target.compute_capabilities:
        raise BackendUnavailable(
            f"this machine's GPU is {found}, which target '{target.name}' does not support",
            expected=" or ".join(target.compute_capabilities),
            fix="build on the device itself, or choose another --target",
        )
    return (found,)


def _set_compute_capabilities(trt: ModuleType, config: Any, names: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _list_layers(trt: ModuleType, target: Target, log: Any, plan: Any) -> tuple[EngineLayer, ...] | None:
    """Read layers from the build log, which both print while building; otherwise from the inspector, which needs the
    GPU. None if they show a subgraph as one node: then only its outputs can be checked (engines/golden)."""
    text = log.text()
    if NAME_LINE.search(text):
        return parse_layers(text)
    is_opaque = OPAQUE_NODE in text
    if target.runtime == "tensorrt_rtx":
        return None if is_opaque else parse_layers(text)
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None and is_opaque:
        return None
    if engine is None:
        raise BuildError(
            f"the engine just built cannot be opened for inspection: {log.reason()}",
            cause="the GPU has too little free memory, or is not the one the engine was built for",
            fix=DOCTOR,
        )
    inspector = engine.create_engine_inspector()
    layers = parse_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return None if any(OPAQUE_NODE in layer.name for layer in layers) else layers


def _allow_decomposition(trt: ModuleType, network: Any) -> None:
    """Allow float32 attention to be built from separate kernels: over many rows none is fused, and building would fail.

    A fused kernel is still used if there is one; the gate counts those.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if str(layer.type).endswith("ATTENTION_INPUT"):
            layer.__class__ = trt.IAttentionInputLayer  # get_layer returns the base class
            layer.attention.decomposable = True


def _add_profiles(builder: Any, config: Any, spec: GraphSpec) -> None:
    for ranges in spec.profiles:
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            if any(isinstance(dim, str) for dim in tensor.shape):
                profile.set_shape(tensor.name, *spec.profile_shapes(tensor, ranges))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(
                f"the builder rejected the optimization profile {ranges} of graph '{spec.name}'",
                expected="a profile that fits the graph's inputs",
                cause="this GraphSpec does not describe this graph",
                fix=EXPORT_AGAIN,
            )


@dataclass(slots=True)
class _Stages:
    """Progress of nested build phases as one fraction: each step of a phase is refined by the phase inside it.

    The builder may run several phases within one step of their parent, so the fraction never decreases.
    """

    open: dict[str, tuple[str | None, int, int]] = field(default_factory=dict)
    highest: float = 0.0

    def fraction(self, phase: str | None) -> float:
        inner = 0.0
        while phase in self.open:
            phase, done, steps = self.open[phase]
            inner = min((done + inner) / max(steps, 1), 1.0)
        self.highest = max(self.highest, inner)
        return self.highest


def _make_monitor(trt: ModuleType, report: Progress) -> Any:
    """An IProgressMonitor that reports every step. A KeyboardInterrupt raised by `report` cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.stages = _Stages()
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.stages.open[phase_name] = (parent_phase, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            parent, _, steps = self.stages.open[phase_name]
            self.stages.open[phase_name] = (parent, step + 1, steps)
            try:
                report(phase_name, self.stages.fraction(phase_name))
            except KeyboardInterrupt:
                self.cancelled = True
                return False
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.stages.open.pop(phase_name, None)

    return Monitor()


def _make_log(trt: ModuleType) -> Any:
    """An ILogger that keeps every message: the layer list is only printed, and errors are only logged."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and not NOISE.search(message):
                self.errors.append(message)

        def text(self) -> str:
            return "\n".join(self.lines)

        def reason(self) -> str:
            return "; ".join(self.errors[:3]) or "the builder gave no reason"

    return Log()
