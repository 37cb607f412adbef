"""Names: patterns for pairs, outputs that look like states, crossed pairs, the batch axis, and wrong shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser
from torch import Tensor, nn

from engines.errors import SpecError
from pvc_export.foreign import ForeignRequest, check_foreign
from pvc_export.foreign.names import continues
from pvc_export.foreign.request import StatePair
from pvc_export.foreign.states import Port

from ..conftest import Run
from .models import CELL_STATES, MODELS, WHOLE_STATES, Checker, Edit, with_weights

STEPS = 4


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


@pytest.mark.parametrize("states", [("past_*=present_*",), ("past_*=present_*", "past_k=present_k")], ids=str)
def test_a_pattern_stands_for_every_pair_that_it_fits(states: tuple[str, ...], check: Checker) -> None:
    report = check("attention, whole cache", states=states, steps=STEPS)
    assert report.passed, report.failure_text()
    assert {(pair.input, pair.output) for pair in report.declared.states} == {
        tuple(pair.split("=")) for pair in WHOLE_STATES
    }
    assert f"--state '{states[0]}'" in report.command  # a shell would expand it


def test_a_pattern_carries_what_follows_the_pair(check: Checker) -> None:
    report = check("attention, new rows", states=("past_*=new_*@append:1@start:2",), steps=STEPS)
    assert report.passed and report.declared.sizes["past"] == 2


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("cached_*=new_*", "matches no input and output"),
        ("h*=h_next", "wrong number of"),
        ("*_*=*_*", "wrong number of"),
    ],
)
def test_a_pattern_that_fits_nothing_or_says_two_things_is_refused_with_what_there_is(
    pattern: str, said: str, check: Checker, pvc_export: Run
) -> None:
    with pytest.raises(SpecError, match=said) as info:
        check("cell", states=(pattern,))
    if "matches" in said:
        assert "Inputs: x, h0, h1. " in info.value.expected and "Outputs: y, h0_next, h1_next" in info.value.expected
    request = check.request("cell")
    code = 6 if "matches" in said else 2
    pvc_export("check", "--reference", request.reference, "--graph", request.graph, "--state", pattern).says(code, said)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("past", "present"), ("past_key_values.0.key", "present.0.key"), ("cached_key_0", "new_cached_key_0"),
        ("h", "hn"), ("h0", "hn"), ("state", "stateN"), ("h0", "h0_next"), ("state", "state_out"), ("c_in", "c_out"),
        ("prev_frame", "frame"), ("embed_states", "new_embed_states"), ("hidden", "next_hidden"),
    ],
)  # fmt: skip
def test_a_state_is_known_by_its_two_names(before: str, after: str) -> None:
    shape = ("batch", 4)
    out, into = (Port(name=name, dtype="float32", shape=shape) for name in (after, before))
    assert continues(out, into)
    assert not continues(out, Port(name=before, dtype="float16", shape=shape))
    assert not continues(out, Port(name=before, dtype="float32", shape=(*shape, 4)))
    assert not continues(out, Port(name=before, dtype="float32", shape=("batch", 5)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("input", "output"),
        ("x", "y"),
        ("h1", "h0_next"),
        ("cached_key_0", "new_cached_key_1"),
        ("h", "cn"),
        ("x", "new_y"),
    ],
)
def test_names_that_do_not_go_together_make_no_state(before: str, after: str) -> None:
    out, into = (Port(name=name, dtype="float32", shape=("batch", 4)) for name in (after, before))
    assert not continues(out, into)


def test_an_output_that_looks_like_a_state_and_is_in_no_pair_is_no_pass_unless_it_is_said_to_be_none(
    check: Checker, pvc_export: Run
) -> None:
    report = check("cell", states=CELL_STATES[:1], steps=STEPS)
    assert not report.faults() and not report.passed and list(report.not_shown()) == ["output 'h1_next'"]
    assert "--state h1=h1_next" in report.next_command()[0]
    command = (
        "check",
        "--reference",
        f"{MODELS}:Cell",
        "--graph",
        check.path,
        "--steps",
        STEPS,
        "--state",
        CELL_STATES[0],
    )
    pvc_export(*command).says(6, "it looks like a state, the next 'h1'", "--state h1=h1_next")
    assert pvc_export(*command, "--no-state", "h1_next").exit_code == 0
    pvc_export(*command, "--no-state", "h1_nxt").says(6, "not an output of graph.onnx", "Did you mean 'h1_next'?")


def test_crossed_pairs_are_no_pass_unless_they_are_meant_so(check: Checker) -> None:
    report = check("cell", states=("h0=h1_next", "h1=h0_next"), steps=STEPS)
    assert not report.faults() and not report.passed  # both sides follow the pairs: only the names reveal it
    assert [f"state pair {pair}" for pair in ("h0=h1_next", "h1=h0_next")] == list(report.not_shown())
    assert "looks crossed" in report.not_shown()["state pair h0=h1_next"].why
    command = report.next_command()[0]
    assert "--state h1=h1_next" in command and "--state h0=h0_next" in command and "=h1_next@" not in command
    assert "h0=h1_next " not in command
    assert check("cell", states=("h0=h1_next@crossed", "h1=h0_next@crossed"), steps=STEPS).passed


def test_a_pair_says_itself_again_as_it_was_given() -> None:
    for text in ("a=b", "a=b@append:1", "a=b@start:2@crossed", "a_*=b_*"):
        assert StatePair.parse(text).option() == f"--state {text}"


def rename(old: str, new: str) -> Edit:
    """Rename a dynamic axis wherever it is declared."""

    def edit(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.dim_param = new if dim.dim_param == old else dim.dim_param

    return edit


def turned_batch() -> onnx.ModelProto:
    """x (4, N) and a state (4, N): the batch is axis 1."""
    text = """
