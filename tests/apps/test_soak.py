"""The soak test. A short run keeps all rules except the memory rule, which needs thousands of frames to settle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from apps.soak import PARTS, Part, Sample, Soak, run_soak
from engines import open_bundle

NUM_FRAMES = 1200
MEMORY = "memory is flat after the warm-up"


@pytest.fixture(scope="module")
def soak(bundle_shapes: Path) -> Soak:
    return run_soak(open_bundle(bundle_shapes), NUM_FRAMES, say=lambda _: None)


def test_a_short_soak_rolls_over_and_over_drops_nothing_and_repeats_its_answers(soak: Soak) -> None:
    assert [rule for rule in soak.rules() if not rule.passed and rule.what != MEMORY] == []
    figures = soak.figures()
    assert figures["num_frames"] == NUM_FRAMES and figures["rollovers"]["endless"] > 20 < figures["rollovers"]["small"]
    assert figures["right"]["scenes"] > 0.8 and soak.samples


def part(name: str) -> Part:
    said = (("Who?", "A ball."), ("Where?", "There."))
    anchors = 0 if name in ("scenes", "again") else 5
    return Part(
        name=name, num_frames=100, num_dropped=0, num_anchors=anchors, num_restarts=0, said=said, right=(True, True)
    )


def made(**changed: object) -> Soak:
    """A soak that keeps every rule, except for the given changes of one part or of the samples."""
    samples = [
        Sample(part="scenes", num_frames=20 * (i + 1), resident=2**30, frame_ms=10.0, num_rollovers=i)
        for i in range(20)
    ]
    parts = {name: part(name) for name in PARTS}
    for name, change in changed.items():
        if name == "resident":
            samples[-1] = replace(samples[-1], resident=change)  # type: ignore[arg-type]
        else:
            parts[name] = replace(parts[name], **change)  # type: ignore[arg-type]
    return Soak(parts=tuple(parts.values()), samples=tuple(samples), seconds=1.0)


def test_a_soak_in_which_all_is_well_holds_every_rule() -> None:
    assert all(rule.passed for rule in made().rules())


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"again": {"num_dropped": 1}}, "no frame is dropped"),
        ({"resident": round(1.03 * 2**30)}, MEMORY),
        ({"again": {"said": (("Who?", "A ball."), ("Where?", "Here."))}}, "the same scenes get the same answers"),
        ({"again": {"said": (("Who?", "A ball."),)}}, "the same scenes get the same answers"),
        ({"endless": {"num_anchors": 3}}, "endless: only rollovers"),
        ({"small": {"num_restarts": 1}}, "small: only rollovers"),
    ],
    ids=["dropped", "grown", "another answer", "fewer answers", "few rollovers", "a reset"],
)
def test_what_grew_or_changed_breaks_its_rule_and_no_other(changed: dict[str, object], what: str) -> None:
    broken = [rule.what for rule in made(**changed).rules() if not rule.passed]
    assert len(broken) == 1 and broken[0].startswith(what)
