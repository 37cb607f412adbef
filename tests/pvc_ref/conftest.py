"""Shared fixtures of the reference's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Disable gradients, for test modules that never train."""
    with torch.no_grad():
        yield
