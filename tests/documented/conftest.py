"""The sandbox in which documented commands run."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc_export.graphs.models import LoadedModel

from ..pvc_export.conftest import reference_exports
from .commands import ROOT
from .running import Here, in_a_process
from .sandbox import Sandbox, lay_out

__all__ = ["reference_exports"]


@pytest.fixture(scope="session")
def laid_out(
    bundle_shapes: Path, bundle_fp32: Path, tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Sandbox:
    box = lay_out(tmp_path_factory.mktemp("documented") / "box", shapes=bundle_shapes, mine=bundle_fp32, tiny=tiny)
    made = in_a_process(["python", str(ROOT / "docs/examples/counter.py")], box.root)  # your-model.md says so
    assert made.code == 0, made.text
    return box


@pytest.fixture
def box(laid_out: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, as the working directory."""
    monkeypatch.chdir(laid_out.root)
    return laid_out


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(monkeypatch, capsys)
