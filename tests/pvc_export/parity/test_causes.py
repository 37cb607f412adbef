"""Causes of a failed check: five kinds, each with its own text and next step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pvc_export.parity.causes import CLOSE
from pvc_export.parity.levels import Rule
from pvc_export.parity.limits import NoiseTable, worst_rows
from pvc_export.parity.metrics import Difference, compare_arrays
from pvc_export.parity.places import Place, Rung
from pvc_export.parity.report import ParityReport

WANT = np.array([[1.0, 2.0, 3.0, 4.0]])
AT: dict[str, Any] = {"graph": "llm", "tensor": "hidden", "where": Place("pass", 2)}


def report_of(*found: Difference, noise: float = 1e-4, **changes: Any) -> ParityReport:
    own = compare_arrays(WANT * (1 + noise), WANT, rung=Rung("torch", "fp16"), **AT)
    others = [replace(own, tensor=one.tensor) for one in found]
    judged = tuple(map(NoiseTable([own, *others]).judged, (own, *found)))
    report = ParityReport(
        differences=judged, rows=worst_rows(judged), precision="fp16", rounding="fp16", computed_in="float32",
        num_frames=3, window=2, looked=True,
    )  # fmt: skip
    return replace(report, **changes)


def off_by(part: float) -> Difference:
    """A difference of `part` times its limit in one metric."""
    faithful = report_of(compare_arrays(WANT, WANT, rung=Rung("bundle", "fp16"), **AT)).rows[1].worst
    return replace(faithful, worst_token=part * faithful.limits["worst_token"])


def test_a_reference_that_is_nan_is_told_before_anything_else() -> None:
    found = compare_arrays(WANT, WANT * np.nan, rung=Rung("bundle", "fp16"), **AT)
    cause = report_of(found, wrong_weights={"llm": {"w": "it is nowhere"}}).cause()
    assert cause.kind == "reference" and "llm/hidden at pass 2" in cause.text and "pvc-export inspect" in cause.text


def test_a_model_that_its_dtype_does_not_hold_is_no_fault_of_the_export() -> None:
    cause = report_of(off_by(3.0), noise=0.5).cause()
    assert cause.kind == "model" and "too coarse in fp16" in cause.text and "--bisect" in cause.text
    assert "not this export" in cause.text


def test_wrong_weights_and_structure_are_the_exports() -> None:
    assert report_of(off_by(9.0), wrong_weights={"llm": {"w": "it is nowhere"}}).cause().kind == "export"
    broken = Rule(level="A", name="structure of 'llm'", passed=False, detail="an epsilon")
    assert "structure of 'llm'" in report_of(rules=(broken,)).cause().text


def test_of_a_check_layer_by_layer_the_layer_is_named() -> None:
    layer = replace(off_by(CLOSE), tensor="layer.7")
    cause = report_of(layer, looked=False).cause()
    assert cause.kind == "export" and cause.text.startswith("Layer 7 of the LLM") and "--whole" in cause.text
    assert report_of(replace(layer, worst_token=0.0), looked=False).cause().kind == "unknown"


def test_a_limit_is_doubted_only_where_nothing_else_is_wrong_and_little_is_missing() -> None:
    cause = report_of(off_by(CLOSE)).cause()
    assert cause.kind == "limit" and "studies.limits" in cause.text and f"{CLOSE:.2f} of its limit" in cause.text
    assert report_of(off_by(CLOSE + 0.1)).cause().kind == "input"
    assert report_of(off_by(CLOSE), wrong_tokens=("token 0 is 3",)).cause().kind == "input"
    assert report_of(off_by(CLOSE), looked=False).cause().kind == "unknown"


def test_pixels_and_prompts_that_differ_are_named_as_what_the_graphs_are_fed() -> None:
    resized = Rule(level="K", name="pixels", passed=False, detail="another resize")
    cause = report_of(off_by(50.0), rules=(resized,)).cause()
    assert cause.kind == "input" and "pixels: another resize" in cause.text


@pytest.mark.parametrize("part", [0.0, 0.99])
def test_what_passes_has_nothing_to_explain(part: float) -> None:
    report = report_of(off_by(part))
    assert report.passed and report.failure_text() == ""
