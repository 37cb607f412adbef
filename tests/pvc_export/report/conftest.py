"""A check that passed, and one that failed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvc_export.parity.places import Place
from pvc_export.report import ReportInput

from .samples import BUNDLE, CULPRIT, WINDOW, found_of, manifest, parity_of


@pytest.fixture
def passing() -> ReportInput:
    return ReportInput(
        parity=parity_of(found_of()), manifest=manifest(), bundle="build/tiny",
        checked_utc="2026-11-26T11:00:00+00:00", machine="x86_64, 2 cores",
    )  # fmt: skip


@pytest.fixture
def failing(passing: ReportInput) -> ReportInput:
    found = found_of({(BUNDLE, "features", Place("frame", WINDOW)): 40.0})
    return replace(passing, parity=parity_of(found, culprit=CULPRIT, looked=True))
