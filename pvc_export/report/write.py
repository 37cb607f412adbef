"""Where a check's report goes: a page in the bundle, or files that a command names."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BackendUnavailable
from engines.manifest import Manifest

from ..parity.culprit.find import Culprit
from ..parity.report import ParityReport
from . import ReportInput

if TYPE_CHECKING:
    from ..bundles.repair import Repair  # which exports, and an export writes a report

PAGE_NAME = "report.html"
Make = Callable[[], str]


def now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def this_machine() -> str:
    """What computes a check, in words."""
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def report_input(
    parity: ParityReport,
    manifest: Manifest,
    bundle: Path,
    *,
    command: str,
    culprit: Culprit | None = None,
    repair: Repair | None = None,
) -> ReportInput:
    """A check that was just made on this machine. The culprit of a failed one has been looked for."""
    return ReportInput(
        parity=parity,
        manifest=manifest,
        bundle=str(bundle),
        command=command,
        checked_utc=now_utc(),
        machine=this_machine(),
        culprit=culprit,
        looked=not parity.passed,
        repair=repair,
        heat=parity.heat,
    )


def write_files(page: Path | None, xml: Path | None, *, render: Make, junit: Make) -> list[Path]:
    """Make and write what was asked for. Returns the paths. Raises BackendUnavailable where one cannot be written."""
    written = []
    for path, make in ((page, render), (xml, junit)):
        if path is not None:
            try:
                path.write_text(make(), encoding="utf-8")
            except OSError as error:
                raise BackendUnavailable(
                    f"the report could not be written to {path}: {error}. Is the disk full, or the folder missing or "
                    "not yours? The check itself is done; name another path"
                ) from error
            written.append(path)
    return written
