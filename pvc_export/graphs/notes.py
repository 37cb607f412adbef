"""What an exported graph says of where it came from: for each node the module, torch's operation and our line.

The search for a culprit reads it (parity/culprit/pieces.py). torch's exporter notes much more: the traces of its stack
name the exporting machine's folders, its user's among them, and a bundle is handed on.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

import pvc_ref

PROGRAM = "pkg.torch.onnx.fx_node"
SCOPES, OPERATION, LINES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.stack_trace"
OURS = (Path(pvc_ref.__file__).parent, Path(__file__).parents[1])
TRACED = re.compile(r'File "(.+)", line (\d+), in (\S+)')


def keep_own_notes(model: ir.Model) -> None:
    """Forget every note of the exporter but those named above; of a stack trace, keep `own_line`."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        values += node.outputs
        notes = {key: node.metadata_props[key] for key in (PROGRAM, SCOPES, OPERATION) if key in node.metadata_props}
        if line := own_line(node.metadata_props.get(LINES, "")):
            notes[LINES] = line
        node.metadata_props.clear()
        node.metadata_props.update(notes)
    model.graph.metadata_props.clear()
    for value in values:
        value.metadata_props.clear()


def own_line(trace: str) -> str:
    """The innermost line of our packages in a stack trace, as a trace too: File "pvc_ref/layers.py", line 47, in f."""
    lines = [
        f'File "{Path(path).relative_to(package.parent).as_posix()}", line {number}, in {function}'
        for path, number, function in TRACED.findall(trace)
        for package in OURS
        if Path(path).is_relative_to(package)
    ]
    return lines[-1] if lines else ""
