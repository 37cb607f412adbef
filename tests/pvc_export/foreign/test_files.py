"""A graph with external weights: they are read through a link, and missing ones are reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from pvc_export.foreign import ForeignRequest, check_foreign
from pvc_export.foreign.page import render

from ..conftest import Run
from .faults import perturb
from .models import Checker, Edit

STEPS = 3


def saved_beside(check: Checker, link: Callable[[Path], None], edit: Edit = lambda _: None) -> ForeignRequest:
    """Save the cell with its weights in a separate file, and apply `link` to that file."""
    request = check.request("cell", edit, steps=STEPS)
    data = check.path.with_name("graph.onnx.data")
    onnx.save(onnx.load(check.path), check.path, save_as_external_data=True, location=data.name, size_threshold=0)
    link(data)
    return request


def symbolic(data: Path) -> None:
    """Link as a download cache does."""
    blob = data.parent / "blobs" / "0123"
    blob.parent.mkdir(exist_ok=True)
    data.rename(blob)
    data.symlink_to(Path("blobs") / blob.name)


def outside(data: Path) -> None:
    """Link to another folder, where ONNX Runtime refuses to look."""
    blob = data.parent.parent / f"{data.parent.name}-store"
    data.rename(blob)
    data.symlink_to(blob)


def hard(data: Path) -> None:
    os.link(data, data.with_name("another name"))


@pytest.mark.parametrize("link", [symbolic, outside, hard, lambda _: None], ids=["symbolic", "outside", "hard", "none"])
@pytest.mark.parametrize("factor", [1.0, 1.001], ids=["faithful", "tampered"])
def test_weights_beside_the_graph_are_read_through_a_link(
    link: Callable[[Path], None], factor: float, tmp_path: Path
) -> None:
    report = check_foreign(saved_beside(Checker(tmp_path), link, perturb("wo", factor)))
    assert report.passed == (factor == 1.0), report.failure_text()
    assert report.faults() == [] or report.faults()[0].level == "B"
    assert str(tmp_path) in report.command and "graph.onnx" in render(report)  # any copy has been removed by then


@pytest.mark.parametrize(("broken", "said"), [(False, "which is missing"), (True, "which is a broken link")])
def test_weights_that_are_missing_are_an_error_of_the_input(
    broken: bool, said: str, tmp_path: Path, pvc_export: Run
) -> None:
    def remove(data: Path) -> None:
        data.unlink()
        if broken:
            data.symlink_to("gone")

    request = saved_beside(Checker(tmp_path), remove)
    pvc_export("check", "--reference", request.reference, "--graph", request.graph).says(
        6, f"'graph.onnx.data', {said}", f"the file {request.graph}.data", "likely: ", "then look: ls -l"
    )
