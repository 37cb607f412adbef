"""The report on a third-party graph, as a page and as JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.manifest import hash_file
from pvc_export.foreign.page import MOST_PANELS, curves, junit, render
from pvc_export.foreign.request import StatePair
from pvc_export.parity.levels import TITLES
from pvc_export.terminal.numbers import number

from ..conftest import Run
from ..report.html_page import HOSTILE, Page, require_clean, require_self_contained
from .faults import not_a_number, operator_of_nobody, perturb, swapped_state_inputs
from .models import CELL_STATES, MODELS, STEPS, Checker


@pytest.fixture
def check(tmp_path: Path) -> Checker:
    return Checker(tmp_path)


def counts(xml: str) -> tuple[int, int]:
    """Numbers of failed and of skipped cases."""
    attributes = ET.fromstring(xml).attrib
    return int(attributes["failures"]), int(attributes["skipped"])


def test_a_pass_shows_every_level_and_every_output_with_its_limits(check: Checker) -> None:
    report = check("attention, new rows")
    html, xml = render(report), junit(report)
    require_self_contained(html)
    text = Page(html).text
    assert "✓ PASS " in text and "Nothing left out" in text and "FAIL" not in text and counts(xml) == (0, 0)
    for level, verdict in report.levels().items():
        assert f"{level}{TITLES[level]} ✓ shown {verdict.detail}" in text
        for row in report.rows().get(level, ()):
            assert f"{row.tensor}{row.num_compared} compared" in text
            peaks = [(row.peaks[metric], metric) for metric in row.worst.limits]
            assert all(
                f"≤ {number(one.limits[metric])} · noise {number(one.noise[metric])}" in text for one, metric in peaks
            )
    assert (
        "past_k <- new_k, appended along axis 1" in text
        and f"{hash_file(check.path).sha256[:12]}…" in text
        and "KiB" in text
        and f"torch{torch.__version__}" in text
    )
    assert report.command in text and f"--steps {STEPS}" in report.command


def test_a_failure_names_the_first_fault_its_cause_and_the_next_command(check: Checker) -> None:
    report = check("cell", swapped_state_inputs)
    text = Page(render(report)).text
    assert "✕ FAIL level D, stream: step 1, own state: output 'y': rel l2" in text
    assert "likelytwo swapped states: the graph reads 'h0' where 'h1' belongs" in text
    assert " ".join(report.next_command()[0].split()) in text
    document = ET.fromstring(junit(report))
    failure = document.find("testsuite[@name='level D']/testcase/failure")
    assert failure is not None and "the graph reads 'h0' where 'h1' belongs" in (failure.text or "")
    assert document.find("testsuite[@name='level B']/testcase/failure") is None


def test_a_step_that_leaves_its_limit_is_seen_in_its_curve(check: Checker) -> None:
    faithful, broken = check("cell"), check("cell", perturb("uc0"))
    assert all(panel.passed for panel in curves(faithful))
    panels = curves(broken)
    assert len(panels) == 3 and not panels[0].passed
    (own, forced) = panels[0].lines
    assert own[1].startswith("own state: ") and "of its limit at step" in own[1]
    assert forced[1].startswith("reference's state: ")


def test_of_many_outputs_the_closest_to_their_limits_are_drawn_and_the_others_counted(check: Checker) -> None:
    report = check("cell")
    many = [
        replace(found, tensor=f"present.{layer}")
        for layer in range(MOST_PANELS + 5)
        for found in report.compared("D")
        if found.tensor == "y"
    ]
    html = render(replace(report, differences=tuple(many), drifts=()))
    assert html.count('class="plot"') == MOST_PANELS and "5 more are in the table" in Page(html).text


def test_what_was_not_executed_is_no_plain_pass_and_skipped(check: Checker) -> None:
    report = check("cell", steps=3)
    text, xml = Page(render(report)).text, junit(report)
    assert "✓ PASS, of what was executed" in text and "E drift: a slope needs 16 steps" in text
    assert "Edrift – not executed" in text and counts(xml) == (0, 1)
    unfloored = check("cell", reference=f"{MODELS}:SinglePrecision")
    assert "float64 floor: the reference" in Page(render(unfloored)).text


def test_a_graph_that_does_not_open_is_a_failed_page(check: Checker) -> None:
    report = check("cell", operator_of_nobody)
    text, xml = Page(render(report)).text, junit(report)
    assert "✕ FAIL level A, graph: " in text and "D stream: the graph cannot be opened" in text
    assert counts(xml) == (3, 7)  # the checker, the runtime, and their level


def test_nan_is_shown_as_such_and_never_drawn(check: Checker) -> None:
    html = render(check("cell", not_a_number))
    page = Page(html)
    assert "NaN or infinite" in page.text and 'class="cross"' in html
    for _, name, value in page.attributes:
        assert name not in ("d", "cx", "cy", "x", "y") or "nan" not in value and "inf" not in value


def test_what_users_wrote_is_escaped(check: Checker) -> None:
    report = check("cell", perturb("wo"))
    request = replace(report.request, graph=Path(HOSTILE), reference=HOSTILE)
    declared = replace(report.declared, sizes={HOSTILE: 1}, states=(StatePair(input=HOSTILE, output=HOSTILE),))
    hostile = replace(report, request=request, declared=declared, machine=HOSTILE)
    html, xml = render(hostile), junit(hostile)
    assert "<script" not in html and '<script>alert("x")</script> \\x1b[31m' in Page(html).text
    ET.fromstring(xml)
    for document in (html, xml):
        require_clean(document)


@pytest.mark.parametrize("factor", [1.0, 1.5], ids=["faithful", "tampered"])
def test_the_command_leaves_both_files_whether_it_passes_or_fails(
    factor: float, check: Checker, tmp_path: Path, pvc_export: Run
) -> None:
    request = check.request("cell", perturb("wo", factor))
    page, xml = tmp_path / "report.html", tmp_path / "junit.xml"
    states = [word for pair in CELL_STATES for word in ("--state", pair)]
    done = pvc_export(
        "check", "--reference", request.reference, "--graph", request.graph, *states, "--report", page, "--junit", xml
    )
    assert done.exit_code == (0 if factor == 1.0 else 3), done.message
    assert f"report: {page}" in done.out and f"report: {xml}" in done.out
    assert ("✓ PASS" if factor == 1.0 else "✕ FAIL") in page.read_text(encoding="utf-8")
    assert (counts(xml.read_text(encoding="utf-8"))[0] > 0) == (factor != 1.0)


def test_a_report_that_cannot_be_written_says_so(check: Checker, tmp_path: Path, pvc_export: Run) -> None:
    request = check.request("cell")
    states = [word for pair in CELL_STATES for word in ("--state", pair)]
    nowhere = tmp_path / "nowhere" / "report.html"
    pvc_export("check", "--reference", request.reference, "--graph", request.graph, *states, "--report", nowhere).says(
        4, "could not be written to", "The check itself is complete", "name another path"
    )
