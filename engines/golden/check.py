"""Checks a bundle against its golden recording, on whatever runtime is available: `pvc-export check BUNDLE --golden`.

On a device: python -m engines.golden.check BUNDLE. Exit codes are those of engines/errors.py: 0, or 3 for a difference.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..bundle import OpenGraphs, Runtime, open_graphs
from ..errors import EXIT_DIFFERENT, BundleError, PVCError
from ..manifest import Manifest
from ..terminal import fail, print_json
from .recording import GOLDEN_NAME, Golden
from .replay import GoldenReport, replay


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenCheck:
    """Result of the check, and the runtime that ran it."""

    bundle: str
    runs_on: str
    report: GoldenReport

    def lines(self) -> list[str]:
        return [
            *self.report.lines(),
            f"{'' if self.report.passed else 'FAIL: '}{self.report.summary()} ({self.runs_on})",
        ]

    def to_json(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "runs_on": self.runs_on, **self.report.to_json()}


def check_golden(folder: Path, *, runtime: Runtime = "auto", trust_engines: bool = False) -> GoldenCheck:
    """Check the bundle in a folder. Raises what open_graphs and load_golden raise."""
    golden = load_golden(folder, Manifest.load(folder))
    return play(open_graphs(folder, runtime=runtime, trust_engines=trust_engines), golden)


def play(graphs: OpenGraphs, golden: Golden) -> GoldenCheck:
    """Check a bundle that is already open."""
    return GoldenCheck(bundle=str(graphs.folder), runs_on=graphs.runs_on, report=replay(golden, graphs.sessions))


def load_golden(folder: Path, manifest: Manifest) -> Golden:
    """The recording of a bundle. Raises BundleError if it is missing, unreadable or from another model."""
    golden = Golden.load(folder / GOLDEN_NAME)
    if golden.weights_sha256 != manifest.model.weights_sha256:
        raise BundleError(
            f"{folder / GOLDEN_NAME} belongs to another model: its weights are {golden.weights_sha256[:16]}...",
            expected=f"weights {manifest.model.weights_sha256[:16]}..., as in the bundle's manifest",
            cause="files of two bundles were mixed",
            fix="copy the bundle again",
        )
    return golden


def conclude(found: GoldenCheck, *, as_json: bool) -> int:
    """Print the result, as text or as JSON. Returns the exit code."""
    if as_json:
        print_json(found.to_json())
    else:
        print("\n".join(found.lines()))
    return 0 if found.report.passed else EXIT_DIFFERENT


def main() -> None:
    """Entry point: errors meant for users become one message and an exit code instead of a traceback."""
    parser = argparse.ArgumentParser(prog="python -m engines.golden.check", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle folder with a golden recording")
    parser.add_argument("--runtime", choices=get_args(Runtime), default="auto", help="the runtime to run it on")
    parser.add_argument("--trust-engines", action="store_true", help="run engines that another machine built")
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object and nothing else")
    options = parser.parse_args()
    try:
        found = check_golden(options.bundle, runtime=options.runtime, trust_engines=options.trust_engines)
    except (PVCError, OSError) as error:
        raise SystemExit(fail(error, as_json=options.as_json)) from None
    sys.exit(conclude(found, as_json=options.as_json))


if __name__ == "__main__":
    main()
