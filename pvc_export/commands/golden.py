"""`pvc-export check BUNDLE --golden`: what a device runs too, so without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import typer

from engines.golden.check import check_golden, conclude


def check_golden_command(bundle: Path | None, *, alone: bool, as_json: bool) -> NoReturn:
    """Exit 0, or 3 for a difference. Raises BadParameter without a bundle or beside other options, and what
    check_golden does."""
    if bundle is None or not alone:
        raise typer.BadParameter("--golden goes with a BUNDLE and --json alone: it compares with nothing else")
    raise typer.Exit(conclude(check_golden(bundle), as_json=as_json))
