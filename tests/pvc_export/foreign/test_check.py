"""Third-party graphs: the ladder passes a faithful one, and names what is wrong with any other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import ModelError
from engines.terminal import print_json
from pvc_export.foreign.levels import other_sizes
from pvc_export.foreign.limits import MARGIN, ULPS
from pvc_export.foreign.report import ForeignReport
from pvc_export.foreign.session import GraphSession

from .faults import (
    a_little_noise,
    drops_the_oldest,
    first_row_of_x,
    folded_output,
    forgets_the_oldest,
    ignored_state,
    last_row_left_out,
    new_before_past,
    not_a_number,
    one_row_for_all,
    operator_of_nobody,
    perturb,
    perturb_row,
    put_between,
    rows_rolled,
    stale_by_arithmetic,
    stale_by_wire,
    swapped_state_inputs,
    swapped_state_outputs,
    traced_batch,
    wrong_shape_on_paper,
)
from .models import CASES, MODELS, STEPS, WHOLE_STATES, Array, Checker, Edit


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


def failed(report: ForeignReport) -> str:
    return "".join(dict.fromkeys(fault.level for fault in report.faults()))


def runs(report: ForeignReport, level: str) -> set[str]:
    """Return the runs and rules of a level that fail."""
    return {fault.where.run if fault.where else fault.part for fault in report.faults() if fault.level == level}


@pytest.mark.parametrize("case", CASES)
def test_a_faithful_graph_passes_on_every_level(case: str, check: Checker) -> None:
    report = check(case)
    assert report.passed, report.failure_text()
    assert list(report.levels()) == list("ABCDEGHI") and all(verdict.passed for verdict in report.levels().values())
    outputs = 3  # in every case
    num_axes = 3 if "attention" in case else 1
    assert len(report.compared("B")) == outputs
    assert len(report.compared("C")) == 3 * num_axes * outputs
    assert len(report.compared("D")) == 2 * STEPS * outputs
    assert report.floor_missing is None and not report.left_out()
    assert report.failure_text() == "" and report.summary().startswith("pass: 8 of 8 levels")


FAULTS: list[tuple[str, Edit, str, str, str, str]] = [
    # case, edit, level, where, output, the cause that is told
    ("cell", perturb("wo"), "B", "step 0", "output 'y'", "feeds only y: the other outputs agree"),
    ("cell", perturb("wc0"), "B", "step 0", "output 'y'", "different weights from those the graph was exported with"),
    ("cell in float16", perturb("wo", 2.0), "B", "step 0", "output 'y'", "feeds only y:"),
    ("cell", perturb("uc0"), "D", "step 1", "output 'y'", "read at the wrong place or with the wrong weights"),
    ("cell", stale_by_wire, "B", "step 0", "state output 'h1_next'", "wired straight to the input 'h1'"),
    ("cell", stale_by_arithmetic, "B", "step 0", "state output 'h1_next'", "is bit-equal to its own input 'h1'"),
    ("cell", swapped_state_outputs, "B", "step 0", "state output 'h0_next'", "what the reference returns as 'h1_next'"),
    ("cell", swapped_state_inputs, "D", "step 1", "output 'y'", "the graph reads 'h0' where 'h1' belongs"),
    ("cell", ignored_state, "D", "step 1", "output 'y'", "the graph never reads: no output depends on 'h0'"),
    ("cell", folded_output, "B", "step 0", "output 'y'", "'y' depends on no input, so"),
    ("cell", first_row_of_x, "B", "step 0", "output 'y'", "row 0 of the batch used for all"),
    ("cell", one_row_for_all, "D", "step 1", "output 'y'", "a batch row that sees another row"),
    ("cell", traced_batch, "C", "batch = 1", "axis 'batch' is declared dynamic", "traced as a constant"),
    ("cell", not_a_number, "B", "step 0", "output 'y'", "an overflow"),
    ("attention, whole cache", perturb("wv"), "B", "step 0", "output 'y'", "feeds only y, present_v:"),
    ("attention, whole cache", forgets_the_oldest, "C", "past = 1", "output 'y'", ""),
    ("attention, whole cache", drops_the_oldest, "B", "step 0", "state output 'present_k'", "1 row too few along"),
    ("attention, whole cache", new_before_past, "C", "past = 1", "output 'y'", ""),
    ("attention, new rows", last_row_left_out, "B", "step 0", "state output 'new_k'", "1 row too few along axis 1"),
    ("attention, new rows", rows_rolled, "B", "step 0", "state output 'new_k'", "off by one along axis 1"),
]  # fmt: skip


def fault_id(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("case", "edit", "level", "where", "output", "cause"), FAULTS, ids=fault_id)
def test_a_fault_is_named_with_its_level_its_output_and_its_cause(
    case: str, edit: Edit, level: str, where: str, output: str, cause: str, check: Checker
) -> None:
    report = check(case, edit)
    assert not report.passed and report.faults()[0].level == level
    text = report.failure_text() + "\nnext: " + report.next_command()[0]
    position = 0
    for part in (f"level {level}, ", where, output, "Likely cause: ", cause, "\nnext: pvc-export check --reference "):
        position = text.find(part, position)
        assert position >= 0, f"{part!r} is missing or out of order in: {text}"
    assert list(report.levels()) == list("ABCDEGHI") and not {*report.not_executed} - {"E drift"}  # the rest still ran


def test_teacher_forcing_tells_a_wrong_step_from_one_that_only_accumulates(check: Checker) -> None:
    wrong_step = check("cell", perturb("uc0")).failure_text()
    assert "On the reference's state, that step is wrong too" in wrong_step
    slow = check("sum", perturb("decay", 1 - 2e-7), steps=64)
    first = slow.faults()[0]
    assert first.level == "D" and first.where and first.where.index > 1
    assert (
        "On the reference's state, that step is right, so only the accumulated state is wrong." in slow.failure_text()
    )
    assert runs(slow, "D") == {"own state"}


def test_a_drift_is_seen_before_it_leaves_the_limit_of_any_step(check: Checker) -> None:
    report = check("sum", perturb("decay", 1 - 6e-8), steps=24)
    assert failed(report) == "E", report.table()
    assert all(found.passed for found in report.compared("D")) and check("sum", steps=24).passed
    assert "level E, drift: own state: state output 'total_next' drifts: +" in report.failure_text()
    command, purpose = report.next_command()
    assert command.endswith("--steps 240") and purpose.endswith("which should exceed the limit by its end")


def test_a_row_that_sees_its_batch_fails_even_where_the_reference_does_the_same(check: Checker) -> None:
    report = check("batch mean")
    assert failed(report) == "H"
    assert "output 'y' differs from the same row run alone: " in report.failure_text()
    assert "an operation across the batch axis" in report.failure_text()


def test_equal_rows_that_differ_by_their_place_in_the_batch_fail(check: Checker) -> None:
    report = check("batch place")
    assert failed(report) == "H"
    assert runs(report, "H") >= {"equal row 1", "equal row 2"}


def test_noise_in_the_graph_is_no_error_of_a_step_but_no_state_rule_or_repetition_holds(check: Checker) -> None:
    report = check("cell", a_little_noise)
    assert failed(report) == "GI"
    assert runs(report, "I") == {"twice", "new session"}
    assert "a random or stateful operator" in report.failure_text()


def test_a_session_that_remembers_another_stream_fails(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session continues with the state it returned last, whatever it is fed: correct with a single stream."""
    run, last = GraphSession.run, dict[str, Array]()

    def remembers(self: GraphSession, feeds: dict[str, Array]) -> dict[str, Array]:
        outputs = run(self, feeds | last if feeds["h0"].any() and feeds["h0"].shape == last["h0"].shape else feeds)
        last["h0"] = outputs["h0_next"]
        return outputs

    monkeypatch.setattr(GraphSession, "run", remembers)
    report = check("cell")
    assert "two streams" in runs(report, "G")
    assert any("that alternates with another one differs" in fault.what for fault in report.faults())


