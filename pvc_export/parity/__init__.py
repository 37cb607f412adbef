"""Parity: what a bundle returns, held against the PyTorch reference, on every rung between the two.

`pvc-export check` asks all there is to ask. To run any two rungs, compare and judge takes five lines:

    bundle, loaded = open_bundle(folder, runtime="cpu"), load_model(name)
    frames = check_frames(bundle.manifest)
    got, want = run_sessions(bundle.sessions, frames), run_torch(loaded.model, frames, bundle.manifest)
    evidence = compare(Rung("bundle", bundle.manifest.precision), got, want, frames.times)
    report = judge(evidence, bundle.manifest, num_frames=len(frames.times))

    report.passed, report.table(), report.faults(), report.to_json()

(open_bundle is engines', load_model pvc_export.graphs.models'.) A rung is whatever returns a Recording: run_sessions
takes any sessions of the vision graphs, run_torch a reference in any dtype. The Rung says which committed limits hold.
Names are imported when they are asked for, since a process that must not import torch imports parts of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_bundle
    from .evidence import Evidence
    from .places import Place, Rung
    from .recording import Frames, Recording, check_frames, compare, run_sessions, run_torch
    from .report import Fault, ParityReport, judge

__all__ = [
    "Evidence", "Fault", "Frames", "ParityReport", "Place", "Recording", "Rung", "check_bundle", "check_frames",
    "compare", "judge", "run_sessions", "run_torch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home in ("places", "evidence", "recording", "report", "check") if name in __all__ else ():
        if hasattr(module := import_module(f".{home}", __name__), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
