"""Parity: compare a bundle's outputs with the PyTorch reference, on every rung between the two.

`pvc-export check` runs everything. Running any two rungs, comparing and judging takes five lines:

    bundle, loaded = open_bundle(folder, runtime="cpu"), load_model(name)
    frames, precision = check_frames(bundle.manifest), bundle.manifest.precision
    want, noise = run_reference(Reference.of(loaded.model, precision), frames, bundle.manifest.graphs["temporal"])
    evidence = noise + compare(Rung("bundle", precision), run_sessions(bundle.sessions, frames), want, frames.times)
    report = judge(evidence, bundle.manifest, num_frames=len(frames.times))

    report.passed, report.table(), report.faults(), report.to_json()

(open_bundle is from engines.bundle, load_model from pvc_export.graphs.models.) A rung is whatever returns a Recording:
run_sessions takes any sessions of the vision graphs, run_torch a model in any dtype. The noise is the difference
between the reference and the same model in the bundle's dtype; limits are multiples of it (limits.py).
Names are imported lazily, because a process that must not import torch imports parts of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_bundle
    from .evidence import Evidence
    from .fault import Fault
    from .places import Place, Rung
    from .recording import Frames, Recording, check_frames, compare, run_reference, run_sessions, run_torch
    from .report import ParityReport, judge
    from .rounding import Reference

__all__ = [
    "Evidence", "Fault", "Frames", "ParityReport", "Place", "Recording", "Reference", "Rung", "check_bundle",
    "check_frames", "compare", "judge", "run_reference", "run_sessions", "run_torch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for home in ("places", "evidence", "recording", "rounding", "report", "check") if name in __all__ else ():
        if hasattr(module := import_module(f".{home}", __name__), name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
