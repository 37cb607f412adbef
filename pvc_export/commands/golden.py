"""`pvc-export check BUNDLE --golden`: the check that a device also runs, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer

from engines.golden.check import check_golden, conclude


def check_golden_command(bundle: Path | None, *, alone: bool, as_json: bool) -> NoReturn:
    """Check, and exit 0, or 3 for a difference. Raises BadParameter without a bundle or with other options, and the
    errors of check_golden."""
    if bundle is None or not alone:
        raise typer.BadParameter("--golden takes a BUNDLE, and no other option except --json")
    raise typer.Exit(conclude(check_golden(bundle), as_json=as_json))
