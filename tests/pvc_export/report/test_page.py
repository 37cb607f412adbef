"""The report of a check as a page and as JUnit XML: it contains everything that was found, and nothing untrue."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

import pvc_export.report
from pvc_export.parity.answers import Changed, RungAnswers
from pvc_export.parity.by_layer.check import ASKED, LEFT_OUT
from pvc_export.parity.causes import INNOCENT
from pvc_export.parity.culprit.record import Repair
from pvc_export.parity.drift.report import DriftCurve, DriftReport, Sample
from pvc_export.parity.heat import heat_map
from pvc_export.parity.levels import TITLES, Rule
from pvc_export.parity.limits import factors_of, thresholds, worst_rows
from pvc_export.parity.places import Place, Rung
from pvc_export.report import ReportInput, junit, render
from pvc_export.report.figures import Axis, Curve, bar, curves_figure
from pvc_export.terminal.numbers import number, share

from .html_page import HOSTILE, Page, require_clean, require_self_contained
from .samples import (
    BUNDLE,
    COORDINATES,
    CULPRIT,
    FRAME,
    NOISE,
    RUNGS,
    TIMES,
    WINDOW,
    answers_of,
    changed,
    conversation,
    difference,
    found_of,
    parity_of,
)


def test_the_page_fetches_nothing(failing: ReportInput) -> None:
    require_self_contained(render(failing))


def test_everything_that_was_found_is_on_the_page(passing: ReportInput) -> None:
    text = Page(render(passing)).text
    parity = passing.parity
    for row in parity.rows:
        assert f"{row.rung}{row.graph}/{row.tensor}{row.num_compared}" in text
    for one in parity.conversations:
        assert (one.question or "(empty)") in text
    for change in (change for answers in parity.answers for change in answers.changed):
        parts = (change.question, change.expected, number(change.margin), number(change.tie), change.topic)
        assert all(part in text for part in parts)
    for name, reason in passing.parity.left_out().items():
        assert f"{name}: {reason}" in text
    assert "96.0%480/500" in text and "94.0%470/500" in text  # accuracy by topic
    assert "top 51.0e-48.0e-3" in text  # the flip's rank, margin and tie
    assert all(f"{part}" in text for part in ("llm.layers.0.mlp", "2026-11-26 11:00 UTC", "x86_64, 2 cores"))
    assert "0123456789ab…" in text and ("td", "title", "0123456789abcdef" * 4) in Page(render(passing)).attributes


def test_every_tolerance_is_shown_with_the_noise_that_it_is_a_multiple_of(passing: ReportInput) -> None:
    text = Page(render(passing)).text
    assert f"chosen on {thresholds()['measured']['date']}" in text
    for factor in factors_of(BUNDLE).values():
        assert f"≤ {number(factor * NOISE)} · noise {number(NOISE)}" in text


def test_what_was_not_executed_is_no_plain_pass(passing: ReportInput) -> None:
    text = Page(render(passing)).text
    assert "✓ PASS, of what was executed" in text and "– NOT EXECUTED" in text
    whole = changed(passing, not_executed={}, rules=())
    text = Page(render(whole)).text
    assert "✓ PASS " in text and "of what was executed" not in text and "NOT EXECUTED" not in text
    assert "fp16 arithmetic: this runtime computes fp16 graphs in float32" in text


def test_a_failure_shows_the_culprit_its_island_and_the_next_command(failing: ReportInput) -> None:
    text = Page(render(failing)).text
    assert "✕ FAIL" in text and "PASS" not in text
    assert "First failing graph: temporal" in text
    assert "Culprit: linear of trunk.layers.1.mlp.fc1" in text and "trunk, frame 8" in text
    assert "error: ∞ units of fp16 roundoff, limit 32" in text and "up to 91234, largest in fp16: 65504" in text
    assert "--island trunk.layers.1.mlp" in text and "pvc-export check build/tiny --bisect" in text
    repaired = changed(failing, repair=Repair(islands=("trunk.layers.1.mlp",), passed=True, culprits=(CULPRIT,)))
    text = Page(render(repaired)).text
    assert "✓ proven repair: A new export with --island trunk.layers.1.mlp passes the check" in text
    command = (
        f"pvc-export onnx -m tiny --seed 3 --fp16 --target cpu --window {WINDOW} --context 2048 --streams 1 "
        "--island llm.layers.0.mlp --island trunk.layers.1.mlp -o build/tiny"
    )
    assert command in text


def test_a_failure_without_a_culprit_says_that_every_operation_is_right(failing: ReportInput) -> None:
    text = Page(render(changed(failing, culprit=None))).text
    assert INNOCENT in text and "--fp32" in text
    assert "was not searched for" in Page(render(changed(failing, culprit=None, looked=False))).text


def test_a_failure_of_a_layer_by_layer_check_names_the_check_that_finds_the_operation(failing: ReportInput) -> None:
    by_layer = changed(failing, culprit=None, looked=False, not_executed={LEFT_OUT: ASKED})
    assert by_layer.next_command()[0] == "pvc-export check build/tiny --whole"


@pytest.mark.parametrize(
    "change",
    [
        {"wrong_weights": {"temporal": {"temporal.a": "read transposed", "temporal.b": "1 value"}}},
        {"missing": ("head/logits",)},
        {"wrong_tokens": ("token 0: 7 was said, the reference prefers another by 3",)},
        {"conversations": (conversation("video", "What moves?", scaled_kl=nan),)},
        {"answers": (answers_of(BUNDLE, Changed(topic="a", question="b", expected="c", step=0, margin=9, tie=1)),)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_kind_of_fault_fails_both_reports(change: dict[str, object], passing: ReportInput) -> None:
    report = changed(passing, **change)
    assert not report.parity.passed
    assert "✕ FAIL" in Page(render(report)).text
    assert int(ET.fromstring(junit(report)).attrib["failures"]) >= 1


def test_a_broken_rule_fails_a_check_whose_numbers_pass(passing: ReportInput) -> None:
    rule = Rule(level="G", name="reset forgets everything", passed=False, detail="slot 3 kept its rows")
    report = changed(passing, rules=(rule,))
    assert not report.parity.passed
    assert "✕ FAIL state rules: reset forgets everything: slot 3 kept its rows." in Page(render(report)).text
    case = "testsuite[@name='level G']/testcase[@name='reset forgets everything']"
    failure = ET.fromstring(junit(report)).find(f"{case}/failure")
    assert failure is not None and failure.attrib["message"] == "slot 3 kept its rows"


def test_what_models_and_users_wrote_is_escaped(failing: ReportInput) -> None:
    change = Changed(topic=HOSTILE, question=HOSTILE, expected=HOSTILE, step=0, margin=9.0, tie=1.0)
    rule = Rule(level="G", name=HOSTILE, passed=False, detail=HOSTILE)
    answers = RungAnswers(rung=Rung(HOSTILE, "fp16"), right={HOSTILE: 1}, count={HOSTILE: 2}, changed=(change,))
    parity = replace(
        failing.parity, answers=(answers, answers_of(BUNDLE)), wrong_tokens=(HOSTILE,),
        conversations=(conversation("video", HOSTILE),), not_executed={HOSTILE: HOSTILE},
        wrong_weights={"temporal": {HOSTILE: HOSTILE}}, rules=(rule,),
        culprit=replace(CULPRIT, layer=HOSTILE, nodes=(HOSTILE,)),
    )  # fmt: skip
    model = replace(failing.manifest.model, name=HOSTILE)
    report = replace(
        failing, parity=parity, manifest=replace(failing.manifest, model=model, islands=(HOSTILE,)),
        bundle=HOSTILE, machine=HOSTILE,
    )  # fmt: skip
    html, xml = render(report), junit(report)
    page = Page(html)
    assert html.count("<script") == 1 and "alert(" not in html.partition("<script")[2]
    assert '<script>alert("x")</script> \\x1b[31m\\u202egnp.exe & "q" \\x00\\ud800' in page.text
    ET.fromstring(xml)
    for document in (html, xml):
        require_clean(document)


@pytest.mark.parametrize("value", [nan, inf], ids=["NaN", "infinite"])
def test_a_value_that_is_not_finite_is_shown_as_such_and_never_drawn(value: float, passing: ReportInput) -> None:
    found = list(found_of())
    index = next(i for i, f in enumerate(found) if f.rung == BUNDLE and f.where == Place("frame", 5))
    found[index] = replace(
        found[index],
        rel_l2=value,
        worst_token=value,
        worst_value=value,
        cosine_gap=value,
        norm_gap=value,
        max_abs=value,
        num_nonfinite=9,
    )
    want = np.ones((1, 4, 3))
    got = want.copy()
    got[0, 2, 1] = value
    heat = heat_map(
        got, want, at=difference(BUNDLE, "temporal", "features", Place("frame", 5)), frame=FRAME,
        has_class_token=False,
    )  # fmt: skip
    report = replace(passing, parity=parity_of(found, heat=(heat,), drift=drift(nan)))
    page = Page(render(report))
    assert "✕ FAIL" in page.text and number(value) in page.text and "∞ of its limit" in page.text
    assert "9 values are NaN or infinite at frame 5" in page.text
    assert ("path", "class", "cross") in page.attributes  # a cross instead of a point on the curve
    for tag, name, written in page.attributes:
        if name in COORDINATES or name == "style":
            assert not re.search(r"nan|inf\b", written, re.IGNORECASE), (tag, name, written)
    assert ET.fromstring(junit(report)).attrib["failures"] != "0"


def drift(error: float) -> DriftReport:
    """A drift report on one tensor whose last sample has the given error."""
    row = worst_rows([difference(BUNDLE, "temporal", "features", Place("frames", words="frames 0 to 3"))])[0]
    errors = (1e-3, 1e-3, 1e-3, error)
    samples = tuple(Sample(frame=100.0 * i, error=e, floor=1e-5, gap=e) for i, e in enumerate(errors))
    curve = DriftCurve(
        tensor="temporal/features", num_frames=300, samples=samples, means=samples, block=row, single=row,
        reference=row, noise=1e-2,
    )  # fmt: skip
    return DriftReport(
        precision="fp16", computed_in="float32", window=WINDOW, num_frames=300, seconds=1, curves=(curve,)
    )


def test_every_level_says_what_was_shown_what_failed_and_what_was_not_tested(failing: ReportInput) -> None:
    text = Page(render(failing)).text
    words = {True: "✓ shown", False: "✕ failed", None: "– not executed"}
    verdicts = failing.parity.levels()
    assert [*verdicts] == list("ABCDEFGHIJK") and {verdict.passed for verdict in verdicts.values()} == {*words}
    for letter, verdict in verdicts.items():
        assert f"{letter}{TITLES[letter]} {words[verdict.passed]} {verdict.detail}" in text
    assert verdicts["F"].passed is False and "Levels H, I: not run in this check" in text


def test_junit_counts_what_it_holds_and_skips_what_was_not_executed(failing: ReportInput) -> None:
    root = ET.fromstring(junit(failing))
    suites = root.findall("testsuite")
    for element in (root, *suites):
        cases = list(element.iter("testcase"))
        assert int(element.attrib["tests"]) == len(cases) > 0
        assert int(element.attrib["failures"]) == len(list(element.iter("failure")))
        assert int(element.attrib["skipped"]) == len(list(element.iter("skipped")))
    names = [suite.attrib["name"] for suite in suites]
    assert names[:5] == [str(rung) for rung in RUNGS] and len(set(names)) == len(names)
    rows = [case for suite in suites[:5] for case in suite.iter("testcase")]
    assert len(rows) == len(failing.parity.rows)
    failed = [case for case in rows if case.find("failure") is not None]
    assert [case.attrib["name"] for case in failed] == [f"temporal/features ({len(TIMES)} compared)"]
    failure = failed[0].find("failure")
    assert failure is not None
    assert f"at frame {WINDOW}" in failure.attrib["message"] and "limit" in failure.attrib["message"]
    skipped = root.find("testsuite[@name='not executed']/testcase[@name='engine']/skipped")
    assert skipped is not None and skipped.attrib["message"] == "not executed: no CUDA runtime on this machine"
    conversations = root.findall("testsuite[@name='conversations']/testcase")
    assert [case.attrib["name"] for case in conversations] == ["video", "text"]
    rungs = root.findall("testsuite[@name='held-out answers']/testcase")
    assert [case.attrib["name"] for case in rungs] == ["torch fp32", "bundle fp16"]


def test_shares_of_one_and_of_sixty_percent_are_both_seen() -> None:
    widths = [float(re.search(r"width:([\d.]+)%", bar(value))[1]) for value in (0.0, 0.01, 0.6, 1.0, 50.0)]  # type: ignore[index]
    assert widths[0] == 0 and widths[1] > 20 and widths[1] < widths[2] < widths[3] < widths[4] == 100
    assert [share(value) for value in (0, 0.0004, 0.01, 0.6, 28, nan, inf)] == [
        "0%", "<0.1%", "1.0%", "60%", "28×", "NaN", "∞",
    ]  # fmt: skip


def test_a_curve_breaks_where_the_clock_jumps_and_marks_where_the_ring_wraps() -> None:
    axis = Axis(name="frame", labels=(0, 1, 2, 9), marks={2: "W"}, jumps=frozenset({3}))
    figure = curves_figure("x", [Curve(name="e", values=(1e-3, 1e-2, 0.0, 1e-3), limit=1e-1, tone="a")], axis)
    line = re.search(r'd="([^"]+)" class="line a"', figure)
    assert line is not None and line[1].count("M") == 2 and line[1].count("L") == 2
    assert ">W</text>" in figure and 'class="jump"' in figure and 'class="zero a"' in figure


def test_no_file_of_the_report_is_long() -> None:
    folder = Path(pvc_export.report.__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in (".py", ".j2")]
    assert len(files) >= 8
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []
