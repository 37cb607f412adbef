"""`pvc-export check`, of a bundle and of anybody's graph, and `prove`."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from engines.errors import ParityError
from engines.manifest import Manifest, hash_file
from engines.target import load_target
from engines.terminal import print_json

from ..bundles.export import ExportRequest
from ..bundles.repair import Repair, repair
from ..controls.defects import DEFECTS, NAMES, PRECISION_DEFECTS
from ..controls.prove import prove
from ..foreign import ForeignRequest, check_foreign
from ..foreign import page as foreign_page
from ..graphs.models import LoadedModel, load_model, load_reference
from ..parity.check import check_bundle
from ..parity.culprit.find import Culprit, Finding, explained
from ..parity.report import ParityReport
from ..report import junit, render
from ..report.write import Make, now_utc, report_input, this_machine, write_files
from ..terminal.console import Console
from ..terminal.facts import installed


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a check of a bundle is to leave behind. page, xml: files for people and for a CI system."""

    bisect: bool
    as_json: bool
    page: Path | None
    xml: Path | None


def check_one_bundle(folder: Path, model: str | None, wanted: Wanted, console: Console) -> None:
    """Check, print, and on failure name the culprit. Raises what check_bundle does; ParityError for a difference."""
    as_json = wanted.as_json
    manifest = Manifest.load(folder)
    with console.stage("load the reference"):
        loaded = load_reference(manifest, model)
    facts: dict[str, Any] = {"bundle": str(folder)}
    kept: list[ParityReport] = []
    try:
        with explained(folder, loaded, console) as finding:
            _check(folder, loaded, console, kept, finding)
    except ParityError as error:
        text, culprit, repair = str(error), finding.culprit, None
        if wanted.bisect:
            repair = _bisected(manifest, loaded, folder, console)
            text += f"\n{repair.text()}"
        elif culprit is not None and culprit.is_precision:
            text += f"\nProve it: pvc-export check {shlex.quote(str(folder))} --bisect"
        _leave(kept, manifest, folder, wanted, console, culprit=culprit, repair=repair)
        if not as_json:
            raise ParityError(text) from error
        facts |= kept[0].to_json() if kept else {"passed": False}
        facts |= {"culprit": culprit and culprit.to_json(), "repair": repair and repair.to_json()}
        print_json(facts)
        print(f"ParityError: {text}", file=sys.stderr)
        raise typer.Exit(ParityError.exit_code) from error
    parity = kept[0]
    _leave(kept, manifest, folder, wanted, console)
    if as_json:
        print_json(facts | parity.to_json())
    console.print(f"{parity.summary()} ({parity.precision}, computed in {parity.computed_in})")
    console.print(f"next: pvc-export run {shlex.quote(str(folder))} --video FILE --ask 'What happens?'")


def _check(folder: Path, loaded: LoadedModel, console: Console, kept: list[ParityReport], finding: Finding) -> None:
    """Check and print; the report is kept also where it is raised as an error."""
    with console.stage("check against the reference") as (_, report):
        parity = check_bundle(folder, loaded, progress=report)
    kept.append(parity)
    for line in parity.table():
        console.print(f"  {line}")
    if not parity.passed:
        finding.graph = parity.first_failed_graph
        raise ParityError(parity.failure_text())


def _leave(
    kept: list[ParityReport], manifest: Manifest, folder: Path, wanted: Wanted, console: Console, *,
    culprit: Culprit | None = None, repair: Repair | None = None,
) -> None:  # fmt: skip
    """Write the files that were asked for. A check that NaN ended has no tables, and leaves none."""
    for parity in kept:
        command = f"pvc-export check {shlex.quote(str(folder))}"
        report = report_input(parity, manifest, folder, command=command, culprit=culprit, repair=repair)
        _write(wanted, console, render=partial(render, report), junit=partial(junit, report))


def _write(wanted: Wanted, console: Console, *, render: Make, junit: Make) -> None:
    for path in write_files(wanted.page, wanted.xml, render=render, junit=junit):
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


def check_any_graph(request: ForeignRequest, wanted: Wanted, console: Console) -> None:
    """The same of a graph that is not PVC's. Raises what check_foreign does, and ParityError for a difference."""
    as_json = wanted.as_json
    with console.stage("check against the reference") as (_, progress):
        report = check_foreign(request, progress=progress)
    for line in report.table():
        console.print(f"  {line}")
    if wanted.page is not None or wanted.xml is not None:  # else a graph of gigabytes would be hashed for nothing
        given = foreign_page.ForeignInput(
            report=report,
            checked_utc=now_utc(),
            machine=this_machine(),
            versions=installed(foreign_page.PACKAGES),
            file=hash_file(request.graph),
        )
        _write(wanted, console, render=partial(foreign_page.render, given), junit=partial(foreign_page.junit, given))
    if as_json:
        print_json(report.to_json())
    if not report.passed:
        if as_json:
            print(f"ParityError: {report.failure_text()}", file=sys.stderr)
            raise typer.Exit(ParityError.exit_code)
        raise ParityError(report.failure_text())
    console.print(report.summary())


def defect_names() -> tuple[str, ...]:
    """Everything that `prove` can plant."""
    return (*NAMES, *(defect.name for defect in PRECISION_DEFECTS))


def prove_model(model: str, names: Sequence[str], *, seed: int, as_json: bool, console: Console) -> None:
    """Plant these defects, and print the score. Raises ParityError if one is missed."""
    with console.stage("load the model"):
        loaded = load_model(model, seed=seed)
    proof = prove(
        loaded,
        defects=[defect for defect in DEFECTS if defect.name in names],
        precision_defects=[defect for defect in PRECISION_DEFECTS if defect.name in names],
        console=console,
    )
    if as_json:
        print_json(proof.to_json())
    for line in proof.lines():
        console.print(line)
    if not proof.passed:
        raise ParityError(proof.summary())
    console.print(proof.summary())
