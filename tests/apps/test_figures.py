"""What a session counts."""

from __future__ import annotations

import json

import pytest

from apps import figures
from apps.figures import resident_bytes

from .web import told


def test_figures_are_fit_for_json() -> None:
    found = json.loads(json.dumps(told.figures(queues={"webhook": 2}).to_json()))
    assert found["num_seen"] == 4 and found["queues"] == {"webhook": 2} and found["resident_bytes"] is None


def test_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = b"x" * (64 * 2**20)
    after = resident_bytes()
    assert before is not None and after is not None and 48 * 2**20 <= after - before <= 96 * 2**20
    assert len(held) > 0


def test_where_the_system_does_not_tell_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "STATM", figures.Path("/no/such/file"))
    assert resident_bytes() is None