def test_a_session_that_does_not_start_over_fails(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bit of every seventh output changes, which no tolerance would reveal."""
    run, count = GraphSession.run, [0]

    def wears_out(self: GraphSession, feeds: dict[str, Array]) -> dict[str, Array]:
        outputs, count[0] = run(self, feeds), count[0] + 1
        return outputs | ({} if count[0] % 7 else {"y": np.nextafter(outputs["y"], np.float32(9))})

    monkeypatch.setattr(GraphSession, "run", wears_out)
    report = check("cell")
    assert failed(report) in ("GI", "G")
    assert re.search(r"step \d, output y: \d+ of 6 values differ, by ", report.faults()[0].what)


def test_a_run_that_writes_into_what_it_is_fed_fails(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = GraphSession.run

    def in_place(self: GraphSession, feeds: dict[str, Array]) -> dict[str, Array]:
        outputs = run(self, feeds)
        feeds["h1"][:] = outputs["h1_next"]
        return outputs

    monkeypatch.setattr(GraphSession, "run", in_place)
    assert any("modified the array of its input 'h1'" in fault.what for fault in check("cell").faults())


def test_a_file_that_contradicts_itself_fails_and_every_other_level_still_runs(check: Checker) -> None:
    report = check("cell", wrong_shape_on_paper)
    assert failed(report) == "A" and not report.not_executed
    assert "strict shape inference fails" in report.failure_text()


def test_a_graph_that_does_not_open_is_never_a_pass(check: Checker) -> None:
    report = check("cell", operator_of_nobody)
    assert not report.passed and failed(report) == "A"
    assert list(report.not_executed.values()) == 7 * ["the graph cannot be opened"]
    assert all(verdict.passed is None for letter, verdict in report.levels().items() if letter != "A")
    assert "ONNX Runtime's CPU cannot open the file" in report.faults()[-1].what
    assert sum(line.startswith("  --  ") and "the graph cannot be opened" in line for line in report.table()) == 7


def test_a_kv_cache_of_token_ids_with_dotted_names_a_mask_and_a_bound_passes(check: Checker) -> None:
    options = {"sizes": ("seen=past+rows",), "bounds": ("input_ids=0:15", "attention_mask=1:1")}
    report = check("decoder", **options)
    assert report.passed, report.failure_text()
    assert "  drawn  'input_ids' int64 (batch, rows) 0..15" in report.table()
    assert "--size seen=past+rows --bound input_ids=0:15" in report.command
    assert not check("decoder", perturb_row(3), **options).passed  # a token that is drawn in some step
    with pytest.raises(ModelError) as info:
        check("decoder")
    assert "the reference fails on input_ids int64 " in info.value.what and "--size AXIS=N" in info.value.fix


def test_an_axis_given_one_size_is_asked_for_no_other(check: Checker) -> None:
    report = check("cell", traced_batch, sizes=("batch=2",))
    assert report.passed
    assert report.not_executed["C shapes"] == "every dynamic axis is fixed to one size, by --size or by a state"
    assert report.not_executed["H batch"] == "'batch' is fixed to one size, by --size or by a state"


def test_a_cache_that_cannot_begin_empty_begins_with_the_rows_it_is_given(check: Checker) -> None:
    states = tuple(f"{pair}@start:2" for pair in WHOLE_STATES)
    report = check("attention, whole cache", states=states)
    assert report.passed and report.declared.sizes["past"] == 2
    assert {4, 7} == set(other_sizes(2, grows=True)) and set(other_sizes(0, grows=True)) == {1, 2, 3}


def test_fewer_steps_than_a_slope_needs_leave_the_drift_out_and_say_so(check: Checker) -> None:
    report = check("cell", steps=3)
    assert report.passed and report.not_executed["E drift"].startswith("a slope needs 16 steps")


def test_a_reference_without_float64_has_a_limit_and_the_report_says_where_from(check: Checker) -> None:
    report = check("cell", reference=f"{MODELS}:SinglePrecision")
    assert report.passed and report.floor_missing is not None
    assert any("128 roundings of float32, since there is no float64 floor: the reference" in x for x in report.table())
    assert not check("cell", perturb("wo"), reference=f"{MODELS}:SinglePrecision").passed


def test_a_reference_that_is_nan_proves_nothing(check: Checker) -> None:
    text = check("cell", reference=f"{MODELS}:NotANumber").failure_text()
    assert (
        "6 values of the reference itself are NaN or infinite" in text
        and "proves nothing" in text
        and "--bound INPUT=LOW:HIGH" in text
    )


def test_a_reference_that_amplifies_its_rounding_is_named_as_the_reason(check: Checker) -> None:
    def chaos(model: onnx.ModelProto) -> None:
        weights = {"loud": np.array(1e4, np.float32)}
        put_between(model, "h0_next", "much = Mul(h0_next, loud) changed = Sin(much)", **weights)

    report = check("cell", chaos, reference=f"{MODELS}:Chaos")
    assert not report.passed and report.faults()[0].level == "D"
    assert "a reference that amplifies its own rounding" in report.faults()[0].cause


def test_the_lines_for_people_say_where_a_fault_is_and_how_far_it_reaches(check: Checker) -> None:
    lines = check("cell", swapped_state_inputs).table()
    assert [line[2:8] for line in lines if line.startswith(("  ok", "  FAIL"))] == [
        "ok   A", "ok   B", "ok   C", "FAIL D", "ok   E", "ok   G", "ok   H", "ok   I",
    ]  # fmt: skip
    at = next(i for i, line in enumerate(lines) if line.startswith("  FAIL D  stream"))
    assert lines[at].endswith(" 6 faults") and lines[at + 1].strip().startswith("step 1, own state: output 'y': rel l2")


def test_the_report_is_json_without_nan_and_names_the_first_fault(
    check: Checker, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(check("cell", not_a_number).to_json())
    data = json.loads(capsys.readouterr().out)
    first = data["faults"][0]
    assert not data["passed"] and first["part"] == "y" and first["where"] == "step 0" and first["level"] == "B"
    assert [level["level"] for level in data["levels"]] == list("ABCDEGHI")
    levels = [one["level"] for one in data["frames"]]
    assert [levels.count(level) for level in "BCD"] == [3, 9, 6 * STEPS]
    assert {"margin": MARGIN, "ulps": ULPS}.items() <= data["rule"].items()
