"""What a parity check finds: differences, held against committed limits, and the report of them.

A stage is one comparison, of something with its neighbour on the ladder:
    torch fp32            against torch fp64                             the reference's own rounding
    torch fp16, bf16      every operation rounded, against torch fp32    what the dtype costs, islands included
    onnx fp32             against torch fp32                             what the export costs
    onnx fp16, bf16       against torch of that dtype                    the same, in the bundle's dtype
    engine fp32, ...      against the ONNX file it was built from        what the compiler costs
    gpu fp32, ...         the target's own runtime, against torch fp32   the vision side on the device, all together
    bundle fp32, ...      a whole stream on the CPU, against torch fp32  all of it together, and the language side
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import inf, log10, nan
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import SpecError
from engines.memory import Array
from engines.spec import Precision

PARITY_NAME = "parity.json"
THRESHOLDS = Path(__file__).with_name("thresholds.json")
GATED = ("rel_l2", "worst_token", "cosine_gap", "norm_gap")
"""The metrics that have limits; all four must hold."""
Thresholds = dict[str, dict[str, dict[str, dict[str, float]]]]
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One tensor of one run against its neighbour. `where` says which run: 'frame 3', 'pass 7'.

    rel_l2         |a - b| / |b| over the whole tensor
    worst_token    the largest |a_i - b_i| of any token's vector, over the root mean square of |b_i|
    cosine_gap     1 - the smallest cosine of a token with its neighbour's
    norm_gap       | |a| / |b| - 1 |
    num_nonfinite  values that are NaN or infinite, on either side: a reference that is NaN proves nothing
    """

    stage: str
    graph: str
    tensor: str
    where: str
    max_abs: float
    rel_l2: float
    worst_token: float
    cosine_gap: float
    norm_gap: float
    num_nonfinite: int

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 20 log10 of |b| / |a - b|; infinite for equal tensors."""
        return inf if self.rel_l2 == 0 else -20 * log10(self.rel_l2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The worst of one tensor over the stream, held against its committed limits."""

    stage: str
    graph: str
    tensor: str
    num_compared: int
    worst: Difference
    limits: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.share() <= 1

    def share(self) -> float:
        """How much of its limit the worst metric uses; above 1 fails."""
        if self.worst.num_nonfinite:
            return inf
        return max(float(getattr(self.worst, metric)) / self.limits[metric] for metric in GATED)

    def text(self) -> str:
        """The worst metric and its limit, in words."""
        worst, limits = self.worst, self.limits
        if worst.num_nonfinite:
            return f"{worst.num_nonfinite} values are NaN or infinite at {worst.where}"
        metric = max(GATED, key=lambda name: float(getattr(worst, name)) / limits[name])
        return f"{metric.replace('_', ' ')} {getattr(worst, metric):.1e} (limit {limits[metric]:.1e}) at {worst.where}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """At one step, a token among the bundle's k likeliest that is not among the reference's.

    margin  logits of the reference between it and the reference's k-th; tie  what still counts as a near tie
    """

    step: int
    k: int
    margin: float
    tie: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One prompt, answered by the bundle and by the reference (words/conversations.py).

    num_tokens, num_said   length of the reference's greedy answer, and of the bundle's
    prefix                 tokens that the two have in common before they part
    num_steps              steps that were scored with the reference's answer fed to both
    max_kl, mean_kl        KL(reference || bundle) over these steps, in nats
    scaled_kl              the largest KL over the mean square of the reference's logits at its step: what has a limit,
                           since louder logits make the same relative error a larger KL
    flips                  where the likeliest token, or the five likeliest, are others than the reference's
    """

    kind: str
    question: str
    num_tokens: int
    num_said: int
    prefix: int
    num_steps: int
    max_kl: float
    mean_kl: float
    scaled_kl: float
    flips: tuple[Flip, ...]

    @property
    def equal(self) -> bool:
        """The same answer, token by token."""
        return self.prefix == self.num_tokens == self.num_said

    def fault(self, kl_limit: float) -> str | None:
        """What is wrong with it, in words; None if nothing is."""
        if not self.scaled_kl <= kl_limit:  # NaN as well
            return f"KL {self.scaled_kl:.1e} of the logits' mean square is above {kl_limit:.1e}"
        for flip in self.flips:
            if flip.margin > flip.tie:
                rank = "the likeliest" if flip.k == 1 else f"among the {flip.k} likeliest"
                return (
                    f"at token {flip.step} another one is {rank}, by {flip.margin:.2g} logits of the reference, more "
                    f"than {flip.tie:.1e}"
                )
        if not self.equal and not any(flip.k == 1 and flip.step == self.prefix for flip in self.flips):
            return f"the answers part at token {self.prefix}, but scored with the same tokens they do not"
        return None

    def num_same(self, k: int) -> int:
        """Steps with the same k likeliest tokens."""
        return self.num_steps - sum(flip.k == k for flip in self.flips)


