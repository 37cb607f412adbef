"""Whether a bundle runs on a device, and if not, what would let it: smaller limits, a narrower dtype, a clock as a
table, weights of four bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from engines.errors import ModelError
from engines.spec import Quantization, StreamLimits
from engines.target import load_target
from pvc_ref import PVC

from ..bundles.export import ExportRequest, require_exportable
from ..terminal.console import size_text
from .bundle import BundlePlan, plan_bundle
from .devices import DEVICES, MIB, Device
from .memory import activation_bytes, state_bytes

GPU_RUNTIME = 512 * MIB
"""CUDA's context, TensorRT, and its kernels' code once it is compiled: an estimate, as no GPU has run a bundle."""
INT4_BLOCK = 32
"""The usual one of every target that takes weights of four bits."""
HOST_PROCESS = 192 * MIB
"""Python, numpy and ONNX Runtime for `embed`; measured here as 110 to 150 MiB (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a bundle fits one device.

    takes    bytes of its memory that a process with all streams takes
    left     what remains; negative if it does not fit
    largest_context  LLM rows that fit, of those that the model knows; 0 where none do
    remedy   what would make it fit; '' where it does
    """

    device: Device
    target: str
    takes: int
    left: int
    largest_context: int
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A request, and of its bundle what does not depend on context, window and streams."""

    model: PVC
    request: ExportRequest
    bundle: BundlePlan

    def takes(self, device: Device, limits: StreamLimits | None = None) -> int:
        """Bytes of the device's memory. On a shared one the largest engine is there twice while its file is opened."""
        limits, graphs = limits or self.request.limits, self.bundle.graphs
        runs_graphs = self.request.target.runtime == "ort-cuda" and not device.unified
        files = [graph.weights if runs_graphs else graph.engine for graph in graphs.values()]
        moving = self._of_streams(limits)
        if not device.unified:
            return sum(files) + moving + GPU_RUNTIME
        return sum(files) + graphs["embed"].weights + max(moving, max(files)) + GPU_RUNTIME + HOST_PROCESS

    @property
    def weights(self) -> int:
        return sum(graph.weights for graph in self.bundle.graphs.values())

    def _of_streams(self, limits: StreamLimits) -> int:
        """Their state, and activations: each graph has a memory of its own for those."""
        config, specs = self.model.config, replace(self.request, limits=limits).graph_specs(self.model.config)
        state = state_bytes(config, specs, limits, self.request.clock).total
        return limits.streams * state + sum(activation_bytes(config, spec, limits) for spec in specs.values())

    def fits(self, device: Device, **changed: int) -> bool:
        return self.takes(device, replace(self.request.limits, **changed)) <= device.usable

    def largest(self, device: Device, name: str) -> int:
        """The largest value of a limit with which it fits, no more than asked for; of the context no more than the
        model knows. 0 if none does. Every limit takes more where it is larger, so it is found by halving."""
        step, most = 1, getattr(self.request.limits, name)
        if name == "context":
            step = self.request.limits.bucket
            most = self.model.config.llm.max_positions
        low, high = 0, most // step
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(device, **{name: middle * step}) else (low, middle - 1)
        return low * step


def fits(setting: Setting) -> list[Fit]:
    """Of every known device, in the order of devices.py."""
    narrower = list(_narrower(setting))
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


def _narrower(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Settings of the same model that take less, with the options that make them so; each includes those before it."""
    options, request = [], setting.request
    if request.precision == "fp32":
        options, request = ["--fp16"], replace(request, precision="fp16")
        yield " ".join(options), _setting(setting, request)
    if request.clock == "run-on":
        with suppress(ModelError):
            request = replace(request, clock="reanchor")
            require_exportable(setting.model.config, request)
            options = [*options, "--clock reanchor"]
            yield " ".join(options), _setting(setting, request)
    if not request.quantization:  # last, as it alone costs answers
        how = Quantization(block=INT4_BLOCK, zero_points=False, method="search")
        yield " ".join([*options, "--int4 llm"]), _setting(setting, replace(request, quantization={"llm": how}))


def _setting(setting: Setting, request: ExportRequest) -> Setting:
    return Setting(model=setting.model, request=request, bundle=plan_bundle(setting.model, request, tokenizer_bytes=0))


def _remedy(setting: Setting, narrower: Sequence[tuple[str, Setting]], device: Device) -> str:
    """The options that make it fit: the fewest that do."""
    for options, tried in (("", setting), *narrower):
        if found := [f"{options} {limit}".strip() for limit in _limits_that_fit(tried, device)]:
            return ", or ".join(found)
    least = narrower[-1] if narrower else ("", setting)
    for options, tried in (("", setting), least):
        smallest = _with_limits(tried, {"streams": 1, "window": 2})
        if context := smallest.largest(device, "context"):
            less = f" --context {context}" if context < setting.request.limits.context else ""
            return f"{options} --streams 1 --window 2{less}".strip()
    bundle, weights = least[1].bundle, least[1].weights
    why = f"no setting: the weights alone are {size_text(weights)}"
    if weights < device.usable and device.unified:
        why += f", opening takes {size_text(max(graph.engine for graph in bundle.graphs.values()))}"
    return why


def _limits_that_fit(setting: Setting, device: Device) -> Iterator[str]:
    """What to ask for; '' if the setting fits as it is."""
    if setting.fits(device):
        yield ""
        return
    for name, least in (("streams", 1), ("context", 1), ("window", 2)):
        if (largest := setting.largest(device, name)) >= least and largest < getattr(setting.request.limits, name):
            yield f"--{name} {largest}"


def _with_limits(setting: Setting, limits: dict[str, int]) -> Setting:
    request = setting.request
    return replace(setting, request=replace(request, limits=replace(request.limits, **limits)))
