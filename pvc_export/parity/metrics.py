"""A difference: how far two arrays are apart (engines/metrics.py), with the name of what was compared.

Integers and bool are equal or they are not: no number says how far apart they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from engines.memory import Array
from engines.metrics import Metrics, metrics_of

from .places import Place, Rung

Limits = dict[str, float]
"""Metric -> a number: how far off something may be, or what rounding does to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Metrics):
    """One tensor of one run of a graph, against the neighbour on the ladder.

    noise, limits  what rounding alone does there, and how far off it may be: empty until it was judged (limits.py)
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
        """How much of its limit the worst metric uses: above 1 fails, and infinite where no number says how far off it
        is. It was judged."""
        if self.flaw:
            return inf
        return max((float(getattr(self, metric)) / limit for metric, limit in self.limits.items()), default=0.0)

    @property
    def passed(self) -> bool:
        return self.share() <= 1  # NaN is not

    def numbers(self) -> str:
        """What has a limit, and the largest error, in words; else what is wrong."""
        if self.flaw:
            return self.flaw.rstrip(",")
        said = [
            f"{name.replace('_', ' ')} {getattr(self, name):.1e} (limit {limit:.1e})"
            for name, limit in self.limits.items()
        ]
        return ", ".join(said if "max_abs" in self.limits else [*said, f"max abs {self.max_abs:.1e}"])

    def to_json(self) -> dict[str, Any]:
        """`stage` is the rung; `shapes` and `num_different` are there only where something differs. Limits are those
        of the rows."""
        numbers = {key: value for key, value in asdict(self).items() if key not in ("rung", "noise", "limits")}
        numbers["where"] = str(self.where)
        for key in ("shapes", "num_different"):
            if not numbers[key]:
                del numbers[key]
        return {"stage": str(self.rung), **numbers}


def compare_arrays(got: Array, want: Array, *, rung: Rung, graph: str, tensor: str, where: Place) -> Difference:
    """The same, with the name of what was compared."""
    return Difference(rung=rung, graph=graph, tensor=tensor, where=where, **asdict(metrics_of(got, want)))