def compare_arrays(got: Array, want: Array, *, stage: str, graph: str, tensor: str, where: str) -> Difference:
    """The difference of two arrays of one shape; a token's vector is the last axis."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    error = np.linalg.norm(a - b, axis=-1)
    norms = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    total = float(np.linalg.norm(norms[1]))
    # A token of no length on both sides has no direction to lose.
    cosines = np.where(error == 0, 1.0, (a * b).sum(-1) / np.maximum(norms[0] * norms[1], TINY))
    return Difference(
        stage=stage,
        graph=graph,
        tensor=tensor,
        where=where,
        max_abs=float(np.abs(a - b).max()),
        rel_l2=float(np.linalg.norm(error)) / max(total, TINY),
        worst_token=float(error.max()) / max(float(np.sqrt(np.mean(norms[1] ** 2))), TINY),
        cosine_gap=max(1.0 - float(cosines.min()), 0.0),
        norm_gap=abs(float(np.linalg.norm(norms[0])) - total) / max(total, TINY),
        num_nonfinite=int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum()),
    )


def not_finite(got: Array, *, stage: str, graph: str, tensor: str, where: str) -> Difference:
    """The difference of an array that is not finite: whatever the reference says, it has no size."""
    return Difference(
        stage=stage, graph=graph, tensor=tensor, where=where, max_abs=nan, rel_l2=nan, worst_token=nan, cosine_gap=nan,
        norm_gap=nan, num_nonfinite=int((~np.isfinite(got)).sum()),
    )  # fmt: skip


def near_tie(logits: Array, precision: Precision) -> float:
    """The reference's margin, in logits, below which another token is rounding and no fault.

    Both tokens may be off by the committed limit of the logits, which is relative to their root mean square.
    """
    limit = load_thresholds()[f"bundle {precision}"]["head/logits"]["rel_l2"]["limit"]
    return 2 * limit * float(np.sqrt(np.mean(np.square(logits, dtype=np.float64))))


def worst_rows(found: Iterable[Difference]) -> tuple[Row, ...]:
    """The worst difference of every tensor in every stage, with its committed limits. In order of first appearance."""
    thresholds = load_thresholds()
    rows: dict[tuple[str, str, str], Row] = {}
    for difference in found:
        key = difference.stage, difference.graph, difference.tensor
        limits = _limits(thresholds, limits_of(difference.stage), limit_key(difference.graph, difference.tensor))
        row = Row(
            stage=difference.stage,
            graph=difference.graph,
            tensor=difference.tensor,
            num_compared=rows[key].num_compared + 1 if key in rows else 1,
            worst=difference,
            limits={metric: limits[metric]["limit"] for metric in GATED},
        )
        if key in rows and rows[key].share() >= row.share():
            row = replace(row, worst=rows[key].worst)
        rows[key] = row
    return tuple(rows.values())


def beyond_limits(found: Iterable[Difference]) -> list[Difference]:
    """Those that no limit allows, in their order."""
    return [difference for difference in found if not worst_rows([difference])[0].passed]


def _limits(thresholds: Thresholds, stage: str, key: str) -> dict[str, dict[str, float]]:
    try:
        return thresholds[stage][key]
    except KeyError:
        raise SpecError(
            f"{THRESHOLDS} has no limit for '{key}' in stage '{stage}'. A graph or stage was added: give it an open "
            "limit there, then measure: python -m pvc_export.studies.limits --seeds 6 --write"
        ) from None


def limits_of(stage: str) -> str:
    """The stage whose limits hold. No GPU has measured any yet: an engine may be off as the ONNX rung may, which is the
    same graph in the same dtype, and in all as far as the bundle."""
    return stage.replace("engine", "onnx").replace("gpu", "bundle")


def limit_key(graph: str, tensor: str) -> str:
    """Cache rows of all layers share one limit: 'temporal/new', 'llm/new'."""
    return f"{graph}/{'new' if tensor.startswith(('new.', 'present.')) else tensor}"


def load_thresholds() -> Thresholds:
    """The committed limits: stage -> 'graph/tensor' -> metric -> limit and the measured value it comes from."""
    limits: Thresholds = _thresholds()["limits"]
    return limits


def kl_limit(precision: Precision) -> float:
    """The committed limit of Conversation.scaled_kl, at any step of any answer."""
    limit: float = _thresholds()["kl"][precision]["limit"]
    return limit


@cache
def _thresholds() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(THRESHOLDS.read_text(encoding="utf-8"))
    return data
