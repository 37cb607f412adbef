"""A bundle's engines, held against the graphs beside them, whether one can be run here or not."""

from __future__ import annotations

from pathlib import Path

from engines.bundle import is_stale, lacks_engines
from engines.manifest import Manifest
from engines.provenance import Origin, origin_of

from .evidence import Evidence
from .levels import Rule

WHY_NOT: dict[Origin, str] = {
    "elsewhere": "not verified: built on another machine. That one can verify them: pvc-export check",
    "unsigned": "not verified: built by an earlier version, which signed no graph. Build them again: pvc-export trt",
}


def check_engines(folder: Path, manifest: Manifest) -> Evidence:
    """Each engine must be the one that was built from the graph beside it.

    Only the machine that built them can tell. On another one nothing is executed, which is neither pass nor failure;
    but what is stale is seen anywhere.
    """
    if not manifest.engines:
        return Evidence()
    if lacks_engines(folder, manifest):
        return Evidence(not_executed={"engines": "none is here: the bundle was copied without them"})
    wrong, unknown = wrong_engines(manifest), unverified(manifest)
    if wrong:
        return _rule(passed=False, detail="; ".join(f"{path}: {what}" for path, what in wrong.items()))
    if unknown:
        who = "" if len(unknown) == len(manifest.engines) else f"{', '.join(unknown)}: "
        return Evidence(not_executed={"engines": who + "; ".join(dict.fromkeys(unknown.values()))})
    return _rule(passed=True, detail=f"{len(manifest.engines)} built here from these graphs")


def unverified(manifest: Manifest) -> dict[str, str]:
    """Why this machine cannot tell of an engine whether it is its graph's, by its path."""
    origins = {entry.path: origin_of(manifest, name) for name, entry in manifest.engines.items()}
    return {path: WHY_NOT[origin] for path, origin in origins.items() if origin in WHY_NOT}


def wrong_engines(manifest: Manifest) -> dict[str, str]:
    """What is wrong with each engine that is known not to be its graph's, by its path."""
    wrong = {}
    for name, entry in manifest.engines.items():
        if is_stale(manifest, name):
            wrong[entry.path] = "of another graph"
        elif origin_of(manifest, name) == "exchanged":
            wrong[entry.path] = "not what this machine built from this graph for this bundle"
    return wrong


def _rule(*, passed: bool, detail: str) -> Evidence:
    return Evidence(rules=(Rule(level="A", name="engines", passed=passed, detail=detail),))
