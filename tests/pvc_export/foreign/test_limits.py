"""The rule that gives limits, and the slope of an error, on worked examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pvc_export.foreign.limits import CEILING, FAITHFUL, MARGIN, ULPS, Judge
from pvc_export.foreign.page import render
from pvc_export.parity.drift.report import Drift, Sample
from pvc_export.parity.limits import GATED, NoiseTable
from pvc_export.parity.metrics import Difference
from pvc_export.parity.places import Place, Rung

from ..conftest import Run
from ..report.html_page import Page
from .faults import initializer, node_of, perturb
from .models import CELL_STATES, MODELS, Checker


def test_the_limit_is_the_rule_of_a_worked_example() -> None:
    unit, limits = 2.0**-24, Judge("g").limits
    assert limits({"rel_l2": 1e-7, "worst_token": 0.0}) == {
        "rel_l2": pytest.approx(MARGIN * 1e-7 + ULPS * unit),
        "worst_token": pytest.approx(ULPS * unit),
    }
    half = Judge("g", "float16").limits({"rel_l2": 1e-7})
    assert half["rel_l2"] == pytest.approx(2**13 * (MARGIN * 1e-7 + ULPS * unit))
    assert limits({"rel_l2": np.inf}) == limits({"rel_l2": 0.5}) == {"rel_l2": CEILING}
    assert set(limits(None).values()) == {128 * unit}


def noise_of(floor: float) -> NoiseTable:
    """Noise of the outputs 'y' and 'h' of a graph 'g', with the same value for all metrics."""
    same = dict.fromkeys(GATED, floor)
    rung, where = Rung("torch", "fp32"), Place("step")
    return NoiseTable(Difference(rung=rung, graph="g", tensor=name, where=where, **same) for name in "yh")


def held(got: Any, want: Any) -> bool:
    where, noise = Place("step"), noise_of(1e-7)
    return Judge("g").compare(np.asarray(got), np.asarray(want), tensor="y", where=where, noise=noise).passed


def test_integers_must_be_equal_and_nothing_may_be_nan_and_empty_arrays_agree() -> None:
    assert held([1, 2], [1, 2]) and not held([1, 2], [1, 3]) and not held([True], [False])
    assert held([1.0], [1.0 + 1e-6]) and not held([1.0], [1.0 + 1e-5]) and held(2.0, 2.0)
    assert not held([np.nan], [np.nan]) and not held([np.inf], [np.inf])
    assert held(np.zeros((2, 0, 3)), np.zeros((2, 0, 3)))


def drift(errors: Any, floors: Any) -> Drift:
    """Drift of a stream that has the same errors from float32 and from float64."""
    samples = [Sample(frame=i, error=e, floor=f, gap=e) for i, (e, f) in enumerate(zip(errors, floors, strict=True))]
    return Judge("g").drift("h", samples, noise_of(max(floors)))


@pytest.mark.parametrize(("num_steps", "first", "num_blocks"), [(16, 2.0, 7), (24, 2.0, 11), (64, 9.5, 7)])
def test_a_slope_is_fitted_to_blocks_that_lie_apart_after_the_first_steps(
    num_steps: int, first: float, num_blocks: int
) -> None:
    found = drift(3e-9 * np.arange(num_steps), np.full(num_steps, 1e-7))
    assert len(found.samples) == num_steps and len(found.means) == num_blocks and found.means[0].frame >= first
    assert found.trend("gap").slope == pytest.approx(3e-9) == found.trend("gap").lower
    assert found.noise == pytest.approx((MARGIN * 1e-7 + ULPS * 2.0**-24) / FAITHFUL)


def test_rounding_that_wanders_is_no_drift_and_a_loss_at_every_step_is() -> None:
    """None of a hundred random walks, whose errors are correlated, may raise an alarm."""
    walks = np.abs(np.random.default_rng(1).normal(0, 1e-7, (100, 64, 8)).cumsum(axis=1)).mean(axis=2)
    assert all(drift(walk, other).verdict == "ok" for walk, other in zip(walks, walks[::-1], strict=True))
    flat = np.full(64, 1e-7)
    assert drift(flat * 3, flat).verdict == "ok"
    assert drift(flat + 1.5e-8 * np.arange(64), flat).verdict.startswith("drifts: +9.6e-07 ")
    assert drift(flat + 1.5e-8 * np.arange(64), flat + 1.5e-8 * np.arange(64)).verdict == "ok"  # so does the floor


def quantized(model: onnx.ModelProto) -> None:
    """Store the weights of y in 8 bits, as a quantisation tool does."""
    values = numpy_helper.to_array(initializer(model, "wo"))
    scale = np.abs(values).max() / 127
    node_of(model, "y").input[1] = "wide"
    node = helper.make_node("DequantizeLinear", ["narrow", "scale"], ["wide"])
    model.graph.node.insert(0, node)
    narrow, one = np.round(values / scale).astype(np.int8), np.array(scale, np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(narrow, "narrow"), numpy_helper.from_array(one, "scale")])


def test_a_quantized_graph_fails_the_rule_and_says_which_option_lets_it_be_further_off(tmp_path: Path) -> None:
    report = Checker(tmp_path)("cell", quantized, steps=20)
    assert {fault.part for fault in report.faults()} == {"y"}
    assert "quantized operators (DequantizeLinear)" in report.faults()[0].cause
    assert "--tolerance rel_l2=LIMIT" in report.failure_text() and "quantized (Dequant" in "\n".join(report.table())


def test_a_tolerance_takes_the_place_of_the_rule_and_is_in_every_report(tmp_path: Path, pvc_export: Run) -> None:
    check = Checker(tmp_path)
    report = check("cell", quantized, steps=20, tolerances=("rel_l2=0.05", "max_abs=0.2"))
    assert report.passed, report.failure_text()
    assert {frozenset(one.limits.items()) for one in report.compared("D")} == {
        frozenset({"rel_l2": 0.05, "max_abs": 0.2}.items())
    }
    assert report.to_json()["rule"]["tolerance"] == {"rel_l2": 0.05, "max_abs": 0.2}
    text = Page(render(report)).text
    assert "rel l2 0.05, max abs 0.2, given by --tolerance" in text and "≤ 2.0e-1" in text and "note" not in text
    assert "--tolerance rel_l2=0.05 --tolerance max_abs=0.2" in report.command
    assert not check("cell", perturb("wo", 3.0), steps=20, tolerances=("rel_l2=0.05",)).passed
    tight = check("cell", quantized, steps=20, tolerances=("max_abs=1e-4",))
    assert any(fault.level == "D" for fault in tight.faults()) and "no rel_l2" in tight.not_executed["E drift"]
    command = ("check", "--reference", f"{MODELS}:Cell", "--graph", check.path, "--steps", 3, "--json")
    states = [word for pair in CELL_STATES for word in ("--state", pair)]
    done = pvc_export(*command, *states, "--tolerance", "rel_l2=0.1")
    assert done.exit_code == 0 and json.loads(done.out)["rule"]["tolerance"] == {"rel_l2": 0.1}


@pytest.mark.parametrize("text", ["0.1", "l2=0.1", "rel_l2=0", "rel_l2=-1", "rel_l2=1e999"])
def test_a_tolerance_that_is_none_is_refused(text: str, pvc_export: Run) -> None:
    pvc_export("check", "--reference", "a:B", "--graph", "g.onnx", "--tolerance", text).says(
        2, f"--tolerance {text} is not valid", "the metrics rel_l2, worst_token, max_abs"
    )
