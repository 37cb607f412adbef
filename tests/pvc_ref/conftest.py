"""What the tests of the reference share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_grad() -> Iterator[None]:
    """No gradients, for modules that compute and never train."""
    with torch.no_grad():
        yield
