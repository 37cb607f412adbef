"""Traces of the exporting machine in a bundle: lines of our own code, but no local folder."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch

import pvc_ref
from pvc_export.graphs.notes import LINES, own_line
from pvc_export.parity.culprit.pieces import origins

ROOT = Path(__file__).parents[3]
TORCH = Path(torch.__file__).parent


@pytest.mark.parametrize("bundle_name", ["bundle_fp16", "bundle_fp32"])
def test_no_file_of_a_bundle_names_a_folder_of_the_machine_that_made_it(
    bundle_name: str, request: pytest.FixtureRequest
) -> None:
    """Searches the bytes of graphs, engines, manifest and report for the folders of sources, packages and user."""
    bundle: Path = request.getfixturevalue(bundle_name)
    folders = [ROOT, Path(sys.prefix), Path(sys.prefix).resolve(), TORCH.parent, Path.home(), Path.home().resolve()]
    secrets = [b"/site-packages", *(bytes(folder) for folder in folders if not bundle.is_relative_to(folder))]
    assert len(secrets) > 1
    files = [path for path in bundle.rglob("*") if path.is_file()]
    found = [(path.name, secret) for path in files for secret in secrets if secret in path.read_bytes()]
    assert len(files) > 10 and not found


def test_a_value_keeps_the_module_and_the_line_of_ours_that_computed_it(bundle_fp32: Path) -> None:
    """This also holds where torch's linear.py is the innermost line."""
    model = onnx.load(bundle_fp32 / "graphs/llm.onnx", load_external_data=False)
    found = origins(model).values()
    linear = [origin for origin in found if origin.scope == "decoder.layers.0.mlp" and origin.operation == "silu"]
    assert [origin.line.partition(":")[0] for origin in linear] == ["joined.py"]
    assert {origin.line.partition(":")[0] for origin in found} >= {"llm.py", "spellings.py"}
    files = {note.value.split('"')[1] for node in model.graph.node for note in node.metadata_props if note.key == LINES}
    assert files >= {"pvc_ref/llm.py", "pvc_export/graphs/spellings.py"}


def test_of_a_stack_trace_the_innermost_line_of_ours_is_kept_wherever_the_package_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = Path("/usr/lib/python3/site-packages/pvc_ref")
    trace = (
        f'File "{installed}/llm.py", line 98, in forward\n    x = self.mlp(x)\n'
        f'File "{installed}/layers.py", line 47, in <lambda>\n    return a @ b\n'
        f'File "{TORCH}/nn/modules/linear.py", line 130, in forward\n    return F.linear(x)'
    )
    assert own_line(trace) == own_line("") == ""  # not the imported pvc_ref
    monkeypatch.setattr("pvc_export.graphs.notes.OURS", (installed,))
    assert own_line(trace) == 'File "pvc_ref/layers.py", line 47, in <lambda>'
    assert Path(pvc_ref.__file__).parent != installed
