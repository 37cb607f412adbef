"""`pvc-export check`, of a bundle and of anybody's graph."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import typer

from engines.errors import EXIT_DIFFERENT
from engines.manifest import Manifest, hash_file
from engines.target import load_target
from engines.terminal import print_json

from ..bundles.export import ExportRequest
from ..bundles.repair import repair
from ..foreign import ForeignRequest, check_foreign
from ..foreign import page as foreign_page
from ..graphs.models import LoadedModel, load_reference
from ..parity.check import check_bundle, explain
from ..parity.culprit.record import Repair
from ..report import ReportInput, junit, render
from ..report.page import Given
from ..report.write import Make, write_files
from ..terminal.console import Console


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a check is to leave behind. page, xml: files for people and for a CI system."""

    bisect: bool
    as_json: bool
    page: Path | None
    xml: Path | None


def check_one_bundle(folder: Path, model: str | None, wanted: Wanted) -> NoReturn:
    """Check a bundle, name the culprit if it fails, write what is wanted, and exit: 0, or 3 for a difference."""
    console = Console(quiet=wanted.as_json)
    manifest = Manifest.load(folder)
    with console.stage("load the reference"):
        loaded = load_reference(manifest, model)
    with console.stage("check against the reference") as (_, progress):
        parity = check_bundle(folder, loaded, progress=progress)
    for line in parity.table():
        console.print(f"  {line}")
    if not parity.passed:
        parity = explain(parity, folder, loaded, console)
        if wanted.bisect:
            parity = replace(parity, repair=_bisected(manifest, loaded, folder, console))
    report = ReportInput(parity=parity, manifest=manifest, bundle=str(folder))
    _leave(report, wanted, console, render=partial(render, report), junit=partial(junit, report))


def _leave(report: Given, wanted: Wanted, console: Console, *, render: Make, junit: Make) -> NoReturn:
    """Write what is wanted, say how the check came out and what comes next, and exit: 0, or 3 for a difference."""
    parity = report.parity
    for path in write_files(wanted.page, wanted.xml, render=render, junit=junit):
        console.print(f"report: {path}")
    if wanted.as_json:
        print_json(report.to_json())
    command, purpose = report.next_command()
    if parity.passed:
        console.print(f"{parity.summary()} ({report.computed})")
        if command:
            console.print(f"next: {command}")
    else:
        print(f"FAIL: {parity.failure_text()}\n{purpose}: {command}", file=sys.stderr)
    raise typer.Exit(0 if parity.passed else EXIT_DIFFERENT)


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
    """The same of a graph that is not PVC's. Raises what check_foreign does."""
    console = Console(quiet=wanted.as_json)
    with console.stage("check against the reference") as (_, progress):
        report = check_foreign(request, progress=progress)
    for line in report.table():
        console.print(f"  {line}")
    # Only a page or an XML file needs the hash, which takes its time for a graph of gigabytes.
    given = foreign_page.ForeignInput(parity=report, file=partial(hash_file, request.graph))
    _leave(given, wanted, console, render=partial(foreign_page.render, given), junit=partial(foreign_page.junit, given))
