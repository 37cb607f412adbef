"""The ranges that integers and masks are drawn from, and the report on an input without bounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from pvc_export.foreign import ForeignRequest
from pvc_export.foreign.declare import declare
from pvc_export.foreign.draw import Moment, draw
from pvc_export.foreign.integers import masks_of, tables_of
from pvc_export.foreign.page import junit, render

from ..conftest import Run
from ..report.html_page import Page
from .faults import perturb_row
from .models import MODELS, Checker, with_weights

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
IDS = {"sizes": ("seen=past+rows",)}


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


@pytest.mark.parametrize("row", [0, 9, 15])
def test_a_wrong_row_of_a_table_is_seen_without_a_bound_whichever_it_is(row: int, check: Checker) -> None:
    report = check("decoder", perturb_row(row), **IDS)
    assert [fault.level for fault in report.faults()] and report.touched == {"input_ids": 16}
    assert "  table  'input_ids' read 16 of the 16 rows of 'table'" in report.table()
    faithful = check("decoder", **IDS)
    assert faithful.passed, faithful.failure_text()
    assert faithful.to_json()["tables"] == {"input_ids": {"table": "table", "rows": 16, "touched": 16}}


def test_of_a_table_that_is_longer_than_the_stream_both_ends_and_no_row_twice_are_looked_at() -> None:
    steps = [draw((2, 3), "int64", (0, 9_999), Moment(0, "D", step)) for step in range(64)]
    rows = np.concatenate(steps).ravel().tolist()
    assert len(set(rows)) == len(rows) == 384 and {0, 9_999} <= set(rows)
    assert max(np.diff(sorted(rows))) < 300  # spread over the whole range
    again = [draw((2, 3), "int64", (0, 9_999), Moment(0, "D", step)) for step in range(64)]
    assert np.array_equal(steps, again)
    assert not np.array_equal(steps[0], draw((2, 3), "int64", (0, 9_999), Moment(0, "B", 0)))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (5, 7), (0, 3)], ids=str)
def test_every_value_of_a_bound_comes_before_any_comes_again(shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    drawn = [draw(shape, "int32", (-3, 6), Moment(1, "D", step)) for step in range(20)]
    assert all(array.shape == shape and array.dtype == np.int32 for array in drawn)
    values = np.concatenate([array.ravel() for array in drawn])
    assert count == 0 or set(values.tolist()) == set(range(-3, 7))
    turns = [values[i : i + 10].tolist() for i in range(0, len(values), 10)]
    assert count > 9 or all(len(set(turn)) == len(turn) for turn in turns)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_two_inputs_of_a_kind_are_not_drawn_alike(dtype: str, check: Checker) -> None:
    """Otherwise a graph that confuses the two would pass."""
    check("cell", steps=3)
    kind = {"float32": "float", "int64": "int64", "bool": "bool"}[dtype]
    text = f"{HEAD} g ({kind}[batch, 20] a, {kind}[batch, 20] b) => ({kind}[batch, 20] c) {{ c = Identity(a) }}"
    model = parser.parse_model(text)
    bounds = () if dtype == "float32" else ("a=0:1", "b=0:1") if dtype == "bool" else ("a=0:99", "b=0:99")
    request = ForeignRequest(reference="a:B", graph=check.path, bounds=bounds)
    drawn = declare(model, request, check.path).draw({"batch": 3}, Moment(0, "D", 0))
    assert not np.array_equal(drawn["a"], drawn["b"])


WAYS = {
    "cast, then reshaped": "a = Cast <to = 6> (ids) b = Reshape(a, flat) y = Gather(table, b)",
    "joined to others and cut": "a = Concat <axis = 0> (ids, more) b = Slice(a, none, one) y = Gather(table, b)",
    "wrapped where negative": "a = Less(ids, none) b = Add(ids, size) c = Where(a, b, ids) y = Gather(table, c)",
    "along another axis": "a = Squeeze(ids, none) y = Gather <axis = 1> (turned, a)",
    "of a table that a node makes": "t = Transpose(turned) y = Gather(t, ids)",
    "of the smaller of two": "big = Concat <axis = 0> (table, table) a = Gather(big, ids) y = Gather(table, ids)",
}


@pytest.mark.parametrize("way", WAYS)
def test_the_table_is_found_through_whatever_passes_an_index_on(way: str) -> None:
    text = f"{HEAD} g (int64[1] ids, int64[2] more) => (float[n, m] y) {{ {WAYS[way]} }}"
    table = np.zeros((12, 5), np.float32)
    weights = {"table": table, "turned": table.T, "flat": np.array([-1]), "none": np.array([0]), "one": np.array([1])}
    model = with_weights(parser.parse_model(text), weights | {"size": np.array(12)})
    assert tables_of(model, {"ids", "more"})["ids"].num_rows == 12


def test_an_index_that_is_computed_with_has_no_table() -> None:
    text = f"{HEAD} g (int64[1] ids) => (float[n, 5] y) {{ a = Add(ids, ids) y = Gather(table, a) }}"
    model = with_weights(parser.parse_model(text), {"table": np.zeros((12, 5), np.float32)})
    assert tables_of(model, {"ids"}) == {}


@pytest.mark.parametrize("case", ["marks hide", "marks show"])
def test_a_mask_that_only_its_use_shows_never_hides_a_whole_row(case: str, check: Checker) -> None:
    report = check(case, steps=20)
    assert report.passed, report.failure_text()  # a row that hides everything would be NaN
    hides = case == "marks hide"
    assert report.declared.masks == {"marked": int(hides)} and not report.not_shown()
    drawn = [draw((4, 3), "bool", (0, 1), Moment(0, "D", step), hides=int(hides)) for step in range(20)]
    assert all((rows != hides).any(axis=-1).all() for rows in drawn) and not np.all(drawn != np.array(hides))


def test_what_is_called_a_mask_is_one_and_a_padding_mask_marks_what_is_hidden() -> None:
    model = parser.parse_model(f"{HEAD} g (float[1] x) => (float[1] y) {{ y = Abs(x) }}")
    assert masks_of(model, {"attention_mask", "pad_mask", "ids"}) == {"attention_mask": 0, "pad_mask": 1}


def test_positions_that_are_added_to_scores_are_no_mask() -> None:
    text = f"""{HEAD} g (float[2, 3] x, int64[3] positions, bool[3] seen) => (float[2, 3] y) {{
  near = Cast <to = 1> (positions)
  flags = Cast <to = 1> (seen)
  some = Add(x, near)
  scores = Add(some, flags)
  y = Softmax(scores)
}}"""
    assert masks_of(parser.parse_model(text), {"positions", "seen"}) == {"seen": 0}


def test_an_integer_that_nothing_bounds_is_no_pass_until_the_command_line_says_what_it_is(
    check: Checker, pvc_export: Run
) -> None:
    report = check("scaled")
    assert not report.faults() and not report.passed and report.summary().startswith("not shown: ")
    assert report.next_command()[0].endswith("--bound rate=LOW:HIGH")
    assert "NOT SHOWN" in Page(render(report)).text and "input 'rate'" in Page(render(report)).text
    assert "input 'rate'" in junit(report)
    command = ("check", "--reference", f"{MODELS}:Scaled", "--graph", check.path, "--steps", 20)
    pvc_export(*command).says(6, "not shown: input 'rate': an integer of unknown range", "--bound rate=LOW:HIGH")
    data = json.loads(pvc_export(*command, "--json").out)
    assert data["passed"] is False and "rate" in next(iter(data["not_shown"]))
    assert pvc_export(*command, "--bound", "rate=8000:16000").exit_code == 0
