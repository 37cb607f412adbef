"""`pvc-export check`, for a bundle and for a graph of any origin."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

from engines.errors import EXIT_DIFFERENT, BackendUnavailable, SpecError
from engines.manifest import Manifest
from engines.target import load_target
from engines.terminal import print_json

from ..bundles.export import ExportRequest
from ..bundles.repair import repair
from ..foreign import ForeignReport, ForeignRequest, check_foreign
from ..foreign import page as foreign_page
from ..graphs.models import LoadedModel, load_reference
from ..parity.check import check_bundle, explain
from ..parity.culprit.record import Repair
from ..parity.report import ParityReport
from ..report import ReportInput, junit, render
from ..terminal.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Options of a check. page, xml: reports for people and for a CI system. by_layer: see check_bundle."""

    bisect: bool
    by_layer: bool | None
    as_json: bool
    page: Path | None
    xml: Path | None


def check_one_bundle(folder: Path, model: str | None, mapping: Path | None, wanted: Wanted) -> NoReturn:
    """Check a bundle, name the culprit if it fails, write the requested reports, and exit: 0, or 3 for a difference."""
    console = Console(quiet=wanted.as_json)
    manifest = Manifest.load(folder)
    with console.stage("load the reference"):
        loaded = load_reference(manifest, model, mapping, on_disk=True)
    for line in loaded.renamed():
        console.print(f"  {line}")
    with console.stage("check against the reference") as (_, progress):
        parity = check_bundle(folder, loaded, by_layer=wanted.by_layer, progress=progress)
    for line in parity.table():
        console.print(f"  {line}")
    if not parity.passed:
        parity = explain(parity, folder, loaded, console)
        if wanted.bisect:
            parity = replace(parity, repair=_bisected(manifest, loaded, folder, console))
    given = ReportInput(parity=parity, manifest=manifest, bundle=str(folder))
    _write(wanted, console, render=partial(render, given), junit=partial(junit, given))
    _leave(parity, {"bundle": str(folder)} | parity.to_json(), given.next_command(), console)


def _leave(
    report: ParityReport | ForeignReport, data: dict[str, Any], then: tuple[str, str], console: Console
) -> NoReturn:
    """Print a check's result and the next command, as text or with --json as `data`, and exit: 0 for a pass, 3 for a
    difference, or 6 if nothing is wrong but the command line leaves something out, so that it is not a pass."""
    command, purpose = then
    if console.quiet:
        print_json(data)
    if report.passed:
        console.print(f"{report.summary()} ({report.computed()})")
        if command:
            console.print(f"next: {command}")
    elif isinstance(report, ForeignReport) and not report.faults():
        console.print(f"{report.summary()} ({report.computed()})")
        said = "\n".join(f"not shown: {name}: {doubt.why}" for name, doubt in report.not_shown().items())
        print(f"{said}\n{purpose}: {command}", file=sys.stderr)
        raise typer.Exit(SpecError.exit_code)
    else:
        print(f"FAIL: {report.failure_text()}\n{purpose}: {command}", file=sys.stderr)
    raise typer.Exit(0 if report.passed else EXIT_DIFFERENT)


def _write(wanted: Wanted, console: Console, *, render: Callable[[], str], junit: Callable[[], str]) -> None:
    """Write the requested reports."""
    for path, make in ((wanted.page, render), (wanted.xml, junit)):
        if path is not None:
            try:
                path.write_text(make(), encoding="utf-8")
            except OSError as error:
                raise BackendUnavailable(
                    f"the report could not be written to {path}: {error}. The check itself is complete",
                    cause="the disk is full, or the folder is missing or not writable for you",
                    fix="name another path",
                ) from error
            console.print(f"report: {path}")


def _bisected(manifest: Manifest, loaded: LoadedModel, folder: Path, console: Console) -> Repair:
    request = ExportRequest(
        out=folder,
        target=load_target(manifest.target),
        precision=manifest.precision,
        limits=manifest.limits,
        islands=manifest.islands,
    )
    with tempfile.TemporaryDirectory(prefix="pvc-bisect-") as scratch:
        return repair(loaded, request, scratch=Path(scratch), console=console)


def check_any_graph(request: ForeignRequest, wanted: Wanted) -> NoReturn:
    """The same for a graph that is not PVC's. Raises the errors of check_foreign."""
    console = Console(quiet=wanted.as_json)
    with console.stage("check against the reference") as (_, progress):
        report = check_foreign(request, progress=progress)
    for line in report.table():
        console.print(f"  {line}")
    _write(wanted, console, render=partial(foreign_page.render, report), junit=partial(foreign_page.junit, report))
    _leave(report, report.to_json(), report.next_command(), console)
