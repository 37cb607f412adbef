"""`pvc-export plan`: the cost of an export and the devices that its bundle fits, without reading weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from engines.clock import Clock
from engines.spec import Precision
from engines.target import load_target
from engines.terminal import print_json

from ..bundles.export import ExportRequest
from ..plan.budget import choose_limits
from ..plan.fit import Fit
from ..plan.model import planned_model
from ..plan.peaks import MEASURED_ON, Cost
from ..plan.plan import Plan, make_plan
from ..terminal.console import Console, size_text
from ..terminal.limits import AskedLimits
from ..terminal.quantization import FewBits, quantization_text
from ..terminal.usage import usage_errors
from .export import chosen_target, refuse_islands


def plan_command(
    *, model: str, precision: Precision | None, target_name: str, asked: AskedLimits, clock: Clock,
    islands: tuple[str, ...], few_bits: FewBits, mapping: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Print the plan. Raises BadParameter for options that contradict each other, ModelError for a model that cannot be
    exported this way.

    precision  None: the default of the command that makes the bundle, float16 with engines and float32 without
    """
    with usage_errors():
        engines = load_target(target_name).builder is not None
    limits = asked.limits()
    chosen: Precision = precision or ("fp16" if engines else "fp32")
    refuse_islands(islands, chosen)
    target = chosen_target(target_name, chosen, made="trt" if engines else "onnx")
    request = ExportRequest(
        out=Path("build") / Path(model).name,
        target=target,
        precision=chosen,
        limits=limits,
        islands=islands,
        clock=clock,
        quantization=few_bits.of(target, streams=limits.streams),
        int8_states=few_bits.states,
    )
    planned = planned_model(model, mapping=mapping)
    budget = None
    if asked.memory is not None:
        budget = choose_limits(planned.model, request, asked)
        request = replace(request, limits=budget.limits)
    plan = make_plan(planned, request)
    if as_json:
        print_json(plan.to_json() | ({} if budget is None else {"memory": budget.to_json()}))
        return
    console = Console()
    if budget is not None:
        console.print(str(budget))
    for line in _lines(plan):
        console.print(line)


def _lines(plan: Plan) -> Iterator[str]:
    """The plan as text, at most 80 columns wide except for long names."""
    request, limits = plan.request, plan.request.limits
    yield f"{plan.model.name}: {plan.model.num_parameters / 1e6:.1f} M parameters; no weight was read"
    yield (
        f"{request.precision}, target {request.target.name}, window {limits.window}, context {limits.context}, "
        f"streams {limits.streams}, clock {request.clock}"
    )
    yield from (quantization_text(part, how) for part, how in request.quantization.items())
    yield from (f"{state} in int8" for state in request.int8_states)
    yield from (f"float32 {name}" for name in request.islands)
    yield ""
    yield from _bundle_lines(plan)
    yield ""
    yield f"{'step':<15}{'peak memory':>12}{'time':>10}   (estimates: {MEASURED_ON})"
    yield from (_cost_line(name, cost) for name, cost in plan.costs.items())
    if plan.model.stays_in_files:
        yield "a check runs layer by layer if the whole model does not fit in memory"
    yield ""
    yield from _device_lines(plan.fits, unified=True)
    yield ""
    yield from _device_lines(plan.fits, unified=False)


def _bundle_lines(plan: Plan) -> Iterator[str]:
    bundle = plan.bundle
    yield f"{'graph':<15}{'files':>12}{'engine':>12}{'activations':>14}"
    for name, graph in bundle.graphs.items():
        engine = size_text(graph.engine) if name in bundle.engine_names else "-"
        yield f"{name:<15}{size_text(graph.files):>12}{engine:>12}{size_text(graph.activations):>14}"
    engines = size_text(bundle.engines) if bundle.engine_names else "-"
    yield f"{'all':<15}{size_text(bundle.graph_files):>12}{engines:>12}"
    yield f"{'other files':<15}{size_text(bundle.other_files):>12}   tokenizer, manifest, check report"
    yield f"{'bundle':<15}{size_text(bundle.total):>12}"
    state = bundle.state
    yield f"{'stream':<15}{size_text(state.total):>12}   ring {size_text(state.ring)}, cache {size_text(state.cache)}"


def _cost_line(name: str, cost: Cost) -> str:
    return f"{name:<15}{size_text(cost.peak):>12}{_time_text(cost.seconds):>10}"


def _time_text(seconds: float) -> str:
    """0.0123 -> '12 ms', 75 -> '75 s', 600 -> '10 min'"""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _device_lines(fits: list[Fit], *, unified: bool) -> Iterator[str]:
    shown = [fit for fit in fits if fit.device.unified == unified]
    where = "on a Jetson, where host and GPU share the memory" if unified else "of a card's memory"
    yield f"all streams take {size_text(shown[0].takes)} {where}"
    yield f"{'device':<23}{'leaves':>10}  {'target':<17}{'fits':<5}{'spare':>10}{'context to':>12}"
    for fit in shown:
        spare = f"{'-' if fit.left < 0 else ''}{size_text(abs(fit.left))}"
        verdict = f"{'no' if fit.left < 0 else 'yes':<5}{spare:>10}{fit.largest_context or '-':>12}"
        yield f"{fit.device.name:<23}{size_text(fit.device.usable):>10}  {fit.target:<17}{verdict}"
        if fit.remedy:
            yield f"    -> {fit.remedy}"
