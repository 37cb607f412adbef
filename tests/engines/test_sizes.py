"""The memory of this process. Sizes as text are tested in tests/pvc_export/plan/test_budget.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines import sizes
from engines.sizes import resident_bytes


def test_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = b"x" * (64 * 2**20)
    after = resident_bytes()
    assert before is not None and after is not None and 48 * 2**20 <= after - before <= 96 * 2**20
    assert len(held) > 0


def test_where_the_system_does_not_tell_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "Path", lambda _: Path("/no/such/file"))
    assert resident_bytes() is None
