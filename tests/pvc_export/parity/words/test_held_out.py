"""Parity in answers: the bundled model's answers to held-out questions on every rung, and a gate that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pvc_export.controls.graph_edits import edit_graph, roll_slot_mask
from pvc_export.graphs.models import LoadedModel, load_model
from pvc_export.parity.answers import MIN_AGREEMENT, MIN_AGREEMENT_INT8, Changed, RungAnswers
from pvc_export.parity.check import check_bundle
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.places import Rung
from pvc_export.parity.report import ParityReport
from pvc_export.parity.words.held_out import _ask_reference, _cost_in_answers, answer_all, cases
from pvc_ref.prompt import STOP_TOKEN
from pvc_ref.shapes import answer_to

from ....conftest import NUM_QUESTIONS


@pytest.fixture(scope="module")
def shapes() -> LoadedModel:
    return load_model("shapes")


@pytest.fixture
def answers(bundle_shapes: Path, report_of: Callable[[Path], ParityReport]) -> dict[str, RungAnswers]:
    """The answers from the check of the bundle's export, for every rung of the ladder."""
    return by_name(report_of(bundle_shapes))


def by_name(found: Evidence | ParityReport) -> dict[str, RungAnswers]:
    return {str(rung.rung): rung for rung in found.answers}


def test_the_questions_are_fixed_held_out_and_have_true_answers() -> None:
    asked = cases(200)
    assert sum(len(case.questions) for case in asked) == 200
    assert {case.is_image for case in asked} == {True, False}
    assert all(answer_to(case.clip.scene, q.text) == q.answer for case in asked for q in case.questions)
    again = cases(100)
    assert all((a.clip.frames == b.clip.frames).all() for a, b in zip(asked, again, strict=False))


def test_every_rung_that_can_run_answers_every_question(answers: dict[str, RungAnswers]) -> None:
    assert list(answers) == ["torch fp32", "torch fp16", "onnx fp32", "bundle fp16"]
    assert all(rung.num_questions == NUM_QUESTIONS for rung in answers.values())


def test_the_bundled_model_answers_most_questions_truly(answers: dict[str, RungAnswers]) -> None:
    assert answers["torch fp32"].accuracy > 0.9


def test_float16_and_onnx_keep_the_answers_of_the_reference(answers: dict[str, RungAnswers]) -> None:
    for rung in answers.values():
        assert rung.agreement >= MIN_AGREEMENT and rung.faults() == [], rung.line()


def test_answers_that_few_bits_change_are_counted_and_too_many_are_a_fault(shapes: LoadedModel) -> None:
    asked = [replace(case, answers=_ask_reference(shapes, case, 8)) for case in cases(20)]
    same = _cost_in_answers(shapes, asked, 8)
    assert same.passed and same.detail.startswith("100.0% of 20 answers equal the unquantised model's")
    mute = [replace(case, answers=tuple(replace(one, text="") for one in case.answers)) for case in asked]
    changed = _cost_in_answers(shapes, [*mute[:2], *asked[2:]], 8)
    number = 20 - sum(len(case.questions) for case in asked[:2])
    assert changed.passed is False and changed.detail.startswith(f"{number / 20:.1%} of 20")


def test_where_inputs_are_rounded_to_eight_bits_more_answers_may_change() -> None:
    change = Changed(topic="colour", question="?", expected="red", step=0, margin=0.0, tie=1.0)
    of_ten, of_many = (
        RungAnswers(rung=Rung("bundle", "fp32"), right={}, count={"colour": 1000}, changed=(change,) * count,
                    least_agreement=MIN_AGREEMENT_INT8)
        for count in (10, 25)
    )  # fmt: skip
    assert of_ten.faults() == [] and "97.50% of 1000" in of_many.faults()[0]
    assert replace(of_ten, least_agreement=MIN_AGREEMENT).faults()


