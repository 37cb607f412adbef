"""The figures a session counts."""

from __future__ import annotations

import json

from .web import told


def test_figures_are_fit_for_json() -> None:
    found = json.loads(json.dumps(told.figures(queues={"webhook": 2}).to_json()))
    assert found["num_seen"] == 4 and found["queues"] == {"webhook": 2} and found["resident_bytes"] is None
