"""The rule that limits come from, and the slope of an error, on worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pvc_export.foreign.limits import CEILING, MARGIN, ULPS, compare, drift_of, limits_of, slope_of


def test_the_limit_is_the_rule_of_a_worked_example() -> None:
    unit = 2.0**-24
    assert limits_of({"rel_l2": 1e-7, "worst_token": 0.0}, unit) == {
        "rel_l2": pytest.approx(MARGIN * 1e-7 + ULPS * unit),
        "worst_token": pytest.approx(ULPS * unit),
    }
    assert limits_of({"rel_l2": 1e-7}, 2.0**-11)["rel_l2"] == pytest.approx(2**13 * (MARGIN * 1e-7 + ULPS * unit))
    assert limits_of({"rel_l2": np.inf}, unit) == limits_of({"rel_l2": 0.5}, unit) == {"rel_l2": CEILING}
    assert set(limits_of(None, unit).values()) == {128 * unit}


def held(got: Any, want: Any) -> bool:
    floor = {"rel_l2": 1e-7, "worst_token": 1e-7}
    return compare(np.asarray(got), np.asarray(want), tensor="y", run="", step=0, floor=floor, unit=2.0**-24).passed


def test_integers_must_be_equal_and_nothing_may_be_nan_and_empty_arrays_agree() -> None:
    assert held([1, 2], [1, 2]) and not held([1, 2], [1, 3]) and not held([True], [False])
    assert held([1.0], [1.0 + 1e-6]) and not held([1.0], [1.0 + 1e-5]) and held(2.0, 2.0)
    assert not held([np.nan], [np.nan]) and not held([np.inf], [np.inf])
    assert held(np.zeros((2, 0, 3)), np.zeros((2, 0, 3)))


def test_a_slope_is_that_of_a_worked_example_and_its_interval_holds_it() -> None:
    slope = slope_of([1.0, 3.0, 5.0, 7.0])
    assert (slope.middle, slope.value, slope.low, slope.high) == pytest.approx((4, 2, 2, 2))
    noisy = slope_of(3e-9 * np.arange(64) + np.random.default_rng(0).normal(0, 2e-8, 64))
    assert noisy.low < 3e-9 < noisy.high and noisy.low > 0


def test_rounding_that_wanders_is_no_drift_and_a_loss_at_every_step_is() -> None:
    """Of a hundred random walks, whose errors lean on each other, none may alarm."""
    unit = 2.0**-24
    walks = np.abs(np.random.default_rng(1).normal(0, 1e-7, (100, 64, 8)).cumsum(axis=1)).mean(axis=2)
    assert all(drift_of("h", walk, other, unit).passed for walk, other in zip(walks, walks[::-1], strict=True))
    flat = np.full(64, 1e-7)
    assert drift_of("h", flat * 3, flat, unit).passed
    assert not drift_of("h", flat + 1.5e-8 * np.arange(64), flat, unit).passed