<ir_version: 9, opset_import: ["" : 17]>
sum (float[4, N] x, float[4, N] total) => (float[4, N] total_next) { total_next = Add(total, x) }"""
    return with_weights(parser.parse_model(text), {})


def test_the_batch_axis_can_be_named(check: Checker, tmp_path: Path) -> None:
    onnx.save(turned_batch(), check.path)
    request = ForeignRequest(reference=f"{MODELS}:Sum", graph=check.path, states=("total=total_next",), steps=STEPS)
    unnamed = check_foreign(request)
    assert "--batch-axis NAME" in unnamed.not_executed["H batch"]
    named = check_foreign(replace(request, batch_axis="N"))
    assert named.passed and named.compared("H") and "--batch-axis N" in named.command
    with pytest.raises(SpecError, match="no dynamic axis of that name") as info:
        check("cell", batch_axis="bach")
    assert "Did you mean 'batch'?" in info.value.fix


def test_a_row_that_sees_its_batch_is_caught_along_the_axis_that_is_named(check: Checker) -> None:
    report = check("batch mean", rename("n", "rows"), batch_axis="rows")
    assert [fault.level for fault in report.faults()][0] == "H"


def declare(index: int, axis: int, size: int | str) -> Edit:
    """Change the size that an output declares for one axis."""

    def edit(model: onnx.ModelProto) -> None:
        dim = model.graph.output[index].type.tensor_type.shape.dim[axis]
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size

    return edit


def test_a_declared_output_shape_that_is_not_true_is_reported(check: Checker) -> None:
    report = check("attention, whole cache", declare(0, 1, "past"), steps=STEPS)
    found = [fault for fault in report.faults() if fault.level == "A"]
    assert [fault.level for fault in report.faults()] == ["A"] and found[0].part == "shape of 'y'"
    assert "it declares the shape (batch, past, 8), but it is (2, 3, 8)" in found[0].what
    fixed = check("attention, new rows", declare(1, 0, 2), steps=STEPS).faults()  # of any other batch it is not 2
    assert [fault.part for fault in fixed if fault.level == "A"] == ["shape of 'new_k'"]


def test_an_output_whose_batch_is_dynamic_on_paper_and_fixed_by_its_state_is_reported_and_the_rest_still_runs(
    check: Checker,
) -> None:
    def one_stream(model: onnx.ModelProto) -> None:
        for value in model.graph.input[1:]:
            value.type.tensor_type.shape.dim[0].dim_value = 1

    report = check("cell", one_stream, steps=STEPS)
    found = [fault for fault in report.faults() if fault.level == "A"]
    assert found == report.faults() and [one.part for one in found] == ["shape of 'h0_next'", "shape of 'h1_next'"]
    assert "no stream can have another 'batch'" in found[0].what and report.declared.sizes == {"batch": 1}
    assert len(report.compared("D")) == 2 * STEPS * 3


def test_another_axis_that_is_dynamic_on_paper_and_fixed_by_a_state_leaves_its_size_free(check: Checker) -> None:
    """A cache of fixed length whose output declares the length of x: only the declaration is wrong."""

    def fixed_window(model: onnx.ModelProto) -> None:
        for value in (model.graph.input[0], model.graph.output[1]):
            value.type.tensor_type.shape.dim[1].dim_param = "width"

    report = check("cell", fixed_window, sizes=("width=4",), steps=STEPS)
    assert [fault.part for fault in report.faults()] == ["shape of 'h0_next'"] and report.declared.sizes["batch"] == 2
    assert "it declares the shape (batch, width), but it is (2, 6)" in report.faults()[0].what


class Counts(nn.Module):
    """x (N, 4) and the number of steps so far, an integer state."""

    def forward(self, x: Tensor, processed: Tensor) -> tuple[Tensor, Tensor]:
        return x * processed[:, None].to(x.dtype), processed + 1


def test_an_integer_that_looks_like_a_state_is_asked_for_a_pair_and_for_no_bound(check: Checker) -> None:
    text = """
<ir_version: 9, opset_import: ["" : 17]>
count (float[batch, 4] x, int64[batch] processed) => (float[batch, 4] y, int64[batch] new_processed) {
  wide = Cast <to = 1> (processed)
  column = Unsqueeze(wide, last)
  y = Mul(x, column)
  new_processed = Add(processed, one)
}"""
    onnx.save(with_weights(parser.parse_model(text), {"last": np.array([1]), "one": np.array(1)}), check.path)
    request = ForeignRequest(reference=f"{__name__}:Counts", graph=check.path, steps=STEPS)
    report = check_foreign(request)
    assert list(report.not_shown()) == ["output 'new_processed'"] and "--bound" not in report.next_command()[0]
    assert check_foreign(replace(request, states=("processed=new_processed",))).passed
    assert list(check_foreign(replace(request, no_states=("new_processed",))).not_shown()) == ["input 'processed'"]
