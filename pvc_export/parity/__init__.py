"""Parity: what a bundle returns, held against the PyTorch reference, on every rung between the two.

`pvc-export check` asks all there is to ask. To run any two rungs, compare and judge takes a few lines:

    bundle, loaded = open_bundle(folder, runtime="cpu"), load_model(name)
    frames, temporal = check_frames(bundle.manifest), bundle.manifest.graphs["temporal"]
    reference, precision = Reference.of(loaded.model, bundle.manifest.precision), bundle.manifest.precision
    got, want, twin = (run_sessions(bundle.sessions, frames), run_torch(reference.model, frames, temporal),
                       run_torch(reference.twin, frames, temporal))
    evidence = noise_of(reference, want, twin, frames.times)
    evidence += compare(Rung("bundle", precision), got, want, frames.times)
    report = judge(evidence, bundle.manifest, num_frames=len(frames.times))

    report.passed, report.table(), report.faults(), report.to_json()

(open_bundle is engines', load_model pvc_export.graphs.models'.) A rung is whatever returns a Recording: run_sessions
takes any sessions of the vision graphs, run_torch a reference in any dtype. What two torch rungs differ by is the noise
from which limits come (limits.py).
Names are imported when they are asked for, since a process that must not import torch imports parts of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_bundle
    from .evidence import Evidence
    from .places import Place, Rung
    from .recording import Frames, Recording, check_frames, compare, noise_of, run_sessions, run_torch
    from .report import Fault, ParityReport, judge
    from .rounding import Reference

__all__ = [
    "Evidence", "Fault", "Frames", "ParityReport", "Place", "Recording", "Reference", "Rung", "check_bundle",
    "check_frames", "compare", "judge", "noise_of", "run_sessions", "run_torch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home in ("places", "evidence", "recording", "rounding", "report", "check") if name in __all__ else ():
        if hasattr(module := import_module(f".{home}", __name__), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
