"""Fit of a bundle on a device, and if it does not fit, what would make it fit: smaller limits, a narrower dtype, a
clock table, int4 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engines.spec import Quantization, StreamLimits
from engines.target import load_target
from pvc_ref import PVC

from ..bundles.export import ExportRequest, can_reanchor
from ..terminal.console import size_text
from .bundle import BundlePlan, plan_bundle
from .devices import DEVICES, MIB, Device
from .memory import StateBytes, activation_bytes, state_bytes
from .peaks import cpu_runtime, cpu_weights

GPU_RUNTIME = 512 * MIB
"""CUDA's context, TensorRT, and its compiled kernels: an estimate, not measured on a GPU."""
INT4_BLOCK = 32
"""The usual block size of every target with int4 weights."""
HOST_PROCESS = 192 * MIB
"""Python, numpy and ONNX Runtime for `embed`; measured here as 110 to 150 MiB (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """The fit of a bundle on one device.

    takes            bytes of the device's memory that a process with all streams takes
    left             remaining bytes; negative if it does not fit
    largest_context  LLM rows that fit, up to the model's maximum; 0 if none do
    remedy           options that would make it fit; '' if it does
    """

    device: Device
    target: str
    takes: int
    left: int
    largest_context: int
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Memory of a process with all its streams, by use, in bytes.

    weights      in graphs or engines
    states       of all streams
    activations  of one pass of every graph, since each graph has its own activation memory
    runtime      the process without a model
    opening      the largest engine a second time, while its file is read; there are no streams yet
    """

    weights: int
    states: int
    activations: int
    runtime: int
    opening: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.runtime + max(self.states + self.activations, self.opening)

    def __str__(self) -> str:
        parts = ["weights", "states", "activations", "runtime"]
        if self.opening > self.states + self.activations:
            parts.append("opening")
        return ", ".join(f"{part} {size_text(getattr(self, part))}" for part in parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A request, and the parts of its bundle that do not depend on context, window and streams.

    reanchors  whether its streams re-anchor although the request's clock runs on
    """

    model: PVC
    request: ExportRequest
    bundle: BundlePlan
    reanchors: bool = False

    def takes(self, device: Device, limits: StreamLimits | None = None) -> int:
        """Bytes that the process takes of the device's memory."""
        return self.taken(device, limits).total

    def taken(self, device: Device, limits: StreamLimits | None = None) -> Taken:
        limits, config = limits or self.request.limits, self.model.config
        states = limits.streams * self.state(limits).total
        specs = replace(self.request, limits=limits).graph_specs(config)
        activations = sum(activation_bytes(config, spec, limits) for spec in specs.values())
        if device.is_cpu:
            weights, runtime, opening = cpu_weights(self.model, self.request, self.bundle), cpu_runtime(self.model), 0
        else:
            weights, runtime, opening = self._of_engines(device)
        return Taken(weights=weights, states=states, activations=activations, runtime=runtime, opening=opening)

    def _of_engines(self, device: Device) -> tuple[int, int, int]:
        """Weights, runtime and opening on a GPU. If the host shares the memory, engine files are read into it too."""
        graphs = self.bundle.graphs
        runs_graphs = self.request.target.runtime == "ort-cuda" and not device.unified
        files = [graph.weights if runs_graphs else graph.engine for graph in graphs.values()]
        if not device.unified:
            return sum(files), GPU_RUNTIME, 0
        return sum(files) + graphs["embed"].weights, GPU_RUNTIME + HOST_PROCESS, max(files)

    @property
    def weights(self) -> int:
        return sum(graph.weights for graph in self.bundle.graphs.values())

    def state(self, limits: StreamLimits) -> StateBytes:
        """State of one stream."""
        specs = replace(self.request, limits=limits).graph_specs(self.model.config)
        return state_bytes(self.model.config, specs, limits, "reanchor" if self.reanchors else self.request.clock)

    def with_limits(self, **changed: int) -> Setting:
        limits = replace(self.request.limits, **changed)
        return replace(self, request=replace(self.request, limits=limits))

    def fits(self, device: Device, **changed: int) -> bool:
        return self.takes(device, replace(self.request.limits, **changed)) <= device.usable

    def largest(self, device: Device, name: str, *, most: int | None = None) -> int:
        """The largest value of a limit that fits, up to `most` or else the requested value, and for the context up to
        the model's maximum. 0 if none fits. A larger limit always takes more memory."""
        step = 1
        if name == "context":
            step, known = self.request.limits.bucket, self.model.config.llm.max_positions
            most = known if most is None else min(most, known)
        elif most is None:
            most = getattr(self.request.limits, name)
        return step * largest_that(lambda count: self.fits(device, **{name: count * step}), most=most // step)


def largest_that(holds: Callable[[int], bool], *, most: int) -> int:
    """The largest number up to `most` for which `holds` is true, or 0. If true, it must be true for smaller ones."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def fits(setting: Setting) -> list[Fit]:
    """The fit of every known device, in the order of devices.py."""
    narrower = list(narrower_than(setting))
    return [_fit(setting, narrower, device) for device in DEVICES]


def _fit(setting: Setting, narrower: Sequence[tuple[str, Setting]], device: Device) -> Fit:
    asked = setting.request.target.name
    target = load_target(asked if asked in device.targets else device.targets[0])
    takes = setting.takes(device)
    possible = [(options, tried) for options, tried in narrower if target.int4_blocks or not tried.request.quantization]
    return Fit(
        device=device,
        target=target.name,
        takes=takes,
        left=device.usable - takes,
        largest_context=setting.largest(device, "context"),
        remedy="" if takes <= device.usable else _remedy(setting, possible, device),
    )


def narrower_than(setting: Setting, *, on_cpu: bool = False) -> Iterator[tuple[str, Setting]]:
    """Settings of the same model with smaller weights, with the options for them. Those that change answers come last,
    and the smallest is at the end. A clock that re-anchors has a smaller graph but larger states.

    on_cpu  leave out float16, which a CPU widens to float32
    """
    request, ways = setting.request, [""]
    if request.precision == "fp32" and not on_cpu:
        ways, request = ["--fp16"], replace(request, precision="fp16")
        yield ways[0], for_request(setting, request)
    requests = [request]
    if request.clock == "run-on" and can_reanchor(setting.model.config):
        ways.append(f"{ways[0]} --clock reanchor".strip())
        requests.append(replace(request, clock="reanchor"))
        yield ways[1], for_request(setting, requests[1])
    if not request.quantization:  # last, since only this changes answers
        how = Quantization(block=INT4_BLOCK, zero_points=request.target.int4_zero_points, method="search")
        for way, narrow in zip(ways, requests, strict=True):
            yield f"{way} --int4 llm".strip(), for_request(setting, replace(narrow, quantization={"llm": how}))


def for_request(setting: Setting, request: ExportRequest) -> Setting:
    """The setting, planned again for another request."""
    return replace(setting, request=request, bundle=plan_bundle(setting.model, request, tokenizer_bytes=0))


def _remedy(setting: Setting, narrower: Sequence[tuple[str, Setting]], device: Device) -> str:
    """The fewest options that make it fit."""
    for options, tried in (("", setting), *narrower):
        if found := [f"{options} {limit}".strip() for limit in limits_that_fit(tried, device)]:
            return ", or ".join(found)
    least = narrower[-1] if narrower else ("", setting)
    for options, tried in (("", setting), least):
        smallest = tried.with_limits(streams=1, window=2)
        if context := smallest.largest(device, "context"):
            less = f" --context {context}" if context < setting.request.limits.context else ""
            return f"{options} --streams 1 --window 2{less}".strip()
    bundle, weights = least[1].bundle, least[1].weights
    why = f"no setting: the weights alone are {size_text(weights)}"
    if weights < device.usable and device.unified:
        why += f", opening takes {size_text(max(graph.engine for graph in bundle.graphs.values()))}"
    return why


LEAST = {"streams": 1, "context": 1, "window": 2}


def limits_that_fit(setting: Setting, device: Device, least: Mapping[str, int] = LEAST) -> Iterator[str]:
    """Options that reduce one of these limits, to no less than the given minimum; '' if the setting already fits."""
    if setting.fits(device):
        yield ""
        return
    for name, least_value in least.items():
        largest = setting.largest(device, name)
        if least_value <= largest < getattr(setting.request.limits, name):
            yield f"--{name} {largest}"
