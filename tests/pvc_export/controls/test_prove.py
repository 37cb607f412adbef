"""Negative controls: one defect of every level, and a control cannot pass by itself."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from engines.cache import RingCache
from engines.spec import GRAPH_NAMES
from pvc_export.commands.prove import defect_names, names_in
from pvc_export.controls.defects import DEFECTS, NAMES, Defect
from pvc_export.controls.prove import DefectResult, Proof, meet
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity.levels import TITLES

from ..conftest import Run

BY_NAME = {defect.name: defect for defect in DEFECTS}
FAST = ("weight", "exchanged", "epsilon-half", "wqkv", "stale-engine", "exchanged-engines", "foreign-engine",
        "positions-end", "gelu", "mask", "narrow-clock", "no-wrap", "reset", "changed-input", "batch-leak", "noise",
        "argmin", "resize", "prompt", "trained-frames", "token-ids", "anchor-newest")  # fmt: skip
"""One or two defects of each level; `pvc-export prove` plants the others."""
STATE_AND_WORDS = "GIJK"
"""Levels of the state rules and conversations: a check that leaves both out can neither fail them nor name them."""


def test_there_are_defects_of_every_level_and_kind() -> None:
    assert len(set(NAMES)) == len(DEFECTS) >= 20
    assert {defect.level for defect in DEFECTS} == {BY_NAME[name].level for name in FAST} == set(TITLES)
    assert {defect.where for defect in DEFECTS} == {"graph", "bundle", "runtime", "preprocessing", "export"}


@pytest.mark.parametrize("name", FAST)
def test_a_defect_is_caught_at_its_level(
    name: str, tiny: LoadedModel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if BY_NAME[name].level not in STATE_AND_WORDS:
        request.getfixturevalue("stream_alone")
    sound = request.getfixturevalue(f"bundle_{BY_NAME[name].precision}")
    outcome = meet(BY_NAME[name], sound, tiny, tmp_path)
    assert outcome.caught, outcome
    assert not list(tmp_path.iterdir())  # the broken bundle is removed


@pytest.mark.usefixtures("stream_alone")
def test_what_was_not_planted_is_not_caught(bundle_fp32: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    outcome = meet(replace(BY_NAME["mask"], fault=nullcontext), bundle_fp32, tiny, tmp_path)
    assert not outcome.caught and outcome.failed == () and "MISSED" in outcome.line()


@pytest.mark.usefixtures("stream_alone")
def test_what_shows_at_another_level_first_is_not_caught(bundle_fp32: Path, tiny: LoadedModel, tmp_path: Path) -> None:
    late = meet(replace(BY_NAME["mask"], level="F"), bundle_fp32, tiny, tmp_path)
    assert "F" in late.failed and not late.caught  # it fails there too, but frames before the wrap have already failed
    wrong_graph = meet(replace(BY_NAME["gelu"], named="compressor"), bundle_fp32, tiny, tmp_path)
    assert not wrong_graph.caught and "names 'trunk'" in wrong_graph.detail


@pytest.mark.usefixtures("stream_alone")
def test_a_crash_is_no_catch(
    bundle_fp32: Path, tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: RingCache) -> None:
        raise RuntimeError("the ring is gone")

    monkeypatch.setattr(RingCache, "feeds", crash)
    outcome = meet(replace(BY_NAME["mask"], fault=nullcontext), bundle_fp32, tiny, tmp_path)
    assert not outcome.caught and outcome.crash == "RuntimeError: the ring is gone"


def test_the_score_counts_what_was_missed_and_a_gate_that_is_always_shut() -> None:
    def outcome(defect: Defect, *, caught: bool) -> DefectResult:
        return DefectResult(
            defect=defect.name, level=defect.level, what=defect.what, failed=(), named="", caught=caught, detail="",
            seconds=1.0,
        )  # fmt: skip

    caught = tuple(outcome(defect, caught=True) for defect in DEFECTS)
    assert Proof(outcomes=caught, repairs=(), faithful={"fp32": True}, seconds=60).passed
    assert not Proof(outcomes=caught, repairs=(), faithful={"fp32": False}, seconds=60).passed
    missed = Proof(
        outcomes=(*caught[1:], outcome(DEFECTS[0], caught=False)), repairs=(), faithful={"fp32": True}, seconds=60
    )
    assert not missed.passed and f"{len(DEFECTS) - 1} of {len(DEFECTS)} defects caught" in missed.summary()


@pytest.mark.usefixtures("shared_graphs", "stream_alone")
def test_prove_plants_what_it_is_asked_to_and_says_so(pvc_export: Run) -> None:
    done = pvc_export("prove", "-m", "tiny", "--only", "gelu")
    assert done.exit_code in (None, 0) and "1 of 1 defects caught at their level; faithful fp32 passes" in done.out
    pvc_export("prove", "--only", "glue").says(2, "--only is 'glue'", "Did you mean 'gelu'?")


def test_the_defects_of_a_graph_can_be_chosen_by_its_name(pvc_export: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planted: list[str] = []
    monkeypatch.setattr("pvc_export.commands.prove.prove_command", lambda _, names, **__: planted.extend(names))
    pvc_export("prove", "--graph", "head", "--graph", "embed", "--only", "gelu")
    assert planted == ["gelu", "rolled-table", "embed-row", "head-row"]
    pvc_export("prove", "--graph", "lm").says(2, "--graph is 'lm'", "Did you mean 'llm'?")
    assert "loud-swiglu" in names_in(["llm"]) and set(names_in(GRAPH_NAMES)) < set(defect_names())
