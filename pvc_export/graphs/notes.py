"""Origin of each node of an exported graph: its module, torch's operation and our source line.

The search for a culprit reads these notes (parity/culprit/pieces.py). So does the check of weights and structure, which
finds there which parameter a node must read. torch's exporter notes much more, and its stack traces name folders of the
exporting machine and its user. A bundle is passed on to others, so these are removed.
"""

from __future__ import annotations

import re
from ast import literal_eval
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

import pvc_ref

PROGRAM = "pkg.torch.onnx.fx_node"
SCOPES, OPERATION, LINES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.stack_trace"
OURS = (Path(pvc_ref.__file__).parent, Path(__file__).parents[1])
TRACED = re.compile(r'File "(.+)", line (\d+), in (\S+)')
PARAMETER = re.compile(r"%(p_\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Origin of a node. One torch operation may become several nodes, all with the same note.

    value       torch's name of the result, unique in the graph: 'linear_3'
    scope       the innermost module around it: 'layers.1.attn'; '' is the graph itself
    operation   torch's name of the operation: 'linear'
    parameters  the parameters that it reads, in order, with torch.export's names (`parameter_name`)
    """

    value: str
    scope: str
    operation: str
    parameters: tuple[str, ...]


def note_of(node: onnx.NodeProto) -> Note | None:
    """Return a node's note; None for a node that the exporter added, such as the Split of a `chunk`."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    if not {PROGRAM, SCOPES, OPERATION} <= set(notes):
        return None
    scopes, classes = literal_eval(notes[SCOPES]), literal_eval(notes[OPERATION])
    value, _, call = notes[PROGRAM].partition(" ")
    return Note(
        value=value.removeprefix("%"),
        scope=scopes[-2] if len(scopes) > 1 else "",
        operation=str(classes[-1]).removeprefix("aten.").split(".")[0],
        parameters=tuple(dict.fromkeys(PARAMETER.findall(call))),
    )


def parameter_name(name: str) -> str:
    """Return torch.export's name for a parameter of a graph's module: 'p_layers_0_ls1' for 'layers.0.ls1'."""
    return "p_" + name.replace(".", "_")


def keep_own_notes(model: ir.Model) -> None:
    """Remove every note of the exporter except those named above; of a stack trace, keep `own_line`."""
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
    """Return the innermost line of our packages in a stack trace, as: File "pvc_ref/layers.py", line 47, in f."""
    lines = [
        f'File "{Path(path).relative_to(package.parent).as_posix()}", line {number}, in {function}'
        for path, number, function in TRACED.findall(trace)
        for package in OURS
        if Path(path).is_relative_to(package)
    ]
    return lines[-1] if lines else ""
