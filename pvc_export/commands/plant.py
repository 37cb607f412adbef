"""`pvc-export prove BUNDLE --only NAME -o COPY`: a broken copy of a bundle, to see what a check says of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from engines.errors import BundleError
from engines.manifest import Manifest
from engines.terminal import print_json

from ..bundles.publish import staging
from ..controls.defects import DEFECTS, Defect
from ..terminal.console import Console


def plantable(names: Sequence[str]) -> Defect:
    """The defect to plant. Raises ValueError unless it is one, of a graph or of the bundle's files."""
    possible = {defect.name: defect for defect in DEFECTS if defect.change_bundle is not None}
    if len(names) != 1 or names[0] not in possible:
        given = "none" if not names else ", ".join(names)
        raise ValueError(
            f"a copy of a bundle takes one defect by --only, one of: {', '.join(possible)}; given: {given}"
        )
    return possible[names[0]]


def plant_command(bundle: Path, defect: Defect, output: Path, *, as_json: bool) -> None:
    """Copy the bundle, plant the defect, and print what to type next.

    Raises BundleError if the folder is not a bundle or the defect does not fit its graphs. `output` is complete or
    untouched.
    """
    Manifest.load(bundle)
    assert defect.change_bundle is not None
    with staging(output) as copy:
        shutil.copytree(bundle, copy, dirs_exist_ok=True)
        try:
            defect.change_bundle(copy)
        except (AssertionError, IndexError, KeyError, StopIteration, ValueError) as error:
            raise BundleError(
                f"defect '{defect.name}' cannot be planted in {bundle}: {error or type(error).__name__}",
                expected="a bundle of shapes or tiny that pvc-export onnx or trt made",
                cause="the graph that it changes is spelled in another way",
                fix=f"export one first: pvc-export onnx -o build/shapes; then prove build/shapes --only {defect.name}",
            ) from error
    if as_json:
        print_json({"bundle": str(bundle), "copy": str(output), "defect": defect.name, "what": defect.what})
    console = Console(quiet=as_json)
    console.print(f"{output} is {bundle} with a defect: {defect.what}")
    console.print(f"next: pvc-export check {output} --report report.html")
