"""Difference: the metrics of two arrays (engines/metrics.py), with the name of the tensor and where it was compared.

Integers and bool are equal or not; there is no measure of how far apart they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from engines.memory import Array
from engines.metrics import Metrics, metrics_of

from .places import Place, Rung

Limits = dict[str, float]
"""Metric -> a number: an allowed error, or the rounding noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Metrics):
    """One tensor of one run of a graph, compared with its neighbour on the ladder.

    noise, limits  the rounding noise there, and the allowed errors; empty until judged (limits.py)
    """

    rung: Rung
    graph: str
    tensor: str
    where: Place
    noise: Limits = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)

    @property
    def name(self) -> str:
        """'temporal/features'."""
        return f"{self.graph}/{self.tensor}"

    def share(self) -> float:
        """Fraction of its limit that the worst metric uses. Above 1 fails; infinite if the arrays cannot be measured
        against each other. The difference must have been judged."""
        if self.flaw:
            return inf
        return max((float(getattr(self, metric)) / limit for metric, limit in self.limits.items()), default=0.0)

    @property
    def passed(self) -> bool:
        return self.share() <= 1  # NaN is not

    def numbers(self) -> str:
        """The metrics that have limits and the largest error, in words; or the flaw, if there is one."""
        if self.flaw:
            return self.flaw.rstrip(",")
        said = [
            f"{name.replace('_', ' ')} {getattr(self, name):.1e} (limit {limit:.1e})"
            for name, limit in self.limits.items()
        ]
        return ", ".join(said if "max_abs" in self.limits else [*said, f"max abs {self.max_abs:.1e}"])

    def to_json(self) -> dict[str, Any]:
        """As JSON. `stage` is the rung; `shapes` and `num_different` appear only if they differ. Limits are in the
        rows."""
        numbers = {key: value for key, value in asdict(self).items() if key not in ("rung", "noise", "limits")}
        numbers["where"] = str(self.where)
        for key in ("shapes", "num_different"):
            if not numbers[key]:
                del numbers[key]
        return {"stage": str(self.rung), **numbers}


def compare_arrays(got: Array, want: Array, *, rung: Rung, graph: str, tensor: str, where: Place) -> Difference:
    """Measure the difference of two arrays, with the name of the tensor and where it was compared."""
    return Difference(rung=rung, graph=graph, tensor=tensor, where=where, **asdict(metrics_of(got, want)))
