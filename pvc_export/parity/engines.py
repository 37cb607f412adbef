"""Check that a bundle's engines were built from the graphs next to them, whether or not they can run here."""

from __future__ import annotations

from pathlib import Path

from engines.bundle import is_stale, lacks_engines
from engines.manifest import Manifest
from engines.provenance import Origin, origin_of

from .evidence import Evidence
from .levels import Rule

WHY_NOT: dict[Origin, str] = {
    "elsewhere": "not verified: built on another machine. To verify them, run there: pvc-export check",
    "unsigned": "not verified: built by an earlier version, which signed no graph. Build them again: pvc-export trt",
}


def check_engines(folder: Path, manifest: Manifest) -> Evidence:
    """Check that each engine was built from the graph next to it.

    Only the machine that built the engines can verify that; on another one the check is not executed, which is neither
    a pass nor a failure. A stale engine is detected on any machine.
    """
    if not manifest.engines:
        return Evidence()
    if lacks_engines(folder, manifest):
        return Evidence(not_executed={"engines": "no engine files: the bundle was copied without them"})
    wrong, unknown = wrong_engines(manifest), unverified(manifest)
    if wrong:
        return _rule(passed=False, detail="; ".join(f"{path}: {what}" for path, what in wrong.items()))
    if unknown:
        who = "" if len(unknown) == len(manifest.engines) else f"{', '.join(unknown)}: "
        return Evidence(not_executed={"engines": who + "; ".join(dict.fromkeys(unknown.values()))})
    return _rule(passed=True, detail=f"{len(manifest.engines)} built here from these graphs")


def unverified(manifest: Manifest) -> dict[str, str]:
    """Path of an engine -> why this machine cannot verify that it was built from its graph."""
    origins = {entry.path: origin_of(manifest, name) for name, entry in manifest.engines.items()}
    return {path: WHY_NOT[origin] for path, origin in origins.items() if origin in WHY_NOT}


def wrong_engines(manifest: Manifest) -> dict[str, str]:
    """Path of an engine known not to be built from its graph -> what is wrong."""
    wrong = {}
    for name, entry in manifest.engines.items():
        if is_stale(manifest, name):
            wrong[entry.path] = "built from another graph"
        elif origin_of(manifest, name) == "exchanged":
            wrong[entry.path] = "not the engine that this machine built from this graph for this bundle"
    return wrong


def _rule(*, passed: bool, detail: str) -> Evidence:
    return Evidence(rules=(Rule(level="A", name="engines", passed=passed, detail=detail),))
