"""What a parity check finds: differences, held against committed limits, and the report of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engines.session import Array
from engines.spec import GRAPH_NAMES, Precision

PARITY_NAME = "parity.json"
THRESHOLDS = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One tensor of one run against its reference. `where` says which run: 'frame 3', 'pass 7'.

    rel_l2       |a - b| / |b| over the whole tensor
    worst_token  the largest |a_i - b_i| of any token's vector, over the root mean square of |b_i|
    """

    graph: str
    tensor: str
    where: str
    max_abs: float
    rel_l2: float
    worst_token: float
    finite: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The worst of one tensor over the stream, held against its committed limits."""

    graph: str
    tensor: str
    num_compared: int
    worst: Difference
    rel_l2_limit: float
    worst_token_limit: float

    @property
    def passed(self) -> bool:
        worst = self.worst
        return worst.finite and worst.rel_l2 <= self.rel_l2_limit and worst.worst_token <= self.worst_token_limit

    def share(self) -> float:
        """How much of its limit the worst difference uses; above 1 fails."""
        worst = self.worst
        if not worst.finite:  # on either side: a reference that is NaN proves nothing
            return float("inf")
        return max(worst.rel_l2 / self.rel_l2_limit, worst.worst_token / self.worst_token_limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """What was compared, and how it came out."""

    precision: Precision
    computed_in: str
    num_frames: int
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    num_weights: int
    wrong_weights: dict[str, list[str]]
    num_tokens: int
    num_equal_tokens: int
    wrong_tokens: tuple[str, ...]
    engines: str

    @property
    def passed(self) -> bool:
        return not (self.missing or self.wrong_weights or self.wrong_tokens) and all(row.passed for row in self.rows)

    @property
    def first_failed_graph(self) -> str | None:
        """The first graph that is not as it should be, in the order in which a frame and then its text pass through."""
        failed = {row.graph for row in self.rows if not row.passed} | set(self.wrong_weights)
        return next((name for name in GRAPH_NAMES if name in failed), None)

    def summary(self) -> str:
        worst = max(self.rows, key=Row.share)
        return (
            f"{'pass' if self.passed else 'FAIL'}: {self.num_weights} weights bit-equal, {len(self.rows)} tensors over "
            f"{self.num_frames} frames at most at {worst.share():.0%} of their limits, "
            f"{self.num_equal_tokens}/{self.num_tokens} tokens equal"
        )

    def failure_text(self) -> str:
        lines = [f"the bundle differs from the reference ({self.precision}, computed in {self.computed_in}):"]
        failed = sorted((row for row in self.rows if not row.passed), key=Row.share, reverse=True)
        lines += [
            f"  {row.graph}: {row.tensor} at {row.worst.where}: relative L2 {row.worst.rel_l2:.1e} (limit "
            f"{row.rel_l2_limit:.1e}), worst token {row.worst.worst_token:.1e} (limit {row.worst_token_limit:.1e})"
            + ("" if row.worst.finite else ", NaN or infinity")
            for row in failed[:6]
        ]
        lines += [f"  {wrong}" for wrong in self.wrong_tokens[:4]]
        lines += [f"  never seen, so never compared: {', '.join(self.missing)}"] if self.missing else []
        lines += [
            f"  {graph}: not the reference's weights: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for graph, names in self.wrong_weights.items()
        ]
        if self.first_failed_graph:
            lines.append(
                f"The first graph on the way that is not as it should be is '{self.first_failed_graph}'. Likely a "
                "wrong weight, mask or slot, or a dtype too narrow there. Compare in float32: pvc-export onnx --fp32"
            )
        return "\n".join(lines)

    def receipt(self) -> dict[str, Any]:
        """The lines of the manifest that say how this bundle was checked."""
        worst = max(self.rows, key=Row.share)
        return {
            "passed": self.passed,
            "precision": self.precision,
            "computed_in": self.computed_in,
            "num_frames": self.num_frames,
            "num_tensors": len(self.rows),
            "num_weights_bit_equal": self.num_weights,
            "worst_tensor": f"{worst.graph}/{worst.tensor}",
            "worst_share_of_limit": round(worst.share(), 4),
            "equal_tokens": f"{self.num_equal_tokens}/{self.num_tokens}",
            "engines": self.engines,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            **self.receipt(),
            "wrong_weights": self.wrong_weights,
            "missing": self.missing,
            "wrong_tokens": self.wrong_tokens,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
        }


def compare_arrays(got: Array, want: Array, *, graph: str, tensor: str, where: str) -> Difference:
    """The difference of two arrays of one shape; a token's vector is the last axis."""
    error = got.astype(np.float64) - want
    errors, sizes = np.linalg.norm(error, axis=-1), np.linalg.norm(want, axis=-1)
    scale = max(float(np.sqrt(np.mean(sizes**2))), np.finfo(np.float64).tiny)
    return Difference(
        graph=graph,
        tensor=tensor,
        where=where,
        max_abs=float(np.abs(error).max()),
        rel_l2=float(np.linalg.norm(error) / max(np.linalg.norm(want), np.finfo(np.float64).tiny)),
        worst_token=float(errors.max()) / scale,
        finite=bool(np.isfinite(got).all() and np.isfinite(want).all()),
    )


def near_tie(logits: Array, precision: Precision) -> float:
    """The reference's margin, in logits, below which another token is rounding and no fault.

    Both tokens may be off by the committed limit of the logits, which is relative to their root mean square.
    """
    limit = load_thresholds()[precision]["head/logits"]["rel_l2"]
    return 2 * limit * float(np.sqrt(np.mean(np.square(logits, dtype=np.float64))))


def worst_rows(found: Iterable[Difference], precision: Precision) -> tuple[Row, ...]:
    """The worst difference of every tensor, with the committed limits of `precision`. In order of first appearance."""
    limits = load_thresholds()[precision]
    rows: dict[tuple[str, str], Row] = {}
    for difference in found:
        key = difference.graph, difference.tensor
        limit = limits[limit_key(*key)]
        row = Row(
            graph=difference.graph,
            tensor=difference.tensor,
            num_compared=rows[key].num_compared + 1 if key in rows else 1,
            worst=difference,
            rel_l2_limit=limit["rel_l2"],
            worst_token_limit=limit["worst_token"],
        )
        if key in rows and rows[key].share() >= row.share():
            row = replace(row, worst=rows[key].worst)
        rows[key] = row
    return tuple(rows.values())


def limit_key(graph: str, tensor: str) -> str:
    """Cache rows of all layers share one limit: 'temporal/new', 'llm/new'."""
    return f"{graph}/{'new' if tensor.startswith('new.') else tensor}"


def load_thresholds() -> dict[str, dict[str, dict[str, float]]]:
    """The committed limits: precision -> 'graph/tensor' -> limits and the measured values they come from."""
    limits: dict[str, dict[str, dict[str, float]]] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))["limits"]
    return limits
