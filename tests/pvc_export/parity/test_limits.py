"""Metrics and limits of a check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engines.spec import Precision
from pvc_export.parity.limits import GATED, factors_of, thresholds, worst_rows
from pvc_export.parity.metrics import compare_arrays
from pvc_export.parity.places import Rung, RungKind

from .test_check import WORKED, noise_of

pytestmark = pytest.mark.usefixtures("stream_alone")


def test_the_metrics_are_those_of_a_worked_example() -> None:
    want = np.array([[[3.0, 4.0], [0.0, 5.0]]])
    got = np.array([[[4.0, 3.0], [0.0, 5.0]]])
    difference = compare_arrays(got, want, **WORKED)
    assert difference.max_abs == pytest.approx(1.0)
    assert difference.rel_l2 == pytest.approx(np.sqrt(2 / 50))
    assert difference.worst_token == pytest.approx(np.sqrt(2) / 5)
    assert difference.cosine_gap == pytest.approx(1 - 24 / 25)
    assert difference.norm_gap == pytest.approx(0.0)
    assert difference.sqnr_db == pytest.approx(10 * np.log10(25))
    assert compare_arrays(1.5 * want, want, **WORKED).norm_gap == pytest.approx(0.5)
    assert compare_arrays(1.5 * want, want, **WORKED).cosine_gap == pytest.approx(0.0)
    assert compare_arrays(got * np.nan, want, **WORKED).num_nonfinite == 4
    assert compare_arrays(want, want, **WORKED).sqnr_db == np.inf


@pytest.mark.parametrize("metric", GATED)
def test_each_metric_alone_can_fail_a_row(metric: str) -> None:
    want = np.eye(3)
    (row,) = worst_rows([noise_of(want + 1e-3, want).judged(compare_arrays(want, want, **WORKED))])
    assert row.passed
    bad = replace(row.worst, **{metric: 1.01 * row.worst.limits[metric]})
    assert not replace(row, worst=bad).passed
    assert metric.replace("_", " ") in replace(row, worst=bad).text()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["onnx", "bundle", "engine", "gpu"])
def test_every_rung_has_committed_factors_with_room_and_an_end(kind: RungKind, dtype: Precision) -> None:
    factors = factors_of(Rung(kind, dtype))
    assert set(factors) == set(GATED)
    assert all(1 < factor <= 20 for metric, factor in factors.items() if metric != "cosine_gap")
    assert 1 < factors["cosine_gap"] <= 100
    assert set(thresholds()["ceilings"]) == set(thresholds()["kl"]) == set(thresholds()["ties"])
