"""A whole plan: the bundle, the memory and time to make and run it, and the devices that it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..bundles.export import ExportRequest, require_exportable
from .bundle import BundlePlan, plan_bundle
from .fit import Fit, Setting, fits
from .model import PlannedModel
from .peaks import Cost, costs


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`costs`: by step, in order. `fits`: one per known device."""

    model: PlannedModel
    request: ExportRequest
    bundle: BundlePlan
    costs: dict[str, Cost]
    fits: list[Fit]

    def to_json(self) -> dict[str, Any]:
        """The plan for JSON, in bytes and seconds."""
        bundle = self.bundle
        return {
            "model": self.model.name,
            "parameters": self.model.num_parameters,
            "target": self.request.target.name,
            "precision": self.request.precision,
            "limits": asdict(self.request.limits),
            "clock": self.request.clock,
            "islands": list(self.request.islands),
            "graphs": {
                name: asdict(graph) | {"engine": graph.engine if name in bundle.engine_names else None}
                for name, graph in bundle.graphs.items()
            },
            "other_files": bundle.other_files,
            "bundle": bundle.total,
            "state_per_stream": asdict(bundle.state),
            "costs": {name: asdict(cost) for name, cost in self.costs.items()},
            "devices": [
                {
                    "device": fit.device.name,
                    "target": fit.target,
                    "usable": fit.device.usable,
                    "takes": fit.takes,
                    "fits": fit.left >= 0,
                    "largest_context": fit.largest_context,
                    "remedy": fit.remedy,
                }
                for fit in self.fits
            ],
        }


def make_plan(model: PlannedModel, request: ExportRequest) -> Plan:
    """Make the plan. Raises ModelError for a request that `export` would refuse."""
    require_exportable(model.model.config, request)
    bundle = plan_bundle(model.model, request, tokenizer_bytes=model.tokenizer_bytes)
    return Plan(
        model=model,
        request=request,
        bundle=bundle,
        costs=costs(model.model, request, bundle, stored=model.stays_in_files),
        fits=fits(Setting(model=model.model, request=request, bundle=bundle)),
    )
