"""Exports that reuse graphs, for tests of what surrounds them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engines import checked_build
from engines.builder import EngineReport
from engines.manifest import Manifest
from pvc_export.bundles import export as export_module


@pytest.fixture
def ready_made(bundle_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports reuse bundle_fp16's graphs, and its engines unless a test builds one."""
    manifest = Manifest.load(bundle_fp16)

    def take_graph(module: object, spec: object, path: Path) -> None:
        for file in (path.name, f"{path.name}.data"):
            shutil.copy(bundle_fp16 / "graphs" / file, path.with_name(file))

    def take_engine(path: Path, *_: object, **__: object) -> EngineReport:
        plan = (bundle_fp16 / f"engines/{path.stem}.engine").read_bytes()
        return EngineReport(
            plan=plan, runtime="x", runtime_version="1", compute_capabilities=(), layers=(), build_s=0.0
        )

    assert manifest.limits.window == 4 and manifest.limits.context == 512
    monkeypatch.setattr(export_module, "export_graph", take_graph)
    monkeypatch.setattr(checked_build, "build_engine", take_engine)
    monkeypatch.setattr("engines.gate.check_layers", lambda *_, **__: None)
