"""The example in the package's docstring: compare and judge two rungs from outside; its types need no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pvc_export.parity
from engines import open_bundle
from pvc_export.controls.graph_edits import edit_graph, roll_slot_mask
from pvc_export.graphs.models import LoadedModel
from pvc_export.parity import ParityReport


def run_the_five_lines(folder: Path, loaded: LoadedModel) -> ParityReport:
    (lines,) = [part for part in (pvc_export.parity.__doc__ or "").split("\n\n") if part.startswith("    bundle, ")]
    assert len(lines.splitlines()) == 5
    names: dict[str, Any] = {name: getattr(pvc_export.parity, name) for name in pvc_export.parity.__all__}
    names |= {"open_bundle": open_bundle, "load_model": lambda _: loaded, "folder": folder, "name": "tiny"}
    exec(dedent(lines), names)
    report = names["report"]
    assert isinstance(report, ParityReport)
    return report


def test_a_faithful_bundle_passes_in_five_lines(bundle_fp32: Path, tiny: LoadedModel) -> None:
    report = run_the_five_lines(bundle_fp32, tiny)
    assert (
        report.passed
        and report.failure_text() == ""
        and {str(rung) for rung in report.kinds()} == {"torch fp32", "bundle fp32"}
    )
    assert len(report.rows) == 14 and all(row.num_compared == report.num_frames == 10 for row in report.rows)
    assert report.levels()["F"].passed and report.to_json()["num_rows"] == 14


def test_a_broken_bundle_fails_in_five_lines_where_it_is_broken(
    bundle_fp32: Path, tiny: LoadedModel, copy_bundle: Callable[[Path], Path]
) -> None:
    bundle = copy_bundle(bundle_fp32)
    edit_graph(bundle, "temporal", roll_slot_mask)
    report = run_the_five_lines(bundle, tiny)
    assert not report.passed and (report.first_failed_graph, report.first_failed_level) == ("temporal", "D")
    assert report.faults()[0].about == "bundle fp32: temporal/features"


def test_the_types_of_parity_need_no_torch() -> None:
    code = (
        "import sys; from pvc_export.parity import Place, Rung; from pvc_export.parity.levels import Rule, Verdict; "
        "from pvc_export.parity.limits import Row; from engines.metrics import metrics_of; "
        "from pvc_export.parity.answers import Conversation; from pvc_export.parity.culprit.record import Culprit; "
        "import pvc_export.parity.state.rules; assert 'torch' not in sys.modules; "
        "assert [str(Place('frame', 3)), str(Rung('onnx', 'fp16'))] == ['frame 3', 'onnx fp16']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
