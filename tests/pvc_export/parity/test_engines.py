"""Engines in a check's report: built here, exchanged, stale, or not verified, which is neither pass nor failure."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines import machine
from engines.manifest import Manifest
from pvc_export.controls.engine_edits import (
    build_engines,
    exchange_engines,
    forget_to_build_anew,
    take_engines_of_another_bundle,
)
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.check import check_bundle
from pvc_export.parity.engines import check_engines
from pvc_export.parity.evidence import Evidence
from pvc_export.parity.levels import Rule

Copy = Callable[[Path], Path]
ELSEWHERE = {"engines": "not verified: built on another machine. To verify them, run there: pvc-export check"}


@pytest.fixture
def bundle(bundle_fp32: Path, copy_bundle: Copy) -> Path:
    """A bundle with two engines that were built here."""
    folder = copy_bundle(bundle_fp32)
    build_engines(folder)
    return folder


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes the code believe it runs on another machine."""
    return lambda: monkeypatch.setattr(machine, "machine_id", lambda: "another")


def check(folder: Path) -> Evidence:
    return check_engines(folder, Manifest.load(folder))


def rule_of(evidence: Evidence) -> Rule:
    (rule,) = evidence.rules
    assert rule.level == "A" and not evidence.not_executed
    return rule


def test_engines_that_were_built_here_pass(bundle: Path) -> None:
    assert rule_of(check(bundle)) == Rule(
        level="A", name="engines", passed=True, detail="2 built here from these graphs"
    )


def test_the_engines_of_an_export_pass(bundle_fp16: Path) -> None:
    assert rule_of(check(bundle_fp16)).detail == "5 built here from these graphs"


@pytest.mark.parametrize("edit", [exchange_engines, take_engines_of_another_bundle], ids=lambda edit: edit.__name__)
def test_engines_that_are_not_their_graphs_fail_and_are_named(edit: Callable[[Path], None], bundle: Path) -> None:
    edit(bundle)
    rule, what = rule_of(check(bundle)), "not the engine that this machine built from this graph for this bundle"
    assert not rule.passed
    assert rule.detail == f"engines/trunk.engine: {what}; engines/compressor.engine: {what}"


def test_on_another_machine_they_are_not_verified(bundle: Path, elsewhere: Callable[[], None]) -> None:
    elsewhere()
    assert check(bundle) == Evidence(not_executed=ELSEWHERE)


def test_an_engine_older_than_its_graph_fails_on_any_machine(bundle: Path, elsewhere: Callable[[], None]) -> None:
    forget_to_build_anew(bundle)
    elsewhere()
    rule = rule_of(check(bundle))
    assert not rule.passed and "engines/trunk.engine: built from another graph" in rule.detail


def test_one_engine_of_another_machine_is_named(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    foreign = replace(manifest.engines["trunk"], built_on="0123456789abcdef.0123456789abcdef0123456789abcdef")
    replace(manifest, engines=manifest.engines | {"trunk": foreign}).save(bundle)
    assert check(bundle).not_executed["engines"].startswith("engines/trunk.engine: not verified: built on another")


def test_engines_of_an_earlier_version_are_not_verified_and_it_says_what_to_do(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    unsigned = {name: replace(entry, signature="") for name, entry in manifest.engines.items()}
    replace(manifest, engines=unsigned).save(bundle)
    found = check(bundle)
    assert not found.rules and "built by an earlier version" in found.not_executed["engines"]
    assert "Build them again: pvc-export trt" in found.not_executed["engines"]


def test_a_bundle_without_engines_says_nothing_of_them(bundle: Path, bundle_fp32: Path) -> None:
    assert check(bundle_fp32) == Evidence()
    shutil.rmtree(bundle / "engines")
    assert check(bundle).not_executed == {"engines": "no engine files: the bundle was copied without them"}


@pytest.mark.usefixtures("stream_alone")
def test_a_whole_check_on_another_machine_passes_without_saying_that_they_do(
    bundle: Path, tiny: LoadedModel, elsewhere: Callable[[], None]
) -> None:
    elsewhere()
    report = check_bundle(bundle, tiny, ladder=False, num_questions=0)
    assert report.passed and report.left_out()["engines"] == ELSEWHERE["engines"]
    assert not any(rule.name == "engines" for rule in report.rules)
    assert f"engines: not executed: {ELSEWHERE['engines']}" in report.table()
    assert report.receipt()["not_executed"]["engines"] == ELSEWHERE["engines"]