def test_the_reference_s_greedy_answers_are_those_of_generate(shapes: LoadedModel) -> None:
    """The oracle decodes with the reference's `generate`; the true answers only save time."""
    for case in cases(24):
        for question, expected in zip(case.questions, _ask_reference(shapes, case, 8), strict=True):
            model, pixels = shapes.model, torch.from_numpy(case.clip.frames)
            if case.is_image:
                ids = shapes.image_prompt_ids(num_tiles=[1], question=question.text)
                visual = model.encode_images([pixels], window=8)[0][None]
            else:
                ids = shapes.prompt_ids(num_frames=len(pixels), question=question.text)
                visual = model.encode_clip(pixels[None], window=8)[0]
            with torch.no_grad():
                embeds = shapes.prompt_embeds(ids, visual)
            said = model.generate(embeds, max_new_tokens=48, stop_ids=[shapes.token_id(STOP_TOKEN)])
            assert tuple(said) == expected.tokens
            assert expected.logits.shape[0] == len(said) + 1


def test_a_wrong_answer_of_the_reference_is_what_the_others_must_keep(shapes: LoadedModel) -> None:
    """Parity is not accuracy: even with another truth, the reference's answer is expected."""
    case = cases(8)[0]
    lied = replace(case, questions=tuple(replace(q, answer="There is no cyan star.") for q in case.questions))
    honest, other = (_ask_reference(shapes, c, 8) for c in (case, lied))
    assert [a.text for a in honest] == [a.text for a in other]


def test_a_slot_mask_that_is_off_by_one_changes_answers_and_fails_the_check(
    bundle_shapes: Path, shapes: LoadedModel, copy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    broken = copy_bundle(bundle_shapes)
    edit_graph(broken, "temporal", roll_slot_mask)
    found = answer_all(broken, shapes, num_questions=NUM_QUESTIONS, twins=tmp_path, ladder=False)
    rungs = by_name(found)
    assert rungs["bundle fp16"].agreement < 0.97
    assert rungs["bundle fp16"].accuracy < rungs["torch fp32"].accuracy
    assert any(change.is_fault for change in rungs["bundle fp16"].changed)


@pytest.mark.usefixtures("stream_alone")
def test_the_report_names_answers_that_changed_and_counts_them(
    bundle_shapes: Path, shapes: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Changed(topic="colour", question="Q?", expected="The star is red.", step=3, margin=2.5, tie=0.01)
    wrong = RungAnswers(rung=Rung("bundle", "fp16"), right={"colour": 9}, count={"colour": 10}, changed=(change,))
    monkeypatch.setattr("pvc_export.parity.words.held_out.answer_all", lambda *_, **__: Evidence(answers=(wrong,)))
    report: ParityReport = check_bundle(bundle_shapes, shapes, ladder=False)
    assert not report.passed
    assert "the answer to 'Q?' is no longer 'The star is red.'" in report.failure_text()
    assert "90.00% of 10 answers equal the reference's, expected at least 99.5%" in report.failure_text()
    assert "90.0% of 10 questions right (90.00% as the reference)" in report.summary()
    assert json.loads(json.dumps(report.to_json()))["answers"][0]["changed"][0]["margin"] == 2.5


@pytest.mark.parametrize(("margin", "is_fault"), [(0.005, False), (0.02, True), (float("nan"), True)])
def test_a_changed_answer_is_a_fault_unless_the_reference_nearly_ties(margin: float, is_fault: bool) -> None:
    change = Changed(topic="colour", question="Q?", expected="A.", step=0, margin=margin, tie=0.01)
    rung = RungAnswers(rung=Rung("bundle", "fp16"), right={"colour": 999}, count={"colour": 1000}, changed=(change,))
    assert bool(rung.faults()) == is_fault


@pytest.mark.usefixtures("stream_alone")
def test_a_model_that_was_taught_no_world_is_asked_nothing(bundle_fp32: Path, tiny: LoadedModel) -> None:
    report = check_bundle(bundle_fp32, tiny, ladder=False)
    assert report.answers == () and "questions right" not in report.summary()


def test_the_receipt_says_how_many_questions_were_right(bundle_shapes: Path) -> None:
    held_out = json.loads((bundle_shapes / "manifest.json").read_text(encoding="utf-8"))["parity"]["held_out"]
    assert held_out["bundle fp16"]["accuracy"] > 0.9 and held_out["bundle fp16"]["agreement"] >= MIN_AGREEMENT
    assert np.isclose(held_out["torch fp32"]["agreement"], 1.0)
